"""The partitions of the graph: case-id ranges, registered with Dagster as dynamic partitions.

How ranges are planned is `core/ranges.py`; here they meet the Dagster instance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import dagster as dg

from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
from qbench_dagster.core.ranges import (
    CaseRange,
    is_range_key,
    neighbours,
    plan_bounds,
    range_bound,
    range_key,
    ranges_of,
)

case_ranges = dg.DynamicPartitionsDefinition(name="case_ranges")

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
SINGLE = "dagster/partition"


def registered_ranges(instance: dg.DagsterInstance) -> dict[str, CaseRange]:
    """Every range the instance knows, by key, ascending. Keys somebody typed that are no case range do not count."""
    return ranges_of(key for key in instance.get_dynamic_partitions("case_ranges") if is_range_key(key))


def new_ranges(instance: dg.DagsterInstance, export: TestRailExport, target: int) -> list[str]:
    """Keys of the ranges that `export` needs beside those registered, ascending. Raises ExportError if it has no id."""
    existing = list(map(range_bound, registered_ranges(instance)))
    ids = export.case_ids()
    if not ids and not existing:
        raise ExportError(
            f"{export.path}: no row of 'cases' has an integer from 1 to 2^47 - 1 as its id, so no partition can be "
            "planned. If the ids are text (an import from CSV), declare the column INTEGER and import again."
        )
    return [range_key(bound) for bound in plan_bounds(ids, existing, target)]


def register_ranges(instance: dg.DagsterInstance, export: TestRailExport, target: int) -> list[str]:
    """Register, ascending, what ranges `export` needs beside those registered; returns the new keys."""
    new = new_ranges(instance, export, target)
    if new:
        instance.add_dynamic_partitions("case_ranges", new)
    return new


def spans(instance: dg.DagsterInstance, keys: Collection[str]) -> list[Sequence[str]]:
    """`keys` in runs' worth: a run of Dagster's is over partitions that were made one after the other."""
    return neighbours(instance.get_dynamic_partitions("case_ranges"), keys)


def keys_of_tags(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> list[str]:
    """The ranges that a run with `tags` is over; none if it is over something else."""
    if RANGE_START not in tags:
        return [tags[SINGLE]] if SINGLE in tags else []
    made = list(instance.get_dynamic_partitions("case_ranges"))
    if tags[RANGE_START] not in made or tags[RANGE_END] not in made:
        return []
    return made[made.index(tags[RANGE_START]) : made.index(tags[RANGE_END]) + 1]


def span_tags(span: Sequence[str]) -> dict[str, str]:
    """Tags of a run over a span."""
    return {RANGE_START: span[0], RANGE_END: span[-1]}


def range_tags(instance: dg.DagsterInstance, keys: Collection[str]) -> dict[str, str]:
    """Tags of a run over all ranges from the first to the last of `keys`; none where the instance knows none of them.

    A range of dynamic partitions follows the order they were made in, not their names.
    """
    made = [key for key in instance.get_dynamic_partitions("case_ranges") if key in keys]
    return span_tags(made) if made else {}


def ranges_in_run(context: dg.AssetExecutionContext) -> list[CaseRange]:
    """The ranges this run materialises, ascending."""
    known = registered_ranges(context.instance)
    if unknown := [key for key in context.partition_keys if key not in known]:
        raise dg.Failure(
            f"{', '.join(unknown)}: no case range. Keys look like {range_key(729)} and are planned by the job "
            "plan_case_ranges; delete this one in the UI (asset sqlite_cases, Partitions)."
        )
    return sorted((known[key] for key in context.partition_keys), key=lambda case_range: case_range.lower)
