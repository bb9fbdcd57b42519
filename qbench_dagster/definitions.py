"""Assembly only: explicit lists into one `dg.Definitions`."""

from __future__ import annotations

import dagster as dg

from qbench_dagster.automation import (
    PARTITIONED_ASSETS,
    WHOLE_ASSETS,
    check_tables,
    index_and_report,
    load_cases,
    plan_case_ranges,
)
from qbench_dagster.checks import TABLE_CHECKS
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, ExportResource, PostgresResource


def build_definitions(**resources: object) -> dg.Definitions:
    """The project; `resources` take the place of those of the same name."""
    return dg.Definitions(
        assets=[*PARTITIONED_ASSETS, *WHOLE_ASSETS],
        asset_checks=TABLE_CHECKS,
        jobs=[load_cases, index_and_report, check_tables, plan_case_ranges],
        resources={
            "postgres": PostgresResource(),
            "export": ExportResource(),
            "embedder": EmbedderResource(),
            "progress": Progress(),
            **resources,
        },
        # The stages follow one another and work set-based: a process for each step would add 3 to 4 s a step.
        executor=dg.in_process_executor,
    )


defs = build_definitions()
