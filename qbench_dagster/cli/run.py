"""`qbench run`: plans the case ranges, executes both jobs in this process, and sums up what they did."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.assets.stage import RUN_TOTALS
from qbench_dagster.cli.spaces import _who
from qbench_dagster.definitions import build_definitions
from qbench_dagster.partitions import range_tags, register_ranges, registered_ranges
from qbench_dagster.progress import Context, Progress
from qbench_dagster.settings import Settings

STAGES = (
    "testrail_mirror", "sqlite_cases", "normalized_testdocs", "reused_vectors", "doc_embeddings", "step_embeddings",
    "pg_tables", "hnsw_index", "parity_report",
)  # fmt: skip
OVER_RANGES = ("load_cases", "land_cases", "embed_and_publish")

COLUMNS = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


class TerminalProgress(Progress):
    """Progress bars beside the lines in the run's log: a run that nothing is heard of is taken to be gone."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars

    @contextmanager
    def track(self, context: Context, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar that fills to `total`, or counts where the total is not known."""
        task, bars = self._bars.add_task(what, total=total), self._bars
        with super().track(context, what, total) as tell:

            def advance(pieces: int) -> None:
                bars.advance(task, pieces)
                tell(pieces)

            yield advance
        done = bars.tasks[task].completed
        bars.update(task, total=done or 1, completed=done or 1)

    @contextmanager
    def track_phases(self, context: Context, what: str) -> Iterator[Callable[[str, int, int], None]]:
        """A bar named for the phase it is in."""
        task, bars = self._bars.add_task(what, total=None), self._bars
        with super().track_phases(context, what) as tell:

            def advance(phase: str, done: int, total: int) -> None:
                bars.update(task, description=f"{what} ({phase})", completed=done, total=total or None)
                tell(phase, done, total)

            yield advance
        bars.update(task, description=what, total=1, completed=1)


@dataclass(slots=True)
class RunSummary:
    """What a run did. `failures` is empty where every job and every check succeeded."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """What a service works on by batch: the run is done for now, and goes on when it is answered."""
    new_ranges: int = 0
    partitions: int = 0
    run_ids: list[str] = field(default_factory=list)
    wall_seconds: float = 0.0
    report: str | None = None

    def take(self, result: dg.ExecuteInProcessResult, job: str) -> None:
        """Add what one job did."""
        self.run_ids.append(result.run_id)
        for event in result.get_asset_materialization_events():
            metadata = event.materialization.metadata
            values: dict[str, Any] = {name: v.value for name, v in metadata.items() if not name.startswith("dagster/")}
            totals = values.pop(RUN_TOTALS, {})  # of the run; beside them stand the counts of one partition
            self.stages[event.materialization.asset_key.to_user_string()] = {**values, **totals}
        for event in result.get_asset_observation_events():  # of batches taken in while others are awaited
            observed = event.asset_observation_data.asset_observation
            counts = {name: value.value for name, value in observed.metadata.items()}
            self.stages.setdefault(observed.asset_key.to_user_string(), {"seconds": 0.0, **counts})
        report = self.stages.get("parity_report", {}).get("report")
        self.report = str(report) if report else self.report
        for check in result.get_asset_check_evaluations():
            if check.passed:
                continue
            details = {name: value.value for name, value in check.metadata.items()}
            if check.severity == dg.AssetCheckSeverity.ERROR:
                wrong = check.description or details.get("wrong") or details
                self.failures.append(f"check {check.asset_check_key.to_user_string()}: {str(wrong)[:2000]}")
            else:
                notes = self.waiting if "waiting" in details else self.warnings
                notes.append(check.description or f"{check.asset_check_key.to_user_string()}: {str(details)[:500]}")
        for event in result.filter_events(lambda event: event.is_step_failure):
            error = event.step_failure_data.error
            while error is not None and error.cause is not None:
                error = error.cause
            said = event.step_failure_data.user_failure_data
            if said and said.metadata:  # what was paid for before it ended
                counts = {name: value.value for name, value in said.metadata.items()}
                self.stages.setdefault(str(event.step_key), {"seconds": 0.0, **counts})
            if error is not None and not (self.failures and "AssetCheck" in (error.cls_name or "")):
                self.failures.append(f"{event.step_key}: {_failure_text(event.step_failure_data, error)}")
        if not result.success and not self.failures:
            self.failures.append(f"{job} failed; see its run {result.run_id} in `qbench ui`")

    def as_json(self) -> dict[str, Any]:
        """The summary as `run --json` prints it."""

        def count(name: str, *stages: str) -> int:
            return sum(int(self.stages.get(stage, {}).get(name, 0)) for stage in stages)

        return {
            "ok": not self.failures,
            "source_cases": count("source_cases", "pg_tables"),
            "published": count("published", "pg_tables"),
            "rejected": count("rejected", "pg_tables"),
            "steps": count("steps", "pg_tables"),
            "texts_embedded": count("texts_embedded", "doc_embeddings", "step_embeddings"),
            "rows_written": count("rows_written", *STAGES) + count("lookup_rows_written", "sqlite_cases"),
            "removed": count("removed", "sqlite_cases"),
            "partitions": self.partitions,
            "new_partitions": self.new_ranges,
            "seconds": {stage: self.stages[stage]["seconds"] for stage in STAGES if stage in self.stages},
            "wall_seconds": round(self.wall_seconds, 3),
            "recall": {
                name.removeprefix("recall_"): share
                for name, share in self.stages.get("hnsw_index", {}).items()
                if name.startswith("recall_")
            },
            "index_bytes": count("index_bytes", "hnsw_index"),
            "report": self.report,
            "usd": round(sum(float(self.stages.get(stage, {}).get("usd", 0)) for stage in STAGES), 6),
            "run_ids": self.run_ids,
            "failures": self.failures,
            "warnings": self.warnings,
            "waiting": self.waiting,
            "stages": self.stages,
        }


def execute(
    settings: Settings,
    instance: dg.DagsterInstance,
    export: TestRailExport,
    console: Console,
    *,
    allow_deletes: bool,
    lacking: Callable[[], bool],
    pulled: RunSummary | None = None,
) -> RunSummary:
    """Plan ranges, then run `load_cases` over all of them and `index_and_report`; both show in the UI too.

    `lacking` tells, once cases are staged, whether any text is without vector. `pulled` is what was done before.
    """
    started, summary = time.monotonic(), pulled or RunSummary()
    summary.new_ranges = len(register_ranges(instance, export, settings.partition_cases))
    summary.partitions = len(registered_ranges(instance))
    with rich.progress.Progress(*COLUMNS, console=console) as bars:
        runner = _Runner(build_definitions(progress=TerminalProgress(bars)), instance, summary)
        if instance.get_latest_materialization_event(dg.AssetKey("testrail_mirror")) is None and not pulled:
            # Without TestRail: so that the UI does not ask whether to go on without it.
            _Runner(build_definitions(), instance, RunSummary()).run("pull_testrail")
        landing, publishing = (
            {asset: {"config": {"allow_deletes": allow_deletes}}} for asset in ("sqlite_cases", "pg_tables")
        )
        if not settings.old_stores:
            done = runner.run("load_cases", config={**landing, **publishing})
        else:  # an old store is read whole, between the two halves, when there is something it may give
            done = runner.run("land_cases", config=landing)
            done = done and (not lacking() or runner.run("reuse_vectors"))
            done = done and runner.run("embed_and_publish", config=publishing)
        if instance.get_latest_materialization_event(dg.AssetKey("reused_vectors")) is None:
            runner.run("reuse_vectors")  # without an old store: so that the UI does not ask whether to go on without it
        if done and not summary.waiting:
            runner.run("index_and_report")
    summary.wall_seconds += time.monotonic() - started
    return summary


def pull_testrail(instance: dg.DagsterInstance, console: Console, *, full: bool) -> RunSummary:
    """Bring the mirror of TestRail up to date."""
    started, summary = time.monotonic(), RunSummary()
    with rich.progress.Progress(*COLUMNS, console=console, transient=True) as bars:
        runner = _Runner(build_definitions(progress=TerminalProgress(bars)), instance, summary)
        runner.run("pull_testrail", config={"testrail_mirror": {"config": {"full": full}}})
    summary.wall_seconds = time.monotonic() - started
    return summary


def make_plan(
    settings: Settings, instance: dg.DagsterInstance, export: TestRailExport | None, console: Console
) -> tuple[RunSummary, dict[str, Any] | None]:
    """Bring `export`, if there is one, as far as staging, and plan its embedding; returns the plan as JSON values."""
    summary = RunSummary()
    with rich.progress.Progress(*COLUMNS, console=console, transient=True) as bars:
        runner = _Runner(build_definitions(progress=TerminalProgress(bars)), instance, summary)
        if export is not None:
            register_ranges(instance, export, settings.partition_cases)
            if not runner.run("land_cases"):
                return summary, None
        runner.run("plan_embeddings")
    found = summary.stages.get("embedding_plan", {}).get("json")
    return summary, dict(found) if found else None


def evaluate_parity(
    instance: dg.DagsterInstance, console: Console, *, force: bool
) -> tuple[RunSummary, dict[str, Any] | None]:
    """Materialise `parity_report` alone; returns the summary and the report, None if it could not be made."""
    summary = RunSummary()
    with rich.progress.Progress(*COLUMNS, console=console, transient=True) as bars:
        runner = _Runner(build_definitions(progress=TerminalProgress(bars)), instance, summary)
        runner.run("index_and_report", only=("parity_report",), config={"parity_report": {"config": {"force": force}}})
    data = summary.stages.get("parity_report", {}).get("json")
    return summary, json.loads(Path(str(data)).read_text(encoding="utf-8")) if data else None


def _failure_text(failure: Any, error: Any) -> str:
    """What went wrong, as whoever raised it wrote it."""
    said = failure.user_failure_data
    if said and said.description:
        return str(said.description)
    if "Interrupted" in (error.cls_name or ""):
        return "interrupted. What was stored by then stays: run again to go on."
    return str(error.message).strip().removeprefix(f"{error.cls_name}: ").rpartition(f"{error.cls_name}: ")[2]


class _Runner:
    """Executes jobs in this process, one after the other, and sums up what they did."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance, summary: RunSummary) -> None:
        self._definitions = definitions
        self._instance = instance
        self._summary = summary
        logging.getLogger("dagster").setLevel(logging.CRITICAL)

    def run(self, job: str, *, only: tuple[str, ...] = (), config: Mapping[str, Any] | None = None) -> bool:
        """Execute a job, or `only` some assets of it, over all ranges if it is partitioned; whether it succeeded."""
        result = self._definitions.resolve_job_def(job).execute_in_process(
            instance=self._instance,
            tags={
                "qbench/requested_by": _who(),
                **(range_tags(self._instance, registered_ranges(self._instance)) if job in OVER_RANGES else {}),
            },
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, "ops": dict(config or {})},
            raise_on_error=False,
            asset_selection=[dg.AssetKey(name) for name in only] or None,
        )
        self._summary.take(result, job)
        return bool(result.success)
