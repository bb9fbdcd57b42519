"""Shares, overlaps and rank correlations against scipy and against code so plain that it cannot be wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qbench_dagster.core.agreement import overlap, percentiles, spearman, summarize
from qbench_dagster.core.recall import TIE

shares = st.lists(st.integers(0, 10).map(lambda tenths: tenths / 10), min_size=1, max_size=60)
# Far enough apart not to be a tie, or equal.
cosines = st.integers(-50, 50).map(lambda step: step * 5 * TIE)
lists = st.dictionaries(st.integers(0, 30), cosines, max_size=12).map(lambda found: list(found.items()))
numbers = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), max_size=40)


@given(shares)
@settings(max_examples=40)
def test_a_summary_holds_what_numpy_says_and_its_interval_the_mean(values: list[float]) -> None:
    found = summarize(values)
    assert found is not None
    told = (found.count, found.mean, found.median, found.p5, found.min)
    assert told == pytest.approx(
        (len(values), np.mean(values), np.median(values), np.percentile(values, 5), min(values)), abs=5e-5
    )
    assert min(values) - 1e-4 <= found.low <= found.mean + 1e-4
    assert found.mean - 1e-4 <= found.high <= max(values) + 1e-4
    assert summarize(values) == found


def test_the_interval_is_that_of_a_bootstrap() -> None:
    values = np.random.default_rng(3).binomial(10, 0.9, 200) / 10
    found = summarize(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=2e-3)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.1)


def test_without_queries_there_is_no_summary() -> None:
    assert summarize([]) is None
    assert percentiles([]) is None


def naive_overlap(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> int:
    """The most pairs of results, each of one list with one of the other, that are the same or tie."""
    common = {key for key, _ in ours} & {key for key, _ in theirs}
    left = [score for key, score in ours if key not in common]
    right = [score for key, score in theirs if key not in common]
    if len(left) > len(right):
        left, right = right, left
    most = max(
        (sum(abs(a - b) <= TIE for a, b in zip(left, order, strict=False)) for order in itertools.permutations(right)),
        default=0,
    )
    return len(common) + most


@given(
    st.dictionaries(st.integers(0, 9), cosines, max_size=5).map(lambda found: list(found.items())),
    st.dictionaries(st.integers(0, 9), cosines, max_size=5).map(lambda found: list(found.items())),
)
@settings(max_examples=200)
def test_an_overlap_counts_the_most_pairs_there_are(
    ours: list[tuple[int, float]], theirs: list[tuple[int, float]]
) -> None:
    reachable = max(len(theirs), 1)
    assert overlap(ours, theirs, reachable=reachable).share == pytest.approx(naive_overlap(ours, theirs) / reachable)


@given(lists, lists)
def test_an_overlap_does_not_ask_who_is_who(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> None:
    there, back = overlap(ours, theirs, reachable=20), overlap(theirs, ours, reachable=20)
    assert (there.share, there.shared) == (back.share, back.shared)
    assert overlap(ours, ours, reachable=len(ours)).share == 1
    assert there.shared <= {key for key, _ in (*ours, *theirs)}


def test_ties_are_one_result_under_two_names() -> None:
    ours, theirs = [(1, 0.9), (2, 0.5)], [(1, 0.9), (3, 0.5 + TIE / 2)]
    assert overlap(ours, theirs, reachable=2).share == 1
    assert overlap(ours, theirs, reachable=2).shared == {1, 2, 3}
    assert overlap(ours, [(1, 0.9), (3, 0.5 + 2 * TIE)], reachable=2).share == 0.5
    assert overlap([], theirs, reachable=2).share == 0
    assert overlap([], [], reachable=0).share == 1


@given(numbers)
@settings(max_examples=150)
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found = spearman(first, second)
    if len(pairs) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-9)


def test_percentiles_are_those_of_the_latencies() -> None:
    assert percentiles(list(range(101))) == {"p50": 50, "p95": 95, "p99": 99}
