"""Exact nearest rows, in whatever batches they come, against sorting all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench_dagster.core.nearest import Nearest


@given(
    rows=st.integers(0, 40), k=st.integers(1, 12), batch=st.integers(1, 17), seed=st.integers(0, 999),
    shared=st.booleans(),
)  # fmt: skip
@settings(max_examples=80)
def test_the_nearest_are_those_of_a_full_sort(rows: int, k: int, batch: int, seed: int, shared: bool) -> None:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, 5)).astype(np.float32)
    queries = random.standard_normal((3, 5)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    found = Nearest(queries, k)
    for start in range(0, rows, batch):
        part = vectors[start : start + batch]
        keys = list(range(start, start + len(part)))
        if shared:  # two keys with one vector
            found.add([*keys, *(-key - 1 for key in keys)], part, [*range(len(part)), *range(len(part))])
        else:
            found.add(keys, part)
    assert found.rows == rows * (1 + shared)
    for query, results in zip(queries, found.results(), strict=True):
        cosines = {key: float(vector @ query / np.linalg.norm(vector)) for key, vector in enumerate(vectors)}
        named = cosines | ({-key - 1: value for key, value in cosines.items()} if shared else {})
        assert [score for _, score in results] == pytest.approx(sorted(named.values(), reverse=True)[:k], abs=1e-5)
        assert len({key for key, _ in results}) == min(k, len(named))
        assert all(score == pytest.approx(named[key], abs=1e-5) for key, score in results)


def test_of_a_batch_only_the_rows_that_are_named_are_found() -> None:
    found = Nearest(np.eye(3, dtype=np.float32)[:1], 5)
    found.add(["c", "a"], np.eye(3, dtype=np.float32), [2, 0])
    found.add(["twice", "again"], 2 * np.eye(3, dtype=np.float32), [1, 1])
    assert found.rows == 4
    assert sorted(found.results()[0]) == [("a", 1.0), ("again", 0.0), ("c", 0.0), ("twice", 0.0)]


def test_a_vector_that_is_zero_or_not_finite_is_nobodys_neighbour() -> None:
    found = Nearest(np.asarray([[1, 0]], dtype=np.float32), 2)
    found.add(["zero", "nan", "far"], np.asarray([[0, 0], [np.nan, 0], [-1, 0]], dtype=np.float32))
    ((first, second),) = found.results()
    assert first == ("zero", 0.0)
    assert second == ("far", -1.0)
