"""Jobs: what is started together. Schedules and sensors belong here too; there are none yet."""

import dagster as dg

from qbench_dagster.assets.embeddings import doc_embeddings, step_embeddings
from qbench_dagster.assets.hnsw_index import hnsw_index
from qbench_dagster.assets.normalized_testdocs import normalized_testdocs
from qbench_dagster.assets.parity_report import parity_report
from qbench_dagster.assets.pg_tables import pg_tables
from qbench_dagster.assets.sqlite_cases import sqlite_cases
from qbench_dagster.checks import TABLE_CHECKS
from qbench_dagster.partitions import register_ranges
from qbench_dagster.resources import ExportResource
from qbench_dagster.settings import load_settings

PARTITIONED_ASSETS = [sqlite_cases, normalized_testdocs, doc_embeddings, step_embeddings, pg_tables]
WHOLE_ASSETS = [hnsw_index, parity_report]

# An unpartitioned asset in a partitioned job would run in every partition's run: two jobs.
load_cases = dg.define_asset_job(
    "load_cases",
    selection=dg.AssetSelection.assets(*PARTITIONED_ASSETS) - dg.AssetSelection.checks(*TABLE_CHECKS),
    description="Everything that works by case range, from the export to the published rows.",
)

index_and_report = dg.define_asset_job(
    "index_and_report",
    selection=dg.AssetSelection.assets(*WHOLE_ASSETS),
    description="The indexes and the parity report, over the whole database.",
)

check_tables = dg.define_asset_job(
    "check_tables",
    selection=dg.AssetSelection.checks(*TABLE_CHECKS),
    description="The whole-table checks alone: quick, and nothing is written.",
)


@dg.op
def register_case_ranges(context: dg.OpExecutionContext, export: ExportResource) -> None:
    """Plan the case ranges the export needs and register them as partitions."""
    with export.open() as source:
        new = register_ranges(context.instance, source, load_settings().partition_cases)
    context.log.info(f"{len(new)} new case ranges: {', '.join(new) or 'none was needed'}")


@dg.job(description="Plans case ranges from the export, so that there are partitions to materialise.")
def plan_case_ranges() -> None:
    """Run this once before the first backfill, and whenever the export has outgrown its last range."""
    register_case_ranges()
