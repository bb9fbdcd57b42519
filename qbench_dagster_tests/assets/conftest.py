"""Dagster's storage, made once: its tables take seconds to migrate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import dagster as dg
import psycopg
import pytest

from qbench_dagster.dagster_home import prepare_dagster_home
from qbench_dagster.settings import load_settings


@pytest.fixture(scope="session")
def dagster_template(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with Dagster's tables in it and nothing else, to copy."""
    name = f"dagster_template_{os.getpid()}"
    home = tmp_path_factory.mktemp("template")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        url = urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
        for variable, value in {
            "DATABASE_URL": server_url, "QBENCH_DAGSTER_DATABASE_URL": url, "QBENCH_HOME": str(home),
            "DAGSTER_HOME": "", "QBENCH_DAGSTER_STORAGE": "", "DAGSTER_EVENT_BATCH_SIZE": "200",
        }.items():  # fmt: skip
            patch.setenv(variable, value)
        prepare_dagster_home(load_settings())
        with dg.DagsterInstance.get() as instance:
            assert instance.get_runs_count() == 0
            assert instance.fetch_materializations(dg.AssetKey("none"), limit=1).records == []
    yield name
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]
