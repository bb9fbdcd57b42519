"""`sqlite_cases`: the export as it is, in the landing room."""

import dagster as dg
from pydantic import Field

from qbench_dagster.adapters.landing import guard_deletes, land_cases, land_lookups
from qbench_dagster.adapters.publishing import column_types
from qbench_dagster.assets.lineage import column_schema
from qbench_dagster.assets.stage import PARTITIONED, Stage, check
from qbench_dagster.assets.testrail_mirror import testrail_mirror
from qbench_dagster.core.folders import section_paths
from qbench_dagster.progress import Progress
from qbench_dagster.resources import ExportResource, PostgresResource


class SqliteCasesConfig(dg.Config):
    """What a person may decide for one run."""

    allow_deletes: bool = Field(
        False, description="Let more than the guarded share of a partition disappear, for this one run."
    )


@dg.asset(
    **PARTITIONED,
    deps=[testrail_mirror],
    group_name="source",
    kinds={"sqlite", "postgres"},
    metadata={"dagster/table_name": "landing.cases"},
    check_specs=[
        dg.AssetCheckSpec(
            "every_source_row_landed",
            asset="sqlite_cases",
            blocking=True,
            description="Rows of the export = landed cases + rows kept aside: without a usable id, or too large.",
        )
    ],
)
def sqlite_cases(
    context: dg.AssetExecutionContext,
    config: SqliteCasesConfig,
    postgres: PostgresResource,
    export: ExportResource,
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult:
    """Raw rows of the TestRail export with a hash of their content, and the look-up tables.

    Only rows whose hash is new are written; rows that are gone get a tombstone, unless so many are gone, of a
    partition or of all partitions of the run, that the export looks cut off.
    """
    stage, wrong = Stage(context), {}
    share = 1.0 if config.allow_deletes else postgres.settings.max_delete_share
    with export.open() as source:
        guard_deletes(postgres.database, source, stage.ranges, share)
        lookup_rows = land_lookups(postgres.database, source, section_paths)
        with progress.track(context, "sqlite_cases", source.count()) as advance:
            for case_range in stage.ranges:
                landed = land_cases(postgres.database, source, case_range, max_delete_share=share)
                held = landed.held
                if landed.source_rows != held:
                    wrong[case_range.key] = f"{landed.source_rows} rows in the export, {held} landed"
                stage.done(case_range, held, landed.counts())
                stage.holds(int(stage.totals["held"]))
                advance(landed.source_rows)
    columns = column_types(postgres.database, "landing", "cases")
    return stage.result(
        [check("every_source_row_landed", wrong)],
        per_second="source_rows",
        metadata={
            "dagster/column_schema": column_schema(columns),
            "lookup_rows_written": lookup_rows,
            "export": str(export.location),
        },
    )
