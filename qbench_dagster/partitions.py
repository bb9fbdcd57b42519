"""The partitions of the graph: case-id ranges, registered with Dagster as dynamic partitions.

How ranges are planned is `core/ranges.py`; here they meet the Dagster instance.
"""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg

from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
from qbench_dagster.core.ranges import CaseRange, is_range_key, plan_bounds, range_bound, range_key, ranges_of

case_ranges = dg.DynamicPartitionsDefinition(name="case_ranges")

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


def registered_ranges(instance: dg.DagsterInstance) -> dict[str, CaseRange]:
    """Every range the instance knows, by key, ascending. Keys somebody typed that are no case range do not count."""
    return ranges_of(key for key in instance.get_dynamic_partitions("case_ranges") if is_range_key(key))


def register_ranges(instance: dg.DagsterInstance, export: TestRailExport, target: int) -> list[str]:
    """Plan what ranges `export` needs beside those registered, and register them ascending; returns the new keys."""
    existing = list(map(range_bound, registered_ranges(instance)))
    ids = export.case_ids()
    if not ids and not existing:
        raise ExportError(
            f"{export.path}: no row of 'cases' has an integer from 1 to 2^47 - 1 as its id, so no partition can be "
            "planned. If the ids are text (an import from CSV), declare the column INTEGER and import again."
        )
    new = [range_key(bound) for bound in plan_bounds(ids, existing, target)]
    if new:
        instance.add_dynamic_partitions("case_ranges", new)
    return new


def range_tags(instance: dg.DagsterInstance, keys: Collection[str]) -> dict[str, str]:
    """Tags of a run over all ranges from the first to the last of `keys`; none where the instance knows none of them.

    A range of dynamic partitions follows the order they were made in, not their names.
    """
    made = [key for key in instance.get_dynamic_partitions("case_ranges") if key in keys]
    return {RANGE_START: made[0], RANGE_END: made[-1]} if made else {}


def ranges_in_run(context: dg.AssetExecutionContext) -> list[CaseRange]:
    """The ranges this run materialises, ascending."""
    known = registered_ranges(context.instance)
    if unknown := [key for key in context.partition_keys if key not in known]:
        raise dg.Failure(
            f"{', '.join(unknown)}: no case range. Keys look like {range_key(729)} and are planned by the job "
            "plan_case_ranges; delete this one in the UI (asset sqlite_cases, Partitions)."
        )
    return sorted((known[key] for key in context.partition_keys), key=lambda case_range: case_range.lower)
