"""`pg_tables`: complete cases, published; and the views and functions the application reads."""

from collections.abc import Mapping
from dataclasses import asdict

import dagster as dg
from pydantic import Field

from qbench_dagster.adapters.history import PublishingRun, finish_run
from qbench_dagster.adapters.publishing import (
    analyze_store,
    column_types,
    guard_removals,
    incomplete_cases,
    partition_counts,
    publish_cases,
    publish_face,
    ranges_due,
)
from qbench_dagster.assets.embeddings import doc_embeddings, step_embeddings
from qbench_dagster.assets.lineage import column_schema, published_lineage
from qbench_dagster.assets.normalized_testdocs import normalized_testdocs
from qbench_dagster.assets.stage import PARTITIONED, Stage, check
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, PostgresResource

ASKED_BY = ("qbench/requested_by", "dagster/schedule_name", "dagster/sensor_name", "user")
"""Tags of a run that say who asked for it, the most telling first."""


class PgTablesConfig(dg.Config):
    """What a person may decide for one run."""

    allow_deletes: bool = Field(
        False, description="Take more than the guarded share of a partition's published cases away, for this one run."
    )


@dg.asset(
    **PARTITIONED,
    deps=[normalized_testdocs, doc_embeddings, step_embeddings],
    group_name="published",
    kinds={"postgres"},
    metadata={"dagster/table_name": "qbench.test_documents"},
    check_specs=[
        dg.AssetCheckSpec(
            "source_is_published_or_rejected",
            asset="pg_tables",
            blocking=True,
            description="Source cases = published + rejected, in every partition.",
        )
    ],
)
def pg_tables(
    context: dg.AssetExecutionContext,
    config: PgTablesConfig,
    postgres: PostgresResource,
    embedder: EmbedderResource,
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult:
    """Test cases, steps, preconditions and related issues, as the application reads them in schema qbench.

    Each partition is one transaction. A case is published with all its steps and vectors or not at all;
    unchanged rows are not touched; removed cases leave. It is complete when the active embedding space has its vectors;
    which one that is is decided by `qbench cutover`, never here. What a run changes is an entry of `qbench history`.
    """
    stage, space = Stage(context), embedder.space
    share = 1.0 if config.allow_deletes else postgres.settings.max_delete_share
    run = PublishingRun(context.run.run_id, _asked_by(context.run.tags))
    guard_removals(postgres.database, stage.ranges, share)
    with progress.track(context, "pg_tables", None) as advance:
        for case_range in stage.due(ranges_due(postgres.database, stage.ranges)):
            done = publish_cases(postgres.database, space, case_range, run, max_delete_share=share)
            stage.done(case_range, done.published, asdict(done))
            advance(done.written)
    if stage.totals.get("rows_written"):
        analyze_store(postgres.database)
    publish_face(postgres.database, space)
    finish_run(postgres.database, run, postgres.settings.history_days)
    held = partition_counts(postgres.database, stage.ranges)
    wrong = {
        case_range.key: f"{row.shortfall()}; cases {incomplete_cases(postgres.database, case_range)}"
        for case_range in stage.ranges
        if not (row := held[case_range.key]).balanced or row.incomplete
    }
    stage.holds(sum(row.published for row in held.values()))
    for name in ("source_cases", "published", "rejected", "steps", "incomplete", "held", "brought_back"):
        stage.totals[name] = sum(getattr(row, name) for row in held.values())  # idle partitions count too
    columns = column_types(postgres.database, "qbench", "test_documents")
    return stage.result(
        [check("source_is_published_or_rejected", wrong)],
        per_second="rows_written",
        metadata={
            "dagster/column_schema": column_schema(columns),
            "dagster/column_lineage": published_lineage(columns),
        },
    )


def _asked_by(tags: Mapping[str, str]) -> str:
    """Who asked for a run: a person at a terminal, a sensor, a schedule; the UI does not say who uses it."""
    return next((tags[name] for name in ASKED_BY if name in tags), "Dagster UI")
