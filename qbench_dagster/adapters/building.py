"""Builds one approximate index beside those there are: memory, workers, progress, what goes wrong on the way.

Which index, and when it takes another's place, is `indexing.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import psycopg
from psycopg import sql

from qbench_dagster.adapters.postgres import Connection, Database, DatabaseError, fetch_dicts
from qbench_dagster.adapters.space import Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.indexes import HNSW, IndexChoice, IndexSettings, build_memory

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

SHARED_MEMORY = "/dev/shm"  # noqa: S108
POLL_S = 2.0
MIB = 2**20
LEAST_MEMORY = 64 * MIB
SPARE = 64 * MIB
"""What a parallel build and others take of /dev/shm besides the graph."""


@dataclass(slots=True)
class Building:
    """Where an index is built, as what, and what there was to say about it (`notes`, also in the log)."""

    database: Database
    connection: Connection
    space: Space
    table: str
    settings: IndexSettings
    progress: Progress
    notes: list[str] = field(default_factory=list)
    waits_for: str | None = None

    def note(self, text: str) -> None:
        """Say it in the log, and keep it for the metadata."""
        log.warning("%s.%s: %s", self.space.name, self.table, text)
        self.notes.append(text)


def build_index(work: Building, name: str, choice: IndexChoice, rows: int) -> float:
    """CREATE INDEX CONCURRENTLY `name`; returns its seconds. Nothing of a failed build stays, but for a lost server's.

    Raises DatabaseError where it waited too long for somebody's transaction, or lost its server process.
    """
    started = time.monotonic()
    space = work.space
    query = statement(
        "index.sql", f"build_{choice.strategy}", index=name, space=space.name, table=work.table,
        dimensions=space.dimensions, m=choice.m or 0, ef_construction=choice.ef_construction or 0,
        lists=choice.lists or 0, shortened=choice.shortened or 0,
    )  # fmt: skip
    _provide(work, choice, rows)

    def noted(said: psycopg.errors.Diagnostic) -> None:
        if "maintenance_work_mem" in (said.message_primary or ""):
            work.note(f"{said.message_primary} (QBENCH_INDEX_MEMORY_MB gives more)")

    work.connection.add_notice_handler(noted)
    try:
        try:
            _watched(work, query, rows)
        except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
            # A parallel build shares its graph through /dev/shm, which containers keep small.
            work.note(f"the parallel build failed ({str(error).strip()}); building with one process")
            drop_index(work.connection, space, name)
            _set_memory(work.connection, None, 0)
            _watched(work, query, rows)
    except psycopg.Error as error:
        raise _failure(work, name, error) from error
    finally:
        work.connection.remove_notice_handler(noted)
        if not work.connection.broken:
            work.connection.execute(statement("index.sql", "reset_memory"))
            work.connection.execute(statement("index.sql", "reset_workers"))
    return time.monotonic() - started


def _failure(work: Building, name: str, error: psycopg.Error) -> Exception:
    """What to raise, after what was half built is gone."""
    said = str(error).strip()
    if work.connection.broken:
        return DatabaseError(
            f"The server process that built the index {name} of {work.space.name} ended ({said}). Reads go on with the "
            "index there was. Run again: that removes what is half built, and builds it."
        )
    with suppress(psycopg.errors.LockNotAvailable):  # dropping it may have to wait for the same: the next run does
        drop_index(work.connection, work.space, name)
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return DatabaseError(
            f"The index {name} of {work.space.name} was not built: it waited too long for a transaction from before it "
            f"({said}; last seen: {work.waits_for or 'nobody'}). End that one, then run again."
        )
    return error


def drop_index(connection: Connection, space: Space, name: str) -> None:
    """DROP INDEX CONCURRENTLY: no reader waits for it."""
    connection.execute(statement("index.sql", "drop_index", space=space.name, index=name))


def shared_memory_free() -> int | None:
    """Bytes free in /dev/shm of this host; None where there is no such limit."""
    try:
        return int(psutil.disk_usage(SHARED_MEMORY).free)
    except OSError:
        return None


def _provide(work: Building, choice: IndexChoice, rows: int) -> None:
    """Memory and workers for the build: the settings', else the server's own; less where /dev/shm is too small."""
    server = fetch_dicts(work.connection, statement("index.sql", "server"))[0]
    limit = work.settings.memory_mb * MIB if work.settings.memory_mb else int(server["memory"])
    needed = build_memory(choice, work.space.dimensions, rows)
    workers = server["workers"] if work.settings.workers is None else work.settings.workers
    if needed > limit:
        slow = "is many times slower from where it is full on" if choice.strategy in HNSW else "may not be possible"
        work.note(
            f"the build needs about {needed // MIB:,} MiB and has {limit // MIB:,}: it {slow}. "
            "Give it more: QBENCH_INDEX_MEMORY_MB"
        )
    # A parallel HNSW build takes all of maintenance_work_mem from the start, needed or not.
    memory = max(LEAST_MEMORY, min(limit, needed + needed // 4)) if work.settings.memory_mb else limit
    if workers and choice.strategy in HNSW and server["local"] and server["shared_memory"] == "posix":
        free = shared_memory_free()
        if free is not None and free < memory + SPARE:
            work.note(
                f"{SHARED_MEMORY} has {free // MIB:,} MiB free, a parallel build takes {memory // MIB:,}: building "
                "with one process. Give the container more (docker run --shm-size)"
            )
            workers = 0
    _set_memory(work.connection, memory if work.settings.memory_mb else None, workers)


def _set_memory(connection: Connection, memory: int | None, workers: int) -> None:
    if memory is not None:
        connection.execute(statement("index.sql", "provide_memory"), {"memory": f"{memory // 1024}kB"})
    connection.execute(statement("index.sql", "provide_workers"), {"workers": str(workers)})


def _watched(work: Building, query: sql.Composed, rows: int) -> None:
    """Run the statement, and tell where it is."""
    pid = work.connection.info.backend_pid
    with ThreadPoolExecutor(1, thread_name_prefix="index") as pool:
        building = pool.submit(work.connection.execute, query)
        try:
            with work.database.connection("watch index") as watching:
                while not wait_for([building], timeout=POLL_S).done:
                    for row in fetch_dicts(watching, statement("index.sql", "progress"), pid=pid):
                        work.progress(_phase(work, row), row["done"] or 0, row["total"] or rows)
        except BaseException:
            work.connection.cancel_safe()  # or the interrupt would take effect when the build is done
            raise
        building.result()


def _phase(work: Building, row: Mapping[str, Any]) -> str:
    if row["waits_for"] is None:
        return str(row["phase"])
    work.waits_for = f"pid {row['waits_for']}, {row['waits_for_name'] or 'unnamed'}, {row['waits_for_state']}"
    return f"{row['phase']} ({work.waits_for})"
