"""`parity_report`: the proof that source and published rows are the same, as a page a person can read."""

import time
from collections.abc import Mapping
from typing import Any

import dagster as dg

from qbench_dagster.adapters.cutover import read_space
from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.parity import evaluate
from qbench_dagster.adapters.report import summary_markdown, write_report
from qbench_dagster.assets.hnsw_index import hnsw_index
from qbench_dagster.assets.pg_tables import pg_tables
from qbench_dagster.assets.stage import ended_by
from qbench_dagster.core.queries import QueryLogError
from qbench_dagster.partitions import registered_ranges
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, ExportResource, OldStoreResource, PostgresResource

SHOWN = {"recall_10_min": "recall_reaches_target", "recall_filtered_min": "filtered_search_is_complete",
         "overlap_min": "search_reaches_old_store"}  # fmt: skip
"""Numbers of findings that are worth a plot over time."""

INVARIANTS = {
    "source_is_published_or_rejected": "Invariant 1: every source case is published or rejected, in each partition.",
    "no_word_lost": "Invariant 2: every word of the step fields and preconditions is in the published row.",
    "published_rows_are_what_was_staged": "Invariant 1: every published value is the normalised one.",
    "vectors_complete_and_sound": "Invariant 4: every published row has its vector, and every vector is sound.",
    "vectors_are_those_of_their_texts": "Invariant 4: vectors equal fresh ones of their texts, and the old store's.",
    "recall_reaches_target": "Invariant 7: searches find what exact search finds.",
    "filtered_search_is_complete": "Invariant 8: a filtered search returns min(k, matching) results.",
    "old_store_is_covered": "Every case of the old store that the source still has is published.",
    "search_reaches_old_store": "Searches find what the old store finds, over what both hold.",
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
    old_store: OldStoreResource,
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
    space = read_space(postgres.database, embedder.space)
    run_id = context.run.run_id
    with (
        ended_by(QueryLogError, EmbeddingError),
        progress.track(context, "parity_report", None) as advance,
    ):
        evaluated = evaluate(
            postgres.database,
            space,
            list(registered_ranges(context.instance).values()),
            rows_in_export=rows_in_export,
            details={
                "settings": settings.shown(),
                "run_id": run_id,
                "run_url": f"{settings.ui_url.rstrip('/')}/runs/{run_id}",
                "export": str(export.location),
            },
            progress=advance,
            force=config.force,
            comparison=old_store.comparison(space, run_id),
        )
    page, data = settings.reports / "parity.html", settings.reports / "parity.json"
    if evaluated.fresh or not (page.exists() and data.exists()):
        page, data = write_report(evaluated.report, settings.reports)
    return dg.MaterializeResult(
        metadata={
            "verdict": dg.MetadataValue.md(summary_markdown(evaluated.report)),
            "report": dg.MetadataValue.path(str(page)),
            "json": dg.MetadataValue.path(str(data)),
            **_numbers(evaluated.report),
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


def _numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """What is worth a plot over time: the lowest recall and overlap, and the slowest p95 of either side."""
    found = {finding["name"]: finding["numbers"] for finding in report["findings"]}
    lowest = {name: found.get(finding, {}).get(name) for name, finding in SHOWN.items()}
    slowest = {
        f"p95_ms_{side}": max(
            (each["latency_ms"][side]["p95"] for each in report["details"]["comparisons"] if each["latency_ms"][side]),
            default=None,
        )
        for side in ("ours", "theirs")
    }
    return {name: value for name, value in {**lowest, **slowest}.items() if value is not None}
