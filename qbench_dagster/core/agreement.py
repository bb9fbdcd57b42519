"""How well two searches agree, in numbers one can act on: shares with confidence intervals, rank correlation.

What is compared, and what is enough, is `parity.py`. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.core.recall import TIE

RESAMPLES = 2000
"""Bootstrap samples: the ends of a 95 % interval then move by about 0.0005 from seed to seed at 200 queries."""
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Summary:
    """A share measured over queries: its mean with the 95 % bootstrap interval, and how it is spread."""

    count: int
    mean: float
    low: float
    """Lower end of the interval of the mean,"""
    high: float
    """and the upper one."""
    median: float
    p5: float
    min: float


def summarize(shares: Sequence[float] | NDArray[np.float64], seed: int = 729) -> Summary | None:
    """Summary of one number a query; None without queries. The same numbers give the same interval."""
    values = np.asarray(shares, dtype=np.float64)
    if not len(values):
        return None
    generator = np.random.Generator(np.random.PCG64(seed))
    means = values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    p5, median = np.percentile(values, [5, 50])
    rounded = [round(float(value), 4) for value in (values.mean(), low, high, median, p5, values.min())]
    return Summary(len(values), *rounded)


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of one list of results another has. Shared keys are those both have, or each a tie of the other's."""

    share: float
    shared: frozenset[Hashable]


def overlap(
    ours: Sequence[tuple[Hashable, float]], theirs: Sequence[tuple[Hashable, float]], *, reachable: int
) -> Overlap:
    """The share of the `reachable` results of theirs that ours has; 1 where nothing can be found.

    Both are (key, cosine), the cosines of one yardstick. Two results of equal cosine (within TIE), one in either
    list only, are one result that was cut at the end of both lists in another order: they count as shared, in pairs.
    """
    mine, others = dict(ours), dict(theirs)
    shared = set(mine) & set(others)
    left = sorted(((score, key) for key, score in mine.items() if key not in shared), key=_by_score)
    right = sorted(((score, key) for key, score in others.items() if key not in shared), key=_by_score)
    i = j = 0
    pairs = len(shared)
    while i < len(left) and j < len(right):
        (score, key), (other_score, other) = left[i], right[j]
        if abs(score - other_score) <= TIE:
            shared |= {key, other}
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif score < other_score:
            i += 1
        else:
            j += 1
    return Overlap(min(1.0, pairs / reachable) if reachable else 1.0, frozenset(shared))


def _by_score(item: tuple[float, Hashable]) -> float:
    return item[0]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None of fewer than 3 pairs, or where one has no order."""
    if len(first) < 3:
        return None
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return max(-1.0, min(1.0, float(a @ b) / lengths)) if lengths else None


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, places, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places], dtype=np.float64)


def percentiles(milliseconds: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99 of latencies in milliseconds; None where nothing was timed."""
    if not milliseconds:
        return None
    found = np.percentile(np.asarray(milliseconds, dtype=np.float64), [50, 95, 99])
    return {name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}
