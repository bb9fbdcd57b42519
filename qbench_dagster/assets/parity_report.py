"""`parity_report`: the proof that source and published rows are the same, as a page a person can read."""

import time

import dagster as dg

from qbench_dagster.adapters.cutover import read_space
from qbench_dagster.adapters.parity import evaluate
from qbench_dagster.adapters.report import summary_markdown, write_report
from qbench_dagster.assets.hnsw_index import hnsw_index
from qbench_dagster.assets.pg_tables import pg_tables
from qbench_dagster.partitions import registered_ranges
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, ExportResource, PostgresResource

INVARIANTS = {
    "source_is_published_or_rejected": "Invariant 1: every source case is published or rejected, in each partition.",
    "no_word_lost": "Invariant 2: every word of the step fields and preconditions is in the published row.",
    "published_rows_are_what_was_staged": "Invariant 1: every published value is the normalised one.",
    "vectors_complete_and_sound": "Invariant 4: every published row has its vector, and every vector is sound.",
    "recall_reaches_target": "Invariant 7: the index finds what exact search finds.",
    "reader_has_least_privilege": "Invariant 9: qbench_reader reads qbench and nothing else.",
}


class ParityConfig(dg.Config):
    """What a person may decide for one run."""

    force: bool = False


@dg.asset(
    deps=[pg_tables, hnsw_index],
    group_name="published",
    kinds={"python", "postgres"},
    check_specs=[
        dg.AssetCheckSpec(name, asset="parity_report", blocking=True, description=description)
        for name, description in INVARIANTS.items()
    ],
)
def parity_report(
    context: dg.AssetExecutionContext,
    config: ParityConfig,
    postgres: PostgresResource,
    embedder: EmbedderResource,
    export: ExportResource,
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult:
    """Evaluates the invariants over what is read; writes parity.html and parity.json to QBENCH_HOME/reports.

    While no row was written since the last report, that report stands (`force: true` evaluates it again).
    """
    started, settings = time.monotonic(), postgres.settings
    rows_in_export = None
    if export.location is not None:
        with export.open() as source:
            rows_in_export = source.count()
    space, index_settings = read_space(postgres.database, embedder.space, postgres.index_settings)
    with progress.track(context, "parity_report", None) as advance:
        evaluated = evaluate(
            postgres.database,
            space,
            index_settings,
            list(registered_ranges(context.instance).values()),
            target_recall=settings.target_recall,
            rows_in_export=rows_in_export,
            details={"settings": settings.shown(), "run_id": context.run.run_id, "export": str(export.location)},
            progress=advance,
            force=config.force,
        )
    page, data = settings.reports / "parity.html", settings.reports / "parity.json"
    if evaluated.fresh or not (page.exists() and data.exists()):
        page, data = write_report(evaluated.report, settings.reports)
    return dg.MaterializeResult(
        metadata={
            "verdict": dg.MetadataValue.md(summary_markdown(evaluated.report)),
            "report": dg.MetadataValue.path(str(page)),
            "json": dg.MetadataValue.path(str(data)),
            "fresh": evaluated.fresh,
            "seconds": round(time.monotonic() - started, 3),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=finding["name"],
                passed=finding["passed"],
                description=finding["summary"],
                metadata={**finding["numbers"], "offenders": list(finding["offenders"])[:20]},
            )
            for finding in evaluated.report["findings"]
        ],
    )
