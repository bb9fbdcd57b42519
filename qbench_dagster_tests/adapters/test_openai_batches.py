"""The Batch API from outside, against a server that fails on demand: nothing is made twice, nothing read twice."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from qbench_dagster.adapters.batch_service import RefusedError, UnknownBatchError
from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.openai_batches import CLOCKS_APART_S, PAGE, OpenAIBatches
from qbench_dagster.core.batches import custom_id, request_line
from qbench_dagster.core.requests import Limits
from qbench_dagster_tests.openai_server import OpenAIServer
from qbench_dagster_tests.openai_server.faults import Fault
from qbench_dagster_tests.openai_server.server import KEY

MODEL = "text-embedding-3-large"
MARK = UUID("7d3c1a52-6f0f-4f0a-9a57-0b8b3c1d2e4f")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(batch_polls=0) as running:
        yield running


def client(server: OpenAIServer, **given: Any) -> OpenAIBatches:
    terms: dict[str, Any] = {
        "model": MODEL, "dimensions": 64, "api_key": KEY, "base_url": server.base_url, "limits": Limits(),
        "timeout_s": 10, "send_dimensions": True, "count_tokens": lambda texts: [1] * len(texts), "attempts": 4,
        "sleep": lambda _: None,
    }  # fmt: skip
    return OpenAIBatches(**{**terms, **given})


@pytest.fixture
def service(server: OpenAIServer) -> Iterator[OpenAIBatches]:
    with client(server) as opened:
        yield opened


def content(*texts: str) -> io.BytesIO:
    return io.BytesIO(b"".join(request_line(custom_id(MARK, n), MODEL, [text], 64) for n, text in enumerate(texts)))


def requests(server: OpenAIServer, method: str) -> list[str]:
    return [seen.path for seen in server.ledger.seen if seen.method == method]


def test_a_batch_from_upload_to_results(server: OpenAIServer, service: OpenAIBatches) -> None:
    sent = content("a", "b", "c")
    file_id = service.upload("qbench.jsonl", sent)
    assert server.files.path_of(file_id).read_bytes() == sent.getvalue()
    made = service.create(file_id, MARK, 0.0)
    assert (made.status, made.mark, made.ended) == ("validating", str(MARK), False)
    assert service.find(MARK, 0.0) == made
    assert service.find(uuid4(), 0.0) is None
    server.advance_batches(4)
    ended = service.poll(made.id)
    assert (ended.status, ended.done, ended.failed, ended.total) == ("completed", 3, 0, 3)
    assert ended.output_file is not None
    names = {json.loads(line)["custom_id"] for line in service.lines(ended.output_file)}
    assert names == {custom_id(MARK, n) for n in range(3)}


@pytest.mark.parametrize("fault", ["500", "503", "429", "429-bare", "reset", "reset-mid-body", "html-502", "not-json"])
def test_a_creation_whose_answer_is_lost_is_not_made_twice(
    server: OpenAIServer, service: OpenAIBatches, fault: str
) -> None:
    file_id = service.upload("qbench.jsonl", content("a"))
    server.fail_next(fault, path="/v1/batches", method="POST")
    made = service.create(file_id, MARK, 0.0)
    assert list(server.batches._batches) == [made.id]
    lost = fault == "reset-mid-body"  # it was served
    assert len(requests(server, "POST")) == (2 if lost else 3)


FINAL = [Fault("quota"), Fault("bad-key"), Fault("no-model"), Fault("429", 7200.0)]


@pytest.mark.parametrize("final", FINAL, ids=lambda fault: fault.kind)
def test_a_batch_that_may_have_been_made_is_not_called_refused(
    server: OpenAIServer, service: OpenAIBatches, final: Fault
) -> None:
    file_id = service.upload("qbench.jsonl", content("a"))
    server.fail_next("reset-mid-body", path="/v1/batches", method="POST")
    server.fail_next(final, path="/v1/batches", method="GET")
    with pytest.raises(EmbeddingError, match="may have been made all the same") as caught:
        service.create(file_id, MARK, 0.0)
    assert not isinstance(caught.value, RefusedError)
    assert (KEY in str(caught.value), caught.value.__cause__) == (False, None)
    assert service.find(MARK, 0.0) is not None


@pytest.mark.parametrize("final", FINAL, ids=lambda fault: fault.kind)
def test_nor_is_one_that_a_later_attempt_is_refused(server: OpenAIServer, service: OpenAIBatches, final: Fault) -> None:
    file_id = service.upload("qbench.jsonl", content("a"))
    server.fail_next("500", final, path="/v1/batches", method="POST")
    with pytest.raises(EmbeddingError) as caught:
        service.create(file_id, MARK, 0.0)
    assert not isinstance(caught.value, RefusedError), "a 500 may have been served, and listed later"


@pytest.mark.parametrize("final", FINAL, ids=lambda fault: fault.kind)
def test_a_batch_that_is_refused_at_once_was_not_made(
    server: OpenAIServer, service: OpenAIBatches, final: Fault
) -> None:
    file_id = service.upload("qbench.jsonl", content("a"))
    server.fail_next(final, path="/v1/batches", method="POST")
    with pytest.raises(RefusedError):
        service.create(file_id, MARK, 0.0)
    assert len(requests(server, "POST")) == 2


@pytest.mark.parametrize("fault", ["500", "reset", "reset-mid-body", "html-502", "not-json", "429"])
def test_an_upload_is_sent_whole_again(server: OpenAIServer, service: OpenAIBatches, fault: str) -> None:
    server.fail_next(fault, path="/v1/files", method="POST")
    sent = content("a", "b")
    assert server.files.path_of(service.upload("qbench.jsonl", sent)).read_bytes() == sent.getvalue()


@pytest.mark.parametrize(
    ("fault", "told"), [("quota", "no credit"), ("bad-key", "does not accept the key"), ("no-model", "404")]
)
def test_what_asking_again_cannot_change_is_refused_at_once(
    server: OpenAIServer, service: OpenAIBatches, fault: str, told: str
) -> None:
    server.fail_next(fault, path="/v1/batches")
    with pytest.raises(RefusedError, match=told) as caught:
        service.poll("batch_1")
    assert KEY not in str(caught.value)
    assert len(server.ledger.seen) == 1


def test_what_stays_away_is_given_up(server: OpenAIServer, service: OpenAIBatches) -> None:
    server.fail_next(*["503"] * 4, path="/v1/batches")
    with pytest.raises(EmbeddingError, match="Given up after 4 attempts") as caught:
        service.poll("batch_1")
    assert not isinstance(caught.value, RefusedError)
    assert len(server.ledger.seen) == 4


def test_a_server_of_something_else_is_given_up(server: OpenAIServer, service: OpenAIBatches) -> None:
    server.fail_next(*["not-json"] * 4, path="/v1/batches")
    with pytest.raises(EmbeddingError, match="did not answer as the Batch API does when asked to list batches"):
        service.find(MARK, 0.0)


def test_what_the_service_does_not_know_is_said(server: OpenAIServer, service: OpenAIBatches) -> None:
    with pytest.raises(UnknownBatchError, match=r"asked to ask after batch_9: it knows no such thing.*another project"):
        service.poll("batch_9")
    with pytest.raises(UnknownBatchError):
        list(service.lines("file-9"))
    service.delete_file("file-9")  # gone already: fine
    file_id = service.upload("qbench.jsonl", content("a"))
    service.delete_file(file_id)
    assert server.files.names() == set()
    with pytest.raises(RefusedError):
        service.create(file_id, MARK, 0.0)


def test_the_list_is_paged_until_it_is_too_old(
    server: OpenAIServer, service: OpenAIBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = service.upload("qbench.jsonl", content("a"))
    service.create(file_id, MARK, 0.0)
    for _ in range(PAGE + 1):
        server.batches.create({"endpoint": "/v1/embeddings", "completion_window": "24h", "input_file_id": file_id,
                               "metadata": None})  # fmt: skip
    server.ledger.clear()
    found = service.find(MARK, 0.0)
    assert found is not None
    assert found.mark == str(MARK)
    assert len(requests(server, "GET")) == 2
    since = found.created_at + CLOCKS_APART_S + 60
    assert service.find(MARK, since) is None, "all of the first page are older than ours can be"
    assert len(requests(server, "GET")) == 3


@pytest.fixture
def results(server: OpenAIServer) -> tuple[str, list[bytes]]:
    """A file of results, and its lines. 39 MB, for a reset throws away what the kernel holds: up to 6 MB a socket."""
    lines = [json.dumps({"custom_id": f"{n}", "x": "A" * 65_536}).encode() for n in range(600)]
    return server.files._keep("large", "batch_output", [line + b"\n" for line in lines])["id"], lines


@pytest.mark.parametrize("faults", [["reset-mid-body"] * 2, ["500", "reset", "html-502"]])
def test_a_stream_that_breaks_goes_on_where_it_was(
    server: OpenAIServer, service: OpenAIBatches, results: tuple[str, list[bytes]], faults: list[str]
) -> None:
    file_id, lines = results
    server.fail_next(*faults, path=f"/v1/files/{file_id}")
    assert list(service.lines(file_id)) == lines


def test_a_stream_that_never_gets_further_is_given_up(
    server: OpenAIServer, service: OpenAIBatches, results: tuple[str, list[bytes]]
) -> None:
    file_id, _ = results
    server.fail_next(*["reset"] * 9, path=f"/v1/files/{file_id}")
    with pytest.raises(EmbeddingError, match="dropped the connection"):
        list(service.lines(file_id))
    assert len(server.ledger.seen) == 4


def test_reading_may_end_early(service: OpenAIBatches, results: tuple[str, list[bytes]]) -> None:
    file_id, lines = results
    reading = service.lines(file_id)
    assert next(reading) == lines[0]
    reading.close()
    assert list(service.lines(file_id)) == lines


def test_results_are_never_in_memory_as_a_whole(server: OpenAIServer, service: OpenAIBatches) -> None:
    file_id = server.files._keep("large", "batch_output", [b'{"x": "' + b"A" * 65_536 + b'"}\n'] * 1_000)["id"]
    tracemalloc.start()
    try:
        count = sum(1 for _ in service.lines(file_id))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 1_000
    assert most < 8_000_000, "of 66 MB"


def test_nothing_shown_holds_the_key(server: OpenAIServer, service: OpenAIBatches) -> None:
    assert KEY not in repr(service)
    with client(server, api_key="sk-another-key-0123456789") as other, pytest.raises(RefusedError) as caught:
        other.poll("batch_1")
    assert "sk-another" not in str(caught.value)
    assert caught.value.__cause__ is None
