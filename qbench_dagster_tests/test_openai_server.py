"""The stand-in for OpenAI speaks OpenAI's language: every endpoint and every fault, by the real `openai` client."""

from __future__ import annotations

import base64
import http.client
import json
import multiprocessing
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Batch

from qbench_dagster_tests.openai_server import (
    FAULTS,
    VECTOR_FAULTS,
    BatchOutcome,
    BatchRules,
    Fault,
    OpenAIServer,
    count_words,
    served,
    vector_of,
    vectors_of,
)
from qbench_dagster_tests.openai_server.replies import duration

SIZE = 64
MODEL = "text-embedding-3-large"
SMALL = {MODEL: SIZE, "text-embedding-3-small": 16, "text-embedding-ada-002": 16}
TEXTS = ["Log in", "Log out", "Zaloguj się", "ログイン", "Log in again"]


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(models=SMALL) as running:
        yield running


def client(server: OpenAIServer, **options: Any) -> openai.OpenAI:
    """The real client, which tries once."""
    return openai.OpenAI(**{"base_url": server.base_url, "api_key": server.key, "max_retries": 0, **options})


def embed(server: OpenAIServer, texts: str | list[str] = TEXTS[0], **asked: Any) -> np.ndarray:
    """Vectors in the order of the answer."""
    with client(server, timeout=asked.pop("timeout", 20)) as opened:
        answer = opened.embeddings.create(model=asked.pop("model", MODEL), input=texts, **asked)
    return np.array([item.embedding for item in answer.data], dtype=np.float32)


# Embeddings


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_texts_are_answered_with_their_vectors(server: OpenAIServer, encoding: Any) -> None:
    with client(server) as opened:
        answer = opened.embeddings.create(model=MODEL, input=TEXTS, encoding_format=encoding)
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    assert {item.object for item in answer.data} == {"embedding"}
    assert (answer.object, answer.model) == ("list", MODEL)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(count_words, TEXTS))
    vectors = [item.embedding for item in answer.data]
    if encoding == "base64":  # the client decodes only what it asked for itself
        vectors = [np.frombuffer(base64.b64decode(written), dtype="<f4") for written in vectors]  # type: ignore[arg-type, misc]
    assert np.array_equal(np.array(vectors, dtype=np.float32), vectors_of(TEXTS, SIZE))
    assert server.billed == Counter(TEXTS)
    assert server.ledger.tokens == sum(map(count_words, TEXTS))


def test_a_text_is_billed_as_often_as_it_is_sent(server: OpenAIServer) -> None:
    embed(server, ["a", "a b", " ", "a"])
    assert server.billed == {"a": 2, "a b": 1, " ": 1}
    assert server.ledger.tokens == 5


def test_a_single_text_and_fewer_dimensions_are_taken(server: OpenAIServer) -> None:
    assert np.array_equal(embed(server, "Log in", dimensions=7), [vector_of("Log in", 7)])
    with client(server) as opened:
        raw = opened.embeddings.with_raw_response.create(model=MODEL, input="Log in", encoding_format="base64")
    assert raw.headers["content-type"] == "application/json"
    assert re.fullmatch(r"req_\d+", raw.headers["x-request-id"])


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True), st.sampled_from([1, 3, 16, 64]))
def test_vectors_are_unit_and_of_their_text_alone(texts: list[str], dimensions: int) -> None:
    vectors = vectors_of(texts, dimensions)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.array_equal(vector_of(text, dimensions), vector)
    if dimensions > 3:
        assert len({vector.tobytes() for vector in vectors}) == len(texts)
        assert not np.array_equal(vectors, vectors_of(texts, dimensions, "another model"))


REFUSED = {
    "no text": ({"input": []}, openai.BadRequestError, None, "too short"),
    "an empty text": ({"input": ["a", ""]}, openai.BadRequestError, None, "empty string"),
    "an empty single text": ({"input": ""}, openai.BadRequestError, None, "empty string"),
    "a number": ({"input": [1, 2]}, openai.BadRequestError, None, "'$.input' is invalid"),
    "too many texts": ({"input": ["a"] * 2049}, openai.BadRequestError, "array_above_max_length", "length 2049"),
    "a text too long": (
        {"input": ["a", "a " * 8193]},
        openai.BadRequestError,
        None,
        "maximum context length is 8192 tokens, however you requested 8193 tokens (8193 in your prompt; 0 for the",
    ),
    "too much text": (
        {"input": ["a " * 8000] * 38},
        openai.BadRequestError,
        "max_tokens_per_request",
        "Requested 304000 tokens, max 300000 tokens per request",
    ),
    "another model": ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "`gpt-9` does not exist"),
    "too many dimensions": ({"dimensions": SIZE + 1}, openai.BadRequestError, None, "'dimensions' = 65"),
    "dimensions of an old model": (
        {"model": "text-embedding-ada-002", "dimensions": 8}, openai.BadRequestError, None, "not support",
    ),
    "another encoding": ({"encoding_format": "hex"}, openai.BadRequestError, "invalid_value", "'hex'"),
}  # fmt: skip


@pytest.mark.parametrize("asked", REFUSED.values(), ids=REFUSED)
def test_what_openai_refuses_is_refused(server: OpenAIServer, asked: Any) -> None:
    changed, error, code, words = asked
    with client(server) as opened, pytest.raises(error, match=re.escape(words)) as caught:
        opened.embeddings.create(**{"model": MODEL, "input": TEXTS, **changed})
    assert caught.value.code == code
    assert server.billed == {}
    assert server.ledger.refused.total() == 1


def test_the_limits_themselves_are_allowed(server: OpenAIServer) -> None:
    assert len(embed(server, ["a"] * 2048)) == 2048
    assert len(embed(server, ["a " * 8000] * 37 + ["a " * 4000])) == 38


def test_another_key_is_refused_and_repeated_in_part(server: OpenAIServer) -> None:
    with client(server, api_key="sk-wrong-1234567890") as opened, pytest.raises(openai.AuthenticationError) as caught:
        opened.embeddings.create(model=MODEL, input="a")
    assert caught.value.code == "invalid_api_key"
    assert "sk-wrong********7890" in str(caught.value)


def test_an_unknown_address_and_a_broken_body_are_refused(server: OpenAIServer) -> None:
    with client(server) as opened:
        with pytest.raises(openai.NotFoundError):
            opened.models.list()
        with pytest.raises(openai.BadRequestError, match="parse the JSON"):
            opened.post("/embeddings", cast_to=object, content=b"{", options={"headers": {"Content-Type": "json"}})


# Rate limits


def test_tokens_come_back_as_time_passes() -> None:
    clock = Clock()
    with OpenAIServer(models=SMALL, tokens_per_minute=600, burst_seconds=1, clock=clock) as server:
        with client(server) as opened:
            raw = opened.embeddings.with_raw_response.create(model=MODEL, input="a b c d e f g")
        assert {name: value for name, value in raw.headers.items() if "ratelimit" in name} == {
            "x-ratelimit-limit-tokens": "600",
            "x-ratelimit-remaining-tokens": "3",
            "x-ratelimit-reset-tokens": "700ms",
        }
        with pytest.raises(openai.RateLimitError, match=r"Limit 600, Used 7, Requested 5\. .* 200ms") as caught:
            embed(server, "a b c d e")
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "tokens")
        headers = caught.value.response.headers
        assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "200")
        assert headers["x-ratelimit-remaining-tokens"] == "3"
        clock.now += 0.199
        with pytest.raises(openai.RateLimitError):
            embed(server, "a b c d e")
        clock.now += 0.001
        embed(server, "a b c d e")
        clock.now += 1000
        embed(server, "a b c d e f g h i j")  # all that one second holds, and no more
        with pytest.raises(openai.RateLimitError):
            embed(server, "a")
        with pytest.raises(openai.RateLimitError, match="Request too large") as caught:
            embed(server, "a b c d e f g h i j k")
        assert "retry-after" not in caught.value.response.headers
        assert server.ledger.refused == {"rate_limit_tokens": 3, "request_too_large": 1}


def test_requests_are_limited_too_and_the_headers_can_be_left_out() -> None:
    clock = Clock()
    with OpenAIServer(models=SMALL, requests_per_minute=2, retry_headers=False, clock=clock) as server:
        embed(server)
        embed(server)
        with pytest.raises(openai.RateLimitError, match="requests per min") as caught:
            embed(server)
        assert caught.value.type == "requests"
        headers = caught.value.response.headers
        assert headers["x-ratelimit-reset-requests"] == "1m0s"
        assert not {"retry-after", "retry-after-ms"} & set(headers)
        clock.now += 30
        embed(server)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0s"), (0.02, "20ms"), (1.2, "1.2s"), (60, "1m0s"), (360, "6m0s"), (0.9999, "1s"), (3725.5, "1h2m5.5s")],
)
def test_durations_are_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written


# Faults

STATUS_FAULTS = {
    "429": (openai.RateLimitError, "rate_limit_exceeded"),
    "429-bare": (openai.RateLimitError, "rate_limit_exceeded"),
    "500": (openai.InternalServerError, None),
    "503": (openai.InternalServerError, None),
    "quota": (openai.RateLimitError, "insufficient_quota"),
    "bad-key": (openai.AuthenticationError, "invalid_api_key"),
    "no-model": (openai.NotFoundError, "model_not_found"),
    "html-502": (openai.InternalServerError, None),
}


@pytest.mark.parametrize("kind", STATUS_FAULTS)
def test_a_fault_with_a_status_fails_one_request_and_bills_nothing(server: OpenAIServer, kind: str) -> None:
    error, code = STATUS_FAULTS[kind]
    server.fail_next(kind)
    with pytest.raises(error) as caught:
        embed(server)
    assert type(caught.value) is error
    assert caught.value.code == code
    if kind[0].isdigit():
        assert caught.value.status_code == int(kind[:3])
    assert ("retry-after" in caught.value.response.headers) == (kind == "429")
    assert server.billed == {}
    assert server.ledger.refused == {f"fault:{kind}": 1}
    embed(server)
    assert server.billed == {TEXTS[0]: 1}


def test_a_page_instead_of_json(server: OpenAIServer) -> None:
    server.fail_next("not-json", "html-502")
    with client(server) as opened:
        raw = opened.embeddings.with_raw_response.create(model=MODEL, input="a", encoding_format="float")
        assert (raw.status_code, raw.headers["content-type"]) == (200, "text/html")
        assert raw.text.startswith("<html>")
        with pytest.raises(openai.InternalServerError) as caught:
            opened.embeddings.create(model=MODEL, input="a")
    assert caught.value.status_code == 502
    assert "<html>" in caught.value.response.text
    assert server.billed == {}


def damaged(server: OpenAIServer, kind: str, texts: list[str]) -> tuple[list[int], list[np.ndarray]]:
    """Indices and vectors of an answer with a fault in it."""
    server.fail_next(kind)
    with client(server) as opened:
        answer = opened.embeddings.create(model=MODEL, input=texts)
    assert server.billed == Counter(texts)
    return [item.index for item in answer.data], [np.array(item.embedding, np.float32) for item in answer.data]


def test_vector_faults_damage_what_they_say(server: OpenAIServer) -> None:
    right = vectors_of(TEXTS, SIZE)
    everything = list(range(len(TEXTS)))
    for kind in VECTOR_FAULTS:
        server.ledger.clear()
        indices, vectors = damaged(server, kind, TEXTS)
        match kind:
            case "short":
                assert indices == everything[:-1]
            case "reordered":
                assert indices != everything
                assert sorted(indices) == everything
                assert all(np.array_equal(vector, right[index]) for index, vector in zip(indices, vectors, strict=True))
            case "swapped-index":
                assert indices == [*everything[:-1], 0]
            case "nan":
                assert [bool(np.isnan(vector).any()) for vector in vectors].count(True) == 1
            case "zero":
                assert [bool(vector.any()) for vector in vectors].count(False) == 1
            case "wrong-dimension":
                assert {len(vector) for vector in vectors} == {SIZE - 1}
            case _:
                pytest.fail(f"no test of {kind}")
    assert np.array_equal(embed(server, TEXTS), right)


def test_few_texts_are_reordered_too_and_one_gets_a_false_index(server: OpenAIServer) -> None:
    for count in range(2, 10):
        server.ledger.clear()
        assert damaged(server, "reordered", [str(number) for number in range(count)])[0] != list(range(count))
    server.ledger.clear()
    assert damaged(server, "swapped-index", TEXTS[:1])[0] == [1]


@pytest.mark.parametrize(("kind", "billed"), [("reset", 0), ("reset-mid-body", 1)])
def test_a_broken_connection_is_an_error_of_the_client(server: OpenAIServer, kind: str, billed: int) -> None:
    texts = [f"{text} {number}" for text in TEXTS for number in range(100)]
    server.fail_next(kind)
    with pytest.raises(openai.APIConnectionError) as caught:
        embed(server, texts)
    assert not isinstance(caught.value, openai.APITimeoutError)
    assert server.billed.total() == billed * len(texts)
    assert server.ledger.seen[-1].outcome == f"fault:{kind}"


def read_until_reset(server: OpenAIServer) -> bytes:
    """What comes on the connection of an embeddings request until it is reset; an orderly end fails the test."""
    body = json.dumps({"model": MODEL, "input": TEXTS}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nAuthorization: Bearer {server.key}\r\nContent-Type: application/json\r\n"
    address = urlsplit(server.base_url)
    came = b""
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        try:
            while chunk := connection.recv(1 << 16):
                came += chunk
        except ConnectionResetError:
            return came
    pytest.fail(f"the connection was closed in order after {len(came)} bytes")


def test_connections_are_reset_before_an_answer_and_half_way(server: OpenAIServer) -> None:
    server.fail_next("reset", "reset-mid-body")
    assert read_until_reset(server) == b""
    head, _, body = read_until_reset(server).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    promised = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
    assert len(body) == promised // 2


def test_a_hanging_request_is_billed_and_ends_with_the_server(server: OpenAIServer) -> None:
    server.fail_next("hang")
    with pytest.raises(openai.APITimeoutError):
        embed(server, timeout=0.1)
    assert server.billed == {TEXTS[0]: 1}
    server.fail_next("hang")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(embed, server, "b")
        wait_for(lambda: server.billed["b"] > 0)
        assert not waiting.done()
        server.close()
        assert isinstance(waiting.exception(timeout=10), openai.APIConnectionError)
    wait_for(lambda: server.ledger.in_flight == 0)


def wait_for(condition: Callable[[], bool]) -> None:
    """Until `condition` holds, which it must some time."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("it never came true")


def test_an_idle_connection_ends_with_the_server(server: OpenAIServer) -> None:
    address = urlsplit(server.base_url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(b"GET /v1/nowhere HTTP/1.1\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 401 ")
        server.close()
        while connection.recv(1 << 16):
            continue


def test_a_hang_of_some_seconds_answers_after_all(server: OpenAIServer) -> None:
    server.fail_next(Fault("hang", 0.05))
    assert np.array_equal(embed(server, TEXTS), vectors_of(TEXTS, SIZE))


def test_faults_wait_in_a_queue_for_their_address(server: OpenAIServer) -> None:
    server.fail_next("500", path="/v1/batches")
    server.fail_next("503", path="/v1/files", method="GET")
    server.fail_next("429", "quota", seconds=3)
    for code in ("rate_limit_exceeded", "insufficient_quota"):
        with pytest.raises(openai.RateLimitError) as caught:
            embed(server)
        assert caught.value.code == code
    embed(server)
    with client(server) as opened:
        with pytest.raises(openai.InternalServerError) as failed:
            opened.batches.list()
        assert failed.value.status_code == 500
        assert opened.batches.list().data == []
        source = opened.files.create(file=("a.jsonl", b"{}"), purpose="batch")
        with pytest.raises(openai.InternalServerError) as failed:
            opened.files.content(source.id)
        assert failed.value.status_code == 503
    assert server.faults.waiting() == 0


def test_a_fault_can_depend_on_the_request(server: OpenAIServer) -> None:
    server.fail_when(lambda number, body: number == 2 or "poison" in body["input"], "500")
    outcomes = []
    for text in ("a", "b", "poison", "c"):
        try:
            embed(server, text)
        except openai.InternalServerError:
            outcomes.append("failed")
        else:
            outcomes.append("ok")
    assert outcomes == ["ok", "failed", "failed", "ok"]
    server.faults.clear()
    embed(server, "poison")


def test_a_fault_that_does_not_exist_is_refused(server: OpenAIServer) -> None:
    with pytest.raises(ValueError, match="there is no fault 'explode'"):
        server.fail_next("explode")
    with pytest.raises(ValueError, match="damages vectors"):
        server.fail_next("nan", path="/v1/batches")
    with pytest.raises(ValueError, match="no batch ends as"):
        server.batch_next("exploded")


def test_every_fault_is_tested() -> None:
    assert set(FAULTS) == {*STATUS_FAULTS, *VECTOR_FAULTS, "hang", "reset", "reset-mid-body", "not-json"}


# Many requests at once


def test_concurrent_requests_are_counted_exactly(server: OpenAIServer) -> None:
    server.latency_s = 0.05
    asked = [[f"{number}", "everybody's"] for number in range(24)]
    with client(server) as opened, ThreadPoolExecutor(8) as pool:

        def ask(texts: list[str]) -> int:
            return len(opened.embeddings.create(model=MODEL, input=texts).data)

        assert list(pool.map(ask, asked)) == [2] * 24
    assert server.billed == Counter(text for texts in asked for text in texts)
    assert len(server.ledger.seen) == 24
    assert 2 <= server.ledger.max_concurrency <= 8
    assert {seen.outcome for seen in server.ledger.seen} == {"ok"}


def _embed_in_another_process(base_url: str, key: str, name: str) -> bool:
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as opened:
        got = opened.embeddings.create(model=MODEL, input=[name], dimensions=SIZE).data[0].embedding
    return np.array_equal(np.array(got, np.float32), vector_of(name, SIZE))


def test_a_server_of_its_own_serves_many_processes_and_is_steered_from_outside() -> None:
    with served("--model", f"{MODEL}={SIZE}", "--key", "sk-mine", "--batch-polls", "0") as control:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            asked = [(control.base_url, "sk-mine", name) for name in ("a", "b", "a")]
            assert pool.starmap(_embed_in_another_process, asked) == [True] * 3
        ledger = control.ledger(texts=True, times=True)
        assert ledger["billed"] == {"a": 2, "b": 1}
        assert (ledger["texts"], ledger["distinct_texts"], ledger["requests"], ledger["tokens"]) == (3, 2, 3, 3)
        assert [seen["path"] for seen in ledger["seen"]] == ["/v1/embeddings"] * 3
        control.clear_ledger()
        assert control.ledger()["requests"] == 0

        control.faults(next=["500", {"kind": "429", "seconds": 2}])
        control.faults(when={"containing": "poison", "every": 1, "numbers": [1]}, fault="quota")
        control.batches(next=[{"kind": "failed", "code": "token_limit_exceeded"}])
        with openai.OpenAI(base_url=control.base_url, api_key="sk-mine", max_retries=0) as opened:
            for error in (openai.InternalServerError, openai.RateLimitError, openai.RateLimitError):
                with pytest.raises(error):
                    opened.embeddings.create(model=MODEL, input="poison")
            opened.embeddings.create(model=MODEL, input="poison")
            batch = submit(opened, LINES)
            assert opened.batches.retrieve(batch.id).status == "validating"
            control.batches(advance=1)
            assert opened.batches.retrieve(batch.id).errors.data[0].code == "token_limit_exceeded"  # type: ignore[union-attr, index]
        assert control.ledger()["refused"] == {"fault:500": 1, "fault:429": 1, "fault:quota": 1}
        control.faults(clear=True)
        with pytest.raises(ValueError, match="there is no fault"):
            control.faults(next=["explode"])


# Files and batches


def line(name: str, texts: list[str], **changed: Any) -> dict[str, Any]:
    """A line of a batch's input."""
    body = {"model": MODEL, "input": texts, "encoding_format": "base64"}
    return {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": body, **changed}


LINES = [line(f"line-{number}", [f"text {number}.{part}" for part in range(3)]) for number in range(10)]
ALL_TEXTS = Counter(text for asked in LINES for text in asked["body"]["input"])


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(asked).encode() + b"\n" for asked in lines)


def submit(opened: openai.OpenAI, lines: list[Any] | bytes, **asked: Any) -> Batch:
    """Upload the lines and start a batch."""
    content = lines if isinstance(lines, bytes) else jsonl(lines)
    source = opened.files.create(file=("input.jsonl", content), purpose="batch")
    return opened.batches.create(
        input_file_id=source.id, endpoint="/v1/embeddings", completion_window="24h", **asked
    )  # fmt: skip


def finish(opened: openai.OpenAI, batch: Batch) -> tuple[Batch, list[str]]:
    """Poll to the end; the batch, and the states it was seen in."""
    states: list[str] = [batch.status]
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        batch = opened.batches.retrieve(batch.id)
        states.append(batch.status)
        assert len(states) < 10
    return batch, states


def read(opened: openai.OpenAI, name: str | None) -> dict[str, Any]:
    """The lines of a file by their custom_id, in the file's order."""
    if name is None:
        return {}
    written = [json.loads(row) for row in opened.files.content(name).text.splitlines()]
    by_name = {row["custom_id"]: row for row in written}
    assert len(by_name) == len(written)
    return by_name


def check_vectors(rows: dict[str, Any]) -> None:
    """Each answered line holds the vectors of its own texts."""
    texts = {asked["custom_id"]: asked["body"]["input"] for asked in LINES}
    for name, row in rows.items():
        assert (row["error"], row["response"]["status_code"]) == (None, 200)
        body = row["response"]["body"]
        assert [item["index"] for item in body["data"]] == [0, 1, 2]
        got = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in body["data"]]
        assert np.array_equal(got, vectors_of(texts[name], SIZE))
        assert body["usage"]["total_tokens"] == sum(map(count_words, texts[name]))


def test_a_file_is_kept_listed_read_and_deleted(server: OpenAIServer) -> None:
    content = bytes(range(256)) * 100 + b"\r\n--\r\n"
    with client(server) as opened:
        first = opened.files.create(file=("ä.jsonl", content), purpose="batch")
        second = opened.files.create(file=("b.jsonl", b""), purpose="batch")
        assert (first.bytes, first.filename, first.purpose, first.object) == (len(content), "ä.jsonl", "batch", "file")
        assert opened.files.retrieve(first.id) == first
        assert opened.files.content(first.id).read() == content
        assert [file.id for file in opened.files.list(purpose="batch")] == [second.id, first.id]
        assert opened.files.delete(first.id).deleted
        for gone in (opened.files.retrieve, opened.files.content, opened.files.delete):
            with pytest.raises(openai.NotFoundError):
                gone(first.id)
        with pytest.raises(openai.BadRequestError, match="purpose"):
            opened.files.create(file=("a", b""), purpose="vision")
        assert server.files.names() == {second.id}


def test_an_upload_without_a_length_is_taken(server: OpenAIServer) -> None:
    """The client sends what it cannot measure in chunks."""
    form = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\nContent-Disposition: form-data; '
    )
    form += b'name="file"; filename="a"\r\n\r\none\r\ntwo\r\n--x--\r\n'
    connection = http.client.HTTPConnection(urlsplit(server.base_url).netloc, timeout=20)
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "multipart/form-data; boundary=x"}
    connection.request("POST", "/v1/files", iter([form[:30], form[30:]]), headers, encode_chunked=True)
    uploaded = json.loads(connection.getresponse().read())
    assert uploaded["bytes"] == len("one\r\ntwo")
    connection.request("GET", f"/v1/files/{uploaded['id']}/content", headers=headers)  # the same connection goes on
    assert connection.getresponse().read() == b"one\r\ntwo"
    connection.close()


def test_a_file_too_large_is_refused() -> None:
    with OpenAIServer(models=SMALL, batch_rules=BatchRules(max_bytes=10)) as server, client(server) as opened:
        opened.files.create(file=("a", b"x" * 10), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="File is too large"):
            opened.files.create(file=("a", b"x" * 11), purpose="batch")


def test_a_batch_completes_as_it_is_polled(server: OpenAIServer) -> None:
    with client(server) as opened:
        begun = submit(opened, LINES, metadata={"run": "42"})
        assert begun.created_at + 86_400 == begun.expires_at
        batch, states = finish(opened, begun)
        assert states == ["validating", "in_progress", "finalizing", "completed"]
        assert batch.metadata == {"run": "42"}
        assert batch.request_counts.model_dump() == {"total": 10, "completed": 10, "failed": 0}  # type: ignore[union-attr]
        assert (batch.error_file_id, batch.errors, batch.failed_at, batch.model) == (None, None, None, MODEL)
        assert batch.completed_at is not None
        assert batch.usage.total_tokens == server.ledger.tokens_by_batch == 10 * 3 * 4  # type: ignore[union-attr]
        rows = read(opened, batch.output_file_id)
        check_vectors(rows)
        assert list(rows) != [asked["custom_id"] for asked in LINES]
        assert set(rows) == {asked["custom_id"] for asked in LINES}
        output = opened.files.retrieve(batch.output_file_id)  # type: ignore[arg-type]
        assert output.purpose == "batch_output"
        assert opened.batches.retrieve(batch.id) == batch
    assert server.billed_by_batch == ALL_TEXTS
    assert server.billed == {}


def test_batches_move_only_when_told() -> None:
    with OpenAIServer(models=SMALL, batch_polls=0) as server, client(server) as opened:
        batch = submit(opened, LINES)
        for state in ("validating", "in_progress", "finalizing", "completed", "completed"):
            assert {opened.batches.retrieve(batch.id).status for _ in range(3)} == {state}
            server.advance_batches()


def test_batches_are_listed_newest_first_in_pages(server: OpenAIServer) -> None:
    with client(server) as opened:
        begun = [submit(opened, LINES).id for _ in range(5)]
        page = opened.batches.list(limit=2)
        assert [batch.id for batch in page.data] == [begun[4], begun[3]]
        assert page.has_more
        assert [batch.id for batch in opened.batches.list(limit=2, after=begun[3]).data] == [begun[2], begun[1]]
        assert [batch.id for batch in opened.batches.list(limit=2)] == begun[::-1]  # goes through all pages
        assert {batch.status for batch in opened.batches.list()} == {"validating"}
        for wrong in ({"limit": 101}, {"limit": 0}, {"after": "batch_nobody"}):
            with pytest.raises(openai.BadRequestError):
                opened.batches.list(**wrong)


INVALID = {
    "invalid_json_line": (b'{"custom_id": ', 1),
    "duplicate_custom_id": ([LINES[0], LINES[1], LINES[0]], 3),
    "missing_required_parameter": ([LINES[0], line("", ["a"])], 2),
    "invalid_method": ([line("a", ["a"], method="GET")], 1),
    "mismatched_url": ([line("a", ["a"], url="/v1/responses")], 1),
    "mismatched_model": (
        [LINES[0], line("a", ["a"], body={"model": "text-embedding-3-small", "input": "a"})],
        2,
    ),
    "too_many_inputs": ([line("a", ["a"] * 31)], None),
    "too_many_tasks": ([line(str(number), ["a"]) for number in range(12)], None),
    "empty_file": (b"", None),
    "token_limit_exceeded": ([line("a", ["a " * 201])], None),
}


@pytest.mark.parametrize("code", INVALID)
def test_a_batch_with_a_wrong_line_fails_as_a_whole(code: str) -> None:
    lines, number = INVALID[code]
    rules = BatchRules(max_lines=11, max_inputs=30, max_enqueued_tokens=200)
    with OpenAIServer(models=SMALL, batch_rules=rules) as server, client(server) as opened:
        batch, states = finish(opened, submit(opened, lines))  # type: ignore[arg-type]
        assert states == ["validating", "failed"]
        (error,) = batch.errors.data  # type: ignore[union-attr, misc]
        assert (error.code, error.line) == (code, number)
        assert error.message
        assert (batch.output_file_id, batch.error_file_id) == (None, None)
        assert server.billed_by_batch == {}
        assert finish(opened, submit(opened, LINES))[0].status == "completed"


def test_unfinished_batches_share_the_queue() -> None:
    rules = BatchRules(max_enqueued_tokens=200)
    with OpenAIServer(models=SMALL, batch_rules=rules) as server, client(server) as opened:
        first = submit(opened, LINES)
        assert opened.batches.retrieve(first.id).status == "in_progress"
        refused, _ = finish(opened, submit(opened, LINES))
        assert refused.errors.data[0].code == "token_limit_exceeded"  # type: ignore[union-attr, index]
        assert finish(opened, first)[0].status == "completed"
        assert finish(opened, submit(opened, LINES))[0].status == "completed"


def test_a_batch_fails_as_it_is_told(server: OpenAIServer) -> None:
    server.batch_next("failed", BatchOutcome("failed", code="token_limit_exceeded", message="Enqueued.", line=None))
    with client(server) as opened:
        for code, number in (("invalid_json_line", 1), ("token_limit_exceeded", None)):
            batch, _ = finish(opened, submit(opened, LINES))
            (error,) = batch.errors.data  # type: ignore[union-attr, misc]
            assert (batch.status, error.code, error.line) == ("failed", code, number)
            assert batch.failed_at is not None


@pytest.mark.parametrize(
    ("kind", "states", "code"),
    [
        ("expired", ["validating", "in_progress", "finalizing", "expired"], "batch_expired"),
        ("cancelled", ["validating", "in_progress", "cancelling", "cancelled"], "batch_cancelled"),
    ],
)
def test_a_batch_ends_before_all_lines_are_done(server: OpenAIServer, kind: str, states: list[str], code: str) -> None:
    server.batch_next(BatchOutcome(kind, share=0.3), BatchOutcome(kind, share=0))
    with client(server) as opened:
        batch, seen = finish(opened, submit(opened, LINES))
        assert seen == states
        done, left = read(opened, batch.output_file_id), read(opened, batch.error_file_id)
        check_vectors(done)
        assert (len(done), len(left)) == (3, 7)
        assert {*done, *left} == {asked["custom_id"] for asked in LINES}
        assert {(row["response"], row["error"]["code"]) for row in left.values()} == {(None, code)}
        assert batch.request_counts.model_dump() == {"total": 10, "completed": 3, "failed": 7}  # type: ignore[union-attr]
        assert server.billed_by_batch.total() == 9
        batch, _ = finish(opened, submit(opened, LINES))
        assert batch.output_file_id is None
        assert len(read(opened, batch.error_file_id)) == 10


@pytest.mark.parametrize("where", ["errors", "output"])
def test_some_lines_of_a_batch_fail(server: OpenAIServer, where: str) -> None:
    server.batch_next(BatchOutcome("partly", share=0.5, failures_in=where))
    with client(server) as opened:
        batch, states = finish(opened, submit(opened, LINES))
        assert states[-1] == "completed"
        output, errors = read(opened, batch.output_file_id), read(opened, batch.error_file_id)
    good = {name: row for name, row in output.items() if row["response"]["status_code"] == 200}
    bad = [row for name, row in {**output, **errors}.items() if name not in good]
    check_vectors(good)
    assert (len(good), len(bad)) == (5, 5)
    assert (len(output), len(errors)) == ((5, 5) if where == "errors" else (10, 0))
    assert {row["response"]["status_code"] for row in bad} <= {400, 429, 500}
    assert all(row["error"] is None and row["response"]["body"]["error"]["message"] for row in bad)
    assert batch.request_counts.model_dump() == {"total": 10, "completed": 5, "failed": 5}  # type: ignore[union-attr]


def test_a_line_that_embeddings_refuses_is_in_the_error_file(server: OpenAIServer) -> None:
    with client(server) as opened:
        batch, _ = finish(opened, submit(opened, [*LINES, line("long", ["a " * 8193]), line("none", [])]))
        check_vectors(read(opened, batch.output_file_id))
        errors = read(opened, batch.error_file_id)
    assert set(errors) == {"long", "none"}
    assert errors["long"]["response"]["status_code"] == 400
    assert "maximum context length" in errors["long"]["response"]["body"]["error"]["message"]
    assert batch.request_counts.model_dump() == {"total": 12, "completed": 10, "failed": 2}  # type: ignore[union-attr]


def test_an_output_can_be_damaged(server: OpenAIServer) -> None:
    server.batch_next(BatchOutcome(damage="short"))
    with client(server) as opened:
        batch, _ = finish(opened, submit(opened, LINES))
        rows = read(opened, batch.output_file_id)
    assert [len(row["response"]["body"]["data"]) for row in rows.values()] == [2] + [3] * 9


def test_a_batch_is_cancelled(server: OpenAIServer) -> None:
    with client(server) as opened:
        early = submit(opened, LINES)
        late = submit(opened, LINES)
        opened.batches.retrieve(late.id)
        for batch, done in ((early, 0), (late, 5)):
            assert opened.batches.cancel(batch.id).status == "cancelling"
            assert opened.batches.cancel(batch.id).status == "cancelling"
            ended, _ = finish(opened, batch)
            assert ended.status == "cancelled"
            assert len(read(opened, ended.output_file_id)) == done
            assert ended.cancelled_at is not None
            with pytest.raises(openai.ConflictError):
                opened.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"input_file_id": "file-nobody"}, openai.NotFoundError),
        ({"endpoint": "/v1/responses"}, openai.BadRequestError),
        ({"completion_window": "1h"}, openai.BadRequestError),
        ({"metadata": {"a": "x" * 513}}, openai.BadRequestError),
        ({"metadata": {"a" * 65: "x"}}, openai.BadRequestError),
        ({"metadata": {str(number): "x" for number in range(17)}}, openai.BadRequestError),
    ],
)
def test_a_batch_that_openai_refuses_is_refused(server: OpenAIServer, changed: dict[str, Any], error: Any) -> None:
    with client(server) as opened:
        source = opened.files.create(file=("a", jsonl(LINES)), purpose="batch")
        asked = {"input_file_id": source.id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
        with pytest.raises(error):
            opened.batches.create(**{**asked, **changed})
        assert opened.batches.list().data == []
        with pytest.raises(openai.NotFoundError):
            opened.batches.retrieve("batch_nobody")


def test_output_is_no_input_and_a_deleted_input_fails_the_batch(server: OpenAIServer) -> None:
    with client(server) as opened:
        done, _ = finish(opened, submit(opened, LINES))
        with pytest.raises(openai.BadRequestError, match="purpose"):
            opened.batches.create(
                input_file_id=done.output_file_id or "", endpoint="/v1/embeddings", completion_window="24h"
            )
        begun = submit(opened, LINES)
        opened.files.delete(begun.input_file_id)
        assert finish(opened, begun)[0].errors.data[0].code == "invalid_input_file"  # type: ignore[union-attr, index]


@pytest.mark.parametrize(("kind", "created"), [("reset", 0), ("500", 0), ("reset-mid-body", 1), ("hang", 1)])
def test_a_batch_may_exist_though_its_creation_failed(server: OpenAIServer, kind: str, created: int) -> None:
    server.fail_next(kind, path="/v1/batches", method="POST")
    errors: tuple[Callable[..., Exception], ...] = (openai.APIConnectionError, openai.InternalServerError)
    with client(server, timeout=0.3 if kind == "hang" else 20) as opened, pytest.raises(errors):  # type: ignore[arg-type]
        submit(opened, LINES)
    with client(server) as opened:
        assert len(opened.batches.list().data) == created


def test_an_output_file_breaks_off(server: OpenAIServer) -> None:
    with client(server) as opened:
        batch, _ = finish(opened, submit(opened, LINES))
        assert batch.output_file_id is not None
        server.fail_next("reset-mid-body", path=f"/v1/files/{batch.output_file_id}/content")
        with pytest.raises(openai.APIConnectionError):
            opened.files.content(batch.output_file_id)
        assert len(read(opened, batch.output_file_id)) == 10
