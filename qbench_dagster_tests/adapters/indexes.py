"""What the tests of indexes share: the strategies, a filled table, its indexes, and vectors of a given structure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.indexing import Build, ensure_index
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS, Kind, Space, ensure_space, store_vectors
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster_tests.support import EXACT, SPACE, rows

BINARY = IndexSettings("binary", m=16, ef_construction=64, ef_search=100)
HALFVEC = IndexSettings("halfvec", m=16, ef_construction=64, ef_search=100)
SUBVECTOR = IndexSettings("subvector", m=16, ef_construction=64, ef_search=100, shortened=16)
IVFFLAT = IndexSettings("ivfflat", ef_search=2, lists=4)
STRATEGIES = [EXACT, BINARY, SUBVECTOR, IVFFLAT, HALFVEC]


def build(
    database: Database,
    settings: IndexSettings,
    kind: Kind = "doc",
    space: Space = SPACE,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Build:
    """Make one index what the settings ask for."""
    return ensure_index(database, space, kind, settings, progress)


def indexes(database: Database, space: str = SPACE.name) -> list[tuple[Any, ...]]:
    """(name, valid, oid) of the approximate indexes of a space."""
    return rows(
        database,
        """SELECT i.relname, x.indisvalid, i.oid FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
           JOIN pg_am a ON a.oid = i.relam
           WHERE i.relnamespace = %s::regnamespace AND a.amname IN ('hnsw', 'ivfflat') ORDER BY 1""",
        space,
    )


def recorded(database: Database, columns: str, kind: Kind = "doc", space: Space = SPACE) -> tuple[Any, ...]:
    """Some columns of a table's row in store.index_builds."""
    query = f"SELECT {columns} FROM store.index_builds WHERE space = %s AND kind = %s"
    (row,) = rows(database, query, space.name, kind)
    return row


def fill(
    database: Database,
    vectors: NDArray[np.float32],
    space: Space = SPACE,
    steps: NDArray[np.float32] | None = None,
) -> None:
    """Make the space with these vectors (the same as `steps` unless given), each under the hash of its number."""
    ensure_space(database, space)
    with database.connection("test", long=True) as connection:
        for kind, given in zip(KINDS, (vectors, vectors if steps is None else steps), strict=True):
            unit = np.asarray(given / np.linalg.norm(given, axis=1, keepdims=True), dtype=np.float32)
            hashes = [hashlib.sha256(b"%d" % number).digest() for number in range(len(unit))]
            store_vectors(connection, space, kind, hashes, unit, "test")


def clustered(count: int, dimensions: int, seed: int = 7) -> NDArray[np.float32]:
    """Vectors around some centres, in all directions: signs tell them apart."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((count // 20, dimensions))
    spread = generator.standard_normal((count, dimensions))
    return np.asarray(centres[np.arange(count) % len(centres)] + 0.4 * spread, dtype=np.float32)


def positive(count: int, dimensions: int, seed: int = 7) -> NDArray[np.float32]:
    """Vectors all of whose coordinates are above zero: their signs say nothing. The first dimensions say most."""
    generator = np.random.default_rng(seed)
    weights = np.exp(-np.arange(dimensions) / (dimensions / 12))
    return np.asarray(weights * (0.05 + generator.random((count, dimensions))), dtype=np.float32)
