"""Vectors as COPY bytes: a real PostgreSQL takes them, and gives back what went in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qbench_dagster.core.pgcopy import (
    HEADER,
    TRAILER,
    embedding_rows,
    read_hashes,
    read_row_bytes,
    read_vectors,
)

TYPES = ["halfvec", "vector"]


def hashes_of(count: int) -> list[bytes]:
    return [hashlib.sha256(bytes([number])).digest() for number in range(count)]


def vectors_of(count: int, dimensions: int) -> NDArray[np.float32]:
    generator = np.random.Generator(np.random.PCG64(1))
    return generator.standard_normal((count, dimensions)).astype(np.float32)


@pytest.fixture
def connection(fresh_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(fresh_url) as opened:
        opened.execute("CREATE EXTENSION vector")
        yield opened


def make_table(connection: psycopg.Connection, vector_type: str, dimensions: int) -> None:
    connection.execute("DROP TABLE IF EXISTS t")
    connection.execute(  # type: ignore[call-overload]
        f"CREATE TABLE t (text_hash bytea PRIMARY KEY, embedding {vector_type}({dimensions}), provenance text, "
        "pieces smallint)"
    )


def copy_in(connection: psycopg.Connection, data: bytes) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(data)


def copy_out(connection: psycopg.Connection) -> bytes:
    query = "COPY (SELECT text_hash, embedding FROM t ORDER BY text_hash) TO STDOUT (FORMAT BINARY)"
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        data = b"".join(bytes(chunk) for chunk in copy)
    assert data.startswith(HEADER)
    assert data.endswith(TRAILER)
    return data[len(HEADER) : -len(TRAILER)]


@pytest.mark.parametrize("vector_type", TYPES)
@pytest.mark.parametrize("dimensions", [1, 64, 3072])
def test_postgresql_takes_the_rows_and_gives_them_back(
    connection: psycopg.Connection, vector_type: str, dimensions: int
) -> None:
    hashes, vectors = hashes_of(7), vectors_of(7, dimensions)
    make_table(connection, vector_type, dimensions)
    pieces = [1, 2, 3, 1, 32_767, 1, 1]
    copy_in(connection, HEADER + embedding_rows(hashes, vectors, "öpenai_batch", vector_type, pieces) + TRAILER)
    stored = connection.execute("SELECT text_hash, embedding::real[], provenance, pieces FROM t").fetchall()
    by_hash = {bytes(text_hash): np.asarray(vector, np.float32) for text_hash, vector, *_ in stored}
    assert {provenance for _, _, provenance, _ in stored} == {"öpenai_batch"}
    assert {bytes(text_hash): count for text_hash, _, _, count in stored} == dict(zip(hashes, pieces, strict=True))
    assert by_hash.keys() == set(hashes)
    found = np.stack([by_hash[text_hash] for text_hash in hashes])
    expected = vectors if vector_type == "vector" else vectors.astype(np.float16).astype(np.float32)
    assert found.tobytes() == expected.tobytes()
    assert np.abs(found - vectors).max() <= np.abs(vectors).max() * 2**-11

    data = copy_out(connection)
    assert len(data) == 7 * read_row_bytes(vector_type, dimensions)
    assert read_hashes(data, vector_type, dimensions) == sorted(hashes)
    order = sorted(range(7), key=hashes.__getitem__)
    assert read_vectors(data, vector_type, dimensions).tobytes() == expected[order].tobytes()


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-6e4, 6e4, width=16)),
    st.sampled_from(TYPES),
)
def test_what_is_read_is_what_was_written(vectors: NDArray[np.float32], vector_type: str) -> None:
    n, dimensions = vectors.shape
    # Values of half precision survive both types. A row that is read has no provenance and pieces: cut them off.
    rows = embedding_rows(hashes_of(n), vectors, "lexical", vector_type)
    size, tail = read_row_bytes(vector_type, dimensions), 4 + len("lexical") + 4 + 2
    data = b"".join(rows[start : start + size] for start in range(0, len(rows), size + tail))
    assert read_vectors(data, vector_type, dimensions).tobytes() == vectors.tobytes()
    assert read_hashes(data, vector_type, dimensions) == hashes_of(n)


@pytest.mark.parametrize("vector_type", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(vector_type: str, bad: float) -> None:
    vectors = vectors_of(3, 4)
    vectors[1, 2] = bad
    with pytest.raises(ValueError, match=f"a value {vector_type} cannot hold"):
        embedding_rows(hashes_of(3), vectors, "lexical", vector_type)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_value_beyond_half_precision_is_refused_instead_of_becoming_infinite() -> None:
    vectors = vectors_of(2, 4)
    vectors[1, 0] = 70_000
    with pytest.raises(ValueError, match="halfvec cannot hold"):
        embedding_rows(hashes_of(2), vectors, "lexical", "halfvec")
    assert embedding_rows(hashes_of(2), vectors, "lexical", "vector")
    vectors[1, 0] = 65_504
    assert embedding_rows(hashes_of(2), vectors, "lexical", "halfvec")


@pytest.mark.parametrize("count", [1, 3])
def test_hashes_and_vectors_have_to_be_as_many(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} hashes for 2 vectors"):
        embedding_rows(hashes_of(count), vectors_of(2, 4), "lexical", "halfvec")


def test_rows_one_after_the_other_are_one_copy(connection: psycopg.Connection) -> None:
    hashes, vectors = hashes_of(6), vectors_of(6, 5)
    make_table(connection, "halfvec", 5)
    first = embedding_rows(hashes[:4], vectors[:4], "lexical", "halfvec")
    second = embedding_rows(hashes[4:], vectors[4:], "qdrant", "halfvec")
    copy_in(connection, HEADER + first + second + TRAILER)
    assert read_hashes(copy_out(connection), "halfvec", 5) == sorted(hashes)


def test_postgresql_notices_a_wrong_number_of_dimensions(connection: psycopg.Connection) -> None:
    make_table(connection, "halfvec", 5)
    with pytest.raises(psycopg.errors.DataException, match="expected 5 dimensions, not 4"):
        copy_in(connection, HEADER + embedding_rows(hashes_of(1), vectors_of(1, 4), "lexical", "halfvec") + TRAILER)
