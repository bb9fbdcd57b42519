"""What every partitioned asset does around its own work: loop, time, log, report. No stage's logic."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from qbench_dagster.core.ranges import CaseRange
from qbench_dagster.partitions import case_ranges, ranges_in_run, registered_ranges

# `backfill_policy` on an asset is marked beta, in every release since 1.5: taken knowingly (docs/adr/0003).
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)

# One run takes up to a hundred ranges: its processes start once instead of once a range (8 to 17 s each), and a
# backfill of 104,121 cases (21 ranges) is one run.
MANY_RANGES_A_RUN = dg.BackfillPolicy.multi_run(max_partitions_per_run=100)

RUN_TOTALS = "run_totals"

PARTITIONED: dict[str, Any] = {"partitions_def": case_ranges, "backfill_policy": MANY_RANGES_A_RUN}


class Stage:
    """Collects the counts of one asset's partitions, logs each, and makes the MaterializeResult of the run."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._started = time.monotonic()
        self._held = 0
        self.ranges = ranges_in_run(context)
        self.totals: dict[str, float] = {}

    def due(self, keys: Collection[str]) -> Iterator[CaseRange]:
        """The ranges of this run that have something to do, ascending."""
        idle = len(self.ranges) - len(keys)
        if idle:
            self._context.log.info(f"{idle} of {len(self.ranges)} partitions have nothing to do")
        yield from (case_range for case_range in self.ranges if case_range.key in keys)

    def done(self, case_range: CaseRange, rows: int, counts: Mapping[str, float]) -> None:
        """Record what was done to one partition, and the `rows` it now holds.

        A partition to which nothing was done gets no metadata of its own: at 13 ms each that was half of
        what a run over unchanged data cost.
        """
        for name, count in counts.items():
            self.totals[name] = self.totals.get(name, 0) + count
        if not counts.get("rows_written"):
            return
        told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)
        self._context.log.info(f"{case_range.key}: {told}")
        self._context.add_asset_metadata({"dagster/partition_row_count": rows, **counts}, partition_key=case_range.key)

    def holds(self, rows: int) -> None:
        """Record the rows that all partitions of the run hold together."""
        self._held = rows

    def result(
        self, checks: list[dg.AssetCheckResult], *, per_second: str, metadata: Mapping[str, Any] | None = None
    ) -> dg.MaterializeResult:
        """The result of the run: totals, seconds, and the rate of the count `per_second`."""
        seconds = time.monotonic() - self._started
        rate = self.totals.get(per_second, 0) / seconds if seconds else 0.0
        # The UI shows it as the rows of the table, so a run over some of the partitions cannot tell.
        whole = len(self.ranges) == len(registered_ranges(self._context.instance))
        # Dagster puts this on the event of every partition, beside what `done` told of that partition.
        return dg.MaterializeResult(
            metadata={
                RUN_TOTALS: self.totals,
                **({"dagster/row_count": self._held} if whole else {}),
                "seconds": round(seconds, 3),
                f"{per_second}_per_second": round(rate, 1),
                **(metadata or {}),
            },
            check_results=checks,
        )


def check(name: str, wrong: Mapping[str, Any], **metadata: Any) -> dg.AssetCheckResult:
    """A check that passes when nothing is `wrong`; what is wrong is shown by partition or case."""
    return dg.AssetCheckResult(
        check_name=name, passed=not wrong, metadata={**metadata, **({"wrong": dict(wrong)} if wrong else {})}
    )


@contextmanager
def ended_by(*errors: type[Exception], told: Callable[[], Mapping[str, Any]] = dict) -> Iterator[None]:
    """Turn an expected error into a failure of the step that says why, and what was done by then; it is not retried.

    Who raised it has retried what deserves it: a retry on top would multiply the attempts.
    """
    try:
        yield
    except errors as error:
        raise dg.Failure(str(error), metadata=told(), allow_retries=False) from None
