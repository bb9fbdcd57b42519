"""The project on a Dagster instance of its own, over a small export, with a clock that can be moved."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import dagster as dg
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.automation import export_changes, sync
from qbench_dagster.core.watch import Cursor
from qbench_dagster.definitions import defs
from qbench_dagster.partitions import RANGE_END, RANGE_START, keys_of_tags, register_ranges
from qbench_dagster.settings import load_settings
from qbench_dagster_tests.support import case, rows, write_export

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
T0 = 1_700_000_000
CASES, A_RANGE = 60, 10
SETTINGS = {
    "QBENCH_EMBEDDER": "lexical", "QBENCH_DIMENSIONS": "64", "QBENCH_INDEX": "exact", "QBENCH_PARITY_QUERIES": "10",
}  # fmt: skip


def small_export(path: Path) -> Path:
    """Sixty cases with a step each."""
    return write_export(
        path,
        [
            case(n, f"Title {n}", updated_on=T0 + n, steps_separated=[{"content": f"Do {n}", "expected": ""}])
            for n in range(1, CASES + 1)
        ],
    )


@dataclass
class World:
    """`ahead` is how many seconds the sensor is ahead of the runs; `cursor` is kept between its looks."""

    instance: dg.DagsterInstance
    database: Database
    export: Path
    ahead: float = 0.0
    cursor: str | None = None
    writes: int = 0
    runs: list[dg.ExecuteInProcessResult] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """The registered ranges, ascending."""
        return sorted(self.instance.get_dynamic_partitions("case_ranges"))

    def plan(self) -> None:
        """Register the ranges the export needs."""
        with TestRailExport(self.export) as source:
            register_ranges(self.instance, source, load_settings().partition_cases)

    def load(
        self, tags: Mapping[str, str] | None = None, *, job: str = "load_cases", config: dict[str, Any] | None = None
    ) -> dg.ExecuteInProcessResult:
        """A job as a person starts it over all ranges, or as a run was requested."""
        over = {RANGE_START: self.keys[0], RANGE_END: self.keys[-1]}
        result = defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            tags=dict(over if tags is None else tags),
            run_config={**QUIET, "ops": config or {}},
            raise_on_error=False,
        )
        self.runs.append(result)
        return result

    def edit(self, *statements: str) -> None:
        """Change the export, a while ago by the file's time."""
        with closing(sqlite3.connect(self.export)) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        self.age()

    def age(self, path: Path | None = None) -> None:
        """Make the file look written a minute ago, and at another moment than before."""
        self.writes += 1
        written = time.time() - 60 + self.writes / 100
        os.utime(path or self.export, (written, written))

    def tick(self) -> list[dg.RunRequest] | str:
        """What the sensor does now: requests, or the reason why none."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        clock = SimpleNamespace(time=lambda: time.time() + self.ahead)
        with patch.object(sync, "time", clock):
            found: Any = export_changes(context)
        self.cursor = context.cursor
        return str(found.skip_message) if isinstance(found, dg.SkipReason) else list(found)

    def later(self, seconds: float) -> list[dg.RunRequest] | str:
        """The same so many seconds after the last look."""
        self.ahead += seconds
        return self.tick()

    def said(self, seconds: float = 301) -> str:
        """The reason why nothing is asked for."""
        found = self.later(seconds)
        assert isinstance(found, str), found
        return found

    def asked(self, seconds: float = 301) -> list[dg.RunRequest]:
        """The runs that are asked for."""
        found = self.later(seconds)
        assert isinstance(found, list), found
        return found

    def over(self, requests: list[dg.RunRequest]) -> list[list[str]]:
        """Their partitions, as numbers from 0."""
        return [[str(self.keys.index(key)) for key in keys_of_tags(self.instance, each.tags)] for each in requests]

    @property
    def remembered(self) -> Cursor:
        """The cursor as the sensor reads it."""
        return Cursor.read(self.cursor)

    def make_run(self, tags: Mapping[str, str], status: str = "STARTED", job: str = "load_cases") -> dg.DagsterRun:
        """A run as the daemon makes it of a request, without executing it."""
        resolved = defs.resolve_job_def(job)
        origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("qbench"), "defs"), job)
        return self.instance.create_run_for_job(
            resolved, tags=dict(tags), status=dg.DagsterRunStatus(status), remote_job_origin=origin
        )

    def titles(self) -> dict[int, str]:
        """What is published."""
        return dict(rows(self.database, "SELECT test_case_id, title FROM store.test_documents"))  # type: ignore[arg-type]


@contextmanager
def new_world(url: str, export: Path) -> Iterator[World]:
    """With nothing loaded. The environment is the caller's to set."""
    with Database(url) as database, dg.DagsterInstance.ephemeral() as instance:
        yield World(instance, database, export)
