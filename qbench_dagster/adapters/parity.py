"""Evaluates the invariants over the whole database. What they mean is `core/parity.py`."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from psycopg.types.json import Jsonb

from qbench_dagster.adapters.indexing import IndexSettings, Measured, measure, write_counters
from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts, fetch_value
from qbench_dagster.adapters.publishing import counts_of
from qbench_dagster.adapters.space import KINDS, Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.testrail_export import json_text
from qbench_dagster.core import parity
from qbench_dagster.core.model import NORMALIZER_VERSION
from qbench_dagster.core.parity import ParityReport, PartitionRow
from qbench_dagster.core.ranges import CaseRange
from qbench_dagster.core.words import has_words, lost_words

BATCH = 500
CHECKS_VERSION = 2
"""Raise when an invariant is evaluated differently, so that no older report is reused."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A report as JSON values. `fresh` is false where nothing was written since it was made."""

    report: dict[str, Any]
    fresh: bool

    @property
    def passed(self) -> bool:
        """The verdict."""
        return bool(self.report["passed"])


def evaluate(
    database: Database,
    space: Space,
    settings: IndexSettings,
    ranges: Sequence[CaseRange],
    *,
    target_recall: float,
    rows_in_export: int | None,
    details: Mapping[str, Any],
    progress: Callable[[int], None],
    force: bool = False,
) -> Evaluated:
    """Evaluate every invariant; the report is kept in store.parity_reports.

    Who may read what is asked each time. The rest is asked again unless PostgreSQL's own write counters
    say that no row of ours was written since the last report (and `force` is not set).
    """
    started = time.monotonic()
    measured: dict[str, Measured] = {kind: measure(database, space, kind, settings) for kind in KINDS}
    counters = write_counters(database, space)
    with database.connection("parity", long=True) as connection:
        privileges = _privileges(connection, database)
        state = _state(counters, measured, settings, ranges, target_recall)
        last = fetch_dicts(connection, statement("parity.sql", "last_report"), space=space.name)
        if last and counters and not force and bytes(last[0]["state_hash"]) == state:
            kept = {finding["name"]: finding for finding in last[0]["report"]["findings"]}
            counted = kept["source_is_published_or_rejected"]["numbers"]["rows_in_export"]
            if kept[privileges.name] == _as_json(privileges) and rows_in_export in (None, counted):
                return Evaluated(last[0]["report"], fresh=False)
        compared, lost = _words(connection, progress)
        published = fetch_value(connection, statement("parity.sql", "count_published"))
        partitions, accounting = _accounting(connection, ranges, rows_in_export)
        health = {kind: asdict(found.health) for kind, found in measured.items()}
        report = ParityReport(
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            space=space.name,
            findings=[
                accounting,
                parity.words_kept(compared, lost, published=published),
                _published_values(connection),
                _completeness(connection, space, health),
                parity.recall_reached({kind: asdict(found) for kind, found in measured.items()}, target_recall),
                privileges,
            ],
            partitions=partitions,
            rejects=fetch_dicts(connection, statement("parity.sql", "rejects")),
            details={
                **details,
                "recall": {kind: asdict(found) for kind, found in measured.items()},
                "target_recall": target_recall,
                "indexes": fetch_dicts(connection, statement("index.sql", "builds"), space=space.name),
                "provenance": fetch_dicts(connection, statement("parity.sql", "provenance", space=space.name)),
                "sizes": fetch_dicts(connection, statement("parity.sql", "sizes"), space=space.name),
                "versions": {
                    **fetch_dicts(connection, statement("parity.sql", "versions"))[0],
                    "qbench": version("qbench_dagster"),
                    "python": platform.python_version(),
                },
                "seconds": round(time.monotonic() - started, 1),
            },
        )
        as_json = report.as_json()
        connection.execute(
            statement("parity.sql", "insert_report"),
            {"space": space.name, "passed": report.passed, "state_hash": state, "report": Jsonb(as_json)},
        )
    return Evaluated(as_json, fresh=True)


def check_accounting(database: Database, ranges: Sequence[CaseRange]) -> parity.Finding:
    """Invariant 1 by itself, against the source as it was last landed."""
    with database.connection("check accounting", long=True) as connection:
        return _accounting(connection, ranges, None)[1]


def check_completeness(database: Database, space: Space) -> parity.Finding:
    """Invariant 4 by itself, without reading the vectors."""
    with database.connection("check completeness", long=True) as connection:
        return _completeness(connection, space, {})


def check_privileges(database: Database) -> parity.Finding:
    """Invariant 9 by itself."""
    with database.connection("check privileges") as connection:
        return _privileges(connection, database)


def _accounting(
    connection: Connection, ranges: Sequence[CaseRange], rows_in_export: int | None
) -> tuple[list[PartitionRow], parity.Finding]:
    partitions = list(counts_of(connection, ranges).values())
    unaccounted = fetch_dicts(connection, statement("parity.sql", "unaccounted_cases"), recipe=NORMALIZER_VERSION)
    return partitions, parity.accounting(partitions, rows_in_export, unaccounted, len(unaccounted))


def _published_values(connection: Connection) -> parity.Finding:
    found = fetch_dicts(connection, statement("parity.sql", "changed_since_published"))
    compared, total = found[0]["compared"], found[0]["total"]
    different = [{name: row[name] for name in ("case_id", "differs", "remedy")} for row in found] if total else []
    return parity.published_as_staged(compared, different, total)


def _completeness(connection: Connection, space: Space, health: Mapping[str, Mapping[str, Any]]) -> parity.Finding:
    return parity.vectors_complete(
        fetch_dicts(connection, statement("parity.sql", "completeness", space=space.name))[0],
        health,
        fetch_dicts(connection, statement("parity.sql", "incomplete_cases", space=space.name)),
    )


def _privileges(connection: Connection, database: Database) -> parity.Finding:
    missing = fetch_dicts(
        connection, statement("parity.sql", "missing_privileges"), vector_schema=database.vector_schema
    )
    excess = []
    if fetch_value(connection, statement("parity.sql", "reader_exists")):
        excess = fetch_dicts(
            connection, statement("parity.sql", "excess_privileges"), vector_schema=database.vector_schema
        )
    return parity.least_privilege(excess, missing)


def _as_json(finding: parity.Finding) -> dict[str, Any]:
    values = asdict(finding)
    return {**values, "offenders": list(values["offenders"])}


def _words(connection: Connection, progress: Callable[[int], None]) -> tuple[int, dict[int, list[str]]]:
    """How many cases have words to lose, and the lost words of those that lost any."""
    compared = 0
    lost: dict[int, list[str]] = {}
    with connection.transaction(), connection.cursor(name="words", binary=True) as cursor:
        cursor.execute(statement("parity.sql", "cases_and_texts"))
        while rows := cursor.fetchmany(BATCH):
            for case_id, raw, preconditions, steps in rows:
                compared += has_words(raw)
                if words := lost_words(raw, [*preconditions, *steps]):
                    lost[case_id] = words
            progress(len(rows))
    return compared, lost


def _state(
    counters: Sequence[Mapping[str, Any]],
    measured: Mapping[str, Measured],
    settings: IndexSettings,
    ranges: Sequence[CaseRange],
    target_recall: float,
) -> bytes:
    recall = {kind: (found.stored, found.perturbed) for kind, found in measured.items()}
    about = [CHECKS_VERSION, NORMALIZER_VERSION, list(counters), recall, asdict(settings), [r.key for r in ranges],
             target_recall]  # fmt: skip
    return hashlib.sha256(json_text(about).encode()).digest()
