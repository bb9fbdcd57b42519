"""From settings to adapters: which database, which embedder, which space, how indexed. No Dagster."""

from __future__ import annotations

from qbench_dagster.adapters.embedded import start_server
from qbench_dagster.adapters.embedders import Embedder, LexicalEmbedder
from qbench_dagster.adapters.indexing import IndexSettings
from qbench_dagster.adapters.postgres import ensure_database
from qbench_dagster.adapters.space import Space
from qbench_dagster.settings import Settings


def database_url(settings: Settings) -> str:
    """URL of the database that is filled: DATABASE_URL, or `qbench` on the embedded server, started on demand."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return ensure_database(start_server(settings.home, settings.pg_memory_mb), "qbench")


def embedder(settings: Settings) -> Embedder:
    """The embedder the settings name. The one place that knows them all."""
    return {"lexical": LexicalEmbedder}[settings.embedder](settings.dimensions)


def embedding_space(settings: Settings) -> Space:
    """The embedding space the settings name."""
    return Space(settings.space, embedder(settings).model, settings.dimensions, settings.vector_type)


def index_settings(settings: Settings) -> IndexSettings:
    """The index settings."""
    return IndexSettings(settings.index_strategy, settings.hnsw_m, settings.hnsw_ef_construction, settings.ef_search)
