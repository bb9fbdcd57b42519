"""Case ranges: every valid id has exactly one, they are of nearly equal size, and a bound never moves."""

from __future__ import annotations

import itertools
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.ranges import (
    GROWTH,
    LARGEST_ID,
    CaseRange,
    is_range_key,
    neighbours,
    plan_bounds,
    range_bound,
    range_key,
    ranges_of,
    ranges_with,
)

IDS = st.lists(st.integers(1, LARGEST_ID), unique=True, max_size=200).map(sorted)
TARGETS = st.integers(1, 60)
BOUNDS = st.lists(st.integers(1, LARGEST_ID), unique=True, min_size=1, max_size=30)


def skewed_ids() -> list[int]:
    """The original's spread in small: 729 to 34,799,866, 43 % of the cases in the first 3.6 % of the range."""
    low = range(729, 729 + 4_300 * 290, 290)
    high = range(1_300_000, 34_799_866, (34_799_866 - 1_300_000) // 5_699)
    return [*low, *itertools.islice(high, 5_699), 34_799_866]


def counts(ids: list[int], bounds: list[int]) -> list[int]:
    ends = [*(bisect_left(ids, bound) for bound in bounds[1:]), len(ids)]
    return [end - start for start, end in itertools.pairwise([0, *ends])]


@given(BOUNDS, st.integers(1, LARGEST_ID))
def test_every_valid_id_lies_in_exactly_one_range(bounds: list[int], case_id: int) -> None:
    ranges = list(ranges_of(map(range_key, bounds)).values())
    for candidate in (case_id, *bounds, *(bound - 1 for bound in bounds), 1, LARGEST_ID):
        if candidate >= 1:
            assert sum(candidate in each for each in ranges) == 1
    assert [each.is_first for each in ranges] == [True] + [False] * (len(ranges) - 1)
    assert all(0 not in each and LARGEST_ID + 1 not in each for each in ranges)


@given(BOUNDS)
def test_ranges_follow_one_another_whatever_the_order_of_the_keys(bounds: list[int]) -> None:
    ranges = list(ranges_of(map(range_key, bounds)).values())
    assert [range_bound(each.key) for each in ranges] == sorted(bounds)
    assert all(before.upper == after.lower for before, after in itertools.pairwise(ranges))
    assert (ranges[0].lower, ranges[-1].upper) == (1, LARGEST_ID + 1)


@given(IDS, TARGETS)
def test_a_first_plan_has_nearly_equal_counts(ids: list[int], target: int) -> None:
    bounds = plan_bounds(ids, [], target)
    assert bool(bounds) == bool(ids)
    if not ids:
        return
    assert bounds[0] == ids[0]
    assert bounds == sorted(set(bounds))
    sizes = counts(ids, bounds)
    assert sum(sizes) == len(ids)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    # round(n / target) ranges: none holds more than one and a half times the target (plus the uneven one).
    assert max(sizes) <= max(target * 1.5, target + 1) + 1


@given(IDS, TARGETS)
def test_planning_again_over_unchanged_ids_plans_nothing(ids: list[int], target: int) -> None:
    bounds = plan_bounds(ids, [], target)
    assert plan_bounds(ids, bounds, target) == []


@given(IDS, IDS, TARGETS)
def test_bounds_are_only_appended_and_ascend(first: list[int], second: list[int], target: int) -> None:
    existing = plan_bounds(first, [], target)
    together = sorted({*first, *second})
    added = plan_bounds(together, existing, target)
    every = [*existing, *added]
    assert every == sorted(set(every))
    assert set(added) <= set(together)
    if existing:
        # No range but the last was touched.
        assert counts(together, every)[: len(existing) - 1] == counts(together, existing)[: len(existing) - 1]
    # Once split, the plan rests.
    assert plan_bounds(together, every, target) == []


@pytest.mark.parametrize(("cases", "expected"), [(GROWTH * 10, []), (GROWTH * 10 + 1, [11]), (35, [9, 18, 27])])
def test_the_open_range_is_split_only_when_it_outgrew_the_target(cases: int, expected: list[int]) -> None:
    ids = list(range(1, cases + 1))
    assert plan_bounds(ids, [1], 10) == expected


def test_ids_below_the_last_bound_never_split_anything() -> None:
    assert plan_bounds(list(range(1, 1000)), [1, 2000], 10) == []


def test_skewed_ids_make_ranges_of_equal_count_not_of_equal_width() -> None:
    ids = skewed_ids()
    bounds = plan_bounds(ids, [], 500)
    assert len(bounds) == 20
    assert set(counts(ids, bounds)) == {500}
    assert bounds[0] == 729
    assert sum(bound < 1_300_000 for bound in bounds) == 9, "43 % of the cases lie in the first 3.6 % of the range"


@given(st.integers(0, LARGEST_ID))
def test_keys_and_bounds_are_inverse(bound: int) -> None:
    assert range_bound(range_key(bound)) == bound


@given(BOUNDS.map(lambda bounds: [bound % 10_000_000_000 for bound in bounds]))
def test_keys_of_ten_digits_sort_like_their_bounds(bounds: list[int]) -> None:
    assert sorted(map(range_key, bounds)) == [range_key(bound) for bound in sorted(bounds)]


@pytest.mark.parametrize("key", ["", "729", "from_", "from_x", "from_-1", "from_1.5", "FROM_0000000729", "from_ 729"])
def test_a_key_that_is_none_of_ours_is_named(key: str) -> None:
    with pytest.raises(ValueError, match="no case range; keys look like from_0000000729") as error:
        range_bound(key)
    assert repr(key) in str(error.value)


@pytest.mark.parametrize("target", [0, -1])
def test_a_partition_needs_at_least_one_case(target: int) -> None:
    with pytest.raises(ValueError, match=f"at least one case, not {target}"):
        plan_bounds([1, 2, 3], [], target)


def test_without_cases_there_is_nothing_to_plan() -> None:
    assert plan_bounds([], [], 5000) == []
    assert plan_bounds([], [729], 5000) == []
    assert ranges_of([]) == {}


def test_one_range_takes_every_valid_id() -> None:
    assert ranges_of(["from_0000000729"]) == {"from_0000000729": CaseRange("from_0000000729", 1, LARGEST_ID + 1)}
    assert LARGEST_ID * 65_536 + 65_535 < 2**63, "step ids have to fit PostgreSQL's bigint"


@given(st.integers(1, LARGEST_ID))
def test_a_key_is_told_from_what_somebody_typed(bound: int) -> None:
    assert is_range_key(range_key(bound))
    for typed in (f"from_{bound}x", f"{bound}", f"from_-{bound}", f"FROM_{bound:010d}", f"from_0{bound:010d}", ""):
        assert not is_range_key(typed)


@given(st.lists(st.integers(1, 2000), unique=True, min_size=1), st.lists(st.integers(-5, 3000)))
def test_ids_are_found_in_their_ranges(bounds: list[int], ids: list[int]) -> None:
    ranges = ranges_of(map(range_key, bounds))
    expected = {key for key, each in ranges.items() for case_id in ids if max(case_id, 1) in each}
    found = ranges_with(ids, ranges.values())
    assert set(found) == expected
    assert found == [key for key in ranges if key in expected]


@given(st.lists(st.text(max_size=3), unique=True), st.sets(st.text(max_size=3)))
def test_neighbours_are_the_fewest_unbroken_pieces(ordered: list[str], keys: set[str]) -> None:
    pieces = neighbours(ordered, keys)
    assert [key for piece in pieces for key in piece] == [key for key in ordered if key in keys]
    for before, after in itertools.pairwise(pieces):
        assert ordered.index(after[0]) > ordered.index(before[-1]) + 1
    for piece in pieces:
        first = ordered.index(piece[0])
        assert list(piece) == ordered[first : first + len(piece)]
