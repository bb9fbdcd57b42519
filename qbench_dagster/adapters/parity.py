"""Evaluates the invariants over the whole database. What they mean is `core/parity.py` and `core/search_parity.py`.

Searches and vectors are compared in `comparing.py`; here it is put together and kept.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from psycopg.types.json import Jsonb

from qbench_dagster.adapters.comparing import Compared, Comparing, ComparisonSettings
from qbench_dagster.adapters.measuring import Measured, measure, write_counters
from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts, fetch_value
from qbench_dagster.adapters.publishing import counts_of
from qbench_dagster.adapters.queries import query_prefix, read_log
from qbench_dagster.adapters.report_history import history
from qbench_dagster.adapters.space import KINDS, Space, active_space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vector_source import SourceError, VectorSource
from qbench_dagster.core import parity, search_parity
from qbench_dagster.core.comparison import Comparison
from qbench_dagster.core.model import NORMALIZER_VERSION
from qbench_dagster.core.parity import ParityReport, PartitionRow
from qbench_dagster.core.ranges import CaseRange
from qbench_dagster.core.words import has_words, lost_words

BATCH = 500
CHECKS_VERSION = 5
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
    ranges: Sequence[CaseRange],
    *,
    rows_in_export: int | None,
    details: Mapping[str, Any],
    progress: Callable[[int], None],
    force: bool = False,
    comparison: ComparisonSettings | None = None,
) -> Evaluated:
    """Evaluate every invariant; the report is kept in store.parity_reports.

    Who may read what is asked each time. The rest is asked again unless PostgreSQL's own write counters
    say that no row of ours was written since the last report (and `force` is not set), and query log, thresholds and
    old stores are the same. Without a `comparison` nothing is embedded and no old store is read.
    Raises QueryLogError for a log that cannot be used, EmbeddingError where its queries cannot be embedded.
    """
    started = time.monotonic()
    compare = comparison or ComparisonSettings()
    log = read_log(compare.query_log, compare.queries, space) if compare.query_log else []
    with ExitStack() as stores, database.connection("parity", long=True) as connection:
        sources, beside, store_error = _open(stores, compare)
        measured: dict[str, Measured] = {kind: measure(database, space, kind) for kind in KINDS}
        counters = write_counters(database, space)
        active = active_space(database)
        is_read = active is not None and active.name == space.name
        privileges = _privileges(connection, database)
        functions = fetch_value(connection, statement("parity.sql", "search_functions"))
        about = [*beside, log, is_read, compare.told(), functions, query_prefix(connection, space)]
        state = _state(counters, measured, ranges, about)
        last = fetch_dicts(connection, statement("parity.sql", "last_report"), space=space.name)
        if last and counters and not force and bytes(last[0]["state_hash"]) == state:
            kept = {finding["name"]: finding for finding in last[0]["report"]["findings"]}
            counted = kept["source_is_published_or_rejected"]["numbers"]["rows_in_export"]
            if kept[privileges.name] == _as_json(privileges) and rows_in_export in (None, counted):
                return Evaluated(last[0]["report"], fresh=False)
        found = Comparing(database, space, compare, is_read=is_read).run(log, sources, store_error)
        as_measured = {kind: each.as_json() for kind, each in measured.items()}
        comparisons = [*search_parity.measured_comparisons(as_measured, compare.target_recall), *found.comparisons]
        compared, lost = _words(connection, progress)
        published = fetch_value(connection, statement("compare.sql", "count_docs"))
        partitions, accounting = _accounting(connection, ranges, rows_in_export)
        health = {kind: asdict(each.health) for kind, each in measured.items()}
        report = ParityReport(
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            space=space.name,
            findings=[
                accounting,
                parity.words_kept(compared, lost, published=published),
                _published_values(connection),
                _completeness(connection, space, health),
                _vectors(found),
                search_parity.recall_reached(comparisons, compare.target_recall, found.search_error),
                search_parity.filtered_complete(
                    comparisons, found.filtered, found.short, compare.target_recall, found.search_note
                ),
                *_old_stores(found, comparisons, compare),
                privileges,
            ],
            partitions=partitions,
            rejects=fetch_dicts(connection, statement("parity.sql", "rejects")),
            details={
                "run_url": None,
                **details,
                "recall": as_measured,
                "target_recall": compare.target_recall,
                "thresholds": compare.thresholds(),
                "comparisons": [each.as_json() for each in comparisons],
                "old_store": [each.as_json() for each in found.stores] or None,
                "history": history(connection),
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
    excess += fetch_dicts(connection, statement("privileges.sql", "excess_of_pipeline"))
    missing += fetch_dicts(connection, statement("privileges.sql", "missing_of_pipeline"))
    return parity.least_privilege(excess, missing)


def _open(stack: ExitStack, compare: ComparisonSettings) -> tuple[Sequence[VectorSource], list[Any], str | None]:
    """The old stores, which they are, and why one that is named cannot be read: nothing unseen passes a gate."""
    try:
        sources = stack.enter_context(compare.open_stores())
        return sources, [(each.describe(), [each.count(kind) for kind in each.kinds()]) for each in sources], None
    except SourceError as error:
        return (), [str(error)], str(error)


def _vectors(found: Compared) -> parity.Finding:
    failed = [each.failed for each in found.fresh if each.failed is not None]
    told = {
        "compared": sum(each.compared for each in found.fresh),
        "wrong": sum(each.wrong for each in found.fresh),
        "smallest": round(min((each.smallest for each in found.fresh), default=1.0), 6),
    }
    return search_parity.vectors_of_their_texts(
        told,
        [each.as_json() for each in found.stores],
        [*(one for each in found.fresh for one in each.named), *(one for each in found.stores for one in each.named)],
        error=failed[0] if failed else None,
        note=found.fresh_note,
    )


def _old_stores(
    found: Compared, comparisons: Sequence[Comparison], compare: ComparisonSettings
) -> tuple[parity.Finding, parity.Finding]:
    cases: dict[str, dict[str, set[int]]] = {}
    for store in found.stores:
        fates = cases.setdefault(store.source.provenance, {})
        for fate, ids in store.cases.items():
            fates[fate] = fates.get(fate, set()) | ids
    named = {name: {fate: sorted(ids) for fate, ids in fates.items()} for name, fates in cases.items()}
    # A store that was read to its end is covered or not, whatever came of searching it.
    return (
        search_parity.old_store_covered([each.as_json() for each in found.stores], named, found.unread),
        search_parity.old_store_reached(
            comparisons, found.store_notes, found.store_error, named=bool(compare.old_stores)
        ),
    )


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
    ranges: Sequence[CaseRange],
    beside: Sequence[Any],
) -> bytes:
    recall = {kind: (found.strategy, found.ef_search, found.rerank, found.recall) for kind, found in measured.items()}
    about = [CHECKS_VERSION, NORMALIZER_VERSION, list(counters), recall, [r.key for r in ranges], repr(beside)]
    # What was measured before comes back from the database with its keys in another order.
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).digest()
