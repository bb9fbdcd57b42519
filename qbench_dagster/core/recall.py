"""Recall of an approximate search against an exact one, and the health of the vectors searched. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

TIE = 1e-4
"""Cosines this close count as equal: half precision moves them by up to 2e-5, and texts that differ only in
case or punctuation share a lexical vector."""

NORM_TOLERANCE = 5e-3
"""Half precision leaves the norm of a 3,072-dimension unit vector within 1e-3 of 1."""

SAMPLES = 10


@dataclass(slots=True)
class VectorHealth:
    """What one pass over the vectors of a table found. Lists hold up to ten hashes as hex."""

    rows: int = 0
    zero: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    wrong_norm: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether no vector is zero, not finite, or of the wrong norm."""
        return not (self.zero or self.not_finite or self.wrong_norm)


def cosines_of_units(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(queries, vectors) cosines of unit queries with vectors of any length: 0 with a zero one, -inf with no number."""
    scores: NDArray[np.float32] = queries @ vectors.T
    norms = np.linalg.norm(vectors, axis=1)
    scores /= np.where(norms > 0, norms, 1)
    scores[:, ~np.isfinite(norms)] = -np.inf
    return scores


class ExactSearch:
    """The exact top k of some queries, over vectors that arrive in batches. Memory: queries x k, not rows."""

    def __init__(self, queries: NDArray[np.float32], k: int) -> None:
        self._queries = queries
        self._k = k
        self._scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        self.health = VectorHealth()

    def add(self, hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Take a batch of the table in. `vectors` is (len(hashes), dimensions)."""
        self._examine(hashes, vectors)
        merged = np.concatenate([self._scores, cosines_of_units(self._queries, vectors)], axis=1)
        self._scores = np.partition(merged, merged.shape[1] - self._k, axis=1)[:, -self._k :]

    def thresholds(self, k: int | None = None) -> NDArray[np.float32]:
        """For each query the cosine of its k-th nearest vector (or of the last there is), less a tie.

        `k` may be fewer than the search was made for.
        """
        k = self._k if k is None else k
        best = np.partition(self._scores, self._k - k, axis=1)[:, self._k - k :]
        finite = np.where(np.isfinite(best), best, np.inf)
        return np.asarray(finite.min(axis=1) - TIE, dtype=np.float32)

    @property
    def reachable(self) -> int:
        """How many results a query can have: k, or all rows if there are fewer."""
        return min(self._k, self.health.rows)

    def _examine(self, hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        norms = np.linalg.norm(vectors, axis=1)
        finite = np.isfinite(norms)
        self.health.rows += len(hashes)
        _note(self.health.not_finite, hashes, ~finite)
        _note(self.health.zero, hashes, finite & (norms == 0))
        _note(self.health.wrong_norm, hashes, finite & (norms > 0) & (np.abs(norms - 1) > NORM_TOLERANCE))


def _note(samples: list[str], hashes: Sequence[bytes], bad: NDArray[np.bool_]) -> None:
    for index in np.flatnonzero(bad)[: SAMPLES - len(samples)]:
        samples.append(bytes(hashes[index]).hex())


def recall(scores: Iterable[Sequence[float]], thresholds: Sequence[float], reachable: int) -> list[float]:
    """recall@k of each query: the share of the reachable results whose true cosine is that of a true neighbour.

    `scores` holds, for each query, the true cosines of what the approximate search returned.
    """
    if reachable == 0:
        return []
    return [
        min(sum(score >= threshold for score in found), reachable) / reachable
        for found, threshold in zip(scores, thresholds, strict=True)
    ]


def perturb(vectors: NDArray[np.float32], noise: float, seed: int) -> NDArray[np.float32]:
    """Unit vectors near the given ones: what a query that is no stored text looks like.

    `noise` is the length of the random vector that is added to each unit vector.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    step = generator.standard_normal(vectors.shape).astype(np.float32)
    step *= noise / np.linalg.norm(step, axis=1, keepdims=True)
    moved = vectors + step
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), dtype=np.float32)
