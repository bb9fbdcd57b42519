"""An embedding space: its tables, what it lacks, and storing vectors in it. Where vectors come from is elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.postgres import Connection, Database, DatabaseError, fetch_dicts, fetch_value, hold_lock
from qbench_dagster.adapters.sql import script, statement
from qbench_dagster.core.model import TEXT_RECIPE
from qbench_dagster.core.pgcopy import HEADER, TRAILER, embedding_rows
from qbench_dagster.core.ranges import CaseRange, columns_of
from qbench_dagster.core.recall import NORM_TOLERANCE

Kind = Literal["doc", "step"]
KINDS: tuple[Kind, ...] = ("doc", "step")


@dataclass(frozen=True, slots=True)
class Space:
    """One embedding space as its settings name it."""

    name: str
    model: str
    dimensions: int
    vector_type: str
    embedder: str = "lexical"
    """What makes its vectors: `lexical`, `openai` or `local`."""
    text_prefix: str = ""
    """Put before each text that is embedded; the hash that names a text is of the text without it."""
    query_prefix: str | None = field(default=None, compare=False)
    """Put before a query. It changes no stored vector. None, in what settings name: as it is stored."""
    recipe: int = TEXT_RECIPE
    """Version of the texts its vectors are of; only those of this version can be filled."""


def ensure_space(database: Database, space: Space) -> None:
    """Register the space and create its tables if they are missing. A query prefix of its own replaces the stored one.

    Raises DatabaseError if a space of that name was made by another model, dimension or recipe.
    """
    wanted = {
        "name": space.name,
        "model": space.model,
        "dimensions": space.dimensions,
        "vector_type": space.vector_type,
        "recipe": TEXT_RECIPE,
        "text_prefix": space.text_prefix,
    }
    searched = {"embedder": space.embedder, "query_prefix": space.query_prefix or ""}
    with database.connection("ensure space", owner=True) as connection, connection.transaction():
        known = fetch_dicts(connection, statement("embed.sql", "describe"), name=space.name)
        if not known:  # perhaps another run is making it: one of them does
            hold_lock(connection, f"making {space.name}")
            known = fetch_dicts(connection, statement("embed.sql", "describe"), name=space.name)
        if not known:
            connection.execute(statement("embed.sql", "register"), {**wanted, **searched})
            connection.execute(
                script("space.sql", space=space.name, vector_type=space.vector_type, dimensions=space.dimensions)
            )
            return
        if space.query_prefix not in (None, known[0]["query_prefix"]):
            connection.execute(statement("embed.sql", "set_query_prefix"), {"name": space.name, **searched})
    if differing := {name: known[0][name] for name, value in wanted.items() if known[0][name] != value}:
        raise DatabaseError(
            f"The embedding space {space.name} was made with {differing}, the settings ask for "
            f"{ {name: wanted[name] for name in differing} }. Vectors of two recipes must not meet: "
            f"use the settings it was made with, or drop it: qbench purge {space.name}"
        )


def active_space(database: Database) -> Space | None:
    """The space the views and functions of `qbench` read; None before anything was published."""
    with database.connection("active space") as connection:
        found = fetch_dicts(connection, statement("embed.sql", "active"))
    return Space(**found[0]) if found else None


@contextmanager
def writing(database: Database, space: Space) -> Iterator[Connection]:
    """The connection that holds the lock of everyone who writes vectors of `space`: so a text is paid for once."""
    with database.exclusive(f"{space.name}.embeddings") as connection:
        yield connection


def rows_lacking_vectors(
    database: Database, space: Space, kind: Kind, ranges: Sequence[CaseRange]
) -> dict[str, dict[str, int]]:
    """By key: `rows` (documents or steps) staged, and how many of them have a text without vector (`missing`)."""
    with database.connection(f"find {kind} texts due", long=True) as connection:
        query = statement("embed.sql", f"due_{kind}s", space=space.name)
        counted = fetch_dicts(connection, query, **columns_of(ranges))
    return {row.pop("key"): row for row in counted}


def lacks_vectors(database: Database, space: Space) -> bool:
    """Whether any staged text is without vector in `space`; makes the space if it is not there yet."""
    ensure_space(database, space)
    with database.connection("find texts due", long=True) as connection:
        return bool(fetch_value(connection, statement("embed.sql", "lacks_vectors", space=space.name)))


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
    pieces: Sequence[int] | int = 1,
) -> None:
    """COPY one batch into the space: hashes, and as many unit vectors.

    The caller knows that none is stored yet: whoever writes vectors holds the lock of `writing`.
    """
    query = statement("embed.sql", f"copy_{kind}s", space=space.name)
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        copy.write(HEADER)
        copy.write(embedding_rows(hashes, vectors, provenance, space.vector_type, pieces))
        copy.write(TRAILER)
