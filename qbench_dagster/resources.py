"""Thin Dagster resources over the adapters: where things are and how to open them. No logic.

A field left empty is taken from the environment when a run starts (see `settings.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from pydantic import PrivateAttr

from qbench_dagster.adapters.embedders import Embedder
from qbench_dagster.adapters.indexing import IndexSettings
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import Space
from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
from qbench_dagster.settings import Settings, load_settings
from qbench_dagster.wiring import database_url, embedder, embedding_space, index_settings


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
    """What turns texts into vectors, and the embedding space they belong to."""

    def get(self) -> Embedder:
        """The embedder QBENCH_EMBEDDER names."""
        return embedder(load_settings())

    @property
    def space(self) -> Space:
        """The space its vectors belong to."""
        return embedding_space(load_settings())
