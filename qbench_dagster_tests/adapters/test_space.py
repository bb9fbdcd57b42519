"""An embedding space: made once, by one model, dimension and text recipe."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from qbench_dagster.adapters import space as space_module
from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.adapters.space import Space, active_space, ensure_space
from qbench_dagster_tests.support import SPACE, execute, rows


def test_a_space_is_made_once(clean_database: Database) -> None:
    for _ in range(2):
        ensure_space(clean_database, SPACE)
    assert rows(clean_database, "SELECT name, model, dimensions, vector_type, active FROM store.spaces") == [
        (SPACE.name, "lexical-v1", 64, "halfvec", False)
    ]


def test_two_runs_may_make_a_space_at_the_same_time(clean_database: Database) -> None:
    with ThreadPoolExecutor(3) as pool:
        for made in [pool.submit(ensure_space, clean_database, SPACE) for _ in range(3)]:
            made.result(timeout=60)
    assert rows(clean_database, "SELECT count(*) FROM store.spaces") == [(1,)]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Space(SPACE.name, "text-embedding-3-large", 64, "halfvec"), "'model': 'lexical-v1'"),
        (Space(SPACE.name, "lexical-v1", 128, "halfvec"), "'dimensions': 64"),
        (Space(SPACE.name, "lexical-v1", 64, "vector"), "'vector_type': 'halfvec'"),
        (Space(SPACE.name, "lexical-v1", 64, "halfvec", text_prefix="passage: "), "'text_prefix': ''"),
    ],
)
def test_a_space_made_otherwise_is_refused(clean_database: Database, other: Space, told: str) -> None:
    ensure_space(clean_database, SPACE)
    with pytest.raises(DatabaseError) as error:
        ensure_space(clean_database, other)
    assert told in str(error.value)
    assert SPACE.name in str(error.value)
    assert "Vectors of two recipes must not meet" in str(error.value)


def test_another_text_recipe_is_another_space(clean_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_space(clean_database, SPACE)
    monkeypatch.setattr(space_module, "TEXT_RECIPE", 2)
    with pytest.raises(DatabaseError, match="'recipe': 1"):
        ensure_space(clean_database, SPACE)


def test_the_active_space_is_known_with_what_makes_its_vectors(clean_database: Database) -> None:
    assert active_space(clean_database) is None
    made = Space("space_te3small_64", "text-embedding-3-small", 64, "halfvec", "openai")
    for each in (SPACE, made):
        ensure_space(clean_database, each)
    assert active_space(clean_database) is None
    execute(clean_database, "UPDATE store.spaces SET active = true WHERE name = %s", made.name)
    assert active_space(clean_database) == made
    execute(clean_database, "UPDATE store.spaces SET recipe = 7")
    assert active_space(clean_database) == replace(made, recipe=7) != made


def test_the_prefix_of_queries_may_change_and_stays_where_none_is_named(clean_database: Database) -> None:
    for prefix, stored in ((None, ""), ("query: ", "query: "), (None, "query: "), ("ask: ", "ask: "), ("", "")):
        ensure_space(clean_database, replace(SPACE, query_prefix=prefix))
        execute(clean_database, "UPDATE store.spaces SET active = true")
        active = active_space(clean_database)
        assert active == SPACE, "it is the same space"
        assert active.query_prefix == stored, prefix
    execute(clean_database, "DROP SCHEMA space_lexical_64 CASCADE; DELETE FROM store.spaces")
    ensure_space(clean_database, replace(SPACE, query_prefix="query: "))
    assert rows(clean_database, "SELECT query_prefix FROM store.spaces") == [("query: ",)]
