"""The corpus in PostgreSQL, as the project stores it: its schema, its COPY, its index builds, its public face.

Who searches there is in engines.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_bench.corpus import FIRST_ID, Corpus, Rows, Truth, text_hash
from qbench_dagster.adapters.embedded import start_server, stop_server
from qbench_dagster.adapters.postgres import Database, ensure_database
from qbench_dagster.adapters.publishing import analyze_store, publish_face
from qbench_dagster.adapters.space import Space, ensure_space, store_vectors
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.ranges import LARGEST_ID

COLUMNS = ("test_case_id", "doc_hash", "text_hash", "uid", "title", "description", "priority", "platforms", "tags",
           "folder_structure", "project_id", "source", "custom_fields")  # fmt: skip
COPY = f"COPY store.test_documents ({', '.join(COLUMNS)}) FROM STDIN"


def space_of(corpus: Corpus) -> Space:
    """The space its vectors go to."""
    return Space(f"space_bench_{corpus.dimensions}", "bench", corpus.dimensions, "halfvec")


@contextmanager
def served(home: Path, name: str, memory_mb: int | None = None) -> Iterator[Database]:
    """A database of the embedded server under `home`, which stops at the end."""
    try:
        url = ensure_database(start_server(home, memory_mb), name)
        with Database(url, statement_timeout_s=600) as database:
            yield database
    finally:
        stop_server(home)


def load_vectors(database: Database, corpus: Corpus, truth: Truth, tell: Callable[[int], None]) -> dict[str, float]:
    """Store every vector through the project's COPY; seconds of the COPY alone, for making vectors is our own affair.

    The exact neighbours are found on the way, so that each vector is made once. `tell` hears the rows so far.
    """
    space = space_of(corpus)
    ensure_space(database, space)
    copying = 0.0
    with database.connection("bench load", long=True) as connection:
        for rows, vectors in _ahead(corpus.blocks()):
            hashes = [text_hash(row) for row in rows.tolist()]
            started = perf_counter()
            store_vectors(connection, space, "doc", hashes, vectors.astype(np.float32), "bench")
            copying += perf_counter() - started
            truth.add(rows, vectors)
            tell(int(rows[-1]) + 1)
    return {"vectors_s": copying}


def _ahead(
    blocks: Iterator[tuple[Rows, NDArray[np.float16]]],
) -> Iterator[tuple[Rows, NDArray[np.float16]]]:
    """The next block is made while one is stored: numpy lets go of the interpreter."""
    with ThreadPoolExecutor(1, thread_name_prefix="corpus") as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block


def load_documents(database: Database, corpus: Corpus, tell: Callable[[int], None]) -> dict[str, float]:
    """Publish a case for every vector, with text and the columns that filters look at; seconds."""
    started = perf_counter()
    with database.connection("bench load", long=True) as connection:
        with connection.cursor() as cursor, cursor.copy(COPY) as copy:
            for row in range(corpus.rows):
                case = corpus.case(row)
                key = text_hash(row)
                copy.write_row((
                    FIRST_ID + row, hashlib.sha256(key).digest(), key, f"C{FIRST_ID + row}", case["title"],
                    case["description"], case["priority"], [], [case["tags"]], case["folder_structure"],
                    case["project_id"], "bench", "{}",
                ))  # fmt: skip
                if row % 50_000 == 0:
                    tell(row)
        # As publishing does for the cases of a range.
        connection.execute(statement("publish.sql", "insert_words"), {"lower": 1, "upper": LARGEST_ID})
    analyze_store(database)
    publish_face(database, space_of(corpus))
    return {"documents_s": perf_counter() - started}
