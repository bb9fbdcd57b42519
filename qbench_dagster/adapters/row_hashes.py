"""Every table of the database told by its rows: how many, a hash of them all, how far copying them is.

What is made of it is `backup.py` and `restore.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qbench_dagster.adapters.postgres import Connection, fetch_dicts
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.manifest import TableState

Progress = Callable[[str, int, int], None]
"""Told a phase, how many rows are done, and about how many there are (0: not known)."""


def rooms(connection: Connection) -> dict[str, str]:
    """Our schemas, by name, and who owns each."""
    found = fetch_dicts(connection, statement("backup.sql", "rooms"))
    return {row["schema"]: row["owner"] for row in found}


def tables(connection: Connection, schemas: Sequence[str]) -> list[dict[str, Any]]:
    """The tables of `schemas`: schema, table, oid, about_rows, and send where their vectors are hashed as bytes."""
    return fetch_dicts(connection, statement("backup.sql", "tables"), schemas=list(schemas))


def table_states(connection: Connection, schemas: Sequence[str], progress: Progress) -> Mapping[str, TableState]:
    """Rows and hash of each table of `schemas`, by its qualified name, as the caller's transaction sees them."""
    connection.execute(statement("backup.sql", "fix_text"))
    found = tables(connection, schemas)
    states: dict[str, TableState] = {}
    total, done = sum(table["about_rows"] for table in found), 0
    for table in found:
        progress("hashing rows", done, max(total, done))
        names = {"schema": table["schema"], "table": table["table"]}
        query = (
            statement("backup.sql", "hash_vectors", **names, send=table["send"])
            if table["send"]
            else statement("backup.sql", "hash_rows", **names)
        )
        rows, digest = connection.execute(query).fetchone() or (0, "")
        states[f"{table['schema']}.{table['table']}"] = TableState(int(rows), str(digest))
        done += int(rows)
    progress("hashing rows", done, done)
    return states


class Copying:
    """Called, it tells `progress` how many rows the program with the application_name `name` has copied so far."""

    def __init__(self, connection: Connection, name: str, phase: str, total: int, progress: Progress) -> None:
        self._connection, self._name, self._phase, self._total = connection, name, phase, total
        self._progress = progress
        self._copied: dict[int, int] = {}

    def __call__(self) -> None:
        """Ask the server, which forgets a table when it is done: the last count of each is kept."""
        for row in fetch_dicts(self._connection, statement("backup.sql", "copied"), name=self._name):
            self._copied[row["oid"]] = max(row["rows"], self._copied.get(row["oid"], 0))
        self._progress(self._phase, min(sum(self._copied.values()), self._total), self._total)
