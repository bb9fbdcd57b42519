"""`embedding_plan`: what embedding is going to take, before anything is spent."""

import dagster as dg

from qbench_dagster.adapters.cutover import indexed_as
from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.planning import Reusable, plan
from qbench_dagster.adapters.reusing import reusable_vectors
from qbench_dagster.adapters.space import lacks_vectors
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

    What an old store can give is found by the very pass that would take it, run without writing. The space that is read
    gets the vectors of new texts too: what those take is planned beside it, where there are any.
    """
    space, database, index = embedder.space, postgres.database, postgres.index_settings
    with ended_by(SourceError), old_store.open() as sources, progress.track(context, "old stores", None) as advance:
        reusable = reusable_vectors(
            database, space, sources, old_store.declared_model, old_store.allow_quantized, advance
        )
    with ended_by(EmbeddingError):
        planned = plan(database, space, index, reusable=reusable, **embedder.terms(space))
        others = [
            plan(
                database, other, indexed_as(database, other, "doc", index), reusable=Reusable(), **embedder.terms(other)
            )
            for other in embedder.maintained(database)
            if other.name != space.name and lacks_vectors(database, other)  # or its model would be loaded for nothing
        ]
    also = [other for other in others if other.to_embed]
    return dg.MaterializeResult(
        metadata={
            "plan": dg.MetadataValue.md(plan_markdown(planned, *also)),
            "json": dg.MetadataValue.json({**planned.as_json(), "also": [other.as_json() for other in also]}),
            "texts_to_embed": planned.to_embed,
            "tokens": planned.tokens,
            **({} if planned.usd is None else {"usd": planned.usd, "usd_by_batch": planned.usd_by_batch}),
        }
    )
