"""Assembly only: explicit lists into one `dg.Definitions`."""

from __future__ import annotations

import dagster as dg

from qbench_dagster.automation import (
    PARTITIONED_ASSETS,
    WHOLE_ASSETS,
    check_tables,
    embed_and_publish,
    embedding_batches,
    index_after_batches,
    index_and_report,
    land_cases,
    load_cases,
    plan_case_ranges,
    plan_embeddings,
    reuse_vectors,
)
from qbench_dagster.checks import TABLE_CHECKS
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, ExportResource, OldStoreResource, PostgresResource


def build_definitions(**resources: object) -> dg.Definitions:
    """The project; `resources` take the place of those of the same name."""
    return dg.Definitions(
        assets=[*PARTITIONED_ASSETS, *WHOLE_ASSETS],
        asset_checks=TABLE_CHECKS,
        jobs=[
            load_cases,
            land_cases,
            embed_and_publish,
            index_and_report,
            reuse_vectors,
            plan_embeddings,
            check_tables,
            plan_case_ranges,
        ],
        sensors=[embedding_batches, index_after_batches],
        resources={
            "postgres": PostgresResource(),
            "export": ExportResource(),
            "embedder": EmbedderResource(),
            "old_store": OldStoreResource(),
            "progress": Progress(),
            **resources,
        },
        # The stages follow one another and work set-based: a process for each step would add 3 to 4 s a step.
        executor=dg.in_process_executor,
    )


defs = build_definitions()
