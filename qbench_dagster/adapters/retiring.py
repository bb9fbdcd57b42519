"""Takes indexes away: leftovers of killed builds, and an old index when nobody reads by it any more."""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg

from qbench_dagster.adapters.building import Building, drop_index
from qbench_dagster.adapters.postgres import DatabaseError, fetch_dicts
from qbench_dagster.adapters.sql import statement

log = logging.getLogger(__name__)

READERS_S = 30.0
"""How long the old index is kept for queries that began before the new one was in use."""
ORPHAN_S = 60.0


def existing(work: Building) -> list[dict[str, Any]]:
    """The approximate indexes of the table: name, whether valid, bytes, oid, method and options."""
    return fetch_dicts(work.connection, statement("index.sql", "existing"), space=work.space.name, table=work.table)


def clear_away(work: Building, kept: str | None) -> None:
    """End builds whose client is gone, and drop every index but a valid one named `kept`.

    The caller holds the lock of who builds indexes of the table: so whoever else does, does so for a killed run.
    Raises DatabaseError where such a build cannot be ended.
    """
    names, deadline = {"space": work.space.name, "table": work.table}, time.monotonic() + ORPHAN_S
    # As the session's user: to qbench_owner the server shows and ends nothing of what another role's session does.
    with work.database.connection("end killed builds") as connection:
        while orphans := connection.execute(statement("index.sql", "orphans"), names).fetchall():
            for (pid,) in orphans:
                log.warning("ending the server process %d, which builds an index for a run that was killed", pid)
                connection.execute(statement("index.sql", "terminate"), {"pid": pid})
            if time.monotonic() > deadline:
                raise DatabaseError(
                    f"Server process {orphans[0][0]} goes on building an index of {work.space.name}.{work.table} for a "
                    f"run that is gone. Ask a superuser to end it: SELECT pg_terminate_backend({orphans[0][0]});"
                )
            time.sleep(0.1)
    work.connection.execute(statement("index.sql", "drop_sample", space=work.space.name, sample=f"{work.table}_sample"))
    drop_others(work, kept)


def drop_others(work: Building, kept: str | None) -> None:
    """Drop every index of the table but a valid one named `kept`. One that is long held on to is left for next time."""
    for index in existing(work):
        if index["name"] == kept and index["valid"]:
            continue
        log.info("dropping the index %s.%s", work.space.name, index["name"])
        try:
            drop_index(work.connection, work.space, index["name"])
        except psycopg.errors.LockNotAvailable:
            work.note(f"{index['name']} is still read by an old transaction; the next run drops it")


def wait_for_readers(work: Building) -> None:
    """Let queries end that began with the old index: planned after it is gone they would read the whole table."""

    def reading() -> dict[tuple[int, Any], str]:
        found = work.connection.execute(statement("index.sql", "readers")).fetchall()
        return {(pid, began): name for pid, name, began in found}

    old, deadline = reading(), time.monotonic() + READERS_S
    while still := old.keys() & reading().keys():
        if time.monotonic() > deadline:
            reader = next(iter(still))
            work.note(f"pid {reader[0]} ({old[reader] or 'unnamed'}) has been reading since before the new index")
            return
        time.sleep(0.05)
