"""The report's plots of the data: cases by partition, vectors by provenance, sizes on disk.

Those of searches are `report_search_plots.py`; how a plot becomes SVG is `report_svg.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from qbench_dagster.adapters.report_svg import BAD, HUES, INK, canvas, grid, legend, row_text, short, text, to_svg

KINDS = {"doc": "documents", "step": "steps"}
MAX_RELATIONS = 9
_LABELLED_BARS = 30
"""More bars than this are too narrow to carry a figure."""
_SPACED_BARS = 60
"""More bars than this are drawn as one shape: their gaps would flicker."""


def plots(partitions: Sequence[Mapping[str, Any]], details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Title, legend, note and SVG of each plot; the SVG is None where there is nothing to draw."""
    return [
        {
            "title": "Cases by partition",
            "legend": legend("published", "rejected", *(["unaccounted for"] if any(_lost(partitions)) else [])),
            "note": "In order of case id."
            + " A figure above a bar counts the cases that are not published." * (len(partitions) <= _LABELLED_BARS),
            "svg": _partitions(partitions) if any(row["source_cases"] for row in partitions) else None,
        },
        {
            "title": "Vectors by provenance",
            "legend": legend(*KINDS.values()),
            "note": "One vector for each distinct text.",
            "svg": _bars("vectors", _provenance(details), _counts),
        },
        {
            "title": "Size on disk",
            "legend": legend("rows", "indexes"),
            "note": "",
            "svg": _bars("sizes", _sizes(details), lambda parts: bytes_text(sum(parts))),
        },
    ]


def bytes_text(count: float) -> str:
    """A size for a reader, as pg_size_pretty has it: powers of 1,024."""
    units = iter(("bytes", "kB", "MB", "GB"))
    unit = next(units)
    while abs(count) >= 1024:
        count /= 1024
        unit = next(units, "TB")
        if unit == "TB":
            break
    return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:,.1f} {unit}"


def _counts(parts: Sequence[float]) -> str:
    return ", ".join(f"{count:,.0f} {kind}" for count, kind in zip(parts, KINDS.values(), strict=True) if count)


def _provenance(details: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    found: dict[str, dict[str, int]] = {}
    for row in details.get("provenance") or []:
        found.setdefault(row["provenance"], {})[row["kind"]] = row["vectors"]
    return [(name, [float(by_kind.get(kind, 0)) for kind in KINDS]) for name, by_kind in sorted(found.items())]


def _sizes(details: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    """Bytes of rows (TOAST included) and of indexes, largest first, the tail in one bar."""
    rows = sorted(details.get("sizes") or [], key=lambda row: (-row["bytes"], row["relation"]))
    sizes = [(row["relation"], [float(row["bytes"] - row["index_bytes"]), float(row["index_bytes"])]) for row in rows]
    tail = sizes[MAX_RELATIONS:]
    if len(tail) < 2:
        return sizes
    sums = [sum(parts) for parts in zip(*(values for _, values in tail), strict=True)]
    return [*sizes[:MAX_RELATIONS], (f"{len(tail)} smaller tables", sums)]


def unaccounted(row: Mapping[str, Any]) -> int:
    """Source cases of a partition that are neither published nor rejected; negative: too many are."""
    source: int = row["source_cases"] + row.get("brought_back", 0)
    return source - int(row["published"]) - int(row["rejected"])


def _lost(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [max(unaccounted(row), 0) for row in rows]


def _partitions(rows: Sequence[Mapping[str, Any]]) -> Markup:
    figure, axes = canvas(2.9, (0.1, 0.1, 0.89, 0.87))
    lost = _lost(rows)
    layers = [[row["published"] for row in rows], [row["rejected"] for row in rows], lost]
    tops = [0.0] * len(rows)
    for heights, hue in zip(layers, HUES, strict=True):
        below = tops
        tops = [low + height for low, height in zip(below, heights, strict=True)]
        if len(rows) <= _SPACED_BARS:
            axes.bar(range(len(rows)), heights, 0.8, below, color=hue, linewidth=0)
        else:
            edges = [at - 0.5 for at in range(len(rows) + 1)]
            axes.stairs(tops, edges, baseline=below, fill=True, color=hue, linewidth=0)
    top = max(tops)
    if len(rows) <= _LABELLED_BARS:
        for at, row in enumerate(rows):
            if missing := lost[at] + row["rejected"]:
                hue = BAD if lost[at] else INK
                text(axes, (at, tops[at] + top * 0.015), short(missing), color=hue, ha="center", va="bottom")
    decade = 10 ** math.floor(math.log10(top))
    step = max(next(int(decade * part) for part in (0.25, 0.5, 1, 2) if top / (decade * part) <= 5), 1)
    grid(axes, [(height, short(height)) for height in range(0, int(top) + 1, step)])
    for at in range(0, len(rows), math.ceil(len(rows) / 7)):
        lower = str(rows[at]["key"]).removeprefix("from_")
        label = short(int(lower)) if lower.isdecimal() else lower
        text(axes, (at, -0.03), label, ha="center", va="top", transform=axes.get_xaxis_transform())
    axes.set_xlim(-0.6, max(len(rows), 4) - 0.4)
    axes.set_ylim(0, top * 1.08)
    sums = [sum(layer) for layer in layers]
    alt = f"{len(rows):,} partitions: {sums[0]:,} cases published, {sums[1]:,} rejected, {sums[2]:,} unaccounted for"
    return to_svg("partitions", figure, alt)


def _bars(
    name: str, rows: Sequence[tuple[str, Sequence[float]]], told: Callable[[Sequence[float]], str]
) -> Markup | None:
    """Horizontal stacked bars, each below its label and what `told` says of its parts."""
    if not rows:
        return None
    figure, axes = canvas(0.36 * len(rows) + 0.1)
    longest = max(sum(values) for _, values in rows) or 1
    for at, (label, values) in enumerate(rows):
        row_text(axes, -at, (0, longest), (label, told(values)))
        left = 0.0
        for value, hue in zip(values, HUES, strict=False):
            axes.barh(-at, value, 0.28, left, color=hue, linewidth=0)
            left += value
    axes.set_xlim(0, longest)
    axes.set_ylim(0.7 - len(rows), 0.8)
    return to_svg(name, figure, "; ".join(f"{label}: {told(values)}" for label, values in rows))
