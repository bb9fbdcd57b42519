"""Suspicious vectors: each fault is planted among vectors that are alike, as those of real texts are, and seen."""

from __future__ import annotations

import hashlib
import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qbench_dagster.core.lexical import embed
from qbench_dagster.core.suspicion import (
    FEWEST_REFERENCES,
    KEPT,
    MEASURED,
    Suspects,
    chance_level,
    cosines,
    is_constant,
    unsound,
)
from qbench_dagster_tests.support import REAL_EXPORT

DIMENSIONS = 384
Vectors = NDArray[np.float32]


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def unit(vectors: NDArray[np.floating]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def random(count: int, dimensions: int = DIMENSIONS, seed: int = 1) -> Vectors:
    return unit(generator(seed).standard_normal((count, dimensions)))


def alike(count: int, dimensions: int = DIMENSIONS, seed: int = 2, noise: float = 1.2) -> Vectors:
    """Vectors of texts about forty subjects, in half precision as they are stored."""
    subjects = random(40, dimensions, seed=3)
    chosen = subjects[generator(seed).integers(0, 40, count)]
    return unit(chosen + noise * random(count, dimensions, seed)).astype(np.float16).astype(np.float32)


def names(count: int, prefix: str = "") -> list[bytes]:
    return [hashlib.sha256(f"{prefix}{number}".encode()).digest() for number in range(count)]


def examined(vectors: Vectors, hashes: list[bytes] | None = None, *, references: int = 1000) -> Suspects:
    """One pass over `vectors`, the first of them being the references."""
    hashes = names(len(vectors)) if hashes is None else hashes
    found = Suspects(hashes[:references], vectors[:references])
    for start in range(0, len(vectors), 700):
        found.add(hashes[start : start + 700], vectors[start : start + 700])
    return found


def with_planted(planted: Vectors, at: int = 1500) -> tuple[Vectors, set[bytes]]:
    """2,000 vectors of real texts, some of which others take the place of; and the hashes of these."""
    vectors = alike(2000, planted.shape[1])
    vectors[at : at + len(planted)] = planted
    return vectors, set(names(2000)[at : at + len(planted)])


SHUFFLED = np.stack([generator(row).permutation(vector) for row, vector in enumerate(alike(30, seed=9))])
RANDOM = {
    "normal": random(30, seed=5),
    "all positive": unit(generator(6).random((30, DIMENSIONS))),
    "signs turned": alike(30, seed=7) * generator(8).choice([-1.0, 1.0], (30, DIMENSIONS)).astype(np.float32),
    "shuffled": np.asarray(SHUFFLED, dtype=np.float32),
    "heavy tails": unit(generator(10).laplace(size=(30, DIMENSIONS))),
}


@pytest.mark.parametrize("planted", RANDOM.values(), ids=RANDOM.keys())
@pytest.mark.parametrize("at", [1500, 0], ids=["elsewhere", "among the references"])
def test_random_vectors_are_found_and_no_others(planted: Vectors, at: int) -> None:
    vectors, hashes = with_planted(planted, at)
    found = examined(vectors)
    assert found.cannot_tell is None
    assert set(found.by_kind["random"].hashes) == hashes
    assert found.by_kind["random"].count == len(hashes) == len(found.by_kind["random"].measures)
    assert max(found.by_kind["random"].measures) < found.chance
    assert {kind for kind in MEASURED if found.by_kind[kind].count} == {"random"}


def test_a_clean_table_gives_none() -> None:
    found = examined(alike(3000))
    assert found.cannot_tell is None
    assert found.rows == 3000
    assert {kind: kept.count for kind, kept in found.by_kind.items()} == dict.fromkeys(MEASURED, 0)
    assert found.duplicates() == []
    assert found.suspected() == []


def test_random_vectors_do_not_vouch_for_each_other_even_when_they_are_most() -> None:
    vectors, hashes = np.vstack([random(1400), alike(600)]), names(2000)
    order = generator(11).permutation(2000)
    found = examined(vectors[order], [hashes[row] for row in order])
    assert found.cannot_tell is None
    flagged = set(found.by_kind["random"].hashes)
    assert flagged <= set(hashes[:1400])
    assert len(flagged) >= 1390, "one of a thousand is near a reference by chance"


def test_odd_texts_are_flagged_only_where_nothing_is_like_them() -> None:
    usual = [
        f"{verb} the {thing} of {place} {number}"
        for verb in ("Open", "Close", "Save", "Delete", "Share")
        for thing in ("page", "report", "bookmark", "invoice")
        for place in ("the menu", "a tab", "the archive")
        for number in range(20)
    ]
    odd = ["打开设置并关闭通知", "👍🎉", "https://example.org/a/b?c=d", "", "Überprüfung öffnen"]
    like = ["打开 invoice", "👍 Save", "https://report.org/the/menu", "bookmarks", "Close"]
    found = examined(embed(usual + like + odd, 3072), references=len(usual))
    assert found.cannot_tell is None
    # A lexical vector that shares no gram with any other is at right angles to all: a fresh embedding clears it.
    assert set(found.by_kind["random"].hashes) <= set(names(len(usual + like + odd))[-len(odd) :])


@pytest.mark.skipif(not REAL_EXPORT.exists(), reason="the real export is not at hand")
def test_of_real_titles_hardly_one_looks_random() -> None:
    with sqlite3.connect(REAL_EXPORT) as connection:
        titles = [
            row[0] for row in connection.execute("SELECT DISTINCT title FROM cases ORDER BY id % 7, id LIMIT 6000")
        ]
    found = examined(embed(titles, 1024), references=4000)
    assert found.cannot_tell is None
    assert found.by_kind["random"].count <= 6, "0.1 %"


@pytest.mark.parametrize(
    ("vectors", "why"),
    [
        (alike(FEWEST_REFERENCES - 1), "too few"),
        (alike(2000, 64), "64 dimensions"),
        (alike(2000, noise=2.0), "too far apart"),
        (np.empty((0, DIMENSIONS), dtype=np.float32), "too few"),
    ],
    ids=["few", "coarse", "thin", "none"],
)
def test_without_power_it_says_so_and_flags_nothing(vectors: Vectors, why: str) -> None:
    found = examined(vectors)
    assert why in (found.cannot_tell or "")
    assert found.by_kind["random"].count == 0


def test_the_chance_level_holds_for_random_vectors() -> None:
    for dimensions in (128, 384, 3072):
        level = chance_level(1000, dimensions)
        nearest = (random(1000, dimensions, seed=1) @ random(1000, dimensions, seed=2).T).max(axis=1)
        assert np.mean(nearest >= level) < 0.006
        assert np.mean(nearest >= 0.8 * level) > 0.02, "and is not far above them"
    assert chance_level(0, 384) == float("inf")


@pytest.mark.parametrize(
    ("fault", "kind", "measure"),
    [(0.0, "zero", None), (np.nan, "not_finite", None), (np.inf, "not_finite", None), (3.0, "wrong_norm", 3.0),
     (0.98, "wrong_norm", 0.98)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_an_unsound_vector_is_found_once(fault: float, kind: str, measure: float | None) -> None:
    vectors = alike(2000)
    vectors[[3, 1700]] *= np.float32(fault)
    found = examined(vectors)
    assert {name: kept.count for name, kept in found.by_kind.items() if kept.count} == {kind: 2}
    assert found.by_kind[kind].hashes == [names(2000)[3], names(2000)[1700]]
    assert found.by_kind[kind].measures == ([] if measure is None else pytest.approx([measure] * 2, abs=1e-3))
    assert found.duplicates() == [], "two zero vectors are no shared vector"
    assert np.isfinite(found.typical or np.nan)


@pytest.mark.parametrize("values", [1, 2, 16])
def test_a_vector_of_a_handful_of_values_is_constant(values: int) -> None:
    drawn = generator(4).choice(np.linspace(0.5, 1, values), (5, DIMENSIONS))
    vectors, hashes = with_planted(unit(drawn))
    found = examined(vectors)
    assert set(found.by_kind["constant"].hashes) == hashes
    assert found.by_kind["random"].count == 0
    assert found.suspected() == found.by_kind["constant"].hashes


def test_what_is_constant_only_where_it_is_looked_at_first_is_not() -> None:
    vectors = alike(10)
    vectors[:, :64] = 0
    assert not is_constant(vectors).any()
    coarse = generator(4).choice(np.linspace(-1, 1, 32), (10, DIMENSIONS)).astype(np.float32)
    assert not is_constant(coarse).any(), "thirty-two values may be a model's own, in few bits"
    few = np.zeros((1, DIMENSIONS), dtype=np.float32)
    few[0, 100:116] = 0.25
    assert is_constant(few).all()


def test_half_precision_makes_no_vector_constant_or_unsound() -> None:
    for dimensions in (64, 384, 3072):
        vectors = random(200, dimensions).astype(np.float16).astype(np.float32)
        assert not is_constant(vectors).any()
        assert not any(bad.any() for bad in unsound(vectors).values())


def test_texts_that_share_a_vector_are_grouped_the_largest_first() -> None:
    vectors = alike(1800)
    vectors[[5, 900, 1700]] = vectors[5]
    vectors[[6, 1000]] = vectors[6]
    vectors[7] = np.nextafter(vectors[8], 1)  # as near as can be, and not the same
    found = examined(vectors)
    hashes = names(1800)
    assert found.duplicates() == [
        sorted(hashes[row] for row in (5, 900, 1700)),
        sorted(hashes[row] for row in (6, 1000)),
    ]
    assert set(found.suspected()) == {hashes[row] for row in (5, 900, 1700, 6, 1000)}


@given(st.lists(st.integers(0, 6), max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_shared_vectors_are_those_that_are_equal(pattern: list[int], cuts: list[int]) -> None:
    pool = alike(7, 32)
    vectors = pool[np.asarray(pattern, dtype=int)] if pattern else np.empty((0, 32), dtype=np.float32)
    hashes = names(len(vectors))
    found = Suspects([], np.empty((0, 32), dtype=np.float32))
    for batch in np.split(np.arange(len(vectors)), sorted(cut for cut in set(cuts) if cut < len(vectors))):
        found.add([hashes[row] for row in batch], vectors[batch])
    expected = {
        frozenset(hashes[row] for row in np.flatnonzero(np.asarray(pattern) == value))
        for value in set(pattern)
        if pattern.count(value) > 1
    }
    assert {frozenset(group) for group in found.duplicates()} == expected


def test_a_table_of_nonsense_keeps_a_bounded_number_of_hashes() -> None:
    found = Suspects([], np.empty((0, 8), dtype=np.float32))
    for start in range(3):
        found.add(names(6000, f"{start}-"), np.zeros((6000, 8), dtype=np.float32))
    assert found.by_kind["zero"].count == found.rows == 18_000
    assert len(found.by_kind["zero"].hashes) == KEPT
    assert len(set(found.by_kind["zero"].hashes)) == KEPT


@pytest.mark.filterwarnings("error")
def test_cosines_of_pairs() -> None:
    stored = np.asarray([[2, 0], [0, 3], [-1, 0], [0, 0], [np.nan, 1], [np.inf, 1]], dtype=np.float32)
    fresh = np.asarray([[1, 0], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0]], dtype=np.float32)
    assert cosines(stored, fresh).tolist() == [1, 0, -1, 0, 0, 0]
