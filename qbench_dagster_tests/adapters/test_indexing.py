"""Indexes: built when they have to be, measured while anything was written, and used by the application's query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from qbench_dagster.adapters import indexing
from qbench_dagster.adapters.indexing import (
    Build,
    IndexSettings,
    apply_strategy,
    ensure_index,
    measure,
    scan_vectors,
    vector_text,
    write_counters,
)
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS, Kind, Space
from qbench_dagster.core.lexical import embed
from qbench_dagster_tests.support import EXACT, SPACE, case, execute, rows, run_pipeline, write_export

BINARY = IndexSettings(strategy="binary", m=16, ef_construction=64, ef_search=100)
HALFVEC = IndexSettings(strategy="halfvec", m=16, ef_construction=64, ef_search=100)
STRATEGIES = [EXACT, BINARY, HALFVEC]
CASES = 400


@pytest.fixture
def filled(clean_database: Database, tmp_path: Path) -> Database:
    """400 cases published, searched without an index."""
    cases = [case(n, f"Case {n} of the {n % 13}th kind", steps=f"Do the thing {n}") for n in range(1, CASES + 1)]
    run_pipeline(clean_database, write_export(tmp_path / "export.db", cases), index=EXACT)
    return clean_database


def build(database: Database, settings: IndexSettings, kind: Kind = "doc", space: Space = SPACE) -> Build:
    return ensure_index(database, space, kind, settings, lambda *_: None)


def indexes(database: Database, space: str = SPACE.name) -> list[tuple[Any, ...]]:
    """(name, valid, oid) of the approximate indexes of a space."""
    return rows(
        database,
        """SELECT i.relname, x.indisvalid, i.oid FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
           JOIN pg_am a ON a.oid = i.relam
           WHERE i.relnamespace = %s::regnamespace AND a.amname IN ('hnsw', 'ivfflat') ORDER BY 1""",
        space,
    )


# Building


@pytest.mark.parametrize("settings", STRATEGIES, ids=lambda settings: settings.strategy)
@pytest.mark.parametrize("vector_type", ["halfvec", "vector"])
def test_an_index_is_built_and_kept(
    clean_database: Database, tmp_path: Path, settings: IndexSettings, vector_type: str
) -> None:
    space = Space(f"space_{vector_type}_64", "lexical-v1", 64, vector_type)
    cases = [case(n, f"Case {n}", steps=f"Step {n}") for n in range(1, 51)]
    done = run_pipeline(clean_database, write_export(tmp_path / "export.db", cases), space=space, index=settings)
    names = [] if settings.strategy == "none" else [f"{kind}_embeddings_{settings.strategy}" for kind in KINDS]
    before = indexes(clean_database, space.name)
    assert [row[:2] for row in before] == [(name, True) for name in names]
    for kind in KINDS:
        assert (done.builds[kind].rebuilt, done.builds[kind].rows) == (settings.strategy != "none" or True, 50)
        assert (done.builds[kind].bytes > 0) is (settings.strategy != "none")
        again = build(clean_database, settings, kind, space)
        assert (again.rebuilt, again.rows, again.bytes) == (False, 50, done.builds[kind].bytes)
    assert indexes(clean_database, space.name) == before
    assert measure(clean_database, space, "doc", settings).stored is not None


def test_new_rows_do_not_rebuild_an_index(filled: Database) -> None:
    build(filled, BINARY)
    before = indexes(filled)
    execute(filled, f"""INSERT INTO {SPACE.name}.doc_embeddings SELECT sha256(text_hash), embedding, 'copy', now()
                        FROM {SPACE.name}.doc_embeddings LIMIT 10""")  # fmt: skip
    again = build(filled, BINARY)
    assert (again.rebuilt, again.rows) == (False, CASES + 10)
    assert indexes(filled) == before


@pytest.mark.parametrize(
    "other",
    [HALFVEC, EXACT, IndexSettings("binary", 8, 64, 100), IndexSettings("binary", 16, 48, 100)],
    ids=["halfvec", "none", "m", "ef_construction"],
)
def test_other_settings_rebuild_the_index(filled: Database, other: IndexSettings) -> None:
    build(filled, BINARY)
    before = indexes(filled)
    done = build(filled, other)
    assert done.rebuilt
    after = indexes(filled)
    assert [name for name, _, _ in after] == ([] if other is EXACT else [f"doc_embeddings_{other.strategy}"])
    assert {oid for *_, oid in after}.isdisjoint(oid for *_, oid in before)
    recorded = rows(filled, "SELECT strategy, m, ef_construction FROM store.index_builds WHERE kind = 'doc'")
    assert recorded == [(other.strategy, other.m, other.ef_construction)]
    assert not build(filled, other).rebuilt


def test_only_how_far_it_is_searched_needs_no_other_index(filled: Database) -> None:
    build(filled, BINARY)
    assert not build(filled, IndexSettings("binary", 16, 64, 200)).rebuilt


def test_an_invalid_index_is_replaced(filled: Database) -> None:
    build(filled, BINARY)
    ((_, _, oid),) = indexes(filled)
    execute(filled, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s", oid)
    assert build(filled, BINARY).rebuilt
    assert [row[:2] for row in indexes(filled)] == [("doc_embeddings_binary", True)]


def test_an_index_that_is_gone_is_built_again(filled: Database) -> None:
    build(filled, BINARY)
    execute(filled, f"DROP INDEX {SPACE.name}.doc_embeddings_binary")
    assert build(filled, BINARY).rebuilt
    assert len(indexes(filled)) == 1


def test_what_a_killed_build_or_a_stranger_left_is_cleared_away(filled: Database) -> None:
    build(filled, BINARY)
    table = f"{SPACE.name}.doc_embeddings"
    execute(filled, f"CREATE INDEX doc_embeddings_halfvec_new ON {table} USING hnsw (embedding halfvec_cosine_ops)")
    execute(filled, f"CREATE INDEX by_hand ON {table} USING ivfflat (embedding halfvec_cosine_ops) WITH (lists = 2)")
    assert build(filled, BINARY).rebuilt
    assert [name for name, *_ in indexes(filled)] == ["doc_embeddings_binary"]


def test_a_build_that_fails_leaves_the_index_there_was(filled: Database) -> None:
    build(filled, BINARY)
    before = indexes(filled)
    with pytest.raises(psycopg.Error):
        build(filled, IndexSettings("halfvec", 1_000_000, 64, 100))
    assert indexes(filled) == before
    assert not build(filled, BINARY).rebuilt


def test_a_build_tells_where_it_is(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "POLL_S", 0.001)
    told: list[tuple[str, int, int]] = []
    ensure_index(filled, SPACE, "doc", BINARY, lambda *phase: told.append(phase))
    assert all(done <= rows_in_all for _, done, rows_in_all in told)


def test_a_parallel_build_that_lacks_shared_memory_is_done_by_one_process(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = indexing.statement, []

    def noted(file: str, name: str, **variables: Any) -> Any:
        asked.append(name)
        return real(file, name, **variables)

    class Full:
        """The first CREATE INDEX finds /dev/shm full."""

        def __init__(self, connection: Any) -> None:
            self._connection, self.failed = connection, False

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        def execute(self, query: Any, *values: Any, **options: Any) -> Any:
            if "CREATE INDEX" in str(query) and not self.failed:
                self.failed = True
                raise psycopg.errors.DiskFull("could not resize shared memory segment")
            return self._connection.execute(query, *values, **options)

    whole = indexing._build

    def build_with_little_memory(database: Database, connection: Any, *rest: Any) -> None:
        whole(database, Full(connection), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(indexing, "statement", noted)
    monkeypatch.setattr(indexing, "_build", build_with_little_memory)
    assert build(filled, BINARY).rebuilt
    assert asked.count("serial_build") == asked.count("parallel_build") == 1
    assert [row[:2] for row in indexes(filled)] == [("doc_embeddings_binary", True)]


def test_an_empty_table_is_indexed_too(clean_database: Database, tmp_path: Path) -> None:
    done = run_pipeline(clean_database, write_export(tmp_path / "export.db", [case(1, " ")]), index=BINARY)
    assert [done.builds[kind].rows for kind in KINDS] == [0, 0]
    found = measure(clean_database, SPACE, "doc", BINARY)
    assert (found.stored, found.perturbed, found.queries, found.health.rows) == (None, None, 0, 0)


# Measuring


@pytest.mark.parametrize("settings", STRATEGIES, ids=lambda settings: settings.strategy)
def test_recall_is_measured_against_exact_search(filled: Database, settings: IndexSettings) -> None:
    build(filled, settings)
    found = measure(filled, SPACE, "doc", settings)
    assert found.fresh
    assert (found.queries, found.health.rows) == (200, CASES)
    assert found.health.sound
    assert found.stored is not None
    assert found.perturbed is not None
    if settings.strategy == "none":
        assert (found.stored, found.perturbed) == (1.0, 1.0)
    assert min(found.stored, found.perturbed) >= (0.9 if settings.strategy != "binary" else 0.7)


def test_a_measurement_stands_until_something_is_written(filled: Database) -> None:
    build(filled, HALFVEC)
    first = measure(filled, SPACE, "doc", HALFVEC)
    again = measure(filled, SPACE, "doc", HALFVEC)
    assert (first.fresh, again.fresh) == (True, False)
    assert (again.stored, again.perturbed, again.health) == (first.stored, first.perturbed, first.health)

    table = f"{SPACE.name}.doc_embeddings"
    for change in (
        f"INSERT INTO {table} SELECT sha256(text_hash), embedding, 'x', now() FROM {table} LIMIT 1",
        f"UPDATE {table} SET provenance = 'y' WHERE provenance = 'x'",
        f"DELETE FROM {table} WHERE provenance = 'y'",
        f"TRUNCATE {table}",
    ):
        execute(filled, change)
        assert measure(filled, SPACE, "doc", HALFVEC).fresh, change
        assert not measure(filled, SPACE, "doc", HALFVEC).fresh, change


def test_a_measurement_is_of_one_index_and_one_way_to_search_it(filled: Database) -> None:
    build(filled, HALFVEC)
    measure(filled, SPACE, "doc", HALFVEC)
    assert measure(filled, SPACE, "doc", IndexSettings("halfvec", 16, 64, 40)).fresh
    assert measure(filled, SPACE, "doc", HALFVEC).fresh
    execute(filled, f"REINDEX INDEX {SPACE.name}.doc_embeddings_halfvec")
    assert not measure(filled, SPACE, "doc", HALFVEC).fresh, "the same index, built from the same rows"
    build(filled, BINARY)
    assert measure(filled, SPACE, "doc", BINARY).fresh
    execute(filled, f"DROP INDEX {SPACE.name}.doc_embeddings_binary")
    assert measure(filled, SPACE, "doc", BINARY).fresh


def test_writes_to_another_table_leave_the_measurement_standing(filled: Database) -> None:
    build(filled, HALFVEC)
    measure(filled, SPACE, "doc", HALFVEC)
    execute(filled, f"DELETE FROM {SPACE.name}.step_embeddings")
    execute(filled, "UPDATE store.test_documents SET title = 'x'")
    assert not measure(filled, SPACE, "doc", HALFVEC).fresh


def test_every_write_to_a_room_moves_its_counters(filled: Database) -> None:
    def counted() -> str:
        return json.dumps(write_counters(filled, SPACE), default=str)

    assert counted() == counted()
    for change in (
        "UPDATE store.test_steps SET data = 'x' WHERE test_case_id = 1",
        "DELETE FROM store.test_documents WHERE test_case_id = 1",
        "INSERT INTO landing.rejected_rows VALUES ('h', 0, NULL, 'invalid_id', '', '{}')",
        "UPDATE staging.test_documents SET title = 'x' WHERE case_id = 2",
        f"DELETE FROM {SPACE.name}.doc_embeddings",
        "TRUNCATE store.test_preconditions",
        "TRUNCATE store.test_documents CASCADE",
    ):
        before = counted()
        execute(filled, change)
        assert counted() != before, change
    tables = {row["table"] for row in write_counters(filled, SPACE)}
    assert {"landing.cases", "staging.rejects", "store.test_steps", f"{SPACE.name}.step_embeddings"} <= tables
    assert not tables & {"store.parity_reports", "store.index_builds", "store.spaces"}, "what reports write themselves"


def test_a_write_of_another_connection_of_ours_counts_at_once(filled: Database) -> None:
    def updated() -> int:
        return {row["table"]: int(row["updated"]) for row in write_counters(filled, SPACE)}["staging.test_documents"]

    with filled.connection("one"), filled.connection("two"):
        pass  # the pool lends the one that was idle longest: writing and counting are not the same session
    before = updated()
    with filled.connection("write") as connection:
        for _ in range(3):
            connection.execute("UPDATE staging.test_documents SET title = title WHERE case_id = 2")
    assert updated() - before == 3


# Bad states


def vector_of(number: int) -> str:
    return vector_text(np.zeros(64, np.float32) if number == 0 else embed([str(number)], 64)[0] * np.float32(3))


def test_a_bad_state_is_seen(filled: Database) -> None:
    """The strategy says binary, the index is gone, and unsound vectors came in by hand."""
    build(filled, BINARY)
    apply_strategy(filled, SPACE, BINARY)
    assert measure(filled, SPACE, "doc", BINARY).health.sound
    execute(filled, f"DROP INDEX {SPACE.name}.doc_embeddings_binary")
    for number in range(2):
        execute(
            filled,
            f"INSERT INTO {SPACE.name}.doc_embeddings VALUES (sha256(%s::bytea), %s::halfvec, 'by hand', now())",
            bytes([number]), vector_of(number),
        )  # fmt: skip
    found = measure(filled, SPACE, "doc", BINARY)
    by_hand = f"SELECT l2_norm(embedding) = 0, text_hash FROM {SPACE.name}.doc_embeddings WHERE provenance = 'by hand'"
    hashes = dict(rows(filled, by_hand))
    assert (found.fresh, found.health.sound) == (True, False)
    assert (found.health.zero, found.health.wrong_norm) == ([hashes[True].hex()], [hashes[False].hex()])
    assert build(filled, BINARY).rebuilt


def test_an_index_that_lost_its_rows_is_seen_by_its_recall(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    build(filled, HALFVEC)
    whole = measure(filled, SPACE, "doc", HALFVEC)
    assert whole.stored is not None
    assert whole.stored >= 0.95
    # An index over half of the rows answers without the others, as one that was damaged would.
    execute(filled, f"DROP INDEX {SPACE.name}.doc_embeddings_halfvec")
    execute(
        filled,
        f"CREATE VIEW {SPACE.name}.half AS SELECT * FROM {SPACE.name}.doc_vectors WHERE get_byte(text_hash, 0) < 128",
    )
    real = indexing.statement
    monkeypatch.setattr(
        indexing,
        "statement",
        lambda file, name, **v: real(file, name, **({**v, "view": "half"} if name.startswith("nearest") else v)),
    )
    damaged = measure(filled, SPACE, "doc", HALFVEC)
    assert damaged.fresh
    assert damaged.stored is not None
    assert damaged.stored < 0.8


def test_a_scan_reads_every_vector_once(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {
        bytes(key): vector
        for key, vector in rows(filled, f"SELECT text_hash, embedding::real[] FROM {SPACE.name}.doc_embeddings")
    }
    for batch in (1, 7, CASES, 4096):
        monkeypatch.setattr(indexing, "SCAN_ROWS", batch)
        with filled.connection("test", long=True) as connection:
            seen = [
                (key, vector)
                for keys, vectors in scan_vectors(connection, SPACE, "doc_embeddings")
                for key, vector in zip(keys, vectors, strict=True)
            ]
        assert len(seen) == CASES
        assert all(np.allclose(vector, stored[key], atol=1e-6) for key, vector in dict(seen).items())
        assert dict(seen).keys() == stored.keys()


# The query of the design, section 2


def plan_of(connection: psycopg.Connection, query: str, vector: str) -> str:
    found = connection.execute("EXPLAIN (FORMAT TEXT) " + query, {"query": vector}).fetchall()  # type: ignore[call-overload]
    return "\n".join(line for (line,) in found)


def test_the_applications_own_query_uses_the_halfvec_index(filled: Database) -> None:
    query = """SELECT test_case_id, 1 - (embedding <=> %(query)s) FROM qbench.test_documents
               WHERE priority = 'Medium' ORDER BY embedding <=> %(query)s LIMIT 10"""
    vector = vector_text(embed(["Case 77 of the 12th kind\n"], 64)[0])
    execute(filled, "ANALYZE")
    for settings in (HALFVEC, BINARY):
        build(filled, settings)
        with psycopg.connect(filled.url) as connection:
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
