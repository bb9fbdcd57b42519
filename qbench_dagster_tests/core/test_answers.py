"""An answer is believed only whole: every vector there once, at its place, of the right length, finite, not zero."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.answers import AnswerError, DimensionError, read_answer, take_vectors

NUMBERS = st.floats(-1e6, 1e6, width=32)


def item(index: Any, vector: list[float], *, as_list: bool = False) -> dict[str, Any]:
    packed = base64.b64encode(np.array(vector, dtype="<f4").tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": vector if as_list else packed}


def answer(*items: Any, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": list(items)} | more


@given(
    st.lists(st.lists(NUMBERS, min_size=3, max_size=3).filter(any), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_each_vector_goes_where_its_index_says_and_is_made_a_unit_vector(
    rows: list[list[float]], chance: Any, as_list: bool
) -> None:
    items = [item(index, row, as_list=as_list) for index, row in enumerate(rows)]
    chance.shuffle(items)
    given_rows = np.array(rows, dtype=np.float32).astype(np.float64)
    lengths = np.linalg.norm(given_rows, axis=1, keepdims=True)
    if lengths.min() < 1e-15:
        return  # smaller than any model's: its square may not be a number
    vectors, tokens = read_answer(json.dumps(answer(*items)).encode(), len(rows), 3)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, given_rows / lengths, atol=1e-5)
    assert tokens is None


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7, "total_tokens": 8}, 8),
        ({"prompt_tokens": 7}, 7),
        ({"total_tokens": 0}, None),
        ({"total_tokens": "8"}, None),
        ({"total_tokens": True}, None),
        ({}, None),
        (None, None),
        ([8], None),
    ],
)
def test_billed_tokens_are_those_the_answer_names(usage: Any, tokens: int | None) -> None:
    assert take_vectors(answer(item(0, [1, 0]), usage=usage), 1, 2)[1] == tokens


UNUSABLE: dict[str, Any] = {
    "no JSON": b"<html>Sign in</html>",
    "empty": b"",
    "cut": b'{"data": [',
    "no object": b"[]",
    "null": b"null",
    "an error in a 200": b'{"error": {"message": "overloaded"}}',
    "data is no list": {"data": {"0": 1}},
    "one short": answer(item(0, [1, 0])),
    "one too many": answer(item(0, [1, 0]), item(1, [1, 0]), item(2, [1, 0])),
    "one twice": answer(item(0, [1, 0]), item(0, [0, 1])),
    "from 1": answer(item(1, [1, 0]), item(2, [0, 1])),
    "negative": answer(item(-1, [1, 0]), item(0, [0, 1])),
    "index is text": answer(item("0", [1, 0]), item("1", [0, 1])),
    "index is true": answer(item(0, [1, 0]), item(True, [0, 1])),
    "no index": answer(item(0, [1, 0]), {"embedding": [0, 1]}),
    "no item": answer(item(0, [1, 0]), None),
    "no embedding": answer(item(0, [1, 0]), {"index": 1}),
    "null embedding": answer(item(0, [1, 0]), {"index": 1, "embedding": None}),
    "not base64": answer(item(0, [1, 0]), {"index": 1, "embedding": "AAAA!AAA"}),
    "not only base64": answer(item(0, [1, 0]), {"index": 1, "embedding": "AACA!PwAAAAA="}),
    "half a number": answer(item(0, [1, 0]), {"index": 1, "embedding": "AAAAAAA="}),
    "texts": answer(item(0, [1, 0]), {"index": 1, "embedding": ["x", "y"]}),
    "nested": answer(item(0, [1, 0]), {"index": 1, "embedding": [[1, 0]]}),
    "null in a list": answer(item(0, [1, 0]), {"index": 1, "embedding": [None, 1]}),
    "NaN": answer(item(0, [1, 0]), item(1, [float("nan"), 0])),
    "infinite": answer(item(0, [1, 0]), item(1, [float("-inf"), 0])),
    "zero": answer(item(0, [1, 0]), item(1, [0.0, 0])),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_answer_that_is_not_whole_is_unusable(name: str) -> None:
    given_answer = UNUSABLE[name]
    body = given_answer if isinstance(given_answer, bytes) else json.dumps(given_answer).encode()
    with pytest.raises(AnswerError):
        read_answer(body, 2, 2)


@pytest.mark.parametrize("as_list", [True, False])
def test_another_length_is_a_matter_of_settings(as_list: bool) -> None:
    with pytest.raises(DimensionError) as caught:
        take_vectors(answer(item(0, [1, 0, 0], as_list=as_list)), 1, 2)
    assert caught.value.found == 3


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5) | st.binary())
def test_no_answer_upsets_the_reader(embedding: Any) -> None:
    body = json.dumps(answer({"index": 0, "embedding": embedding}), default=str).encode()
    try:
        vectors, _ = read_answer(body, 1, 2)
    except (AnswerError, DimensionError):
        return
    assert np.linalg.norm(vectors) == pytest.approx(1.0)
