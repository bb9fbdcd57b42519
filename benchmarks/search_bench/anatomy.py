"""Where the milliseconds of one search go: each part by itself, on the same connection."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg import sql

from benchmarks.search_bench.corpus import Corpus
from benchmarks.search_bench.tables import space_of
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.vectors import vector_text

REPEATS = 3
QUERIES = 50
SCAN = """SELECT count(*) FROM (
    SELECT text_hash FROM {space}.doc_vectors
    ORDER BY bits <~> binary_quantize(%(query)s)::bit({dimensions}) LIMIT %(depth)s) c"""
RERANK = """SELECT text_hash FROM (
    SELECT text_hash, embedding FROM {space}.doc_vectors
    ORDER BY bits <~> binary_quantize(%(query)s)::bit({dimensions}) LIMIT %(depth)s) c
    ORDER BY embedding <=> %(query)s LIMIT 10"""


def parts(database: Database, corpus: Corpus, depth: int) -> list[tuple[str, float]]:
    """(what is asked, its milliseconds). The least of three runs of a query, then the median of the queries."""
    names = {"space": sql.Identifier(space_of(corpus).name), "dimensions": sql.Literal(corpus.dimensions)}
    queries = corpus.query_vectors[:QUERIES]
    binary = [HalfVector(query) for query in queries]
    text = [vector_text(query) for query in queries]
    asked: list[tuple[str, Any, Sequence[Any]]] = [
        ("a round trip (SELECT 1)", "SELECT 1", text),
        ("and a vector sent, binary", "SELECT vector_dims(%(query)s)", binary),
        ("and a vector sent, as text", "SELECT vector_dims(%(query)s::halfvec)", text),
        (f"scan of the binary index, {depth} candidates", sql.SQL(SCAN).format(**names), binary),
        ("scan and exact comparison", sql.SQL(RERANK).format(**names), binary),
        ("qbench.search_documents", "SELECT * FROM qbench.search_documents(%(query)s)", binary),
    ]
    with psycopg.connect(database.url, autocommit=True, prepare_threshold=1) as connection:
        register_vector(connection)
        connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", (str(min(depth, 1000)),))
        connection.execute("SET hnsw.iterative_scan = relaxed_order")
        return [
            (what, _median_ms(connection, query, [{"query": value, "depth": depth} for value in values]))
            for what, query, values in asked
        ]


def _median_ms(connection: psycopg.Connection[Any], query: Any, values: Sequence[dict[str, Any]]) -> float:
    took = np.empty((REPEATS, len(values)))
    with connection.cursor(binary=True) as cursor:
        for repeat in range(-1, REPEATS):  # once to warm up
            for number, parameters in enumerate(values):
                started = perf_counter()
                cursor.execute(query, parameters).fetchall()
                took[repeat, number] = (perf_counter() - started) * 1000
    return float(np.median(took.min(axis=0)))
