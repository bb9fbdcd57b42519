"""Requests lose nothing, keep the order and the limits; pieces of a long text are the text."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.packing import Sized, average, fewest, in_parts, pack, pieces
from qbench_dagster.core.requests import Limits
from qbench_dagster.core.tokens import estimate

ITEMS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 6)), max_size=60).map(
    lambda sizes: [Sized(index, tokens, inputs) for index, (tokens, inputs) in enumerate(sizes)]
)
LIMITS = st.builds(Limits, inputs=st.integers(1, 20), tokens_per_request=st.integers(1, 200))


def fits(request: list[Sized[int]], limits: Limits) -> bool:
    return (
        sum(item.tokens for item in request) <= limits.tokens_per_request
        and sum(item.inputs for item in request) <= limits.inputs
    )


@given(ITEMS, LIMITS)
def test_nothing_is_lost_and_the_order_kept(items: list[Sized[int]], limits: Limits) -> None:
    requests = list(pack(items, limits))
    assert [item for request in requests for item in request] == items
    assert all(requests)


@given(ITEMS, LIMITS)
def test_limits_are_kept_and_what_is_over_them_comes_alone(items: list[Sized[int]], limits: Limits) -> None:
    assert all(fits(request, limits) or len(request) == 1 for request in pack(items, limits))


@given(ITEMS, LIMITS)
def test_a_request_is_closed_only_when_the_next_item_does_not_fit(items: list[Sized[int]], limits: Limits) -> None:
    requests = list(pack(items, limits))
    assert not any(fits([*request, after[0]], limits) for request, after in pairwise(requests))


@given(ITEMS, LIMITS)
def test_no_packing_has_fewer_than_fewest(items: list[Sized[int]], limits: Limits) -> None:
    requests = list(pack(items, limits))
    assert fewest(items, limits) <= len(requests)
    assert len(requests) <= 4 * fewest(items, limits) + 1  # the worst two limits can do
    one_limit = Limits(inputs=10**6, tokens_per_request=limits.tokens_per_request)
    assert len(list(pack(items, one_limit))) <= 2 * fewest(items, one_limit) + 1


@given(st.integers(0, 6_000), st.integers(0, 2**32))
def test_usual_steps_are_packed_as_tightly_as_can_be(count: int, seed: int) -> None:
    sizes = random.Random(seed)
    items = [Sized(index, sizes.randint(20, 60)) for index in range(count)]
    assert len(list(pack(items, Limits()))) == fewest(items, Limits()) == -(-count // 2048)


def test_fewest_counts_what_is_over_the_limits_once() -> None:
    limits = Limits(inputs=4, tokens_per_request=100)
    assert fewest([], limits) == 0
    assert fewest([Sized("giant", 1_000)], limits) == 1
    assert fewest([Sized("pieces", 40, 9), Sized("a", 60), Sized("b", 41)], limits) == 3
    assert fewest([Sized("a", 1, 2), Sized("b", 1, 3)], limits) == 2


def test_limits_are_reached_exactly() -> None:
    limits = Limits(inputs=3, tokens_per_request=10)
    by_tokens = [Sized("a", 4), Sized("b", 6), Sized("c", 1)]
    assert [[item.value for item in request] for request in pack(by_tokens, limits)] == [["a", "b"], ["c"]]
    by_inputs = [Sized("a", 1, 2), Sized("b", 1, 1), Sized("c", 1)]
    assert [[item.value for item in request] for request in pack(by_inputs, limits)] == [["a", "b"], ["c"]]


def test_items_are_read_no_further_than_the_one_that_did_not_fit() -> None:
    read: list[int] = []

    def items() -> Iterator[Sized[int]]:
        for index in range(10):
            read.append(index)
            yield Sized(index, 5)

    requests = pack(items(), Limits(tokens_per_request=10))
    assert not read
    assert [item.value for item in next(requests)] == [0, 1]
    assert read == [0, 1, 2]


def test_limits_learnt_while_sending_hold_from_the_next_request_on() -> None:
    limits = [Limits(tokens_per_request=40)]
    sizes = []
    for request in pack((Sized(index, 10) for index in range(12)), lambda: limits[0]):
        sizes.append(len(request))
        limits[0] = Limits(tokens_per_request=20)
    assert sizes == [4, 2, 2, 2, 2]


def test_what_waits_under_wider_limits_is_divided() -> None:
    limits = [Limits(tokens_per_request=100)]

    def items() -> Iterator[Sized[int]]:
        for index in range(7):
            if index == 5:  # another thread's request was refused
                limits[0] = Limits(tokens_per_request=20)
            yield Sized(index, 10)

    found = [[item.value for item in request] for request in pack(items(), lambda: limits[0])]
    assert found == [[0, 1], [2, 3], [4, 5], [6]]


@given(ITEMS, st.lists(LIMITS, min_size=1, max_size=5))
def test_limits_that_change_all_the_time_lose_nothing(items: list[Sized[int]], changing: list[Limits]) -> None:
    turns = cycle(changing)
    requests = list(pack(items, lambda: next(turns)))
    assert [item for request in requests for item in request] == items
    assert all(any(fits(request, limits) for limits in changing) or len(request) == 1 for request in requests)


def words(text: str) -> int:
    return len(text.split())


def octets(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


class Counted:
    """A counting function that notes how much it was given."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self.count = count
        self.characters = 0

    def __call__(self, text: str) -> int:
        self.characters += len(text)
        return self.count(text)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=120)
LONG_TEXT = st.lists(
    st.sampled_from(
        ["Open the page. ", "Log in", "\n", " ", "保存する。", "é", "e\u0301\u0302", "👩\u200d💻", "a" * 30]
    ),
    max_size=80,
).map("".join)
COUNTS = pytest.mark.parametrize("count", [words, octets, estimate, len])


@COUNTS
@given(text=ANY_TEXT | LONG_TEXT, limit=st.integers(4, 60))
def test_pieces_are_the_text_and_within_the_limit(count: Callable[[str], int], text: str, limit: int) -> None:
    found = pieces(text, limit, count)
    assert "".join(found) == text
    assert all(count(piece) <= limit for piece in found)
    assert all(found) or found == [""]


@given(LONG_TEXT, st.integers(1, 3))
def test_a_character_over_the_limit_is_a_piece(text: str, limit: int) -> None:
    found = pieces(text, limit, octets)
    assert "".join(found) == text
    assert all(octets(piece) <= limit or len(piece) == 1 for piece in found)


@COUNTS
def test_a_text_within_the_limit_stays_whole(count: Callable[[str], int]) -> None:
    text = "Open the page.\nLog in"
    assert pieces(text, count(text), count) == [text]
    assert len(pieces(text, count(text) - 1, count)) == 2


@given(LONG_TEXT, st.integers(40, 200))
def test_pieces_are_few(text: str, limit: int) -> None:
    assert len(pieces(text, limit, len)) <= 1.5 * -(-len(text) // limit) + 1


def test_pieces_are_of_about_equal_size() -> None:
    sizes = [len(piece.split()) for piece in pieces("word " * 8_200, 8_192, words)]
    assert len(sizes) == 2
    assert min(sizes) > 3_000


@pytest.mark.parametrize(
    ("unit", "ends"),
    [
        ("Open the page. Log in as the administrator.\n", "\n"),
        ("Open the page. Log in as the administrator. ", ". "),
        ("ページを開く。管理者としてログインする。", "。"),
        ("open the page and log in as the administrator ", " "),
    ],
)
def test_a_cut_is_made_where_a_reader_would_cut(unit: str, ends: str) -> None:
    found = pieces(unit * 100, 400, len)
    assert len(found) >= 5
    assert all(piece.endswith(ends) for piece in found)


@pytest.mark.parametrize("letter", ["e\u0301\u0302", "क\u0941", "👩\u200d💻", "👍🏽", "❤\ufe0f"])
@pytest.mark.parametrize("limit", [31, 32, 33, 34])
def test_a_letter_keeps_its_accents(letter: str, limit: int) -> None:
    found = pieces(letter * 100, limit, len)
    assert all(piece.count(letter) * len(letter) == len(piece) for piece in found)


def test_a_letter_with_a_thousand_accents_is_cut_all_the_same() -> None:
    text = "e" + "\u0301" * 1_000
    found = pieces(text, 100, len)
    assert "".join(found) == text
    assert max(map(len, found)) <= 100


@pytest.mark.parametrize(
    "text",
    [
        "Open the page. Log in as the administrator.\n" * 22_000,
        "a" * 1_000_000,
        "\n" * 1_000_000,
        "word " * 100_000 + "測試" * 100_000 + " " * 200_000,
        "é" * 10_000 + "a" * 990_000,
    ],
    ids=["lines", "letters", "line ends", "changing", "dense first"],
)
def test_a_long_text_is_not_counted_over_and_over(text: str) -> None:
    count = Counted(octets)
    found = pieces(text, 8_192, count)
    assert "".join(found) == text
    assert max(map(octets, found)) <= 8_192
    assert len(found) <= 1.3 * octets(text) / 8_192 + 1
    assert count.characters <= 8 * len(text)


def unit(vector: list[float]) -> list[float]:
    return [float(value) for value in np.array(vector) / np.linalg.norm(vector)]


VECTORS = st.lists(
    st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda v: np.linalg.norm(v) > 0.01).map(unit),
    min_size=1,
    max_size=6,
)


@given(VECTORS, st.data())
def test_an_average_is_a_unit_vector_on_the_side_of_its_parts(vectors: list[list[float]], data: st.DataObject) -> None:
    size = len(vectors)
    weights = data.draw(st.lists(st.integers(1, 8_192), min_size=size, max_size=size))
    found = average(np.array(vectors, dtype=np.float32), weights)
    assert found.shape == (4,)
    assert found.dtype == np.float32
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    assert found @ np.average(vectors, axis=0, weights=weights) >= -1e-3


@given(VECTORS.filter(lambda vectors: len(vectors) == 1), st.integers(1, 8_192))
def test_the_average_of_one_is_that_one(vectors: list[list[float]], weight: int) -> None:
    assert average(vectors, [weight]) == pytest.approx(np.array(vectors[0]), abs=1e-6)


def test_weights_are_tokens() -> None:
    assert average([[1, 0], [0, 1]], [3, 4]) == pytest.approx(np.array([0.6, 0.8]))


@given(VECTORS.filter(lambda vectors: len(vectors) == 1), st.integers(1, 8_192))
def test_parts_that_cancel_leave_the_first(vectors: list[list[float]], weight: int) -> None:
    first = np.array(vectors[0], dtype=np.float32)
    assert average([first, -first], [weight, weight]) == pytest.approx(first, abs=1e-6)


def test_what_is_left_at_the_end_is_divided_by_the_limits_of_then() -> None:
    limits = [Limits(tokens_per_request=100)]

    def items() -> Iterator[Sized[int]]:
        yield from (Sized(index, 10) for index in range(6))
        limits[0] = Limits(tokens_per_request=20)

    assert [len(request) for request in pack(items(), lambda: limits[0])] == [2, 2, 2]


def test_inputs_of_an_item_that_waits_are_counted() -> None:
    limits = Limits(inputs=4)
    items = [Sized("a", 1, 2), Sized("b", 1, 3), Sized("c", 1, 2)]
    assert [[item.value for item in request] for request in pack(items, limits)] == [["a"], ["b"], ["c"]]


def test_line_ends_are_better_than_sentence_ends() -> None:
    found = pieces("One step. Another step.\nNext line: go. on. and on. " * 60, 400, len)
    assert all(piece.endswith("\n") for piece in found[:-1])


def sizes_of(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


@given(st.lists(st.text(max_size=60), max_size=8), st.text(max_size=5), st.integers(8, 40))
def test_a_text_over_the_limit_goes_in_parts_that_each_have_the_prefix(
    texts: list[str], prefix: str, limit: int
) -> None:
    divided = in_parts(texts, prefix, limit, sizes_of)
    assert len(divided) == len(texts)
    for text, (parts, sizes) in zip(texts, divided, strict=True):
        assert "".join(part[len(prefix) :] for part in parts) == text
        assert all(part.startswith(prefix) for part in parts)
        assert sizes == sizes_of(parts)
        assert max(sizes) <= limit
        assert len(parts) == 1 or len(prefix + text) > limit
