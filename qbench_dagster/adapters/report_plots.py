"""The parity report's plots, as SVG to be set into its page. What they show is in the report's JSON.

matplotlib draws them; the page's style sheet colours them and gives them its font, so they follow light and
dark. Equal figures give equal bytes. pyplot is not used: it keeps figures, and state, in the process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"doc": "documents", "step": "steps"}
_QUERIES = {"stored": "stored texts", "perturbed": "unseen texts"}
MAX_RELATIONS = 9
_LABELLED_BARS = 30
"""More bars than this are too narrow to carry a figure."""
_SPACED_BARS = 60
"""More bars than this are drawn as one shape: their gaps would flicker."""
_WIDTH = 4.4
"""Inches. A phone shows this at about its own size, so its text stays readable."""

# matplotlib wants colours: these stand for variables of the style sheet.
_INK, _MUTED, _LINE, _HUE_1, _HUE_2, _BAD = (f"#{n:02x}{n:02x}{n:02x}" for n in range(1, 7))
_VARIABLES = {_INK: "ink", _MUTED: "muted", _LINE: "line", _HUE_1: "hue-1", _HUE_2: "hue-2", _BAD: "bad"}
_HUES = (_HUE_1, _HUE_2, _BAD)


def plots(partitions: Sequence[Mapping[str, Any]], details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Title, legend, note and SVG of each plot; the SVG is None where there is nothing to draw."""
    recall = {
        f"{KINDS.get(kind, kind)}, {queries}": float(found[name])
        for kind, found in (details.get("recall") or {}).items()
        for name, queries in _QUERIES.items()
        if found and found.get(name) is not None
    }
    return [
        {
            "title": "Cases by partition",
            "legend": _legend("published", "rejected", *(["unaccounted for"] if any(_lost(partitions)) else [])),
            "note": "In order of case id."
            + " A figure above a bar counts the cases that are not published." * (len(partitions) <= _LABELLED_BARS),
            "svg": _partitions(partitions) if any(row["source_cases"] for row in partitions) else None,
        },
        {
            "title": "Vectors by provenance",
            "legend": _legend(*KINDS.values()),
            "note": "One vector for each distinct text.",
            "svg": _bars("vectors", _provenance(details), _counts),
        },
        {
            "title": "recall@10 of the index",
            "legend": [],
            "note": "Against exact search. Queries: vectors of the table (stored) or near them (unseen).",
            "svg": _recall(recall, details.get("target_recall")) if recall else None,
        },
        {
            "title": "Size on disk",
            "legend": _legend("rows", "indexes"),
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


def _legend(*labels: str) -> list[tuple[str, str]]:
    return list(zip(labels, (_VARIABLES[hue] for hue in _HUES), strict=False))


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


def _lost(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [max(row["source_cases"] - row["published"] - row["rejected"], 0) for row in rows]


def _partitions(rows: Sequence[Mapping[str, Any]]) -> Markup:
    figure, axes = _canvas(2.9, (0.1, 0.1, 0.89, 0.87))
    lost = _lost(rows)
    layers = [[row["published"] for row in rows], [row["rejected"] for row in rows], lost]
    tops = [0.0] * len(rows)
    for heights, hue in zip(layers, _HUES, strict=True):
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
                hue = _BAD if lost[at] else _INK
                _text(axes, (at, tops[at] + top * 0.015), _short(missing), color=hue, ha="center", va="bottom")
    decade = 10 ** math.floor(math.log10(top))
    step = max(next(int(decade * part) for part in (0.25, 0.5, 1, 2) if top / (decade * part) <= 5), 1)
    for height in range(0, int(top) + 1, step):
        axes.axhline(height, color=_LINE, linewidth=0.7, zorder=0)
        place = axes.get_yaxis_transform()
        _text(axes, (-0.02, height), _short(height), ha="right", va="center", transform=place)
    for at in range(0, len(rows), math.ceil(len(rows) / 7)):
        lower = str(rows[at]["key"]).removeprefix("from_")
        label = _short(int(lower)) if lower.isdecimal() else lower
        _text(axes, (at, -0.03), label, ha="center", va="top", transform=axes.get_xaxis_transform())
    axes.set_xlim(-0.6, max(len(rows), 4) - 0.4)
    axes.set_ylim(0, top * 1.08)
    return _svg("partitions", figure)


def _recall(shares: Mapping[str, float], target: float | None) -> Markup:
    """A dot for each kind of query on a scale that ends at 1 and begins below the target and the lowest."""
    figure, axes = _canvas(0.42 * len(shares) + 0.35)
    low = max(math.floor(min([*shares.values(), target or 1]) * 20 - 0.5) / 20, 0)
    span = 1 - low
    for at, (label, share) in enumerate(shares.items()):
        short = target is not None and share < target
        hue = _BAD if short else _HUE_1
        _row_text(axes, -at, (low, 1), (label, f"{share:.4g}"), _BAD if short else _INK)
        axes.plot([low, 1], [-at, -at], color=_LINE, linewidth=1.5, zorder=1)
        axes.plot([low, share], [-at, -at], color=hue, linewidth=3, zorder=2)
        axes.plot([share], [-at], "o", color=hue, markersize=8, zorder=3)
    below = 0.75 - len(shares)
    ends = [(low, "left"), (1.0, "right")]
    if target is not None:
        axes.plot([target, target], [below + 0.1, 0.2], color=_INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=4)
        side = "center" if 1 - target > span * 0.1 else "right"
        _text(axes, (target, below - 0.05), f"target {target:g}", color=_INK, ha=side, va="top")
        ends = [(at, side) for at, side in ends if abs(at - target) > span * 0.18]
    for value, side in ends:
        _text(axes, (value, below - 0.05), f"{value:g}", ha=side, va="top")
    axes.set_xlim(low - span * 0.015, 1 + span * 0.025)
    axes.set_ylim(below - 0.5, 0.75)
    return _svg("recall", figure)


def _bars(
    name: str, rows: Sequence[tuple[str, Sequence[float]]], text: Callable[[Sequence[float]], str]
) -> Markup | None:
    """Horizontal stacked bars, each below its label and what `text` says of its parts."""
    if not rows:
        return None
    figure, axes = _canvas(0.36 * len(rows) + 0.1)
    longest = max(sum(values) for _, values in rows) or 1
    for at, (label, values) in enumerate(rows):
        _row_text(axes, -at, (0, longest), (label, text(values)))
        left = 0.0
        for value, hue in zip(values, _HUES, strict=False):
            axes.barh(-at, value, 0.28, left, color=hue, linewidth=0)
            left += value
    axes.set_xlim(0, longest)
    axes.set_ylim(0.7 - len(rows), 0.8)
    return _svg(name, figure)


def _canvas(height: float, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> tuple[Figure, Axes]:
    """A figure `height` inches high with one bare pair of axes; `box` is left, bottom, width, height."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - 0.5 s and 60 MB, for reports only

    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes(box)
    axes.set_axis_off()
    return figure, axes


def _row_text(axes: Axes, y: float, ends: tuple[float, float], texts: tuple[str, str], hue: str = _INK) -> None:
    """A label and a value above a row, at its two ends."""
    _text(axes, (ends[0], y + 0.25), texts[0], size=9.5, ha="left", va="bottom", color=_INK)
    _text(axes, (ends[1], y + 0.25), texts[1], size=9.5, ha="right", va="bottom", color=hue)


def _text(axes: Axes, at: tuple[float, float], text: str, *, size: float = 8.5, **how: Any) -> None:
    """Text of any content: a `$` in the name of a table begins no formula."""
    axes.text(*at, text, size=size, parse_math=False, **{"color": _MUTED, **how})


def _short(count: float) -> str:
    """A count in up to five characters: 729, 12.5k, 34.8M."""
    if count < 10_000:
        return f"{count:,.0f}"
    return f"{count / 1e6:.3g}M" if count >= 999_500 else f"{count / 1e3:.3g}k"


def _svg(name: str, figure: Figure) -> Markup:
    """The figure as an element of a page that holds others: its own ids, no colours, no font."""
    from matplotlib import rc_context  # noqa: PLC0415

    target = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(target, format="svg", transparent=True, metadata=nothing)
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg).replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r"font: (?:\w+ )?([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for hue, variable in _VARIABLES.items():
        svg = svg.replace(hue, f"var(--{variable})")
    return Markup(svg)  # noqa: S704 - matplotlib escaped the texts
