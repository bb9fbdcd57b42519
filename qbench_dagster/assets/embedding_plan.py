"""`embedding_plan`: what embedding is going to take, before anything is spent."""

import dagster as dg

from qbench_dagster.adapters.planning import plan
from qbench_dagster.adapters.reusing import reusable_vectors
from qbench_dagster.adapters.vector_source import SourceError
from qbench_dagster.assets.normalized_testdocs import normalized_testdocs
from qbench_dagster.assets.stage import ended_by
from qbench_dagster.core.plan import plan_markdown
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, OldStoreResource, PostgresResource


@dg.asset(deps=[normalized_testdocs], group_name="embedding_space", kinds={"python", "postgres"})
def embedding_plan(
    context: dg.AssetExecutionContext,
    postgres: PostgresResource,
    embedder: EmbedderResource,
    old_store: OldStoreResource,
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult:
    """Texts, vectors an old store can give, tokens, dollars now and by batch, disk and time. Nothing is sent or stored.

    What an old store can give is found by the very pass that would take it, run without writing.
    """
    space, database = embedder.space, postgres.database
    with ended_by(SourceError), old_store.open() as sources, progress.track(context, "old stores", None) as advance:
        reusable = reusable_vectors(
            database, space, sources, old_store.declared_model, old_store.allow_quantized, advance
        )
    planned = plan(database, space, postgres.index_settings, reusable=reusable, **embedder.terms(space))
    return dg.MaterializeResult(
        metadata={
            "plan": dg.MetadataValue.md(plan_markdown(planned)),
            "json": dg.MetadataValue.json(planned.as_json()),
            "texts_to_embed": planned.to_embed,
            "tokens": planned.tokens,
            **({} if planned.usd is None else {"usd": planned.usd, "usd_by_batch": planned.usd_by_batch}),
        }
    )
