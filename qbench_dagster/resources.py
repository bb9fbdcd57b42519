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
from qbench_dagster.adapters.testrail_api import TestRailAPI, TestRailError
from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
from qbench_dagster.adapters.testrail_mirror import last_full_pull
from qbench_dagster.adapters.testrail_pull import source_name
from qbench_dagster.adapters.vector_source import VectorSource
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.model import TEXT_RECIPE
from qbench_dagster.settings import Settings, SettingsError, load_settings
from qbench_dagster.wiring import (
    account,
    batch_service,
    comparison_settings,
    counted_tokens,
    database_url,
    embedder,
    embedding_space,
    index_settings,
    mirror_path,
    old_stores,
    prices,
    source_path,
    testrail,
    testrail_projects,
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
        """Where the export is, or the mirror of TestRail in its place; None if nothing says."""
        return Path(self.path) if self.path else source_path(load_settings())

    def open(self, *, busy_timeout_s: float | None = None) -> TestRailExport:
        """Open the export in one consistent view; who cannot wait for a lock says for how long. Raises ExportError."""
        if self.location is None:
            raise ExportError(
                "No export is set. Set QBENCH_EXPORT to the path of testrail_data.db, or pass --export; or set "
                "QBENCH_TESTRAIL_URL."
            )
        if self.location == mirror_path(load_settings()) and not self.location.exists():
            raise ExportError(
                f"{self.location}: TestRail was not pulled yet. Run `qbench pull`, or the job pull_testrail."
            )
        return TestRailExport(self.location, busy_timeout_s=busy_timeout_s)


class TestRailResource(dg.ConfigurableResource):
    """TestRail itself, and the file it is mirrored to."""

    __test__ = False

    @property
    def is_used(self) -> bool:
        """Whether QBENCH_TESTRAIL_URL is set."""
        return load_settings().testrail_url is not None

    @property
    def mirror(self) -> Path:
        """The file it is mirrored to."""
        return mirror_path(load_settings())

    @property
    def projects(self) -> tuple[int, ...]:
        """Ids of the projects to mirror, none for all."""
        return testrail_projects(load_settings())

    @property
    def overlap_s(self) -> int:
        """Seconds before the last pull from which on cases are asked for again."""
        return load_settings().sync_overlap_s

    def open(self) -> TestRailAPI:
        """Its API; close it at the end. Raises TestRailError."""
        try:
            return testrail(load_settings())
        except SettingsError as error:
            raise TestRailError(str(error)) from None

    def last_full_pull(self) -> int | None:
        """When the last full pull was begun, in Unix seconds; None if there is none. Raises MirrorError."""
        return last_full_pull(self.mirror, source_name(str(load_settings().testrail_url), self.projects))


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
