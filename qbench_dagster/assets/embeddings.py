"""`doc_embeddings` and `step_embeddings`: a vector for each distinct text that has none yet."""

from collections.abc import Iterator

import dagster as dg

from qbench_dagster.adapters.batching import Waiting, advance, has_batches
from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.embedding import embed_missing
from qbench_dagster.adapters.publishing import column_types
from qbench_dagster.adapters.space import Kind, ensure_space, rows_lacking_vectors
from qbench_dagster.adapters.vector_source import SourceError
from qbench_dagster.assets.lineage import column_schema, embedding_lineage
from qbench_dagster.assets.normalized_testdocs import normalized_testdocs
from qbench_dagster.assets.reused_vectors import reused_vectors
from qbench_dagster.assets.stage import PARTITIONED, Stage, check, ended_by
from qbench_dagster.core.tally import Embedding
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, OldStoreResource, PostgresResource

TEXTS = {
    "doc": "the title and description of each test case",
    "step": "the action and expected results of each step",
}


def build_embeddings(kind: Kind) -> dg.AssetsDefinition:
    """The asset that embeds the texts of `kind`."""
    name = f"{kind}_embeddings"

    @dg.asset(
        name=name,
        **PARTITIONED,
        deps=[normalized_testdocs, reused_vectors],
        group_name="embedding_space",
        kinds={"python", "postgres"},
        pool="embedding_service",
        # Texts that wait in a batch are no failure and no success: nothing is materialised, what is downstream waits.
        output_required=False,
        description=f"Vectors of {TEXTS[kind]}, keyed by the SHA-256 of the text: each distinct text is embedded "
        "once, stored once and indexed once.",
        check_specs=[
            dg.AssetCheckSpec(
                "every_text_has_a_vector",
                asset=name,
                blocking=True,
                description="No text of the materialised partitions lacks its vector.",
            )
        ],
    )
    def embeddings(
        context: dg.AssetExecutionContext,
        postgres: PostgresResource,
        embedder: EmbedderResource,
        old_store: OldStoreResource,
        progress: dg.ResourceParam[Progress],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        stage, database, done, waiting = Stage(context), postgres.database, Embedding(), Waiting()
        with progress.track(context, name, None) as tell:
            for space in embedder.maintained(database):
                ensure_space(database, space)
                lacking = rows_lacking_vectors(database, space, kind, stage.ranges)
                due = list(stage.due({key for key, count in lacking.items() if count["missing"]}))
                account, out = embedder.account(space, context.run.run_id), has_batches(database, space)
                with ended_by(EmbeddingError, SourceError, told=done.so_far):
                    if due and space == embedder.space:
                        old_store.check_read(database, space, kind)
                    if (due and out) or (account.way == "batch" and (due or out)):
                        with embedder.batches(space) as service:
                            left = advance(database, space, kind, stage.ranges, service, account, done, tell)
                            waiting = waiting or left
                    if due and account.way != "batch":
                        with embedder.open(space) as opened:
                            embed_missing(database, space, kind, due, opened, account, tell, done)
        if waiting:
            context.log.info(f"{waiting}. The sensor embedding_batches goes on when a batch has ended.")
            if any(done.spending().values()):
                # Nothing is materialised yet, and what this run took in was paid for: the UI plots observations too.
                context.log_event(dg.AssetObservation(asset_key=name, metadata=done.so_far()))
            yield _awaited(name, waiting)
            return
        for case_range in stage.ranges:
            if case_range.key in done.partitions:
                partition = done.partitions[case_range.key]
                stage.done(case_range, partition.texts, partition.counts())
        stage.totals.update(done.spending())  # exact, where the shares of the partitions are rounded
        if done.partitions:
            lacking = rows_lacking_vectors(database, space, kind, stage.ranges)
        wrong = {
            key: f"{count['missing']} of {count['rows']} rows have a text without vector"
            for key, count in lacking.items()
            if count["missing"]
        }
        stage.holds(sum(count["rows"] for count in lacking.values()))
        columns = column_types(database, space.name, name)
        yield stage.result(
            [check("every_text_has_a_vector", wrong)],
            per_second="texts_embedded",
            metadata={
                "dagster/column_schema": column_schema(columns),
                "dagster/column_lineage": embedding_lineage(),
                "dagster/table_name": f"{space.name}.{name}",
                "model": space.model,
                "dimensions": space.dimensions,
            },
        )

    return embeddings


def _awaited(name: str, waiting: Waiting) -> dg.AssetCheckResult:
    """Not passed, and no failure: the texts are on their way."""
    return dg.AssetCheckResult(
        check_name="every_text_has_a_vector",
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{name}: {waiting}",
        metadata={
            "waiting": waiting.texts,
            "unsent": waiting.unsent,
            "of_texts": waiting.total,
            "batches": waiting.batches,
            "usd_reserved": waiting.usd,
        },
    )


doc_embeddings = build_embeddings("doc")
step_embeddings = build_embeddings("step")
