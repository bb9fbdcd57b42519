"""Case-id ranges: the partitions of the graph. Planning and naming only; Dagster is in `partitions.py`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

LARGEST_ID = 2**47 - 1
"""Step ids are case id * 65,536 + step index and have to fit PostgreSQL's bigint."""

GROWTH = 2
"""The open last range is split once it holds more than this many times the target."""

_PREFIX = "from_"


@dataclass(frozen=True, slots=True)
class CaseRange:
    """The case ids `lower <= id < upper`. Together the ranges of a plan hold every valid id once."""

    key: str
    lower: int
    upper: int

    def __contains__(self, case_id: int) -> bool:
        return self.lower <= case_id < self.upper

    @property
    def is_first(self) -> bool:
        """Whether rows that have no usable id are accounted for in this range."""
        return self.lower == 1

    @property
    def is_last(self) -> bool:
        """Whether it is open, and may be split while somebody works on it."""
        return self.upper > LARGEST_ID


def range_key(bound: int) -> str:
    """Partition key of the range that was planned to begin at `bound`, e.g. `from_0000000729`."""
    return f"{_PREFIX}{bound:010d}"


def range_bound(key: str) -> int:
    """Inverse of `range_key`. Raises ValueError for a key that is none of ours."""
    if not key.startswith(_PREFIX) or not key[len(_PREFIX) :].isdigit():
        raise ValueError(f"{key!r} is no case range; keys look like {range_key(729)}")
    return int(key[len(_PREFIX) :])


def ranges_of(keys: Iterable[str]) -> dict[str, CaseRange]:
    """The range of each key, ascending.

    A range ends where the next begins. The first also takes the ids below its bound, the last is open,
    so a case that turns up anywhere later has a partition already.
    """
    bounds = sorted(range_bound(key) for key in keys)
    uppers = [*bounds[1:], LARGEST_ID + 1] if bounds else []
    return {
        range_key(bound): CaseRange(range_key(bound), 1 if index == 0 else bound, upper)
        for index, (bound, upper) in enumerate(zip(bounds, uppers, strict=True))
    }


def is_range_key(key: str) -> bool:
    """Whether `key` is written exactly as `range_key` writes it."""
    try:
        return range_key(range_bound(key)) == key
    except ValueError:
        return False


def columns_of(ranges: Iterable[CaseRange]) -> dict[str, list[Any]]:
    """The ranges as the parallel arrays `keys`, `lowers`, `uppers`, for one statement about all of them."""
    listed = list(ranges)
    return {
        "keys": [each.key for each in listed],
        "lowers": [each.lower for each in listed],
        "uppers": [each.upper for each in listed],
    }


def ranges_with(ids: Iterable[int], ranges: Iterable[CaseRange]) -> list[str]:
    """Keys of those of `ranges` (all there are, ascending) that hold any of `ids`; the first holds those below 1."""
    listed = list(ranges)
    lowers = [each.lower for each in listed]
    return [listed[index].key for index in sorted({max(0, bisect_right(lowers, each) - 1) for each in ids})]


def neighbours(ordered: Sequence[str], keys: Collection[str]) -> list[Sequence[str]]:
    """`keys` in the fewest pieces that are each unbroken in `ordered`."""
    found: list[Sequence[str]] = []
    wanted = set(keys)
    begin = None
    for index, key in enumerate([*ordered, None]):
        if key in wanted and begin is None:
            begin = index
        elif key not in wanted and begin is not None:
            found.append(ordered[begin:index])
            begin = None
    return found


def plan_bounds(ids: Sequence[int], existing: Sequence[int], target: int) -> list[int]:
    """New bounds to append, ascending, for cases `ids` (ascending, distinct) beside the `existing` bounds.

    Ranges get about `target` cases. A bound never moves once made: only the open last range is split,
    when it has outgrown `GROWTH` times the target. Without any case or bound there is nothing to plan.
    """
    if target < 1:
        raise ValueError(f"a partition needs at least one case, not {target}")
    if not existing:
        return _cut(ids, target) if ids else []
    last = max(existing)
    tail = [case_id for case_id in ids if case_id >= last]
    return _cut(tail, target)[1:] if len(tail) > GROWTH * target else []


def _cut(ids: Sequence[int], target: int) -> list[int]:
    """First id of each of round(n / target) runs of nearly equal length."""
    count = max(1, round(len(ids) / target))
    return [ids[len(ids) * part // count] for part in range(count)]
