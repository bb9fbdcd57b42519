"""`doc_embeddings` and `step_embeddings`: a vector for each distinct text that has none yet."""

import dagster as dg

from qbench_dagster.adapters.publishing import column_types
from qbench_dagster.adapters.space import Kind, embed_missing, ensure_space, rows_lacking_vectors
from qbench_dagster.assets.lineage import column_schema, embedding_lineage
from qbench_dagster.assets.normalized_testdocs import normalized_testdocs
from qbench_dagster.assets.stage import PARTITIONED, Stage, check
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, PostgresResource

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
        deps=[normalized_testdocs],
        group_name="embedding_space",
        kinds={"python", "postgres"},
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
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        stage = Stage(context)
        space, model = embedder.space, embedder.get()
        ensure_space(postgres.database, space)
        lacking = rows_lacking_vectors(postgres.database, space, kind, stage.ranges)
        with progress.track(context, name, None) as advance:
            for case_range in stage.due({key for key, count in lacking.items() if count["missing"]}):
                done = embed_missing(postgres.database, space, kind, case_range, model, advance)
                stage.done(case_range, done.texts, done.counts())
        if stage.totals:
            lacking = rows_lacking_vectors(postgres.database, space, kind, stage.ranges)
        wrong = {
            key: f"{count['missing']} of {count['rows']} rows have a text without vector"
            for key, count in lacking.items()
            if count["missing"]
        }
        stage.holds(sum(count["rows"] for count in lacking.values()))
        columns = column_types(postgres.database, space.name, name)
        return stage.result(
            [check("every_text_has_a_vector", wrong)],
            per_second="texts_embedded",
            metadata={
                "dagster/column_schema": column_schema(columns),
                "dagster/column_lineage": embedding_lineage(),
                "dagster/table_name": f"{space.name}.{name}",
                "model": model.model,
                "dimensions": space.dimensions,
            },
        )

    return embeddings


doc_embeddings = build_embeddings("doc")
step_embeddings = build_embeddings("step")
