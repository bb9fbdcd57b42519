"""What a terminal shows of a parity report that is at hand."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console
from typer.testing import CliRunner

from qbench_dagster.adapters.report import document, schema
from qbench_dagster.cli import app
from qbench_dagster.cli.parity import show_history, show_parity
from qbench_dagster_tests.adapters import reports


def shown(report: dict[str, Any], page: str | None = None, width: int = 160) -> str:
    console = Console(file=io.StringIO(), record=True, width=width)
    show_parity(console, document(report), page)
    return console.export_text()


def test_a_passed_report_is_a_sentence_a_line_a_check_and_what_searches_found() -> None:
    text = shown(reports.passed_report().as_json(), "/somewhere/parity.html")
    assert text.startswith("PASSED  An application can be switched over.\n")
    assert text.count("\nok   ") == 9
    assert "FAIL" not in text
    summary = reports.good_comparisons()[2]["summary"]
    (line,) = [line for line in text.splitlines() if "documents @10, moved vectors" in line]
    assert f"{summary['mean']:.3f}" in line
    assert f"{summary['low']:.3f}–{summary['high']:.3f}" in line
    assert "≥ 0.95" in line
    assert text.rstrip().endswith("report: /somewhere/parity.html")


def test_a_failed_report_names_offenders_and_shows_its_worst_queries_side_by_side() -> None:
    text = shown(reports.failed_report().as_json())
    assert text.startswith("FAILED  Not yet: cases are missing or out of date, words of test steps were lost")
    assert text.count("\nFAIL ") == 6
    assert "case_id 7004213, wrong landed" in text
    assert "and 123 more" in text
    case = reports.case(0)
    line = next(line for line in text.splitlines() if f"({case['ours'][0]['id']})" in line)
    assert line.startswith(f"≠ 0.910 {case['ours'][0]['title']}")
    assert f"≠ 0.910 {case['theirs'][0]['title']}" in line
    assert text.count("= 0.897") == 2 * 2, "a shared result on both sides of both failing comparisons"
    assert text.count("user cannot log in with wrong password") == 4, "two queries of each failing comparison"


def test_text_of_a_case_is_only_text() -> None:
    report = reports.failed_report().as_json()
    odd = "[bold red]x[/nothing] \x1b[2J\x07\u202e\0 log\nin"
    report["findings"][0]["summary"] = report["findings"][0]["offenders"][0]["wrong"] = odd
    for one in report["details"]["comparisons"]:
        one["title"] = one["filter"] = odd
        for case in one["worst"]:
            case["query"] = odd
            case["ours"][0]["title"] = odd
    text = shown(report, width=300)
    assert not {"\x1b", "\x07", "\u202e", "\0"} & set(text)
    assert text.count("[bold red]x[/nothing]") >= 8


def test_reports_of_before_are_shown() -> None:
    text = shown(reports.old_report().as_json())
    assert text.count("\nok   ") == 6
    assert "searches" not in text


def test_verdicts_over_time() -> None:
    console = Console(file=io.StringIO(), record=True, width=200)
    show_history(console, reports.history())
    lines = console.export_text().splitlines()
    assert sum("passed" in line for line in lines) == 11
    assert sum("failed" in line for line in lines[1:]) == 3
    assert any("2026-02-26" in line and "the index misses too many results, words" in line for line in lines)
    console = Console(file=io.StringIO(), record=True, width=200)
    show_history(console, [])
    assert "no report was made yet" in console.export_text()


def test_the_schema_is_printed_as_it_is() -> None:
    done = CliRunner().invoke(app, ["parity", "--schema"])
    assert done.exit_code == 0
    assert json.loads(done.output) == schema()
