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
from qbench_dagster.definitions import build_definitions
from qbench_dagster.partitions import register_ranges, registered_ranges
from qbench_dagster.progress import Progress
from qbench_dagster.settings import Settings

STAGES = (
    "sqlite_cases", "normalized_testdocs", "doc_embeddings", "step_embeddings", "pg_tables", "hnsw_index",
    "parity_report",
)  # fmt: skip

COLUMNS = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


class TerminalProgress(Progress):
    """Progress bars instead of lines in the log."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars

    @contextmanager
    def track(self, context: dg.AssetExecutionContext, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar that fills to `total`, or counts where the total is not known."""
        del context
        task, bars = self._bars.add_task(what, total=total), self._bars
        yield lambda pieces: bars.advance(task, pieces)
        done = bars.tasks[task].completed
        bars.update(task, total=done or 1, completed=done or 1)

    @contextmanager
    def track_phases(self, context: dg.AssetExecutionContext, what: str) -> Iterator[Callable[[str, int, int], None]]:
        """A bar named for the phase it is in."""
        del context
        task, bars = self._bars.add_task(what, total=None), self._bars
        yield lambda phase, done, total: bars.update(
            task, description=f"{what} ({phase})", completed=done, total=total or None
        )
        bars.update(task, description=what, total=1, completed=1)


@dataclass(slots=True)
class RunSummary:
    """What a run did. `failures` is empty where every job and every check succeeded."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    new_ranges: int = 0
    partitions: int = 0
    run_ids: list[str] = field(default_factory=list)
    wall_seconds: float = 0.0
    report: str | None = None

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
            "run_ids": self.run_ids,
            "failures": self.failures,
            "stages": self.stages,
        }


def execute(
    settings: Settings,
    instance: dg.DagsterInstance,
    export: TestRailExport,
    console: Console,
    *,
    allow_deletes: bool,
) -> RunSummary:
    """Plan ranges, then run `load_cases` over all of them and `index_and_report`; both show in the UI too."""
    started, summary = time.monotonic(), RunSummary()
    summary.new_ranges = len(register_ranges(instance, export, settings.partition_cases))
    # A range of dynamic partitions follows the order they were made in, not their names.
    known = registered_ranges(instance)
    keys = [key for key in instance.get_dynamic_partitions("case_ranges") if key in known]
    summary.partitions = len(keys)
    with rich.progress.Progress(*COLUMNS, console=console) as bars:
        definitions = build_definitions(progress=TerminalProgress(bars))
        jobs: list[tuple[str, Mapping[str, str], Mapping[str, Any]]] = [
            (
                "load_cases",
                {RANGE_START: keys[0], RANGE_END: keys[-1]},
                {"ops": {"sqlite_cases": {"config": {"allow_deletes": allow_deletes}}}},
            ),
            ("index_and_report", {}, {}),
        ]
        for job, tags, config in jobs:
            if not _execute(definitions, instance, job, tags, config, summary):
                break
    summary.wall_seconds = time.monotonic() - started
    return summary


def evaluate_parity(
    instance: dg.DagsterInstance, console: Console, *, force: bool
) -> tuple[RunSummary, dict[str, Any] | None]:
    """Materialise `parity_report` alone; returns the summary and the report, None if it could not be made."""
    summary = RunSummary()
    with rich.progress.Progress(*COLUMNS, console=console, transient=True) as bars:
        definitions = build_definitions(progress=TerminalProgress(bars))
        config = {"ops": {"parity_report": {"config": {"force": force}}}}
        _execute(definitions, instance, "index_and_report", {}, config, summary, only="parity_report")
    data = summary.stages.get("parity_report", {}).get("json")
    return summary, json.loads(Path(str(data)).read_text(encoding="utf-8")) if data else None


def _execute(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str,
    tags: Mapping[str, str],
    config: Mapping[str, Any],
    summary: RunSummary,
    only: str | None = None,
) -> bool:
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    result = definitions.resolve_job_def(job).execute_in_process(
        instance=instance,
        tags=dict(tags),
        run_config={**quiet, **config},
        raise_on_error=False,
        asset_selection=[dg.AssetKey(only)] if only else None,
    )
    summary.run_ids.append(result.run_id)
    for event in result.get_asset_materialization_events():
        metadata = event.materialization.metadata
        values: dict[str, Any] = {name: v.value for name, v in metadata.items() if not name.startswith("dagster/")}
        totals = values.pop(RUN_TOTALS, {})  # of the run; beside them stand the counts of one partition
        summary.stages[event.materialization.asset_key.to_user_string()] = {**values, **totals}
    report = summary.stages.get("parity_report", {}).get("report")
    summary.report = str(report) if report else summary.report
    for check in result.get_asset_check_evaluations():
        if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR:
            details = {name: value.value for name, value in check.metadata.items()}
            wrong = check.description or details.get("wrong") or details
            summary.failures.append(f"check {check.asset_check_key.to_user_string()}: {str(wrong)[:2000]}")
    for event in result.filter_events(lambda event: event.is_step_failure):
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None and not (summary.failures and "AssetCheck" in (error.cls_name or "")):
            summary.failures.append(f"{event.step_key}: {error.message.strip()}")
    if not result.success and not summary.failures:
        summary.failures.append(f"{job} failed; see its run {result.run_id} in `qbench ui`")
    return bool(result.success)
