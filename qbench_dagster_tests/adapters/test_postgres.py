"""Connections: what is refused and in which words, what is never said, and what state they are handed on in."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import pq, sql

from qbench_dagster.adapters import connecting, migrating, postgres
from qbench_dagster.adapters import sql as sql_files
from qbench_dagster.adapters.migrating import check_server, ensure_vector, migrate
from qbench_dagster.adapters.postgres import (
    Database,
    DatabaseError,
    JsonText,
    ensure_database,
    ensure_schema,
    fetch_dicts,
    fetch_value,
    without_password,
)
from qbench_dagster.adapters.sql import fill, statement
from qbench_dagster_tests.support import execute, rows

MIGRATIONS = sorted(path.name for path in (Path(__file__).parents[2] / "sql" / "migrations").iterdir())
SECRET = "hunter2"

_numbers = itertools.count()


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def all_said(error: BaseException) -> str:
    """Everything a terminal or a log would show of an error."""
    return "".join([str(error), repr(error), *traceback.format_exception(error)])


@contextmanager
def role(url: str, *grants: str) -> Iterator[str]:
    """URL of `url`'s database for a new login role that holds `grants` and nothing else."""
    name = f"limited_{os.getpid()}_{next(_numbers)}"
    ask(url, f"CREATE ROLE {name} LOGIN")
    try:
        for grant in grants:
            ask(url, f"GRANT {grant} TO {name}")
        yield url.replace("//postgres@", f"//{name}@")
    finally:
        ask(url, f"DROP OWNED BY {name}")
        ask(url, f"DROP ROLE {name}")


def at_once(count: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` gives in `count` threads that begin together."""
    barrier = threading.Barrier(count)

    def begin() -> Any:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(count) as threads:
        return [future.result() for future in [threads.submit(begin) for _ in range(count)]]


@contextmanager
def that_connection(database: Database, pid: int, **options: bool) -> Iterator[postgres.Connection]:
    """The connection of the pool that has this pid: it was neither lost nor thrown away."""
    with ExitStack() as stack:
        for _ in range(6):
            connection = stack.enter_context(database.connection("test", **options))
            if connection.info.backend_pid == pid:
                yield connection
                return
        pytest.fail(f"no connection of the pool has pid {pid}")


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of sql/migrations, to be added to and changed."""
    folder = tmp_path / "sql"
    shutil.copytree(Path(__file__).parents[2] / "sql", folder)
    monkeypatch.setattr(sql_files, "sql_folder", lambda: folder)
    monkeypatch.setattr(migrating, "sql_folder", lambda: folder)
    sql_files.read_file.cache_clear()
    yield folder / "migrations"
    sql_files.read_file.cache_clear()


# Opening and migrating


def test_an_empty_database_is_set_up(fresh_url: str) -> None:
    with Database(fresh_url) as database:
        assert rows(database, "SELECT name FROM store.schema_versions ORDER BY name") == [
            (name,) for name in MIGRATIONS
        ]
        assert rows(database, "SELECT to_regclass('store.test_documents') IS NOT NULL") == [(True,)]
        assert rows(database, "SELECT '[1,2]'::vector::text") == [("[1,2]",)]
        assert database.vector_schema == "public"


def test_opening_again_applies_nothing(fresh_url: str) -> None:
    when = "SELECT name, checksum, applied_at, xmin::text FROM store.schema_versions ORDER BY name"
    with Database(fresh_url) as first:
        before = rows(first, when)
    with Database(fresh_url) as second:
        assert rows(second, when) == before
        with second.connection("test") as connection:
            assert migrate(connection) == []


def test_a_new_migration_is_applied_alone(fresh_url: str, migrations: Path) -> None:
    Database(fresh_url).close()
    (migrations / "901_later.sql").write_text("CREATE TABLE landing.later ();")
    with psycopg.connect(fresh_url) as connection:
        assert migrate(connection) == ["901_later.sql"]
    assert ask(fresh_url, "SELECT to_regclass('landing.later') IS NOT NULL") == [(True,)]


def test_a_migration_that_fails_leaves_nothing_behind(fresh_url: str, migrations: Path) -> None:
    (migrations / "901_good.sql").write_text("CREATE SCHEMA good;")
    (migrations / "902_bad.sql").write_text("CREATE SCHEMA bad; SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        Database(fresh_url)
    assert ask(fresh_url, "SELECT nspname FROM pg_namespace WHERE nspname IN ('good', 'bad', 'landing')") == []
    (migrations / "902_bad.sql").write_text("CREATE SCHEMA bad;")
    sql_files.read_file.cache_clear()
    with Database(fresh_url) as database:
        assert rows(database, "SELECT count(*) FROM store.schema_versions") == [(len(MIGRATIONS) + 2,)]


@pytest.mark.parametrize("name", MIGRATIONS)
def test_a_changed_migration_is_refused_by_name(database: Database, migrations: Path, name: str) -> None:
    path = migrations / name
    path.write_text(path.read_text() + "-- changed\n")
    with pytest.raises(DatabaseError, match=f"sql/migrations/{name} was changed"):
        Database(database.url)


def test_a_database_of_a_newer_qbench_is_refused(database: Database) -> None:
    execute(database, "INSERT INTO store.schema_versions (name, checksum) VALUES ('999_future.sql', '')")
    with pytest.raises(DatabaseError, match=r"newer version of qbench \(it has 999_future\.sql\)"):
        Database(database.url)


def test_threads_that_open_an_empty_database_at_once(fresh_url: str) -> None:
    def open_it() -> int:
        with Database(fresh_url) as database:
            return int(rows(database, "SELECT count(*) FROM store.schema_versions")[0][0])

    assert at_once(8, open_it) == [len(MIGRATIONS)] * 8


def test_processes_that_open_an_empty_database_at_once(fresh_url: str) -> None:
    code = (
        "import sys\n"
        "from qbench_dagster.adapters.postgres import Database\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "Database(sys.argv[1]).close()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, fresh_url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60) for process in processes] == [("", "")] * 3
    assert [process.returncode for process in processes] == [0] * 3
    assert ask(fresh_url, "SELECT count(*) FROM store.schema_versions") == [(len(MIGRATIONS),)]


def test_a_database_and_a_schema_are_made_once(server_url: str) -> None:
    name = f"made_{os.getpid()}_{next(_numbers)}"
    try:
        urls = at_once(4, lambda: ensure_database(server_url, name, relaxed_commits=True))
        assert urls == [server_url.replace("/postgres?", f"/{name}?")] * 4
        assert ask(urls[0], "SHOW synchronous_commit") == [("off",)]
        at_once(6, lambda: ensure_schema(urls[0], "dagster"))
        assert ask(urls[0], "SELECT count(*) FROM pg_namespace WHERE nspname = 'dagster'") == [(1,)]
        with role(urls[0]) as limited:
            with pytest.raises(DatabaseError, match="may not create tables in it"):
                ensure_schema(limited, "dagster")
            ask(urls[0], "CREATE TABLE dagster.runs ()")
            ensure_schema(limited, "dagster")  # Dagster's tables are there: no right is needed
            with pytest.raises(DatabaseError, match="may not create schema other"):
                ensure_schema(limited, "other")
    finally:
        ask(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def test_a_schema_that_another_process_is_just_making(database: Database) -> None:
    with psycopg.connect(database.url) as first, ThreadPoolExecutor(1) as threads:
        first.execute("CREATE SCHEMA dagster")
        second = threads.submit(ensure_schema, database.url, "dagster")
        while not ask(database.url, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            assert not second.done()
            time.sleep(0.01)
        first.commit()
        second.result()


# What is refused, and never said


@pytest.mark.parametrize("opener", [Database, lambda url: ensure_schema(url, "dagster")])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://ada:{secret}@127.0.0.1:1/db", "ada@127.0.0.1:1/db"),
        ("postgresql+psycopg2://ada:{secret}@127.0.0.1:1/db", "ada@127.0.0.1:1/db"),
        ("postgresql://ada@127.0.0.1:1/db?password={secret}&sslpassword={secret}", "ada@127.0.0.1:1/db"),
        ("postgresql://ada@127.0.0.1:1/db?pass%77ord={secret}", "ada@127.0.0.1:1/db"),
        ("postgresql://ada:pa@{secret}@127.0.0.1:1/db", "%40"),
        ("postgresql://ada:pa/{secret}@127.0.0.1:1/db", "%2F"),
        ("postgresql://ada:12/{secret}@127.0.0.1:1/db", "%2F"),
        ("postgresql://ada:pa?{secret}@127.0.0.1:1/db", "ada@…"),
        ("postgresql://ada:pa%{secret}@127.0.0.1:1/db", "%25"),
        ("postgresql://ada:pa[{secret}@127.0.0.1:1/db", "ada@127.0.0.1:1/db"),
        ("postgresql://ada:pa℀{secret}@127.0.0.1:1/db", "ada@127.0.0.1:1/db"),
        ("postgresql://ada:x@127.0.0.1:1/db?{secret}=1", "cannot be read"),
    ],
)
def test_an_unreachable_server_is_named_without_the_password(opener: Callable[[str], Any], url: str, said: str) -> None:
    with pytest.raises(DatabaseError, match="DATABASE_URL") as caught:
        opener(url.format(secret=SECRET))
    assert said in str(caught.value)
    assert SECRET not in all_said(caught.value)


def test_a_database_that_does_not_exist_is_named(server_url: str) -> None:
    with pytest.raises(DatabaseError, match='"nowhere" does not exist'):
        Database(server_url.replace("/postgres?", "/nowhere?"))


def test_a_url_for_sqlalchemy_is_taken_too(fresh_url: str) -> None:
    with Database(fresh_url.replace("postgresql://", "postgresql+psycopg://")) as database:
        assert database.url == fresh_url


troublesome = st.text(st.sampled_from("/?#@:%[]&= a℀"), min_size=1, max_size=6)
PARAMETERS = ["password", "PASSWORD", "sslpassword", "pass%77ord", "oauth_client_secret", "scram_client_key"]


@given(
    password=st.one_of(troublesome, st.text(min_size=1, max_size=12)).map(lambda text: f"\u2020{text}\u2021"),
    user=st.sampled_from(["", "ada", "a%40da"]),
    where=st.sampled_from(["", "db.example.com:5432", "[::1]:5432", "a:1,b:2"]),
    query=st.sampled_from(["", "host=/tmp", "sslmode=require&host=/tmp"]),
    parameter=st.sampled_from(["", *PARAMETERS]),
    encoded=st.booleans(),
)
def test_the_password_is_never_shown(
    password: str, user: str, where: str, query: str, parameter: str, encoded: bool
) -> None:
    """Nor any run of two of its characters, and should somebody have forgotten to percent-encode it."""
    written = quote(password, safe="") if encoded else password.replace("&", "")
    if parameter:
        url = f"postgresql://{user}@{where}/db?" + "&".join(filter(None, [query, f"{parameter}={written}"]))
    else:
        url = f"postgresql://{user}:{written}@{where}/db" + (f"?{query}" if query else "")
    shown = without_password(url)
    assert shown.startswith("postgresql://")
    for mark in ("\u2020", "\u2021", quote("\u2020"), quote("\u2021")):  # the password's first and last character
        assert mark not in shown
    if encoded:
        assert shown == f"postgresql://{user}@{where}/db" + (f"?{query}" if query else "")


def test_what_is_harmless_is_shown() -> None:
    url = "postgresql://ada@/qbench?host=/tmp/a%20b&port=5432"
    assert without_password(url) == url
    assert without_password("postgresql://localhost/qbench") == "postgresql://localhost/qbench"


def test_an_old_server_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"version_number": 140011, "version": "14.11", "database": "db", "role": "ada"}
    with database.connection("test") as connection:
        check_server(connection)
        monkeypatch.setattr(migrating, "fetch_dicts", lambda *_: [found])
        with pytest.raises(DatabaseError, match=r"PostgreSQL 14\.11 found; version 15 or newer is needed"):
            check_server(connection)
        found["version_number"] = 150000
        check_server(connection)


def test_a_server_without_pgvector_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrating, "fetch_dicts", lambda *_: [])
    monkeypatch.setattr(migrating, "fetch_value", lambda *_: None)
    with database.connection("test") as connection, pytest.raises(DatabaseError, match="is not installed") as caught:
        ensure_vector(connection)
    assert "postgresql-<version>-pgvector" in str(caught.value)


@pytest.mark.parametrize(("version", "good"), [("0.7.4", False), ("0.8.0", True), ("0.10.1", True), ("1.0", True)])
def test_an_old_pgvector_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch, version: str, good: bool
) -> None:
    monkeypatch.setattr(migrating, "fetch_dicts", lambda *_: [{"version": version, "schema": "extensions"}])
    with database.connection("test") as connection:
        if good:
            assert ensure_vector(connection) == "extensions"
            return
        with pytest.raises(DatabaseError, match=r"pgvector 0\.7\.4 found; 0\.8 or newer") as caught:
            ensure_vector(connection)
        assert "ALTER EXTENSION vector UPDATE" in str(caught.value)


def test_pgvector_in_another_schema_is_found(fresh_url: str) -> None:
    ask(fresh_url, 'CREATE SCHEMA "My Extensions"')
    ask(fresh_url, 'CREATE EXTENSION vector SCHEMA "My Extensions"')
    with Database(fresh_url) as database:
        assert database.vector_schema == "My Extensions"
        assert rows(database, "SELECT '[1,2]'::halfvec::text") == [("[1,2]",)]


def test_a_role_that_may_not_create_is_told_what_to_ask_for(fresh_url: str) -> None:
    with role(fresh_url) as limited:
        with pytest.raises(DatabaseError, match="CREATE EXTENSION vector") as caught:
            Database(limited)
        assert "psycopg" not in all_said(caught.value)
        ask(fresh_url, "CREATE EXTENSION vector")
        with pytest.raises(DatabaseError, match="GRANT CREATE ON DATABASE"):
            Database(limited)
    assert ask(fresh_url, "SELECT to_regclass('store.schema_versions')") == [(None,)]


def test_a_role_that_may_create_sets_up_a_database(fresh_url: str) -> None:
    name = urlsplit(fresh_url).path[1:]
    ask(fresh_url, "CREATE EXTENSION vector")
    with role(fresh_url, f"CREATE ON DATABASE {name}") as owner, Database(owner) as database:
        assert rows(database, "SELECT count(*) FROM store.schema_versions") == [(len(MIGRATIONS),)]


def test_a_role_that_only_reads(database: Database) -> None:
    with role(database.url) as limited:
        with pytest.raises(DatabaseError, match="may not create or read"):
            Database(limited)
        user = urlsplit(limited).username
        ask(database.url, f"GRANT USAGE ON SCHEMA store TO {user}; GRANT SELECT ON store.schema_versions TO {user}")
        Database(limited).close()  # nothing is missing: no right to create is needed


# Connections


def test_a_short_query_is_cancelled_and_a_long_one_is_not(fresh_url: str) -> None:
    with Database(fresh_url, statement_timeout_s=1) as database:
        with database.connection("short") as connection:
            pid = connection.info.backend_pid
            assert connection.execute("SHOW statement_timeout").fetchone() == ("1s",)
            with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
                connection.execute("SELECT pg_sleep(60)")
        with that_connection(database, pid, long=True) as connection:
            assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
        with that_connection(database, pid) as connection:
            assert connection.execute("SHOW statement_timeout").fetchone() == ("1s",)
            assert connection.execute("SHOW lock_timeout").fetchone() == ("1min",)


def test_a_connection_is_named_for_its_purpose(database: Database) -> None:
    name = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    with database.connection("publish from_0000000729") as connection:
        pid = connection.info.backend_pid
        assert connection.execute(name).fetchone() == ("qbench publish from_0000000729",)
        seen = f"SELECT application_name FROM pg_stat_activity WHERE pid = {pid}"
        assert ask(database.url, seen) == [("qbench publish from_0000000729",)]
    with database.connection("x" * 100) as connection:
        assert connection.execute(name).fetchone() == ("qbench " + "x" * 56,)


def test_a_peer_that_vanished_is_noticed_by_either_side(database: Database) -> None:
    wanted = {"keepalives_idle": "60", "keepalives_interval": "15", "keepalives_count": "4"}
    with database.connection("test") as connection, connecting.connect(database.url) as first:
        for each in (connection, first):
            assert wanted.items() <= each.info.get_parameters().items()
        # Over a Unix socket they have no value, and are set all the same.
        set_here = connection.execute("SELECT name FROM pg_settings WHERE source = 'session'").fetchall()
        assert {f"tcp_{name}" for name in wanted} <= {name for (name,) in set_here}
    said = connecting.keepalive("postgresql://h/d?keepalives_idle=5")
    assert said == {"keepalives_interval": 15, "keepalives_count": 4}, "what the URL says is kept"


def test_names_are_looked_up_in_the_catalog_first(database: Database) -> None:
    execute(database, "CREATE FUNCTION public.lower(text) RETURNS text LANGUAGE sql AS $$ SELECT 'planted' $$")
    assert rows(database, "SELECT lower('A')") == [("a",)]


@pytest.mark.parametrize("begin", ["with a block", "by hand"])
def test_a_connection_comes_back_clean_after_an_exception(database: Database, begin: str) -> None:
    execute(database, "CREATE TABLE public.kept (number integer)")
    pids = []

    def write_and_fail(connection: postgres.Connection) -> None:
        pids.append(connection.info.backend_pid)
        connection.execute("CREATE TEMPORARY TABLE incoming () ON COMMIT DROP")
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute("INSERT INTO public.kept VALUES (1)")
        raise ZeroDivisionError

    def work() -> None:
        with database.connection("test") as connection:
            if begin == "with a block":
                with connection.transaction():
                    write_and_fail(connection)
            else:
                connection.execute("BEGIN")
                write_and_fail(connection)

    with pytest.raises(ZeroDivisionError):
        work()
    with that_connection(database, pids[0]) as connection:
        assert connection.info.transaction_status == pq.TransactionStatus.IDLE
        assert connection.autocommit
        assert connection.execute("SELECT to_regclass('pg_temp.incoming')").fetchone() == (None,)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("1min",)
        assert connection.execute("SELECT count(*) FROM public.kept").fetchone() == (0,)


def test_a_connection_that_the_server_dropped_is_replaced(database: Database) -> None:
    with database.connection("test") as connection:
        pid = connection.info.backend_pid
    ask(database.url, f"SELECT pg_terminate_backend({pid}, 10000)")
    with database.connection("test") as connection:
        assert connection.info.backend_pid != pid
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_no_free_connection_is_an_error_in_words(database: Database) -> None:
    database._pool.timeout = 0.1
    with database.connection("1"), database.connection("2"), database.connection("3"):
        with database.connection("4"), database.connection("5"), database.connection("6"):
            with pytest.raises(DatabaseError, match="gave no connection") as caught, database.connection("7"):
                pass
            assert SECRET not in all_said(caught.value)
        with database.connection("7"):
            pass


def test_json_text_goes_in_as_it_is(database: Database) -> None:
    text = JsonText('{"b": 1, "a": "\\u00e9 \\" %"}')
    assert rows(database, "SELECT %s, jsonb_typeof(%s)", text, text) == [({"b": 1, "a": 'é " %'}, "object")]


# The advisory lock


@pytest.mark.parametrize("queue", [False, True])
def test_the_lock_excludes_and_says_whom_it_waits_for(
    database: Database, caplog: pytest.LogCaptureFixture, queue: bool
) -> None:
    events: list[str] = []
    waiting = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
            waiting.set()

    def wait_for_it() -> None:
        with Database(database.url) as other, other.exclusive("index doc", queue=queue):
            events.append("other in")

    listener = Listener()
    postgres.log.addHandler(listener)
    try:
        with database.exclusive("index doc"):
            holder = ask(
                database.url, "SELECT pid FROM pg_stat_activity WHERE application_name = 'qbench lock index doc'"
            )
            thread = threading.Thread(target=wait_for_it)
            thread.start()
            assert waiting.wait(60)
            blocked = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while queue and thread.is_alive() and not ask(database.url, blocked):
                time.sleep(0.01)
            events.append("first out")
        thread.join(60)
    finally:
        postgres.log.removeHandler(listener)
    assert events == ["first out", "other in"]
    assert "waiting for index doc" in caplog.text
    assert str(holder[0][0]) in caplog.text
    assert "qbench lock index doc" in caplog.text


def test_the_lock_is_given_back_after_an_exception(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), database.exclusive("index doc"):
        raise ZeroDivisionError
    assert ask(database.url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    with database.exclusive("index doc"), database.exclusive("index step"):
        pass
    assert "waiting" not in caplog.text


def test_the_lock_of_another_database_is_not_waited_for(
    database: Database, server_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Advisory locks belong to one database: neither waits for the other, nor is it named as the holder."""
    other = urlunsplit(urlsplit(server_url)._replace(path="/postgres"))
    with psycopg.connect(other, autocommit=True) as connection:
        assert fetch_value(connection, statement("setup.sql", "try_advisory_lock"), name="index doc")
        with database.exclusive("index doc"), database.connection("test") as asking:
            holders = fetch_dicts(asking, statement("setup.sql", "advisory_lock_holders"), name="index doc")
            assert [holder["application_name"] for holder in holders] == ["qbench lock index doc"]
        with database.connection("test") as asking:
            assert fetch_dicts(asking, statement("setup.sql", "advisory_lock_holders"), name="index doc") == []
    assert "waiting" not in caplog.text


def test_values_and_identifiers_of_a_filled_statement_reach_the_server(database: Database) -> None:
    body = (
        """SELECT :'value' AS :"column", 'a' LIKE '%', (ARRAY[1, 2, 3])[2:3], :count, :'day'::date::text -- :"no" %"""
    )
    query = fill(body, "test", {"column": '50% "off"', "count": 7})
    assert isinstance(query, sql.Composed)
    with database.connection("test") as connection:
        cursor = connection.execute(query, {"value": "'; DROP", "day": "2026-01-31"})
        assert cursor.fetchone() == ("'; DROP", True, [2, 3], 7, "2026-01-31")
        assert cursor.description is not None
        assert cursor.description[0].name == '50% "off"'
