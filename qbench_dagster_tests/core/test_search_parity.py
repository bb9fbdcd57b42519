"""Comparisons and the findings made of them: each passes where its invariant holds, and names what it fails for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qbench_dagster.core import search_parity
from qbench_dagster.core.comparison import Answer, Comparison, answers_compared, shares_compared

TARGET = 0.95


def measured(**changed: Any) -> dict[str, dict[str, Any]]:
    """Of both kinds what the index was measured to find; `doc_stored_10=[…]` changes one list."""
    found: dict[str, dict[str, Any]] = {
        kind: {
            "recall": {
                name: {"10": [1.0] * 9 + [0.9], "100": [0.98] * 10} for name in ("stored", "perturbed", "crossed")
            },
            "latencies_ms": [1.0, 2.0, 3.0],
        }
        for kind in ("doc", "step")
    }
    for name, shares in changed.items():
        kind, queries, k = name.split("_")
        found[kind]["recall"][queries][k] = shares
    return found


def compared(share: float = 1.0, **changed: Any) -> Comparison:
    """A comparison of ten queries, each of which finds `share` of its ten results."""
    found = round(share * 10)
    theirs = [(key, 1 - key / 100) for key in range(10)]
    ours = [*theirs[:found], *((100 + key, 0.5 - key / 100) for key in range(10 - found))]
    values = {
        "name": "doc_search", "title": "t", "kind": "doc", "against": "exact", "queries_from": "titles",
        "filter": None, "measure": "recall", "threshold": TARGET, "ours_ms": [1.0], "theirs_ms": None,
        "titles": lambda keys: {key: f"title {key}" for key in keys}, **changed,
    }  # fmt: skip
    made = answers_compared([Answer(f"query {n}", ours, theirs, 10) for n in range(10)], **values)
    assert made is not None
    return made


def test_measured_shares_become_comparisons_with_a_gate_at_ten() -> None:
    made = search_parity.measured_comparisons(measured(), TARGET)
    assert [(each.name, each.threshold, each.k) for each in made[:2]] == [
        ("doc_recall_10_stored", TARGET, 10), ("doc_recall_100_stored", None, 100),
    ]  # fmt: skip
    assert len(made) == 12
    assert made[0].summary.mean == 0.99
    assert made[0].latency_ms == {"ours": {"p50": 2.0, "p95": 2.9, "p99": 2.98}, "theirs": None}
    assert json.loads(json.dumps([each.as_json() for each in made]))[0]["passed"] is True
    assert search_parity.measured_comparisons(measured(doc_stored_10=[]), TARGET)[0].name == "doc_recall_100_stored"


@pytest.mark.parametrize("name", ["doc_stored_10", "doc_perturbed_10", "step_stored_10", "step_perturbed_10"])
def test_recall_below_the_target_fails_for_either_kind_of_query(name: str) -> None:
    made = search_parity.measured_comparisons(measured(**{name: [0.9499] * 10}), TARGET)
    found = search_parity.recall_reached(made, TARGET)
    kind, queries, _ = name.split("_")
    assert not found.passed
    assert [(row["comparison"], row["mean"]) for row in found.offenders] == [(f"{kind}_recall_10_{queries}", 0.9499)]
    assert found.numbers["recall_10_min"] == 0.9499
    assert search_parity.recall_reached(
        search_parity.measured_comparisons(measured(**{name: [0.95] * 10}), TARGET), TARGET
    ).passed


def test_recall_at_a_hundred_is_told_and_does_not_fail() -> None:
    found = search_parity.recall_reached(
        search_parity.measured_comparisons(measured(doc_stored_100=[0.1] * 9), TARGET), TARGET
    )
    assert found.passed
    assert found.numbers["doc_recall_100_stored"] == 0.1


def test_a_search_that_misses_names_its_queries_and_what_each_side_found() -> None:
    found = search_parity.recall_reached([compared(0.6)], TARGET)
    assert not found.passed
    assert found.offenders[0]["comparison"] == "doc_search"
    assert found.offenders[1]["query"] == "query 0"
    assert found.offenders[1]["share"] == 0.6
    assert found.offenders[1]["ours"] == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103]
    assert found.offenders[1]["theirs"] == list(range(10))


def test_without_vectors_there_is_no_recall_to_miss() -> None:
    found = search_parity.recall_reached([], TARGET)
    assert found.passed
    assert found.summary == "no vectors to search"


def test_a_search_function_that_fails_is_told() -> None:
    found = search_parity.recall_reached([compared()], TARGET, "searching documents failed: no such function")
    assert not found.passed
    assert found.summary.startswith("searching documents failed")


def test_an_example_holds_both_lists_with_what_is_shared() -> None:
    made = compared(0.9)
    assert len(made.worst) == 5
    assert [result["shared"] for result in made.worst[0]["ours"]] == [True] * 9 + [False]
    assert made.worst[0]["theirs"][9] == {"id": 9, "title": "title 9", "similarity": 0.91, "shared": False}
    assert compared().worst == []


def test_an_empty_answer_fails_whatever_the_mean_is() -> None:
    answers = [Answer("q", [(1, 0.9)], [(1, 0.9)], 1)] * 99 + [Answer("empty", [], [(1, 0.9)], 1)]
    values: dict[str, Any] = {
        "name": "n", "title": "t", "kind": "doc", "against": "qdrant", "queries_from": "titles", "filter": None,
        "measure": "overlap", "ours_ms": [], "theirs_ms": [], "titles": lambda _: {},
    }  # fmt: skip
    made = answers_compared(answers, threshold=0.5, **values)
    assert made is not None
    assert (made.passed, made.empty, made.worst[0]["query"]) == (False, 1, "empty")
    nothing = answers_compared([Answer("nothing there", [], [], 0)], threshold=0.5, **values)
    assert nothing is not None
    assert (nothing.passed, nothing.empty) == (True, 0)
    assert answers_compared([], threshold=0.5, **values) is None


@pytest.mark.parametrize(("shares", "passed"), [([1.0] * 6 + [0.8] * 4, True), ([0.93] * 10, False)])
def test_the_median_has_a_threshold_of_its_own(shares: list[float], passed: bool) -> None:
    theirs = [(key, 1 - key / 1000) for key in range(100)]
    answers = [Answer("q", theirs[: round(share * 100)], theirs, 100) for share in shares]
    made = answers_compared(
        answers, threshold=0.9, median_threshold=0.95, ours_ms=[], theirs_ms=[], titles=lambda _: {}, name="n",
        title="t", kind="doc", against="faiss", queries_from="titles", filter=None, measure="overlap",
    )  # fmt: skip
    assert made is not None
    assert made.passed is passed


def test_scores_of_the_other_store_are_correlated_with_ours() -> None:
    theirs = [(1, 0.9), (2, 0.8), (3, 0.7)]
    values: dict[str, Any] = {
        "threshold": None, "ours_ms": [], "theirs_ms": [], "titles": lambda _: {}, "name": "n", "title": "t",
        "kind": "doc", "against": "faiss", "queries_from": "titles", "filter": None, "measure": "overlap",
    }  # fmt: skip
    made = answers_compared(
        [Answer("a", theirs, theirs, 3, 10, [9, 8, 7]), Answer("b", theirs, theirs, 3, 10, [7, 8, 9])], **values
    )
    assert made is not None
    assert made.spearman == 0


SHORT = {"kind": "doc", "filter": "priority = High", "query": "log in", "k": 10, "returned": 3, "matching": 7}


def test_a_short_filtered_answer_fails_with_filter_and_query() -> None:
    found = search_parity.filtered_complete([], 20, [SHORT], TARGET, None)
    assert not found.passed
    assert list(found.offenders) == [SHORT]
    assert found.summary == "20 filtered searches, 1 short or empty"
    assert search_parity.filtered_complete([], 20, [], TARGET, None).passed


def test_a_filter_that_costs_recall_for_certain_fails() -> None:
    poor = compared(0.8, filter="priority = High", threshold=None)
    found = search_parity.filtered_complete([poor, compared()], 20, [], TARGET, None)
    assert not found.passed
    assert (found.offenders[0]["filter"], found.numbers["recall_filtered_min"]) == ("priority = High", 0.8)
    assert search_parity.filtered_complete([compared(filter="x", threshold=None)], 20, [], TARGET, None).passed
    assert search_parity.recall_reached([poor], TARGET).passed, "what a filter costs is told here only"


def test_a_filter_that_costs_nothing_more_is_let_pass() -> None:
    """Where the search without a filter finds as little, the filter is not what is wrong."""
    filtered = compared(0.8, name="doc_filtered_1", filter="x", threshold=None)
    assert search_parity.filtered_complete([filtered, compared(0.8)], 20, [], TARGET, None).passed
    assert not search_parity.filtered_complete([filtered, compared(0.9)], 20, [], TARGET, None).passed
    assert not search_parity.filtered_complete([filtered, compared(0.8, kind="step")], 20, [], TARGET, None).passed


def test_a_filtered_answer_that_may_reach_the_target_is_let_pass() -> None:
    shares = [1.0] * 18 + [0.5, 0.5]
    made = shares_compared(
        shares, threshold=None, name="n", title="t", kind="doc", against="exact", queries_from="titles",
        filter="x", k=10, measure="recall",
    )  # fmt: skip
    assert made is not None
    assert made.summary.mean == TARGET
    assert search_parity.filtered_complete([made], 20, [], 0.96, None).passed


STORE = {"store": "qdrant", "kind": "doc", "points": 9, "only_there": 1, "only_here": 2, "equal": 8, "different": 0}


def test_a_case_of_the_old_store_that_is_in_the_source_and_not_published_fails() -> None:
    cases = {"qdrant": {"published": [1, 2], "not published": [3], "rejected": [5], "gone": [4]}}
    found = search_parity.old_store_covered([STORE], cases, None)
    assert not found.passed
    assert [row["case_id"] for row in found.offenders] == [3, 5]
    assert "rejected" in found.offenders[1]["wrong"]
    assert found.numbers["gone"] == [4]
    gone = search_parity.old_store_covered([STORE], {"qdrant": {"published": [1], "gone": [4]}}, None)
    assert gone.passed
    assert "1 gone from the source" in gone.summary


def test_no_old_store_is_said_and_one_that_cannot_be_read_fails() -> None:
    assert search_parity.old_store_covered([], {}, None).passed
    assert "no old store is named" in search_parity.old_store_covered([], {}, None).summary
    assert "no old store is named" in search_parity.old_store_reached([], [], None, named=False).summary
    for found in (
        search_parity.old_store_covered([], {}, "Qdrant at x cannot be reached"),
        search_parity.old_store_reached([], [], "Qdrant at x cannot be reached", named=True),
    ):
        assert not found.passed
        assert found.summary == "not compared: Qdrant at x cannot be reached"
        assert found.offender_count == 1


def test_searches_that_do_not_reach_the_old_store_are_named_with_both_lists() -> None:
    low = compared(0.5, name="doc_overlap_qdrant", against="qdrant", measure="overlap", threshold=0.9)
    found = search_parity.old_store_reached([low, compared()], [], None, named=True)
    assert not found.passed
    assert (found.numbers["overlap_min"], found.numbers["doc_overlap_qdrant"]) == (0.5, 0.5)
    assert found.offenders[1]["query"] == "query 0"
    assert "median 0.500" in found.summary
    assert search_parity.old_store_reached([], ["not compared: other_model"], None, named=True).passed


FRESH = {"compared": 9, "wrong": 0, "smallest": 0.9999}


def test_vectors_of_other_texts_fail_wherever_they_were_seen() -> None:
    def found(**changed: Any) -> Any:
        values: dict[str, Any] = {"fresh": FRESH, "stores": [STORE], "offenders": [], "error": None, "note": None}
        values |= changed
        return search_parity.vectors_of_their_texts(
            values["fresh"], values["stores"], values["offenders"], error=values["error"], note=values["note"]
        )

    assert found().passed
    assert found(fresh={"compared": 0, "wrong": 0, "smallest": 1.0}, stores=[], note="not asked").summary == "not asked"
    wrong = found(fresh={**FRESH, "wrong": 2}, offenders=[{"case_id": 1}, {"case_id": 2}])
    assert (wrong.passed, wrong.offender_count) == (False, 2)
    assert not found(stores=[{**STORE, "different": 1}]).passed
    failed = found(error="the service does not answer")
    assert not failed.passed
    assert failed.summary.startswith("not all compared: the service")
