"""Searches by vector find what a comparison with everything finds, under any filter, and never fewer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.reading import Filters, search, similar
from qbench_dagster.core.lexical import embed
from qbench_dagster_tests.adapters.search.conftest import IDENTICAL, LOWEST, ODD, SPACE
from qbench_dagster_tests.adapters.search.twin import RERANK, Twin
from qbench_dagster_tests.support import execute, rows

D = SPACE.dimensions
CLOSE = 2e-6
"""PostgreSQL adds products of 32 bits, the twin of 64."""


@pytest.fixture(scope="module")
def queries(twin: Twin) -> NDArray[np.float32]:
    """What people might ask: their own words, and titles as half remembered."""
    titles = [row["title"].split() for row in twin.cases[5:2500:180]]
    remembered = [" ".join(words[: len(words) // 2 + 1]) + " quickly" for words in titles]
    return embed(["log in with a wrong password", "One and the same text\n", "Delete a file\n", *remembered], D)


@pytest.fixture(scope="module")
def values(twin: Twin) -> dict[str, Any]:
    """Filters to draw from: the frequent values, the rare ones and those that nothing has."""

    def ranked(name: str) -> list[Any]:
        counts: dict[Any, int] = {}
        for row in twin.cases:
            for value in row[name] if isinstance(row[name], list) else [row[name]]:
                counts[value] = counts.get(value, 0) + 1
        return sorted((value for value in counts if value is not None), key=lambda value: -counts[value])

    def some(name: str, *others: Any) -> Any:
        found = ranked(name)
        return st.lists(st.sampled_from([*found[:4], *found[-2:], *others]), max_size=4)

    folders = ranked("folder_structure")
    dates = sorted(row["source_updated_at"] for row in twin.cases)
    return {
        "priority": some("priority", "nothing has it"),
        "tags": some("tags", *ODD),
        "platforms": some("platforms", "no platform"),
        "test_type": some("test_type"),
        "folder": st.sampled_from(
            [
                *folders[:3],
                *(folder[: len(folder) // 2] for folder in folders[:5]),
                "",
                "no such folder",
                "%",
                "_",
                "\\",
            ]
        ),
        "project": some("project_id", -1),
        "suite": some("suite_id", -1),
        "updated_since": st.sampled_from([dates[0], dates[len(dates) // 2], dates[-1], dates[-1] + timedelta(days=1)]),
    }


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_what_is_found_is_what_is_nearest(
    indexed: tuple[Database, str], queries: NDArray[np.float32], twin: Twin, k: int
) -> None:
    database, strategy = indexed
    shares = []
    for query in queries[:: 1 if k < 1000 else 4]:
        found = search(database, query, k, Filters())
        exact = twin.nearest(query, Filters())
        assert len({row["test_case_id"] for row in found}) == k
        assert_true_and_sorted(found, dict(exact))
        if strategy == "exact":
            assert np.abs(np.array([row["similarity"] for row in found]) - [s for _, s in exact[:k]]).max() < CLOSE
        shares.append(sum(row["similarity"] >= exact[k - 1][1] - CLOSE for row in found) / k)
    # The invariant is about ten results (design, section 4); a thousand of 3,500 cases from signs alone find less. Of
    # seventeen queries one more or less is 0.06, and where IVFFlat's centres lie is chance.
    assert np.mean(shares) >= (1 if strategy == "exact" else 0.8 if k <= 10 else 0.7), shares


def assert_true_and_sorted(found: list[dict[str, Any]], cosines: dict[int, float]) -> None:
    similarities = [row["similarity"] for row in found]
    assert similarities == sorted(similarities, reverse=True)
    for row in found:
        assert abs(cosines[row["test_case_id"]] - row["similarity"]) < CLOSE


def test_any_search_is_complete_and_true(
    indexed: tuple[Database, str], queries: NDArray[np.float32], twin: Twin, values: dict[str, Any]
) -> None:
    """Invariant 8, for documents, steps and similar documents, over random filters, k and thresholds."""
    database, strategy = indexed
    recalls = []

    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(st.sampled_from(sorted(values)), max_size=2, unique=True).flatmap(
            lambda names: st.fixed_dictionaries({name: values[name] for name in names})
        ),
        st.sampled_from([1, 2, 10, 57, 1000]),
        st.integers(0, len(queries) - 1),
        st.none() | st.floats(-0.1, 0.9),
    )
    def compare(chosen: dict[str, Any], k: int, number: int, minimum: float | None) -> None:
        filters, query = Filters(**chosen), queries[number]
        exact = twin.nearest(query, filters, minimum)
        found = search(database, query, k, filters, min_similarity=minimum)
        assert_complete(found, exact, k, strategy, minimum)
        recalls.append(share_of_nearest(found, exact, k))

        case_id = twin.cases[number * 101]["test_case_id"]
        vector = np.array(twin.by_id[case_id]["vector"], dtype=np.float32)
        others = twin.nearest(vector, filters, minimum, but=case_id)
        found = similar(database, case_id, k, filters, min_similarity=minimum)
        assert_complete(found, others, k, strategy, minimum)

        steps = twin.nearest_steps(query, filters, minimum)
        found = search(database, query, k, filters, steps=True, min_similarity=minimum)
        if minimum is None or strategy == "exact":
            assert len(found) == min(k, len(steps))
        for row in found:
            cosine, holders = steps.pop((row["action"], tuple(row["expected"])))
            assert abs(cosine - row["similarity"]) < CLOSE
            assert (row["test_case_id"], row["cases"], row["test_case_ids"]) == (
                holders[0], len(holders), holders[:100]
            )  # fmt: skip
        if strategy == "exact" and found and steps:
            assert found[-1]["similarity"] >= max(cosine for cosine, _ in steps.values()) - CLOSE or len(found) < k

    compare()
    assert np.mean(recalls) > (1 - 1e-9 if strategy == "exact" else 0.9)


def test_each_filter_means_what_it_says(unindexed: Database, queries: NDArray[np.float32], twin: Twin) -> None:
    middle = sorted(twin.cases, key=lambda row: row["source_updated_at"])[-300]
    choices: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
        ("priority", "priority", lambda value: [value]), ("tags", "tags", lambda value: value[:1]),
        ("platforms", "platforms", lambda value: value[:1]), ("test_type", "test_type", lambda value: [value]),
        ("folder", "folder_structure", lambda value: value[: len(value) // 2]),
        ("project", "project_id", lambda value: [value]),
        ("suite", "suite_id", lambda value: [value]), ("updated_since", "source_updated_at", lambda value: value),
    )  # fmt: skip
    for name, column, chosen in choices:
        for row in (middle, *twin.cases[:2500:500]):
            if row[column] and (name != "updated_since" or row is middle):
                given: dict[str, Any] = {name: chosen(row[column])}
                filters = Filters(**given)
                exact = twin.nearest(queries[0], filters)
                found = search(unindexed, queries[0], 1000, filters)
                assert 0 < len(found) == min(1000, len(exact)), name
                assert {hit["test_case_id"] for hit in found} <= {case_id for case_id, _ in exact}, name


def assert_complete(
    found: list[dict[str, Any]], exact: list[tuple[int, float]], k: int, strategy: str, minimum: float | None
) -> None:
    assert_true_and_sorted(found, dict(exact))
    assert len({row["test_case_id"] for row in found}) == len(found)
    # An index may hold back some that are above the threshold, but nothing where there is none.
    assert len(found) == min(k, len(exact)) or (minimum is not None and strategy != "exact" and len(found) < len(exact))


def share_of_nearest(found: list[dict[str, Any]], exact: list[tuple[int, float]], k: int) -> float:
    wanted = exact[:k]
    return sum(row["similarity"] >= wanted[-1][1] - CLOSE for row in found) / len(wanted) if wanted else 1.0


def test_what_comes_back_is_the_published_row(unindexed: Database, queries: NDArray[np.float32], twin: Twin) -> None:
    for row in search(unindexed, queries[0], 20, Filters()) + similar(unindexed, LOWEST, 20, Filters()):
        stored = twin.by_id[row["test_case_id"]]
        assert {name: stored[name] for name in row if name != "similarity"} == {
            name: value for name, value in row.items() if name != "similarity"
        }


def test_identical_texts_do_not_starve_the_results(indexed: tuple[Database, str]) -> None:
    database, _ = indexed
    vector = embed(["One and the same text\n"], D)[0]
    for k in (10, 1000):
        found = search(database, vector, k, Filters())
        assert {row["title"] for row in found} == {"One and the same text"}
        assert [row["test_case_id"] for row in found] == list(range(LOWEST, LOWEST + k)), "ties are in order of the id"
    other = search(database, embed(["video does not play"], D)[0], 1000, Filters())
    assert len({row["test_case_id"] for row in other}) == 1000


def test_cases_of_the_same_text_are_similar_at_one(indexed: tuple[Database, str]) -> None:
    database, _ = indexed
    for k in (1, 998, 1000):
        found = similar(database, LOWEST + 1, k, Filters())
        ids = [LOWEST, *range(LOWEST + 2, LOWEST + IDENTICAL)]
        assert [row["test_case_id"] for row in found][:999] == ids[:k]
        assert len(found) == k
        assert all(abs(row["similarity"] - 1) < CLOSE for row in found[:999])


def test_a_step_has_up_to_a_hundred_of_its_cases(unindexed: Database) -> None:
    (first, *_) = search(unindexed, embed(["Press the same button\n"], D)[0], 10, Filters(), steps=True)
    assert (first["action"], first["cases"], first["test_case_id"]) == ("Press the same button", IDENTICAL, LOWEST)
    assert first["test_case_ids"] == list(range(LOWEST, LOWEST + 100))


@pytest.mark.parametrize("tag", ODD)
def test_odd_names_are_found_by_themselves(unindexed: Database, queries: NDArray[np.float32], tag: str) -> None:
    found = search(unindexed, queries[0], 10, Filters(tags=[tag]))
    assert [row["title"] for row in found] == [f"Odd {tag}"]


def index_scans(database: Database, strategy: str) -> int:
    with database.connection("test") as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
    (count,) = rows(
        database,
        "SELECT coalesce(sum(idx_scan), 0)::int FROM pg_stat_user_indexes "
        "WHERE schemaname = %s AND indexrelname LIKE %s",
        SPACE.name, f"%_embeddings_{strategy}",
    )[0]  # fmt: skip
    return int(count)


def test_an_index_answers_where_there_is_one(indexed: tuple[Database, str], queries: NDArray[np.float32]) -> None:
    database, strategy = indexed
    before = index_scans(database, strategy)
    wide = Filters(updated_since=rows(database, "SELECT min(source_updated_at) FROM qbench.test_documents")[0][0])
    for filters in (Filters(), wide):  # the second matches all: more than are worth comparing
        for steps in (False, True):
            for query in queries[:5]:
                search(database, query, 10, filters, steps=steps)
    assert index_scans(database, strategy) - before == (0 if strategy == "exact" else 20)


def test_a_selective_filter_needs_no_index(indexed: tuple[Database, str], queries: NDArray[np.float32]) -> None:
    database, strategy = indexed
    before = index_scans(database, strategy)
    for query in queries[:5]:
        assert len(search(database, query, 10, Filters(tags=ODD))) == 10
    assert index_scans(database, strategy) == before


def test_candidates_are_reranked_exactly(indexed: tuple[Database, str], queries: NDArray[np.float32]) -> None:
    """Where an index orders by less than the cosine, its own first ten are not the ten nearest of its candidates."""
    database, strategy = indexed
    deep = [row["similarity"] for query in queries for row in search(database, query, 10, Filters())]
    execute(database, "UPDATE store.index_builds SET rerank = 1")
    shallow = [row["similarity"] for query in queries for row in search(database, query, 10, Filters())]
    execute(database, "UPDATE store.index_builds SET rerank = %s", RERANK)
    by_less = strategy in ("binary", "subvector")
    assert sum(deep) > sum(shallow) if by_less else deep == shallow, "4 k are compared at least, rerank if it is more"
