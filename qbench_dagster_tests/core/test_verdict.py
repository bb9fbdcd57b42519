"""What becomes of suspects once their texts were embedded again."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from qbench_dagster.core.recall import SAMPLES
from qbench_dagster.core.suspicion import Suspects
from qbench_dagster.core.verdict import ERRORS, WARNINGS, Examined, Verdict, judge

D = 128


def names(count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() for number in range(count)]


def vectors(count: int) -> NDArray[np.float32]:
    drawn = np.random.Generator(np.random.PCG64(1)).standard_normal((count, D))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)


def suspects(rows: NDArray[np.float32]) -> Suspects:
    found = Suspects([], np.empty((0, D), dtype=np.float32))
    found.add(names(len(rows)), rows)
    return found


CONSTANT = np.full((1, D), D**-0.5, dtype=np.float32)


def left(verdict: Verdict) -> dict[str, int]:
    return {kind: count for kind, count in verdict.counts.items() if count}


@pytest.mark.parametrize(
    ("cosine", "kind"), [(None, "constant"), (1.0, None), (0.99, None), (0.985, "constant"), (0.97, "disagrees")]
)
def test_a_fresh_vector_clears_or_convicts(cosine: float | None, kind: str | None) -> None:
    found = suspects(np.vstack([CONSTANT, vectors(3)]))
    fresh = {} if cosine is None else {names(1)[0]: cosine}
    verdict = judge(found, fresh, names(4))
    assert left(verdict) == ({kind: 1} if kind else {})
    assert [one.hashes for one in verdict.listed[kind]] == [names(1)] if kind else not any(verdict.listed.values())
    assert (verdict.cleared, verdict.unconfirmed) == (cosine is not None and cosine >= 0.99, cosine is None)


def test_a_text_drawn_at_random_that_disagrees_is_an_error() -> None:
    verdict = judge(suspects(vectors(3)), {names(3)[1]: 0.2, names(3)[2]: 1.0, names(3)[0]: -0.1}, names(3))
    assert left(verdict) == {"disagrees": 2}
    assert [one.hashes[0] for one in verdict.listed["disagrees"]] == names(2), "the worst first"
    assert "-0.100" in verdict.listed["disagrees"][0].detail


def test_what_is_wrong_in_itself_is_not_cleared_and_not_told_twice() -> None:
    rows = vectors(3)
    rows[0], rows[1], rows[2] = 0, 3 * rows[1], np.nan
    verdict = judge(suspects(rows), dict(zip(names(3), (0.0, 1.0, 0.0), strict=True)), names(3))
    assert left(verdict) == {"zero": 1, "wrong_norm": 1, "not_finite": 1}
    assert "3" in verdict.listed["wrong_norm"][0].detail


@pytest.mark.parametrize(
    ("fresh", "staged", "expected"),
    [
        ((None, None), (0, 1), {"duplicate": 1}),
        ((1.0, 1.0), (0, 1), {}),
        ((1.0, None), (0, 1), {"duplicate": 1}),
        ((1.0, None), (0,), {}),
        ((None, None), (), {"duplicate": 1}),
        ((1.0, 0.3), (0, 1), {"disagrees": 1}),
        ((0.1, 0.3), (0, 1), {"disagrees": 2}),
        ((None, 0.3), (1,), {"disagrees": 1, "duplicate": 1}),
    ],
)
def test_a_shared_vector_stands_until_its_texts_are_settled(
    fresh: tuple[float | None, ...], staged: tuple[int, ...], expected: dict[str, int]
) -> None:
    rows = vectors(4)
    rows[1] = rows[0]
    hashes = names(4)
    cosines = {hashes[row]: cosine for row, cosine in enumerate(fresh) if cosine is not None}
    verdict = judge(suspects(rows), cosines, {hashes[row] for row in staged})
    assert left(verdict) == expected
    if "duplicate" in expected:
        assert [sorted(one.hashes) for one in verdict.listed["duplicate"]] == [sorted(hashes[:2])]


def test_ten_are_listed_and_all_are_counted() -> None:
    found = suspects(np.vstack([np.repeat(CONSTANT, 30, axis=0), np.zeros((12, D), dtype=np.float32)]))
    verdict = judge(found, {}, ())
    assert left(verdict) == {"constant": 30, "zero": 12}
    assert {kind: len(listed) for kind, listed in verdict.listed.items() if listed} == dict.fromkeys(
        left(verdict), SAMPLES
    )


@pytest.mark.parametrize("kind", [*ERRORS, *WARNINGS])
def test_errors_fail_and_warnings_do_not(kind: str) -> None:
    counts = {**dict.fromkeys([*ERRORS, *WARNINGS], 0), kind: 3}
    examined = Examined(
        "doc", 9, counts, {}, cannot_tell=None, references=0, typical=None, chance=None, cleared=0, unconfirmed=0,
        tokens=0, fresh=None, fresh_failed=None,
    )  # fmt: skip
    assert examined.passed is (kind in WARNINGS)
    assert examined.errors == ({kind: 3} if kind in ERRORS else {})
    assert examined.warnings == ({kind: 3} if kind in WARNINGS else {})
