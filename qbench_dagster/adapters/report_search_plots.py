"""The report's plots of searches: what they find, how long they take, and what the index was chosen by.

Each function returns title, legend, note and SVG, as the page shows them, or None where there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from qbench_dagster.adapters.report_plots import KINDS
from qbench_dagster.adapters.report_svg import (
    BAD,
    HUE_1,
    HUE_2,
    INK,
    LINE,
    MUTED,
    canvas,
    dashed,
    grid,
    legend,
    log_ticks,
    row_text,
    share_ticks,
    text,
    to_svg,
)
from qbench_dagster.adapters.report_text import label_of

Plot = dict[str, Any]
_BOX = (0.105, 0.17, 0.865, 0.81)
_MS_FLOOR = 0.01
"""Milliseconds. A latency of 0 has no logarithm."""
_LABEL = 38
"""Characters of a label that leave room for the value beside it."""


def agreement_plot(name: str, title: str, rows: Sequence[Mapping[str, Any]]) -> Plot | None:
    """A row for each comparison: mean, interval, spread, threshold. `rows` have label and mean, the rest if known."""
    if not rows:
        return None
    figure, axes = canvas(0.45 * len(rows) + 0.35)
    seen = [float(row[key]) for row in rows for key in ("mean", "low", "p5", "threshold") if row.get(key) is not None]
    low = max(math.floor(min([*seen, 0.99]) * 20 - 0.2) / 20, 0)
    span = 1 - low
    for at, row in enumerate(rows):
        mean, threshold = float(row["mean"]), row.get("threshold")
        hue = BAD if row.get("passed") is False or (threshold is not None and mean < threshold) else HUE_1
        row_text(axes, -at, (low, 1), (shortened(row["label"]), interval_text(row)), BAD if hue is BAD else INK)
        axes.plot([low, 1], [-at, -at], color=LINE, linewidth=1.2, zorder=1)
        if row.get("p5") is not None:
            axes.plot([row["p5"], row["median"]], [-at, -at], color=hue, linewidth=1.6, zorder=2)
        if row.get("low") is not None:
            axes.plot([row["low"], row["high"]], [-at, -at], color=hue, linewidth=5, solid_capstyle="butt", zorder=3)
        axes.plot([mean], [-at], "o", color=hue, markersize=7.5, zorder=4, clip_on=False)
        if threshold is not None:
            axes.plot([threshold, threshold], [-at - 0.2, -at + 0.16], color=INK, linewidth=1.4, zorder=5)
    for at_share, label in share_ticks(low):
        text(axes, (at_share, 0.62 - len(rows)), label, ha="center", va="top")
    axes.set_xlim(low, 1 + span * 0.012)
    axes.set_ylim(0.3 - len(rows), 0.75)
    told = "; ".join(f"{row['label']} {interval_text(row)}" for row in rows)
    return {
        "title": title,
        "legend": [],
        "note": "Dot: mean. Thick: its 95 % interval. Thin: 5th percentile to median. Upright: what is asked for."
        if any(row.get("low") is not None for row in rows)
        else "Dot: mean. Upright: what is asked for.",
        "svg": to_svg(name, figure, told),
    }


def interval_text(row: Mapping[str, Any]) -> str:
    """A mean and its interval: 0.981 (0.974–0.987)."""
    told = f"{row['mean']:.3f}"
    return f"{told} ({row['low']:.3f}–{row['high']:.3f})" if row.get("low") is not None else told


def latency_plot(comparisons: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Both sides' latencies of each comparison as a box each, on one logarithmic scale."""
    rows: list[tuple[Mapping[str, Any], list[list[float]]]] = []
    for comparison in comparisons:
        boxes = _boxes(comparison)
        if boxes and boxes not in [other for _, other in rows]:  # comparisons of the same searches are timed once
            rows.append((comparison, boxes))
    if not rows:
        return None
    figure, axes = canvas(0.56 * len(rows) + 0.35)
    values = [value for _, boxes in rows for box in boxes for value in box]
    left, right = math.log10(min(values) * 0.8), math.log10(max(values) * 1.25)
    ticks = log_ticks(min(values) * 0.8, max(values) * 1.25)
    for at_ms, label in ticks:
        axes.plot([at_ms, at_ms], [0.5 - len(rows), 0.2], color=LINE, linewidth=0.7, zorder=0)
        text(axes, (at_ms, 0.42 - len(rows)), f"{label} ms" if at_ms == ticks[-1][0] else label, ha="center", va="top")
    for at, (comparison, boxes) in enumerate(rows):
        medians = " / ".join(f"{box[2]:.3g}" for box in boxes)
        row_text(axes, -at, (left, right), (shortened(label_of(comparison)), f"{medians} ms"))
        for side, (p5, q1, median, q3, p95) in enumerate(boxes):
            y, hue = -at + 0.07 - 0.2 * side, (HUE_1, HUE_2)[side]
            axes.plot([math.log10(p5), math.log10(p95)], [y, y], color=hue, linewidth=1.2, zorder=2)
            axes.barh(y, math.log10(q3 / q1), 0.14, math.log10(q1), color=hue, linewidth=0, zorder=3)
            axes.plot([math.log10(median)] * 2, [y - 0.1, y + 0.1], color=INK, linewidth=1.6, zorder=4)
    axes.set_xlim(left, right)
    axes.set_ylim(0.1 - len(rows), 0.75)
    told = "; ".join(
        f"{label_of(comparison)}: " + ", ".join(f"median {box[2]:.3g} ms, p95 {box[4]:.3g} ms" for box in boxes)
        for comparison, boxes in rows
    )
    both = any(len(boxes) > 1 for _, boxes in rows)
    return {
        "title": "Latency of a search",
        "legend": legend("here", "compared with") if both else [],
        "note": "Box: the middle half of the queries; line: 5th to 95th percentile; upright: median, and at the right.",
        "svg": to_svg("latency", figure, told),
    }


def _boxes(comparison: Mapping[str, Any]) -> list[list[float]]:
    """5th, 25th, 50th, 75th and 95th percentile of each side that was timed, ours first."""
    import numpy as np  # noqa: PLC0415

    sides = comparison.get("latencies_ms") or {}
    timed = [sides[side] for side in ("ours", "theirs") if sides.get(side)]
    if not sides.get("ours"):
        return []
    return [[max(float(value), _MS_FLOOR) for value in np.percentile(side, [5, 25, 50, 75, 95])] for side in timed]


def shortened(label: str) -> str:
    """A label that does not run into the value beside it."""
    return label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"


def curve_plot(index: Mapping[str, Any], target: float | None) -> Plot | None:
    """recall@10 and @100 against ef_search, measured on the whole index, with the target and the point in use."""
    points = sorted(index.get("curve") or [], key=lambda point: float(point["ef_search"]))
    points = [point for point in points if point["ef_search"] and point.get("recall_10") is not None]
    if not points:
        return None
    kind, scale = KINDS.get(index["kind"], index["kind"]), "probes" if index["strategy"] == "ivfflat" else "ef_search"
    figure, axes = canvas(2.5, _BOX)
    xs = [math.log10(point["ef_search"]) for point in points]
    lows = [point.get("recall_10_low") for point in points]
    tens, hundreds = [point["recall_10"] for point in points], [point.get("recall_100") for point in points]
    seen = [share for share in [*lows, *tens, *hundreds, target] if share is not None]
    low = _floor(min(seen))
    grid(axes, share_ticks(low))
    for at, point in _apart(xs, points):
        text(axes, (at, -0.03), f"{point['ef_search']:g}", ha="center", va="top", transform=axes.get_xaxis_transform())
    text(axes, (0.5, -0.125), scale, ha="center", va="top", transform=axes.transAxes)
    if all(share is not None for share in lows):
        axes.fill_between(xs, lows, tens, color=HUE_1, alpha=0.18, linewidth=0, zorder=1)
    if all(share is not None for share in hundreds):
        axes.plot(xs, hundreds, color=HUE_2, linewidth=1.8, marker="o", markersize=4, zorder=2)
    axes.plot(xs, tens, color=HUE_1, linewidth=2.2, marker="o", markersize=4.5, zorder=3)
    if target is not None:
        dashed(axes, target)
        text(axes, (0.995, target), f"target {target:g}", color=INK, ha="right", va="bottom",
             transform=axes.get_yaxis_transform())  # fmt: skip
    chosen = next((point for point in points if point["ef_search"] == index.get("ef_search")), None)
    if chosen:
        at = math.log10(chosen["ef_search"])
        axes.plot([at], [chosen["recall_10"]], "o", color=HUE_1, markersize=11, fillstyle="none", markeredgewidth=1.8)
    axes.set_xlim(min(xs) - 0.06, max(xs) + 0.06)
    axes.set_ylim(low, 1 + (1 - low) * 0.03)
    used = f" Circled: in use, {scale} {chosen['ef_search']:g}, recall@10 {chosen['recall_10']:.3f}." if chosen else ""
    listed = ", ".join(f"{point['ef_search']:g}: {point['recall_10']:.3f}" for point in points)
    return {
        "title": f"{kind.capitalize()}: recall against {scale}",
        "legend": legend("recall@10", "recall@100"),
        "note": "Against exact search, over the whole index. Band: lower end of the 95 % interval." + used,
        "svg": to_svg(f"curve-{index['kind']}", figure, f"{kind}, recall@10 by {scale}: {listed}. {used}"),
    }


def advice_plot(index: Mapping[str, Any]) -> Plot | None:
    """What the advisor measured of each strategy on its sample: recall@10 against latency, the chosen one in colour."""
    advice = index.get("advice") or {}
    lines = [(entry, _advised(entry)) for entry in advice.get("strategies") or []]
    lines = [(entry, points) for entry, points in lines if points]
    if len(lines) < 2:  # nothing to compare it with
        return None
    kind = KINDS.get(index["kind"], index["kind"])
    target, limit = advice.get("target_recall"), advice.get("target_p95_ms")
    figure, axes = canvas(2.5, _BOX)
    times = [ms for _, points in lines for ms, _ in points]
    left, right = min(times) * 0.75, max(times) * 1.35
    low = _floor(min([share for _, points in lines for _, share in points] + ([target] if target else [])))
    grid(axes, share_ticks(low))
    grid(axes, log_ticks(left, right), vertical=True)
    text(axes, (0.5, -0.125), "p95 of a search on the sample, ms", ha="center", va="top", transform=axes.transAxes)
    span, wide = 1 - low, math.log10(right / left) + 0.22
    taken = [
        (x - 0.012, x + 0.012, y - 0.02, y + 0.02)
        for _, points in lines
        for ms, found in (*points, *(_between(*pair) for pair in pairwise(points)))
        for x, y in [((math.log10(ms) - math.log10(left)) / wide, (found - low) / span)]
    ]
    for entry, points in sorted(lines, key=lambda line: (line[0]["strategy"] != advice.get("chosen"), -line[1][-1][1])):
        chosen = entry["strategy"] == advice.get("chosen")
        hue = HUE_1 if chosen else MUTED
        xs, ys = [math.log10(ms) for ms, _ in points], [share for _, share in points]
        axes.plot(xs, ys, color=hue, linewidth=2.4 if chosen else 1.2, marker="o", markersize=5 if chosen else 3.5,
                  zorder=4 if chosen else 2, clip_on=False)  # fmt: skip
        # Beside its last point where that is free, else below it. In shares of the plot; a letter is 0.021 wide.
        x, y = (xs[-1] - math.log10(left)) / wide + 0.02, (ys[-1] - low) / span
        end = x + 0.021 * len(entry["strategy"])
        tops = [y + 0.037, *(y - 0.03 - 0.01 * n for n in range(100))]
        y = next(top for top in tops if not any(
            x < right_of and left_of < end and top - 0.075 < above and below < top
            for left_of, right_of, below, above in taken
        ) or top < 0)  # fmt: skip
        taken.append((x, end, y - 0.075, y))
        text(axes, (x, y), entry["strategy"], color=HUE_1 if chosen else INK, size=9.5, ha="left", va="top",
             fontweight="bold" if chosen else "normal", transform=axes.transAxes)  # fmt: skip
    if target:
        dashed(axes, target)
        text(axes, (0.995, target), f"target {target:g}", color=INK, ha="right", va="bottom",
             transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_xlim(math.log10(left), math.log10(left) + wide)
    axes.set_ylim(low, 1)
    told = ", ".join(f"{entry['strategy']} {points[-1][1]:.3f} at {points[-1][0]:.3g} ms" for entry, points in lines)
    asked = f" Asked for: p95 of {limit:g} ms over all rows." if limit else ""
    return {
        "title": f"{kind.capitalize()}: what the advisor measured",
        "legend": [],
        "note": f"On a sample of {advice.get('sample') or 0:,} vectors; a dot for each ef_search.{asked}",
        "svg": to_svg(f"advice-{index['kind']}", figure, f"{kind}, best recall@10 of each strategy: {told}"),
    }


def _between(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The middle of a line between two points (ms, recall) on the logarithmic scale."""
    return math.sqrt(one[0] * other[0]), (one[1] + other[1]) / 2


def _advised(entry: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(p95 in ms, recall@10) by rising recall; a strategy without a curve is one point."""
    points = [*(entry.get("curve") or []), *([] if entry.get("curve") else [entry])]
    pairs = [(max(float(point["p95_ms"]), _MS_FLOOR), float(point["recall_10"])) for point in points
             if point.get("p95_ms") is not None and point.get("recall_10") is not None]  # fmt: skip
    return sorted(pairs, key=lambda pair: pair[1])


def history_plot(entries: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Lowest recall@10 of each report, oldest first; a cross where the verdict was no."""
    known = [(at, entry, entry["numbers"]["recall_10_min"]) for at, entry in enumerate(entries)
             if (entry.get("numbers") or {}).get("recall_10_min") is not None]  # fmt: skip
    if len(known) < 2:
        return None
    figure, axes = canvas(1.9, _BOX)
    low = _floor(min(share for *_, share in known))
    grid(axes, share_ticks(low))
    for before, after in pairwise(known):
        axes.plot([before[0], after[0]], [before[2], after[2]], color=LINE, linewidth=1.6, zorder=1)
    for at, entry, share in known:
        passed = entry["passed"]
        axes.plot([at], [share], "o" if passed else "X", color=HUE_1 if passed else BAD, markersize=6 if passed else 8,
                  markeredgewidth=0, zorder=2)  # fmt: skip
    for side, (at, entry, _) in (("left", known[0]), ("right", known[-1])):
        day = str(entry["created_at"])[:10]
        text(axes, (at, -0.04), day, ha=side, va="top", transform=axes.get_xaxis_transform())
    axes.set_xlim(known[0][0] - 0.4, known[-1][0] + 0.4)
    axes.set_ylim(low, 1 + (1 - low) * 0.05)
    return {
        "title": "Lowest recall@10",
        "legend": [],
        "note": "A cross: the report said no, for whatever reason.",
        "svg": to_svg("history", figure, f"Lowest recall@10 of {len(known)} reports, {known[-1][2]:.3f} in the last"),
    }


def _floor(lowest: float) -> float:
    """Where a scale of shares begins: round, and with room below the lowest."""
    step = 0.01 if lowest > 0.95 else 0.05
    return max(math.floor((lowest - step * 0.3) / step) * step, 0)


def _apart(xs: Sequence[float], points: Sequence[Mapping[str, Any]]) -> list[tuple[float, Mapping[str, Any]]]:
    """The points whose labels fit side by side, the last among them."""
    least = (max(xs) - min(xs)) / 9
    kept: list[tuple[float, Mapping[str, Any]]] = []
    for at, point in sorted(zip(xs, points, strict=True), key=lambda pair: -pair[0]):
        if not kept or kept[-1][0] - at >= least:
            kept.append((at, point))
    return kept
