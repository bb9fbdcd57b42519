"""The file a pull works in: the export's tables, how far the pull is, and what it changed so far.

A page is stored together with the offset of the next one, so that a killed pull goes on where it was. Who opens the
file, and what readers see, is `testrail_mirror.py`; what is asked of TestRail `testrail_pull.py`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qbench_dagster.adapters.sample_writer import INDEXES, TABLES
from qbench_dagster.adapters.testrail_tables import delete_others, upsert
from qbench_dagster.core.testrail import Row

_PROGRESS: Final = {
    "state": "name TEXT PRIMARY KEY, value TEXT",
    "parts": """
        number INTEGER PRIMARY KEY, project_id INTEGER NOT NULL, suite_id INTEGER, listing INTEGER NOT NULL,
        next_offset INTEGER DEFAULT 0, pages INTEGER NOT NULL DEFAULT 0, round INTEGER NOT NULL DEFAULT 1,
        touched INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0, counted INTEGER""",
    "seen": "id INTEGER PRIMARY KEY",
}
_OF_PART: Final = "project_id = :project AND (suite_id = :suite OR :suite IS NULL)"
_GONE: Final = """
    DELETE FROM cases
    WHERE id NOT IN (SELECT id FROM seen) AND project_id NOT IN (SELECT value FROM json_each(?)) AND NOT EXISTS (
        SELECT 1 FROM parts p WHERE NOT p.listing AND p.project_id = cases.project_id
            AND (p.suite_id IS NULL OR p.suite_id = cases.suite_id))
"""
_ROBBED: Final = """
    UPDATE parts SET done = 0, listing = 1, next_offset = 0, pages = 0
    WHERE NOT listing AND counted <> (
        SELECT count(*) FROM cases WHERE cases.project_id = parts.project_id
            AND (parts.suite_id IS NULL OR cases.suite_id = parts.suite_id))
"""
_OF_NO_SUITE: Final = """
    DELETE FROM sections WHERE suite_id NOT IN (SELECT id FROM suites UNION SELECT suite_id FROM cases)
"""
_PER_PULL: Final = ("started", "begun", "full", "since", "added", "changed", "removed", "no_access", "fields")


class MirrorError(RuntimeError):
    """The mirror cannot be written; the text names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """A suite to pull: all its cases if `listing`, else those that changed. Without a suite, a project that has none.

    `next_offset`: of the page to ask for, None after the last; `pages`: those it had in this `round`; `touched`:
    whether a case of it differed.
    """

    number: int
    project_id: int
    suite_id: int | None
    listing: bool
    next_offset: int | None
    pages: int
    round: int
    touched: bool


class WorkingFile:
    """What is there of the pull that is under way, or was the last."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def prepare(self, source: str) -> None:
        """Take the lock, and make the tables unless they are there, for the same source."""
        with self._transaction("EXCLUSIVE"):
            self._db.execute("CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT)")
            if self.get("source") == source:
                return
            for table in [*TABLES, *_PROGRESS]:
                self._db.execute(f"DROP TABLE IF EXISTS {table}")
            for table, columns in {**TABLES, **_PROGRESS}.items():
                self._db.execute(f"CREATE TABLE {table} ({columns})")
            self._db.execute("CREATE INDEX of_part ON cases (project_id, suite_id)")
            self._put(source=source, unpublished=True)

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        self._db.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def get(self, name: str) -> Any:
        """A value of the state; None where there is none."""
        found = self._db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])

    def _put(self, **values: Any) -> None:
        rows = [(name, json.dumps(value)) for name, value in values.items()]
        self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", rows)

    def _one(self, sql: str, **values: Any) -> Any:
        return self._db.execute(sql, values).fetchone()[0]

    @property
    def unfinished(self) -> bool:
        """Whether a pull was begun and did not end."""
        return self.get("started") is not None

    @property
    def cases(self) -> int:
        """Cases in the working file."""
        return int(self._one("SELECT count(*) FROM cases"))

    def begin(
        self,
        lookups: dict[str, list[Row]],
        parts: Sequence[tuple[int, int | None]],
        *,
        no_access: Collection[int],
        listing: bool,
        **pull: Any,
    ) -> None:
        """Begin a pull of `parts` (project, suite), with the look-up tables it found; what was unfinished is dropped.

        `no_access`: projects that exist and cannot be read. What is mirrored of them stays.
        """
        with self._transaction():
            self._forget()
            for table, rows in lookups.items():
                ids = [row[0] for row in rows]
                if table == "suites":
                    listed = "SELECT id FROM suites WHERE project_id IN (SELECT value FROM json_each(?))"
                    ids += [suite for (suite,) in self._db.execute(listed, (json.dumps(list(no_access)),))]
                self._touch(upsert(self._db, table, rows) + delete_others(self._db, table, ids))
            rows_of_parts = [(project, suite, int(listing)) for project, suite in parts]
            self._db.executemany("INSERT INTO parts (project_id, suite_id, listing) VALUES (?, ?, ?)", rows_of_parts)
            self._put(no_access=list(no_access), full=listing, added=0, changed=0, removed=0, **pull)

    def parts(self) -> Iterator[Part]:
        """The parts that are not done, each as it stands when its turn comes.

        Then those that other suites took cases from, which were complete before: they are listed.
        """
        while True:
            found = self._db.execute(
                "SELECT number, project_id, suite_id, listing, next_offset, pages, round, touched FROM parts "
                "WHERE NOT done ORDER BY number LIMIT 1"
            ).fetchone()
            if found:
                number, project, suite, listing, offset, pages, rounds, touched = found
                yield Part(number, project, suite, bool(listing), offset, pages, rounds, bool(touched))
            elif not self._db.execute(_ROBBED).rowcount:
                return

    def save_page(self, part: Part, rows: Sequence[Row], next_offset: int | None) -> None:
        """Store a page of cases, and where the next one begins."""
        cases = {row[0]: row for row in rows}
        with self._transaction():
            self._db.execute("CREATE TEMP TABLE IF NOT EXISTS page (id INTEGER PRIMARY KEY)")
            self._db.execute("DELETE FROM page")
            self._db.executemany("INSERT INTO page VALUES (?)", [(case_id,) for case_id in cases])
            known = self._one("SELECT count(*) FROM cases WHERE id IN (SELECT id FROM page)")
            written = upsert(self._db, "cases", cases.values())
            added = len(cases) - known
            self._touch(written, added=added, changed=written - added)
            if part.listing:
                self._db.execute("INSERT OR IGNORE INTO seen SELECT id FROM page")
            self._db.execute(
                "UPDATE parts SET next_offset = ?, pages = pages + 1, touched = touched OR ? WHERE number = ?",
                (next_offset, written > 0, part.number),
            )

    def save_sections(self, part: Part, rows: Sequence[Row]) -> None:
        """Replace the sections of the part's suite; those of the suites of `rows` where it has none."""
        suites = {part.suite_id} if part.suite_id is not None else {row[1] for row in rows}
        with self._transaction():
            gone = delete_others(self._db, "sections", [row[0] for row in rows], ("suite_id", list(suites)))
            self._touch(upsert(self._db, "sections", rows) + gone)

    def count(self, part: Part) -> int:
        """Cases of the part's suite in the working file."""
        return int(self._one(f"SELECT count(*) FROM cases WHERE {_OF_PART}", **_names(part)))  # noqa: S608

    def missing(self, part: Part) -> int:
        """Of those, the ones no page of a listing has shown."""
        sql = f"SELECT count(*) FROM cases WHERE {_OF_PART} AND id NOT IN (SELECT id FROM seen)"  # noqa: S608
        return int(self._one(sql, **_names(part)))

    def begin_again(self, part: Part) -> None:
        """Go through the pages of the part (again), all of them."""
        with self._transaction():
            self._db.execute(
                "UPDATE parts SET next_offset = 0, pages = 0, round = round + listing, listing = 1 WHERE number = ?",
                (part.number,),
            )

    def end_part(self, part: Part) -> None:
        """The part is done."""
        with self._transaction():
            done = "UPDATE parts SET done = 1, counted = ? WHERE number = ?"
            self._db.execute(done, (self.count(part), part.number))

    def drop_part(self, part: Part) -> None:
        """The suite is gone."""
        with self._transaction():
            self._db.execute("DELETE FROM parts WHERE number = ?", (part.number,))

    def lose_access(self, project_id: int) -> None:
        """The project cannot be read any more: what is mirrored of it stays."""
        with self._transaction():
            self._db.execute("DELETE FROM parts WHERE project_id = ?", (project_id,))
            self._put(no_access=[*self.get("no_access"), project_id])

    def end(self) -> dict[str, Any]:
        """Every part is done: take out the cases that are gone, and note when this pull was begun; returns its counts.

        Gone are those no page of a listing has shown, but for suites that needed none, and projects without access.

        Raises MirrorError, and changes nothing, if no case would be left.
        """
        with self._transaction():
            removed = self._db.execute(_GONE, (json.dumps(self.get("no_access")),)).rowcount
            self._touch(removed, removed=removed)
            if not self.cases:
                raise MirrorError(
                    f"{self.get('source')} shows no case at all: the mirror stays as it is. Check what the user may "
                    "read, and QBENCH_TESTRAIL_PROJECTS; if TestRail is new and empty, pull again once it is not."
                )
            self._touch(self._db.execute(_OF_NO_SUITE).rowcount)
            counts = {name: self.get(name) for name in _PER_PULL[:-1]}
            full_at = counts["begun"] or counts["started"]  # of our clock, unless begun by a version without it
            self._put(completed=counts["started"], **({"completed_full": full_at} if counts["full"] else {}))
            if self.get("unpublished"):
                self._put(version=counts["started"])
            self._forget()
        return counts

    def copy_to(self, file: Path) -> None:
        """Write the export's tables into a new file."""
        self._db.execute("ATTACH ? AS mirror", (str(file),))
        try:
            for pragma in ("journal_mode = OFF", "synchronous = OFF"):
                self._db.execute(f"PRAGMA mirror.{pragma}")
            with self._transaction():
                for table, columns in TABLES.items():
                    self._db.execute(f"CREATE TABLE mirror.{table} ({columns.strip()})")
                    self._db.execute(f"INSERT INTO mirror.{table} SELECT * FROM main.{table} ORDER BY id")  # noqa: S608
                for index in INDEXES:
                    self._db.execute(index.replace("CREATE INDEX ", "CREATE INDEX mirror."))
        finally:
            self._db.execute("DETACH mirror")

    def published(self) -> None:
        """The mirror is what this file holds."""
        with self._transaction():
            self._put(unpublished=False)

    def _forget(self) -> None:
        for table in ("parts", "seen"):
            self._db.execute(f"DELETE FROM {table}")  # noqa: S608
        self._db.executemany("DELETE FROM state WHERE name = ?", [(name,) for name in _PER_PULL])

    def _touch(self, written: int, **counts: int) -> None:
        """Note that rows were written: the mirror is no longer what the working file holds."""
        if written:
            self._put(unpublished=True, **{name: (self.get(name) or 0) + more for name, more in counts.items()})


def _names(part: Part) -> dict[str, Any]:
    return {"project": part.project_id, "suite": part.suite_id}
