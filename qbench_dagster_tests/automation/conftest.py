"""Worlds: one in which nothing is loaded, and copies of one that a person has loaded."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from qbench_dagster_tests.automation.world import A_RANGE, SETTINGS, World, new_world, small_export

LOG = logging.getLogger(__name__)
_numbers = itertools.count()


def _database(server_url: str, name: str, template: str | None = None) -> str:
    """URL of a new database."""
    made = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    if template:
        made += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(made)
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


def set_environment(
    monkeypatch: pytest.MonkeyPatch, url: str, export: Path, home: Path, a_range: int = A_RANGE
) -> None:
    """The settings of a world."""
    places = {"DATABASE_URL": url, "QBENCH_EXPORT": str(export), "QBENCH_HOME": str(home)}
    for variable, value in {**SETTINGS, **places, "QBENCH_PARTITION_CASES": str(a_range)}.items():
        monkeypatch.setenv(variable, value)


@pytest.fixture(scope="module")
def loaded_name(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a database into which the small export was loaded, to copy it from."""
    name, folder = f"loaded_{os.getpid()}_{next(_numbers)}", tmp_path_factory.mktemp("loaded")
    url, export = _database(server_url, name), small_export(folder / "export.db")
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, url, export, folder / "home")
        with new_world(url, export) as made:
            made.plan()
            assert made.load().success
    yield name
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _world(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    export = small_export(folder / "export.db")
    set_environment(monkeypatch, url, export, folder / "home")
    with new_world(url, export) as made:
        made.age()
        yield made


@pytest.fixture
def empty_world(fresh_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Nothing is loaded and no range is planned."""
    yield from _world(fresh_url, tmp_path, monkeypatch)


@pytest.fixture
def world(server_url: str, loaded_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Everything is loaded, and the sensor has looked once."""
    name = f"copy_{os.getpid()}_{next(_numbers)}"
    for made in _world(_database(server_url, name, loaded_name), tmp_path, monkeypatch):
        made.plan()
        for key in made.keys:
            made.instance.report_runless_asset_event(dg.AssetMaterialization("pg_tables", partition=key))
        assert "60 cases compared: 0 added, 0 changed, 0 gone" in made.said(0)
        yield made
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def other_url(server_url: str) -> Iterator[str]:
    """URL of a second empty database."""
    name = f"other_{os.getpid()}_{next(_numbers)}"
    yield _database(server_url, name)
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
