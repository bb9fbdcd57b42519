"""The plots of docs/benchmark-search.md as SVG files, from stored results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Results = Mapping[str, Any]
COLOURS = {
    "qbench (binary + rerank)": "#2a6fdb",
    "pgvector halfvec HNSW": "#8a5fc7",
    "faiss-cpu HNSW": "#c77d2a",
    "Qdrant": "#c23b55",
    "Qdrant, binary": "#e08fa0",
    "exact": "#6b7280",
}
STYLE = {"font.size": 9, "svg.hashsalt": "qbench", "svg.fonttype": "none", "axes.spines.top": False,
         "axes.spines.right": False, "axes.axisbelow": True}  # fmt: skip


def draw(results: Results, page: Path) -> list[tuple[str, str]]:
    """Write the plots there are results for beside the page; (file name, what it shows)."""
    wanted: list[tuple[str, str, Callable[[Axes, Results], None], bool]] = [
        (f"{page.stem}-curve.svg", "Recall@10 against the median latency, one client, common set", _curves,
         bool(results["common"])),
        (f"{page.stem}-build.svg", "Seconds to store and index, and size of the index, common set", _builds,
         bool(results["common"])),
        (f"{page.stem}-filters.svg", "95th percentile of a search, by filter", _filters,
         bool(results["large"])),
    ]  # fmt: skip
    drawn = []
    with mpl.rc_context(STYLE):
        for name, title, plot, there in wanted:
            if there:
                figure = Figure(figsize=(7.2, 3.4), layout="constrained")
                plot(figure.add_subplot(), results)
                figure.savefig(page.with_name(name), metadata={"Date": None})
                drawn.append((name, title))
    return drawn


def _colour(name: str) -> str:
    return COLOURS.get(name, "#111827")


def _curves(axes: Axes, results: Results) -> None:
    for engine in results["common"]["engines"]:
        points = engine["curve"]
        if points:
            axes.plot(
                [timed["p50_ms"] for _, timed in points], [timed["recall"] for _, timed in points],
                marker="o", markersize=3, linewidth=1.4, color=_colour(engine["name"]), label=engine["name"],
            )  # fmt: skip
    axes.axhline(results["target_recall"], color="#6b7280", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("median latency, ms")
    axes.set_ylabel("recall@10")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)


def _builds(axes: Axes, results: Results) -> None:
    engines = [each for each in results["common"]["engines"] if each["built"]["index_bytes"]]
    places = range(len(engines))
    loads = [each["built"]["load_s"] for each in engines]
    axes.barh(places, loads, color="#cbd5e1", label="stored")
    builds = axes.barh(
        places, [each["built"]["build_s"] for each in engines], left=loads,
        color=[_colour(each["name"]) for each in engines],
    )  # fmt: skip
    axes.bar_label(builds, [f"  {_bytes_a_row(each):,.0f} B a vector" for each in engines], fontsize=8)
    axes.set_yticks(places, [each["name"] for each in engines])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlabel("seconds: stored (grey) and indexed")


def _filters(axes: Axes, results: Results) -> None:
    timed: Mapping[str, Mapping[str, float]] = {"none": results["large"]["result"]["single"],
                                                **results["large"]["result"]["filtered"]}  # fmt: skip
    for percentile, width, colour in (("p95_ms", 0.7, "#a9c5f2"), ("p50_ms", 0.4, "#2a6fdb")):
        axes.bar(list(timed), [each[percentile] for each in timed.values()], width, color=colour,
                 label=percentile.removesuffix("_ms"))  # fmt: skip
    axes.axhline(25, color="#6b7280", linewidth=0.8, linestyle=":")
    axes.set_ylabel("ms, one client")
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(frameon=False, fontsize=8)


def _bytes_a_row(engine: Mapping[str, Any]) -> float:
    return float(engine["built"]["index_bytes"] / engine["rows"])


def engine_named(engines: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """The results of one engine, None where it was left out."""
    return next((each for each in engines if each["name"] == name), None)
