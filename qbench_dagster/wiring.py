"""From settings to adapters: which database, which embedder, which space, how indexed. No Dagster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench_dagster.adapters.comparing import ComparisonSettings
from qbench_dagster.adapters.embedded import build_resources, start_server
from qbench_dagster.adapters.embedders import Embedder, LexicalEmbedder
from qbench_dagster.adapters.ledger import Account
from qbench_dagster.adapters.planning import Tokens
from qbench_dagster.adapters.postgres import ensure_database
from qbench_dagster.adapters.space import KINDS, Kind, Space
from qbench_dagster.adapters.vector_source import VectorSource
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.prices import PRICES, Price, parse_prices
from qbench_dagster.core.requests import Limits
from qbench_dagster.core.spaces import space_name
from qbench_dagster.settings import Settings, SettingsError

if TYPE_CHECKING:
    from qbench_dagster.adapters.openai_batches import OpenAIBatches
    from qbench_dagster.adapters.testrail_api import TestRailAPI

MODELS = {
    "lexical": LexicalEmbedder.model,
    "openai": "text-embedding-3-large",
    "local": "sentence-transformers/all-MiniLM-L6-v2",
}
DIMENSIONS = {
    LexicalEmbedder.model: 3072,
    "text-embedding-3-large": 3072,
    "text-embedding-3-small": 1536,
    "text-embedding-ada-002": 1536,
    "sentence-transformers/all-MiniLM-L6-v2": 384,
}


def database_url(settings: Settings) -> str:
    """URL of the database that is filled: DATABASE_URL, or `qbench` on the embedded server, started on demand."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return ensure_database(start_server(settings.home, settings.pg_memory_mb), "qbench")


def source_path(settings: Settings) -> Path | None:
    """The file cases are read from: the export, else the mirror of TestRail; None if the settings name neither."""
    return settings.export or (mirror_path(settings) if settings.testrail_url else None)


def mirror_path(settings: Settings) -> Path:
    """Where TestRail is mirrored to."""
    return settings.home.absolute() / "testrail.db"


def testrail(settings: Settings) -> TestRailAPI:
    """TestRail's API as the settings' user; close it at the end. Raises SettingsError for what is not set or no use."""
    from qbench_dagster.adapters.testrail_api import TestRailAPI, TestRailError  # noqa: PLC0415 (most do not need it)

    url, user, key = settings.testrail_url, settings.testrail_user, settings.testrail_api_key
    if not (url and user and key):
        needed = {"QBENCH_TESTRAIL_URL": url, "QBENCH_TESTRAIL_USER": user, "QBENCH_TESTRAIL_API_KEY": key}
        missing = ", ".join(name for name, value in needed.items() if not value)
        raise SettingsError(f"{missing}: not set. TestRail is asked with a user's name and API key (My Settings).")
    try:
        return TestRailAPI(url, user, key.get_secret_value())
    except TestRailError as error:
        raise SettingsError(str(error)) from None


def testrail_projects(settings: Settings) -> tuple[int, ...]:
    """Ids of the projects to mirror, none for all."""
    return tuple(int(part) for part in (settings.testrail_projects or "").split(",") if part)


def embedding_space(settings: Settings) -> Space:
    """The embedding space the settings name. Raises SettingsError where they do not say enough."""
    if settings.embedder == "lexical" and settings.model not in (None, LexicalEmbedder.model):
        raise SettingsError(
            f"QBENCH_MODEL={settings.model} is no model of QBENCH_EMBEDDER=lexical. Set QBENCH_EMBEDDER to openai or "
            "local, or unset QBENCH_MODEL."
        )
    model = settings.model or MODELS[settings.embedder]
    dimensions = settings.dimensions or DIMENSIONS.get(model)
    if dimensions is None:
        raise SettingsError(f"QBENCH_DIMENSIONS: say how many dimensions the vectors of {model} have.")
    recorded = _recorded(model) if settings.embedder == "local" else model
    return Space(
        space_name(recorded, dimensions, settings.vector_type, settings.text_prefix),
        recorded,
        dimensions,
        settings.vector_type,
        settings.embedder,
        settings.text_prefix,
        settings.query_prefix,
    )


def _recorded(model: str) -> str:
    """How a local model is recorded: of a folder its name and a fingerprint. Raises SettingsError."""
    from qbench_dagster.adapters.sentence_embedder import model_name  # noqa: PLC0415

    try:
        return model_name(model)
    except OSError as error:
        raise SettingsError(f"QBENCH_MODEL: the folder {model} cannot be read: {error}") from None


def embedder(settings: Settings, space: Space | None = None) -> Embedder:
    """What makes the vectors of `space` (of the space the settings name). The one place that knows all embedders.

    Raises SettingsError without the key it needs, EmbeddingError for a local model that cannot be loaded.
    """
    space = space or embedding_space(settings)
    if space.embedder == "openai":
        return _openai(settings, space)
    if space.embedder == "local":
        from qbench_dagster.adapters.sentence_embedder import SentenceEmbedder  # noqa: PLC0415

        named = settings.model if settings.model and _recorded(settings.model) == space.model else space.model
        return SentenceEmbedder(named, space.dimensions)
    return LexicalEmbedder(space.dimensions)


def _openai(settings: Settings, space: Space) -> Embedder:
    from qbench_dagster.adapters.openai_embedder import OpenAIEmbedder  # noqa: PLC0415 (0.5 s to import)

    return OpenAIEmbedder(**_service(settings, space), concurrency=settings.concurrency, paid=True)


def batch_service(
    settings: Settings, space: Space, *, timeout_s: float | None = None, attempts: int | None = None
) -> OpenAIBatches:
    """The batches of the account, for `space`; close it at the end. Raises SettingsError without the key it needs."""
    from qbench_dagster.adapters.openai_batches import OpenAIBatches  # noqa: PLC0415 (0.5 s to import)

    given = {name: value for name, value in (("timeout_s", timeout_s), ("attempts", attempts)) if value is not None}
    return OpenAIBatches(**{**_service(settings, space), **given})


def _service(settings: Settings, space: Space) -> dict[str, Any]:
    """What every client of the embedding service of `space` needs."""
    from qbench_dagster.adapters.tokenizer import token_counter  # noqa: PLC0415

    if settings.openai_api_key is None:
        raise SettingsError(
            f"OPENAI_API_KEY is not set, and {space.name} is made by {space.model}. Set it; a server of your own that "
            "asks for no key takes any value. Without a key there is QBENCH_EMBEDDER=lexical."
        )
    send = settings.send_dimensions
    return {
        "model": space.model,
        "dimensions": space.dimensions,
        "api_key": settings.openai_api_key.get_secret_value(),
        "base_url": settings.openai_base_url,
        "limits": request_limits(settings),
        "timeout_s": settings.request_timeout_s,
        "send_dimensions": space.model.startswith("text-embedding-3-") if send is None else send,
        "count_tokens": token_counter(space.model),
    }


def check_settings(settings: Settings) -> None:
    """Raise SettingsError for what a run would only notice after it has landed and normalised everything."""
    space = embedding_space(settings)
    prices(settings)
    if space.embedder == "openai":
        _service(settings, space)


def counted_tokens(settings: Settings, space: Space) -> tuple[Tokens, Limits, Embedder | None]:
    """How the tokens of `space` are counted, what a request holds, and its embedder if it is on this machine.

    Needs no key: a plan is made before there is one.
    """
    if space.embedder == "openai":
        from qbench_dagster.adapters.tokenizer import token_counter  # noqa: PLC0415

        counter = token_counter(space.model)
        return Tokens(counter, counter.describe(), counter.exact), request_limits(settings), None
    free = embedder(settings, space)
    return Tokens(free.count_tokens, f"the {space.embedder} embedder", exact=True), free.limits, free


@contextmanager
def old_stores(settings: Settings, space: Space) -> Iterator[list[VectorSource]]:
    """The old stores the settings name, open; Qdrant first. Raises SettingsError or SourceError."""
    if settings.qdrant_url and settings.qdrant_path:
        raise SettingsError("QBENCH_QDRANT_URL and QBENCH_QDRANT_PATH are both set: unset one of them.")
    faiss: dict[Kind, tuple[Path, Path | None]] = {}
    if settings.faiss_docs:
        faiss["doc"] = (settings.faiss_docs, settings.faiss_docs_metadata)
    if settings.faiss_steps:
        faiss["step"] = (settings.faiss_steps, settings.faiss_steps_metadata)
    with ExitStack() as stack:
        sources: list[VectorSource] = []
        if settings.qdrant_url or settings.qdrant_path:
            from qbench_dagster.adapters.qdrant_source import QdrantSource  # noqa: PLC0415

            key = settings.qdrant_api_key
            qdrant = QdrantSource(
                {"doc": settings.qdrant_docs, "step": settings.qdrant_steps},
                dimensions=space.dimensions,
                url=settings.qdrant_url,
                path=settings.qdrant_path,
                api_key=key.get_secret_value() if key else None,
                vector_name=settings.qdrant_vector,
                required=[kind for kind in KINDS if f"qdrant_{kind}s" in settings.model_fields_set],
            )
            sources.append(stack.enter_context(qdrant))
        if faiss:
            from qbench_dagster.adapters.faiss_source import FaissSource  # noqa: PLC0415

            sources.append(FaissSource(faiss, allow_pickle=settings.faiss_allow_pickle))
        yield sources


def comparison_settings(settings: Settings, space: Space, run_id: str) -> ComparisonSettings:
    """What the parity report of `space` compares searches and vectors with. Nothing is opened before it is needed."""
    return ComparisonSettings(
        query_log=settings.query_log,
        queries=settings.parity_queries,
        target_recall=settings.target_recall,
        min_overlap=settings.min_overlap,
        min_median_overlap=settings.min_median_overlap,
        fresh_sample=settings.fresh_sample,
        old_stores=settings.old_stores,
        open_stores=partial(old_stores, settings, space),
        open_embedder=lambda: closing(embedder(settings, space)),
        account=account(settings, space, run_id),
        declared_model=settings.reuse_model,
    )


def request_limits(settings: Settings) -> Limits:
    """What one request to the embedding service may hold."""
    return Limits(settings.max_inputs, settings.max_input_tokens, settings.max_request_tokens)


def prices(settings: Settings) -> Mapping[str, Price]:
    """The price table: the built-in one under the user's. Raises SettingsError for a file that is none."""
    if settings.prices is None:
        return PRICES
    try:
        return parse_prices(settings.prices.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"QBENCH_PRICES: {settings.prices}: {error.strerror}. Name a JSON file of prices."
        ) from None
    except ValueError as error:
        raise SettingsError(f"QBENCH_PRICES: {settings.prices}: {error}") from None


def account(settings: Settings, space: Space, run_id: str) -> Account:
    """On whose behalf requests for `space` are sent: price by the way they go, and the budget."""
    price = prices(settings).get(space.model)
    by_batch = settings.openai_mode == "batch" and space.embedder == "openai"
    usd = None if price is None else price.batch_usd_per_million if by_batch else price.usd_per_million
    return Account(run_id, usd, settings.max_usd, "batch" if by_batch else "request")


def index_settings(settings: Settings) -> IndexSettings:
    """The index settings. What a build may take of the machine is known of the embedded server's only."""
    memory_mb, workers = settings.index_memory_mb, settings.index_workers
    if settings.database_url is None:
        spare_mb, cores = build_resources(settings.pg_memory_mb)
        memory_mb, workers = memory_mb or spare_mb, cores if workers is None else workers
    return IndexSettings(
        settings.index_strategy,
        settings.hnsw_m,
        settings.hnsw_ef_construction,
        settings.ef_search,
        settings.rerank,
        settings.subvector_dimensions,
        settings.ivfflat_lists,
        settings.target_recall,
        settings.target_p95_ms,
        settings.advisor_sample,
        memory_mb,
        workers,
    )
