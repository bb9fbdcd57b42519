"""The benchmark's corpus is the same each time and shaped as it says; its exact neighbours are the exact ones."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.search_bench.corpus import BLOCK, FILTERS, Corpus, Truth, text_hash

CORPUS = Corpus(BLOCK + 300, 48, queries=20)


def _matrix(corpus: Corpus) -> np.ndarray:
    return np.vstack([vectors for _, vectors in corpus.blocks()]).astype(np.float32)


def test_vectors_are_the_same_each_time_and_in_any_order() -> None:
    again = Corpus(BLOCK + 300, 48, queries=20)
    last = again.vectors(1)
    assert np.array_equal(last, CORPUS.vectors(1))
    assert np.array_equal(_matrix(again), _matrix(CORPUS))
    assert np.array_equal(again.query_vectors, CORPUS.query_vectors)
    assert again.case(7) == CORPUS.case(7)
    other = Corpus(BLOCK + 300, 48, queries=20, seed=1)
    assert not np.array_equal(other.vectors(1), last)


def test_vectors_are_unit_vectors_that_differ_and_queries_are_none_of_them() -> None:
    vectors = _matrix(CORPUS)
    assert vectors.shape == (CORPUS.rows, 48)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 5e-3
    assert len(np.unique(vectors, axis=0)) == CORPUS.rows
    assert (CORPUS.query_vectors @ vectors.T).max() < 0.9999


@pytest.mark.parametrize(
    ("structure", "first", "hundredth"),
    [("semantic", [0.78, 0.85, 0.92], 0.55), ("lexical", [0.65, 0.85, 0.94], 0.27)],
)
def test_neighbours_stand_out_as_those_of_real_cases_do(structure: str, first: list[float], hundredth: float) -> None:
    corpus = Corpus(BLOCK + 300, 256, queries=40, structure=structure)
    cosines = corpus.query_vectors @ _matrix(corpus).T
    nearest = np.sort(cosines, axis=1)[:, ::-1]
    assert np.quantile(nearest[:, 0], [0.25, 0.5, 0.75]) == pytest.approx(first, abs=0.08)
    assert np.median(nearest[:, 100]) == pytest.approx(hundredth, abs=0.08)
    assert np.median(cosines) < 0.14


@pytest.mark.parametrize("given", FILTERS, ids=lambda each: each.name)
def test_filters_match_their_share_of_the_rows(given) -> None:
    corpus = Corpus(100_000, 8)
    matching = corpus.matching(given)
    assert matching.mean() == pytest.approx(given.share, rel=0.35)
    topics = np.unique(corpus.topic[: corpus.rows][matching])
    # Of rows that lie together no topic has some in and some out.
    assert matching[np.isin(corpus.topic[: corpus.rows], topics)].all() == given.by_topic


def test_cases_say_what_filters_look_at() -> None:
    (payload,) = CORPUS.payloads(np.array([11]))
    case = CORPUS.case(11)
    assert case["folder_structure"] == f"{payload['folder_structure']}/Topic {CORPUS.topic[11]}"
    assert {name: case[name] for name in ("priority", "tags", "project_id")} == {
        name: payload[name] for name in ("priority", "tags", "project_id")
    }
    assert len(case["title"].split()) == 8
    assert len(text_hash(11)) == 32
    assert text_hash(11) != text_hash(12)


def test_the_words_of_a_topic_come_back_in_its_queries() -> None:
    corpus = Corpus(3_000, 8, queries=300)
    own, others = [], []
    for topic in np.bincount(corpus.topic[: corpus.rows]).argsort()[-5:]:
        rows = np.flatnonzero(corpus.topic[: corpus.rows] == topic)
        said = Counter(word for row in rows.tolist() for word in _words(corpus, row))
        for query in range(corpus.queries):
            share = np.mean([said[word] / said.total() for word in corpus.query_text(query).split()])
            (own if corpus.topic[corpus.rows + query] == topic else others).append(share)
    assert np.mean(own) > 1.4 * np.mean(others)


def _words(corpus: Corpus, row: int) -> list[str]:
    case = corpus.case(row)
    return f"{case['title']} {case['description']}".split()


def test_the_truth_is_what_comparing_everything_finds() -> None:
    truth = Truth(CORPUS)
    for rows, vectors in CORPUS.blocks():
        truth.add(rows, vectors)
    vectors = _matrix(CORPUS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = CORPUS.query_vectors / np.linalg.norm(CORPUS.query_vectors, axis=1, keepdims=True)
    cosines = queries @ vectors.T
    for name, matching in [("", np.ones(CORPUS.rows, bool)), *((each.name, CORPUS.matching(each)) for each in FILTERS)]:
        ranked = -np.sort(-cosines[:, matching], axis=1)
        assert truth.recall(ranked[:, :10].tolist(), name) == 1
        reachable = min(10, matching.sum())
        if not reachable:  # no topic is as small as a thousandth of so few rows
            continue
        assert truth.recall(ranked[:, 1:10].tolist(), name) == pytest.approx(1 - 1 / reachable, abs=0.1 / reachable)
        if matching.sum() > 60:
            assert truth.recall(ranked[:, 50:60].tolist(), name) < 0.3


def test_recall_does_not_ask_for_what_is_not_there() -> None:
    corpus = Corpus(60, 16, queries=5)
    truth = Truth(corpus)
    for rows, vectors in corpus.blocks():
        truth.add(rows, vectors)
    (rare,) = (each for each in FILTERS if each.column == "tags")
    assert corpus.matching(rare).sum() < 10
    assert truth.recall([[]] * 5, rare.name) == (0.0 if corpus.matching(rare).any() else 1.0)
