"""An embedding space: its tables, and filling them with the vectors of texts that have none yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.embedders import Embedder
from qbench_dagster.adapters.postgres import Connection, Database, DatabaseError, fetch_dicts
from qbench_dagster.adapters.sql import script, statement
from qbench_dagster.core.model import TEXT_RECIPE
from qbench_dagster.core.pgcopy import HEADER, TRAILER, embedding_rows
from qbench_dagster.core.ranges import CaseRange, columns_of
from qbench_dagster.core.recall import NORM_TOLERANCE
from qbench_dagster.core.texts import doc_text, step_text, text_hash

Kind = Literal["doc", "step"]
KINDS: tuple[Kind, ...] = ("doc", "step")

BATCH_TEXTS = 1024
BATCH_CHARACTERS = 1_000_000
"""A batch is closed by whichever comes first, so that very long texts do not raise the memory it takes."""


@dataclass(frozen=True, slots=True)
class Space:
    """One embedding space as its settings name it."""

    name: str
    model: str
    dimensions: int
    vector_type: str


@dataclass(slots=True)
class Embedded:
    """What embedding one partition did. `rows` of it hold `texts` distinct texts, `embedded` were missing."""

    rows: int = 0
    texts: int = 0
    embedded: int = 0
    characters: int = 0

    def counts(self) -> dict[str, int]:
        """The counts a person wants to see."""
        return {
            "rows_with_text": self.rows,
            "texts": self.texts,
            "texts_embedded": self.embedded,
            "characters_embedded": self.characters,
            "rows_written": self.embedded,
        }


def ensure_space(database: Database, space: Space) -> None:
    """Register the space and create its tables if they are missing.

    Raises DatabaseError if a space of that name was made by another model, dimension or recipe.
    """
    wanted = {
        "name": space.name,
        "model": space.model,
        "dimensions": space.dimensions,
        "vector_type": space.vector_type,
        "recipe": TEXT_RECIPE,
    }
    with database.connection("ensure space") as connection, connection.transaction():
        known = fetch_dicts(connection, statement("embed.sql", "describe"), name=space.name)
        if not known:
            connection.execute(statement("embed.sql", "register"), wanted)
            connection.execute(
                script("space.sql", space=space.name, vector_type=space.vector_type, dimensions=space.dimensions)
            )
            return
    if differing := {name: known[0][name] for name, value in wanted.items() if known[0][name] != value}:
        raise DatabaseError(
            f"The embedding space {space.name} was made with {differing}, the settings ask for "
            f"{ {name: wanted[name] for name in differing} }. Vectors of two recipes must not meet: "
            "use the settings it was made with, or drop the schema and its row in store.spaces."
        )


def rows_lacking_vectors(
    database: Database, space: Space, kind: Kind, ranges: Sequence[CaseRange]
) -> dict[str, dict[str, int]]:
    """By key: `rows` (documents or steps) staged, and how many of them have a text without vector (`missing`)."""
    with database.connection(f"find {kind} texts due", long=True) as connection:
        query = statement("embed.sql", f"due_{kind}s", space=space.name)
        counted = fetch_dicts(connection, query, **columns_of(ranges))
    return {row.pop("key"): row for row in counted}


def embed_missing(
    database: Database,
    space: Space,
    kind: Kind,
    case_range: CaseRange,
    embedder: Embedder,
    progress: Callable[[int], None],
) -> Embedded:
    """Embed and store the distinct texts of a partition that the space lacks, a batch a transaction.

    One run at a time fills a table (an advisory lock), so that a text two partitions share is embedded
    once. While one batch is embedded the one before it is written, by a thread: PostgreSQL has its own core.
    """
    bounds = {"lower": case_range.lower, "upper": case_range.upper}
    done = Embedded()
    with (
        database.exclusive(f"{space.name}.{kind}_embeddings"),
        database.connection(f"read {kind} texts {case_range.key}", long=True) as reading,
        database.connection(f"embed {kind} {case_range.key}", long=True) as writing,
        ThreadPoolExecutor(1, thread_name_prefix="copy") as writer,
        reading.transaction(),
    ):
        counts = fetch_dicts(reading, statement("embed.sql", f"wanted_{kind}s"), **bounds)[0]
        done.rows, done.texts = counts["rows"], counts["texts"]
        pending: Future[None] | None = None
        with reading.cursor(name="missing", binary=True) as cursor:
            cursor.execute(statement("embed.sql", f"missing_{kind}s", space=space.name), bounds)
            for hashes, texts in _batches(kind, cursor):
                vectors = embedder.embed(texts)
                check_vectors(vectors, len(texts), space.dimensions)
                if pending is not None:
                    pending.result()
                pending = writer.submit(store_vectors, writing, space, kind, hashes, vectors, embedder.provenance)
                done.embedded += len(texts)
                done.characters += sum(map(len, texts))
                progress(len(texts))
        if pending is not None:
            pending.result()
    return done


def check_vectors(vectors: NDArray[np.float32], count: int, dimensions: int) -> None:
    """Raise ValueError unless `vectors` is (count, dimensions), finite, and of unit vectors."""
    if vectors.shape != (count, dimensions):
        raise ValueError(f"the embedder returned {vectors.shape} for {count} texts of {dimensions} dimensions")
    norms = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(norms).all() or not norms.all():
        raise ValueError("the embedder returned a vector that is zero or not finite; nothing of the batch is stored")
    if (np.abs(norms - 1) > NORM_TOLERANCE).any():
        raise ValueError("the embedder returned a vector that is not of length 1; nothing of the batch is stored")


def store_vectors(
    connection: Connection,
    space: Space,
    kind: Kind,
    hashes: Sequence[bytes],
    vectors: NDArray[np.float32],
    provenance: str,
) -> None:
    """COPY one batch into the space: hashes, and as many unit vectors. The caller knows that none is stored yet."""
    query = statement("embed.sql", f"copy_{kind}s", space=space.name)
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        copy.write(HEADER)
        copy.write(embedding_rows(hashes, vectors, provenance, space.vector_type))
        copy.write(TRAILER)


def _batches(kind: Kind, rows: Any) -> Iterator[tuple[list[bytes], list[str]]]:
    hashes: list[bytes] = []
    texts: list[str] = []
    characters = 0
    for stored_hash, first, second in rows:
        text = doc_text(first, second) if kind == "doc" else step_text(first, second)
        if text_hash(text) != stored_hash:
            raise ValueError(
                f"staging holds the hash of another text than {text[:60]!r}: materialise normalized_testdocs"
            )
        hashes.append(stored_hash)
        texts.append(text)
        characters += len(text)
        if len(texts) >= BATCH_TEXTS or characters >= BATCH_CHARACTERS:
            yield hashes, texts
            hashes, texts, characters = [], [], 0
    if texts:
        yield hashes, texts
