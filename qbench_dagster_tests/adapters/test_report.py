"""The report as files: what a reader must find in it, and what must never get into it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qbench_dagster.adapters.indexing import Measured
from qbench_dagster.adapters.report import render_html, summary_markdown, write_report
from qbench_dagster.adapters.report_plots import MAX_RELATIONS, bytes_text
from qbench_dagster.core import parity
from qbench_dagster.core.model import RejectReason
from qbench_dagster.core.parity import ParityReport, PartitionRow
from qbench_dagster.core.recall import VectorHealth

pytestmark = pytest.mark.filterwarnings("error")

SCRIPT = "<script>alert('1 & 2')</script>"
SPACE = "space_te3large_3072"
BOUNDS = [729, 6841, 12_388, 19_204, 150_331, 402_117, 988_210, 1_204_551, 2_511_008, 3_870_442, 5_120_700,
          7_004_213, 9_881_004, 12_640_118, 15_002_371, 18_442_090, 21_007_665, 24_881_902, 28_114_003,
          31_450_781, 34_200_118]  # fmt: skip


def measured(stored: float | None, perturbed: float | None, rows: int) -> dict[str, Any]:
    queries = 0 if stored is None else 100
    return asdict(Measured(stored, perturbed, queries, 100, 1.482, 4.611, VectorHealth(rows), fresh=queries > 0))


def details(recall: dict[str, dict[str, Any]]) -> dict[str, Any]:
    tables = {
        "landing.cases": (412_000_000, 31_000_000), "landing.rejected_rows": (65_536, 16_384),
        "staging.test_documents": (298_000_000, 9_400_000), "staging.test_steps": (388_000_000, 22_000_000),
        "staging.rejects": (81_920, 16_384), "store.test_documents": (305_000_000, 41_000_000),
        "store.test_steps": (402_000_000, 66_000_000), "store.test_preconditions": (88_000_000, 12_000_000),
        "store.test_related_issues": (21_000_000, 6_000_000), "store.change_log": (16_384, 8_192),
        f"{SPACE}.doc_embeddings": (893_000_000, 71_000_000),
        f"{SPACE}.step_embeddings": (2_420_000_000, 194_000_000),
    }  # fmt: skip
    return {
        "recall": recall,
        "target_recall": 0.95,
        "provenance": [
            {"kind": "doc", "provenance": "openai", "vectors": 11_204},
            {"kind": "doc", "provenance": "qdrant", "vectors": 81_337},
            {"kind": "step", "provenance": "openai", "vectors": 212_870},
            {"kind": "step", "provenance": "qdrant", "vectors": 60_112},
            {"kind": "step", "provenance": "faiss", "vectors": 4_121},
        ],
        "sizes": [{"relation": name, "kind": "r", "bytes": size, "index_bytes": index}
                  for name, (size, index) in tables.items()],
        "versions": {"postgresql": "18.4", "pgvector": "0.8.5", "qbench": "0.1.0", "python": "3.11.7"},
        "settings": {"embedder": "lexical", "dimensions": 3072, "index_strategy": "binary", "hnsw_m": 16,
                     "ef_search": 100, "target_recall": 0.95},
        "indexes": [
            {"kind": "doc", "strategy": "binary", "rows": 92_541, "bytes": 65_000_000,
             "seconds": 13.2, "rebuilt": True},
            {"kind": "step", "strategy": "binary", "rows": 277_103, "bytes": 180_000_000,
             "seconds": 41.7, "rebuilt": False},
        ],
        "export": "/data/testrail_data.db",
        "run_id": "0b1f2c9e-8b7b-4d1c-9a55-1d7a2f3f9f10",
        "seconds": 48.3,
    }  # fmt: skip


def partitions(lost: int = 0) -> list[PartitionRow]:
    rejected = {2: 3, 7: 41, 20: 1}
    rows = []
    for at, bound in enumerate(BOUNDS):
        source = 5_000 if at < len(BOUNDS) - 1 else 4_121
        gone = lost if at == 11 else 0
        no = rejected.get(at, 0)
        rows.append(PartitionRow(f"from_{bound:010d}", source, source - no - gone, no, gone, source * 6 + at * 137))
    return rows


REJECTS: list[dict[str, Any]] = [
    {"case_id": 12_400 + n, "reason": "blank_title", "detail": "title is '   '"} for n in range(3)
] + [
    {"case_id": 34_799_866, "reason": "too_large", "detail": "1,412,220 characters (1,048,576 at most)"},
    {"case_id": None, "reason": "invalid_id", "detail": f"id is {SCRIPT}"},
    {"case_id": 88, "reason": "of_another_version", "detail": "ünïcode – 試験"},
]  # fmt: skip
GOOD = {"doc": measured(0.998, 0.971, 92_541), "step": measured(0.994, 0.9622, 277_103)}
POOR = {"doc": measured(0.998, 0.971, 92_541), "step": measured(0.957, 0.8841, 277_103)}
NO_COUNTS = dict.fromkeys(("documents_without_vector", "steps_without_vector", "steps_without_document"), 0)


def passed_report() -> ParityReport:
    health = {kind: found["health"] for kind, found in GOOD.items()}
    return ParityReport(
        "2026-03-04T03:12:55+00:00",
        SPACE,
        [
            parity.accounting(partitions(), 104_121, [], 0),
            parity.words_kept(104_076, {}, published=104_076),
            parity.vectors_complete(NO_COUNTS, health, []),
            parity.recall_reached(GOOD, 0.95),
            parity.least_privilege([], []),
        ],
        partitions(),
        REJECTS,
        details(GOOD),
    )


def failed_report() -> ParityReport:
    health = {kind: dict(found["health"]) for kind, found in POOR.items()}
    health["step"]["zero"] = [f"{n:064x}" for n in (0xDEAD << 200, 0xBEEF << 180)]
    lost = [{"case_id": 7_004_213 + n, "wrong": "landed, but not normalised: materialise normalized_testdocs"}
            for n in range(128)]  # fmt: skip
    return ParityReport(
        "2026-03-04T03:12:55+00:00",
        SPACE,
        [
            parity.accounting(partitions(lost=128), 104_121, lost, len(lost)),
            parity.words_kept(103_948, {4711: [SCRIPT, "größe"], 34_799_866: ["logout"]}, published=103_948),
            parity.vectors_complete({**NO_COUNTS, "steps_without_vector": 2}, health,
                                    [{"case_id": 1188, "wrong": "a step has no vector"}]),
            parity.recall_reached(POOR, 0.95),
            parity.least_privilege([{"object": "store.test_steps", "privilege": "SELECT"}], []),
        ],
        partitions(lost=128),
        REJECTS,
        details(POOR),
    )  # fmt: skip


EMPTY = ParityReport("2026-03-04T03:12:55+00:00", SPACE, [], [], [], {})
EMPTY_DATABASE = ParityReport(
    "2026-03-04T03:12:55+00:00",
    SPACE,
    [parity.accounting([], 0, [], 0), parity.recall_reached({"doc": measured(None, None, 0)}, 0.95)],
    [PartitionRow("from_0000000001", 0, 0, 0, 0, 0)],
    [],
    {"recall": {"doc": measured(None, None, 0), "step": None}, "target_recall": None, "provenance": [],
     "sizes": [{"relation": "landing.cases", "kind": "r", "bytes": 0, "index_bytes": 0}], "export": None},
)  # fmt: skip
REPORTS = {
    "passed": passed_report(),
    "failed": failed_report(),
    "empty": EMPTY,
    "empty_database": EMPTY_DATABASE,
}
everywhere = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)


class Page(HTMLParser):
    """Text of a page by line, its elements, their attributes. A tag left open or closed twice is an error."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def html(report: ParityReport) -> str:
    return render_html(report.as_json())


def test_a_passed_report_says_so_first_and_shows_its_figures() -> None:
    page = Page(html(passed_report()))
    after_title = page.texts[page.texts.index("PASSED") :]
    assert after_title[:12] == [
        "PASSED", SPACE, "2026-03-04 03:12:55 UTC", "104,121", "source cases", "=", "104,076", "published",
        "+", "45", "rejected", "All 5 invariants hold.",
    ]  # fmt: skip
    assert "FAILED" not in page.texts
    assert page.texts.count("✓ holds") == 5
    for shown in (
        "92,541",
        "81,337",
        "0.9622",
        "4.611",
        "2.3 GB",
        "18.4",
        "0.8.5",
        "target 0.95",
        "28.1M",
        "3072",
    ):
        assert any(shown in text for text in page.texts), shown
    assert page.tags.count("svg") == 4


def test_a_failed_report_lists_what_fails_first_with_its_offenders() -> None:
    page = Page(html(failed_report()))
    assert "FAILED" in page.texts
    assert "PASSED" not in page.texts
    start = page.texts.index("≠")
    assert page.texts[start - 2 : start + 7] == [
        "104,121", "source cases", "≠", "103,948", "published", "+", "45", "rejected", "128",
    ]  # fmt: skip
    marks = [text for text in page.texts if text in ("✓ holds", "✗ broken")]
    assert marks == ["✗ broken"] * 5
    assert "7004213" in page.texts, "ids are copied into queries: no commas"
    assert "34799866" in page.texts
    for shown in (f"{0xDEAD << 200:064x}", "a step has no vector", "SELECT", "0.8841", "-128", "logout"):
        assert shown in page.texts, shown


def test_findings_that_hold_come_after_those_that_do_not() -> None:
    good, bad = passed_report(), failed_report()
    report = replace(good, findings=[*good.findings[:3], bad.findings[3], good.findings[4]])
    page = Page(html(report))
    assert "1 of 5 invariants does not hold:" in page.text
    ids = [value for name, value in page.attributes if name == "id"]
    assert ids[0] == "recall_reaches_target"
    assert ("href", "#recall_reaches_target") in page.attributes


def test_markup_in_a_case_is_text() -> None:
    report = failed_report()
    report = replace(report, space=SCRIPT, details={
        **report.details, "export": SCRIPT, "settings": {SCRIPT: SCRIPT},
        "sizes": [{"relation": f"{SCRIPT} $x^$", "kind": "r", "bytes": 5, "index_bytes": 1}],
        "provenance": [{"kind": "doc", "provenance": SCRIPT, "vectors": 1}],
    }, partitions=[PartitionRow(SCRIPT, 1, 1, 0, 0, 0)])  # fmt: skip
    text = html(report)
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text.lower()
    assert f"{SCRIPT}, größe" in page.texts, "an offender"
    assert f"id is {SCRIPT}" in page.texts, "a reject"
    assert f"{SCRIPT} $x^$" in page.texts, "a label of a plot"


def test_offenders_that_were_cut_say_how_many_there_are() -> None:
    page = Page(html(failed_report()))
    cut = [text for text in page.texts if "showing" in text]
    assert cut == [", showing 100 of 128", ", showing 3 of 4"]


def test_rejects_carry_their_reason_and_what_to_do() -> None:
    page = Page(html(passed_report()))
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
    assert again == json.loads(json.dumps(report.as_json()))
    assert next(iter(again)) == "passed"
    assert render_html(again) == page.read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, values = write_report(passed_report(), tmp_path)
    before = page.read_bytes(), values.read_bytes()

    whole = Path.write_text

    def full(self: Path, data: str, **how: Any) -> int:
        if "json" not in self.name:
            return whole(self, data, **how)
        whole(self, data[:1000], **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(failed_report(), tmp_path)
    assert (page.read_bytes(), values.read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2


@everywhere
def test_equal_reports_give_equal_bytes(report: ParityReport, tmp_path: Path) -> None:
    """Also after a round through jsonb, which keeps no order of keys, and in another process."""

    def jumbled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: jumbled(value[name]) for name in reversed(value)}
        return [jumbled(one) for one in value] if isinstance(value, list | tuple) else value

    page, values = write_report(report, tmp_path / "a")
    other_page, other_values = write_report(jumbled(report.as_json()), tmp_path / "b")
    assert page.read_bytes() == other_page.read_bytes()
    assert values.read_bytes() == other_values.read_bytes()
    code = (
        "import json, sys; from qbench_dagster.adapters.report import render_html;"
        "sys.stdout.buffer.write(render_html(json.load(sys.stdin)).encode())"
    )
    fresh = subprocess.run([sys.executable, "-c", code], input=values.read_bytes(), capture_output=True, check=True)
    assert fresh.stdout == page.read_bytes()


@everywhere
def test_the_page_loads_nothing_and_runs_nothing(report: ParityReport) -> None:
    text = html(report)
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert not {"script", "link", "img", "iframe", "image", "object", "embed"} & set(page.tags)
    loads = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "data", "srcset")]
    assert all(value.startswith("#") for value in loads)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", text))
    assert "@import" not in text
    assert not [name for name, _ in page.attributes if name.startswith("on")]


@everywhere
def test_ids_are_unique_and_references_resolve(report: ParityReport) -> None:
    """Four plots share the page: a clip path or a marker of one must not be taken for another's."""
    text = html(report)
    page = Page(text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for name, value in page.attributes if name.endswith("href")} | set(
        re.findall(r"url\(#([^)]*)", text)
    )
    assert used <= set(ids)


def test_plots_take_colours_and_font_from_the_page() -> None:
    svg = "".join(re.findall(r"<svg.*?</svg>", html(failed_report()), flags=re.DOTALL))
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
    assert "No invariant was evaluated." in page.texts
    assert page.texts.count("Nothing to show.") == 4
    page = Page(html(EMPTY_DATABASE))
    assert "The database holds no cases." in page.texts
    assert "No partition has been planned." not in page.texts


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    odd = replace(EMPTY, details={"recall": {"doc": {**measured(None, None, 0), "p50_ms": float("nan")}}})
    page, values = write_report(odd, tmp_path)
    assert json.loads(values.read_text(), parse_constant=pytest.fail)["details"]["recall"]["doc"]["p50_ms"] is None
    assert "nan" not in Page(page.read_text()).texts


def test_the_summary_is_one_line_a_finding() -> None:
    lines = summary_markdown(failed_report().as_json()).splitlines()
    assert lines[0] == r"**FAILED** in space\_te3large\_3072, 2026-03-04 03:12:55 UTC"
    assert len(lines) == 2 + 5
    assert all(line.startswith("- ❌ **") for line in lines[2:])
    assert r"step\_perturbed 0.884" in lines[5]
    assert summary_markdown(passed_report().as_json()).startswith("**PASSED**")
    finding = replace(failed_report().findings[0], summary="a\n# b <b>*c*</b>")
    assert r"a \# b \<b\>\*c\*\</b\>" in summary_markdown(replace(EMPTY, findings=[finding]).as_json())


def test_matplotlib_is_not_paid_for_before_a_plot_is_drawn() -> None:
    code = """if True:
        import sys, json
        from qbench_dagster.adapters.report import render_html, summary_markdown
        report = json.load(sys.stdin)
        summary_markdown(report)
        assert "matplotlib" not in sys.modules
        render_html(report)
        assert "matplotlib" in sys.modules
        assert "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], input=json.dumps(passed_report().as_json()).encode(), check=True)
