"""The stages together, through the adapters: what an export holds is what is published."""

from __future__ import annotations

from pathlib import Path

from qbench_dagster.adapters.postgres import Database
from qbench_dagster_tests.support import case, rows, run_pipeline, write_export


def test_cases_are_published_and_a_second_run_writes_nothing(database: Database, tmp_path: Path) -> None:
    export = write_export(
        tmp_path / "export.db",
        [
            case(729, "Log in", steps="1. Open the page\n2. Log in", custom_fields={"custom_expected": "Welcome"}),
            case(800, "Log out", section_id=11, priority_id=4, refs="PROJ-1, PROJ-2"),
            case(900, "   "),
        ],
    )
    outcome = run_pipeline(database, export)
    published = rows(
        database, "SELECT test_case_id, priority, folder_structure, jira_key FROM qbench.test_documents ORDER BY 1"
    )
    assert published == [(729, "Medium", "Accounts", None), (800, "High", "Accounts/Login", "PROJ-1")]
    assert rows(database, "SELECT case_id, reason FROM staging.rejects") == [(900, "blank_title")]
    assert outcome.rows_written > 0
    again = run_pipeline(database, export, keys=outcome.ranges)
    assert (again.rows_written, again.texts_embedded) == (0, 0)
