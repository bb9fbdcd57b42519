"""The command: how many faults of which kinds, what came of them, exit code 1 if anything did not hold."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from qbench_dagster_tests.chaos.lanes import COLUMNS, Plan, run_plan, totals
from qbench_dagster_tests.chaos.trial import KINDS, Verdict

HELD = ("differences", "partial_reads", "blocked", "vectors_lost", "paid_twice", "unclear")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the faults, show the table."""
    parser = argparse.ArgumentParser(
        prog="python -m qbench_dagster_tests.chaos",
        description="Breaks syncs in every way we know, and looks whether anything but time was lost.",
    )
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=729, help="the same seed makes the same faults")
    parser.add_argument("--export", type=Path, help="begin with this export instead of a sample")
    parser.add_argument("--cases", type=int, default=600, help="cases of the sample")
    parser.add_argument("--states", type=int, default=6, help="states of the export that syncs go between")
    parser.add_argument("--only", action="append", choices=sorted(KINDS), metavar="KIND", help=", ".join(sorted(KINDS)))
    parser.add_argument("--lanes", type=int, default=2, help="databases that are broken at the same time")
    parser.add_argument("--json", action="store_true", help="print every verdict as JSON")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this wants its servers to end too
    console, evidence = Console(stderr=True), Path(tempfile.mkdtemp(prefix="chaos"))
    plan = Plan(given.faults, given.seed, evidence, given.only or (), given.cases, given.states,
                min(given.lanes, given.faults), given.export and given.export.absolute())  # fmt: skip
    began, verdicts = time.monotonic(), list[Verdict]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("faults", total=plan.faults)
        for verdict in run_plan(plan):
            verdicts.append(verdict)
            with (evidence / "verdicts.jsonl").open("a") as file:
                file.write(json.dumps(verdict.as_json()) + "\n")
            if verdict.wrong:
                progress.console.print(
                    f"{verdict.number} {verdict.kind}: {_line(verdict)}", markup=False, soft_wrap=True
                )
            progress.update(task, advance=1)
    found = [verdict for verdict in verdicts if verdict.wrong]
    if given.json:
        sys.stdout.write(json.dumps({
            "seed": plan.seed, "faults": len(verdicts), "ok": not found, "seconds": round(time.monotonic() - began, 1),
            "by_kind": totals(verdicts), "verdicts": [verdict.as_json() for verdict in verdicts],
        }, indent=2) + "\n")  # fmt: skip
    else:
        _show(Console(width=max(console.width, 110)), verdicts, time.monotonic() - began)
    if found:
        console.print(f"evidence: {evidence}", highlight=False)
    else:
        shutil.rmtree(evidence)
    return 1 if found else 0


def _line(verdict: Verdict) -> str:
    """What did not hold, in a line."""
    paid = [f"{verdict.paid_twice} texts paid for twice"] if verdict.paid_twice else []
    lost = [f"{verdict.vectors_lost} vectors lost"] if verdict.vectors_lost else []
    blocked = [f"{verdict.blocked} reads blocked"] if verdict.blocked else []
    told = [*verdict.unclear, *verdict.differences[:3], *verdict.partial[:3], *paid, *lost, *blocked]
    return f"{verdict.told}: {'; '.join(told)}"


def _show(console: Console, verdicts: Sequence[Verdict], seconds: float) -> None:
    table = Table(Column("kind", no_wrap=True, footer="all"), show_edge=False, pad_edge=False, show_footer=True)
    counted = totals(verdicts)
    for name in COLUMNS:
        table.add_column(
            name.replace("_", " "), justify="right", footer=str(sum(row[name] for row in counted.values()))
        )
    for kind, row in counted.items():
        shown = [f"[red]{row[name]}[/]" if name in HELD and row[name] else str(row[name]) for name in COLUMNS]
        table.add_row(kind, *shown)
    console.print(table)
    polls, longest = sum(verdict.polls for verdict in verdicts), max((v.longest_read_s for v in verdicts), default=0.0)
    console.print(f"\n{len(verdicts)} faults in {seconds / 60:.1f} min; all cases read {polls:,} times meanwhile, "
                  f"at longest in {longest:.2f} s", highlight=False)  # fmt: skip
    for reason in sorted({f"{verdict.kind}: {verdict.skipped}" for verdict in verdicts if verdict.skipped}):
        console.print(f"skipped: {reason}", highlight=False, markup=False)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
