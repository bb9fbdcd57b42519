"""Indexes: built when they have to be and not otherwise, swapped under readers, and used by the application's query."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from qbench_dagster.adapters import building, indexing, retiring
from qbench_dagster.adapters.measuring import measure
from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.adapters.space import KINDS, Space
from qbench_dagster.adapters.vectors import vector_text
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.lexical import embed
from qbench_dagster_tests.adapters.indexes import (
    BINARY,
    HALFVEC,
    IVFFLAT,
    STRATEGIES,
    SUBVECTOR,
    build,
    clustered,
    fill,
    indexes,
    recorded,
)
from qbench_dagster_tests.support import EXACT, SPACE, case, execute, rows, run_pipeline, write_export

CASES = 400
TABLE = f"{SPACE.name}.doc_embeddings"


@pytest.fixture
def filled(clean_database: Database) -> Database:
    """400 vectors in both tables, searched without an index."""
    fill(clean_database, clustered(CASES, SPACE.dimensions))
    return clean_database


@pytest.mark.parametrize("settings", STRATEGIES, ids=lambda settings: settings.strategy)
@pytest.mark.parametrize("vector_type", ["halfvec", "vector"])
def test_an_index_is_built_and_kept(clean_database: Database, settings: IndexSettings, vector_type: str) -> None:
    space = Space(f"space_{vector_type}_64", "lexical-v1", 64, vector_type)
    fill(clean_database, clustered(60, 64), space)
    exact = settings.strategy == "exact"
    for kind in KINDS:
        done = build(clean_database, settings, kind, space)
        assert (done.rebuilt, done.rows, done.strategy, done.bytes > 0) == (True, 60, settings.strategy, not exact)
    before = indexes(clean_database, space.name)
    names = [] if exact else [f"{kind}_embeddings_{settings.strategy}_1" for kind in KINDS]
    assert [row[:2] for row in before] == [(name, True) for name in names]
    for kind, name in zip(KINDS, names or [None, None], strict=True):
        again = build(clean_database, settings, kind, space)
        assert (again.rebuilt, again.rows) == (False, 60)
        assert recorded(clean_database, "strategy, index_name, ef_search, rows", kind, space) == (
            settings.strategy, name, settings.ef_search, 60,
        )  # fmt: skip
    assert indexes(clean_database, space.name) == before
    assert measure(clean_database, space, "doc").means


def test_new_rows_do_not_rebuild_an_index(filled: Database) -> None:
    build(filled, BINARY)
    before = indexes(filled)
    execute(filled, f"INSERT INTO {TABLE} SELECT sha256(text_hash), embedding, 'copy', now() FROM {TABLE} LIMIT 10")
    again = build(filled, BINARY)
    assert (again.rebuilt, again.rows) == (False, CASES + 10)
    assert indexes(filled) == before


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (BINARY, HALFVEC),
        (BINARY, EXACT),
        (BINARY, replace(BINARY, m=8)),
        (BINARY, replace(BINARY, ef_construction=48)),
        (SUBVECTOR, replace(SUBVECTOR, shortened=8)),
        (IVFFLAT, replace(IVFFLAT, lists=5)),
        (IVFFLAT, HALFVEC),
    ],
    ids=["halfvec", "exact", "m", "ef_construction", "shortened", "lists", "method"],
)
def test_other_settings_rebuild_the_index(filled: Database, first: IndexSettings, other: IndexSettings) -> None:
    build(filled, first)
    before = indexes(filled)
    done = build(filled, other)
    assert done.rebuilt
    assert " instead of " in done.why
    after = indexes(filled)
    same = first.strategy == other.strategy  # beside the old one of that name
    assert [name for name, _, _ in after] == (
        [] if other is EXACT else [f"doc_embeddings_{other.strategy}_{2 if same else 1}"]
    )
    assert {oid for *_, oid in after}.isdisjoint(oid for *_, oid in before)
    assert recorded(filled, "strategy, shortened, lists") == (other.strategy, other.shortened, other.lists)
    again = build(filled, other)
    assert not again.rebuilt, again.why


def test_only_how_far_it_is_searched_needs_no_other_index(filled: Database) -> None:
    build(filled, BINARY)
    assert recorded(filled, "ef_search, rerank") == (100, 100)
    assert not build(filled, replace(BINARY, ef_search=200, rerank=50)).rebuilt
    assert recorded(filled, "ef_search, rerank") == (200, 50)


def test_an_invalid_index_is_replaced(filled: Database) -> None:
    build(filled, BINARY)
    ((_, _, oid),) = indexes(filled)
    execute(filled, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s", oid)
    done = build(filled, BINARY)
    assert (done.rebuilt, "invalid" in done.why) == (True, True)
    assert [valid for _, valid, _ in indexes(filled)] == [True]


def test_an_index_that_is_gone_is_built_again(filled: Database) -> None:
    build(filled, BINARY)
    execute(filled, f"DROP INDEX {SPACE.name}.doc_embeddings_binary_1")
    assert build(filled, BINARY).rebuilt
    assert len(indexes(filled)) == 1


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("USING hnsw ((binary_quantize(embedding::vector)::bit(64)) bit_hamming_ops)", "another expression"),
        ("USING hnsw ((binary_quantize(embedding)::bit(64)) bit_jaccard_ops)", "another expression"),
        ("USING hnsw ((binary_quantize(embedding)::bit(64)) bit_hamming_ops) WITH (m = 2, ef_construction = 4)", "m=2"),
    ],
    ids=["cast", "operators", "parameters"],
)
def test_an_index_that_is_not_what_its_row_says_is_built_again(filled: Database, expression: str, told: str) -> None:
    build(filled, BINARY)
    execute(filled, f"DROP INDEX {SPACE.name}.doc_embeddings_binary_1")
    if "WITH" not in expression:
        expression += " WITH (m = 16, ef_construction = 64)"
    execute(filled, f"SET search_path = public; CREATE INDEX doc_embeddings_binary_1 ON {TABLE} {expression}")
    done = build(filled, BINARY)
    assert (done.rebuilt, told in done.why) == (True, True), done.why
    assert not build(filled, BINARY).rebuilt


def test_what_a_killed_build_or_a_stranger_left_is_cleared_away(filled: Database) -> None:
    build(filled, BINARY)
    before = indexes(filled)
    execute(
        filled, f"CREATE INDEX doc_embeddings_halfvec_2 ON {TABLE} USING hnsw (embedding public.halfvec_cosine_ops)"
    )
    execute(filled, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
            f"{SPACE.name}.doc_embeddings_halfvec_2")  # fmt: skip
    execute(filled, f"CREATE INDEX by_hand ON {TABLE} USING ivfflat (embedding public.halfvec_cosine_ops)")
    execute(filled, f"CREATE TABLE {TABLE}_sample (LIKE {TABLE})")
    assert not build(filled, BINARY).rebuilt
    assert indexes(filled) == before
    assert rows(filled, "SELECT to_regclass(%s)", f"{TABLE}_sample") == [(None,)]


def test_a_build_that_fails_leaves_the_index_there_was(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "LEAST_MEMORY", building.MIB)
    build(filled, BINARY)
    before = indexes(filled)
    for settings, told in (
        (replace(HALFVEC, m=1_000_000), "1000000"),
        (replace(IVFFLAT, lists=2000, memory_mb=1), "memory required"),  # found when an invalid index is there already
    ):
        with pytest.raises(psycopg.Error, match=told):
            build(filled, settings)
        assert indexes(filled) == before
    assert indexes(filled) == before
    assert recorded(filled, "strategy, index_name") == ("binary", "doc_embeddings_binary_1")
    assert not build(filled, BINARY).rebuilt


# Worn


def test_an_index_is_built_again_after_a_fifth_of_its_rows_were_deleted(filled: Database) -> None:
    build(filled, BINARY)
    execute(filled, f"DELETE FROM {TABLE} WHERE ctid IN (SELECT ctid FROM {TABLE} LIMIT {CASES // 5})")
    assert not build(filled, BINARY).rebuilt
    execute(filled, f"DELETE FROM {TABLE} WHERE ctid IN (SELECT ctid FROM {TABLE} LIMIT 1)")
    done = build(filled, BINARY)
    assert (done.rebuilt, done.why) == (
        True,
        f"{CASES // 5 + 1} of the {CASES} rows it was built for were deleted since",
    )
    assert not build(filled, BINARY).rebuilt, "counted from the last build on"


def test_a_bloated_index_is_built_again(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "BLOAT_BYTES", 0)
    build(filled, BINARY)
    assert not build(filled, BINARY).rebuilt
    execute(filled, "UPDATE store.index_builds SET bytes = bytes / 2")  # as if it had been half as large
    done = build(filled, BINARY)
    assert (done.rebuilt, "has grown to" in done.why) == (True, True)


def test_lists_are_made_anew_when_the_rows_have_doubled(clean_database: Database) -> None:
    fill(clean_database, clustered(1500, SPACE.dimensions))
    settings = replace(IVFFLAT, lists=None)
    build(clean_database, settings)
    assert recorded(clean_database, "lists") == (1,)
    copies = f"INSERT INTO {TABLE} SELECT sha256(text_hash), embedding, 'copy', now() FROM {TABLE} LIMIT %s"
    execute(clean_database, copies, 1400)
    assert not build(clean_database, settings).rebuilt
    execute(clean_database, copies.replace("sha256(", "sha256('x' || "), 100)
    assert build(clean_database, settings).rebuilt
    assert recorded(clean_database, "lists, rows") == (3, 3000)


# Swapping


@pytest.mark.parametrize("other", [replace(BINARY, m=8), HALFVEC], ids=["same expression", "other expression"])
def test_readers_never_miss_their_index_while_it_is_swapped(
    filled: Database, other: IndexSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that goes by the row of index_builds, as the search functions do, finds the index of that row usable."""
    build(filled, BINARY)
    over, seen, wrong = threading.Event(), set[str](), list[str]()

    def read() -> None:
        with psycopg.connect(filled.url, autocommit=True) as connection:
            connection.execute("SET enable_seqscan = off; SET search_path = public")
            while not over.is_set():
                with connection.transaction():
                    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    strategy, name = connection.execute(
                        "SELECT strategy, index_name FROM store.index_builds WHERE kind = 'doc'"
                    ).fetchone()  # type: ignore[misc]
                    order = (
                        "binary_quantize(embedding)::bit(64) <~> repeat('1', 64)::bit(64)"
                        if strategy == "binary"
                        else f"embedding <=> (SELECT embedding FROM {TABLE} LIMIT 1)"
                    )
                    plan = connection.execute(
                        f"EXPLAIN SELECT text_hash FROM {TABLE} ORDER BY {order} LIMIT 5"  # type: ignore[arg-type]
                    ).fetchall()
                seen.add(name)
                if not any("Index Scan using doc_embeddings_" in line for (line,) in plan):
                    wrong.append(f"{name}: {plan}")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for settings in (other, BINARY, other):
            assert build(filled, settings).rebuilt
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(seen) > 1


def test_the_old_index_stays_while_a_query_from_before_runs(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    build(filled, BINARY)
    monkeypatch.setattr(retiring, "READERS_S", 0.3)
    at_the_end: list[list[str]] = []
    real = retiring.drop_others

    def drop_others(work: Any, kept: str | None) -> None:
        at_the_end.append([name for name, *_ in indexes(filled)])
        reader.rollback()  # DROP INDEX CONCURRENTLY waits for it too
        real(work, kept)

    with psycopg.connect(filled.url) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        build_thread_started = reader.execute(f"SELECT count(*) FROM {TABLE}").fetchone()
        assert build_thread_started == (CASES,)
        monkeypatch.setattr(indexing, "drop_others", drop_others)
        done = build(filled, EXACT)
    assert at_the_end == [["doc_embeddings_binary_1"]]
    assert any("has been reading since before" in note for note in done.notes)
    assert indexes(filled) == []


def test_an_index_that_cannot_be_used_is_not_taken(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    build(filled, BINARY)
    monkeypatch.setattr(indexing, "indexes_used", lambda *_, **__: {})
    with pytest.raises(DatabaseError, match="cannot use it"):
        build(filled, HALFVEC)


# The query of the design, section 2


def plan_of(connection: psycopg.Connection, query: str, vector: str) -> str:
    found = connection.execute("EXPLAIN (FORMAT TEXT) " + query, {"query": vector}).fetchall()  # type: ignore[call-overload]
    return "\n".join(line for (line,) in found)


def test_the_applications_own_query_uses_the_halfvec_index(clean_database: Database, tmp_path: Path) -> None:
    cases = [case(n, f"Case {n} of the {n % 13}th kind", steps=f"Do the thing {n}") for n in range(1, CASES + 1)]
    run_pipeline(clean_database, write_export(tmp_path / "export.db", cases), index=EXACT)
    query = """SELECT test_case_id, 1 - (embedding <=> %(query)s) FROM qbench.test_documents
               WHERE priority = 'Medium' ORDER BY embedding <=> %(query)s LIMIT 10"""
    vector = vector_text(embed(["Case 77 of the 12th kind\n"], 64)[0])
    execute(clean_database, "ANALYZE")
    for settings in (HALFVEC, BINARY):
        build(clean_database, settings)
        with psycopg.connect(clean_database.url) as connection:
            connection.execute("SET ROLE qbench_reader")
            connection.execute("SET enable_seqscan = off")  # 400 rows are read faster than any index
            connection.execute("SET enable_sort = off")
            connection.execute("SET hnsw.iterative_scan = relaxed_order")
            for form in ("%(query)s::halfvec", "%(query)s::vector::halfvec"):
                asked = query.replace("%(query)s", form)
                used = "Index Scan using doc_embeddings_halfvec" in plan_of(connection, asked, vector)
                assert used is (settings is HALFVEC)
                found = connection.execute(asked, {"query": vector}).fetchall()  # type: ignore[call-overload]
                assert len(found) == 10
                assert found[0][0] == 77
