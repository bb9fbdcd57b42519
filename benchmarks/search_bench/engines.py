"""Engines in PostgreSQL: the project's search functions, plain pgvector on its public view, and exact search.

Clients are what an application has: a connection of the role qbench_reader, prepared statements, binary vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from benchmarks.search_bench.clients import Built, Hits, K, Search
from benchmarks.search_bench.corpus import FIRST_ID, Corpus, Filter
from benchmarks.search_bench.tables import space_of
from qbench_dagster.adapters.indexing import ensure_index
from qbench_dagster.adapters.postgres import Database, fetch_value
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.indexes import IndexSettings

MAX_EF_SEARCH = 1000
FUNCTION = {
    None: "",
    "priority": ", with_priority => ARRAY[%(value)s]",
    "tags": ", with_tags => ARRAY[%(value)s]",
    "project_id": ", in_project => ARRAY[%(value)s]::bigint[]",
    "folder_structure": ", in_folder => %(value)s",
}
WHERE = {
    None: "",
    "priority": "WHERE priority = %(value)s",
    "tags": "WHERE tags && ARRAY[%(value)s]",
    "project_id": "WHERE project_id = %(value)s",
    "folder_structure": "WHERE starts_with(folder_structure, %(value)s)",
}


class _InPostgres:
    """What the three have in common: the tables, which are loaded already, and one index at a time."""

    name: str
    about: str
    depths: Sequence[int]
    strategy: str

    def __init__(self, database: Database, loaded: dict[str, float], tell: Callable[[str], None]) -> None:
        self._database, self._loaded, self._tell = database, loaded, tell
        self._depth = 0

    def build(self, corpus: Corpus) -> Built:
        """Build the index as `hnsw_index` does, with the project's own parameters."""
        self._space = space_of(corpus)
        self._queries = [HalfVector(query) for query in corpus.query_vectors]
        self._texts = [corpus.query_text(number) for number in range(corpus.queries)]
        # How deep to search is found by this benchmark; fixed here, so that the build does not look for it too.
        settings = IndexSettings(self.strategy, ef_search=200, rerank=200, memory_mb=2048)
        build = ensure_index(self._database, self._space, "doc", settings, self._progress)
        with self._database.connection("bench size") as connection:
            total = fetch_value(connection, statement("read.sql", "database_bytes"))
        return Built(self._loaded["vectors_s"], build.seconds, build.bytes, total, self._proof())

    def set_depth(self, depth: int) -> None:
        """How many candidates from now on."""
        self._depth = depth

    def close(self) -> None:
        """The tables stay, for the next index."""

    def _progress(self, phase: str, done: int, of: int) -> None:
        self._tell(f"{self.name}: {phase}, {done:,} of {of:,}")

    def _query(self, only: Filter | None) -> str:
        raise NotImplementedError

    def _proof(self) -> str:
        """The index that the plan of its search names."""
        with self._connect() as connection:
            connection.execute("SELECT set_config('plan_cache_mode', 'force_custom_plan', false)")
            rows = connection.execute("EXPLAIN " + self._query(None), self._values(0, None)).fetchall()
        for (line,) in rows:
            if "Index Scan using doc_embeddings_" in line and "_pkey" not in line:
                return str(line).strip(" ->").split("  (")[0]
        raise AssertionError(f"{self.name} does not use its index: {rows}")

    def _values(self, query: int, only: Filter | None) -> dict[str, Any]:
        return {"query": self._queries[query], "k": K, "value": only and only.value}

    @contextmanager
    def _connect(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self._database.url, autocommit=True, prepare_threshold=1) as connection:
            register_vector(connection)
            connection.execute("SET ROLE qbench_reader")
            yield connection

    @contextmanager
    def client(self) -> Iterator[Search]:
        """A connection of its own."""
        depth = 0
        with self._connect() as connection, connection.cursor(binary=True) as cursor:

            def search(query: int, only: Filter | None) -> Hits:
                nonlocal depth
                if depth != self._depth:
                    self._go_to(connection)
                    depth = self._depth
                rows = cursor.execute(self._query(only), self._values(query, only)).fetchall()
                return [(test_case_id - FIRST_ID, similarity) for test_case_id, similarity, _ in rows]

            yield search

    def _go_to(self, connection: psycopg.Connection[Any]) -> None:
        """Tell a connection about another depth."""


class SearchFunctions(_InPostgres):
    """What an application calls: qbench.search_documents, which reranks what the binary index finds."""

    name = "qbench (binary + rerank)"
    about = "qbench.search_documents: HNSW on the signs of the coordinates, candidates compared exactly"
    depths: Sequence[int] = (40, 60, 80, 100, 150, 200, 300, 400, 500, 600, 800, 1000, 1500, 2000)
    strategy = "binary"

    def set_depth(self, depth: int) -> None:
        """Where the functions look it up at each call."""
        super().set_depth(depth)
        with self._database.connection("bench depth") as connection:
            connection.execute(
                "UPDATE store.index_builds SET ef_search = least(%s, %s), rerank = %s"
                " WHERE space = %s AND kind = 'doc'",
                (depth, MAX_EF_SEARCH, depth, self._space.name),
            )

    def _query(self, only: Filter | None) -> str:
        search = "SELECT test_case_id, similarity, title FROM qbench.search_documents(%(query)s, %(k)s{})"
        return search.format(FUNCTION[only and only.column])

    def _proof(self) -> str:
        return "the build verified that its searches use it"  # or raised

    @contextmanager
    def hybrid_client(self) -> Iterator[Search]:
        """The same for qbench.search_hybrid: vector and words."""
        query_of = "SELECT test_case_id, score FROM qbench.search_hybrid(%(text)s, %(query)s, %(k)s{})"
        with self._connect() as connection, connection.cursor(binary=True) as cursor:

            def search(query: int, only: Filter | None) -> Hits:
                values = {**self._values(query, only), "text": self._texts[query]}
                rows = cursor.execute(query_of.format(FUNCTION[only and only.column]), values).fetchall()
                return [(test_case_id - FIRST_ID, score) for test_case_id, score in rows]

            yield search


class ExactSearch(SearchFunctions):
    """The same functions where no index is built: every vector is compared."""

    name = "exact"
    about = "qbench.search_documents without an index"
    depths: Sequence[int] = ()
    strategy = "exact"

    def _proof(self) -> str:
        return "no index"


class PlainHalfvec(_InPostgres):
    """pgvector as its own documentation uses it: HNSW on halfvec, ORDER BY <=> on the public view."""

    name = "pgvector halfvec HNSW"
    about = "ORDER BY embedding <=> $1 LIMIT 10 on qbench.test_documents, HNSW on halfvec, hnsw.iterative_scan"
    depths: Sequence[int] = (10, 20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000)
    strategy = "halfvec"

    def _query(self, only: Filter | None) -> str:
        search = (
            "SELECT test_case_id, 1 - (embedding <=> %(query)s), title FROM qbench.test_documents {} "
            "ORDER BY embedding <=> %(query)s LIMIT %(k)s"
        )
        return search.format(WHERE[only and only.column])

    def _go_to(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", (str(self._depth),))
        connection.execute("SET hnsw.iterative_scan = strict_order")
