"""Seeded draws that are the same on every machine and Python: the only source of chance in the sample.

Only `Random.random()` is used, whose sequence Python guarantees for a seed, and only `+ * <` on floats;
`choice`, `randrange`, `shuffle`, logarithms and powers may differ between versions or C libraries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")
_MASK = (1 << 64) - 1


class Draw:
    """One stream of draws. `at(key)` jumps to the same place every time, so a case never shifts another."""

    __slots__ = ("_base", "_rng", "unit")

    def __init__(self, seed: int, stream: str) -> None:
        digest = hashlib.sha256(f"{stream}:{seed}".encode()).digest()
        self._base = int.from_bytes(digest[:8], "big")
        self._rng = Random(self._base)  # noqa: S311  (test data, no secret)
        self.unit = self._rng.random

    def at(self, key: int) -> Draw:
        """Start again from the place that belongs to `key`."""
        mixed = (self._base ^ (key * 0x9E3779B97F4A7C15)) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        self._rng.seed(mixed ^ (mixed >> 27))
        return self

    def below(self, stop: int) -> int:
        """An integer in [0, stop)."""
        return int(self.unit() * stop)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + int(self.unit() * (high - low + 1))

    def skewed(self, stop: int) -> int:
        """An integer in [0, stop), small ones far more often: the shape of repeated titles and texts."""
        u = self.unit()
        return int(u * u * stop)

    def chance(self, share: float) -> bool:
        """True in `share` of the draws."""
        return self.unit() < share

    def pick(self, values: Sequence[T]) -> T:
        """One of `values`."""
        return values[int(self.unit() * len(values))]

    def weighted(self, table: Sequence[tuple[T, float]]) -> T:
        """A value of `table`, each as often as its weight says; the last one takes the rounding."""
        left = self.unit() * sum(weight for _, weight in table)
        for value, weight in table:
            left -= weight
            if left < 0:
                return value
        return table[-1][0]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """`values` in another order (Fisher-Yates, written out because `shuffle` may change)."""
        result = list(values)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result
