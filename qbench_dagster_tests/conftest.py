"""A real PostgreSQL for the tests: one embedded server a session, a fresh database a test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from qbench_dagster.adapters.embedded import start_server, stop_server
from qbench_dagster.adapters.postgres import Database

LONGEST_FIRST = (
    "ui/test_ui.py",
    "test_crash.py",
    "test_chaos.py",
    "cli/test_cli.py",
    "automation/test_fresh_load.py",
    "automation/test_daemon.py",
    "assets/test_graph.py",
    "cli/test_paid_cli.py",
    "cli/test_spaces.py",
)
"""Files of one to two minutes each: begun last, they would keep one process busy while the other has nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the rest as they are."""
    here = Path(__file__).parent
    ranks = {here / name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


_numbers = itertools.count()

# How long an example takes says something of the machine and its other work, not of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own environment decides nothing in a test."""
    for name in list(os.environ):
        if name.startswith(("QBENCH_", "DAGSTER_", "OPENAI_")) or name == "DATABASE_URL":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """QBENCH_HOME of the session's embedded server. Short, for the limit of socket paths."""
    home = Path(tempfile.mkdtemp(prefix="qbt"))
    home.chmod(0o755)  # the server runs as another user when we are root
    yield home
    stop_server(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def server_url(server_home: Path) -> str:
    """URL of the server's `postgres` database. It need not survive a power cut: most commits of a test are tiny."""
    url = start_server(server_home, memory_mb=1024)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    return url


@pytest.fixture
def fresh_url(server_url: str) -> Iterator[str]:
    """URL of an empty database that is dropped after the test."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
    yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]


@pytest.fixture
def database(fresh_url: str) -> Iterator[Database]:
    """An open, migrated database."""
    with Database(fresh_url) as opened:
        yield opened
