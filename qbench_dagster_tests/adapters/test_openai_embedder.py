"""The embedder against a real HTTP server: what it brings, tries again and gives up, what it says and what it costs."""

from __future__ import annotations

import base64
import http.server
import json
import logging
import math
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from qbench_dagster.adapters.embedders import EmbeddingError, RequestTooLargeError
from qbench_dagster.adapters.openai_embedder import OpenAIEmbedder
from qbench_dagster.core.requests import Limits
from qbench_dagster_tests.openai_server import OpenAIServer, count_words, vectors_of
from qbench_dagster_tests.support import Time

KEY = "sk-planted-0123456789abcdef"
LARGE = "text-embedding-3-large"
SIZE = 64
TEXTS = [f"Open the page number {number} and log in" for number in range(5)]
TOKENS = sum(map(count_words, TEXTS))


def counted(texts: Sequence[str]) -> list[int]:
    return [count_words(text) for text in texts]


@contextmanager
def embedder_of(url: str | None, time: Time | None = None, **options: Any) -> Iterator[OpenAIEmbedder]:
    simulated: dict[str, Any] = {} if time is None else {"clock": time.clock, "sleep": time.sleep}
    given: dict[str, Any] = {
        "model": LARGE,
        "dimensions": SIZE,
        "api_key": KEY,
        "base_url": url,
        "limits": Limits(),
        "concurrency": 8,
        "timeout_s": 20.0,
        "send_dimensions": True,
        "count_tokens": counted,
        "paid": True,
    }
    made = OpenAIEmbedder(**given | simulated | options)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[OpenAIServer]:
    with OpenAIServer(key=KEY) as running:
        yield running


@pytest.fixture
def server(shared_server: OpenAIServer) -> OpenAIServer:
    """A server without limits that has seen nothing."""
    shared_server.faults.clear()
    shared_server.ledger.clear()
    return shared_server


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def embedder(server: OpenAIServer, time: Time) -> Iterator[OpenAIEmbedder]:
    with embedder_of(server.base_url, time) as made:
        yield made


def requests_seen(server: OpenAIServer) -> int:
    return len(server.ledger.seen)


def right(vectors: np.ndarray, texts: Sequence[str] = TEXTS) -> bool:
    return bool(np.allclose(vectors, vectors_of(list(texts), SIZE, LARGE), atol=1e-6))


def failure(
    embedder: OpenAIEmbedder,
    texts: Sequence[str] = TEXTS,
    *,
    match: str | None = None,
    kind: type[EmbeddingError] = EmbeddingError,
) -> EmbeddingError:
    """What a request that must fail raises."""
    with pytest.raises(kind, match=match) as caught:
        embedder.request(texts)
    return caught.value


# ---- what it brings


def test_texts_become_unit_vectors_in_order_and_are_billed_once(server: OpenAIServer, embedder: OpenAIEmbedder) -> None:
    answer = embedder.request(TEXTS)
    assert right(answer.vectors)
    assert answer.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(answer.vectors, axis=1), 1.0, atol=1e-6)
    assert (answer.tokens, answer.tokens_at_risk) == (TOKENS, 0)
    assert server.billed == dict.fromkeys(TEXTS, 1)
    assert embedder.token_ceiling is None
    assert embedder.provenance == "openai"


def test_blank_texts_are_sent_as_one_space(server: OpenAIServer, embedder: OpenAIEmbedder) -> None:
    texts = ["", "   ", "\n\t", " a "]
    assert right(embedder.request(texts).vectors, [" ", " ", " ", " a "])
    assert embedder.count_tokens(texts) == counted([" ", " ", " ", " a "])
    assert set(server.billed) == {" ", " a "}


def test_half_a_surrogate_pair_is_sent_as_a_question_mark(embedder: OpenAIEmbedder) -> None:
    assert right(embedder.request(["log\udce4in"]).vectors, ["log?in"])


def test_a_few_texts_are_embedded_in_as_many_requests_as_the_limits_ask_for(server: OpenAIServer) -> None:
    with embedder_of(server.base_url, limits=Limits(inputs=2, tokens_per_request=1000)) as embedder:
        assert right(embedder.embed(TEXTS))
        assert embedder.embed([]).shape == (0, SIZE)
    assert [seen.inputs for seen in server.ledger.seen] == [2, 2, 1]


@pytest.mark.parametrize("send", [True, False])
def test_dimensions_are_asked_for_only_where_that_is_set(server: OpenAIServer, send: bool) -> None:
    bodies: list[Any] = []
    server.fail_when(lambda _, body: bodies.append(body) is not None, "500")  # notes each, fails none
    with embedder_of(server.base_url, dimensions=3072, send_dimensions=send) as embedder:
        assert embedder.request(["a"]).vectors.shape == (1, 3072)
    assert [body.get("dimensions") for body in bodies] == [3072 if send else None]
    assert [body["encoding_format"] for body in bodies] == ["base64"]


# ---- what it tries again


@pytest.mark.parametrize(
    ("fault", "may_be_billed"),
    [
        ("429", False),
        ("429-bare", False),
        ("500", False),
        ("503", False),
        ("html-502", False),
        ("reset", True),
        ("reset-mid-body", True),
        ("hang", True),
        ("not-json", True),
        ("short", True),
        ("swapped-index", True),
        ("nan", True),
        ("zero", True),
    ],
)
def test_what_may_pass_is_tried_again_and_its_price_is_remembered(
    server: OpenAIServer, time: Time, fault: str, may_be_billed: bool
) -> None:
    server.fail_next(fault, seconds=5 if fault == "hang" else None)
    with embedder_of(server.base_url, time, timeout_s=0.5 if fault == "hang" else 20.0) as embedder:
        answer = embedder.request(TEXTS)
    assert right(answer.vectors)
    assert requests_seen(server) == 2
    assert answer.tokens == TOKENS
    assert answer.tokens_at_risk == (TOKENS if may_be_billed else 0)
    lost = sum(seen.tokens for seen in server.ledger.seen[:-1])
    assert lost <= answer.tokens_at_risk, "nothing was billed that is not accounted for"
    assert len(time.slept) in (1, 2)  # two where the jitter was below Retry-After and the gate was still closed


@contextmanager
def scripted(
    *answers: Callable[[http.server.BaseHTTPRequestHandler], None],
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server for what the big one does not do: one function for each request, the last for all others."""
    bodies: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answers[min(len(bodies), len(answers)) - 1](self)

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1", bodies
        running.shutdown()


def says(status: int, body: Any, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    encoded = body.encode() if isinstance(body, str) else json.dumps(body).encode()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response_only(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(encoded)))
        handler.end_headers()
        handler.wfile.write(encoded)

    return answer


def refuses(status: int, message: str, code: str | None = None, **headers: str) -> Any:
    return says(status, {"error": {"message": message, "type": "x", "param": None, "code": code}}, **headers)


GOOD = says(200, {"data": [{"index": 0, "embedding": [3.0, 4.0]}]})


@pytest.mark.parametrize("status", [408, 409, 502, 504, 529])
def test_other_passing_statuses_are_tried_again(status: int, time: Time) -> None:
    with (
        scripted(says(status, "<html>wait</html>"), GOOD) as (url, bodies),
        embedder_of(url, time, dimensions=2) as one,
    ):
        answer = one.request(["a"])
    assert (len(bodies), answer.tokens_at_risk) == (2, 0)


def test_a_server_without_base64_usage_and_limits_will_do(time: Time) -> None:
    answer = {"data": [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3.0, 4.0]}]}
    together = threading.Barrier(4)

    def four_at_a_time(handler: http.server.BaseHTTPRequestHandler) -> None:
        together.wait(10)
        says(200, answer)(handler)

    answers = says(200, answer), four_at_a_time
    with scripted(*answers) as (url, bodies), embedder_of(url, time, dimensions=2, api_key="") as embedder:
        found = embedder.request(["log in", "out"])
        np.testing.assert_allclose(found.vectors, [[0.6, 0.8], [0, 1]], atol=1e-7)
        assert found.tokens == 3, "our own count"
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: embedder.request(["log in", "out"]), range(8)))
    assert len(bodies) == 9
    assert time.slept == [], "no limits, no pacing"


def test_it_waits_longer_each_time_and_never_longer_than_a_minute(server: OpenAIServer, time: Time) -> None:
    server.fail_next(*["500"] * 11)
    with embedder_of(server.base_url, time, attempts=12) as embedder:
        assert right(embedder.request(TEXTS).vectors)
    assert len(time.slept) == 11
    for number, slept in enumerate(time.slept):
        assert slept <= min(60, 2**number)
    assert len(set(time.slept)) == 11, "jitter"
    assert max(time.slept) > 4


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "90"}, 90),
        ({"retry_after_ms": "75500"}, 75.5),
        ({"date": "Thu, 01 Jan 2026 00:00:00 GMT", "retry_after": "Thu, 01 Jan 2026 00:01:30 GMT"}, 90),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_it_waits_at_least_as_long_as_it_is_told(
    headers: dict[str, str], seconds: float, status: int, time: Time
) -> None:
    with (
        scripted(refuses(status, "slow down", **headers), GOOD) as (url, _),
        embedder_of(url, time, dimensions=2) as one,
    ):
        one.request(["a"])
    assert seconds <= sum(time.slept) <= seconds + 60


def test_nobody_sends_before_the_moment_a_refusal_names(time: Time) -> None:
    sent_at: list[float] = []

    def noting(answer: Any) -> Any:
        return lambda handler: (sent_at.append(time.now), answer(handler))

    answers = [noting(GOOD), noting(refuses(429, "slow down", retry_after="500")), noting(GOOD)]
    with scripted(*answers) as (url, _), embedder_of(url, time, dimensions=2, attempts=1) as embedder:
        embedder.request(["a"])
        failure(embedder, ["b"])
        embedder.request(["c"])
    assert sent_at[2] - sent_at[1] >= 500


def test_a_wait_of_hours_ends_the_request_instead(time: Time) -> None:
    refusal = refuses(429, "Limit of requests per day reached.", retry_after="30000")
    with scripted(refusal) as (url, bodies), embedder_of(url, time, dimensions=2) as embedder:
        error = failure(embedder, ["a"], match=r"8\.3 hours.*requests per day.*kept")
    assert (len(bodies), error.tokens_at_risk) == (1, 0)
    assert time.slept == []


def test_what_never_passes_is_given_up_after_the_set_number_of_attempts(server: OpenAIServer, time: Time) -> None:
    server.fail_when(lambda *_: True, "503")
    with embedder_of(server.base_url, time, attempts=4) as embedder:
        error = failure(embedder, match=r"503.*overloaded.*after 4 attempts.*kept")
    assert requests_seen(server) == 4
    assert error.tokens_at_risk == 0
    assert not isinstance(error, RequestTooLargeError)


@pytest.mark.parametrize("fault", ["not-json", "short", "swapped-index", "nan", "zero"])
def test_unusable_answers_are_asked_for_again_only_twice(
    server: OpenAIServer, embedder: OpenAIEmbedder, fault: str
) -> None:
    server.fail_when(lambda *_: True, fault)
    error = failure(embedder, match=r"unusable.*after 3 attempts")
    assert requests_seen(server) == 3
    assert error.tokens_at_risk == 3 * TOKENS


def test_unusable_answers_among_other_failures_count_alone(server: OpenAIServer, embedder: OpenAIEmbedder) -> None:
    server.fail_next("500", "nan", "503", "zero", "reset")
    answer = embedder.request(TEXTS)
    assert right(answer.vectors)
    assert answer.tokens_at_risk == 3 * TOKENS


def test_answers_out_of_order_are_put_in_order_and_not_paid_twice(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    server.fail_next("reordered")
    answer = embedder.request(TEXTS)
    assert right(answer.vectors)
    assert (requests_seen(server), answer.tokens_at_risk) == (1, 0)


# ---- what it gives up at once


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("quota", r"no credit left.*Add credit.*kept"),
        ("bad-key", r"does not accept the key.*OPENAI_API_KEY.*kept"),
        ("no-model", r"does not exist.*QBENCH_MODEL.*kept"),
    ],
)
def test_what_a_person_must_mend_is_not_tried_again(
    server: OpenAIServer, embedder: OpenAIEmbedder, fault: str, words: str
) -> None:
    server.fail_next(fault)
    error = failure(embedder, match=words)
    assert requests_seen(server) == 1
    assert error.tokens_at_risk == 0


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (403, "Project may not use it", "OPENAI_API_KEY"),
        (400, "Invalid value for 'dimensions'", "Invalid value for 'dimensions'.*QBENCH_DIMENSIONS"),
        (422, "Input should be a string", "Input should be a string.*QBENCH_MODEL"),
        (404, "Not Found", "OPENAI_BASE_URL"),
    ],
)
def test_other_refusals_are_quoted_with_what_to_check(status: int, message: str, words: str) -> None:
    with scripted(refuses(status, message)) as (url, bodies), embedder_of(url) as embedder:
        error = failure(embedder, ["a"], match=words)
    assert len(bodies) == 1
    assert not isinstance(error, RequestTooLargeError)


def test_vectors_of_another_length_name_the_settings(server: OpenAIServer) -> None:
    with embedder_of(server.base_url, send_dimensions=False) as embedder:
        error = failure(embedder, match=r"3072 numbers.*64.*QBENCH_DIMENSIONS to 3072.*QBENCH_MODEL")
    assert requests_seen(server) == 1
    assert error.tokens_at_risk == TOKENS, "it was billed"


def test_one_vector_of_another_length_is_enough(server: OpenAIServer, embedder: OpenAIEmbedder) -> None:
    server.fail_next("wrong-dimension")
    failure(embedder, match="63 numbers")
    assert requests_seen(server) == 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_host_that_cannot_be_reached_is_named_without_its_password(time: Time) -> None:
    url = f"http://robot:hunter22@127.0.0.1:{free_port()}/v1?token=hunter33"
    with embedder_of(url, time, attempts=3) as embedder, pytest.raises(EmbeddingError) as error:
        embedder.request(TEXTS)
    text = str(error.value)
    assert "Cannot reach http://127.0.0.1:" in text
    assert "OPENAI_BASE_URL" in text
    assert "after 3 attempts" in text
    assert "hunter" not in text + everything_said(error.value)
    assert error.value.tokens_at_risk == 0, "nothing was sent"
    assert len(time.slept) == 2


def test_a_password_in_the_url_is_used() -> None:
    logins: list[str] = []

    def noting(handler: http.server.BaseHTTPRequestHandler) -> None:
        logins.append(handler.headers["Authorization"])
        GOOD(handler)

    with scripted(noting) as (url, _), embedder_of(url.replace("//", "//robot:p%40ss@"), dimensions=2) as embedder:
        embedder.request(["a"])
    assert logins == ["Basic " + base64.b64encode(b"robot:p@ss").decode()]


@pytest.mark.parametrize(
    "url", ["api.example.com/v1", "ftp://host/v1", "http://", "http://[half/v1", "http://a:b:c/v1"]
)
def test_a_url_that_is_none_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(EmbeddingError, match="OPENAI_BASE_URL"), embedder_of(url):
        pass


@pytest.mark.parametrize("key", ["", "  ", "sk-planted\u2026", "sk-planted 0123", "sk-planted\n0123"])
def test_a_key_that_is_none_is_refused_before_anything_is_sent_and_not_shown(key: str) -> None:
    with pytest.raises(EmbeddingError, match="OPENAI_API_KEY") as error, embedder_of(None, api_key=key):
        pass
    assert "sk-planted" not in everything_said(error.value)


def test_white_space_around_a_key_is_a_slip_of_the_file_it_came_from(server: OpenAIServer) -> None:
    with embedder_of(server.base_url, api_key=f" {KEY}\n") as embedder:
        assert right(embedder.request(TEXTS).vectors)


# ---- what is too large


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"max_request_tokens": 20}, TEXTS),
        ({"max_input_tokens": 5}, TEXTS),
        ({"max_inputs": 4}, TEXTS),
    ],
)
def test_a_size_the_service_refuses_is_known_as_such(options: dict[str, int], texts: list[str]) -> None:
    with OpenAIServer(key=KEY, **options) as server, embedder_of(server.base_url) as embedder:  # type: ignore[arg-type]
        failure(embedder, texts, match="too large", kind=RequestTooLargeError)
        assert requests_seen(server) == 1
        assert embedder.token_ceiling is None, "that is no matter of the account's rate"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (413, "<html>Request Entity Too Large</html>"),
        (400, '{"error": "the input length exceeds the context length"}'),
        (400, '{"message": "This model\'s maximum context length is 512 tokens.", "code": 400}'),
    ],
)
def test_other_servers_ways_to_say_too_large_are_known(status: int, message: str) -> None:
    with scripted(says(status, message)) as (url, bodies), embedder_of(url) as embedder:
        failure(embedder, ["a"], kind=RequestTooLargeError)
    assert len(bodies) == 1


def test_a_request_larger_than_the_accounts_bucket_is_never_waited_for(time: Time) -> None:
    with OpenAIServer(key=KEY, tokens_per_minute=100) as server, embedder_of(server.base_url, time) as embedder:
        embedder.request(["log in"])
        assert embedder.token_ceiling == 100
        failure(embedder, ["log " * 101], match=r"101 tokens.*100 tokens", kind=RequestTooLargeError)
        assert requests_seen(server) == 1, "it was not even sent"
        embedder.request(["log out"])  # nor does it stand in the way
    assert time.slept == []


def test_what_the_service_calls_too_large_for_the_account_is_learnt(time: Time) -> None:
    with OpenAIServer(key=KEY, tokens_per_minute=6000, burst_seconds=1) as server:
        with embedder_of(server.base_url, time) as embedder:
            failure(embedder, ["log " * 101], kind=RequestTooLargeError)
            assert embedder.token_ceiling == 100
            assert requests_seen(server) == 1
            embedder.request(["log " * 100])
        assert requests_seen(server) == 2


# ---- pace


def test_the_accounts_limits_are_kept_and_used() -> None:
    """50 tokens a ms, a bucket of 0.2 s: without pacing eight threads are refused all the time."""
    texts = ["log " * 100] * 10
    with OpenAIServer(key=KEY, tokens_per_minute=3_000_000, burst_seconds=0.2, latency_s=0.01) as server:
        with embedder_of(server.base_url) as embedder, ThreadPoolExecutor(8) as pool:
            tokens = sum(pool.map(lambda _: embedder.request(texts).tokens, range(60)))
        ledger = server.ledger
        assert tokens == ledger.tokens == 60_000
        assert ledger.refused.total() <= 3
        assert ledger.max_concurrency > 1


@pytest.mark.parametrize("share_counted", [1.0, 0.95])
def test_in_simulated_time_nearly_all_of_the_rate_is_used(time: Time, share_counted: float) -> None:
    """Also where the service counts more tokens than we do: then each request would be a moment early, and refused."""
    limited = OpenAIServer(key=KEY, tokens_per_minute=6000, burst_seconds=10, clock=time.clock)
    started = time.now
    with (
        limited as server,
        embedder_of(server.base_url, time, count_tokens=lambda _: [int(100 * share_counted)]) as one,
    ):
        for _ in range(200):
            one.request(["log " * 100])
    allowed = 6000 / 60 * (time.now - started + 10)
    assert server.ledger.tokens >= 0.9 * allowed
    assert server.ledger.refused.total() <= 10


def test_one_request_goes_alone_until_the_limits_are_known() -> None:
    with OpenAIServer(key=KEY, tokens_per_minute=10_000_000, latency_s=0.1) as server:
        with embedder_of(server.base_url) as embedder, ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: embedder.request(["log in"]), range(6)))
        first, second, *_ = sorted(seen.at for seen in server.ledger.seen)
        assert second - first > 0.05, "not before the first was answered, after the server's latency"
        assert server.ledger.max_concurrency > 1


# ---- how it ends


def until(condition: Callable[[], bool]) -> None:
    """Wait for other threads to get there."""
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to that")


def test_stopping_sends_home_whoever_waits() -> None:
    with OpenAIServer(key=KEY, tokens_per_minute=60) as server, embedder_of(server.base_url) as embedder:
        embedder.request(["log " * 60])  # the next minute's worth is gone
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(embedder.request, ["log " * 60]) for _ in range(3)]
            until(lambda: len(embedder._gate._pacer._waiting) == 3)
            embedder.stop()
            for one in waiting:
                with pytest.raises(EmbeddingError, match="stopped"):
                    one.result(timeout=10)
        failure(embedder, ["later"], match="stopped")
        assert requests_seen(server) == 1


def test_stopping_ends_a_wait_for_another_attempt_and_says_what_it_may_have_cost(server: OpenAIServer) -> None:
    server.fail_next("reset")
    server.fail_next("429", seconds=60)
    with embedder_of(server.base_url) as embedder, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(embedder.request, TEXTS)
        until(lambda: server.ledger.refused["fault:429"] == 1 and not embedder._gate._pacer._flying)
        embedder.stop()
        with pytest.raises(EmbeddingError, match="stopped") as error:
            sent.result(timeout=10)
    assert error.value.tokens_at_risk == TOKENS
    assert requests_seen(server) == 2


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_gives_the_turn_back(server: OpenAIServer, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    with embedder_of(server.base_url, time) as embedder:
        with monkeypatch.context() as patched:
            patched.setattr(embedder._client.api._client, "send", interrupted)
            with pytest.raises(KeyboardInterrupt):
                embedder.request(TEXTS)
        assert right(embedder.request(TEXTS).vectors)


# ---- secrets


def everything_said(error: BaseException) -> str:
    """Text, repr and traceback of an exception and of all it came from, suppressed or not."""
    said, waiting, known = [], [error], set()
    while waiting:
        one = waiting.pop()
        if id(one) in known:
            continue
        known.add(id(one))
        said += [str(one), repr(one), repr(one.args), repr(vars(one)), *traceback.format_exception(one)]
        waiting += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
    return "\n".join(said)


@pytest.mark.parametrize(
    "fault", ["bad-key", "quota", "no-model", "500", "429", "reset", "reset-mid-body", "hang", "not-json", "nan", None]
)
def test_the_key_is_in_no_text_log_or_name(
    server: OpenAIServer, time: Time, caplog: pytest.LogCaptureFixture, fault: str | None
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "qbench_dagster"):
        caplog.set_level(logging.DEBUG, logger=name)
    with embedder_of(server.base_url, time, timeout_s=0.2 if fault == "hang" else 20.0, attempts=2) as embedder:
        said = repr(embedder) + str(vars(embedder))
        if fault is None:
            embedder.request(TEXTS)
        else:
            server.fail_when(lambda *_: True, fault)
            error = failure(embedder)
            said += everything_said(error)
    logged = [record.getMessage() + repr(record.__dict__) for record in caplog.records]
    assert logged, "the loggers were listened to"
    assert KEY not in said
    assert not [line for line in logged if KEY in line]
    assert "sk-revoked" not in said, "nor a part of one that the server repeats"


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_a_server_that_repeats_the_key_is_not_quoted_with_it(status: int, time: Time) -> None:
    refusal = refuses(status, f"Bad header 'Authorization: Bearer {KEY}' or sk-proj-****Abc9 for robot:hunter22")
    with (
        scripted(refusal) as (url, _),
        embedder_of(url.replace("//", "//robot:hunter22@"), time, attempts=2) as embedder,
    ):
        error = failure(embedder, ["a"])
    said = everything_said(error)
    assert KEY not in said
    assert "hunter22" not in said
    assert "Abc9" not in said


def test_large_answers_are_read_whole() -> None:
    texts = [f"Log in as user {number}" for number in range(2048)]
    with OpenAIServer(key=KEY) as server, embedder_of(server.base_url, dimensions=3072) as embedder:
        answer = embedder.request(texts)
    assert np.allclose(answer.vectors, vectors_of(texts, 3072, LARGE), atol=1e-6)
    assert answer.tokens == math.fsum(map(count_words, texts))


def test_the_caller_is_asked_before_another_attempt_where_the_last_may_have_cost(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    told: list[int] = []
    tokens = sum(embedder.count_tokens(["Log in", "Log out"]))
    server.fail_next("reset-mid-body", "500", "nan")
    answer = embedder.request(["Log in", "Log out"], told.append)
    assert told == [tokens, tokens], "not of the 500, which costs nothing"
    assert answer.tokens_at_risk == 2 * tokens


def test_the_caller_may_end_it(server: OpenAIServer, embedder: OpenAIEmbedder) -> None:
    def refuse(tokens: int) -> None:
        raise EmbeddingError("that is enough")

    tokens = sum(embedder.count_tokens(["Log in"]))
    server.fail_next("reset-mid-body")
    before = requests_seen(server)
    with pytest.raises(EmbeddingError, match="that is enough") as error:
        embedder.request(["Log in"], refuse)
    assert error.value.tokens_at_risk == tokens
    assert requests_seen(server) == before + 1
