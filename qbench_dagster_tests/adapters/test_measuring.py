"""Recall: measured as a brute force of the test's own finds it, kept while nothing was written; bad states are seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qbench_dagster.adapters import indexing, measuring, probing, vectors
from qbench_dagster.adapters.measuring import measure, write_counters
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS, Space, ensure_space
from qbench_dagster.adapters.vectors import sampled_vectors, scan_vectors, vector_text
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.lexical import embed
from qbench_dagster.core.recall import perturb
from qbench_dagster_tests.adapters.indexes import (
    BINARY,
    HALFVEC,
    IVFFLAT,
    STRATEGIES,
    build,
    clustered,
    fill,
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
def test_recall_agrees_with_a_brute_force(clean_database: Database, settings: IndexSettings, vector_type: str) -> None:
    """The test asks the same questions in its own SQL and compares with its own matrix product."""
    space = replace(SPACE, name=f"space_{vector_type}_64", vector_type=vector_type)
    fill(clean_database, clustered(600, 64), space, clustered(300, 64, seed=8))
    settings = replace(settings, ef_search=settings.ef_search and min(settings.ef_search, 40), rerank=40)
    build(clean_database, settings, space=space)
    found = measure(clean_database, space, "doc")
    stored = np.array(
        [v for (v,) in rows(clean_database, f"SELECT embedding::real[] FROM {space.name}.doc_embeddings")]
    )
    with clean_database.connection("test") as connection:
        drawn = sampled_vectors(connection, space, "doc_embeddings", probing.QUERIES)
        others = sampled_vectors(connection, space, "step_embeddings", probing.QUERIES)
        queries = np.vstack([drawn, perturb(drawn, probing.NOISE, seed=729), others])
        orders = {
            "exact": "(embedding <=> %(q)s::halfvec) + 0",
            "binary": "binary_quantize(embedding)::bit(64) <~> binary_quantize(%(q)s::halfvec)::bit(64)",
            "subvector": "subvector(embedding, 1, 16)::halfvec(16) <=> subvector(%(q)s::halfvec, 1, 16)::halfvec(16)",
        }
        order = orders.get(settings.strategy, "embedding::halfvec(64) <=> %(q)s::halfvec(64)")
        shares: dict[int, list[float]] = {10: [], 100: []}
        connection.execute("SET hnsw.ef_search = 40; SET hnsw.iterative_scan = relaxed_order; SET ivfflat.probes = 2; "
                           "SET ivfflat.iterative_scan = relaxed_order")  # fmt: skip
        for query in queries:
            cosines = np.sort(stored @ query / np.linalg.norm(stored, axis=1))[::-1]
            for k, hits in shares.items():
                candidates = k if settings.strategy == "exact" else max(40, 4 * k)
                asked = f"""SELECT 1 - (embedding <=> %(q)s::halfvec) FROM (
                    SELECT embedding FROM {space.name}.doc_embeddings ORDER BY {order} LIMIT {candidates}) c
                    ORDER BY 1 DESC LIMIT {k}"""
                returned = connection.execute(asked, {"q": vector_text(query)}).fetchall()  # type: ignore[arg-type]
                hits.append(sum(similarity >= cosines[k - 1] - 1e-4 for (similarity,) in returned) / k)
        for name in ("hnsw.ef_search", "hnsw.iterative_scan", "ivfflat.probes", "ivfflat.iterative_scan"):
            connection.execute(f"RESET {name}")  # type: ignore[arg-type]
    for k, hits in shares.items():
        measured = [share for kind in ("stored", "perturbed", "crossed") for share in found.recall[kind][str(k)]]
        apart = np.abs(np.array(measured) - np.array(hits))
        assert apart.max() <= 0.05, k  # ties at the edge of half precision
        assert apart.mean() <= 0.003, k
    asked = 3 * probing.QUERIES
    assert (found.rows, found.queries, len(found.latencies_ms), found.fresh) == (600, asked, asked, True)
    assert found.means == {kind: pytest.approx(np.mean(by_k["10"]), abs=1e-4) for kind, by_k in found.recall.items()}, (
        "by kind of query"
    )
    assert found.p50_ms <= found.p95_ms


def test_exact_search_of_a_large_table_is_measured_by_fewer_queries(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "EXACT_ROWS", 100)
    build(filled, EXACT)
    found = measure(filled, SPACE, "doc")
    assert (found.queries, found.means) == (72, {"stored": 1.0, "perturbed": 1.0, "crossed": 1.0})
    assert {len(shares) for by_k in found.recall.values() for shares in by_k.values()} == {24}


def test_the_curve_rises_and_what_is_chosen_meets_the_target(clean_database: Database) -> None:
    fill(clean_database, clustered(1500, 64))
    settings = IndexSettings("binary", m=6, ef_construction=16, target_recall=0.9)
    build(clean_database, settings)
    ef_search, rerank, curve = recorded(clean_database, "ef_search, rerank, curve")
    assert [point["ef_search"] for point in curve] == sorted(point["ef_search"] for point in curve)
    chosen = next(point for point in curve if point["recall_10_low"] >= 0.9)
    assert (ef_search, rerank) == (chosen["ef_search"], chosen["rerank"])
    assert all(point["recall_10_low"] < 0.9 for point in curve if point["ef_search"] < ef_search)
    assert all(point["recall_10_low"] <= point["recall_10"] for point in curve)
    assert sum(point["ef_search"] > ef_search for point in curve) == (ef_search < 1000)
    found = measure(clean_database, SPACE, "doc")
    assert not found.fresh, "measured while it was tuned"
    assert min(found.means.values()) == pytest.approx(chosen["recall_10"], abs=0.001)
    deep = min(np.mean(shares["100"]) for shares in found.recall.values())
    assert chosen["recall_100"] == pytest.approx(deep, abs=0.05), "of every fourth query"


def test_an_index_that_has_come_to_find_too_little_is_searched_further(clean_database: Database) -> None:
    fill(clean_database, clustered(1500, 64))
    build(clean_database, IndexSettings("subvector", shortened=4, target_recall=0.2))
    (enough,) = recorded(clean_database, "ef_search")
    assert measure(clean_database, SPACE, "doc").reaches(0.2)
    more = IndexSettings("subvector", shortened=4, target_recall=0.8)
    assert not measure(clean_database, SPACE, "doc").reaches(0.8)
    assert not build(clean_database, more).rebuilt
    assert recorded(clean_database, "ef_search") > (enough,)
    assert measure(clean_database, SPACE, "doc").reaches(0.8)


def test_a_measurement_stands_until_something_is_written(filled: Database) -> None:
    build(filled, HALFVEC)
    first = measure(filled, SPACE, "doc")
    again = measure(filled, SPACE, "doc")
    assert (first.fresh, again.fresh) == (True, False)
    assert replace(again, fresh=True) == first
    for change in (
        f"INSERT INTO {TABLE} SELECT sha256(text_hash), embedding, 'x', now() FROM {TABLE} LIMIT 1",
        f"UPDATE {TABLE} SET provenance = 'y' WHERE provenance = 'x'",
        f"DELETE FROM {TABLE} WHERE provenance = 'y'",
        f"TRUNCATE {TABLE}",
    ):
        execute(filled, change)
        assert measure(filled, SPACE, "doc").fresh, change
        assert not measure(filled, SPACE, "doc").fresh, change


def test_a_measurement_is_of_one_index_and_one_way_to_search_it(filled: Database) -> None:
    build(filled, HALFVEC)
    measure(filled, SPACE, "doc")
    build(filled, replace(HALFVEC, ef_search=40))
    assert measure(filled, SPACE, "doc").fresh
    execute(filled, f"REINDEX INDEX {SPACE.name}.doc_embeddings_halfvec_1")
    assert not measure(filled, SPACE, "doc").fresh, "the same index, built from the same rows"
    build(filled, BINARY)
    assert measure(filled, SPACE, "doc").fresh
    execute(filled, f"DROP INDEX {SPACE.name}.doc_embeddings_binary_1")
    assert measure(filled, SPACE, "doc").fresh


def test_what_is_written_while_it_is_measured_is_measured_again(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact search of a tuning is from before; the measurement that is kept of it must not pass for one of now."""
    real = indexing.ground_truth

    def meanwhile(*arguments: Any) -> probing.Truth:
        found = real(*arguments)
        execute(filled, f"INSERT INTO {TABLE} SELECT sha256(text_hash), embedding, 'x', now() FROM {TABLE} LIMIT 1")
        return found

    monkeypatch.setattr(indexing, "ground_truth", meanwhile)
    build(filled, replace(IVFFLAT, ef_search=None))
    assert measure(filled, SPACE, "doc").fresh
    assert not measure(filled, SPACE, "doc").fresh


def test_writes_to_another_table_leave_the_measurement_standing(filled: Database) -> None:
    build(filled, HALFVEC)
    measure(filled, SPACE, "doc")
    execute(filled, f"DELETE FROM {SPACE.name}.step_embeddings")
    execute(filled, "UPDATE store.test_documents SET title = 'x'")
    assert not measure(filled, SPACE, "doc").fresh


def test_every_write_to_a_room_moves_its_counters(clean_database: Database, tmp_path: Path) -> None:
    cases = [case(n, f"Case {n}", steps=f"Step {n}", preconditions="Before") for n in range(1, 6)]
    run_pipeline(clean_database, write_export(tmp_path / "export.db", cases))

    def counted() -> str:
        return json.dumps(write_counters(clean_database, SPACE), default=str)

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
        execute(clean_database, change)
        assert counted() != before, change
    tables = {row["table"] for row in write_counters(clean_database, SPACE)}
    assert {"landing.cases", "staging.rejects", "store.test_steps", f"{SPACE.name}.step_embeddings"} <= tables
    assert not tables & {"store.parity_reports", "store.index_builds", "store.spaces"}, "what reports write themselves"


def test_a_write_of_another_connection_of_ours_counts_at_once(clean_database: Database, tmp_path: Path) -> None:
    run_pipeline(clean_database, write_export(tmp_path / "export.db", [case(2)]))

    def updated() -> int:
        counted = write_counters(clean_database, SPACE)
        return {row["table"]: int(row["updated"]) for row in counted}["staging.test_documents"]

    with clean_database.connection("one"), clean_database.connection("two"):
        pass  # the pool lends the one that was idle longest: writing and counting are not the same session
    before = updated()
    with clean_database.connection("write") as connection:
        for _ in range(3):
            connection.execute("UPDATE staging.test_documents SET title = title WHERE case_id = 2")
    assert updated() - before == 3


# Bad states


def test_an_empty_table_is_measured_too(clean_database: Database) -> None:
    ensure_space(clean_database, SPACE)
    for settings in (BINARY, IndexSettings("ivfflat"), IndexSettings("auto"), EXACT):
        assert [build(clean_database, settings, kind).rows for kind in KINDS] == [0, 0]
        found = measure(clean_database, SPACE, "doc")
        assert (found.means, found.queries, found.health.rows) == ({}, 0, 0)
        assert found.reaches(1.0)


def vector_of(number: int) -> str:
    return vector_text(np.zeros(64, np.float32) if number == 0 else embed([str(number)], 64)[0] * np.float32(3))


def test_a_bad_state_is_seen(filled: Database) -> None:
    """The row says binary, the index is gone, and unsound vectors came in by hand."""
    build(filled, BINARY)
    assert measure(filled, SPACE, "doc").health.sound
    execute(filled, f"DROP INDEX {SPACE.name}.doc_embeddings_binary_1")
    for number in range(2):
        execute(
            filled,
            f"INSERT INTO {SPACE.name}.doc_embeddings VALUES (sha256(%s::bytea), %s::halfvec, 'by hand', now())",
            bytes([number]), vector_of(number),
        )  # fmt: skip
    found = measure(filled, SPACE, "doc")
    by_hand = f"SELECT l2_norm(embedding) = 0, text_hash FROM {SPACE.name}.doc_embeddings WHERE provenance = 'by hand'"
    hashes = dict(rows(filled, by_hand))
    assert (found.fresh, found.health.sound) == (True, False)
    assert (found.health.zero, found.health.wrong_norm) == ([hashes[True].hex()], [hashes[False].hex()])
    assert build(filled, BINARY).rebuilt


def test_an_index_over_some_of_the_rows_is_built_again(filled: Database) -> None:
    build(filled, HALFVEC)
    assert min(measure(filled, SPACE, "doc").means.values()) >= 0.95
    execute(filled, f"DROP INDEX {SPACE.name}.doc_embeddings_halfvec_1")
    execute(
        filled,
        f"CREATE INDEX doc_embeddings_halfvec_1 ON {TABLE} USING hnsw (embedding public.halfvec_cosine_ops)"
        " WITH (m = 16, ef_construction = 64) WHERE get_byte(text_hash, 0) < 128",
    )
    assert "another expression" in build(filled, HALFVEC).why


def test_an_index_of_two_links_a_node_is_seen_by_its_recall(clean_database: Database) -> None:
    fill(clean_database, clustered(2000, 64))
    build(clean_database, IndexSettings("halfvec", m=2, ef_construction=4, ef_search=10))
    assert not measure(clean_database, SPACE, "doc").reaches(0.95)


def test_a_scan_reads_every_vector_once(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {
        bytes(key): vector
        for key, vector in rows(filled, f"SELECT text_hash, embedding::real[] FROM {SPACE.name}.doc_embeddings")
    }
    for batch in (1, 7, CASES, 4096):
        monkeypatch.setattr(vectors, "SCAN_ROWS", batch)
        with filled.connection("test", long=True) as connection:
            seen = [
                (key, vector)
                for keys, found in scan_vectors(connection, SPACE, "doc_embeddings")
                for key, vector in zip(keys, found, strict=True)
            ]
        assert len(seen) == CASES
        assert all(np.allclose(vector, stored[key], atol=1e-6) for key, vector in dict(seen).items())
        assert dict(seen).keys() == stored.keys()


def test_spaces_are_measured_by_what_their_own_rows_say(clean_database: Database) -> None:
    other = Space("space_other_64", "lexical-v1", 64, "halfvec")
    for space, settings in ((SPACE, BINARY), (other, EXACT)):
        fill(clean_database, clustered(50, 64), space)
        build(clean_database, settings, space=space)
    assert [measure(clean_database, space, "doc").strategy for space in (SPACE, other)] == ["binary", "exact"]
