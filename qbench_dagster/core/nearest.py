"""The exact nearest rows of some queries, over vectors that arrive in batches, by name. Pure numpy.

Recall by score alone is `recall.py`; which rows a query may find is decided by who adds them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.core.recall import cosines_of_units


class Nearest:
    """The k nearest rows of each query among those added. Memory: queries x k, not rows."""

    def __init__(self, queries: NDArray[np.float32], k: int) -> None:
        """`queries` is (n, dimensions), each of length 1."""
        self._queries = queries
        self._k = k
        self._scores = np.empty((len(queries), 0), dtype=np.float32)
        self._keys = np.empty((len(queries), 0), dtype=object)
        self.rows = 0

    def add(self, keys: Sequence[Hashable], vectors: NDArray[np.float32], places: Sequence[int] | None = None) -> None:
        """Take rows in: `keys[i]` has the vector `vectors[i]`, or `vectors[places[i]]` where several share one."""
        if not len(keys):
            return
        self.rows += len(keys)
        if places is not None and len(places) < len(vectors):
            vectors, places = vectors[places], None
        scores = cosines_of_units(self._queries, vectors)
        if places is not None:
            scores = scores[:, places]
        named = np.empty(len(keys), dtype=object)
        named[:] = keys
        best = self._best(scores)
        self._scores = np.concatenate([self._scores, np.take_along_axis(scores, best, axis=1)], axis=1)
        self._keys = np.concatenate([self._keys, named[best]], axis=1)
        kept = self._best(self._scores)
        self._scores = np.take_along_axis(self._scores, kept, axis=1)
        self._keys = np.take_along_axis(self._keys, kept, axis=1)

    def _best(self, scores: NDArray[np.float32]) -> NDArray[np.intp]:
        """Places of the k largest of each row, in no order; of all where there are no more."""
        n = scores.shape[1]
        if n <= self._k:
            return np.broadcast_to(np.arange(n), scores.shape)
        return np.argpartition(scores, n - self._k, axis=1)[:, n - self._k :]

    def results(self) -> list[list[tuple[Hashable, float]]]:
        """For each query its (key, cosine), nearest first: k, or all rows if there are fewer."""
        order = np.argsort(-self._scores, axis=1, kind="stable")
        scores = np.take_along_axis(self._scores, order, axis=1)
        keys = np.take_along_axis(self._keys, order, axis=1)
        return [
            [(key, float(score)) for key, score in zip(*row, strict=True)] for row in zip(keys, scores, strict=True)
        ]
