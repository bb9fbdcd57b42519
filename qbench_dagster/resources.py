"""Thin Dagster resources over the adapters: where things are and how to open them. No logic.

A field left empty is taken from the environment when a run starts (see `settings.py`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from qbench_dagster.adapters.batch_service import BatchService
from qbench_dagster.adapters.comparing import ComparisonSettings
from qbench_dagster.adapters.embedders import Embedder
from qbench_dagster.adapters.ledger import Account
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.reusing import check_read
from qbench_dagster.adapters.space import Kind, Space, active_space
from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
from qbench_dagster.adapters.vector_source import VectorSource
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.model import TEXT_RECIPE
from qbench_dagster.settings import Settings, load_settings
from qbench_dagster.wiring import (
    account,
    batch_service,
    comparison_settings,
    counted_tokens,
    database_url,
    embedder,
    embedding_space,
    index_settings,
    old_stores,
    prices,
)

log = logging.getLogger(__name__)


class PostgresResource(dg.ConfigurableResource):
    """The PostgreSQL that is filled: DATABASE_URL, or the embedded server, started on demand."""

    _database: Database = PrivateAttr()

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[PostgresResource]:
        """Open the database for as long as the run uses it."""
        del context
        settings = load_settings()
        with Database(database_url(settings), statement_timeout_s=settings.statement_timeout_s) as database:
            self._database = database
            yield self

    @property
    def database(self) -> Database:
        """The open database."""
        return self._database

    @property
    def settings(self) -> Settings:
        """The settings of this run."""
        return load_settings()

    @property
    def index_settings(self) -> IndexSettings:
        """How the vectors are indexed and searched."""
        return index_settings(self.settings)


class ExportResource(dg.ConfigurableResource):
    """The TestRail SQLite export."""

    path: str = ""

    @property
    def location(self) -> Path | None:
        """Where the export is, None if neither the field nor QBENCH_EXPORT says."""
        return Path(self.path) if self.path else load_settings().export

    def open(self) -> TestRailExport:
        """Open the export in one consistent view. Raises ExportError."""
        if self.location is None:
            raise ExportError("No export is set. Set QBENCH_EXPORT to the path of testrail_data.db, or pass --export.")
        return TestRailExport(self.location)


class EmbedderResource(dg.ConfigurableResource):
    """What turns texts into vectors, and the embedding spaces they belong to."""

    @property
    def space(self) -> Space:
        """The space the settings name."""
        return embedding_space(load_settings())

    def maintained(self, database: Database) -> list[Space]:
        """The spaces that get a vector of every text: the one reads are on, if there is one yet, and `space`.

        Where another version of qbench made the texts of the one that is read, it is read on, and gets none.
        """
        active = active_space(database)
        if active is None or active.name == self.space.name:
            return [self.space]
        if active.recipe != TEXT_RECIPE:
            _warn_of_recipe(active.name, active.recipe)
            return [self.space]
        return [active, self.space]

    @contextmanager
    def open(self, space: Space) -> Iterator[Embedder]:
        """What makes the vectors of `space`, for as long as it is asked."""
        with closing(embedder(load_settings(), space)) as opened:
            yield opened

    @contextmanager
    def batches(
        self, space: Space, *, timeout_s: float | None = None, attempts: int | None = None
    ) -> Iterator[BatchService]:
        """The service's batches for `space`; who has little time gives a time-out and a number of attempts."""
        with closing(batch_service(load_settings(), space, timeout_s=timeout_s, attempts=attempts)) as service:
            yield service

    def account(self, space: Space, run_id: str) -> Account:
        """On whose behalf it is asked: the run, the price and the budget."""
        return account(load_settings(), space, run_id)

    def terms(self, space: Space) -> dict[str, Any]:
        """What a plan needs to know of the embedder of `space`: how it counts, what a request holds, what it costs."""
        settings = load_settings()
        tokens, limits, free = counted_tokens(settings, space)
        return {
            "tokens": tokens,
            "limits": limits,
            "price": prices(settings).get(space.model),
            "way": account(settings, space, "plan").way,
            "max_usd": settings.max_usd,
            "free_embedder": free,
        }


class OldStoreResource(dg.ConfigurableResource):
    """The Qdrant and the FAISS indexes whose vectors are used before any text is embedded."""

    @contextmanager
    def open(self) -> Iterator[list[VectorSource]]:
        """The old stores the settings name, for as long as they are read; none is fine."""
        settings = load_settings()
        with old_stores(settings, embedding_space(settings)) as sources:
            yield sources

    def check_read(self, database: Database, space: Space, kind: Kind) -> None:
        """Raise SourceError if an old store may hold vectors of `kind` that embedding would pay for again."""
        if names := load_settings().old_stores:
            check_read(database, space, kind, names)

    def comparison(self, space: Space, run_id: str) -> ComparisonSettings:
        """What the parity report compares `space` with: these stores, a query log, the embedder."""
        return comparison_settings(load_settings(), space, run_id)

    @property
    def declared_model(self) -> str | None:
        """Model that made their vectors, where the payloads do not say."""
        return load_settings().reuse_model

    @property
    def allow_quantized(self) -> bool:
        """Whether vectors kept in 8 bits or less a coordinate are taken."""
        return load_settings().reuse_quantized


@functools.cache
def _warn_of_recipe(name: str, recipe: int) -> None:
    """Once in a process: a sensor looks every minute."""
    log.warning(
        "%s, which is read, holds vectors of texts of recipe %d, this version makes those of recipe %d: it gets no new "
        "vectors, and cases that change are not published. Go back to the version of qbench that made it.",
        name, recipe, TEXT_RECIPE,
    )  # fmt: skip
