"""One database for all tests of a module: making one takes longer than most of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from qbench_dagster.adapters.postgres import Database, ensure_database
from qbench_dagster_tests.support import execute, rows

_numbers = itertools.count()


@pytest.fixture(scope="module")
def module_database(server_url: str) -> Iterator[Database]:
    """An open, migrated database for tests that only read it, filled by a fixture of their module."""
    with Database(ensure_database(server_url, f"module_{os.getpid()}_{next(_numbers)}")) as opened:
        yield opened


@pytest.fixture
def clean_database(module_database: Database) -> Database:
    """The module's database with nothing in it, for tests that write."""
    spaces = rows(
        module_database, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'space%%' OR nspname = 'qbench'"
    )
    for (name,) in spaces:
        execute(module_database, f'DROP SCHEMA "{name}" CASCADE')
    tables = rows(
        module_database,
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('landing', 'staging', 'store') "
        "AND tablename <> 'schema_versions'",
    )
    execute(module_database, f"TRUNCATE {', '.join(name for (name,) in tables)}")
    return module_database
