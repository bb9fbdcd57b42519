"""One published sample for all tests of the searches, and the same under each strategy in turn."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from qbench_dagster.adapters.postgres import Database, ensure_database
from qbench_dagster.adapters.sample_writer import write_sample
from qbench_dagster.adapters.space import Space
from qbench_dagster_tests.adapters.search.twin import STRATEGIES, Twin, index_as
from qbench_dagster_tests.support import EXACT, case, execute, insert_cases, run_pipeline

SPACE = Space("space_lexical_512", "lexical-v1", 512, "halfvec")
"""Signs alone tell too little at 64 dimensions: recall of the binary index would be 0.5."""

IDENTICAL, LOWEST = 1_000, 40_000_000
"""Cases with one and the same text, beside the sample's own."""
ODD = [
    "it's", "100%", "%s", "a\\b", '"quoted"', "{x}", "O'Reilly --", "日本語", "🙂", "a b", "NULL", "$1",
]  # fmt: skip


@pytest.fixture(scope="session")
def published(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The sample's 2,500 cases, 1,000 with one text, and some with odd tags; nothing writes to them."""
    path = tmp_path_factory.mktemp("search") / "export.db"
    write_sample(path, 2_500, seed=729)
    with sqlite3.connect(path) as connection:
        section, priority, kind = connection.execute("SELECT section_id, priority_id, type_id FROM cases").fetchone()
        common = {"section_id": section, "priority_id": priority, "type_id": kind}
        made = [
            case(LOWEST + n, "One and the same text", steps="Press the same button", **common) for n in range(IDENTICAL)
        ]
        made += [
            case(LOWEST + IDENTICAL + n, f"Odd {tag}", custom_fields={"custom_tags": [tag]}, **common)
            for n, tag in enumerate(ODD)
        ]
        insert_cases(connection, made, {row[1]: "" for row in connection.execute("PRAGMA table_info(cases)")})
    connection.close()
    with Database(ensure_database(server_url, "searched")) as database:
        run_pipeline(database, path, space=SPACE, index=EXACT)
        execute(database, "ANALYZE")
        yield database


@pytest.fixture(scope="session")
def twin(published: Database) -> Twin:
    """Everything published, in memory."""
    return Twin(published)


@pytest.fixture(params=STRATEGIES, scope="module")
def indexed(request: pytest.FixtureRequest, published: Database) -> tuple[Database, str]:
    """The published database under each strategy in turn."""
    index_as(published, SPACE, request.param)
    return published, request.param


@pytest.fixture
def unindexed(published: Database) -> Database:
    """The published database, searched exactly."""
    index_as(published, SPACE, "exact")
    return published
