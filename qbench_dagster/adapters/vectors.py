"""Stored vectors read back: some by their hashes, all by COPY, one as text. What is made of them is elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.postgres import Connection
from qbench_dagster.adapters.space import Kind, Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.pgcopy import HEADER, read_hashes, read_row_bytes, read_vectors

SCAN_ROWS = 4096


def table_of(kind: Kind) -> str:
    """Table that holds the vectors of `kind`."""
    return f"{kind}_embeddings"


def vector_text(vector: NDArray[np.float32]) -> str:
    """pgvector's text form of a vector."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


def sampled_vectors(connection: Connection, space: Space, table: str, count: int) -> NDArray[np.float32]:
    """Unit vectors of up to `count` stored texts, at random, but the same for the same rows."""
    drawn = statement("index.sql", "sample_hashes", space=space.name, table=table)
    hashes = [row[0] for row in connection.execute(drawn, {"limit": count}, binary=True).fetchall()]
    query = statement("index.sql", "sample_vectors", space=space.name, table=table)
    rows: dict[bytes, list[float]] = dict(connection.execute(query, {"hashes": hashes}, binary=True).fetchall())
    if not rows:
        return np.empty((0, space.dimensions), dtype=np.float32)
    vectors = np.asarray([rows[text_hash] for text_hash in hashes], dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)


def scan_vectors(connection: Connection, space: Space, table: str) -> Iterator[tuple[list[bytes], NDArray[np.float32]]]:
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
