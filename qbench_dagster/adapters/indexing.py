"""Builds the approximate indexes of a space and measures what they find."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts, fetch_value
from qbench_dagster.adapters.space import Kind, Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.pgcopy import HEADER, read_hashes, read_row_bytes, read_vectors
from qbench_dagster.core.recall import ExactSearch, VectorHealth, perturb, recall

log = logging.getLogger(__name__)

POLL_S = 2.0
QUERIES = 100
"""Stored vectors, and as many perturbed ones: recall is then known to about 0.01 (standard error)."""
NOISE = 0.5
SCAN_ROWS = 4096


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How to index and to search: strategy `binary`, `halfvec` or `none`, and HNSW's parameters."""

    strategy: str
    m: int
    ef_construction: int
    ef_search: int


@dataclass(frozen=True, slots=True)
class Build:
    """One index as it is now. `seconds` is what its build took, when it was built."""

    kind: str
    strategy: str
    rows: int
    bytes: int
    seconds: float
    rebuilt: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """What the measurement of one table found: recall@10 by kind of query, and the vectors' health."""

    stored: float | None
    perturbed: float | None
    queries: int
    ef_search: int
    p50_ms: float
    p95_ms: float
    health: VectorHealth
    fresh: bool


def table_of(kind: Kind) -> str:
    """Table that holds the vectors of `kind`."""
    return f"{kind}_embeddings"


def ensure_index(
    database: Database,
    space: Space,
    kind: Kind,
    settings: IndexSettings,
    progress: Callable[[str, int, int], None],
) -> Build:
    """Build the index of one table if it is missing, invalid, or of other settings.

    It is built under another name and takes the old one's place in one transaction.
    `progress` is told the phase, rows done and rows in all.
    """
    table = table_of(kind)
    final = f"{table}_{settings.strategy}"
    with (
        database.exclusive(f"index of {space.name}.{table}"),
        database.connection(f"index {kind}", long=True) as connection,
    ):
        rows = fetch_value(connection, statement("index.sql", "count_rows", space=space.name, table=table))
        existing = fetch_dicts(connection, statement("index.sql", "existing"), space=space.name, table=table)
        known = fetch_dicts(connection, statement("index.sql", "build_of"), space=space.name, kind=kind)
        wanted = {"strategy": settings.strategy, "m": settings.m, "ef_construction": settings.ef_construction}
        as_wanted = bool(known) and all(known[0][name] == value for name, value in wanted.items())
        valid = [index for index in existing if index["valid"] and index["name"] == final]
        if as_wanted and len(existing) == len(valid) == (settings.strategy != "none"):
            size = valid[0]["bytes"] if valid else 0
            return Build(kind, settings.strategy, rows, size, known[0]["seconds"], rebuilt=False)
        started = time.monotonic()
        temporary = f"{final}_new"
        # A killed run's server process may still be building: VACUUM waits for it, then what it left can go.
        connection.execute(statement("index.sql", "vacuum", space=space.name, table=table))
        connection.execute(statement("index.sql", "drop_index", space=space.name, index=temporary))
        if settings.strategy != "none":
            _build(database, connection, space, table, temporary, settings, rows, progress)
        seconds = time.monotonic() - started
        with connection.transaction():
            for index in existing:
                if index["name"] != temporary:  # left by a killed run and dropped above; now it is the new one
                    connection.execute(statement("index.sql", "drop_index", space=space.name, index=index["name"]))
            if settings.strategy != "none":
                connection.execute(
                    statement("index.sql", "rename_index", space=space.name, index=temporary, new_name=final)
                )
            size = fetch_value(connection, statement("index.sql", "index_bytes_of"), space=space.name, table=table)
            connection.execute(
                statement("index.sql", "record_build"),
                {**wanted, "space": space.name, "kind": kind, "ef_search": settings.ef_search, "rows": rows,
                 "bytes": size, "seconds": seconds},
            )  # fmt: skip
    return Build(kind, settings.strategy, rows, size, seconds, rebuilt=True)


def _build(
    database: Database,
    connection: Connection,
    space: Space,
    table: str,
    name: str,
    settings: IndexSettings,
    rows: int,
    progress: Callable[[str, int, int], None],
) -> None:
    shape = "binary" if settings.strategy == "binary" else f"halfvec_of_{space.vector_type}"
    query = statement(
        "index.sql", f"build_{shape}", index=name, space=space.name, table=table, dimensions=space.dimensions,
        m=settings.m, ef_construction=settings.ef_construction,
    )  # fmt: skip
    pid = connection.info.backend_pid

    def build() -> None:
        try:
            connection.execute(query)
        except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
            # A parallel build shares its graph through /dev/shm, which containers keep small.
            log.warning("parallel index build failed (%s); building with one process", str(error).strip())
            connection.execute(statement("index.sql", "serial_build"))
            connection.execute(query)
            connection.execute(statement("index.sql", "parallel_build"))

    with ThreadPoolExecutor(1, thread_name_prefix="index") as pool:
        building = pool.submit(build)
        with database.connection("watch index") as watching:
            while not wait_for([building], timeout=POLL_S).done:
                for row in fetch_dicts(watching, statement("index.sql", "progress"), pid=pid):
                    progress(row["phase"], row["tuples_done"] or 0, row["tuples_total"] or rows)
        building.result()


def apply_strategy(database: Database, space: Space, settings: IndexSettings) -> None:
    """Tell the search functions how the space is indexed."""
    with database.connection("set strategy") as connection:
        connection.execute(
            statement("index.sql", "set_strategy"),
            {"space": space.name, "strategy": settings.strategy, "ef_search": settings.ef_search},
        )


def write_counters(database: Database, space: Space) -> list[dict[str, Any]]:
    """Counters that any write to our tables moves, and when they began; empty where the server does not count."""
    with database.connection("write counters") as connection:
        connection.execute(statement("setup.sql", "flush_counters"))
        return fetch_dicts(connection, statement("index.sql", "write_counters"), space=space.name)


def measure(database: Database, space: Space, kind: Kind, settings: IndexSettings) -> Measured:
    """recall@10 of one table against exact search, and the health of every vector in it.

    The last measurement stands while no row was written, and index and ef_search are the same.
    """
    table = table_of(kind)
    counters = [row for row in write_counters(database, space) if row["table"] == f"{space.name}.{table}"]
    with database.connection(f"measure {kind}", long=True) as connection:
        indexes = fetch_dicts(connection, statement("index.sql", "existing"), space=space.name, table=table)
        state = {
            "counters": counters,
            "indexes": sorted(index["oid"] for index in indexes),
            "ef_search": settings.ef_search,
            "queries": QUERIES,
        }
        known = fetch_dicts(connection, statement("index.sql", "build_of"), space=space.name, kind=kind)
        if counters and known and known[0]["recall"] and known[0]["recall"]["state"] == state:
            kept = known[0]["recall"]["measured"]
            return Measured(**{**kept, "health": VectorHealth(**kept["health"]), "fresh": False})
        measured = _measure(connection, space, kind, settings)
        connection.execute(
            statement("index.sql", "record_recall"),
            {
                "recall": Jsonb({"state": state, "measured": asdict(measured)}),
                "ef_search": settings.ef_search,
                "space": space.name,
                "kind": kind,
            },
        )
    return measured


def _measure(connection: Connection, space: Space, kind: Kind, settings: IndexSettings) -> Measured:
    table = table_of(kind)
    sample = statement("index.sql", "sample_hashes", space=space.name, table=table)
    hashes = [row[0] for row in connection.execute(sample, {"limit": QUERIES}, binary=True).fetchall()]
    stored = _vectors_of(connection, space, table, hashes)
    queries = np.vstack([stored, perturb(stored, NOISE, seed=729)]) if len(stored) else stored
    k = 10
    exact = ExactSearch(queries, k)
    for batch_hashes, vectors in scan_vectors(connection, space, table):
        exact.add(batch_hashes, vectors)
    with connection.transaction():
        latencies, scores = _search(connection, space, kind, settings, queries, k)
    found_share = recall(scores, exact.thresholds().tolist(), exact.reachable)
    half = len(stored)
    return Measured(
        stored=_mean(found_share[:half]),
        perturbed=_mean(found_share[half:]),
        queries=len(queries),
        ef_search=settings.ef_search,
        p50_ms=round(float(np.percentile(latencies, 50)), 3) if latencies else 0.0,
        p95_ms=round(float(np.percentile(latencies, 95)), 3) if latencies else 0.0,
        health=exact.health,
        fresh=True,
    )


def _search(
    connection: Connection,
    space: Space,
    kind: Kind,
    settings: IndexSettings,
    queries: NDArray[np.float32],
    k: int,
) -> tuple[list[float], list[list[float]]]:
    """Milliseconds of each query, and the true cosines of what it returned."""
    nearest = statement("index.sql", f"nearest_{settings.strategy}", space=space.name, view=f"{kind}_vectors",
                        dimensions=space.dimensions)  # fmt: skip
    connection.execute(statement("index.sql", "session_search"), {"ef_search": str(settings.ef_search)})
    latencies, scores = [], []
    for query in queries:
        values = {"query": vector_text(query), "k": k, "candidates": max(settings.ef_search, 4 * k)}
        started = time.perf_counter()
        scores.append([row[0] for row in connection.execute(nearest, values).fetchall()])
        latencies.append((time.perf_counter() - started) * 1000)
    return latencies, scores


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def vector_text(vector: NDArray[np.float32]) -> str:
    """pgvector's text form of a vector."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


def _vectors_of(connection: Connection, space: Space, table: str, hashes: list[bytes]) -> NDArray[np.float32]:
    """Unit vectors of some stored texts, in the order of `hashes`."""
    query = statement("index.sql", "sample_vectors", space=space.name, table=table)
    rows: dict[bytes, list[float]] = dict(connection.execute(query, {"hashes": hashes}, binary=True).fetchall())
    if not rows:
        return np.empty((0, space.dimensions), dtype=np.float32)
    vectors = np.asarray([rows[text_hash] for text_hash in hashes], dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)


def scan_vectors(connection: Connection, space: Space, table: str) -> Any:
    """Every (hashes, vectors) of a table in batches of about 4,096 rows: 50 MB at 3,072 dimensions."""
    size = read_row_bytes(space.vector_type, space.dimensions)
    limit = size * SCAN_ROWS
    pending = bytearray()
    start = len(HEADER)
    with (
        connection.cursor() as cursor,
        cursor.copy(statement("index.sql", "copy_vectors", space=space.name, table=table)) as copy,
    ):
        for chunk in copy:
            pending += chunk
            if len(pending) >= limit + start:
                whole = (len(pending) - start) // size * size
                yield _decoded(bytes(pending[start : start + whole]), space)
                del pending[: start + whole]
                start = 0
    rest = bytes(pending[start : len(pending) - 2])  # without COPY's trailer
    if rest:
        yield _decoded(rest, space)


def _decoded(data: bytes, space: Space) -> tuple[list[bytes], NDArray[np.float32]]:
    return (
        read_hashes(data, space.vector_type, space.dimensions),
        read_vectors(data, space.vector_type, space.dimensions),
    )
