"""Backup and restore on a real server: equal by every row, and what goes wrong on the way says so."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from qbench_dagster.adapters import restore as restoring
from qbench_dagster.adapters.backup import back_up
from qbench_dagster.adapters.building import Building, build_index
from qbench_dagster.adapters.comparing import ComparisonSettings
from qbench_dagster.adapters.indexing import ensure_index
from qbench_dagster.adapters.parity import evaluate
from qbench_dagster.adapters.pg_tools import BackupError, find_tool
from qbench_dagster.adapters.postgres import Database, DatabaseError, ensure_database
from qbench_dagster.adapters.restore import Restored, read_manifest, restore
from qbench_dagster.adapters.row_hashes import rooms, table_states
from qbench_dagster.core.manifest import TableState, differences
from qbench_dagster_tests.support import BINARY, SPACE, case, execute, rows, run_pipeline, write_export

_numbers = itertools.count()
MIGRATING = "hashtext('qbench migrations')"
CASES = [
    case(n, f"Log in as {n} \N{LATIN SMALL LETTER E WITH ACUTE}", steps_separated=[{"content": f"Open {n}\\n\tnow"}])
    for n in range(1, 61)
]


def quiet(*_: object) -> None:
    """Progress that nobody sees."""


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export") / "export.db", CASES)


@pytest.fixture(scope="module")
def source(server_url: str, export: Path) -> Iterator[Database]:
    """A database that was filled, with the index of vectors, a role of somebody's, and rights of that role."""
    with Database(ensure_database(server_url, f"backed_up_{os.getpid()}")) as database:
        run_pipeline(database, export, index=BINARY)
        execute(database, "CREATE ROLE grafana")
        execute(database, "GRANT USAGE ON SCHEMA qbench TO grafana")
        execute(database, "GRANT SELECT ON qbench.test_documents TO grafana WITH GRANT OPTION")
        yield database


@pytest.fixture(scope="module")
def folder(source: Database, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it, and a row that came while it was made."""
    made = tmp_path_factory.mktemp("backups") / "first"
    later = itertools.chain(["INSERT INTO landing.projects VALUES ('later', NULL, '{}')"], itertools.repeat("SELECT"))
    back_up(source, made, {"QBENCH_MODEL": "lexical-v1"}, lambda *_: execute(source, next(later)))
    execute(source, "DELETE FROM landing.projects WHERE key = 'later'")
    return made


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the backup that may be broken."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


@pytest.fixture(scope="module")
def restored(folder: Path, server_url: str) -> Iterator[tuple[Database, Restored, list[tuple[str, int, int]]]]:
    """The backup brought back into another database, what was said of it, and the progress told."""
    url = ensure_database(server_url, f"restored_{os.getpid()}")
    told: list[tuple[str, int, int]] = []
    done = restore(url, folder, BINARY, lambda *progress: told.append(progress))
    with Database(url) as database:
        yield database, done, told


def states(database: Database) -> dict[str, TableState]:
    with database.connection("test", long=True) as connection, connection.transaction():
        return dict(table_states(connection, list(rooms(connection)), quiet))


# There and back


def test_every_row_is_as_it_was(source: Database, restored: tuple[Database, Restored, Any]) -> None:
    database, done, _ = restored
    assert list(done.different) == []
    found = states(database)
    assert found == states(source) == done.manifest.tables
    assert found["store.test_documents"].rows == len(CASES)
    assert found[f"{SPACE.name}.doc_embeddings"].rows == len(CASES)
    assert done.manifest.rows > 8 * len(CASES)


def test_the_index_is_built_as_it_was(source: Database, restored: tuple[Database, Restored, Any]) -> None:
    database, _, told = restored
    defined = "SELECT indexdef FROM pg_indexes WHERE schemaname NOT IN ('pg_catalog', 'pg_toast') ORDER BY 1"
    assert rows(database, defined) == rows(source, defined)
    assert any("hnsw" in definition for (definition,) in rows(database, defined))
    known = "SELECT reltuples, relallvisible > 0 FROM pg_class WHERE oid = 'store.test_words'::regclass"
    assert rows(database, known) == [(len(CASES), True)]
    for kind in ("doc", "step"):
        kept = ensure_index(database, SPACE, kind, BINARY, quiet)  # type: ignore[arg-type]
        assert (kept.rebuilt, kept.why) == (False, kept.why)
    assert {"restoring rows", "keys and indexes", "hashing rows", "statistics"} <= {phase for phase, _, _ in told}
    assert all(0 <= made <= total or total == 0 for _, made, total in told)


def test_views_functions_and_rights_come_along(source: Database, restored: tuple[Database, Restored, Any]) -> None:
    database, done, _ = restored
    rights = (
        "SELECT c.oid::regclass::text, c.relacl::text FROM pg_class c WHERE relnamespace = 'qbench'::regnamespace "
        "UNION ALL SELECT p.oid::regprocedure::text, p.proacl::text FROM pg_proc p "
        "WHERE pronamespace IN ('qbench'::regnamespace, 'store'::regnamespace) ORDER BY 1"
    )
    assert rows(database, rights) == rows(source, rights)
    assert any("grafana=r*/" in (acl or "") for _, acl in rows(database, rights))
    searched = "SELECT test_case_id FROM qbench.search_hybrid('log in as 7', NULL, k => 3)"
    assert rows(database, searched) == rows(source, searched) != []
    assert list(done.notes) == []


def test_the_next_run_writes_nothing_and_every_check_passes(
    restored: tuple[Database, Restored, Any], export: Path
) -> None:
    database, _, _ = restored
    again = run_pipeline(database, export, index=BINARY)
    assert again.rows_written == 0
    assert not any(build.rebuilt for build in again.builds.values())
    found = evaluate(
        database, SPACE, list(again.ranges.values()), rows_in_export=len(CASES), progress=quiet, details={},
        comparison=ComparisonSettings(queries=10, target_recall=0.5),
    )  # fmt: skip
    assert found.passed, found.report["findings"]


# What was planted is found


DOCS, STEPS = f"{SPACE.name}.doc_embeddings", f"{SPACE.name}.step_embeddings"
PLANTED = {
    "UPDATE store.test_documents SET title = title || '.' WHERE test_case_id = 7": "store.test_documents",
    "UPDATE store.test_steps SET expected = '{\"\"}' WHERE test_case_id = 7": "store.test_steps",
    "UPDATE landing.cases SET landed_at = landed_at + '1 microsecond' WHERE id = 7": "landing.cases",
    f"UPDATE {DOCS} SET embedding = embedding + embedding WHERE text_hash = (SELECT min(text_hash) FROM {DOCS})": DOCS,
    f"UPDATE {STEPS} SET provenance = 'x' WHERE text_hash = (SELECT min(text_hash) FROM {STEPS})": STEPS,
    f"UPDATE {STEPS} SET pieces = 2 WHERE text_hash = (SELECT min(text_hash) FROM {STEPS})": STEPS,
    f"UPDATE {DOCS} SET created_at = now() WHERE text_hash = (SELECT min(text_hash) FROM {DOCS})": DOCS,
    f"UPDATE {DOCS} SET text_hash = '' WHERE text_hash = (SELECT min(text_hash) FROM {DOCS})": DOCS,
    "DELETE FROM store.test_words WHERE test_case_id = 7": "store.test_words",
    "INSERT INTO landing.projects VALUES ('99', NULL, '{}')": "landing.projects",
}


@pytest.mark.parametrize(("planted", "table"), PLANTED.items())
def test_one_row_that_differs_is_found(restored: tuple[Database, Restored, Any], planted: str, table: str) -> None:
    database, _, _ = restored
    with database.connection("test", long=True) as connection, connection.transaction(force_rollback=True):
        before = table_states(connection, list(rooms(connection)), quiet)
        connection.execute(planted.encode())
        said = differences(before, table_states(connection, list(rooms(connection)), quiet))
    assert [line.split(" ")[0] for line in said] == [table]


# What goes wrong


def test_a_folder_that_holds_something_is_left_alone(source: Database, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(BackupError, match=r"holds something already \(kept\.txt\)\. Name a new folder"):
        back_up(source, tmp_path, {}, quiet)
    with pytest.raises(BackupError, match=r"kept\.txt is a file"):
        back_up(source, tmp_path / "kept.txt", {}, quiet)
    with pytest.raises(BackupError, match=r"cannot be written: Not a directory"):
        back_up(source, tmp_path / "kept.txt" / "below", {}, quiet)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.txt"]


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"is no backup, or not all of one: .*manifest"),
    "no dump": (lambda folder: shutil.rmtree(folder / "dump"), r"is no backup, or not all of one: .*dump is missing"),
    "half a manifest": (
        lambda folder: halve(folder / "manifest.json"),
        r"manifest\.json cannot be used: it is no JSON",
    ),
    "a binary manifest": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), r"cannot be used: .*decode"),
    "a truncated table": (
        lambda folder: halve(largest(folder)),
        r"not complete: \d+\.dat\.gz has [\d,]+ bytes instead of",
    ),
    "a missing table": (lambda folder: largest(folder).unlink(), r"not complete: \d+\.dat\.gz is missing"),
    "a newer format": (lambda folder: change(folder, format=2), r"a newer qbench \(0\.1\.0\) wrote it, in format 2"),
    "newer migrations": (
        lambda folder: change(folder, migrations=["001_landing.sql", "999_wings.sql"]),
        r"made by a newer qbench \(0\.1\.0, it has 999_wings\.sql\)\. Upgrade qbench",
    ),
    "a newer dump": (
        lambda folder: change(folder, tools="99.1"),
        r"pg_restore 99 or newer is needed, for a dump made by",
    ),
}


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(folder: Path) -> Path:
    return max((folder / "dump").glob("*.dat.gz"), key=lambda path: path.stat().st_size)


def change(folder: Path, **changed: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_backup_is_refused_before_anything_is_written(copied: Path, fresh_url: str, fault: str) -> None:
    spoil, told = BROKEN[fault]
    spoil(copied)
    with pytest.raises(BackupError, match=told):
        restore(fresh_url, copied, BINARY, quiet)
    assert made_in(fresh_url) == []


def made_in(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return list(rooms(connection))


def test_a_dump_that_cannot_be_read_leaves_nothing(copied: Path, fresh_url: str) -> None:
    path = largest(copied)
    path.write_bytes(os.urandom(path.stat().st_size))
    with pytest.raises(BackupError, match="pg_restore failed: pg_restore: error: "):
        restore(fresh_url, copied, BINARY, quiet)
    assert made_in(fresh_url) == []


def test_nothing_is_restored_over_something(source: Database, folder: Path) -> None:
    before = states(source)
    with pytest.raises(BackupError, match=r"holds landing, qbench, space_lexical_64, staging, store already \(60 publ"):
        restore(source.url, folder, BINARY, quiet)
    assert states(source) == before


def test_pgvector_somewhere_else_is_told(folder: Path, fresh_url: str) -> None:
    with psycopg.connect(fresh_url) as connection:
        connection.execute("CREATE SCHEMA ext")
        connection.execute("CREATE EXTENSION vector SCHEMA ext")
    with pytest.raises(
        BackupError, match=r"in the schema ext here and was in public.* ALTER EXTENSION vector SET SCHEMA p"
    ):
        restore(fresh_url, folder, BINARY, quiet)


def test_roles_that_are_missing_and_another_schema_of_pgvector(
    server_url: str, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pgvector is made where the dump names it; rights of a role that is missing are left out, and that is said."""

    def built(work: Building, *arguments: Any) -> float:
        work.note("planted")
        return build_index(work, *arguments)

    monkeypatch.setattr(restoring, "build_index", built)
    url = ensure_database(server_url, f"elsewhere_{os.getpid()}")
    with psycopg.connect(url) as connection:
        connection.execute('CREATE SCHEMA "My ext"')
        connection.execute('CREATE EXTENSION vector SCHEMA "My ext"')
    with Database(url) as database:
        run_pipeline(database, export, index=BINARY)
        execute(database, "CREATE ROLE bob")
        execute(database, "GRANT SELECT ON qbench.test_steps TO bob")
        back_up(database, tmp_path / "made", {}, quiet)
        execute(database, "ALTER ROLE bob RENAME TO alice")
    change(tmp_path / "made", owners={"store": "qbench_owner"})
    again = ensure_database(server_url, f"elsewhere_again_{os.getpid()}")
    done = restore(again, tmp_path / "made", BINARY, quiet)
    assert done.different == []
    assert done.notes[0] == "rights of roles that are missing here were left out: bob"
    assert done.notes[1].startswith(
        "the rooms belong to who restored them. For qbench_owner and qbench_writer: qbench r"
    )
    assert done.notes[2:] == [f"{DOCS}: planted", f"{STEPS}: planted"]
    with Database(again) as database:
        assert database.vector_schema == "My ext"
        assert rows(database, "SELECT count(*) FROM qbench.search_hybrid('log in', NULL, k => 5)") == [(5,)]
        readable = "has_table_privilege('qbench_reader', 'qbench.test_steps', 'SELECT')"
        assert rows(database, f"SELECT {readable}, has_table_privilege('alice', 'qbench.test_steps', 'SELECT')") == [
            (True, False)
        ]

    def full(*_: Any) -> float:
        raise DatabaseError("planted")

    monkeypatch.setattr(restoring, "build_index", full)
    url = ensure_database(server_url, f"elsewhere_before_{os.getpid()}")
    with psycopg.connect(url) as connection:
        connection.execute('CREATE SCHEMA "My ext"')
        connection.execute('CREATE EXTENSION vector SCHEMA "My ext"')
    done = restore(url, tmp_path / "made", BINARY, quiet)
    assert done.different == [], "the functions that hash vectors are found where pgvector was"
    assert done.notes[-1] == "an index or statistics are missing, and the next run makes them: planted"


# Killed, and what it leaves


SLOW = """#!/bin/sh
test "$1" = --version && echo 'pg_dump (PostgreSQL) 99.0' && exit
echo $$ > {pid}
exec sleep 60
"""
KILLED = """
import sys
from pathlib import Path
from qbench_dagster.adapters import restore as restoring
from qbench_dagster.adapters.backup import back_up
from qbench_dagster.adapters.building import Building, build_index
from qbench_dagster.adapters.postgres import Database
back_up(Database(sys.argv[1]), Path(sys.argv[2]), {}, lambda *_: None)
"""


def test_a_backup_killed_midway_looks_like_none(source: Database, tmp_path: Path) -> None:
    """pg_dump outlives it: until that ends nobody else writes there, and then the next backup clears it away."""
    pid = tmp_path / "pid"
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "pg_dump"
    slow.write_text(SLOW.format(pid=pid))
    slow.chmod(0o755)
    made = tmp_path / "made"
    path = f"{slow.parent}:{os.environ['PATH']}"
    command = [sys.executable, "-c", KILLED, source.url, str(made)]
    process = subprocess.Popen(command, env={**os.environ, "PATH": path})
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text().strip()):
        assert process.poll() is None, "it ended before its pg_dump began"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    try:
        work = tmp_path / "made.unfinished"
        assert (made.exists(), work.exists()) == (False, True)
        with pytest.raises(BackupError, match="is no backup, or not all of one"):
            read_manifest(work)
        with pytest.raises(BackupError, match="is being written: by another backup, or by the pg_dump of one that was"):
            back_up(source, made, {}, quiet)
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    (work / "dump").mkdir()
    (work / "dump" / "left").touch()
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits until that process is gone
    manifest = back_up(source, made, {}, quiet)
    assert not work.exists()
    assert read_manifest(made) == manifest
    assert "left" not in manifest.files


FULL = """#!/bin/sh
test "$1" = --version && echo 'pg_dump (PostgreSQL) 99.0' && exit
while test $# -gt 0; do test "$1" = -f && mkdir "$2" && echo half > "$2/1.dat.gz"; shift; done
echo 'pg_dump: error: could not write to file: No space left on device' >&2
exit 1
"""


def test_a_full_disk_leaves_nothing(source: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "bin" / "pg_dump"
    full.parent.mkdir()
    full.write_text(FULL)
    full.chmod(0o755)
    monkeypatch.setenv("PATH", str(full.parent), prepend=os.pathsep)
    with pytest.raises(BackupError, match=r"No space left on device\nThe disk is full\. Make room, or name a folder"):
        back_up(source, tmp_path / "made", {}, quiet)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bin"]
    with ExitStack() as stack:  # the connection that was read-only is lent again
        for connection in [stack.enter_context(source.connection("test")) for _ in range(4)]:
            with connection.transaction():
                assert connection.execute("SHOW transaction_read_only").fetchone() == ("off",)
                assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


def test_a_restore_that_fails_in_the_middle_leaves_nothing(
    folder: Path, fresh_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(phase: str, *_: int) -> None:
        if phase == "keys and indexes":
            with psycopg.connect(fresh_url) as other:
                assert other.execute(f"SELECT pg_try_advisory_lock({MIGRATING})").fetchone() == (False,)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(fresh_url, folder, BINARY, interrupted)
    assert made_in(fresh_url) == []


def test_what_others_make_meanwhile_is_left_alone(folder: Path, fresh_url: str) -> None:
    with psycopg.connect(fresh_url, autocommit=True) as other:
        other.execute("CREATE EXTENSION vector")
        other.execute(f"SELECT pg_advisory_lock({MIGRATING})")
        with pytest.raises(BackupError, match="Another restore, or a run that sets up the database, is under way here"):
            restore(fresh_url, folder, BINARY, quiet)
        other.execute("CREATE SCHEMA landing")
    with pytest.raises(BackupError, match="holds landing already"):
        restore(fresh_url, folder, BINARY, quiet)
    assert made_in(fresh_url) == ["landing"]


NEWER = """#!/bin/sh
test "$1" = --version && echo 'pg_restore (PostgreSQL) 19.0' && exit
told='pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"'
case " $* " in *" --exit-on-error "*) echo "$told" >&2; exit 1;; esac
{real} "$@" || exit
case " $* " in *" -d "*) echo "$told" >&2; exit 1;; esac
"""


def test_an_older_server_does_not_know_a_setting_of_a_newer_pg_restore(
    folder: Path, fresh_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find_tool("pg_restore", 18, "a test").path
    newer = tmp_path / "bin" / "pg_restore"
    newer.parent.mkdir()
    newer.write_text(NEWER.format(real=real))
    newer.chmod(0o755)
    monkeypatch.setenv("PATH", str(newer.parent), prepend=os.pathsep)
    with pytest.raises(BackupError, match="transaction_timeout"):  # of a server that knows it
        restore(fresh_url, folder, BINARY, quiet)
    monkeypatch.setattr(restoring, "FIRST_WITH_TRANSACTION_TIMEOUT", 19)
    assert restore(fresh_url, folder, BINARY, quiet).different == []


def test_the_manifest_holds_no_secret(source: Database, tmp_path: Path) -> None:
    url = source.url.replace("postgres@", "postgres:hunter2-planted@")
    with Database(url) as opened:
        back_up(opened, tmp_path / "made", {"DATABASE_URL": "(set)"}, quiet)
    text = (tmp_path / "made" / "manifest.json").read_text()
    assert "hunter2" not in text
    assert "postgresql://postgres@" in text
