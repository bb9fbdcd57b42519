"""`pg_tables`: complete cases, published; and the views and functions the application reads."""

import dagster as dg

from qbench_dagster.adapters.publishing import analyze_store, column_types, publish_cases, publish_face
from qbench_dagster.assets.embeddings import doc_embeddings, step_embeddings
from qbench_dagster.assets.lineage import column_lineage, column_schema
from qbench_dagster.assets.normalized_testdocs import normalized_testdocs
from qbench_dagster.assets.stage import PARTITIONED, Stage, check
from qbench_dagster.resources import EmbedderResource, PostgresResource, Progress


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
    postgres: PostgresResource,
    embedder: EmbedderResource,
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult:
    """Test cases, steps, preconditions and related issues, as the application reads them in schema qbench.

    Each partition is one transaction. A case is published with all its steps and vectors or not at all;
    unchanged rows are not touched; removed cases leave.
    """
    stage, wrong = Stage(context), {}
    with progress.track(context, "pg_tables", None) as advance:
        for case_range in stage.ranges():
            done = publish_cases(postgres.database, embedder.space, case_range)
            if done.source_cases != done.published + done.rejected or done.incomplete:
                wrong[case_range.key] = done.shortfall()
            stage.done(case_range, done.published, done.counts())
            advance(done.source_cases)
    if stage.totals.get("rows_written"):
        analyze_store(postgres.database)
    publish_face(postgres.database, embedder.space)
    return stage.result(
        [check("source_is_published_or_rejected", wrong)],
        per_second="rows_written",
        metadata={
            "dagster/column_schema": column_schema(column_types(postgres.database, "qbench", "test_documents")),
            "dagster/column_lineage": column_lineage(),
        },
    )
