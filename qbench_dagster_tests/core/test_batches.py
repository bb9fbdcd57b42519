"""Batch files: what is written keeps the limits and comes back whole, and no result is taken for another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.answers import AnswerError
from qbench_dagster.core.batches import (
    BatchLimits,
    Filling,
    custom_id,
    line_number,
    lines_of,
    pause_s,
    queue_ceiling,
    read_batch,
    read_result,
    request_line,
    split_lines,
)
from qbench_dagster.core.requests import Limits

BATCH = UUID("7d3c1a52-6f0f-4f0a-9a57-0b8b3c1d2e4f")
OTHER = UUID("7d3c1a52-6f0f-4f0a-9a57-0b8b3c1d2e40")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@dataclass(frozen=True)
class Text:
    """A text to send."""

    name: int
    sizes: tuple[int, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(f"{self.name}.{number}" for number in range(len(self.sizes)))


@given(st.lists(TEXT, min_size=1), st.sampled_from([None, 64]), st.integers(0, 49_999))
def test_a_line_says_what_to_embed_on_one_line(texts: list[str], dimensions: int | None, number: int) -> None:
    written = request_line(custom_id(BATCH, number), "a-model", texts, dimensions)
    assert written.endswith(b"\n")
    assert len(written.decode().splitlines()) == 1, "whoever ends lines at U+2028 sees one, too"
    assert len(list(split_lines([written]))) == 1
    read = json.loads(written)
    assert (read["method"], read["url"], read["body"]["model"]) == ("POST", "/v1/embeddings", "a-model")
    assert read["body"]["input"] == [text if text.strip() else " " for text in texts]
    assert read["body"].get("dimensions") == dimensions
    assert read["body"]["encoding_format"] == "base64"
    assert line_number(read["custom_id"], BATCH) == number


@pytest.mark.parametrize(
    "name", ["", "7", f"{OTHER}-7", f"{BATCH}", f"{BATCH}-", f"{BATCH}-x", f"{BATCH}--7", f"{BATCH}-٣"]
)
def test_a_name_of_no_line_of_the_batch_is_none(name: str) -> None:
    assert line_number(name, BATCH) is None


SIZES = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=9), max_size=40)


@given(SIZES, st.integers(1, 8), st.integers(12, 40))
def test_lines_hold_every_part_once_within_the_limits(sizes: list[list[int]], inputs: int, tokens: int) -> None:
    texts = [Text(name, tuple(parts)) for name, parts in enumerate(sizes)]
    limits = Limits(inputs=100, tokens_per_input=12, tokens_per_request=tokens)
    lines = list(lines_of(texts, limits, BatchLimits(line_inputs=inputs)))
    assert [(text.name, part) for line in lines for text, part in line] == [
        (text.name, part) for text in texts for part in range(len(text.sizes))
    ]
    for line in lines:
        assert len(line) <= inputs
        assert sum(text.sizes[part] for text, part in line) <= tokens
        names = {text.name for text, _ in line}
        for text in {text for text, _ in line}:
            fits = len(text.sizes) <= inputs and sum(text.sizes) <= tokens
            assert len([part for other, part in line if other is text]) == len(text.sizes) or not fits
            assert fits or names == {text.name}, "a text that takes several lines has them for itself"


def test_a_line_is_never_larger_than_a_request() -> None:
    texts = [Text(n, (1,)) for n in range(10)]
    lines = list(lines_of(texts, Limits(inputs=3), BatchLimits(line_inputs=256)))
    assert [len(line) for line in lines] == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("limits", "most_tokens", "expected"),
    [
        (BatchLimits(), 1e9, 100),
        (BatchLimits(lines=7), 1e9, 7),
        (BatchLimits(inputs=21), 1e9, 10),
        (BatchLimits(file_bytes=999), 1e9, 9),
        (BatchLimits(), 55, 5),
    ],
)
def test_a_batch_is_full_at_its_first_limit(limits: BatchLimits, most_tokens: float, expected: int) -> None:
    filling = Filling()
    while filling.lines < 100 and filling.takes(2, 100, 10, limits, most_tokens):
        filling.add(2, 100, 10)
    assert filling.lines == expected


def test_the_limits_are_those_of_the_service() -> None:
    limits = BatchLimits()
    assert (limits.inputs, limits.lines) == (50_000, 50_000)
    assert limits.file_bytes < 200_000_000
    assert limits.line_inputs * 3072 * 4 * 4 / 3 < 5_000_000


@given(st.lists(st.binary().map(lambda raw: raw.replace(b"\n", b"")), max_size=8), st.data())
def test_lines_come_whole_however_the_stream_is_cut(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"\n".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert list(split_lines(chunks)) == [line.strip() for line in lines if line.strip()]


def result(response: Any = None, error: Any = None, name: Any = "a") -> bytes:
    return json.dumps({"id": "x", "custom_id": name, "response": response, "error": error}).encode()


def status(code: Any, error: Any = None) -> bytes:
    return result({"status_code": code, "body": {"error": error}})


@pytest.mark.parametrize(
    ("line", "outcome", "told"),
    [
        (result({"status_code": 200, "body": {"data": []}}), "answered", ""),
        (status(429, {"code": "rate_limit_exceeded", "message": "slow\ndown"}), "again", "slow down"),
        (status(500), "again", "no reason given"),
        (status(503, "not a dictionary"), "again", "status 503"),
        (status(429, {"code": "insufficient_quota", "message": "no money"}), "refused", "no money"),
        (status(400, {"code": None, "type": "invalid_request_error", "message": "bad"}), "refused", "bad"),
        (status(None), "refused", "status None"),
        (status("500"), "refused", "status 500"),
        (result(error={"code": "batch_expired", "message": "late"}), "again", "batch_expired: late"),
        (result(error={"code": "batch_cancelled"}), "again", "batch_cancelled"),
        (result(error={"code": "something_new", "message": "odd"}), "refused", "something_new: odd"),
        (result(), "refused", "no reason given"),
        (result("text"), "refused", "no reason given"),
    ],
)
def test_what_becomes_of_a_line(line: bytes, outcome: str, told: str) -> None:
    read = read_result(line)
    assert (read.name, read.outcome) == ("a", outcome)
    assert told in read.told
    assert (read.body is not None) == (outcome == "answered")


@pytest.mark.parametrize(
    "line", [b"<html>", b"\xff\xfe", b"[]", b"{}", result(name=7), b"[" * 100_000, b'{"custom_id": null}']
)
def test_a_line_of_nothing_is_said_to_be(line: bytes) -> None:
    with pytest.raises(AnswerError, match="a line"):
        read_result(line)


NAMES = ("custom_id", "response", "error", "status_code", "body", "code", "id", "status", "errors", "data", "metadata")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES), inner),
)


@given(ANYTHING)
def test_no_answer_breaks_the_reading(value: Any) -> None:
    for read in (lambda: read_result(json.dumps(value).encode()), lambda: read_batch(value)):
        try:
            read()
        except AnswerError:
            continue


def test_a_batch_object_is_read() -> None:
    given = {
        "id": "batch_1", "status": "failed", "created_at": 12, "output_file_id": None, "error_file_id": "file-2",
        "metadata": {"qbench_batch": str(BATCH)}, "request_counts": {"total": 3, "completed": 1, "failed": 2},
        "errors": {"object": "list", "data": [{"code": "invalid_json_line", "message": "bad", "line": 4}]},
    }  # fmt: skip
    read = read_batch(given)
    assert (read.id, read.status, read.mark, read.ended) == ("batch_1", "failed", str(BATCH), True)
    assert (read.output_file, read.error_file, read.done, read.failed, read.total) == (None, "file-2", 1, 2, 3)
    assert read.errors == (("invalid_json_line", "line 4: invalid_json_line: bad"),)
    bare = read_batch({"id": "b", "status": "in_progress", "metadata": None, "errors": None, "request_counts": None})
    assert (bare.mark, bare.ended, bare.errors, bare.total) == (None, False, (), 0)


FULL = (
    "Enqueued token limit reached for text-embedding-3-large in organization org-1. Limit: 3,000,000 enqueued tokens."
)


@pytest.mark.parametrize(
    ("errors", "tokens", "queued", "expected"),
    [
        ([("token_limit_exceeded", FULL)], 2_000_000, 4_000_000, 3_000_000),
        ([("token_limit_exceeded", FULL)], 2_000_000, 2_000_000, 1_000_000),  # others fill the queue, or we count low
        ([("token_limit_exceeded", "Too many.")], 2_000_000, 2_000_000, 1_000_000),
        ([("token_limit_exceeded", "Too many.")], 1, 1, 1),
        ([("invalid_json_line", FULL)], 2_000_000, 4_000_000, None),
        ([], 2_000_000, 4_000_000, None),
    ],
)
def test_how_much_is_queued_after_a_refusal(
    errors: list[tuple[str, str]], tokens: int, queued: int, expected: int | None
) -> None:
    assert queue_ceiling(errors, tokens, queued) == expected


def test_the_pause_doubles_up_to_six_hours() -> None:
    assert [pause_s(runs) / 60 for runs in range(9)] == [0, 5, 10, 20, 40, 80, 160, 320, 360]
    assert pause_s(10_000) == 6 * 3600
