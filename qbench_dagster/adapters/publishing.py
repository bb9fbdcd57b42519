"""The store room and its public face: publishes complete cases, and makes what the application reads.

Which space it reads is decided in `cutover.py`; here the first one is activated, and the face is kept up to date.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import psycopg

from qbench_dagster.adapters.history import PublishingRun, record
from qbench_dagster.adapters.landing import GUARDED_CASES, DeleteGuardError
from qbench_dagster.adapters.postgres import (
    Connection,
    Database,
    DatabaseError,
    fetch_dicts,
    fetch_value,
    hold_lock,
    lock_range,
)
from qbench_dagster.adapters.space import Space
from qbench_dagster.adapters.sql import read_file, script, statement
from qbench_dagster.core.parity import PartitionRow
from qbench_dagster.core.ranges import CaseRange, columns_of

log = logging.getLogger(__name__)

FACE = ("face.sql", "nearest.sql", "search.sql", "words.sql", "reader.sql")
FACE_LOCK = "public face"
"""Held by whoever changes what is read; shared by those who publish, so that they publish what is read."""
PATIENCE_S = 60.0
"""How long to try between readers who hold the views before giving up."""
PAUSE_S = 0.5


@dataclass(slots=True)
class Published:
    """What publishing one partition did (cases `written` and `removed`), and what it holds afterwards."""

    written: int = 0
    removed: int = 0
    source_cases: int = 0
    published: int = 0
    rejected: int = 0
    incomplete: int = 0
    steps: int = 0
    held: int = 0
    brought_back: int = 0
    rows_written: int = 0


def publish_cases(
    database: Database,
    space: Space,
    case_range: CaseRange,
    run: PublishingRun | None = None,
    *,
    max_delete_share: float = 1.0,
) -> Published:
    """Publish the complete cases of a partition that changed, and take away what is gone: one transaction.

    A case is complete when its vectors are in the space that is read: the active one, `space` while none is. What a
    rollback holds stays as it is. What changes is entered in the history under `run`; without one it cannot be undone.
    Raises DeleteGuardError, before anything is changed, as `guard_removals` does.
    """
    result = Published()
    bounds = {"lower": case_range.lower, "upper": case_range.upper}
    with database.connection(f"publish {case_range.key}", long=True) as connection, connection.transaction():
        lock_range(connection, case_range.key, last=case_range.is_last)
        # No cut-over moves reads between the question below and the commit of what follows.
        hold_lock(connection, FACE_LOCK, shared=True)
        active = fetch_value(connection, statement("embed.sql", "active"))
        read = str(active or space.name)

        def rows(name: str) -> int:
            query = statement("publish.sql", name, space=read)
            values = bounds if name in ("lift_holds", "select_gone", "select_due", "insert_words") else None
            return max(0, connection.execute(query, values).rowcount)

        rows("lift_holds")
        rows("create_due")
        result.removed = rows("select_gone")
        if result.removed >= GUARDED_CASES:
            _guard_removals(connection, [case_range], max_delete_share)
        result.written = rows("select_due")
        if result.written or result.removed:
            rows("analyze_due")
            if run is not None:
                record(connection, run, case_range.key)
        if result.removed:
            result.rows_written += rows("delete_gone")
        if result.written:
            result.rows_written += rows("upsert_documents")
            for child in ("steps", "preconditions", "related_issues"):
                rows(f"delete_{child}")
                result.rows_written += rows(f"insert_{child}")
            rows("delete_words")
        result.rows_written += rows("insert_words")
        held = counts_of(connection, [case_range])[case_range.key]
    for name, count in asdict(held).items():
        if name != "key":
            setattr(result, name, count)
    return result


def guard_removals(database: Database, ranges: Sequence[CaseRange], max_delete_share: float) -> None:
    """Raise DeleteGuardError if too many published cases of one of the `ranges`, or of all together, would go.

    Too many are more than `max_delete_share`, and at least 50: gone from the source, or rejected since. Asked once for
    a whole run, before anything is published.
    """
    with database.connection("guard removals", long=True) as connection:
        _guard_removals(connection, ranges, max_delete_share)


def _guard_removals(connection: Connection, ranges: Sequence[CaseRange], max_share: float) -> None:
    found = fetch_dicts(connection, statement("publish.sql", "removals"), **columns_of(ranges))
    if sum(row["gone"] for row in found) < GUARDED_CASES:
        return
    counts = [(row["key"], row["gone"], row["published"], row["examples"]) for row in found]
    if len(ranges) > 1:
        published = sum(row.published for row in counts_of(connection, ranges).values())
        where = f"{len(ranges)} partitions from {ranges[0].key} to {ranges[-1].key}"
        counts.append((where, sum(row["gone"] for row in found), published, found[0]["examples"]))
    for where, gone, published, examples in counts:
        if gone >= GUARDED_CASES and gone > max_share * published:
            raise DeleteGuardError(
                f"{where}: {gone:,} of {published:,} published cases would be taken away (for instance "
                f"{', '.join(map(str, examples))}): they are gone from the source, or rejected since (`qbench status` "
                f"says why). That is more than {max_share:.0%}. Nothing of it was changed. If they are meant to go, "
                "run once with --allow-deletes (in the UI: allow_deletes: true in the config of pg_tables)."
            )


def ranges_due(database: Database, ranges: Sequence[CaseRange]) -> set[str]:
    """Keys of the ranges that have something to publish or to take away: one question about all of them."""
    with database.connection("find ranges due", long=True) as connection:
        return {key for (key,) in connection.execute(statement("publish.sql", "due_ranges"), columns_of(ranges))}


def partition_counts(database: Database, ranges: Sequence[CaseRange]) -> dict[str, PartitionRow]:
    """By key: what the source has and what is published and rejected of it."""
    with database.connection("count partitions", long=True) as connection:
        return counts_of(connection, ranges)


def incomplete_cases(database: Database, case_range: CaseRange) -> list[int]:
    """Up to ten cases of the range that are not published as they are now."""
    bounds = {"lower": case_range.lower, "upper": case_range.upper}
    with database.connection("find incomplete cases") as connection:
        return [case_id for (case_id,) in connection.execute(statement("publish.sql", "incomplete_cases"), bounds)]


def counts_of(connection: Connection, ranges: Sequence[CaseRange]) -> dict[str, PartitionRow]:
    """The same, inside the caller's transaction."""
    counted = fetch_dicts(connection, statement("publish.sql", "partition_counts"), **columns_of(ranges))
    return {row["key"]: PartitionRow(**row) for row in counted}


def analyze_store(database: Database) -> None:
    """Refresh the planner's statistics after a load."""
    with database.connection("analyze store", long=True, owner=True) as connection:
        connection.execute(statement("publish.sql", "analyze_documents"))


def column_types(database: Database, schema: str, relation: str) -> list[tuple[str, str]]:
    """(column, type) of a table or view, in order."""
    with database.connection("describe") as connection:
        query = statement("publish.sql", "column_types")
        return [
            (str(name), str(kind)) for name, kind in connection.execute(query, {"relation": f"{schema}.{relation}"})
        ]


def publish_face(database: Database, own: Space) -> bool:
    """Make the views and functions of `qbench`, or renew them where their SQL or rights changed; False if nothing did.

    `own`, the space of the settings, is activated if none is. Reads are never moved from one to another: that is
    `cutover.cut_over`. Raises DatabaseError if the role qbench_reader is missing and may not be created, or if readers
    do not let go of the views.
    """
    with database.connection("read face") as connection:
        if _face_due(database, connection, own) is None:
            return False
    with (
        database.exclusive(FACE_LOCK, queue=True),
        database.connection("publish face", long=True, owner=True) as connection,
    ):
        space = _face_due(database, connection, own)
        if space is None:  # another run did it in the meantime
            return False
        replace_face(database, connection, space)
    return True


def _face_due(database: Database, connection: Connection, own: Space) -> Space | None:
    """The space whose face has to be made, None where it is as it should be."""
    active = fetch_dicts(connection, statement("embed.sql", "active"))
    if not active:
        return own
    space = Space(**active[0])
    known = fetch_dicts(connection, statement("embed.sql", "describe"), name=space.name)[0]
    vector_schema = database.vector_schema
    missing = fetch_dicts(connection, statement("parity.sql", "missing_privileges"), vector_schema=vector_schema)
    return space if missing or known["face_hash"] != _digest(database, space) else None


def _variables(database: Database, space: Space) -> dict[str, str | int]:
    return {"space": space.name, "vector_type": space.vector_type, "vector_schema": database.vector_schema}


def _digest(database: Database, space: Space) -> bytes:
    about = (_variables(database, space), [read_file(name) for name in FACE])
    return hashlib.sha256(repr(about).encode()).digest()


def replace_face(
    database: Database, connection: Connection, space: Space, record: Callable[[], object] = lambda: None
) -> None:
    """Point views and functions at `space` and mark it active: one transaction, which `record` writes to as well.

    The caller holds FACE_LOCK. Readers see what was or what is: those of the views wait 6 ms, whatever the size of the
    space, those of the functions not at all. A view that is being read is waited for briefly and again, so that nobody
    queues behind us.
    Raises DatabaseError after PATIENCE_S, naming who holds the views.
    """
    ends = time.monotonic() + PATIENCE_S
    told = False
    while True:
        try:
            with connection.transaction():
                connection.execute(statement("setup.sql", "wait_briefly"))
                _replace_face(database, connection, space)
                record()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if time.monotonic() > ends:
                readers = fetch_dicts(connection, statement("publish.sql", "readers"))
                raise DatabaseError(
                    f"The views of qbench are being read without a pause, for {PATIENCE_S:.0f} s now; reads stay as "
                    f"they are. Held by: {_told(readers)}. Let them end (or SELECT pg_terminate_backend(pid)), and "
                    "run this again."
                ) from None
            if not told:
                log.warning("the views of qbench are being read; trying again for up to %.0f s", PATIENCE_S)
            told = True
            time.sleep(PAUSE_S)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                f"The public face cannot be made: {str(error).strip()}. If the role is missing, ask a DBA to run: "
                "CREATE ROLE qbench_reader NOLOGIN;"
            ) from None
        except psycopg.errors.DependentObjectsStillExist as error:
            raise DatabaseError(
                f"Vectors of another type need new views and functions, and {error.diag.message_primary} "
                f"({error.diag.message_detail or 'see pg_depend'}). Drop what depends on them, run this again, and "
                "make it anew."
            ) from None
        else:
            return


def _replace_face(database: Database, connection: Connection, space: Space) -> None:
    columns = connection.execute(statement("publish.sql", "column_types"), {"relation": "qbench.test_documents"})
    shown = {str(name): str(kind) for name, kind in columns}.get("embedding", space.vector_type)
    if shown.rpartition(".")[2] != space.vector_type:  # the schema is named where it is not searched
        connection.execute(statement("publish.sql", "drop_views"))  # a view cannot change a column's type
    for name in FACE:
        connection.execute(script(name, **_variables(database, space)))
    connection.execute(statement("embed.sql", "deactivate_others"), {"name": space.name})
    connection.execute(statement("embed.sql", "activate"), {"name": space.name, "face_hash": _digest(database, space)})


def _told(readers: Sequence[Mapping[str, object]]) -> str:
    return (
        "; ".join(
            f"pid {row['pid']} ({row['usename']}, {row['application_name'] or 'no name'}, {row['state']}, "
            f"for {row['seconds']} s)"
            for row in readers
        )
        or "someone who has let go by now"
    )
