"""What is started together, and when: jobs, sensors, the schedule. What they work on are the assets."""

from qbench_dagster.automation.batches import embedding_batches
from qbench_dagster.automation.jobs import (
    PARTITIONED_ASSETS,
    WHOLE_ASSETS,
    check_tables,
    embed_and_publish,
    index_and_report,
    land_cases,
    load_cases,
    plan_case_ranges,
    plan_embeddings,
    pull_testrail,
    reuse_vectors,
)
from qbench_dagster.automation.pulls import testrail_pulls
from qbench_dagster.automation.reconcile import build_reconcile, index_after_loads
from qbench_dagster.automation.sync import export_changes

__all__ = [
    "PARTITIONED_ASSETS",
    "WHOLE_ASSETS",
    "build_reconcile",
    "check_tables",
    "embed_and_publish",
    "embedding_batches",
    "export_changes",
    "index_after_loads",
    "index_and_report",
    "land_cases",
    "load_cases",
    "plan_case_ranges",
    "plan_embeddings",
    "pull_testrail",
    "reuse_vectors",
    "testrail_pulls",
]
