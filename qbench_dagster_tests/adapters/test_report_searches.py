"""What the report's page says of searches, the old store, the indexes and the verdicts of before."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench_dagster.adapters.report import render_html
from qbench_dagster.adapters.report_svg import log_ticks, share_ticks
from qbench_dagster.adapters.report_view import run_link
from qbench_dagster_tests.adapters import reports
from qbench_dagster_tests.adapters.pages import Page

pytestmark = pytest.mark.filterwarnings("error")

HOSTILE = "</td></script><script>alert(1)</script>\" onload='x' \u202egnp.exe \0\x1b[31m\ud800 🙂 {{ 7*7 }} $x^$ &lt;"


@pytest.fixture(scope="module")
def good() -> Page:
    return Page(render_html(reports.passed_report().as_json()))


@pytest.fixture(scope="module")
def bad() -> Page:
    return Page(render_html(reports.failed_report().as_json()))


def test_each_comparison_has_its_numbers_interval_and_threshold(good: Page) -> None:
    for one in reports.good_comparisons():
        summary = one["summary"]
        at = good.texts.index(f"{summary['low']:.3f}–{summary['high']:.3f}")
        assert good.texts[at - 1] == f"{summary['mean']:.3f}"
        assert good.texts[at + 1 : at + 4] == [f"{summary[name]:.3f}" for name in ("median", "p5", "min")]
        times = one["latency_ms"]["ours"]
        assert f"{times['p50']:.1f} · {times['p95']:.1f} · {times['p99']:.1f}" in good.texts
    assert good.texts.count("✓ ≥ 0.95") == 6
    assert good.texts.count("✓ ≥ 0.9") == 3
    assert "documents: recall@10 of the index, stored vectors as queries, only priority = High" in good.texts


def test_a_plot_says_in_words_what_it_shows(good: Page) -> None:
    alts = [attributes["aria-label"] for tag, attributes in good.elements if tag == "svg"]
    assert all(attributes["role"] == "img" for tag, attributes in good.elements if tag == "svg")
    assert len(alts) == 11
    lowest = min(one["summary"]["mean"] for one in reports.good_comparisons())
    assert any(f"{lowest:.3f}" in alt for alt in alts)
    assert any("recall@10 by ef_search: 40: 0.980" in alt and "in use, ef_search 120" in alt for alt in alts)
    assert any("best recall@10 of each strategy: binary 0.996 at 2.4 ms" in alt for alt in alts)
    assert any(alt.startswith("Lowest recall@10 of 15 reports") for alt in alts)


def test_results_of_a_failing_comparison_stand_side_by_side(bad: Page) -> None:
    at = next(n for n, text in enumerate(bad.texts) if text == "user cannot log in with wrong password (0)")
    assert bad.texts[at : at + 2] == ["user cannot log in with wrong password (0)", "· recall 0.600"]
    here, there = bad.texts.index("Here", at), bad.texts.index("Exact search", at)
    for side, first in (("ours", here), ("theirs", there)):
        shown = bad.texts[first + 1 : first + 41]
        wanted: list[str] = []
        for result in reports.case(0)[side]:
            mark = "✓" if result["shared"] else "≠"
            wanted += [mark, result["title"], str(result["id"]), f"{result['similarity']:.3f}"]
        assert shown == wanted
    opened = [attributes for tag, attributes in bad.elements if tag == "details" and attributes.get("class") == "fold"]
    assert sum("open" in attributes for attributes in opened) == 3, "both failing comparisons, and the partitions"


def test_results_beyond_ten_are_counted_and_none_is_said() -> None:
    report = reports.failed_report().as_json()
    worst = report["details"]["comparisons"][5]["worst"][0]
    worst["ours"] = []
    worst["theirs"] = worst["theirs"] * 3
    page = Page(render_html(report))
    assert "no result" in page.texts
    assert "and 20 more" in page.texts


def test_the_old_store_is_counted_both_ways(good: Page) -> None:
    at = good.texts.index("qdrant, documents")
    assert good.texts[at + 1 : at + 9] == [
        "83,410", "81,337", "2,073", "22,739", "81,337", "0", "0.9999", "1.0000",
    ]  # fmt: skip
    assert good.texts[at + 9] == "no such case 1,904, text changed 169"


def test_an_index_tells_why_it_was_chosen(good: Page) -> None:
    assert good.texts.count("Why binary:") == 2
    assert good.texts.count("binary (chosen)") == 2
    assert good.texts.count("Not measured: ivfflat, dominated") == 2
    assert "the cheapest of 3 that meet recall@10 ≥ 0.95 and p95 ≤ 15 ms: 44 s and 66 MB over all rows" in good.texts


def test_verdicts_over_time_end_with_this_one(bad: Page) -> None:
    strip = [attributes for tag, attributes in bad.elements if tag == "li" and "title" in attributes]
    assert len(strip) == 15
    assert strip[0]["class"] == "now bad"
    assert [attributes["class"] for attributes in strip[1:]] == ["", "", " bad", " bad", *[""] * 5, " bad", *[""] * 4]
    assert strip[3]["title"].endswith("the index misses too many results, words of test steps were lost")
    assert "This report, outlined, and the 14 before it." in bad.texts


def test_the_run_is_linked_only_by_an_http_address(good: Page) -> None:
    assert reports.RUN_URL in good.values("href")
    assert run_link({"run_url": reports.RUN_URL}) == reports.RUN_URL
    assert run_link({}) is None
    for url in ("javascript:alert(1)", "file:///etc/passwd", "http://x/ onclick=1", "//x", "", None):
        assert run_link({"run_url": url}) is None, url


def test_every_header_has_a_scope_and_the_page_one_first_heading(bad: Page) -> None:
    assert all("scope" in attributes for tag, attributes in bad.elements if tag == "th")
    assert bad.tags.count("h1") == 1
    levels = [int(tag[1]) for tag in bad.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    scrolled = [attributes for _, attributes in bad.elements if "tabindex" in attributes]
    assert all(attributes["role"] == "region" and attributes["aria-label"] for attributes in scrolled)


def hostile(value: Any, keys: tuple[str, ...] = ()) -> Any:
    """Every text of a report replaced, but those that the report's own code makes."""
    ours = {"name", "kind", "strategy", "chosen", "measure", "against", "created_at", "built_at", "reason", "run_url"}
    if isinstance(value, dict):
        return {name: one if name in ours else hostile(one, (*keys, name)) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [hostile(one, keys) for one in value]
    return f"{HOSTILE} {'.'.join(keys)}" if isinstance(value, str) else value


def test_markup_in_any_text_is_text() -> None:
    report = hostile(reports.failed_report().as_json())
    for n, finding in enumerate(report["findings"]):
        finding["name"] = f"of_another_version_{n}"  # so that its title is in the verdict
    text = render_html(report)
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text.lower()
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search("[\0\x1b\ud800]", text)
    text.encode()
    for place in (
        "space", "findings.title", "findings.summary", "findings.offenders.lost", "partitions.key", "rejects.detail",
        "details.comparisons.title", "details.comparisons.worst.query",
        "details.comparisons.worst.ours.title", "details.old_store.store",
        "details.indexes.advice.why", "details.history.space", "details.provenance.provenance",
        "details.sizes.relation", "details.settings.embedder", "details.versions.pgvector", "details.export",
    ):  # fmt: skip
        assert any(place in found for found in [*page.texts, *page.values("aria-label")]), place
    assert "49" not in re.sub(r"\d{3,}|0\.\d+|\d+\.\d|-\d+|\d\d:\d\d", "", " ".join(re.findall("{{.*?}}", text)))


def test_a_thousand_partitions_and_full_lists_stay_small() -> None:
    report = reports.failed_report().as_json()
    row = report["partitions"][0]
    report["partitions"] = [{**row, "key": f"from_{n * 5_000:010d}"} for n in range(1_000)]
    report["rejects"] = [{"case_id": n, "reason": "too_large", "detail": "x" * 100} for n in range(1_000)]
    comparisons = report["details"]["comparisons"]
    full = [{**reports.case(0), "query": "q" * 200} for _ in range(5)]
    report["details"]["comparisons"] = [{**one, "passed": False, "worst": full} for one in comparisons * 2]
    report["details"]["history"] = reports.history(12) * 4
    assert len(render_html(report).encode()) < 1_500_000


def test_what_a_report_lacks_is_left_out() -> None:
    """A report of another version, or one of an empty database: each detail may be missing."""
    report = {**reports.passed_report().as_json(), "partitions": []}
    nothing = {"summary": None, "latency_ms": None, "latencies_ms": None}
    report["details"] |= {
        "comparisons": [{**one, **nothing} for one in report["details"]["comparisons"]],
        "indexes": [{**reports.index("doc"), "curve": None, "advice": None, "strategy": "exact"}],
        "sizes": [],
        "provenance": [],
    }
    for name in report["details"]:
        less = {other: value for other, value in report["details"].items() if other != name}
        Page(render_html({**report, "details": less}))
    report["details"] |= {"old_store": [], "history": [], "run_url": None}
    page = Page(render_html(report))
    assert "This is the first report." in page.texts
    assert "The old store" not in page.texts


@settings(max_examples=60)
@given(st.floats(0, 0.999), st.floats(1e-3, 1e5), st.floats(1.01, 1e6))
def test_scales_have_some_round_labels_inside(low: float, least: float, ratio: float) -> None:
    shares = share_ticks(low)
    assert 1 <= len(shares) <= 7
    assert all(low - 1e-9 <= at <= 1 for at, _ in shares)
    times = log_ticks(least, least * ratio)
    assert len(times) <= 12
    assert ratio < 10 or times
    assert all(float(label) == pytest.approx(10**at) for at, label in times)
