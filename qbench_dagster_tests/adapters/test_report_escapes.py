"""Markup in what people wrote stays text: planted in cases and in a query log, and in every value a report can hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qbench_dagster.adapters.comparing import ComparisonSettings
from qbench_dagster.adapters.embedders import LexicalEmbedder
from qbench_dagster.adapters.parity import evaluate
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.report import render_html, summary_markdown, write_report
from qbench_dagster_tests.adapters.pages import Page
from qbench_dagster_tests.adapters.reports import failed_report
from qbench_dagster_tests.support import CASE_COLUMNS, SPACE, case, execute, run_pipeline, write_export

SCRIPT, IMAGE, CODED = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "&lt;script&gt;alert(3)&lt;/script&gt;",
)
PLANT = SCRIPT + IMAGE + CODED
FORBIDDEN = {"script", "img", "iframe", "object", "embed", "link", "image", "form", "base"}


def harmless(html: str) -> Page:
    """The page taken apart, after a look at what a browser would do with it."""
    page = Page(html)
    assert not FORBIDDEN & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [value for _, value in page.attributes if value.strip().lower().startswith("javascript:")]
    return page


def strings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the strings of a JSON value are."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from strings(inner, (*path, key))


def planted(report: dict[str, Any], paths: list[tuple[Any, ...]]) -> dict[str, Any]:
    made = copy.deepcopy(report)
    for *path, last in paths:
        holder: Any = made
        for key in path:
            holder = holder[key]
        holder[last] += PLANT
    return made


def test_markup_in_cases_and_queries_is_text_in_the_report(clean_database: Database, tmp_path: Path) -> None:
    rows = [
        case(n, f"{PLANT} title {n}", refs=f"{PLANT}", preconditions=PLANT, custom_fields={"labels": [PLANT]},
             steps_separated=[{"content": f"{PLANT} step {n}", "expected": PLANT}])
        for n in range(1, 12)
    ]  # fmt: skip
    columns = {**CASE_COLUMNS, "id": "INTEGER"}
    export = write_export(
        tmp_path / "export.db", [*rows, case(3, f"{PLANT} again"), case("x", f"{PLANT} no id")], columns=columns,
        sections=[(10, PLANT, None), (11, PLANT, 10)], priorities=[(6, PLANT)], case_types=[(4, PLANT)],
    )  # fmt: skip
    ranges = list(run_pipeline(clean_database, export).ranges.values())
    execute(clean_database, "UPDATE store.test_documents SET priority = 'x', title = 'x' WHERE test_case_id < 5")
    execute(clean_database, f"DELETE FROM {SPACE.name}.step_embeddings")
    log = tmp_path / f"{SCRIPT.replace('/', '')} log.txt"
    log.write_text("\n".join(f"{PLANT} step {n}" for n in range(20)))
    embedder = LexicalEmbedder(SPACE.dimensions)

    report = evaluate(
        clean_database, SPACE, ranges, rows_in_export=99, details={"export": PLANT, "query log": str(log)},
        progress=lambda _: None, comparison=ComparisonSettings(query_log=log, open_embedder=lambda: closing(embedder)),
    ).report  # fmt: skip
    html, _ = write_report(report, tmp_path / "reports")
    text = html.read_text(encoding="utf-8")
    assert "alert(1)" in harmless(text).text, "it is there to be read"
    assert SCRIPT not in text
    assert SCRIPT not in summary_markdown(report)


def test_markup_in_any_value_of_a_report_is_text() -> None:
    report = failed_report().as_json()
    plain = ("name", "kind", "against", "queries", "measure", "reason", "created_at", "run_url", "url", "run", "run_id")
    paths = [path for path in strings(report) if path[-1] not in plain and not str(path[-1]).endswith("_at")]
    assert len(paths) > 50
    made = planted(report, paths)
    page = harmless(render_html(made))
    assert page.text.count("alert(1)") > 20, "it is there to be read"
    assert SCRIPT not in summary_markdown(made)


@pytest.mark.parametrize("url", ["javascript:alert(1)", 'https://x/"><script>alert(1)</script>', "data:text/html,x"])
def test_no_link_leads_to_a_script(url: str) -> None:
    report = failed_report().as_json()
    for name in ("run_url", "url", "run"):
        if name in report.get("details", {}):
            report["details"][name] = url
    harmless(render_html(report))
    assert "](<javascript" not in summary_markdown(report)
