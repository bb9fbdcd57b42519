"""A day's work in TestRail, done to a copy of an export; and what is published, to compare with a fresh load of it."""

from __future__ import annotations

import itertools
import random
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from psycopg import sql

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS

TIMES = ["ingested_at", "updated_at"]
TABLES = ("test_documents", "test_steps", "test_preconditions", "test_related_issues")


@dataclass
class Edits:
    """Ids of the cases that were touched: `told` by `updated_on` or by coming and going, or `silent`."""

    told: set[int] = field(default_factory=set)
    silent: set[int] = field(default_factory=set)


def take_slice(source: Path, target: Path, every: int) -> Path:
    """Copy an export with each `every`-th of its cases."""
    shutil.copyfile(source, target)
    target.chmod(0o600)
    with closing(sqlite3.connect(target)) as connection:
        if every > 1:
            connection.execute(
                "DELETE FROM cases WHERE id NOT IN (SELECT id FROM"
                " (SELECT id, row_number() OVER (ORDER BY id) AS place FROM cases) WHERE place % ? = 0)",
                [every],
            )
            connection.commit()
            connection.execute("VACUUM")
    return target


@dataclass(frozen=True)
class Amounts:
    """How many cases of each kind of edit."""

    edited: int = 200
    added: int = 20
    removed: int = 20
    moved: int = 5
    silent: int = 15


def edit_export(path: Path, within: Sequence[int], amounts: Amounts, seed: int = 729) -> Edits:
    """Do to `path` what people do in a day, to cases whose ids are among `within`, and rename the largest section.

    Every tenth edit is dated before the newest case, as by a clock that went back; silent ones are not dated at all.
    """
    done = Edits()
    total = amounts.edited + amounts.added + amounts.removed + amounts.moved + amounts.silent
    chosen = iter(random.Random(seed).sample(sorted(within), total))
    with closing(sqlite3.connect(path)) as connection, connection:
        (newest,) = connection.execute("SELECT max(updated_on) FROM cases").fetchone()
        columns = ", ".join(row[1] for row in connection.execute("PRAGMA table_info(cases)") if row[1] != "id")
        for number, case_id in enumerate(itertools.islice(chosen, amounts.edited)):
            dated = newest - 600 if number % 10 == 0 else newest + 60
            revised = "UPDATE cases SET title = title || ?, updated_on = ? WHERE id = ?"
            connection.execute(revised, [f" (revised {number})", dated, case_id])
            done.told.add(case_id)
        for number, case_id in enumerate(itertools.islice(chosen, amounts.added)):
            new = _free_id(connection, case_id)
            copied = f"INSERT INTO cases (id, {columns}) SELECT ?, {columns} FROM cases WHERE id = ?"
            connection.execute(copied, [new, case_id])
            written = "UPDATE cases SET title = ?, updated_on = ? WHERE id = ?"
            connection.execute(written, [f"New case {number}", newest + 60, new])
            done.told.add(new)
        for case_id in itertools.islice(chosen, amounts.removed):
            connection.execute("DELETE FROM cases WHERE id = ?", [case_id])
            done.told.add(case_id)
        for case_id in itertools.islice(chosen, amounts.moved):
            other = "SELECT id FROM sections WHERE id <> section_id ORDER BY id LIMIT 1 OFFSET 7"
            moved = f"UPDATE cases SET updated_on = ?, section_id = ({other}) WHERE id = ?"
            connection.execute(moved, [newest + 60, case_id])
            done.told.add(case_id)
        for number, case_id in enumerate(chosen):
            connection.execute("UPDATE cases SET title = ? WHERE id = ?", [f"Silently edited {number}", case_id])
            done.silent.add(case_id)
        largest = "SELECT section_id FROM cases GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
        connection.execute(f"UPDATE sections SET name = 'Renamed' WHERE id = ({largest})")
    return done


def _free_id(connection: sqlite3.Connection, after: int) -> int:
    """The next id that no case has."""
    [(found,)] = connection.execute(
        "SELECT min(id) + 1 FROM cases c WHERE id >= ? AND NOT EXISTS (SELECT 1 FROM cases d WHERE d.id = c.id + 1)",
        [after],
    )
    return int(found)


def published(database: Database, space: str) -> dict[str, dict[str, str]]:
    """Every published row and the vector of its text, by table and key, less the times of publishing."""
    found: dict[str, dict[str, str]] = {}
    with database.connection("compare", long=True) as connection:
        for table in TABLES:
            query = sql.SQL(
                "SELECT concat_ws('/', r.row ->> 'test_case_id', r.row ->> 'step_index', r.row ->> 'order_index'),"
                " md5(r.row::text) FROM (SELECT to_jsonb(t) - %s::text[] AS row FROM store.{} t) r"
            ).format(sql.Identifier(table))
            found[table] = dict(connection.execute(query, [TIMES]).fetchall())
        for kind, table in zip(KINDS, ("test_documents", "test_steps"), strict=True):
            query = sql.SQL(
                "SELECT DISTINCT encode(t.text_hash, 'hex'), md5(e.embedding::text)"
                " FROM store.{} t LEFT JOIN {}.{} e USING (text_hash)"
            ).format(sql.Identifier(table), sql.Identifier(space), sql.Identifier(f"{kind}_embeddings"))
            found[f"{kind} vectors"] = dict(connection.execute(query).fetchall())
    return found


def texts_of(database: Database, space: str) -> set[tuple[str, bytes]]:
    """The texts that have a vector in a space, by kind and hash."""
    found: set[tuple[str, bytes]] = set()
    with database.connection("compare", long=True) as connection:
        for kind in KINDS:
            table = sql.Identifier(space, f"{kind}_embeddings")
            query = sql.SQL("SELECT %s, text_hash FROM {}").format(table)
            found.update(connection.execute(query, [kind]).fetchall())
    return found


def differences(one: dict[str, dict[str, str]], other: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Keys of the rows that only one has, or that differ, by table."""
    found = {
        table: sorted(key for key in rows.keys() | other[table] if rows.get(key) != other[table].get(key))
        for table, rows in one.items()
    }
    return {table: keys for table, keys in found.items() if keys}
