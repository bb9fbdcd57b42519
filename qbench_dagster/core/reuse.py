"""What a point of an old vector store says of itself, and whether its vector is one we would have made.

Pure judgement: payloads in, verdicts out. Where points come from and vectors go to is `adapters/reusing.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.core.ranges import LARGEST_ID
from qbench_dagster.core.texts import doc_text, step_text, text_hash

VALUE_TOLERANCE = 1e-3
"""Length of the difference of two unit vectors that are the same by value. Rounding to half precision, 2^-11 a
coordinate at most, makes 2e-4 to 4e-4 of it."""

SAME_TEXT_COSINE = 0.999
"""Below it two vectors of one text are not of one model. An API's answers to the same text differ by less."""

TEXT_FIELDS = ("text", "page_content", "document", "content")
CASE_FIELDS = (
    "testCaseId", "test_case_id", "testcase_id", "case_id", "caseId", "parent_testCaseId", "parent_test_case_id",
    "parent_case_id", "parentTestCaseId", "parent_uid", "parentUid", "uid",
)  # fmt: skip
WEAK_CASE_FIELDS = ("doc_id", "docId")
"""Asked only where no other field names a case: in many stores it counts rows."""
MODEL_FIELDS = ("embedding_model", "embeddingModel", "embedding_model_name", "model", "model_name")
STEP_FIELDS = ("step_index", "stepIndex", "step_number", "index")
NESTED = "metadata"
"""Where LangChain keeps everything but the text."""

_CASE = re.compile(r"C?(\d{1,15})|testrail_(\d{1,15})(?:\D.*)?", re.IGNORECASE | re.DOTALL)


class Refusal(StrEnum):
    """Why the vector of a point is not taken. Each names what a person can do about it."""

    UNMATCHED_PAYLOAD = "unmatched_payload"
    UNKNOWN_CASE = "unknown_case"
    NO_TEXT = "no_text"
    STALE_TEXT = "stale_text"
    UNKNOWN_MODEL = "unknown_model"
    OTHER_MODEL = "other_model"
    NO_VECTOR = "no_vector"
    WRONG_DIMENSION = "wrong_dimension"
    QUANTIZED = "quantized"
    ZERO = "zero"
    CONSTANT = "constant"
    ALREADY_STORED = "already_stored"
    DUPLICATE = "duplicate"
    CONFLICTING_DUPLICATE = "conflicting_duplicate"

    @property
    def remedy(self) -> str:
        """What the owner of the old store can do, in one sentence. What is refused is embedded anew."""
        return _REMEDIES[self]


_REMEDIES = {
    Refusal.UNMATCHED_PAYLOAD: "The payload names no case, or two: give it testCaseId, uid or parent_uid.",
    Refusal.UNKNOWN_CASE: "The case is not staged: materialise normalized_testdocs, or forget the point if it is gone.",
    Refusal.NO_TEXT: "Nothing says what the vector is of: give the payload text, or title and description, or "
    "action and expected.",
    Refusal.STALE_TEXT: "The case has changed since and has this text no more; there is nothing to do.",
    Refusal.UNKNOWN_MODEL: "Nothing says which model made the vector: set QBENCH_REUSE_MODEL to it.",
    Refusal.OTHER_MODEL: "Vectors of two models must not meet: set QBENCH_MODEL to that model to use them, in a space "
    "of its own.",
    Refusal.NO_VECTOR: "The point has no vector of the name that is read: check QBENCH_QDRANT_VECTOR or the metadata.",
    Refusal.WRONG_DIMENSION: "The vector has not the dimensions of the space: set QBENCH_DIMENSIONS to use it, in a "
    "space of its own.",
    Refusal.QUANTIZED: "The store keeps a lossy copy of the model's vector: set QBENCH_REUSE_QUANTIZED to take it.",
    Refusal.ZERO: "The vector is zero or not finite: the old store is damaged here; there is nothing to do.",
    Refusal.CONSTANT: "All coordinates are equal, as in a placeholder, which no model makes; there is nothing to do.",
    Refusal.ALREADY_STORED: "The space has a vector of this text from elsewhere; there is nothing to do.",
    Refusal.DUPLICATE: "Another point gave this text the same vector; there is nothing to do.",
    Refusal.CONFLICTING_DUPLICATE: "This text has another vector already, and no model makes two so different: find "
    "out which of the two is wrong.",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """What a payload says: whose text the vector is of, which text, and who made it.

    `case_id` is None where the payload names no case we could know; `named` then tells whether it named anything.
    `step_index` is advisory: nobody knows whether it counts from 0 or 1, and our steps are merged of three fields.
    """

    kind: str
    case_id: int | None
    named: bool
    step_index: int | None
    text_hash: bytes | None
    model: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The vectors a space takes. `declared_model` is what made the old store's, where its payloads do not say."""

    model: str
    dimensions: int
    declared_model: str | None
    allow_quantized: bool


def read_claim(kind: str, payload: Mapping[str, Any]) -> Claim:
    """What `payload` says of a vector of `kind` (`doc` or `step`). Takes anything JSON can hold."""
    ids, named = _case_ids(payload, CASE_FIELDS)
    if not ids:
        ids, named_weakly = _case_ids(payload, WEAK_CASE_FIELDS)
        named = named or named_weakly
    text = _text(kind, payload)
    return Claim(
        kind=kind,
        case_id=next(iter(ids)) if len(ids) == 1 else None,
        named=named and len(ids) < 2,
        step_index=next((n for value in _values(payload, STEP_FIELDS) if (n := _whole(value)) is not None), None),
        text_hash=None if text is None else _hash(text),
        model=next((m.strip() for m in _values(payload, MODEL_FIELDS) if isinstance(m, str) and m.strip()), None),
    )


def refused_by_text(claim: Claim, *, case_known: bool, has_text: bool) -> Refusal | None:
    """Why the claim is not of a text we would embed. `has_text`: the case, or a step of it, has the claimed text."""
    if claim.case_id is None and not claim.named:
        return Refusal.UNMATCHED_PAYLOAD
    if claim.case_id is None or not case_known:
        return Refusal.UNKNOWN_CASE
    if claim.text_hash is None:
        return Refusal.NO_TEXT
    return None if has_text else Refusal.STALE_TEXT


def refused_by_model(claim: Claim, wanted: Wanted) -> Refusal | None:
    """Why the vector is not of the space's model. The payload's word goes before what is declared of the store."""
    model = claim.model or wanted.declared_model
    if model is None:
        return Refusal.UNKNOWN_MODEL
    return None if _model(model) == _model(wanted.model) else Refusal.OTHER_MODEL


def refused_by_vector(vector: NDArray[np.float32] | None, quantized: bool, wanted: Wanted) -> Refusal | None:
    """Why the vector, (d,) or None, is not as the space's model would have made it."""
    if vector is None:
        return Refusal.NO_VECTOR
    if vector.shape != (wanted.dimensions,):
        return Refusal.WRONG_DIMENSION
    if quantized and not wanted.allow_quantized:
        return Refusal.QUANTIZED
    if not np.isfinite(vector).all() or not vector.any():
        return Refusal.ZERO
    return Refusal.CONSTANT if (vector == vector[0]).all() else None


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Each row of (n, d), finite and not zero, at length 1. In double: the square of 1e-30 is 0 in single."""
    exact = vectors.astype(np.float64)
    return np.asarray(exact / np.linalg.norm(exact, axis=1, keepdims=True), dtype=np.float32)


def errors_and_cosines(
    ours: NDArray[np.float32], theirs: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row by row of two (n, d): the length of the difference, and the cosine. `theirs` are unit vectors."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.linalg.norm(a - b, axis=1), (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1)


def _values(payload: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Any]:
    """Values under `names`, those of the payload before those of its nested metadata; None is no value."""
    nested = payload.get(NESTED)
    for place in (payload, nested):
        if isinstance(place, Mapping):
            yield from (place[name] for name in names if place.get(name) is not None)


def _case_ids(payload: Mapping[str, Any], names: tuple[str, ...]) -> tuple[set[int], bool]:
    """The cases named, and whether anything was. Of values none of which is a case id, a UUID for instance, none."""
    ids, named = set(), False
    for value in _values(payload, names):
        number = _whole(value)
        if number is None and isinstance(value, str) and (match := _CASE.fullmatch(value.strip())):
            number = int(match[1] or match[2])
        named = named or value != ""
        if number is not None and 0 < number <= LARGEST_ID:
            ids.add(number)
    return ids, named


def _whole(value: object) -> int | None:
    """A whole number, also as pandas and CSV write it; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_ID:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,15}(\.0)?\s*", value):
        return int(float(value))
    return None


def _text(kind: str, payload: Mapping[str, Any]) -> str | None:
    """The text that was embedded: as the payload has it, or rebuilt as the predecessor built it.

    A part that is missing is not an empty one: a payload of a title alone does not tell what was embedded.
    """
    ready = next((text for text in _values(payload, TEXT_FIELDS) if isinstance(text, str) and text), None)
    if ready is not None:
        return ready
    if kind == "doc":
        title, description = _part(payload, "title"), _part(payload, "description")
        return doc_text(title, description) if title is not None and description is not None else None
    action, expected = _part(payload, "action"), _lines(payload, "expected")
    return step_text(action, expected) if action is not None and expected is not None else None


def _found(payload: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """Whether the payload or its nested metadata has `name`, and what it is."""
    nested = payload.get(NESTED)
    for place in (payload, nested):
        if isinstance(place, Mapping) and name in place:
            value = place[name]
            return True, None if isinstance(value, float) and math.isnan(value) else value
    return False, None


def _part(payload: Mapping[str, Any], name: str) -> str | None:
    there, value = _found(payload, name)
    return value if isinstance(value, str) else "" if there and value is None else None


def _lines(payload: Mapping[str, Any], name: str) -> list[str] | None:
    there, value = _found(payload, name)
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        return list(value)
    return [value] if isinstance(value, str) else [] if there and value is None else None


def _hash(text: str) -> bytes:
    try:
        return text_hash(text)
    except UnicodeEncodeError:  # half a surrogate pair, which no staged text has: any hash but a text's will do
        return bytes(32)


def _model(name: str) -> str:
    return name.strip().casefold()
