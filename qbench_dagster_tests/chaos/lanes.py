"""Many faults: which, in what order, on how many sites at once. What comes of each is told as it comes."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import queue
import random
import shutil
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qbench_dagster_tests.chaos.exports import walk
from qbench_dagster_tests.chaos.reader import Reader
from qbench_dagster_tests.chaos.site import Site, new_site
from qbench_dagster_tests.chaos.trial import KINDS, Trials, Verdict

WEIGHTS = {"kill-run": 4, "kill-backend": 2, "stop-server": 2, "cut": 2, "two-runs": 2}
"""How often a kind comes; the others once."""


@dataclass(frozen=True)
class Plan:
    """What is to be done. The same plan makes the same faults, whatever the number of lanes."""

    faults: int
    seed: int
    evidence: Path
    kinds: Sequence[str] = ()
    cases: int = 600
    states: int = 6
    lanes: int = 2
    export: Path | None = None

    def numbered(self) -> list[tuple[int, str]]:
        """Each fault's number (from 1) and kind, every kind about as often as its weight says, shuffled."""
        more = [name for name, weight in WEIGHTS.items() for _ in range(weight - 1)]
        kinds = self.kinds or [*KINDS, *more]
        drawn = list(itertools.islice(itertools.cycle(kinds), self.faults))
        random.Random(self.seed).shuffle(drawn)
        return list(enumerate(drawn, 1))


def run_plan(plan: Plan) -> Iterator[Verdict]:
    """Every verdict as it comes. Raises RuntimeError if a lane itself fails."""
    if plan.lanes == 1:
        yield from _lane(plan, 0)
        return
    context = multiprocessing.get_context("spawn")  # the lanes have threads, and fork
    verdicts: multiprocessing.Queue[Verdict | str | None] = context.Queue()
    lanes = [context.Process(target=_report, args=(plan, lane, verdicts)) for lane in range(plan.lanes)]
    for process in lanes:
        process.start()
    ended = 0
    try:
        while ended < len(lanes):
            told = _next(verdicts, lanes)
            if isinstance(told, str):
                raise RuntimeError(told)
            if told is None:
                ended += 1
            else:
                yield told
    finally:
        for process in lanes:
            if ended < len(lanes):
                process.terminate()  # it takes its site away first
        for process in lanes:
            process.join()


def _next(verdicts: Any, lanes: Sequence[Any]) -> Verdict | str | None:
    while True:
        with suppress(queue.Empty):
            told: Verdict | str | None = verdicts.get(timeout=1)
            return told
        if dead := [process.exitcode for process in lanes if process.exitcode]:
            return f"a lane ended with {dead[0]}"


def _report(plan: Plan, lane: int, verdicts: Any) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for verdict in _lane(plan, lane):
            verdicts.put(verdict)
        verdicts.put(None)
    except KeyboardInterrupt:
        verdicts.put("interrupted")
    except BaseException:
        verdicts.put(traceback.format_exc())


def _lane(plan: Plan, lane: int) -> Iterator[Verdict]:
    """Every lane has a site of its own, and takes its share of the faults in their order."""
    own = plan.numbered()[lane :: plan.lanes]
    with new_site(plan.cases, plan.states, plan.seed, plan.export) as site, Reader(site) as reader:
        steps = walk(plan.states)
        next(steps)  # state 0 is loaded
        trials = Trials(site, reader, steps, plan.seed)
        if (undisturbed := trials.learn()).wrong:
            yield undisturbed
        for number, kind in own:
            first = site.runs
            verdict = trials.try_fault(number, kind)
            if verdict.wrong:
                _keep(plan, site, verdict, first)
            for run in range(first + 1, site.runs + 1):
                shutil.rmtree(site.said / str(run), ignore_errors=True)
            yield verdict


def _keep(plan: Plan, site: Site, verdict: Verdict, first: int) -> None:
    """What there is to see of a fault that found something: the verdict, what the runs told, export, server's log."""
    folder = plan.evidence / f"{verdict.number}-{verdict.kind}"
    for run in range(first + 1, site.runs + 1):
        shutil.copytree(site.said / str(run), folder / "runs" / str(run))
    about = {**verdict.as_json(), "seed": plan.seed, "cases": plan.cases, "states": plan.states, "pid": os.getpid()}
    (folder / "verdict.json").write_text(json.dumps(about, indent=2))
    for source in (site.export, site.path / "pg" / "log"):
        with suppress(OSError):
            shutil.copyfile(source, folder / source.name)


def totals(verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """Counts by kind."""
    counted: dict[str, dict[str, Any]] = {}
    for verdict in sorted(verdicts, key=lambda each: each.kind):
        row = counted.setdefault(verdict.kind, dict.fromkeys(COLUMNS, 0))
        told = asdict(verdict)
        row["skipped"] += bool(verdict.skipped)
        row["faults"] += not verdict.skipped
        for name in ("retried", "partial_reads", "blocked", "vectors_lost", "paid_twice"):
            row[name] += int(told[name])
        row["differences"] += len(verdict.differences)
        row["unclear"] += bool(verdict.unclear)
    return counted


COLUMNS = (
    "faults", "retried", "differences", "partial_reads", "blocked", "vectors_lost", "paid_twice", "unclear", "skipped",
)  # fmt: skip
