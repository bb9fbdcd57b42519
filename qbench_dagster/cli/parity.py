"""How the parity report looks in a terminal: verdict, checks, searches, verdicts over time. Values in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qbench_dagster.adapters.report_text import label_of
from qbench_dagster.core.decision import BLOCKERS, decision

_OFFENDERS = 5
_QUERIES = 2
"""Queries of a failing comparison that are shown with both lists; the page has more of them."""
_RESULTS = 10


def show_parity(console: Console, report: Mapping[str, Any], page: str | None) -> None:
    """The verdict, a line for each check, what searches found, and the worst queries of a comparison that fails."""
    colour, verdict = ("green", "PASSED") if report["passed"] else ("red", "FAILED")
    console.print(f"[bold {colour}]{verdict}[/]  [bold]{escape(decision(report))}[/]", highlight=False, soft_wrap=True)
    console.print(f"{report['space']}, {report['created_at']}\n", style="dim", highlight=False, markup=False)
    for finding in report["findings"]:
        mark = "[green]ok  [/]" if finding["passed"] else "[red]FAIL[/]"
        told = f"{mark} {escape(_line(finding['title']))}: {escape(_line(finding['summary']))}"
        console.print(told, highlight=False, soft_wrap=True)
        if not finding["passed"]:
            for offender in finding["offenders"][:_OFFENDERS]:
                shown = ", ".join(f"{name} {_line(value)}" for name, value in offender.items())
                console.print(f"       {shown}", highlight=False, markup=False, soft_wrap=True)
            if (more := finding["offender_count"] - _OFFENDERS) > 0:
                console.print(f"       and {more:,} more", highlight=False, markup=False)
    comparisons = report["details"].get("comparisons") or []
    if comparisons:
        console.print()
        console.print(_comparisons(comparisons))
    for one in comparisons:
        if not one["passed"]:
            for case in one["worst"][:_QUERIES]:
                console.print()
                console.print(_side_by_side(one, case))
    if page:
        console.print(f"\nreport: {page}", highlight=False, markup=False, soft_wrap=True)


def show_history(console: Console, entries: Sequence[Mapping[str, Any]]) -> None:
    """Verdicts over time, newest first."""
    if not entries:
        console.print("no report was made yet: `qbench parity` makes one")
        return
    table = Table("made", "verdict", "space", show_edge=False, pad_edge=False)
    table.add_column("published", justify="right")
    table.add_column("lowest recall@10", justify="right")
    table.add_column("what failed")
    for entry in entries:
        numbers = entry["numbers"]
        table.add_row(
            str(entry["created_at"]).replace("T", " ").removesuffix("+00:00"),
            "[green]passed[/]" if entry["passed"] else "[red]failed[/]",
            escape(entry["space"]),
            "" if numbers["published"] is None else f"{numbers['published']:,}",
            _share(numbers["recall_10_min"]),
            escape(", ".join(BLOCKERS.get(name, name) for name in entry["failed"])),
        )
    console.print(table)


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("searches", title_justify="left", show_edge=False, pad_edge=False)
    sides = [side for side in ("ours", "theirs") if any((one["latency_ms"] or {}).get(side) for one in comparisons)]
    for name in ("mean", "95 % interval", "asked for", "lowest", *("p95 ms", "there")[: len(sides)]):
        table.add_column(name, justify="right", no_wrap=True)
    for one in comparisons:
        found, times = one["summary"] or {}, one["latency_ms"] or {}
        colour = "" if one["passed"] else "red"
        table.add_row(
            Text(_line(label_of(one)), style=colour),
            Text(_share(found.get("mean")), style=colour),
            f"{found['low']:.3f}–{found['high']:.3f}" if found else "",
            "" if one["threshold"] is None else f"≥ {one['threshold']:g}",
            _share(found.get("min")),
            *(f"{times[side]['p95']:.1f}" if times.get(side) else "" for side in sides),
        )
    return table


def _side_by_side(one: Mapping[str, Any], case: Mapping[str, Any]) -> Table:
    """One query's results here and there, row by row. What only one side found is marked."""
    query = Text.assemble((_line(case["query"]), "bold"), f"  {_line(one['title'])}: {case['share']:.2f}")
    table = Table(title=query, title_justify="left", show_edge=False, pad_edge=False, title_style="")
    there = "exact search" if one["against"] == "exact" else one["against"]
    for name in ("here", there):
        table.add_column(name, ratio=1, no_wrap=True, overflow="ellipsis")
    for at in range(min(max(len(case["ours"]), len(case["theirs"])), _RESULTS)):
        table.add_row(*(_result(side[at]) if at < len(side) else Text("–") for side in (case["ours"], case["theirs"])))
    return table


def _result(result: Mapping[str, Any]) -> Text:
    similarity = "" if result["similarity"] is None else f"{result['similarity']:.3f}"
    mark, style = ("=", "") if result["shared"] else ("≠", "red")
    return Text(f"{mark} {similarity} {_line(result['title'] or '')} ({result['id']})", style=style)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _line(value: object) -> str:
    """Text of any content on one line, without what a terminal would obey."""
    return " ".join("".join(one if one.isprintable() or one.isspace() else "\ufffd" for one in str(value)).split())
