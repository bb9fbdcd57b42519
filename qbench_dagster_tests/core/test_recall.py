"""Recall against exact search, and the health of vectors: each fault is planted and seen."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qbench_dagster.core.recall import SAMPLES, TIE, ExactSearch, perturb, recall


def unit(count: int, dimensions: int = 16, seed: int = 1) -> NDArray[np.float32]:
    vectors = np.random.Generator(np.random.PCG64(seed)).standard_normal((count, dimensions))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def names(count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() for number in range(count)]


@given(st.integers(1, 60), st.integers(1, 12), st.lists(st.integers(1, 60), max_size=6))
def test_batches_find_what_one_pass_over_all_finds(rows: int, k: int, cuts: list[int]) -> None:
    vectors, queries, hashes = unit(rows), unit(3, seed=2), names(rows)
    search = ExactSearch(queries, k)
    for batch in np.split(np.arange(rows), sorted({cut for cut in cuts if cut < rows})):
        search.add([hashes[index] for index in batch], vectors[batch])
    kth = -np.sort(-(queries @ vectors.T), axis=1)[:, min(k, rows) - 1]
    assert np.abs(search.thresholds() - (kth - TIE)).max() < 1e-6
    assert search.reachable == min(k, rows)
    assert search.health.sound
    assert search.health.rows == rows


def test_recall_counts_what_is_as_near_as_a_true_neighbour() -> None:
    assert recall([[0.9, 0.8], [0.9, 0.1], [0.2, 0.1], []], [0.8] * 4, 2) == [1.0, 0.5, 0.0, 0.0]


def test_results_that_tie_are_as_good_as_one_another() -> None:
    vectors = np.repeat(unit(1), 30, axis=0)
    search = ExactSearch(vectors[:1], 10)
    search.add(names(30), vectors)
    assert recall([[1.0] * 10], search.thresholds().tolist(), search.reachable) == [1.0]


def test_more_results_than_asked_for_are_no_more_than_all() -> None:
    assert recall([[1.0] * 20], [0.5], 10) == [1.0]


def test_with_fewer_rows_than_k_all_rows_are_all_there_is_to_find() -> None:
    vectors = unit(3)
    search = ExactSearch(vectors, 10)
    search.add(names(3), vectors)
    scores = (vectors @ vectors.T).tolist()
    assert recall(scores, search.thresholds().tolist(), search.reachable) == [1.0, 1.0, 1.0]
    short = [row[:2] for row in scores]
    assert max(recall(short, search.thresholds().tolist(), search.reachable)) < 1, "a row that is missing is missed"


def test_without_rows_nothing_is_measured() -> None:
    search = ExactSearch(unit(2), 10)
    assert search.reachable == 0
    assert recall([[], []], search.thresholds().tolist(), search.reachable) == []


def test_answers_and_queries_have_to_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        recall([[1.0]], [0.5, 0.5], 1)


@pytest.mark.parametrize(
    ("fault", "where"),
    [(0.0, "zero"), (np.nan, "not_finite"), (np.inf, "not_finite"), (1.02, "wrong_norm"), (0.5, "wrong_norm")],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_an_unsound_vector_is_named(fault: float, where: str) -> None:
    vectors, hashes = unit(20), names(20)
    vectors[7] *= np.float32(fault)
    search = ExactSearch(unit(2, seed=3), 5)
    search.add(hashes[:6], vectors[:6])
    search.add(hashes[6:], vectors[6:])
    assert not search.health.sound
    assert {"zero": [], "not_finite": [], "wrong_norm": [], where: [hashes[7].hex()]} == {
        "zero": search.health.zero,
        "not_finite": search.health.not_finite,
        "wrong_norm": search.health.wrong_norm,
    }
    # An unsound vector neither blinds the search to the others nor takes a place among the nearest.
    others = unit(20)
    others[7] *= fault != 0
    sound = np.delete(others, 7, axis=0) if where == "not_finite" else others
    kth = -np.sort(-(unit(2, seed=3) @ sound.T), axis=1)[:, 4]
    assert np.abs(search.thresholds() - (kth - TIE)).max() < 1e-6


def test_the_rounding_of_half_precision_is_no_wrong_norm() -> None:
    vectors = unit(200, 3072).astype(np.float16).astype(np.float32)
    search = ExactSearch(vectors[:1], 1)
    search.add(names(200), vectors)
    assert search.health.sound


def test_at_most_ten_hashes_of_a_kind_are_kept() -> None:
    search = ExactSearch(unit(1), 1)
    for _ in range(3):
        search.add(names(6), np.zeros((6, 16), np.float32))
    assert len(search.health.zero) == SAMPLES


def test_a_vector_of_another_length_finds_itself_by_direction() -> None:
    vectors = unit(5) * np.float32(3)
    search = ExactSearch(unit(5), 1)
    search.add(names(5), vectors)
    assert np.abs(search.thresholds() - (1 - TIE)).max() < 1e-5, "cosines, not products"


def test_perturbed_vectors_are_near_and_the_same_every_time() -> None:
    vectors = unit(50, 64)
    moved = perturb(vectors, 0.5, seed=729)
    assert moved.tobytes() == perturb(vectors, 0.5, seed=729).tobytes()
    assert moved.tobytes() != perturb(vectors, 0.5, seed=730).tobytes()
    assert np.abs(np.linalg.norm(moved, axis=1) - 1).max() < 1e-5
    cosines = (moved * vectors).sum(axis=1)
    assert 0.8 < cosines.min() < cosines.max() < 0.97
    assert np.allclose(perturb(vectors, 0.0, seed=1), vectors, atol=1e-6)
