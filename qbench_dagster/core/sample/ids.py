"""Case ids as TestRail hands them out: ascending, sparse, and far denser where the history is old.

Only ids belong here. The figures are those of the original export (729 ... 34,799,866).
"""

from __future__ import annotations

from collections.abc import Iterator

from qbench_dagster.core.sample.draw import Draw

FIRST_ID = 729
LAST_ID = 34_799_866
MAX_CASES = 1_000_000
"""More would crowd the dense part of the id range."""

DENSE_SHARE = 0.43
DENSE_END = FIRST_ID + int((LAST_ID - FIRST_ID) * 0.036)
_BLOCKS = 64


def validate(cases: int) -> None:
    """Refuse a number of cases that cannot be made."""
    if cases < 1:
        raise ValueError(f"cases must be at least 1, not {cases}")
    if cases > MAX_CASES:
        raise ValueError(f"cases must be at most {MAX_CASES:,}, not {cases:,}")


def case_ids(cases: int, seed: int) -> Iterator[int]:
    """`cases` ids in ascending order; the first is 729 and, from two cases on, the last 34,799,866."""
    validate(cases)
    draw = Draw(seed, "ids")
    dense = min(max(int(cases * DENSE_SHARE), 1), max(cases - 1, 1))
    made = 0
    regions = ((FIRST_ID, DENSE_END, dense), (DENSE_END + 1, LAST_ID, cases - dense))
    for low, high, count in regions:
        for value in _spread(draw, low, high, count):
            made += 1
            if made == 1:
                yield FIRST_ID
            elif made == cases:
                yield LAST_ID
            else:
                yield value


def _spread(draw: Draw, low: int, high: int, count: int) -> Iterator[int]:
    """`count` ascending ids in [low, high]: 64 blocks of uneven density, one id per cell of a block."""
    weights = [1 + draw.below(20) for _ in range(_BLOCKS)]
    total = sum(weights)
    width = high - low + 1
    seen = 0
    for block, weight in enumerate(weights):
        start, stop = low + width * block // _BLOCKS, low + width * (block + 1) // _BLOCKS
        first = count * seen // total
        seen += weight
        inside = count * seen // total - first
        for i in range(inside):
            cell, end = start + (stop - start) * i // inside, start + (stop - start) * (i + 1) // inside
            yield cell + draw.below(end - cell)
