"""What every old vector store looks like from here. One module for each store reads it; nothing here does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.space import Kind

BATCH_POINTS = 512
"""6 MB of vectors at 3,072 dimensions; as the numbers of Qdrant's JSON 20 MB, as Python's 50 MB."""


class SourceError(RuntimeError):
    """An old store cannot be read; the text says what was found and what to do. It holds no key."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some points: ids as text, what is said of them, and their vectors, each (d,) or None where there is none."""

    ids: Sequence[str]
    payloads: Sequence[Mapping[str, Any]]
    vectors: Sequence[NDArray[np.float32] | None]
    quantized: bool
    """Whether the vectors are a lossy copy of what the model made."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search: the point, what is said of it, and how near the store finds it (larger is nearer)."""

    id: str
    payload: Mapping[str, Any]
    score: float
    """Where the store's metric allows it the cosine with a query of length 1, if its vectors have that length too."""


class VectorSource(Protocol):
    """An old vector store, open for reading."""

    @property
    def provenance(self) -> str:
        """What a reused vector's row records as its origin: `qdrant` or `faiss`."""
        ...

    def describe(self) -> str:
        """Where it is, fit to be shown: no key, no password."""
        ...

    def kinds(self) -> Sequence[Kind]:
        """The kinds of vectors it has."""
        ...

    def count(self, kind: Kind) -> int:
        """How many points `read` will give."""
        ...

    def read(self, kind: Kind) -> Iterator[Batch]:
        """All points, always in the same order. Raises SourceError."""
        ...

    def search(self, kind: Kind, vector: NDArray[np.float32], k: int, among: Sequence[str] | None = None) -> list[Hit]:
        """The k points nearest to a vector of length 1, by the store's own index and metric, nearest first.

        `among` are the only points that may be found, by the ids that `read` gives. Raises SourceError.
        """
        ...
