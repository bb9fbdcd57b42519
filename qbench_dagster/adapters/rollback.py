"""Undoes a sync: its cases as they were before it, published in one transaction, as an entry of their own; lets go of
what that holds.

What is kept for it is `history.py`; what speaks against it is told in `core/history.py`.
"""

from __future__ import annotations

import logging

from qbench_dagster.adapters.history import HISTORY_LOCK, find_sync, keep
from qbench_dagster.adapters.postgres import (
    Connection,
    Database,
    fetch_dicts,
    fetch_value,
    hold_lock,
    lock_all_ranges,
)
from qbench_dagster.adapters.publishing import FACE_LOCK
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.history import RollbackPlan, RollbackRefusedError, refusals
from qbench_dagster.core.model import TEXT_RECIPE

log = logging.getLogger(__name__)


def plan_rollback(database: Database, sync_id: int) -> RollbackPlan:
    """What undoing that sync would do now; nothing is changed. Raises DatabaseError if there is no such sync."""
    with database.connection("plan rollback", long=True) as connection, connection.transaction():
        return _plan(connection, sync_id)


def roll_back(database: Database, sync_id: int, *, by: str, force: bool = False) -> int:
    """Publish the cases of a sync as they were before it; returns the number of the entry that this makes.

    The next run leaves them so until the source changes again (store.held_cases), or `release_holds` lets them go.
    One transaction: readers see all of it or nothing. Raises RollbackRefusedError, and changes nothing, where
    something later depends on the sync (unless `force`), or what it replaced, or a vector of it, is not there.
    """
    with database.connection(f"rollback {sync_id}", long=True) as connection, connection.transaction():
        lock_all_ranges(connection)  # a case of the sync may by now be of a range that was split off since
        hold_lock(connection, FACE_LOCK, shared=True)
        hold_lock(connection, HISTORY_LOCK)
        plan = _plan(connection, sync_id)
        if objections := plan.objections(force=force):
            raise RollbackRefusedError(f"Sync {sync_id} is not undone. " + " ".join(objections))
        made: int = fetch_value(connection, statement("history.sql", "record_rollback"), sync_id=sync_id, by=by)
        keep(connection, made)
        connection.execute(statement("history.sql", "delete_undone"))
        for rows in ("documents", "steps", "preconditions", "related_issues"):
            connection.execute(statement("history.sql", f"restore_{rows}"))
        bounds = fetch_dicts(connection, statement("history.sql", "bounds_undone"))[0]
        connection.execute(statement("publish.sql", "insert_words"), bounds)
        connection.execute(statement("history.sql", "drop_holds"))
        connection.execute(statement("history.sql", "hold_undone"), {"rollback_id": made})
    log.info("sync %d is undone by sync %d: %d cases", sync_id, made, plan.cases)
    return made


def count_held(database: Database, sync_id: int) -> int:
    """Cases that the rollback of that number holds. Raises DatabaseError if there is no such entry."""
    with database.connection("holds") as connection:
        find_sync(connection, sync_id)
        return int(fetch_value(connection, statement("history.sql", "count_held"), sync_id=sync_id))


def release_holds(database: Database, sync_id: int) -> int:
    """Let go of the cases that a rollback holds; returns how many. The next run publishes what the source has of them.

    Unlike undoing the rollback it takes nothing back: cases that changed again since stay as they are.
    """
    with database.connection(f"release {sync_id}", long=True) as connection, connection.transaction():
        lock_all_ranges(connection)  # a run has read the holds when it publishes
        find_sync(connection, sync_id)
        released = connection.execute(statement("history.sql", "release_holds"), {"sync_id": sync_id}).rowcount
    log.info("sync %d holds no case any more; it held %d", sync_id, released)
    return released


def _plan(connection: Connection, sync_id: int) -> RollbackPlan:
    """Fills `pg_temp.due` with what the rollback would change, and tells of it."""
    asked = {"sync_id": sync_id}
    sync = find_sync(connection, sync_id)
    connection.execute(statement("publish.sql", "create_due"))
    connection.execute(statement("history.sql", "select_undone"), asked)
    connection.execute(statement("publish.sql", "analyze_due"))
    counted = fetch_dicts(connection, statement("history.sql", "count_undone"), **asked)[0]
    lost, cases = counted.pop("lost"), counted["leave"] + counted["change_back"] + counted["come_back"]
    missing, complete = _missing_texts(connection)
    return RollbackPlan(
        sync=sync,
        **counted,
        refusals=refusals(
            sync,
            cases,
            lost=lost,
            taken_uids=fetch_dicts(connection, statement("history.sql", "taken_uids")),
            missing_texts=missing,
            complete_spaces=complete,
        ),
        changed_by=connection.execute(statement("history.sql", "changed_since"), asked).fetchall(),
        examples=connection.execute(statement("history.sql", "undone_examples")).fetchall(),
    )


def _missing_texts(connection: Connection) -> tuple[int, list[str]]:
    """Texts of the restored cases that lack a vector in the space that is read, and other spaces that have them all."""
    active = fetch_value(connection, statement("embed.sql", "active"))
    if active is None:
        return 0, []

    def missing(space: str) -> int:
        return int(fetch_value(connection, statement("history.sql", "missing_texts", space=space)))

    found = missing(str(active))
    if not found:
        return 0, []
    others = connection.execute(statement("history.sql", "spaces"), {"recipe": TEXT_RECIPE}).fetchall()
    return found, [name for (name,) in others if name != active and not missing(name)]
