"""The history of the store: an entry for each run that published something, what it replaced, and purging that.

Undoing an entry is `rollback.py`; what differs between two versions is `core/history.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qbench_dagster.adapters.postgres import Connection, Database, DatabaseError, fetch_dicts, fetch_value, hold_lock
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.history import CaseChange, Sync

HISTORY_LOCK = "the history of syncs"
"""Held by whoever needs the versions that are kept, and by whoever deletes them."""


@dataclass(frozen=True, slots=True)
class PublishingRun:
    """Which run publishes, and who asked for it."""

    run_id: str
    by: str


@dataclass(frozen=True, slots=True)
class Purged:
    """What was deleted: the changes of so many syncs, which cannot be undone now, and the versions they replaced."""

    syncs: int = 0
    changes: int = 0
    versions: int = 0


def record(connection: Connection, run: PublishingRun, key: str) -> None:
    """Enter what `pg_temp.due` is about to change of partition `key`, inside the transaction that changes it."""
    sync_id = fetch_value(connection, statement("history.sql", "record_sync"), run_id=run.run_id, by=run.by, key=key)
    keep(connection, sync_id)


def keep(connection: Connection, sync_id: int) -> None:
    """Keep the cases that `pg_temp.due` is about to replace, and log each change under `sync_id`."""
    connection.execute(statement("history.sql", "keep_replaced"))
    connection.execute(statement("history.sql", "log_changes"), {"sync_id": sync_id})


def finish_run(database: Database, run: PublishingRun, history_days: int) -> Purged:
    """Mark the entry of a run as finished, if it made one, and purge what is older than `history_days`."""
    with database.connection("finish sync") as connection:
        connection.execute(statement("history.sql", "finish_run"), {"run_id": run.run_id})
    return purge_history(database, history_days)


def purge_history(database: Database, days: int) -> Purged:
    """Delete the changes of syncs older than `days`, and the versions nobody refers to any more; the entries stay.

    A rollback that still holds cases is kept: undoing it lifts the holds.
    """
    with database.connection("purge history", long=True) as connection:
        if not fetch_value(connection, statement("history.sql", "overdue"), days=days):
            return Purged()
        with connection.transaction():
            hold_lock(connection, HISTORY_LOCK)
            ids = fetch_value(connection, statement("history.sql", "overdue"), days=days) or []
            return Purged(
                syncs=len(ids),
                changes=fetch_value(connection, statement("history.sql", "purge_changes"), ids=ids),
                versions=fetch_value(connection, statement("history.sql", "purge_versions"), days=days),
            )


def list_syncs(database: Database, *, case_id: int | None = None, limit: int = 20) -> list[Sync]:
    """The newest entries, of one case those that changed it."""
    with database.connection("history") as connection:
        return _syncs(connection, case_id=case_id, sync_id=None, at_most=limit)


def list_holds(database: Database, *, case_id: int | None = None) -> list[dict[str, Any]]:
    """By the rollback that holds them: cases held, kept_out (not published), brought_back (gone from the source)."""
    with database.connection("holds") as connection:
        return fetch_dicts(connection, statement("history.sql", "holds"), case_id=case_id)


def read_changes(
    database: Database, sync_id: int, *, case_id: int | None = None, limit: int = 20
) -> tuple[Sync, list[CaseChange]]:
    """A sync and up to `limit` of the cases it changed, ascending, or one of them, before and after.

    Raises DatabaseError if there is no such sync, or what it changed was purged.
    """
    with database.connection("diff", long=True) as connection:
        sync = find_sync(connection, sync_id)
        if sync.purged_at is not None:
            raise DatabaseError(
                f"What sync {sync_id} changed was purged on {sync.purged_at:%Y-%m-%d}: it is kept for "
                "QBENCH_HISTORY_DAYS."
            )
        found = fetch_dicts(
            connection, statement("history.sql", "changes"), sync_id=sync_id, case_id=case_id, at_most=limit
        )
    return sync, [
        CaseChange(
            row["case_id"],
            "added" if not row["was_published"] else "changed" if row["is_published"] else "removed",
            row["before"],
            row["after"],
            tuple(
                side
                for side, there in (("before", row["was_published"]), ("after", row["is_published"]))
                if there and row[side] is None
            ),
        )
        for row in found
    ]


def find_sync(connection: Connection, sync_id: int) -> Sync:
    """The entry of that number. Raises DatabaseError if there is none."""
    found = _syncs(connection, case_id=None, sync_id=sync_id, at_most=1)
    if not found:
        raise DatabaseError(f"There is no sync {sync_id}. `qbench history` lists them.")
    return found[0]


def _syncs(connection: Connection, **values: int | None) -> list[Sync]:
    return [Sync(**row) for row in fetch_dicts(connection, statement("history.sql", "syncs"), **values)]
