"""The choice of a strategy: never one that misses the recall while another reaches it, and the cheapest of those."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.advice import Advice, Point, Trial, choose, pick, still_holds
from qbench_dagster.core.indexes import (
    EXACT,
    HNSW,
    STRATEGIES,
    IndexSettings,
    build_memory,
    choice_of,
    default_lists,
    lists_outgrown,
)

TARGET_MS = 15.0


def point(ef_search: int = 40, low: float = 1.0, p95_ms: float = 1.0) -> Point:
    return Point(ef_search, ef_search, min(1.0, low + 0.01), low, low, p95_ms / 2, p95_ms)


def trial(strategy: str, *, p95_ms: float = 1.0, reaches: bool = True, seconds: float = 1.0, size: int = 1000) -> Trial:
    found = point(0 if strategy == EXACT else 40, p95_ms=p95_ms)
    return Trial(strategy, 5000, 50_000, seconds, size, (found,), found, reaches)


trials = st.lists(
    st.builds(
        trial,
        st.sampled_from(STRATEGIES[:-1]),
        p95_ms=st.floats(0.1, 50),
        reaches=st.booleans(),
        seconds=st.floats(0.01, 100),
        size=st.integers(1, 10**9),
    ),
    max_size=4,
    unique_by=lambda one: one.strategy,
)


@given(trials, st.floats(0.1, 20))
def test_the_cheapest_that_meets_both_targets_is_chosen(others: list[Trial], exact_ms: float) -> None:
    exact = trial(EXACT, p95_ms=exact_ms, seconds=0, size=0)
    advice = choose([exact, *others], TARGET_MS)
    best = next(one for one in [exact, *others] if one.strategy == advice.chosen)
    assert best.reaches_recall(), "exact search always does"
    meeting = [one for one in [exact, *others] if one.meets(TARGET_MS)]
    if meeting:
        assert best.meets(TARGET_MS)
        assert best.cost == min(one.cost for one in meeting)
    else:
        finding = [one for one in [exact, *others] if one.reaches_recall()]
        assert best.projected_p95_ms == min(one.projected_p95_ms for one in finding)
    assert advice.order[-1] == EXACT, "what is tried last always reaches the recall"
    assert len(set(advice.order)) == len(advice.order)
    reach = {one.strategy for one in [exact, *others] if one.reaches_recall()}
    assert set(advice.order) <= reach


def test_exact_search_that_is_fast_enough_needs_no_index() -> None:
    assert choose([trial(EXACT, p95_ms=1.4, seconds=0, size=0), trial("binary")], TARGET_MS).order == [EXACT]
    slow = trial(EXACT, p95_ms=1.6, seconds=0, size=0)  # 16 ms for ten times the rows
    assert choose([slow, trial("binary")], TARGET_MS).order == ["binary", EXACT]
    assert choose([slow, trial("binary")], TARGET_MS, unmeasured=["halfvec"]).order == ["binary", "halfvec", EXACT]


def test_what_a_sample_says_of_all_rows() -> None:
    exact, binary = trial(EXACT, p95_ms=2.0), trial("binary", p95_ms=2.0, seconds=3.0)
    assert exact.projected_p95_ms == pytest.approx(20), "linear"
    assert trial("ivfflat", p95_ms=2.0).projected_p95_ms == pytest.approx(20), "a share of the rows"
    assert 2.0 < binary.projected_p95_ms < 6.0, "as its candidates and layers grow"
    assert 30 < binary.projected_build_seconds < 40
    assert binary.bytes_per_row == 0.2
    assert 40 < binary.candidates < 80
    whole = replace(binary, rows=5000)
    assert (whole.projected_p95_ms, whole.candidates, whole.projected_build_seconds) == (2.0, 40, 3.0)
    far = replace(binary, point=point(640), rows=5_000_000)
    assert not far.reaches_recall(), "it would need more candidates than pgvector takes"


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1)), min_size=1, max_size=8, unique_by=lambda pair: pair[0]),
    st.floats(0, 1),
)
def test_the_fewest_candidates_whose_interval_meets_the_target_are_picked(
    found: list[tuple[int, float]], target: float
) -> None:
    curve = [point(ef_search, low) for ef_search, low in sorted(found)]
    picked, reached = pick(curve, target)
    assert reached == any(one.recall_10_low >= target for one in curve)
    if reached:
        assert picked.recall_10_low >= target, "the mean alone is not enough"
        assert picked.ef_search == min(one.ef_search for one in curve if one.recall_10_low >= target)
    else:
        assert picked.recall_10_low == max(one.recall_10_low for one in curve)


def test_a_mean_above_the_target_is_not_enough() -> None:
    near = Point(40, 40, recall_10=0.96, recall_10_low=0.94, recall_100=1.0, p50_ms=1.0, p95_ms=1.0)
    assert pick([near, point(64, 0.951)], 0.95) == (point(64, 0.951), True)
    assert pick([near], 0.95) == (near, False)


def test_advice_holds_until_something_it_depends_on_changes() -> None:
    settings = IndexSettings("auto")
    made = choose([trial(EXACT, seconds=0, size=0)], TARGET_MS).as_json(settings, 1000)
    assert still_holds(made, settings, 1000)
    assert still_holds(made, replace(settings, memory_mb=64, workers=3), 1999)
    assert not still_holds(made, settings, 2000)
    assert not still_holds(made, settings, 500)
    for change in ({"target_recall": 0.99}, {"target_p95_ms": 5}, {"m": 8}, {"ef_search": 40}, {"sample": 100}):
        assert not still_holds(made, replace(settings, **change), 1000), change  # type: ignore[arg-type]


def test_advice_says_what_was_measured() -> None:
    advice: Advice = choose(
        [trial(EXACT, p95_ms=9, seconds=0, size=0), trial("binary")], TARGET_MS, {"halfvec": "dear"}
    )
    told = advice.as_json(IndexSettings("auto"), 50_000)
    assert (told["chosen"], told["sample"], told["rows"], told["skipped"]) == (
        "binary",
        5000,
        50_000,
        {"halfvec": "dear"},
    )
    assert "binary is the cheapest" in told["why"]
    (exact, binary) = told["strategies"]
    assert (exact["strategy"], exact["meets"], binary["meets"]) == (EXACT, False, True)
    assert binary["curve"][0]["recall_10_low"] == 1.0
    assert set(exact) == {
        "strategy", "recall_10", "recall_100", "p95_ms", "projected_p95_ms", "build_seconds", "projected_build_seconds",
        "bytes_per_row", "ef_search", "rerank", "meets", "curve",
    }  # fmt: skip


# Parameters


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_choice_has_the_parameters_of_its_strategy_only(strategy: str) -> None:
    choice = choice_of(IndexSettings(strategy, m=40, ef_construction=64), strategy, 3072, 50_000)
    assert (choice.m, choice.ef_construction) == ((40, 80) if strategy in HNSW else (None, None)), "pgvector takes 2 m"
    assert choice.lists == (50 if strategy == "ivfflat" else None)
    assert choice.shortened == (512 if strategy == "subvector" else None)
    assert choice.exact is (strategy == EXACT)


def test_settings_win_over_defaults() -> None:
    settings = IndexSettings("auto", ef_search=70, rerank=90, shortened=5000, lists=7)
    assert choice_of(settings, "subvector", 3072, 10).shortened == 3072
    assert choice_of(settings, "ivfflat", 3072, 10).lists == 7
    assert choice_of(settings, "ivfflat", 3072, 10).ef_search == 7, "no more probes than lists"
    assert (choice_of(settings, "binary", 3072, 10).ef_search, choice_of(settings, "binary", 3072, 10).rerank) == (
        70,
        90,
    )


def test_lists_follow_the_rows() -> None:
    assert [default_lists(rows) for rows in (0, 999, 40_000, 1_000_000, 4_000_000)] == [1, 1, 40, 1000, 2000]
    assert [lists_outgrown(built_for, 3000) for built_for in (0, 1500, 1501, 3000)] == [True, True, False, False]


def test_what_a_build_keeps_in_memory() -> None:
    rows = 1_000_000
    sizes = {name: build_memory(choice_of(IndexSettings(name), name, 3072, rows), 3072, rows) for name in STRATEGIES}
    assert 1.0e9 < sizes["binary"] < 1.4e9, "392 bytes of bits, 512 of links, the node"
    assert 6.5e9 < sizes["halfvec"] < 7.5e9
    assert sizes["binary"] < sizes["subvector"] < sizes["halfvec"]
    assert 4e8 < sizes["ivfflat"] < 8e8, "50 vectors a list, and their distances"
    assert sizes["exact"] == 0
