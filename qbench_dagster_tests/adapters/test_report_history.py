"""Verdicts that were kept, read back from a real database."""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.report_history import history
from qbench_dagster.adapters.sql import statement
from qbench_dagster_tests.adapters import reports


def keep(database: Database, report: dict[str, Any], space: str = reports.SPACE) -> None:
    with database.connection("test") as connection:
        connection.execute(
            statement("parity.sql", "insert_report"),
            {"space": space, "passed": report["passed"], "state_hash": b"", "report": Jsonb(report)},
        )


def test_verdicts_come_newest_first_with_their_numbers(clean_database: Database) -> None:
    for report in (reports.old_report(), reports.passed_report(), reports.failed_report()):
        keep(clean_database, report.as_json())
    keep(clean_database, reports.EMPTY_DATABASE.as_json(), "space_lexical_64")
    with clean_database.connection("test") as connection:
        found = history(connection)
        assert history(connection, reports.SPACE) == found[1:]
        assert history(connection, at_most=2) == found[:2]
        assert history(connection, "no_such_space") == []
    assert [entry["passed"] for entry in found] == [False, False, True, True]
    assert [entry["id"] for entry in found] == sorted((entry["id"] for entry in found), reverse=True)
    failed = [one.name for one in reports.findings(good=False) if not one.passed]
    assert [entry["failed"] for entry in found] == [["source_is_published_or_rejected"], failed, [], []]
    means = [
        [one["summary"]["mean"] for one in made if one["measure"] == "recall" and one["k"] == 10 and not one["filter"]]
        for made in (reports.bad_comparisons(), reports.good_comparisons())
    ]
    assert [entry["numbers"]["recall_10_min"] for entry in found] == [None, min(means[0]), min(means[1]), 0.9622]
    assert [entry["numbers"]["published"] for entry in found] == [0, 103_948, 104_076, 104_076]
    assert all(entry["created_at"].endswith("+00:00") for entry in found)


def test_reports_that_say_little_are_listed_too(clean_database: Database) -> None:
    keep(
        clean_database,
        {"passed": True, "details": {"recall": {"doc": {"stored": "never", "perturbed": None}, "step": None}}},
    )
    keep(clean_database, {"passed": False, "findings": None, "partitions": None, "details": {"comparisons": None}})
    with clean_database.connection("test") as connection:
        found = history(connection)
    assert [entry["failed"] for entry in found] == [[], []]
    assert [entry["numbers"] for entry in found] == [{"published": None, "recall_10_min": None}] * 2
