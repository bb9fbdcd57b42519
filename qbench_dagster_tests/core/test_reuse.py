"""Payloads of old stores: what they say, in every spelling, and that nothing is taken on trust."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qbench_dagster.core.ranges import LARGEST_ID
from qbench_dagster.core.reuse import (
    SAME_TEXT_COSINE,
    VALUE_TOLERANCE,
    Claim,
    Refusal,
    Wanted,
    errors_and_cosines,
    read_claim,
    refused_by_model,
    refused_by_text,
    refused_by_vector,
    unit,
)
from qbench_dagster.core.texts import doc_text, step_text, text_hash

WANTED = Wanted("text-embedding-3-large", 4, None, False)
VECTOR = np.asarray([0.1, 0.2, 0.3, 0.4], np.float32)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
NAMES = [
    "testCaseId", "uid", "parent_uid", "doc_id", "title", "description", "action", "expected", "text", "metadata",
    "content", "model", "step_index", "case_id",
]  # fmt: skip


def case_of(payload: Mapping[str, Any], kind: str = "step") -> tuple[int | None, bool]:
    claim = read_claim(kind, payload)
    return claim.case_id, claim.named


@pytest.mark.parametrize(
    "payload",
    [
        {"testCaseId": 729},
        {"test_case_id": "729"},
        {"case_id": 729.0},
        {"caseId": " 729 "},
        {"parent_testCaseId": "C729"},
        {"uid": "testrail_729"},
        {"parent_uid": "testrail_729"},
        {"uid": "testrail_729_step_3"},
        {"uid": "testrail_729_step_3", "parent_uid": "testrail_729"},
        {"uid": "9b2ff4de-1111-4c71-a2f2-729729729729", "parent_uid": "testrail_729"},
        {"uid": None, "testCaseId": 729},
        {"testCaseId": 729, "doc_id": 17},
        {"doc_id": "testrail_729"},
        {"metadata": {"testCaseId": 729}},
        {"page_content": "…", "metadata": {"doc_id": 729, "testCaseId": None}},
    ],
)
def test_the_usual_spellings_of_a_case(payload: dict[str, Any]) -> None:
    assert case_of(payload) == (729, True)


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({}, False),
        ({"title": "729"}, False),
        ({"metadata": "729"}, False),
        ({"uid": ""}, False),
        ({"testCaseId": 729, "parent_uid": "testrail_730"}, False),
        ({"uid": "9b2ff4de-1111-4c71-a2f2-729729729729"}, True),
        ({"uid": "12345678-1111-4c71-a2f2-729729729729"}, True),
        ({"testCaseId": True}, True),
        ({"testCaseId": 0}, True),
        ({"testCaseId": -729}, True),
        ({"testCaseId": 729.5}, True),
        ({"testCaseId": math.inf}, True),
        ({"testCaseId": LARGEST_ID + 1}, True),
        ({"testCaseId": 10**40}, True),
        ({"testCaseId": "9" * 400}, True),
        ({"testCaseId": [729]}, True),
    ],
)
def test_what_names_no_case(payload: dict[str, Any], named: bool) -> None:
    assert case_of(payload) == (None, named)
    refusal = refused_by_text(read_claim("step", payload), case_known=False, has_text=False)
    assert refusal is (Refusal.UNKNOWN_CASE if named else Refusal.UNMATCHED_PAYLOAD)


@given(st.text(), st.none() | st.text())
def test_the_text_of_a_case_is_rebuilt_as_it_was_embedded(title: str, description: str | None) -> None:
    for payload in (
        {"title": title, "description": description},
        {"metadata": {"title": title, "description": description}},
    ):
        assert read_claim("doc", payload).text_hash == text_hash(doc_text(title, description))


@given(st.text(), st.lists(st.text(), max_size=4))
def test_the_text_of_a_step_is_rebuilt_as_it_was_embedded(action: str, expected: list[str]) -> None:
    assert read_claim("step", {"action": action, "expected": expected}).text_hash == text_hash(
        step_text(action, expected)
    )
    joined = "\n".join(expected)
    assert read_claim("step", {"action": action, "expected": joined}).text_hash == text_hash(
        step_text(action, [joined])
    )


@pytest.mark.parametrize("field", ["text", "page_content", "document", "content"])
def test_a_ready_text_goes_before_its_parts(field: str) -> None:
    parts = {"title": "Log in", "description": None}
    assert read_claim("doc", {field: "Log in\nwith SSO", **parts}).text_hash == text_hash("Log in\nwith SSO")
    assert read_claim("doc", {field: "", **parts}).text_hash == text_hash("Log in\n")
    assert read_claim("doc", {field: 7, **parts}).text_hash == text_hash("Log in\n")


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("doc", {}),
        ("doc", {"title": "Log in"}),  # a description that is not there is not an empty one
        ("doc", {"title": "Log in", "description": 7}),
        ("doc", {"description": "…"}),
        ("doc", {"action": "Log in", "expected": []}),
        ("step", {"action": "Log in"}),
        ("step", {"action": "Log in", "expected": [7]}),
        ("step", {"action": ["Log in"], "expected": ["ok"]}),
        ("step", {"title": "Log in", "description": None}),
    ],
)
def test_what_does_not_tell_its_text(kind: str, payload: dict[str, Any]) -> None:
    claim = read_claim(kind, {"testCaseId": 1, **payload})
    assert claim.text_hash is None
    assert refused_by_text(claim, case_known=True, has_text=False) is Refusal.NO_TEXT


def test_nan_is_what_pandas_writes_for_nothing() -> None:
    assert read_claim("doc", {"title": "a", "description": math.nan}).text_hash == text_hash("a\n")


def test_half_a_surrogate_pair_is_a_text_no_case_has() -> None:
    claim = read_claim("doc", {"testCaseId": 1, "text": "a\ud800"})
    assert refused_by_text(claim, case_known=True, has_text=False) is Refusal.STALE_TEXT


@given(st.dictionaries(st.sampled_from(NAMES), anything, max_size=8), st.sampled_from(["doc", "step"]))
def test_any_payload_is_read(payload: dict[str, Any], kind: str) -> None:
    claim = read_claim(kind, payload)
    assert claim.kind == kind
    assert claim.case_id is None or 0 < claim.case_id <= LARGEST_ID
    assert claim.text_hash is None or len(claim.text_hash) == 32
    assert claim.model is None or claim.model.strip()


@given(st.dictionaries(st.sampled_from([n for n in NAMES if n != "metadata"]), anything, max_size=8))
def test_nested_metadata_says_the_same(payload: dict[str, Any]) -> None:
    for kind in ("doc", "step"):
        assert read_claim(kind, {"metadata": payload}) == read_claim(kind, payload)


def test_the_step_index_is_noted() -> None:
    assert read_claim("step", {"step_index": "0"}).step_index == 0
    assert read_claim("step", {"stepIndex": 3.0}).step_index == 3
    assert read_claim("step", {"step_index": "third"}).step_index is None


def claim(**changes: Any) -> Claim:
    values = {"kind": "doc", "case_id": 1, "named": True, "step_index": None, "text_hash": bytes(32), "model": None}
    return Claim(**{**values, **changes})


def test_a_text_is_judged_by_case_and_words() -> None:
    assert refused_by_text(claim(), case_known=True, has_text=True) is None
    assert refused_by_text(claim(), case_known=True, has_text=False) is Refusal.STALE_TEXT
    assert refused_by_text(claim(), case_known=False, has_text=True) is Refusal.UNKNOWN_CASE
    assert refused_by_text(claim(case_id=None), case_known=True, has_text=True) is Refusal.UNKNOWN_CASE
    assert refused_by_text(claim(text_hash=None), case_known=True, has_text=True) is Refusal.NO_TEXT


@pytest.mark.parametrize(
    ("said", "declared", "refusal"),
    [
        (None, None, Refusal.UNKNOWN_MODEL),
        (None, "text-embedding-3-large", None),
        (None, "text-embedding-3-small", Refusal.OTHER_MODEL),
        ("text-embedding-3-large", None, None),
        (" Text-Embedding-3-Large", None, None),
        ("text-embedding-ada-002", "text-embedding-3-large", Refusal.OTHER_MODEL),
        ("text-embedding-3-large", "text-embedding-ada-002", None),
    ],
)
def test_vectors_of_two_models_never_meet(said: str | None, declared: str | None, refusal: Refusal | None) -> None:
    wanted = Wanted("text-embedding-3-large", 4, declared, False)
    assert refused_by_model(claim(model=said), wanted) is refusal


@pytest.mark.parametrize("name", ["model", "embedding_model", "embeddingModel", "model_name"])
def test_where_a_payload_names_its_model(name: str) -> None:
    assert read_claim("doc", {name: " ada "}).model == "ada"
    assert read_claim("doc", {"metadata": {name: "ada"}}).model == "ada"
    assert read_claim("doc", {name: " "}).model is None
    assert read_claim("doc", {name: {"name": "ada"}}).model is None


@pytest.mark.parametrize(
    ("vector", "refusal"),
    [
        (VECTOR, None),
        (None, Refusal.NO_VECTOR),
        (VECTOR[:3], Refusal.WRONG_DIMENSION),
        (np.zeros(4, np.float32), Refusal.ZERO),
        (np.asarray([1, np.nan, 0, 0], np.float32), Refusal.ZERO),
        (np.asarray([1, np.inf, 0, 0], np.float32), Refusal.ZERO),
        (np.full(4, 0.5, np.float32), Refusal.CONSTANT),
        (VECTOR * np.float32(1e-38), None),
        (VECTOR * np.float32(1e30), None),
    ],
)
def test_a_vector_is_judged_by_itself(vector: NDArray[np.float32] | None, refusal: Refusal | None) -> None:
    assert refused_by_vector(vector, False, WANTED) is refusal


def test_a_lossy_vector_is_taken_only_where_that_is_wanted() -> None:
    assert refused_by_vector(VECTOR, True, WANTED) is Refusal.QUANTIZED
    assert refused_by_vector(VECTOR, True, Wanted("m", 4, None, True)) is None


@pytest.mark.parametrize("length", [1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_any_length_becomes_one(length: float) -> None:
    vectors = np.asarray([[0.6, 0.8], [1, 0]], np.float32)
    assert np.abs(unit(vectors * np.float32(length)) - vectors).max() < 1e-6


def test_half_precision_is_within_the_tolerance_and_one_per_cent_of_noise_is_not() -> None:
    random = np.random.Generator(np.random.PCG64(7))
    for dimensions in (64, 3072):
        vectors = unit(random.standard_normal((200, dimensions)).astype(np.float32))
        halves = vectors.astype(np.float16).astype(np.float32)
        errors, cosines = errors_and_cosines(halves, vectors)
        assert errors.max() < VALUE_TOLERANCE / 2
        assert np.abs(cosines - 1).max() < 1e-6
        noisy = unit(vectors + random.standard_normal(vectors.shape).astype(np.float32) * 0.01 / math.sqrt(dimensions))
        errors, cosines = errors_and_cosines(noisy, vectors)
        assert errors.min() > VALUE_TOLERANCE
        assert cosines.min() > SAME_TEXT_COSINE, "another answer of the same model, not another model"
    assert errors_and_cosines(np.zeros((1, 2), np.float32), np.asarray([[1, 0]], np.float32))[1] == [0.0]


def test_every_refusal_says_what_to_do() -> None:
    remedies = [refusal.remedy for refusal in Refusal]
    assert all(remedy.endswith(".") for remedy in remedies)
    assert len(set(remedies)) == len(remedies)
    assert "QBENCH_REUSE_MODEL" in Refusal.UNKNOWN_MODEL.remedy
    assert "QBENCH_REUSE_QUANTIZED" in Refusal.QUANTIZED.remedy
    assert json.dumps({Refusal.ZERO: 1}) == '{"zero": 1}'
