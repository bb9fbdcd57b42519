"""The check that searches read their index: what it passes, and each fault it was made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench_dagster.adapters import index_use
from qbench_dagster.adapters.index_use import examine_use
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS, ensure_space
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster_tests.adapters.indexes import BINARY, HALFVEC, STRATEGIES, build, recorded
from qbench_dagster_tests.support import EXACT, SPACE, case, execute, rows, run_pipeline, write_export

TABLE = f"{SPACE.name}.doc_embeddings"


@pytest.fixture(scope="module")
def published(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Database:
    """300 cases published and read; each test builds the index it is about."""
    cases = [case(n, f"Case {n} of the {n % 13}th kind", steps=f"Do the thing {n}") for n in range(1, 301)]
    export: Path = write_export(tmp_path_factory.mktemp("export") / "export.db", cases)
    run_pipeline(module_database, export)
    return module_database


@pytest.mark.parametrize("settings", STRATEGIES, ids=lambda settings: settings.strategy)
def test_a_good_index_is_used_by_the_public_functions(published: Database, settings: IndexSettings) -> None:
    for kind, function in zip(KINDS, ("search_documents", "search_steps"), strict=True):
        build(published, settings, kind)
        use = examine_use(published, SPACE, kind)
        assert (use.used, use.plan) == (True, None), use.told
        (name,) = recorded(published, "index_name", kind)
        assert use.index == name
        assert use.told == (
            "exact search, no index is needed" if name is None else f"{name} is used by qbench.{function}"
        )


@pytest.mark.parametrize(
    ("settings", "index"),
    [
        (BINARY, "hnsw ((binary_quantize(embedding::vector)::bit(64)) bit_hamming_ops)"),
        (BINARY, "hnsw ((binary_quantize(embedding)::bit(64)) bit_jaccard_ops)"),
        (HALFVEC, "hnsw (embedding halfvec_l2_ops)"),
        (HALFVEC, "hnsw ((embedding::vector(64)) vector_l2_ops)"),
    ],
    ids=["cast", "bit operators", "distance", "type"],
)
def test_an_index_on_the_wrong_expression_is_told(published: Database, settings: IndexSettings, index: str) -> None:
    build(published, settings)
    (name,) = recorded(published, "index_name")
    execute(published, f"DROP INDEX {SPACE.name}.{name}")
    execute(published, f"SET search_path = public; CREATE INDEX {name} ON {TABLE} USING {index}")
    use = examine_use(published, SPACE, "doc")
    assert (use.used, use.index) == (False, name)
    assert f"{name} is missing, invalid, or on another expression" in use.told
    assert "Seq Scan" in str(use.plan)


def test_an_index_that_is_gone_or_invalid_is_told(published: Database) -> None:
    build(published, BINARY)
    (name,) = recorded(published, "index_name")
    execute(published, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", f"{SPACE.name}.{name}")
    assert not examine_use(published, SPACE, "doc").used
    execute(published, f"DROP INDEX {SPACE.name}.{name}")
    assert not examine_use(published, SPACE, "doc").used


def test_an_index_that_the_planner_does_not_choose_is_told(
    published: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(published, BINARY)
    name = str(recorded(published, "index_name")[0])
    assert examine_use(published, SPACE, "doc").used, "of few rows it is enough that it could"
    monkeypatch.setattr(index_use, "FEW_ROWS", 10)
    ((database,),) = rows(published, "SELECT current_database()")
    execute(published, f'ALTER DATABASE "{database}" SET enable_indexscan = off')
    try:
        with Database(published.url) as fresh:
            use = examine_use(fresh, SPACE, "doc")
    finally:
        execute(published, f'ALTER DATABASE "{database}" RESET enable_indexscan')
    assert (use.used, "does not choose" in use.told, use.index) == (False, True, name)


def test_a_function_that_searches_otherwise_is_told(published: Database) -> None:
    """The row says binary, and the function was left as it is of a space searched exactly."""
    build(published, BINARY)
    execute(published, "ALTER FUNCTION qbench.search_documents RENAME TO kept")
    try:
        assert "is not there yet" in examine_use(published, SPACE, "doc").told
        execute(published, """CREATE FUNCTION qbench.search_documents(v public.halfvec, k integer)
                              RETURNS SETOF integer LANGUAGE sql AS 'SELECT 1'""")  # fmt: skip
        use = examine_use(published, SPACE, "doc")
        assert (use.used, "qbench.search_documents does not read" in use.told) == (False, True)
        execute(published, "DROP FUNCTION qbench.search_documents(public.halfvec, integer)")
    finally:
        execute(published, "ALTER FUNCTION qbench.kept RENAME TO search_documents")
    assert examine_use(published, SPACE, "doc").used


def test_a_space_that_is_not_read_is_judged_by_its_plan(published: Database) -> None:
    other = type(SPACE)("space_other_64", "lexical-v1", 64, "halfvec")
    ensure_space(published, other)
    assert examine_use(published, other, "doc").used, "nothing is built yet"
    build(published, BINARY, space=other)
    assert examine_use(published, other, "doc").told == "doc_embeddings_binary_1 is used"
    build(published, EXACT)
