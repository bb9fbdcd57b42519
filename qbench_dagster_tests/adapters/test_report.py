"""The report as files: what a reader must find in it, and what must never get into it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qbench_dagster.adapters.report import document, render_html, summary_markdown, write_report
from qbench_dagster.adapters.report_plots import MAX_RELATIONS, bytes_text
from qbench_dagster.core.model import RejectReason
from qbench_dagster.core.parity import ParityReport, PartitionRow
from qbench_dagster_tests.adapters.pages import Page
from qbench_dagster_tests.adapters.reports import (
    EMPTY,
    EMPTY_DATABASE,
    RUN_URL,
    SPACE,
    failed_report,
    old_recall,
    old_report,
    passed_report,
)

pytestmark = pytest.mark.filterwarnings("error")

SCRIPT = "<script>alert('1 & 2')</script>"
REPORTS = {
    "passed": passed_report(),
    "failed": failed_report(),
    "old": old_report(),
    "empty": EMPTY,
    "empty_database": EMPTY_DATABASE,
}
everywhere = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)


_pages: dict[int, str] = {}


def html(report: ParityReport) -> str:
    """Its page. Those of REPORTS, which live on, are drawn once."""
    if id(report) not in map(id, REPORTS.values()):
        return render_html(report.as_json())
    if id(report) not in _pages:
        _pages[id(report)] = render_html(report.as_json())
    return _pages[id(report)]


def test_a_passed_report_says_so_first_and_shows_its_figures() -> None:
    page = Page(html(REPORTS["passed"]))
    after_title = page.texts[page.texts.index("PASSED") :]
    assert after_title[:13] == [
        "PASSED", SPACE, "2026-03-04 03:12:55 UTC", "An application can be switched over.",
        "All 9 checks hold, from the rows of the source to the results of searches.",
        "104,121", "source cases", "=", "104,076", "published", "+", "45", "rejected",
    ]  # fmt: skip
    assert "FAILED" not in page.texts
    assert page.texts.count("✓ holds") == 9
    for shown in ("92,541", "81,337", "2.3 GB", "18.4", "0.8.5", "28.1M", "3072"):
        assert any(shown in text for text in page.texts), shown


def test_a_failed_report_lists_what_fails_first_with_its_offenders_and_what_to_do() -> None:
    page = Page(html(REPORTS["failed"]))
    assert "FAILED" in page.texts
    assert "PASSED" not in page.texts
    assert (
        "Not yet: cases are missing or out of date, words of test steps were lost and 4 more checks fail." in page.texts
    )
    start = page.texts.index("≠")
    assert page.texts[start - 2 : start + 7] == [
        "104,121", "source cases", "≠", "103,948", "published", "+", "45", "rejected", "128",
    ]  # fmt: skip
    checks = page.texts[page.texts.index("What to do:") : page.texts.index("Searches", page.texts.index("What to do:"))]
    marks = [text for text in checks if text in ("✓ holds", "✗ fails")]
    assert marks == ["✗ fails"] * 5 + ["✓ holds"] * 3, "the first stands before what to do about it"
    assert checks.count("What to do:") == 6
    assert "7004213" in page.texts, "ids are copied into queries: no commas"
    assert "34799866" in page.texts
    for shown in (f"{0xDEAD << 200:064x}", "REVOKE SELECT ON store.test_steps FROM qbench_reader;", "-128", "logout"):
        assert shown in page.texts, shown


def test_findings_that_hold_come_after_those_that_do_not() -> None:
    good, bad = REPORTS["passed"], REPORTS["failed"]
    report = replace(good, findings=[*good.findings[:4], bad.findings[4], *good.findings[5:]])
    page = Page(html(report))
    assert "1 of 9 checks fails:" in page.text
    assert page.values("id")[:3] == ["verdict", "checks", "recall_reaches_target"]
    assert ("href", "#recall_reaches_target") in page.attributes


def test_offenders_that_were_cut_say_how_many_there_are() -> None:
    page = Page(html(REPORTS["failed"]))
    cut = [text for text in page.texts if "showing" in text]
    assert cut == [", showing 100 of 128"]


def test_rejects_carry_their_reason_and_what_to_do() -> None:
    page = Page(html(REPORTS["passed"]))
    for reason in ("blank_title", "too_large", "invalid_id"):
        assert reason in page.texts
        assert RejectReason(reason).remedy in page.texts
    assert "A reason this version does not know." in page.texts
    assert "Showing 6 of 45." in page.texts


@everywhere
def test_the_files_agree_and_nothing_else_is_left(report: ParityReport, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    page, values = write_report(report, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["parity.html", "parity.json"]
    again = json.loads(values.read_text(encoding="utf-8"))
    version = again.pop("schema_version")
    assert version == (2 if "comparisons" in report.details else 1)
    assert again == json.loads(json.dumps(report.as_json()))
    assert next(iter(again)) == "passed"
    assert html(report) == page.read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, values = write_report(old_report(), tmp_path)
    before = page.read_bytes(), values.read_bytes()

    whole = Path.write_text

    def full(self: Path, data: str, **how: Any) -> int:
        if "json" not in self.name:
            return whole(self, data, **how)
        whole(self, data[:1000], **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(EMPTY_DATABASE, tmp_path)
    assert (page.read_bytes(), values.read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2


@everywhere
def test_equal_reports_give_equal_bytes(report: ParityReport, tmp_path: Path) -> None:
    """Also after a round through jsonb, which keeps no order of keys."""

    def jumbled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: jumbled(value[name]) for name in reversed(value)}
        return [jumbled(one) for one in value] if isinstance(value, list | tuple) else value

    page, values = write_report(jumbled(report.as_json()), tmp_path)
    assert page.read_text(encoding="utf-8") == html(report)
    assert (
        values.read_text(encoding="utf-8")
        == json.dumps(document(report.as_json()), ensure_ascii=False, indent=2) + "\n"
    )


def test_another_process_gives_the_same_bytes() -> None:
    code = (
        "import json, sys; from qbench_dagster.adapters.report import document, render_html;"
        "sys.stdout.buffer.write(render_html(json.load(sys.stdin)).encode())"
    )
    report = json.dumps(REPORTS["failed"].as_json()).encode()
    fresh = subprocess.run([sys.executable, "-c", code], input=report, capture_output=True, check=True)
    assert fresh.stdout == html(REPORTS["failed"]).encode()


@everywhere
def test_the_page_loads_nothing_and_runs_nothing(report: ParityReport) -> None:
    text = html(report)
    page = Page(text)
    assert not re.search(r"https?://", text.replace(f'<a href="{RUN_URL}" rel="noreferrer">', ""))
    assert not {"script", "link", "img", "iframe", "image", "object", "embed"} & set(page.tags)
    loads = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "data", "srcset")]
    assert all(value.startswith("#") or value == RUN_URL for value in loads)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", text))
    assert "@import" not in text
    assert not [name for name, _ in page.attributes if name.startswith("on")]


@everywhere
def test_ids_are_unique_and_references_resolve(report: ParityReport) -> None:
    """Many plots share the page: a clip path or a marker of one must not be taken for another's."""
    text = html(report)
    page = Page(text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for name, value in page.attributes if name.endswith("href") and value != RUN_URL} | set(
        re.findall(r"url\(#([^)]*)", text)
    )
    assert used <= set(ids)


def test_plots_take_colours_and_font_from_the_page() -> None:
    svg = "".join(re.findall(r"<svg.*?</svg>", html(REPORTS["failed"]), flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): ?#", svg)
    assert set(re.findall(r"var\(--([\w-]+)\)", svg)) == {"ink", "muted", "line", "hue-1", "hue-2", "bad"}
    assert "font:" not in svg
    assert ">Size on disk<" not in svg
    assert ">store.test_steps</text>" in svg, "text, not outlines"


def test_small_tables_share_a_bar() -> None:
    many = [{"relation": f"store.t{n:02}", "kind": "r", "bytes": 1024 * (n + 1), "index_bytes": 0} for n in range(20)]
    page = Page(html(replace(EMPTY, details={"sizes": many})))
    assert f"{20 - MAX_RELATIONS} smaller tables" in page.texts
    assert bytes_text(1024 * sum(range(1, 12))) in page.texts
    assert "store.t19" in page.texts
    assert "store.t00" not in page.texts


@pytest.mark.parametrize("count", [1, 2, 30, 31, 400])
def test_any_number_of_partitions_renders(count: int) -> None:
    rows = [PartitionRow(f"from_{n * 100_000:010d}", 5_000, 4_990, 10, 0, 1) for n in range(count)]
    page = Page(html(replace(EMPTY, partitions=rows)))
    assert page.tags.count("svg") == 1
    assert f"{count} in all" in page.texts


@pytest.mark.parametrize("counts", [(1, 0, 0), (3, 1, 1), (10, 12, 0), (9_999_999, 0, 0), (0, 5, 0)])
def test_odd_counts_render(counts: tuple[int, int, int]) -> None:
    Page(html(replace(EMPTY, partitions=[PartitionRow("from_0000000001", *counts, 0, 0)])))


def test_an_empty_report_renders() -> None:
    page = Page(html(EMPTY))
    assert "Not yet: nothing was checked." in page.texts
    assert "PASSED" not in page.texts
    assert page.texts.count("Nothing to show.") == 3
    page = Page(html(EMPTY_DATABASE))
    assert "The database holds no cases." in page.texts
    assert "No partition has been planned." not in page.texts


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    odd = replace(EMPTY, details={"recall": {"doc": {**old_recall(None, None, 0), "p50_ms": float("nan")}}})
    page, values = write_report(odd, tmp_path)
    assert json.loads(values.read_text(), parse_constant=pytest.fail)["details"]["recall"]["doc"]["p50_ms"] is None
    assert "nan" not in Page(page.read_text()).texts


def test_the_summary_is_the_verdict_key_numbers_and_one_line_a_finding() -> None:
    lines = summary_markdown(failed_report().as_json()).splitlines()
    assert lines[0].startswith("❌ **Not yet: cases are missing or out of date, words of test steps were lost")
    assert lines[2].startswith(r"space\_te3large\_3072 · 2026-03-04 03:12:55 UTC · recall@10, the lowest of 4 0.8")
    assert lines[2].endswith(f" · [run](<{RUN_URL}>)")
    assert len(lines) == 4 + 9
    assert [line[2] for line in lines[4:]] == list("❌❌❌❌❌❌✅✅✅")
    assert r"step\_perturbed 0.884" in lines[7]
    assert summary_markdown(passed_report().as_json()).startswith("✅ **An application can be switched over.**")
    finding = replace(failed_report().findings[0], summary="a\n# b <b>*c*</b>")
    assert r"a \# b \<b\>\*c\*\</b\>" in summary_markdown(replace(EMPTY, findings=[finding]).as_json())
    assert len(summary_markdown(old_report().as_json()).splitlines()) == 4 + 6


def test_matplotlib_is_not_paid_for_before_a_plot_is_drawn() -> None:
    code = """if True:
        import sys, json
        from qbench_dagster.adapters.report import document, render_html, summary_markdown
        report = json.load(sys.stdin)
        summary_markdown(report)
        assert "matplotlib" not in sys.modules
        render_html(report)
        assert "matplotlib" in sys.modules
        assert "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], input=json.dumps(old_report().as_json()).encode(), check=True)
