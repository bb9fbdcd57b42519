"""Runs beside each other: each row right, no deadlock, nobody who reads is blocked or sees half a case, and who waits
says for whom."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from qbench_dagster.adapters import migrating, postgres
from qbench_dagster.adapters.comparing import ComparisonSettings
from qbench_dagster.adapters.cutover import cut_back, cut_over, purge
from qbench_dagster.adapters.history import PublishingRun, list_syncs
from qbench_dagster.adapters.indexing import ensure_index
from qbench_dagster.adapters.landing import land_cases, land_lookups
from qbench_dagster.adapters.migrating import migrate
from qbench_dagster.adapters.postgres import Database, DatabaseError, hold_lock, lock_all_ranges, lock_range
from qbench_dagster.adapters.publishing import publish_cases
from qbench_dagster.adapters.rollback import roll_back
from qbench_dagster.adapters.space import KINDS, Space, ensure_space
from qbench_dagster.adapters.staging import load_lookups, stage_cases
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.adapters.vectors import vector_text
from qbench_dagster.core.history import RollbackRefusedError
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.lexical import embed
from qbench_dagster.core.ranges import CaseRange, ranges_of
from qbench_dagster_tests.support import (
    BINARY,
    EXACT,
    SPACE,
    case,
    execute,
    fill_space,
    rows,
    run_pipeline,
    write_export,
)

HALFVEC = IndexSettings(strategy="halfvec", m=8, ef_construction=32, ef_search=80)
OTHER = Space("space_other_64", "other-v1", 64, "halfvec")
COUNT = 60
STEPS = {"one": 2, "two": 3}
PUBLISHED = """
    SELECT d.test_case_id, d.title, d.doc_hash, d.text_hash, d.folder_structure,
           ARRAY(SELECT (s.step_index, s.action, s.text_hash)::text FROM store.test_steps s
                 WHERE s.test_case_id = d.test_case_id ORDER BY s.step_index),
           ARRAY(SELECT p.condition FROM store.test_preconditions p
                 WHERE p.test_case_id = d.test_case_id ORDER BY p.order_index),
           ARRAY(SELECT w.words::text FROM store.test_words w WHERE w.test_case_id = d.test_case_id)
    FROM store.test_documents d ORDER BY 1"""
HALF = """
    SELECT d.test_case_id, d.title, s.count, s.words, p.words
    FROM qbench.test_documents d,
         LATERAL (SELECT count(*), array_agg(DISTINCT split_part(action, ' ', 1)) AS words FROM qbench.test_steps t
                  WHERE t.test_case_id = d.test_case_id) s,
         LATERAL (SELECT array_agg(DISTINCT split_part(condition, ' ', 1)) AS words FROM qbench.test_preconditions t
                  WHERE t.test_case_id = d.test_case_id) p,
         LATERAL (SELECT split_part(d.title, ' ', 1) AS word) v
    WHERE s.count <> CASE v.word WHEN 'one' THEN 2 ELSE 3 END OR s.words <> ARRAY[v.word] OR p.words <> ARRAY[v.word]"""


def version(path: Path, word: str) -> Path:
    """An export in which every text of a case says which version it is of."""
    return write_export(path / f"{word}.db", [
        case(n, f"{word} case {n}", preconditions=f"{word} user {n} exists",
             steps_separated=[{"content": f"{word} step {n} {step}"} for step in range(STEPS[word])])
        for n in range(1, COUNT + 1)
    ], sections=[(10, "Accounts", None), (11, f"Login {word}", 10)])  # fmt: skip


def nothing(*_: object) -> None:
    """Progress of no interest."""


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]


class Reader:
    """An application that reads without a pause, and never waits longer than a second for a lock."""

    def __init__(self, url: str) -> None:
        self.wrong: list[object] = []
        self.reads = 0
        self._url, self._ends = url, threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _read(self) -> None:
        vector = vector_text(embed(["one case 7"], SPACE.dimensions)[0])
        search = f"SELECT count(*) FROM qbench.search_documents('{vector}', k => 10)"
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '1s'")
            while not self._ends.is_set():
                try:
                    self.wrong += connection.execute(HALF).fetchall()
                    for query, expected in (("SELECT count(*) FROM qbench.test_documents", COUNT), (search, 10)):
                        found = connection.execute(query).fetchone()  # type: ignore[arg-type]
                        self.wrong += [] if found == (expected,) else [(query[:60], found)]
                except psycopg.Error as error:
                    self.wrong.append(error)
                self.reads += 1


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[Future[Any]]:
    """What `work` comes to in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def until_waiting(caplog: pytest.LogCaptureFixture, what: str, working: Future[Any]) -> str:
    """The line in which somebody says that he waits for `what`."""
    deadline = time.monotonic() + 60
    while True:
        for record in caplog.records:
            if (told := record.getMessage()).startswith(f"waiting for {what}"):
                return told
        if working.done():
            pytest.fail(f"nobody waited for {what}: {working.result()}")
        assert time.monotonic() < deadline
        time.sleep(0.01)


# All of it at once


def test_runs_indexes_and_cut_overs_beside_each_other(clean_database: Database, fresh_url: str, tmp_path: Path) -> None:
    one, two = version(tmp_path, "one"), version(tmp_path, "two")
    with Database(fresh_url) as clean:
        run_pipeline(clean, two, target=20)
        expected = rows(clean, PUBLISHED)
    keys = run_pipeline(clean_database, two, target=20).ranges
    fill_space(clean_database, OTHER, keys.values())
    run_pipeline(clean_database, one, target=20, keys=keys)
    fill_space(clean_database, OTHER, keys.values())
    moved = cut_over(
        clean_database, OTHER, EXACT, list(keys.values()), by="a test", comparison=ComparisonSettings(), details={},
        building=nothing, comparing=nothing,
    )  # fmt: skip
    assert moved.moved
    ended = threading.Event()

    def run(*exports: Path) -> int:
        """Two of these over the same partitions, each with versions of its own."""
        written = 0
        with Database(clean_database.url) as database:
            for path in exports * 2:
                own = PublishingRun(str(uuid.uuid4()), "a test")
                done = run_pipeline(database, path, target=20, keys=keys, run=own)
                written += sum(each.written for each in done.published.values())
        return written

    def index() -> int:
        built = 0
        with Database(clean_database.url) as database:
            while not ended.is_set():
                for settings in (HALFVEC, BINARY):
                    built += sum(ensure_index(database, OTHER, kind, settings, nothing).rebuilt for kind in KINDS)
        return built

    def move() -> int:
        moves = 0
        with Database(clean_database.url) as database:
            while not ended.is_set():
                moves += cut_back(database, EXACT, by="a test", building=nothing).moved
        return moves

    def undo() -> int:
        undone = 0
        with Database(clean_database.url) as database:
            while not ended.is_set():
                for sync in list_syncs(database, limit=1):
                    with suppress(RollbackRefusedError):  # somebody changed the same cases in the meantime
                        undone += roll_back(database, sync.id, by="a test", force=sync.finished_at is None) > 0
                time.sleep(0.2)
        return undone

    with Reader(clean_database.url) as reader, ThreadPoolExecutor(5) as pool:
        upkeep = [pool.submit(index), pool.submit(move), pool.submit(undo)]
        runs = [pool.submit(run, one, two), pool.submit(run, two, one)]
        written = [each.result() for each in runs]
        ended.set()
        built, moves, undone = [each.result() for each in upkeep]
    assert reader.wrong == []
    # Of the two runs one may come second everywhere, and find everything published.
    assert min(reader.reads, built, moves, undone, sum(written)) > 0, "all of them were at it"
    execute(clean_database, "DELETE FROM store.held_cases")  # what was undone stays so otherwise
    run_pipeline(clean_database, two, target=20, keys=keys)
    assert rows(clean_database, PUBLISHED) == expected, "one more run, and it is what a clean load is"


# Locks, one by one


@pytest.fixture
def loaded(clean_database: Database, tmp_path: Path) -> tuple[Database, Path, dict[str, CaseRange]]:
    path = version(tmp_path, "one")
    return clean_database, path, run_pipeline(clean_database, path, target=20).ranges


def test_every_stage_of_a_range_waits_for_the_other_run(
    loaded: tuple[Database, Path, dict[str, CaseRange]], caplog: pytest.LogCaptureFixture
) -> None:
    database, path, ranges = loaded
    first, second, _ = ranges.values()
    lookups = load_lookups(database)
    with TestRailExport(path) as export:
        stages: list[Callable[[CaseRange], Any]] = [
            lambda case_range: land_cases(database, export, case_range, max_delete_share=0.2),
            lambda case_range: stage_cases(database, lookups, case_range, nothing),
            lambda case_range: publish_cases(database, SPACE, case_range),
        ]
        for stage in stages:
            caplog.clear()
            with database.connection("publish elsewhere") as holding, holding.transaction():
                lock_range(holding, first.key)
                stage(second)
                assert "waiting" not in caplog.text, "another range has another lock"
                with beside(lambda stage=stage: stage(first)) as working:  # type: ignore[misc]
                    told = until_waiting(caplog, f"case range {first.key}", working)
                    pid = holding.info.backend_pid
                    assert re.search(rf"held by pid {pid} \(qbench publish elsewhere, since [\d: -]+\)", told)
                    holding.execute("COMMIT")
                working.result()
                holding.execute("BEGIN")


def test_a_range_that_was_split_meanwhile_is_not_written_twice(
    loaded: tuple[Database, Path, dict[str, CaseRange]], caplog: pytest.LogCaptureFixture
) -> None:
    """A run that planned the open last range before it was split goes on over ids that are another range's by now."""
    database, _, ranges = loaded
    *_, open_range = ranges.values()
    split = ranges_of([*ranges, "from_0000000051"])
    lower, upper = split[open_range.key], split["from_0000000051"]
    assert open_range.is_last
    assert not lower.is_last
    lookups = load_lookups(database)
    execute(database, "UPDATE staging.test_documents SET recipe = 0")
    with database.connection("land the open range") as holding, holding.transaction():
        lock_range(holding, open_range.key, last=open_range.is_last)
        with beside(lambda: stage_cases(database, lookups, upper, nothing)) as working:
            until_waiting(caplog, "case ranges, held by pid", working)
            holding.execute("COMMIT")
        assert working.result().normalized == COUNT - 50
        holding.execute("BEGIN")


def test_all_ranges_are_one_lock(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with database.connection("roll back") as holding, holding.transaction():
        lock_all_ranges(holding)

        def write() -> None:
            with database.connection("publish") as connection, connection.transaction():
                lock_range(connection, "from_0000000001")

        with beside(write) as working:
            assert "qbench roll back" in until_waiting(caplog, "case ranges", working)
            holding.execute("COMMIT")
        working.result()
        holding.execute("BEGIN")


def test_two_runs_land_look_ups_one_after_the_other(
    loaded: tuple[Database, Path, dict[str, CaseRange]], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    database, _, ranges = loaded
    with (
        database.connection("land look-ups") as holding,
        TestRailExport(version(tmp_path, "two")) as export,
        holding.transaction(),
    ):
        hold_lock(holding, "look-ups")
        stage_cases(database, load_lookups(database), next(iter(ranges.values())), nothing)  # does not wait
        with beside(lambda: land_lookups(database, export, lambda tree: dict.fromkeys(tree, "x"))) as working:
            until_waiting(caplog, "look-ups, held by pid", working)
            holding.execute("COMMIT")
        assert working.result() > 0
        holding.execute("BEGIN")


def test_who_waits_too_long_is_told_whom_to_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres.LOCK_TIMEOUT, "long", "50ms")
    with database.connection("publish from_0000000001") as holding, holding.transaction():
        lock_range(holding, "from_0000000001")
        with database.connection("land", long=True) as waiting, waiting.transaction():
            with pytest.raises(DatabaseError) as raised, waiting.transaction():
                lock_range(waiting, "from_0000000001")
            assert waiting.execute("SELECT 1").fetchone() == (1,)
    assert f"held by pid {holding.info.backend_pid} (qbench publish from_0000000001" in str(raised.value)
    assert "pg_terminate_backend" in str(raised.value)


def test_a_space_is_made_once_by_many_at_once(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    barrier = threading.Barrier(4)

    def make() -> None:
        barrier.wait()
        ensure_space(database, OTHER)

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(make) for _ in range(4)]:
            each.result()
    assert rows(database, "SELECT name FROM store.spaces") == [(OTHER.name,)]
    # Whoever comes second sees what was made with other settings, instead of writing into it.
    different = Space("space_late_64", "late-v1", 64, "halfvec")
    with database.connection("make") as holding, holding.transaction():
        hold_lock(holding, f"making {different.name}")
        with beside(lambda: ensure_space(database, different)) as working:
            until_waiting(caplog, f"making {different.name}", working)
            with Database(database.url) as other:
                execute(other, "INSERT INTO store.spaces (name, model, dimensions, vector_type, recipe) "
                        f"VALUES ('{different.name}', 'early-v1', 64, 'halfvec', 1)")  # fmt: skip
            holding.execute("COMMIT")
            with pytest.raises(DatabaseError, match="was made with"):
                working.result()
        holding.execute("BEGIN")


def test_two_builds_of_an_index_do_not_wait_for_each_other(
    loaded: tuple[Database, Path, dict[str, CaseRange]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A build ends when no snapshot is older; a statement that waits for a lock has one."""
    database, _, _ = loaded
    monkeypatch.setitem(postgres.LOCK_TIMEOUT, "long", "5s")  # the longest a build waits for anybody

    def build() -> bool:
        with Database(database.url) as other:
            return ensure_index(other, SPACE, "doc", HALFVEC, nothing).rebuilt

    with psycopg.connect(database.url) as writer, ThreadPoolExecutor(2) as pool:
        writer.execute(f"LOCK TABLE {SPACE.name}.doc_embeddings IN ROW EXCLUSIVE MODE")  # type: ignore[arg-type]
        builds = [pool.submit(build) for _ in range(2)]
        until_waiting(caplog, f"index of {SPACE.name}.doc_embeddings, held by pid", builds[0])
        writer.rollback()
        assert sorted(each.result() for each in builds) == [False, True], "the second finds what the first built"


# Nobody who reads is kept waiting


def test_a_space_that_is_read_is_not_waited_for(loaded: tuple[Database, Path, dict[str, CaseRange]]) -> None:
    """Meanwhile nobody publishes: so a purge gives up, and nothing of the space is gone."""
    database, _, ranges = loaded
    fill_space(database, OTHER, ranges.values())
    held = rows(database, f"SELECT count(*) FROM {OTHER.name}.doc_embeddings")
    with database.connection("report") as reading, reading.transaction():
        reading.execute(f"SELECT count(*) FROM {OTHER.name}.doc_embeddings")  # type: ignore[arg-type]
        with pytest.raises(DatabaseError, match=f"{OTHER.name} is in use"):
            purge(database, OTHER.name)
    assert rows(database, f"SELECT count(*) FROM {OTHER.name}.doc_embeddings") == held
    assert purge(database, OTHER.name)["name"] == OTHER.name


@pytest.fixture
def altering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that wants a table for itself."""
    scripts, checksums = migrating.script, migrating.read_file
    added = "migrations/901_later.sql"

    class Folder:
        def joinpath(self, _: str) -> Folder:
            return self

        def iterdir(self) -> Iterator[Path]:
            there = migrating.__dict__["_real_folder"]().joinpath("migrations").iterdir()
            yield from [Path(entry.name) for entry in there]
            yield Path("901_later.sql")

    monkeypatch.setitem(migrating.__dict__, "_real_folder", migrating.sql_folder)
    monkeypatch.setattr(migrating, "sql_folder", Folder)
    monkeypatch.setattr(migrating, "read_file", lambda name: "later" if name == added else checksums(name))
    monkeypatch.setattr(
        migrating,
        "script",
        lambda name: (
            psycopg.sql.SQL("ALTER TABLE store.test_steps ADD COLUMN later text") if name == added else scripts(name)
        ),
    )


def test_a_migration_waits_without_a_queue_behind_it(
    database: Database, altering: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "PAUSE_S", 0.05)
    with psycopg.connect(database.url) as reading, psycopg.connect(database.url) as connection:
        reading.execute("SELECT count(*) FROM store.test_steps")  # and stays in its transaction
        with beside(lambda: migrate(connection)) as working:
            try:
                with psycopg.connect(database.url, autocommit=True) as other:
                    other.execute("SET lock_timeout = '1s'")
                    for _ in range(20):  # one that came after the migration gets through, again and again
                        other.execute("SELECT count(*) FROM store.test_steps")
                        time.sleep(0.02)
                assert not working.done()
            finally:
                reading.rollback()
        assert working.result() == ["901_later.sql"]


def test_a_migration_that_gets_no_table_says_who_uses_it(
    database: Database, altering: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "PATIENCE_S", 0.0)
    with psycopg.connect(database.url, application_name="a report") as reading:
        reading.execute("SELECT count(*) FROM store.test_steps")
        with psycopg.connect(database.url) as connection, pytest.raises(DatabaseError) as raised:
            migrate(connection)
        assert f"pid {reading.info.backend_pid} (postgres, a report)" in str(raised.value)
    columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'store.test_steps'::regclass AND attname = 'later'"
    assert ask(database.url, columns) == []
