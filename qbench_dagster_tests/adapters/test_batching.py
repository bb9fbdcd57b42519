"""Embedding by batches: every text sent and paid for once, whatever a batch comes to and whenever we are killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from qbench_dagster.adapters import batch_sending, batch_store
from qbench_dagster.adapters.batch_service import RefusedError
from qbench_dagster.adapters.batching import Waiting, advance, forget, has_batches
from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.embedding import embed_missing
from qbench_dagster.adapters.ledger import Account, BudgetReachedError
from qbench_dagster.adapters.openai_batches import OpenAIBatches
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS, Kind, Space, ensure_space, writing
from qbench_dagster.core.batches import BatchLimits
from qbench_dagster.core.ranges import CaseRange
from qbench_dagster.core.requests import Limits
from qbench_dagster.core.tally import Embedding
from qbench_dagster.core.texts import text_hash
from qbench_dagster_tests.adapters.test_embedding import Teller, stage, vectors
from qbench_dagster_tests.openai_server import BatchOutcome, BatchRules, OpenAIServer, count_words, vector_of
from qbench_dagster_tests.openai_server.server import KEY
from qbench_dagster_tests.support import execute, rows

MODEL = "text-embedding-3-large"
SPACE = Space("space_te3large_64", MODEL, 64, "halfvec", "openai")
PRICE = 0.065
TITLES = [f"Title {n}" for n in range(20)]
DOCS = {f"{title}\n" for title in TITLES}


def account(max_usd: float | None = None, way: str = "batch", price: float | None = PRICE) -> Account:
    return Account("test", price, max_usd, way)


def service_for(base_url: str, *, limits: Limits | None = None, timeout_s: float = 10, attempts: int = 4) -> Any:
    return OpenAIBatches(
        model=MODEL,
        dimensions=64,
        api_key=KEY,
        base_url=base_url,
        limits=limits or Limits(inputs=4),
        timeout_s=timeout_s,
        send_dimensions=True,
        count_tokens=lambda texts: [count_words(text) for text in texts],
        attempts=attempts,
        sleep=lambda _: None,
    )


@dataclass
class World:
    """Staged cases, a server, and passes over them."""

    database: Database
    server: OpenAIServer
    ranges: Sequence[CaseRange]
    service: OpenAIBatches
    done: Embedding = field(default_factory=Embedding)

    def go(self, kind: Kind = "doc", ranges: Sequence[CaseRange] | None = None, **given: Any) -> Waiting:
        """One pass; `done` tells of it."""
        self.done = Embedding()
        ranges = self.ranges if ranges is None else ranges
        return advance(
            self.database, SPACE, kind, ranges, self.service, account(**given), self.done, lambda _: None
        )  # fmt: skip

    def forget(self, named: str) -> batch_store.Batch | None:
        """Give a batch up."""
        return forget(self.database, named, account(), lambda _: nullcontext(self.service))

    def end_batches(self) -> None:
        """Every batch at the server comes to its end."""
        self.server.advance_batches(4)

    def stored(self, kind: Kind = "doc") -> set[str]:
        """Texts that have their own vector."""
        found = vectors(self.database, kind, SPACE)
        texts = {text_hash(text): text for text in [*self.server.billed_by_batch, *self.server.billed]}
        for key, vector in found.items():
            assert np.abs(vector - vector_of(texts[key], 64, MODEL)).max() < 1e-3
        return {texts[key] for key in found}

    def claims(self) -> int:
        return int(rows(self.database, "SELECT count(*) FROM store.batch_texts")[0][0])

    def states(self) -> list[str]:
        return [row[0] for row in rows(self.database, "SELECT state FROM store.batches ORDER BY created_at")]

    def name(self) -> str:
        """Our id of the first batch."""
        return str(rows(self.database, "SELECT id::text FROM store.batches ORDER BY created_at")[0][0])

    def ledger(self) -> list[tuple[Any, ...]]:
        """(state, tokens, dollars) of each reservation."""
        return rows(self.database, "SELECT state, tokens, usd FROM store.embedding_requests ORDER BY id")

    def billed_once(self) -> None:
        """Every text was billed, once."""
        assert set(self.server.billed_by_batch.values()) <= {1}
        assert not self.server.billed


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(batch_polls=0) as running:
        yield running


@pytest.fixture
def world(clean_database: Database, server: OpenAIServer, tmp_path: Path) -> Iterator[World]:
    ranges = stage(clean_database, tmp_path, TITLES)
    ensure_space(clean_database, SPACE)
    with service_for(server.base_url) as service:
        yield World(clean_database, server, ranges, service)


def small_batches(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    monkeypatch.setattr(batch_sending, "LIMITS", BatchLimits(**limits))


def test_texts_are_sent_once_and_taken_in_when_they_are_there(world: World) -> None:
    first = world.go()
    assert (first.texts, first.unsent, first.total, first.batches) == (20, 0, 20, 1)
    tokens = sum(map(count_words, DOCS))
    assert first.usd == pytest.approx(tokens * PRICE / 1e6)
    assert str(first) == (
        "20 texts of 20 wait in 1 batch at the service, reserved $0.0000; run again later or keep `qbench ui` up"
    )
    assert world.ledger() == [("in_flight", tokens, pytest.approx(tokens * PRICE / 1e6))]
    for _ in range(2):  # nothing has ended: nothing more is sent
        assert world.go().texts == 20
    assert world.states() == ["submitted"]
    assert has_batches(world.database, SPACE)

    world.end_batches()
    last = world.go()
    assert not last
    assert world.stored() == DOCS
    world.billed_once()
    assert (world.claims(), world.states()) == (0, ["taken_in"])
    assert world.ledger() == [("answered", tokens, pytest.approx(tokens * PRICE / 1e6))]
    assert world.done.embedded == 20
    assert world.done.tokens == tokens
    assert {part.embedded for part in world.done.partitions.values()} == {10}
    found = rows(world.database, f"SELECT DISTINCT provenance, pieces FROM {SPACE.name}.doc_embeddings")
    assert found == [("openai_batch", 1)]
    assert not world.go()
    assert not has_batches(world.database, SPACE)
    assert len(rows(world.database, "SELECT FROM store.batches")) == 1


def test_a_second_kind_does_not_send_what_the_first_one_has_out(
    clean_database: Database, server: OpenAIServer, tmp_path: Path
) -> None:
    ranges = stage(clean_database, tmp_path, ["Do 1", "Do 2", "Title"])
    ensure_space(clean_database, SPACE)
    with service_for(server.base_url) as service:
        world = World(clean_database, server, ranges, service)
        assert world.go("doc").texts == 3
        waiting = world.go("step")  # its texts: Log in, Do 1, Do 2, Do 0
        assert (waiting.texts, waiting.batches) == (4, 2)
        world.end_batches()
        assert not world.go("step")
        assert not world.go("doc")
        assert world.stored("step") >= {"Do 1\n", "Do 2\n"}
        world.billed_once()


def test_requests_mode_takes_in_what_is_out_and_sends_no_text_twice(world: World) -> None:
    world.go(ranges=world.ranges[:1])
    teller = Teller()
    waiting = world.go(way="request")
    assert (waiting.texts, waiting.unsent) == (10, 0)
    embed_missing(
        world.database, SPACE, "doc", world.ranges, teller, account(way="request"), lambda _: None, Embedding()
    )
    assert len(teller.given) == 10
    world.end_batches()
    assert not world.go(way="request", price=2 * PRICE)
    assert world.ledger() == [("answered", 20, pytest.approx(20 * PRICE / 1e6))], "at the price it was sent for"
    assert world.done.usd == pytest.approx(20 * PRICE / 1e6)
    assert len(vectors(world.database, "doc", SPACE)) == 20
    assert not set(teller.given) & set(world.server.billed_by_batch)


def test_batches_keep_their_limits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch, inputs=6, lines=2, line_inputs=3)
    assert world.go().batches == 4
    assert rows(world.database, "SELECT texts, lines FROM store.batches ORDER BY created_at") == [
        (6, 2), (6, 2), (6, 2), (2, 1),
    ]  # fmt: skip
    world.end_batches()
    assert not world.go()
    assert world.stored() == DOCS
    small_batches(monkeypatch, file_bytes=2_000)
    world.go("step")
    sizes = [file["bytes"] for file in world.server.files._files.values() if file["purpose"] == "batch"]
    assert max(sizes) <= 2_000


@pytest.mark.parametrize("kind", ["expired", "cancelled"])
def test_what_a_batch_had_no_time_for_is_sent_again(world: World, kind: str) -> None:
    world.server.batch_next(BatchOutcome(kind, share=0.5))
    world.go()
    world.end_batches()
    waiting = world.go()
    assert (waiting.texts, waiting.batches) == (12, 1)  # two lines of four were done
    assert world.states() == ["taken_in", "submitted"]
    assert len(world.stored()) == 8
    world.end_batches()
    assert not world.go()
    assert world.stored() == DOCS
    world.billed_once()
    assert sum(row[1] for row in world.ledger()) == world.server.ledger.tokens_by_batch


def test_lines_of_which_nothing_is_said_are_sent_again(world: World) -> None:
    world.server.batch_next(BatchOutcome("expired", share=0.5), BatchOutcome("partly", share=0.5))
    for left in (12, 8):
        world.go()
        world.end_batches()
        for batch in world.server.batches._batches.values():
            batch.shown["error_file_id"] = None
        assert world.go().texts == left
    # Of a batch that expired they were not done. One that was completed may have billed for them.
    at_risk = rows(world.database, "SELECT usd_at_risk FROM store.embedding_requests ORDER BY id")
    assert at_risk == [(0,), (pytest.approx(16 * PRICE / 1e6),), (0,)]
    world.end_batches()
    assert not world.go()
    assert world.stored() == DOCS
    world.billed_once()


@pytest.mark.parametrize("failures_in", ["errors", "output"])
@pytest.mark.parametrize("status", [429, 500])
def test_lines_that_failed_for_a_while_are_sent_again(world: World, status: int, failures_in: str) -> None:
    world.server.batch_next(BatchOutcome("partly", share=0.4, status_codes=(status,), failures_in=failures_in))
    world.go()
    world.end_batches()
    assert world.go().texts == 12
    world.end_batches()
    assert not world.go()
    assert world.stored() == DOCS
    world.billed_once()


def test_lines_that_are_refused_are_told_and_not_sent_again_at_once(world: World) -> None:
    world.server.batch_next(BatchOutcome("partly", share=0.4, status_codes=(400,)))
    world.go(ranges=world.ranges[:1])
    world.end_batches()
    with pytest.raises(EmbeddingError, match=r"6 of 10 texts were not embedded: status 400.*could not be processed"):
        world.go()  # the other range's texts are sent all the same
    assert len(world.stored()) == 4
    assert world.states() == ["taken_in", "submitted"]
    assert world.claims() == 10
    assert world.go().texts == 16  # the next run sends them again
    world.end_batches()
    assert not world.go()
    assert world.stored() == DOCS
    world.billed_once()


def test_a_batch_that_is_refused_as_a_whole_is_told(world: World) -> None:
    world.server.batch_next("failed")
    world.go()
    world.end_batches()
    with pytest.raises(EmbeddingError, match=r"batch_0+1 .*20 texts, was refused.*line 1: invalid_json_line"):
        world.go()
    assert world.claims() == 0
    assert world.states() == ["failed"]
    assert world.ledger() == [("failed", 0, 0)]
    world.go()
    world.end_batches()
    assert not world.go()
    world.billed_once()


def test_an_account_without_credit_is_not_asked_over_and_over(world: World) -> None:
    world.server.fail_next("quota", path="/v1/batches", method="POST")
    with pytest.raises(RefusedError, match="no credit"):
        world.go()
    assert world.states() == ["abandoned"]
    assert (world.claims(), world.ledger()) == (0, [("failed", 0, 0)])


@pytest.mark.parametrize("damage", ["short", "swapped-index", "nan", "zero"])
def test_an_unusable_answer_is_asked_for_once_more(world: World, damage: str) -> None:
    world.server.batch_next(BatchOutcome(damage=damage), BatchOutcome(damage=damage))
    world.go()
    world.end_batches()
    assert world.go().texts == 4
    assert len(world.stored()) == 16
    assert world.done.usd_at_risk > 0
    world.end_batches()
    with pytest.raises(EmbeddingError, match=r"4 of 4 texts were not embedded: .*\(twice\)"):
        world.go()
    assert world.claims() == 0
    assert world.go().texts == 4
    world.end_batches()
    assert not world.go()
    assert world.stored() == DOCS
    at_risk = rows(world.database, "SELECT sum(usd_at_risk) FROM store.embedding_requests")[0][0]
    spent = rows(world.database, "SELECT sum(usd) FROM store.embedding_requests")[0][0]
    assert spent + at_risk == pytest.approx(world.server.ledger.tokens_by_batch * PRICE / 1e6)


def test_vectors_of_another_length_are_told_at_once(world: World) -> None:
    world.server.batch_next(BatchOutcome(damage="wrong-dimension"))
    world.go()
    world.end_batches()
    with pytest.raises(EmbeddingError, match=r"vectors of 6[35] numbers where the space has 64"):
        world.go()
    assert len(world.stored()) == 16


def test_shuffled_answers_go_to_their_texts(world: World) -> None:
    world.server.batch_next(BatchOutcome(damage="reordered"))
    world.go()
    world.end_batches()
    assert not world.go()
    assert world.stored() == DOCS


def test_a_full_queue_is_filled_as_far_as_it_goes(world: World) -> None:
    world.server.batches._batch_rules = BatchRules(max_enqueued_tokens=30)
    world.go()  # 40 tokens
    world.end_batches()
    waiting = world.go()
    assert world.states() == ["failed", "submitted"]
    assert (waiting.texts, waiting.unsent, waiting.batches) == (12, 8, 1), "whole lines: 24 tokens of 30"
    assert "8 more once the account's queue has room" in str(waiting)
    assert world.go().unsent == 8  # nothing has ended: the queue is full
    assert world.states() == ["failed", "submitted"]
    world.end_batches()
    waiting = world.go()
    assert (waiting.texts, waiting.unsent) == (8, 0)
    world.end_batches()
    assert not world.go()
    assert world.stored() == DOCS
    world.billed_once()


def test_a_full_queue_that_names_no_limit_is_halved(world: World) -> None:
    full = BatchOutcome("failed", code="token_limit_exceeded", message="Too many tokens.", line=None)
    world.server.batch_next(full, full)
    world.go()
    world.end_batches()
    waiting = world.go()
    assert (waiting.texts, waiting.unsent) == (8, 12), "two lines, 16 of 20 tokens"
    world.end_batches()
    waiting = world.go()
    assert (waiting.texts, waiting.unsent) == (4, 16)
    for _ in range(6):
        world.end_batches()
        world.go()
    assert world.stored() == DOCS
    world.billed_once()


def test_a_text_that_no_queue_takes_is_told(world: World) -> None:
    full = BatchOutcome("failed", code="token_limit_exceeded", message="Too many tokens.", line=None)
    world.server.batch_next(*[full] * 9)
    with pytest.raises(EmbeddingError, match="with 1 texts, was refused by the service: token_limit_exceeded"):  # noqa: PT012
        for _ in range(9):
            world.go()
            world.end_batches()


def test_the_budget_stops_before_it_is_exceeded(world: World) -> None:
    budget = 25 * PRICE / 1e6  # of 40 tokens; a line of four texts has 8
    with pytest.raises(BudgetReachedError, match="the next request of 4 texts"):
        world.go(max_usd=budget)
    assert world.claims() == 12
    with pytest.raises(BudgetReachedError):
        world.go(max_usd=budget)
    assert world.claims() == 12
    world.end_batches()
    with pytest.raises(BudgetReachedError):
        world.go(max_usd=budget)
    assert len(world.stored()) == 12
    assert world.server.ledger.tokens_by_batch <= 25
    assert world.go(max_usd=1.0).texts == 8
    world.end_batches()
    assert not world.go(max_usd=1.0)
    world.billed_once()


def test_a_budget_without_a_price_is_refused(world: World) -> None:
    with pytest.raises(EmbeddingError, match="QBENCH_PRICES"):
        world.go(max_usd=1.0, price=None)
    world.go(price=None)
    world.end_batches()
    assert not world.go(price=None)
    assert world.ledger()[0][2] is None


def test_a_text_over_the_limit_is_sent_in_parts(
    clean_database: Database, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, longer = (" ".join(f"{name}{n}" for n in range(count)) for name, count in (("long", 50), ("longer", 200)))
    ranges = stage(clean_database, tmp_path, [*TITLES, long, longer])
    ensure_space(clean_database, SPACE)
    limits = Limits(inputs=8, tokens_per_input=20, tokens_per_request=100)
    with service_for(server.base_url, limits=limits) as service:
        world = World(clean_database, server, ranges, service)
        server.batch_next(BatchOutcome("expired", share=0.6))
        while world.go():
            world.end_batches()
    found = dict(rows(clean_database, f"SELECT pieces, count(*) FROM {SPACE.name}.doc_embeddings GROUP BY 1"))
    assert found.pop(1) == 20
    assert sorted(found.values()) == [1, 1]
    assert min(found) >= 3
    assert max(found) >= 10, "more parts than a line holds"
    assert world.claims() == 0
    sent = [text for text in server.billed_by_batch if text.startswith("longer")]
    weights = [count_words(text) for text in sent]
    mean = np.average([vector_of(text, 64, MODEL) for text in sent], axis=0, weights=weights)
    stored = vectors(clean_database, "doc", SPACE)[text_hash(f"{longer}\n")]
    assert np.abs(stored - mean / np.linalg.norm(mean)).max() < 1e-3


def test_what_was_stored_meanwhile_is_left_alone(world: World) -> None:
    world.go()
    execute(
        world.database,
        f"INSERT INTO {SPACE.name}.doc_embeddings (text_hash, embedding, provenance) "
        "SELECT text_hash, array_fill(0.125::real, ARRAY[64])::public.vector::public.halfvec, 'qdrant' "
        "FROM store.batch_texts WHERE place = 0",
    )
    world.end_batches()
    assert not world.go()
    counted = dict(rows(world.database, f"SELECT provenance, count(*) FROM {SPACE.name}.doc_embeddings GROUP BY 1"))
    assert counted == {"qdrant": 5, "openai_batch": 15}
    assert world.claims() == 0


def test_a_batch_nobody_knows_any_more_is_told_and_can_be_given_up(world: World) -> None:
    world.go(ranges=world.ranges[:1])
    [(ours, theirs)] = rows(world.database, "SELECT id::text, remote_id FROM store.batches")
    del world.server.batches._batches[theirs]
    with pytest.raises(EmbeddingError, match=f"{theirs}.*404.*qbench batches --forget {ours}"):
        world.go()
    assert world.claims() == 20, "the other range was sent; the lost batch is not sent again"
    assert world.forget("nonsense") is None
    given_up = world.forget(theirs)
    assert given_up is not None
    assert given_up.texts == 10
    assert world.forget(ours) is None
    assert rows(world.database, "SELECT state, usd, usd_at_risk > 0 FROM store.embedding_requests ORDER BY id") == [
        ("failed", 0.0, True), ("in_flight", pytest.approx(20 * PRICE / 1e6), False)
    ]  # fmt: skip
    assert world.go().texts == 20


def test_a_batch_that_is_alive_is_not_given_up(world: World) -> None:
    world.go()
    told = r"batch_0+1 .*is at the service, validating, 0 of 0 lines done: it is not given up"
    with pytest.raises(EmbeddingError, match=told):
        world.forget(world.name())
    world.end_batches()
    with pytest.raises(EmbeddingError, match=r"is at the service, completed: .*`qbench run` takes in what it brought"):
        world.forget("batch_00000001")
    assert (world.claims(), world.states()) == (20, ["submitted"])
    assert not world.go()
    world.billed_once()
    assert world.ledger() == [("answered", 40, pytest.approx(40 * PRICE / 1e6))]


@pytest.mark.parametrize("fault", ["503", "bad-key", "quota"])
def test_a_service_that_cannot_be_asked_gives_no_batch_up(world: World, fault: str) -> None:
    world.go()
    world.server.fail_next(*[fault] * 4, path="/v1/batches", method="GET")
    with pytest.raises(EmbeddingError):
        world.forget("batch_00000001")
    assert (world.claims(), world.states()) == (20, ["submitted"])


def test_a_batch_whose_results_are_gone_can_be_given_up(world: World) -> None:
    world.server.batch_next(BatchOutcome("partly", share=0.5))
    world.go()
    world.end_batches()
    world.service.delete_file(str(world.server.batches._batches["batch_00000001"].shown["error_file_id"]))
    with pytest.raises(EmbeddingError, match=f"404.*qbench batches --forget {world.name()}"):
        world.go()
    assert world.forget("batch_00000001")
    assert len(world.stored()) == 8
    assert world.go().texts == 12


@pytest.mark.parametrize("made", [True, False])
def test_a_batch_whose_answer_was_lost_is_looked_for_before_it_is_given_up(world: World, made: bool) -> None:
    fault = "reset-mid-body" if made else "500"
    world.server.fail_next(fault, path="/v1/batches", method="POST")
    world.server.fail_next("quota", path="/v1/batches", method="GET")
    with pytest.raises(EmbeddingError, match="may have been made all the same"):
        world.go()
    assert (world.claims(), world.states()) == (20, ["preparing"])
    if made:
        with pytest.raises(EmbeddingError, match="is at the service, validating"):
            world.forget(world.name())
        assert world.go().texts == 20
    else:
        assert world.forget(world.name())
        assert not world.server.files.names(), "so that a request still on its way comes to nothing"
        assert rows(world.database, "SELECT usd, usd_at_risk FROM store.embedding_requests") == [(0, 0)]
        assert world.go().texts == 20
    assert len(world.server.batches._batches) == 1
    world.end_batches()
    assert not world.go()
    world.billed_once()
    assert sum(row[2] for row in world.ledger()) == pytest.approx(40 * PRICE / 1e6)


def test_a_batch_that_is_taken_in_meanwhile_is_not_given_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.go()
    given_up: list[object] = ["not yet"]
    with writing(world.database, SPACE) as storing:
        [batch] = batch_store.outstanding(storing, SPACE.name)
        thread = threading.Thread(target=lambda: given_up.append(world.forget(world.name())))
        thread.start()
        while f"waiting for {SPACE.name}.embeddings" not in caplog.text:
            time.sleep(0.01)
        claims = [claim for line in (0, 1, 2, 3, 4) for claim in batch_store.claims_of(storing, batch, line)]
        found = np.stack([vector_of(f"{n}", 64, MODEL) for n in range(20)])
        batch_store.store_line(storing, SPACE, batch, claims, found, 40, "openai_batch")
        batch_store.end(storing, batch, account(), "taken_in")
    thread.join(30)
    assert given_up[1:] == [None]
    booked = rows(world.database, "SELECT state, tokens, usd_at_risk FROM store.embedding_requests")
    assert (world.states(), booked) == (["taken_in"], [("answered", 40, 0)])


def test_a_batch_ends_once(world: World) -> None:
    world.go()
    with writing(world.database, SPACE) as storing:
        [batch] = batch_store.outstanding(storing, SPACE.name)
        assert len(batch_store.end(storing, batch, account(), "failed", error="first")) == 20
        booked = rows(world.database, "SELECT * FROM store.embedding_requests")
        assert batch_store.end(storing, batch, account(), "abandoned", tokens_at_risk=40) == set()
    assert rows(world.database, "SELECT state, error FROM store.batches") == [("failed", "first")]
    assert rows(world.database, "SELECT * FROM store.embedding_requests") == booked


@pytest.mark.parametrize("outcome", ["completed", "partly", "expired", "failed"])
def test_files_are_gone_once_a_batch_is_taken_in(world: World, outcome: str) -> None:
    world.server.batch_next(BatchOutcome(outcome, status_codes=(500,)))
    world.go()
    assert len(world.server.files.names()) == 1
    world.end_batches()
    with nullcontext() if outcome != "failed" else pytest.raises(EmbeddingError, match="was refused"):
        world.go()
    while world.claims():
        world.end_batches()
        world.go()
    assert not world.server.files.names()
    world.billed_once()


def test_the_input_of_a_batch_that_was_refused_is_gone(world: World) -> None:
    world.server.fail_next("quota", path="/v1/batches", method="POST")
    with pytest.raises(RefusedError):
        world.go()
    assert not world.server.files.names()


def test_files_that_cannot_be_deleted_stay_and_that_is_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.go()
    world.end_batches()
    world.server.fail_when(lambda *_: True, "bad-key", path="/v1/files", method="DELETE")
    assert not world.go()
    assert world.states() == ["taken_in"]
    assert world.stored() == DOCS
    said = [record.getMessage() for record in caplog.records if "stays at the service" in record.getMessage()]
    assert len(said) == 1
    assert "does not accept the key" in said[0]


def test_who_has_lost_the_lock_writes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    original = batch_store.enter

    def enter(*given: Any) -> Any:
        rows(world.database, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        return original(*given)

    monkeypatch.setattr(batch_store, "enter", enter)
    with pytest.raises(psycopg.OperationalError):
        world.go()
    assert (world.claims(), world.states(), world.ledger()) == (0, [], [])
    assert not world.server.files.names()


def test_a_connection_lost_while_reading_results_goes_on(world: World) -> None:
    world.go()
    world.end_batches()
    world.server.fail_next("reset-mid-body", "reset", "503", path="/v1/files", method="GET")
    assert not world.go()
    assert world.stored() == DOCS


def test_a_service_that_is_away_leaves_everything_as_it_is(world: World) -> None:
    world.go()
    world.end_batches()
    world.server.fail_next(*["500"] * 4, path="/v1/batches", method="GET")
    with pytest.raises(EmbeddingError, match="Given up after 4 attempts"):
        world.go()
    assert world.claims() == 20
    assert not world.go()
    world.billed_once()


@pytest.mark.parametrize("fault", ["500", "reset", "reset-mid-body", "html-502", "not-json"])
def test_a_lost_answer_makes_no_second_batch(world: World, fault: str) -> None:
    world.server.fail_next(fault, path="/v1/batches", method="POST")
    assert world.go().batches == 1
    assert len(world.server.batches._batches) == 1
    world.end_batches()
    assert not world.go()
    world.billed_once()


KILLER = """
import json, os, signal, sys
from qbench_dagster.adapters import batch_store
from qbench_dagster.adapters.batching import advance
from qbench_dagster.core.tally import Embedding
from qbench_dagster.adapters.openai_batches import OpenAIBatches
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.core.ranges import CaseRange
from qbench_dagster_tests.adapters.test_batching import SPACE, account, service_for

def kill_at(owner, name, when, count):
    original, calls = getattr(owner, name), []
    def call(*given, **named):
        calls.append(name)
        if when == "before" and len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*given, **named)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, call)

def run(url, base_url, where, count, ranges):
    owner, name, when = where.split(":")
    kill_at({"store": batch_store, "service": OpenAIBatches}[owner], name, when, count)
    with Database(url) as database, service_for(base_url) as service:
        keyed = [CaseRange(*each) for each in ranges]
        advance(database, SPACE, "doc", keyed, service, account(), Embedding(), lambda _: None)

for line in sys.stdin:
    child = os.fork()
    if not child:
        run(*json.loads(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Kill = Callable[..., None]


@pytest.fixture(scope="module")
def killer() -> Iterator[Kill]:
    """Does a pass in a process of its own that is killed at the named call; its parent has imported everything."""
    command = [sys.executable, "-c", KILLER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdin
        assert process.stdout
        asked, answered = process.stdin, process.stdout

        def kill(world: World, where: str, count: int = 1) -> None:
            ranges = [(each.key, each.lower, each.upper) for each in world.ranges]
            asked.write(json.dumps([world.database.url, world.server.base_url, where, count, ranges]) + "\n")
            asked.flush()
            assert answered.readline().strip() == str(-signal.SIGKILL)

        yield kill
        asked.close()


@pytest.mark.parametrize(
    ("where", "made"),
    [
        ("store:enter:after", 0),
        ("service:upload:after", 0),
        ("store:note_uploaded:after", 0),
        ("service:create:after", 1),
        ("store:note_submitted:after", 1),
    ],
)
def test_killed_while_sending(world: World, killer: Kill, where: str, made: int) -> None:
    killer(world, where)
    assert len(world.server.batches._batches) == made
    assert world.claims() == 20
    waiting = world.go()
    assert (waiting.texts, waiting.batches) == (20, 1)
    assert len(world.server.batches._batches) == 1
    assert world.states() == (["submitted"] if made else ["abandoned", "submitted"])
    world.end_batches()
    assert not world.go()
    assert world.stored() == DOCS
    world.billed_once()
    assert sum(row[2] for row in world.ledger()) == pytest.approx(40 * PRICE / 1e6)


def test_killed_while_entering_leaves_nothing(world: World, killer: Kill) -> None:
    killer(world, "store:reserve:after")
    assert (world.claims(), world.states(), world.ledger()) == (0, [], [])
    assert world.go().texts == 20


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("store:store_line:before", 8),
        ("store:store_vectors:after", 8),  # before the end of its transaction
        ("store:store_line:after", 12),
        ("store:end:before", 20),
    ],
)
def test_killed_while_taking_in(world: World, killer: Kill, where: str, expected: int) -> None:
    world.go()
    world.end_batches()
    killer(world, where, count=1 if ":end:" in where else 3)
    stored = len(world.stored())
    assert stored == expected
    assert world.claims() == 20 - stored
    assert not world.go()
    assert world.done.embedded == 20 - stored
    assert world.stored() == DOCS
    world.billed_once()
    assert world.ledger() == [("answered", 40, pytest.approx(40 * PRICE / 1e6))]


def test_a_create_that_is_served_after_the_kill_comes_to_nothing(world: World, killer: Kill) -> None:
    killer(world, "store:note_uploaded:after")
    [(name, file_id)] = rows(world.database, "SELECT id::text, file_id FROM store.batches")
    world.go()
    with pytest.raises(RefusedError):
        world.service.create(file_id, name, 0.0)
    assert len(world.server.batches._batches) == 1


def test_one_pass_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes side by side would both send what both find missing."""
    held: list[bool] = []
    monkeypatch.setattr(batch_store, "enter", watching(world, held, batch_store.enter))
    with world.database.connection("test") as connection:
        assert not batch_store.in_use(connection, SPACE)
    world.go()
    assert held == [True]


def watching(world: World, held: list[bool], original: Callable[..., Any]) -> Callable[..., Any]:
    def enter(*given: Any) -> Any:
        with world.database.connection("test") as connection:
            held.append(batch_store.in_use(connection, SPACE))
        return original(*given)

    return enter


def test_batches_are_listed(world: World) -> None:
    for kind in KINDS:
        world.go(kind)
    listed = batch_store.list_batches(world.database)
    assert [(row["kind"], row["state"], row["status"]) for row in listed] == [
        ("step", "submitted", "validating"), ("doc", "submitted", "validating"),
    ]  # fmt: skip
    assert all(re.fullmatch("[0-9a-f-]{36}", row["id"]) for row in listed)
