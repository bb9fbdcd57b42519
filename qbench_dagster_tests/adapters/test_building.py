"""Building one index: killed on either side, waiting for others, with little memory. What is left is always right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from qbench_dagster.adapters import building
from qbench_dagster.adapters.measuring import measure
from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster_tests.adapters.indexes import BINARY, HALFVEC, IVFFLAT, build, clustered, fill, indexes, recorded
from qbench_dagster_tests.support import SPACE, execute, rows

SLOW = IndexSettings("halfvec", m=64, ef_construction=800, ef_search=100)
"""Takes seconds over 3,000 rows, so that it can be killed."""
ROWS = 3000


@pytest.fixture(scope="module")
def many(module_database: Database) -> Database:
    """3,000 vectors; tests leave the documents' index as BINARY or not at all."""
    fill(module_database, clustered(ROWS, SPACE.dimensions))
    return module_database


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something another process does."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)
    return found


def loading(database: Database) -> list[tuple[int]]:
    """Server processes that are putting rows into an index."""
    return rows(database, "SELECT pid FROM pg_stat_progress_create_index WHERE phase LIKE %s AND tuples_done > 10",
                "building index%")  # fmt: skip


def test_a_client_killed_while_building_leaves_nothing_wrong(many: Database, caplog: pytest.LogCaptureFixture) -> None:
    build(many, BINARY)
    program = f"""
        from qbench_dagster.adapters.indexing import ensure_index
        from qbench_dagster.adapters.postgres import Database
        from qbench_dagster.adapters.space import Space
        from qbench_dagster.core.indexes import IndexSettings

        with Database({many.url!r}) as database:
            space = Space({SPACE.name!r}, {SPACE.model!r}, {SPACE.dimensions}, {SPACE.vector_type!r})
            ensure_index(database, space, "doc", IndexSettings("halfvec", m=64, ef_construction=800, ef_search=100),
                         lambda *_: None)
    """
    client = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env={**os.environ})
    try:
        until(lambda: loading(many), "the build")
    finally:
        client.send_signal(signal.SIGKILL)
        client.wait()
    assert recorded(many, "index_name") == ("doc_embeddings_binary_1",)
    done = build(many, BINARY)  # the server process is still at it
    assert "which builds an index for a run that was killed" in caplog.text, "it is not waited for"
    assert not done.rebuilt
    assert [row[:2] for row in indexes(many)] == [("doc_embeddings_binary_1", True)]
    assert not loading(many)


def test_a_server_process_killed_while_building_leaves_nothing_wrong(many: Database) -> None:
    build(many, BINARY)

    def kill() -> None:
        ((pid,),) = until(lambda: loading(many), "the build")
        execute(many, "SELECT pg_terminate_backend(%s)", pid)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(
        DatabaseError, match=r"The server process that built the index doc_embeddings_halfvec_1 .* ended"
    ):
        build(many, SLOW)
    killer.join()
    assert recorded(many, "index_name") == ("doc_embeddings_binary_1",)
    done = build(many, replace(BINARY, m=8))
    assert done.rebuilt
    assert [row[1] for row in indexes(many)] == [True]
    assert measure(many, SPACE, "doc").means
    build(many, BINARY)


def test_a_build_tells_where_it_is_and_whom_it_waits_for(many: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "POLL_S", 0.01)
    told: list[tuple[str, int, int]] = []
    with psycopg.connect(many.url, application_name="a long load") as other:
        other.execute(f"LOCK TABLE {SPACE.name}.doc_embeddings IN ROW EXCLUSIVE MODE")  # type: ignore[arg-type]
        pid = other.info.backend_pid

        def tell(phase: str, done: int, rows_in_all: int) -> None:
            told.append((phase, done, rows_in_all))
            if "a long load" in phase:
                other.rollback()

        assert build(many, replace(BINARY, m=12), progress=tell).rebuilt
    waiting = [phase for phase, *_ in told if phase.startswith("waiting for writers")]
    assert any(f"(pid {pid}, a long load, idle in transaction)" in phase for phase in waiting)
    counted = [(done, of) for phase, done, of in told if phase == "building index: loading tuples"]
    assert all(done <= of == ROWS for done, of in counted)
    build(many, BINARY)


def test_who_keeps_a_build_waiting_for_too_long_is_named(many: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    build(many, BINARY)
    monkeypatch.setattr(building, "POLL_S", 0.01)
    monkeypatch.setattr("qbench_dagster.adapters.postgres.LOCK_TIMEOUT", {"short": "60s", "long": "400ms"})
    with psycopg.connect(many.url, application_name="a long load") as other:
        other.execute(f"LOCK TABLE {SPACE.name}.doc_embeddings IN ROW EXCLUSIVE MODE")  # type: ignore[arg-type]
        with pytest.raises(DatabaseError, match=r"waited too long for .*last seen: pid .*, a long load"):
            build(many, HALFVEC)
    build(many, BINARY)
    assert [row[:2] for row in indexes(many)] == [("doc_embeddings_binary_1", True)]


# Memory


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The memory and workers that builds were given."""
    given: dict[str, Any] = {}
    real = building._set_memory

    def noted(connection: Any, memory: int | None, workers: int) -> None:
        given.update(memory=memory, workers=workers)
        real(connection, memory, workers)

    monkeypatch.setattr(building, "_set_memory", noted)
    return given


def session(database: Database) -> list[tuple[str, ...]]:
    """What the pool's connections have for memory and workers."""
    query = "SELECT current_setting('maintenance_work_mem'), current_setting('max_parallel_maintenance_workers')"
    with ExitStack() as stack:
        lent = [stack.enter_context(database.connection("test")) for _ in range(4)]
        return sorted({tuple(row) for connection in lent for row in connection.execute(query)})  # type: ignore[call-overload]


def test_a_build_gets_the_memory_it_needs_and_gives_it_back(many: Database, asked: dict[str, Any]) -> None:
    before = session(many)
    assert len(before) == 1
    build(many, replace(HALFVEC, memory_mb=4096, workers=1))
    assert asked == {"memory": building.LEAST_MEMORY, "workers": 1}, "3,000 small rows need no 4 GiB"
    assert session(many) == before
    build(many, BINARY)
    assert asked["memory"] is None, "the server's own"


def test_a_small_dev_shm_is_foreseen(many: Database, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "shared_memory_free", lambda: 64 * building.MIB)
    with many.connection("test") as connection:
        (kind,) = connection.execute("SHOW dynamic_shared_memory_type").fetchone()  # type: ignore[misc]
    done = build(many, replace(HALFVEC, memory_mb=512, workers=2))
    if kind != "posix":
        pytest.skip(f"shared memory of this server is of type {kind}")
    assert asked["workers"] == 0
    assert [note for note in done.notes if "/dev/shm has 64 MiB free, a parallel build takes 64" in note]
    build(many, BINARY)
    done = build(many, replace(IVFFLAT, memory_mb=512, workers=2))
    assert (asked["workers"], done.notes) == (2, []), "its workers sort in files"
    build(many, BINARY)


def test_too_little_memory_is_said(many: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "build_memory", lambda *_: 200 * building.MIB)
    done = build(many, replace(HALFVEC, memory_mb=64, workers=0))
    assert [note for note in done.notes if "needs about 200 MiB and has 64: it is many times slower" in note]
    assert [note for note in done.notes if "QBENCH_INDEX_MEMORY_MB" in note]
    build(many, BINARY)


def test_what_postgresql_says_of_its_memory_is_kept(many: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "LEAST_MEMORY", building.MIB)
    done = build(many, replace(HALFVEC, m=32, memory_mb=1, workers=0))
    assert [note for note in done.notes if "no longer fits into maintenance_work_mem" in note]
    build(many, BINARY)


def test_a_parallel_build_that_lacks_shared_memory_is_done_by_one_process(
    many: Database, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = building._watched, [psycopg.errors.DiskFull("could not resize shared memory segment")]

    def watched(work: building.Building, query: sql.Composed, count: int) -> None:
        if failures:
            real(work, query, count)  # what is left of it is in the way of the next
            execute(many, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
                    f"{SPACE.name}.doc_embeddings_halfvec_1")  # fmt: skip
            raise failures.pop()
        real(work, query, count)

    monkeypatch.setattr(building, "_watched", watched)
    done = build(many, replace(HALFVEC, workers=2))
    assert asked["workers"] == 0
    assert [note for note in done.notes if "building with one process" in note]
    assert [row[:2] for row in indexes(many)] == [("doc_embeddings_halfvec_1", True)]
    build(many, BINARY)


def test_the_embedded_server_is_asked_for_a_share_of_the_machine() -> None:
    from qbench_dagster.adapters.embedded import build_resources  # noqa: PLC0415

    memory, workers = build_resources(None)
    assert memory >= 64
    assert 0 <= workers < (os.cpu_count() or 1) or workers == 8
    assert build_resources(700)[0] == 700
