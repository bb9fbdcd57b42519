"""Vectors in PostgreSQL's binary COPY format, a whole batch at a time. Bytes only, no connection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
HASH_BYTES = 32


def _vector_dtype(vector_type: str, dimensions: int) -> tuple[str, int]:
    """(numpy type of a coordinate on the wire, bytes of a vector)."""
    number = {"halfvec": ">f2", "vector": ">f4"}[vector_type]
    return number, 4 + dimensions * np.dtype(number).itemsize


def _row_dtype(vector_type: str, dimensions: int, provenance_bytes: int) -> np.dtype[np.void]:
    number, _ = _vector_dtype(vector_type, dimensions)
    fields = [("fields", ">i2"), ("hash_size", ">i4"), ("hash", f"V{HASH_BYTES}"), ("vector_size", ">i4"),
              ("dimensions", ">i2"), ("unused", ">i2"), ("vector", number, (dimensions,)),
              ("provenance_size", ">i4"), ("provenance", f"S{provenance_bytes}"),
              ("pieces_size", ">i4"), ("pieces", ">i2")]  # fmt: skip
    return np.dtype(fields)


def embedding_rows(
    hashes: Sequence[bytes],
    vectors: NDArray[np.float32],
    provenance: str,
    vector_type: str,
    pieces: Sequence[int] | int = 1,
) -> bytes:
    """Rows (text_hash, embedding, provenance, pieces) of an embeddings table, without COPY's header and trailer.

    `vectors` is (n, dimensions); `vector_type` is `halfvec` or `vector`. A coordinate beyond half
    precision's range (65,504) raises ValueError instead of becoming infinite.
    """
    n, dimensions = vectors.shape
    if n != len(hashes):
        raise ValueError(f"{len(hashes)} hashes for {n} vectors")
    source = provenance.encode()
    _, size = _vector_dtype(vector_type, dimensions)
    rows = np.zeros(n, dtype=_row_dtype(vector_type, dimensions, len(source)))
    rows["fields"] = 4
    rows["hash_size"] = HASH_BYTES
    rows["hash"] = np.frombuffer(b"".join(hashes), dtype=f"V{HASH_BYTES}")
    rows["vector_size"] = size
    rows["dimensions"] = dimensions
    rows["vector"] = vectors
    rows["provenance_size"] = len(source)
    rows["provenance"] = source
    rows["pieces_size"] = 2
    rows["pieces"] = pieces
    if not np.isfinite(rows["vector"]).all():
        raise ValueError(f"a vector holds NaN, infinity or a value {vector_type} cannot hold")
    return rows.tobytes()


def read_vectors(data: bytes, vector_type: str, dimensions: int) -> NDArray[np.float32]:
    """Vectors of whole COPY rows (text_hash, embedding); shape (n, dimensions).

    The inverse of what `SELECT text_hash, embedding` sends under COPY … (FORMAT BINARY).
    """
    return np.asarray(_read(data, vector_type, dimensions)["vector"], dtype=np.float32)


def read_hashes(data: bytes, vector_type: str, dimensions: int) -> list[bytes]:
    """Text hashes of the same rows, in the same order."""
    return [row.tobytes() for row in _read(data, vector_type, dimensions)["hash"]]


def read_row_bytes(vector_type: str, dimensions: int) -> int:
    """Bytes of one row (text_hash, embedding) on the wire."""
    return _read_dtype(vector_type, dimensions).itemsize


def _read_dtype(vector_type: str, dimensions: int) -> np.dtype[np.void]:
    number, _ = _vector_dtype(vector_type, dimensions)
    fields = [("fields", ">i2"), ("hash_size", ">i4"), ("hash", f"V{HASH_BYTES}"), ("vector_size", ">i4"),
              ("dimensions", ">i2"), ("unused", ">i2"), ("vector", number, (dimensions,))]  # fmt: skip
    return np.dtype(fields)


def _read(data: bytes, vector_type: str, dimensions: int) -> NDArray[np.void]:
    return np.frombuffer(data, dtype=_read_dtype(vector_type, dimensions))
