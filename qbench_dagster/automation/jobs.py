"""Jobs: what is started together, by a person, the sensors or the schedule. When, is said in the other modules."""

import dagster as dg

from qbench_dagster.assets.embedding_plan import embedding_plan
from qbench_dagster.assets.embeddings import doc_embeddings, step_embeddings
from qbench_dagster.assets.hnsw_index import hnsw_index
from qbench_dagster.assets.normalized_testdocs import normalized_testdocs
from qbench_dagster.assets.parity_report import parity_report
from qbench_dagster.assets.pg_tables import pg_tables
from qbench_dagster.assets.reused_vectors import reused_vectors
from qbench_dagster.assets.sqlite_cases import sqlite_cases
from qbench_dagster.assets.testrail_mirror import testrail_mirror
from qbench_dagster.checks import TABLE_CHECKS
from qbench_dagster.partitions import register_ranges
from qbench_dagster.resources import ExportResource
from qbench_dagster.settings import load_settings

PARTITIONED_ASSETS = [sqlite_cases, normalized_testdocs, doc_embeddings, step_embeddings, pg_tables]
WHOLE_ASSETS = [testrail_mirror, reused_vectors, embedding_plan, hnsw_index, parity_report]

# An unpartitioned asset in a partitioned job would run in every partition's run: two jobs.
load_cases = dg.define_asset_job(
    "load_cases",
    selection=dg.AssetSelection.assets(*PARTITIONED_ASSETS) - dg.AssetSelection.checks(*TABLE_CHECKS),
    description="Everything that works by case range, from the export to the published rows.",
)

land_cases = dg.define_asset_job(
    "land_cases",
    selection=dg.AssetSelection.assets(sqlite_cases, normalized_testdocs),
    description="The first half of load_cases, before reuse_vectors: from the export to normalised cases.",
)

embed_and_publish = dg.define_asset_job(
    "embed_and_publish",
    selection=dg.AssetSelection.assets(doc_embeddings, step_embeddings, pg_tables)
    - dg.AssetSelection.checks(*TABLE_CHECKS),
    description="The second half of load_cases, after reuse_vectors: vectors for what still lacks them, then publish.",
)

index_and_report = dg.define_asset_job(
    "index_and_report",
    selection=dg.AssetSelection.assets(hnsw_index, parity_report),
    description="The indexes and the parity report, over the whole database.",
)

reuse_vectors = dg.define_asset_job(
    "reuse_vectors",
    selection=dg.AssetSelection.assets(reused_vectors),
    description="Takes the vectors an old Qdrant or FAISS holds; run it before anything is embedded.",
)

pull_testrail = dg.define_asset_job(
    "pull_testrail",
    selection=dg.AssetSelection.assets(testrail_mirror),
    description="Brings the mirror of TestRail up to date, where TestRail is the source and not an export.",
)

plan_embeddings = dg.define_asset_job(
    "plan_embeddings",
    selection=dg.AssetSelection.assets(embedding_plan),
    description="What embedding will take: texts, reusable vectors, dollars, disk and time. Nothing is spent.",
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
