"""Rows of the export's tables in a SQLite file: written only where they differ, so that one knows whether any did.

When which rows are written is `testrail_mirror.py`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache

from qbench_dagster.core.testrail import COLUMNS, Cell, Row


def upsert(db: sqlite3.Connection, table: str, rows: Iterable[Row]) -> int:
    """Write the rows that are not there as they are; returns how many."""
    return max(0, db.executemany(_upsert_sql(table), [tuple(map(_bytes, row)) for row in rows]).rowcount)


def delete_others(
    db: sqlite3.Connection, table: str, ids: Sequence[Cell], scope: tuple[str, Sequence[Cell]] | None = None
) -> int:
    """Delete the rows without these ids, `scope`: only those whose column has one of its values; returns how many."""
    column, values = scope or ("id", ())
    sql = (
        f"DELETE FROM {table} WHERE id NOT IN (SELECT value FROM json_each(:ids)) "  # noqa: S608
        f"AND (:everywhere OR {column} IN (SELECT value FROM json_each(:scope)))"
    )
    given = {"ids": json.dumps(ids), "scope": json.dumps(values), "everywhere": scope is None}
    return db.execute(sql, given).rowcount


@cache
def _upsert_sql(table: str) -> str:
    names = COLUMNS[table]
    values = (f"iif(typeof(?{n}) = 'blob', CAST(?{n} AS TEXT), ?{n})" for n in range(1, len(names) + 1))
    kept, given = ([f"{whose}.{name}" for name in names[1:]] for whose in (table, "excluded"))
    return (
        f"INSERT INTO {table} VALUES ({', '.join(values)}) ON CONFLICT (id) DO UPDATE SET "  # noqa: S608
        f"{', '.join(f'{name} = excluded.{name}' for name in names[1:])} "
        f"WHERE ({', '.join(kept)}) IS NOT ({', '.join(given)})"
    )


def _bytes(value: Cell) -> Cell | bytes:
    """Text as its bytes: it may hold half a surrogate pair, which sqlite3 refuses to encode."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
