"""The embedded server: one for everybody, through every way a process can end, on every path a home can have."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.adapters.embedded import EmbeddedServerError, start_server, stop_server, tuning

SERVER_USER = "pgserver" if os.geteuid() == 0 else None
"""Who PostgreSQL runs as: it refuses to run as root."""

START = (
    "import sys\n"
    "from pathlib import Path\n"
    "from threading import Barrier, Thread\n"
    "from qbench_dagster.adapters.embedded import start_server, stop_server\n"
    "home = Path(sys.argv[1])\n"
)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that no server has used yet; whatever runs there afterwards is stopped."""
    folder = Path(tempfile.mkdtemp(prefix="qbe"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        stop_server(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def used_before() -> Iterator[Path]:
    """A home whose server ran once: what `stopped` shares among the tests that need no new one."""
    folder = Path(tempfile.mkdtemp(prefix="qbe"))
    folder.chmod(0o755)
    try:
        start_server(folder, 256)
        yield folder
    finally:
        stop_server(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stopped(used_before: Path) -> Iterator[Path]:
    """A home with data and no server; whatever runs there afterwards is stopped."""
    stop_server(used_before)
    (used_before / "pg" / "log").unlink(missing_ok=True)
    yield used_before
    stop_server(used_before)


@contextlib.contextmanager
def stopped_afterwards(home: Path) -> Iterator[Path]:
    try:
        yield home
    finally:
        stop_server(home)


def postmaster_pid(home: Path) -> int:
    return int((home / "pg" / "postmaster.pid").read_text().splitlines()[0])


def log_of(home: Path) -> str:
    return (home / "pg" / "log").read_text()


def execute(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_a_running_server_is_found_again(server_home: Path, server_url: str) -> None:
    pid = postmaster_pid(server_home)
    assert start_server(server_home, memory_mb=1024) == server_url
    assert postmaster_pid(server_home) == pid
    assert execute(server_url, "SELECT 1") == [(1,)]


def test_a_relative_home_is_the_same_server(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stopped.parent)
    url = start_server(Path(stopped.name), 256)
    monkeypatch.chdir("/")
    assert start_server(stopped) == url
    assert execute(url, "SELECT 1") == [(1,)]


def test_processes_and_threads_that_start_at_once_get_one_server(home: Path) -> None:
    code = START + (
        "barrier, urls = Barrier(3), []\n"
        "def start():\n"
        "    barrier.wait()\n"
        "    urls.append(start_server(home, 256))\n"
        "threads = [Thread(target=start) for _ in range(2)]\n"
        "[thread.start() for thread in threads]\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "barrier.wait()\n"
        "[thread.join() for thread in threads]\n"
        "print(*urls, sep='\\n')\n"
    )
    processes = [python(code, home) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120) for process in processes]
    assert [error for _, error in answers] == ["", "", ""]
    urls = [url for out, _ in answers for url in out.split()]
    assert len(urls) == 6
    assert set(urls) == {start_server(home)}
    assert log_of(home).count("starting PostgreSQL") == 1
    assert "FATAL" not in log_of(home)


def test_a_killed_user_leaves_the_server_running(home: Path) -> None:
    code = START + (
        "import psycopg, time\n"
        "connection = psycopg.connect(start_server(home, 256))\n"
        "connection.execute('CREATE TABLE kept AS SELECT 1 AS number')\n"
        "connection.commit()\n"
        "connection.execute('INSERT INTO kept VALUES (2)')\n"
        "print('in a transaction', flush=True)\n"
        "time.sleep(600)\n"
    )
    user = python(code, home, start_new_session=True)
    assert user.stdout is not None
    assert user.stdout.readline() == "in a transaction\n"
    pid = postmaster_pid(home)
    os.killpg(user.pid, signal.SIGKILL)  # as a terminal does: whatever the process took along goes too
    user.communicate()
    url = start_server(home)
    assert postmaster_pid(home) == pid
    assert execute(url, "SELECT number FROM kept") == [(1,)]
    assert log_of(home).count("starting PostgreSQL") == 1


def test_a_killed_server_comes_back_with_what_was_committed(home: Path) -> None:
    url = start_server(home, 256)
    execute(url, "CREATE TABLE kept AS SELECT 1 AS number")
    pid = postmaster_pid(home)
    open_transaction = psycopg.connect(url)
    open_transaction.execute("INSERT INTO kept VALUES (2)")
    busy = psycopg.connect(url, autocommit=True, application_name="busy")
    busy_pid = busy.info.backend_pid
    assert busy_pid > 1

    def keep_busy() -> None:  # an orphan that would outlive its postmaster, and keep the next one from starting
        with contextlib.suppress(psycopg.OperationalError):
            busy.execute("DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$")

    thread = threading.Thread(target=keep_busy, daemon=True)
    thread.start()
    while not execute(url, "SELECT 1 FROM pg_stat_activity WHERE application_name = 'busy' AND state = 'active'"):
        time.sleep(0.01)

    os.kill(pid, signal.SIGKILL)
    try:
        again = start_server(home, 256)
        thread.join(60)
        assert not thread.is_alive()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(busy_pid, signal.SIGKILL)
        open_transaction.close()
    assert postmaster_pid(home) != pid
    assert execute(again, "SELECT number FROM kept") == [(1,)]
    assert "database system was interrupted" in log_of(home)
    assert "FATAL:  lock file" not in log_of(home)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_CHILD_SUBREAPER")
def test_under_an_init_that_reaps_nobody(home: Path) -> None:
    """A container whose first process is `qbench ui`: a dead postmaster stays a zombie, its pid taken for ever."""
    as_init = (
        "import ctypes, os, signal, subprocess, sys\n"
        "import psutil\n"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"  # PR_SET_CHILD_SUBREAPER
        "def run(what):\n"
        "    code = 'import sys; from pathlib import Path; from qbench_dagster.adapters.embedded import *; ' + what\n"
        "    done = subprocess.run([sys.executable, '-c', code, sys.argv[1]], capture_output=True, text=True)\n"
        "    print(done.stdout.strip(), done.stderr.strip()[-2000:])\n"
        "def pid():\n"
        "    return int(open(sys.argv[1] + '/pg/postmaster.pid').readline())\n"
        "run('start_server(Path(sys.argv[1]), 256)')\n"
        "first = pid()\n"
        "os.kill(first, signal.SIGKILL)\n"
        "run('start_server(Path(sys.argv[1]), 256)')\n"
        "print(psutil.Process(first).status(), pid() != first)\n"
        "run('print(stop_server(Path(sys.argv[1])), stop_server(Path(sys.argv[1])))')\n"
    )
    assert hasattr(ctypes.CDLL(None), "prctl")
    out, error = python(as_init, home).communicate(timeout=60)
    assert error == ""
    assert out.split() == ["zombie", "True", "True", "False"]


def test_a_stop_is_clean_and_says_whether_there_was_a_server(stopped: Path) -> None:
    assert stop_server(stopped / "never started") is False
    start_server(stopped, 256)
    pid = postmaster_pid(stopped)
    assert stop_server(stopped) is True
    assert log_of(stopped).rstrip().endswith("database system is shut down")
    assert not (stopped / "pg" / "postmaster.pid").exists()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert stop_server(stopped) is False
    start_server(stopped, 256)
    assert "database system was interrupted" not in log_of(stopped)


def test_a_stop_does_not_wait_for_those_who_use_it(stopped: Path) -> None:
    with psycopg.connect(start_server(stopped, 256)) as user:
        user.execute("CREATE TABLE unfinished ()")
        assert stop_server(stopped) is True
        with pytest.raises(psycopg.OperationalError):
            user.execute("SELECT 1")
    assert execute(start_server(stopped, 256), "SELECT to_regclass('unfinished')") == [(None,)]


def test_a_pid_that_is_somebody_elses_by_now_is_no_obstacle(stopped: Path, server_home: Path, server_url: str) -> None:
    start_server(stopped, 256)
    pid_file = stopped / "pg" / "postmaster.pid"
    left = pid_file.read_text().splitlines()
    stop_server(stopped)
    others = subprocess.Popen(["sleep", "600"], user=SERVER_USER)
    try:
        for pid in (others.pid, postmaster_pid(server_home)):  # anybody, and another PostgreSQL
            pid_file.write_text("\n".join([str(pid), *left[1:]]) + "\n")
            assert stop_server(stopped) is False
            assert execute(start_server(stopped, 256), "SELECT 1") == [(1,)]
            assert stop_server(stopped) is True
            assert others.poll() is None
            assert execute(server_url, "SELECT 1") == [(1,)]
    finally:
        others.kill()
        others.wait()


def test_a_pid_file_that_is_no_pid_file_is_no_obstacle(stopped: Path) -> None:
    (stopped / "pg" / "postmaster.pid").write_text("")
    assert execute(start_server(stopped, 256), "SELECT 1") == [(1,)]


def test_a_home_with_a_space(home: Path) -> None:
    with stopped_afterwards(home / "it's my home") as spaced:
        url = start_server(spaced, 256)
        assert execute(url, "SHOW unix_socket_directories") == [(f'"{spaced / "pg"}"',)]
        assert stop_server(spaced) is True


def test_a_home_too_long_for_a_socket(home: Path) -> None:
    with stopped_afterwards(home / ("long" * 30)) as long:
        assert len(str(long)) > 107
        url = start_server(long, 256)
        socket_folder = Path(parse_qs(urlsplit(url).query)["host"][0])
        try:
            assert not socket_folder.is_relative_to(home)
            assert socket_folder.stat().st_mode & 0o077 == 0  # whoever reaches the socket is superuser
            assert execute(url, "SELECT 1") == [(1,)]
            assert start_server(long, 256) == url
            assert stop_server(long) is True
            assert start_server(long, 256) == url
        finally:
            stop_server(long)
            shutil.rmtree(socket_folder)


@pytest.mark.parametrize("character", [",", '"', "$", "`", "\\"])
def test_a_home_that_cannot_be_reached_is_refused_by_name(home: Path, character: str) -> None:
    """libpq takes a comma for two hosts, and pg_ctl hands the path to a shell."""
    unfit = home / f"a{character}b"
    with pytest.raises(EmbeddedServerError, match="set QBENCH_HOME") as caught:
        start_server(unfit)
    assert str(unfit) in str(caught.value)
    assert not unfit.exists()


@pytest.mark.parametrize("where", ["home", "home/inside", "home/pg"])
def test_a_file_in_the_place_of_a_folder_is_named(home: Path, where: str) -> None:
    blocked = {"home": home / "file", "home/inside": home / "file" / "inside", "home/pg": home}[where]
    (home / ("pg" if where == "home/pg" else "file")).write_text("")
    with pytest.raises(EmbeddedServerError, match="DATABASE_URL") as caught:
        start_server(blocked)
    assert str(blocked) in str(caught.value)


def test_a_folder_that_may_not_be_written_is_named(home: Path) -> None:
    home.chmod(0o555)
    code = START + "start_server(home / 'mine')\n"
    nobody = "nobody" if os.geteuid() == 0 else None
    try:
        _, error = python(code, home, user=nobody).communicate(timeout=60)
    except PermissionError:
        pytest.skip("nobody may not run this Python")
    if "ModuleNotFoundError" in error:
        pytest.skip("nobody may not read the project")
    last = error[error.rindex("EmbeddedServerError") :]
    assert str(home / "mine") in last
    assert "Permission denied" in last
    assert "writable" in last


def test_a_server_that_does_not_start_says_why(stopped: Path) -> None:
    configuration = stopped / "pg" / "postgresql.conf"
    good = configuration.read_text()
    configuration.write_text(good + "nonsense_setting = 1\n")
    try:
        with pytest.raises(EmbeddedServerError, match="nonsense_setting") as caught:
            start_server(stopped, 256)
    finally:
        configuration.write_text(good)
    assert str(stopped) in str(caught.value)


def test_memory_is_set_anew_on_every_start(stopped: Path) -> None:
    execute(start_server(stopped, 256), "SELECT 1")
    stop_server(stopped)
    url = start_server(stopped, 600)
    assert execute(url, "SHOW shared_buffers") == [("200MB",)]
    assert (stopped / "pg" / "postgresql.conf").read_text().count("qbench.conf") == 1


def test_postgresql_takes_every_setting(server_url: str) -> None:
    wrong = "SELECT name, setting, error FROM pg_file_settings WHERE sourcefile LIKE '%qbench.conf' AND NOT applied"
    assert execute(server_url, wrong) == []
    expected = tuning(1024, os.cpu_count() or 1)
    rows = execute(server_url, "SELECT name, current_setting(name) FROM pg_settings")
    current = {name: value for name, value in rows if name in expected}
    assert current == expected | {"effective_cache_size": "2GB"}


@given(memory_mb=st.integers(256, 64 * 1024), cores=st.integers(1, 256))
def test_tuning_stays_within_the_memory(memory_mb: int, cores: int) -> None:
    settings = tuning(memory_mb, cores)
    sizes = {}
    for name in ("shared_buffers", "maintenance_work_mem", "work_mem", "effective_cache_size", "max_wal_size"):
        match = re.fullmatch(r"(\d+)(MB|GB)", settings[name])
        assert match is not None, (name, settings[name])
        sizes[name] = int(match[1]) * {"MB": 1, "GB": 1024}[match[2]]
    assert sizes["shared_buffers"] + sizes["maintenance_work_mem"] <= memory_mb
    assert sizes["work_mem"] <= sizes["maintenance_work_mem"]
    assert max(sizes.values()) < 2**21  # in kB it has to stay an integer
    assert 0 <= int(settings["max_parallel_maintenance_workers"]) < cores
    assert 0 <= int(settings["max_parallel_workers_per_gather"]) < cores
