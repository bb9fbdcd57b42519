"""The partitions of the graph: case-id ranges, registered with Dagster as dynamic partitions.

How ranges are planned is `core/ranges.py`; here they meet the Dagster instance.
"""

from __future__ import annotations

import dagster as dg

from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
from qbench_dagster.core.ranges import CaseRange, plan_bounds, range_bound, range_key, ranges_of

case_ranges = dg.DynamicPartitionsDefinition(name="case_ranges")


def registered_ranges(instance: dg.DagsterInstance) -> dict[str, CaseRange]:
    """Every range the instance knows, by key, ascending."""
    return ranges_of(instance.get_dynamic_partitions("case_ranges"))


def register_ranges(instance: dg.DagsterInstance, export: TestRailExport, target: int) -> list[str]:
    """Plan what ranges `export` needs beside those registered, and register them ascending; returns the new keys."""
    existing = [range_bound(key) for key in instance.get_dynamic_partitions("case_ranges")]
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


def ranges_in_run(context: dg.AssetExecutionContext) -> list[CaseRange]:
    """The ranges this run materialises, ascending."""
    known = registered_ranges(context.instance)
    return sorted((known[key] for key in context.partition_keys), key=lambda case_range: case_range.lower)
