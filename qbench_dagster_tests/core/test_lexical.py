"""The offline embedding: the same vectors on every machine, and those of the textbook recipe."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.fft import dct
from sklearn.feature_extraction.text import HashingVectorizer

from qbench_dagster.core import lexical
from qbench_dagster.core.lexical import embed

D = 256
TEXTS = [
    "Login with wrong user/password\n",
    "Log in\nOpen the page and log in.",
    "ログインする",
    "1. Click <b>Save</b>\n2. See “Saved”",
    "",
    "   \t\n",
    "a",
    "@@",
    "Ünïcödé ÄÖÜ ß",
    "word " * 300,
]
ANY_TEXT = st.text(max_size=60)

PINNED_8 = [
    [0.2643, 0.3576, 0.0597, 0.0499, -0.8253, 0.1385, -0.2251, -0.2126],
    [-0.3536, -0.4904, -0.4619, -0.4157, -0.3536, -0.2778, -0.1913, -0.0975],
]
PINNED_3072 = [-0.0264, 0.0001, -0.0216, -0.0343]


def parts(texts: list[str], dimensions: int) -> NDArray[np.float64]:
    """The textbook route, before signs and DCT: whole texts through HashingVectorizer."""
    total = np.zeros((len(texts), dimensions))
    for options in (
        {"analyzer": "char_wb", "ngram_range": (3, 5)},
        {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"\w+"},
    ):
        vectorizer = HashingVectorizer(
            n_features=dimensions, norm=None, alternate_sign=True, lowercase=True, dtype=np.float64, **options
        )
        counts = vectorizer.transform(texts).toarray()
        damped = np.sign(counts) * np.log1p(np.abs(counts))
        norms = np.linalg.norm(damped, axis=1, keepdims=True)
        total += damped / np.where(norms > 0, norms, 1)
    total[~total.any(axis=1), 0] = 1
    return total


def textbook(texts: list[str], dimensions: int) -> NDArray[np.float64]:
    flips = np.random.Generator(np.random.PCG64(729)).integers(0, 2, dimensions) * 2 - 1
    vectors = dct(parts(texts, dimensions) * flips, type=2, norm="ortho", axis=1)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_vectors_are_those_of_every_machine() -> None:
    # Written down once: another value means that no stored vector can be compared with a new one, so the model
    # needs a new name (adapters/embedders.py). Rounded: the last bits of a float belong to the machine.
    assert np.abs(embed(["Log in", ""], 8) - np.array(PINNED_8)).max() < 1e-4
    vectors = embed(["user cannot log in with wrong password"], 3072)[0]
    assert np.abs(vectors[[0, 1, 1000, 3071]] - np.array(PINNED_3072)).max() < 1e-4


def test_embedding_twice_gives_the_same_bytes() -> None:
    first = embed(TEXTS, D)
    lexical._character_hasher.cache_clear()
    lexical._gram_hasher.cache_clear()
    lexical._signs.cache_clear()
    assert embed(TEXTS, D).tobytes() == first.tobytes()


def test_every_vector_is_a_unit_vector_of_float32() -> None:
    vectors = embed(TEXTS, D)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), D)
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_no_texts_no_vectors() -> None:
    assert embed([], D).shape == (0, D)


def test_a_text_with_nothing_to_hash_still_has_a_direction() -> None:
    empty = embed(["", "   ", "\n\t", "\u3000"], D)
    assert (np.linalg.norm(empty, axis=1) > 0.99).all()
    assert np.allclose(empty, empty[0]), "texts without a gram are all the same"


@settings(max_examples=40, deadline=None)
@given(ANY_TEXT, st.lists(ANY_TEXT, max_size=5), st.integers(0, 5))
def test_a_vector_does_not_depend_on_its_neighbours(text: str, others: list[str], position: int) -> None:
    alone = embed([text], D)[0]
    batch = [*others[:position], text, *others[position:]]
    assert np.abs(embed(batch, D)[min(position, len(others))] - alone).max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(st.lists(ANY_TEXT, min_size=1, max_size=4))
def test_the_short_cut_is_the_textbook_route(texts: list[str]) -> None:
    assert np.abs(embed(texts, D) - textbook(texts, D)).max() < 1e-5


@pytest.mark.parametrize("dimensions", [64, 3072])
def test_the_textbook_route_on_texts_as_they_come(dimensions: int) -> None:
    assert np.abs(embed(TEXTS, dimensions) - textbook(TEXTS, dimensions)).max() < 1e-5


def test_signs_and_cosine_transform_keep_every_cosine() -> None:
    before = parts(TEXTS, D)
    before /= np.linalg.norm(before, axis=1, keepdims=True)
    after = embed(TEXTS, D).astype(np.float64)
    assert np.abs(after @ after.T - before @ before.T).max() < 1e-5


def test_coordinates_are_spread_for_binary_quantisation() -> None:
    vectors = embed(["Log in with a user and a password", "Log out"], 3072)
    assert (vectors == 0).mean() < 0.01, "hashing alone leaves nearly all of a short text's coordinates zero"
    assert 0.4 < (vectors > 0).mean() < 0.6


def test_related_texts_are_nearer_than_unrelated_ones() -> None:
    query = embed(["user cannot log in with wrong password"], 3072)[0]
    candidates = [
        "Login with wrong user/password\n",
        "Delete a file from the trash\n",
        "BGP session flaps when the interface goes down\n",
        "Play a video in full screen\n",
        "Sort the table by date\n",
    ]
    cosines = embed(candidates, 3072) @ query
    assert cosines.argmax() == 0
    assert cosines[0] > 2 * np.sort(cosines)[-2]


def test_case_does_not_matter_and_words_do() -> None:
    vectors = embed(["LOG IN", "log in", "log out"], D)
    assert vectors[0].tobytes() == vectors[1].tobytes()
    assert vectors[0] @ vectors[2] < 0.9
