"""What an embedding service answered, checked to the last number before anything is believed.

Takes the body that OpenAI's API defines, in its base64 or its list form. Nothing is sent or stored from here.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class AnswerError(ValueError):
    """The answer cannot be used; asked again, the service may do better. The text says what is wrong with it."""


class DimensionError(ValueError):
    """A vector has `found` numbers: a setting is wrong, and asking again would bring the same."""

    def __init__(self, found: int) -> None:
        super().__init__(f"vectors of {found} numbers")
        self.found = found


def read_answer(body: bytes, inputs: int, dimensions: int) -> tuple[NDArray[np.float32], int | None]:
    """`take_vectors` of a body as it came over the wire. Raises as it does."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        shown = body[:60].decode("utf-8", "replace")
        raise AnswerError(f"no JSON but {shown!r}" if body else "an empty body") from None
    return take_vectors(answer, inputs, dimensions)


def take_vectors(answer: Any, inputs: int, dimensions: int) -> tuple[NDArray[np.float32], int | None]:
    """Unit vectors (inputs, dimensions) in the order of the inputs, and the tokens billed, if the answer says so.

    Each vector goes where its `index` says: every index from 0 to inputs - 1 must be there once. Raises AnswerError
    for anything missing, doubled, not finite or zero, and DimensionError for a vector of another length.
    """
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise AnswerError("JSON without a list `data`")
    if len(data) != inputs:
        raise AnswerError(f"{len(data)} vectors for {inputs} texts")
    vectors = np.empty((inputs, dimensions), dtype=np.float32)
    for at, item in zip(_places(data), data, strict=True):
        vectors[at] = _numbers(item.get("embedding"), at, dimensions)
    _normalise(vectors)
    usage = answer.get("usage")
    tokens = usage.get("total_tokens", usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    return vectors, tokens if type(tokens) is int and tokens > 0 else None


def _places(data: Sequence[Any]) -> list[int]:
    """The `index` of each item: a permutation, or AnswerError."""
    places: list[int] = []
    for item in data:
        place = item.get("index") if isinstance(item, dict) else None
        if type(place) is not int or not 0 <= place < len(data):
            raise AnswerError(f"index {str(place)[:20]} among {len(data)} vectors")
        places.append(place)
    if len(set(places)) != len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise AnswerError(f"index {twice} twice, so that texts and vectors cannot be told apart")
    return places


def _numbers(embedding: Any, at: int, dimensions: int) -> NDArray[np.float32]:
    """One vector (dimensions,), from base64 of little-endian float32 or from a list of numbers."""
    try:
        if isinstance(embedding, str):
            # 20 us a vector of 3,072: the openai package's own way, a list of floats each, takes ten times that.
            found = np.frombuffer(binascii.a2b_base64(embedding, strict_mode=True), dtype="<f4")
        elif isinstance(embedding, list):
            with np.errstate(over="ignore"):  # infinite is seen below
                found = np.array(embedding, dtype=np.float32)
        else:
            raise AnswerError(f"no vector at index {at}")
    except (ValueError, TypeError, OverflowError):  # binascii.Error and AnswerError are ValueErrors
        raise AnswerError(f"no vector at index {at}") from None
    if found.ndim != 1:
        raise AnswerError(f"no vector at index {at}")
    if len(found) != dimensions:
        raise DimensionError(len(found))
    return found


def _normalise(vectors: NDArray[np.float32]) -> None:
    """Make the rows unit vectors, in place."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        kind = "zero" if norms[bad[0]] == 0 else "not finite"
        raise AnswerError(f"{len(bad)} of {len(vectors)} vectors are unusable, the first at index {bad[0]}: {kind}")
    vectors /= norms[:, None]
