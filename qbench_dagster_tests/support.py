"""What several tests need: small exports written row by row, and the pipeline without Dagster around it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbench_dagster.adapters.embedders import LexicalEmbedder
from qbench_dagster.adapters.embedding import embed_missing
from qbench_dagster.adapters.history import PublishingRun
from qbench_dagster.adapters.indexing import Build, ensure_index
from qbench_dagster.adapters.landing import Landed, land_cases, land_lookups
from qbench_dagster.adapters.ledger import Account
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.publishing import Published, publish_cases, publish_face
from qbench_dagster.adapters.space import KINDS, Space, ensure_space
from qbench_dagster.adapters.staging import Staged, load_lookups, stage_cases
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.core.folders import section_paths
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.ranges import CaseRange, plan_bounds, range_key, ranges_of
from qbench_dagster.core.tally import Embedded, Embedding

REAL_EXPORT = Path(__file__).parents[2] / "shared" / "testrail" / "real_testrail.db"

SPACE = Space("space_lexical_64", "lexical-v1", 64, "halfvec")
"""64 dimensions: the same code as 3,072, a fiftieth of the time."""

EXACT = IndexSettings(strategy="exact", m=16, ef_construction=64, ef_search=100)
BINARY = IndexSettings(strategy="binary", m=16, ef_construction=64, ef_search=100)


class Time:
    """Simulated: it passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


CASE_COLUMNS = {
    "id": "INTEGER NOT NULL PRIMARY KEY",
    "suite_id": "INTEGER",
    "section_id": "INTEGER",
    "project_id": "INTEGER",
    "title": "VARCHAR NOT NULL",
    "template_id": "INTEGER",
    "type_id": "INTEGER",
    "priority_id": "INTEGER",
    "refs": "VARCHAR",
    "created_on": "INTEGER",
    "updated_on": "INTEGER",
    "preconditions": "TEXT",
    "steps": "TEXT",
    "steps_separated": "JSON",
    "steps_combined": "TEXT",
    "jiras": "VARCHAR",
    "refs_custom": "VARCHAR",
    "comment": "TEXT",
    "is_automated": "BOOLEAN",
    "custom_fields": "JSON",
}
DEFAULTS: dict[str, Any] = {
    "suite_id": 1, "section_id": 10, "project_id": 3, "template_id": 1, "type_id": 4, "priority_id": 6,
    "created_on": 1_500_000_000, "updated_on": 1_500_000_000,
}  # fmt: skip


def case(case_id: Any, title: Any = "Log in", **columns: Any) -> dict[str, Any]:
    """A row of `cases`; lists and dictionaries are stored as JSON text."""
    row = {**DEFAULTS, "id": case_id, "title": title, **columns}
    return {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in row.items()}


def write_export(
    path: Path,
    cases: Iterable[Mapping[str, Any]],
    *,
    sections: Iterable[tuple[int, str, int | None]] = ((10, "Accounts", None), (11, "Login", 10)),
    priorities: Iterable[tuple[int, str]] = ((4, "1 - High Priority"), (6, "2 - Medium Priority")),
    case_types: Iterable[tuple[int, str]] = ((4, "Regression"), (9, "Smoke")),
    columns: Mapping[str, str] = CASE_COLUMNS,
) -> Path:
    """Write (or replace) a small export; `columns` may leave some out or declare others."""
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE sections (id INTEGER PRIMARY KEY, suite_id INTEGER, name TEXT, parent_id INTEGER)"
        )
        connection.executemany("INSERT INTO sections VALUES (?, 1, ?, ?)", list(sections))
        connection.execute("CREATE TABLE priorities (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO priorities VALUES (?, ?)", list(priorities))
        connection.execute("CREATE TABLE case_types (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO case_types VALUES (?, ?)", list(case_types))
        for table in ("projects", "suites", "templates"):
            connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, name TEXT)")
            connection.execute(f"INSERT INTO {table} VALUES (1, 'one')")
        connection.execute(f"CREATE TABLE cases ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        insert_cases(connection, cases, columns)
    connection.close()
    return path


def insert_cases(
    connection: sqlite3.Connection, cases: Iterable[Mapping[str, Any]], columns: Mapping[str, str] = CASE_COLUMNS
) -> None:
    """Add rows to `cases` of an open export."""
    marks = ", ".join("?" * len(columns))
    connection.executemany(
        f"INSERT INTO cases VALUES ({marks})", [[row.get(name) for name in columns] for row in cases]
    )


@dataclass
class Outcome:
    """What each stage did, by partition key; `builds` by kind."""

    ranges: dict[str, CaseRange]
    landed: dict[str, Landed] = field(default_factory=dict)
    staged: dict[str, Staged] = field(default_factory=dict)
    embedded: dict[tuple[str, str], Embedded] = field(default_factory=dict)
    published: dict[str, Published] = field(default_factory=dict)
    builds: dict[str, Build] = field(default_factory=dict)

    @property
    def rows_written(self) -> int:
        """Rows all stages wrote together, vectors included."""
        stages = [*self.landed.values(), *self.staged.values(), *self.published.values()]
        return sum(stage.rows_written for stage in stages) + self.texts_embedded

    @property
    def texts_embedded(self) -> int:
        """Texts that were embedded."""
        return sum(stage.embedded for stage in self.embedded.values())


def run_pipeline(
    database: Database,
    path: Path,
    *,
    space: Space = SPACE,
    index: IndexSettings = EXACT,
    target: int = 5000,
    keys: Iterable[str] = (),
    max_delete_share: float = 0.2,
    run: PublishingRun | None = None,
) -> Outcome:
    """All stages over all ranges, through the adapters the assets call. `keys` are ranges that exist already."""
    with TestRailExport(path) as export:
        existing = list(keys)
        bounds = plan_bounds(export.case_ids(), [int(key.removeprefix("from_")) for key in existing], target)
        outcome = Outcome(ranges_of([*existing, *map(range_key, bounds)]))
        land_lookups(database, export, section_paths)
        for key, case_range in outcome.ranges.items():
            outcome.landed[key] = land_cases(database, export, case_range, max_delete_share=max_delete_share)
    lookups = load_lookups(database)
    ensure_space(database, space)
    embedder = LexicalEmbedder(space.dimensions)
    for key, case_range in outcome.ranges.items():
        outcome.staged[key] = stage_cases(database, lookups, case_range, lambda _: None)
        for kind in KINDS:
            done = Embedding()
            embed_missing(database, space, kind, [case_range], embedder, Account("test"), lambda _: None, done)
            outcome.embedded[key, kind] = done.partitions[key]
        outcome.published[key] = publish_cases(database, space, case_range, run, max_delete_share=max_delete_share)
    publish_face(database, space)
    for kind in KINDS:
        outcome.builds[kind] = ensure_index(database, space, kind, index, lambda *_: None)
    return outcome


def fill_space(
    database: Database, space: Space, ranges: Iterable[CaseRange], embedder: LexicalEmbedder | None = None
) -> None:
    """Make a space, and a vector in it for every staged text of `ranges`."""
    ensure_space(database, space)
    chosen = embedder or LexicalEmbedder(space.dimensions)
    for kind in KINDS:
        embed_missing(database, space, kind, list(ranges), chosen, Account("test"), lambda _: None, Embedding())


def rows(database: Database, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """Rows of a query a test asks."""
    with database.connection("test") as connection:
        return connection.execute(query, values or None).fetchall()  # type: ignore[arg-type]


def execute(database: Database, query: str, *values: Any) -> None:
    """Run a statement a test needs, for instance to plant a fault."""
    with database.connection("test") as connection:
        connection.execute(query, values or None)  # type: ignore[arg-type]
