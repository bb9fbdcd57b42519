"""Whole-table asset checks: facts about all published rows, asked of the database, whenever someone wants to know.

Facts about the partitions of a run are inline checks of the assets; the full proof is `parity_report`.
"""

from typing import Any

import dagster as dg

from qbench_dagster.adapters.parity import check_accounting, check_completeness, check_privileges
from qbench_dagster.assets.pg_tables import pg_tables
from qbench_dagster.core.parity import Finding
from qbench_dagster.partitions import registered_ranges
from qbench_dagster.resources import EmbedderResource, PostgresResource


@dg.asset_check(asset=pg_tables, description="Source cases = published + rejected, over the whole database.")
def every_case_is_accounted_for(
    context: dg.AssetCheckExecutionContext, postgres: PostgresResource
) -> dg.AssetCheckResult:
    """Invariant 1."""
    return _result(check_accounting(postgres.database, list(registered_ranges(context.instance).values())))


@dg.asset_check(asset=pg_tables, description="Every published document and step has its vector; nothing is orphaned.")
def every_row_is_complete(postgres: PostgresResource, embedder: EmbedderResource) -> dg.AssetCheckResult:
    """Invariant 4, but for the vectors' values, which `hnsw_index` examines."""
    return _result(check_completeness(postgres.database, embedder.space))


@dg.asset_check(asset=pg_tables, description="qbench_reader reads schema qbench and nothing else.")
def reader_has_least_privilege(postgres: PostgresResource) -> dg.AssetCheckResult:
    """Invariant 9."""
    return _result(check_privileges(postgres.database))


def _result(finding: Finding) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {**finding.numbers, "offenders": list(finding.offenders)[:20]}
    return dg.AssetCheckResult(passed=finding.passed, description=finding.summary, metadata=metadata)


TABLE_CHECKS = [every_case_is_accounted_for, every_row_is_complete, reader_has_least_privilege]
