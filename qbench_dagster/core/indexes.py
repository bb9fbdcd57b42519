"""The ways to index a table of vectors: what may be asked, what is chosen, what it takes in bytes and memory.

Which one is best for given vectors is `advice.py`; building and measuring are adapters. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

STRATEGIES = ("binary", "subvector", "ivfflat", "halfvec", "exact")
HNSW = ("binary", "subvector", "halfvec")
EXACT = "exact"
MIN_CANDIDATES = 40
"""What a search for ten compares at least: four times k, as the search functions have it."""
MAX_EF_SEARCH = 1000
"""pgvector's limit."""
SHORTENED_SHARE = 6
LISTS_ROWS = 1000
GRAPH_OVERHEAD = 256
"""Bytes allowed for a node of the graph in memory: itself, its allocations, its upper layers."""
NEIGHBOUR_BYTES = 16
"""Of one link while the graph is built; a node has 2 m of them on the ground layer."""
KMEANS_ROWS = 50
"""Vectors a list that ivfflat clusters, 10,000 at least."""


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """What is asked of the indexes of a space. None: chosen by what is measured, or by the machine."""

    strategy: str
    m: int = 16
    ef_construction: int = 256
    ef_search: int | None = None
    rerank: int | None = None
    shortened: int | None = None
    lists: int | None = None
    target_recall: float = 0.95
    target_p95_ms: float = 15.0
    sample: int = 5000
    memory_mb: int | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class IndexChoice:
    """How one table is indexed and searched. `ef_search` are the probes of ivfflat; parameters of others are None."""

    strategy: str
    m: int | None = None
    ef_construction: int | None = None
    lists: int | None = None
    shortened: int | None = None
    ef_search: int = 100
    rerank: int = MIN_CANDIDATES

    @property
    def built_as(self) -> tuple[str, int | None, int | None, int | None, int | None]:
        """What another index would have to be built for."""
        return self.strategy, self.m, self.ef_construction, self.lists, self.shortened

    @property
    def exact(self) -> bool:
        """Whether there is no index."""
        return self.strategy == EXACT

    @property
    def ranks_exactly(self) -> bool:
        """Whether the index orders by the cosine itself, so that more candidates than results change nothing."""
        return self.strategy in ("ivfflat", "halfvec")

    def searched(self, ef_search: int, rerank: int) -> IndexChoice:
        """The same index, searched otherwise."""
        return replace(self, ef_search=ef_search, rerank=rerank)

    def __str__(self) -> str:
        of = {"m": self.m, "ef_construction": self.ef_construction, "lists": self.lists, "dimensions": self.shortened}
        told = ", ".join(f"{name} {value:,}" for name, value in of.items() if value is not None)
        return self.strategy + (f" ({told})" if told else "")


def choice_of(settings: IndexSettings, strategy: str, dimensions: int, rows: int) -> IndexChoice:
    """The parameters of `strategy` for a table, with what is left open filled in.

    Without a fixed ef_search the choice is searched with a middling one until it is measured.
    """
    ef_search, lists = settings.ef_search or 200, None
    if strategy == "ivfflat":
        lists = settings.lists or default_lists(rows)
        ef_search = min(settings.ef_search or max(1, lists // 4), lists)
    hnsw = strategy in HNSW
    chosen = IndexChoice(
        strategy,
        settings.m if hnsw else None,
        max(settings.ef_construction, 2 * settings.m) if hnsw else None,  # pgvector refuses less
        lists,
        min(settings.shortened or max(1, dimensions // SHORTENED_SHARE), dimensions)
        if strategy == "subvector"
        else None,
        ef_search,
    )
    rerank = settings.rerank or (MIN_CANDIDATES if chosen.ranks_exactly else ef_search)
    return chosen.searched(ef_search, rerank)


def default_lists(rows: int) -> int:
    """pgvector's advice: a list for each thousand rows, above a million the square root of rows."""
    return max(1, math.isqrt(rows) if rows > 1_000_000 else rows // LISTS_ROWS)


def lists_outgrown(built_for: int, rows: int) -> bool:
    """Whether an ivfflat index has twice the rows its lists were made for: its lists are then read too long."""
    return rows >= 2 * max(built_for, LISTS_ROWS)


def entry_bytes(dimensions: int, strategy: str, shortened: int | None) -> int:
    """Bytes of what the index holds of one vector."""
    if strategy == "binary":
        return -(-dimensions // 8) + 8
    if strategy == "subvector":
        return 2 * (shortened or max(1, dimensions // SHORTENED_SHARE)) + 8
    return 2 * dimensions + 8


def build_memory(choice: IndexChoice, dimensions: int, rows: int) -> int:
    """Bytes a build needs to stay in memory: the graph of HNSW, the clustering of ivfflat."""
    entry = entry_bytes(dimensions, choice.strategy, choice.shortened)
    if choice.strategy == "ivfflat":
        lists = choice.lists or 1
        clustered = min(max(10_000, KMEANS_ROWS * lists), max(rows, 1))
        return clustered * (entry + 4 * lists + 8) + lists * (2 * entry + 4 * lists)
    if choice.exact:
        return 0
    return rows * (entry + 2 * (choice.m or 0) * NEIGHBOUR_BYTES + GRAPH_OVERHEAD)
