"""Embedding for money: the ledger, the budget, requests filled and divided, what a failure leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from qbench_dagster.adapters import sending
from qbench_dagster.adapters.embedders import AtRisk, EmbeddingError, LexicalEmbedder, RequestTooLargeError
from qbench_dagster.adapters.embedding import embed_missing
from qbench_dagster.adapters.ledger import Account, BudgetReachedError, mark_lost, reserve, settle, spend_by_run, spent
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import Kind, Space, ensure_space
from qbench_dagster.core import lexical
from qbench_dagster.core.packing import average
from qbench_dagster.core.ranges import CaseRange
from qbench_dagster.core.requests import Answer, Limits
from qbench_dagster.core.tally import Embedding
from qbench_dagster.core.texts import doc_text, text_hash
from qbench_dagster_tests.adapters.test_embedding import stage, vectors
from qbench_dagster_tests.support import SPACE, rows

DOLLAR_A_CHARACTER = 1_000_000.0
"""Characters are the tokens here, so budgets are numbers of characters."""


class Service(LexicalEmbedder):
    """A paid embedder without a network: it counts what it bills, and does what a test tells it to."""

    paid = True
    provenance = "service"

    def __init__(
        self,
        *,
        limits: Limits = Limits(4, 10_000, 10_000),  # noqa: B008 (frozen)
        concurrency: int = 3,
        answer: Callable[[int, Sequence[str]], None] = lambda *_: None,
    ) -> None:
        super().__init__(64)
        self.limits = limits
        self.concurrency = concurrency
        self.token_ceiling: int | None = None
        self.requests: list[list[str]] = []
        self.billed: list[str] = []
        self.most_at_once = self.stopped = 0
        self._answer = answer
        self._now = 0
        self._lock = threading.Lock()

    def request(self, texts: Sequence[str], at_risk: AtRisk | None = None) -> Answer:  # noqa: ARG002
        with self._lock:
            self.requests.append(list(texts))
            number = len(self.requests)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            self._answer(number, texts)
            self.billed += texts
            return Answer(lexical.embed(texts, 64), sum(map(len, texts)))
        finally:
            with self._lock:
                self._now -= 1

    def stop(self) -> None:
        self.stopped += 1


def account(max_usd: float | None = None, run_id: str = "run") -> Account:
    return Account(run_id, DOLLAR_A_CHARACTER, max_usd)


def embed(
    database: Database,
    ranges: Sequence[CaseRange],
    service: Service,
    kind: Kind = "doc",
    *,
    max_usd: float | None = None,
) -> Embedding:
    done = Embedding()
    embed_missing(database, SPACE, kind, ranges, service, account(max_usd), lambda _: None, done)
    return done


def ledger(database: Database) -> list[tuple[str, int, float | None, float]]:
    return rows(database, "SELECT state, texts, usd, usd_at_risk FROM store.embedding_requests ORDER BY id")


@pytest.fixture
def ranges(clean_database: Database, tmp_path: Path) -> list[CaseRange]:
    ensure_space(clean_database, SPACE)
    return stage(clean_database, tmp_path, [f"Title {n:02}" for n in range(30)])


CHARACTERS = 9  # of "Title 00\n"


def test_requests_are_filled_across_partitions(clean_database: Database, ranges: list[CaseRange]) -> None:
    assert len(ranges) == 3
    service = Service()
    done = embed(clean_database, ranges, service)
    assert sorted(map(len, service.requests)) == [2, *[4] * 7]
    assert [partition.embedded for partition in done.partitions.values()] == [10, 10, 10]
    assert (done.requests, done.tokens, done.usd) == (8, 30 * CHARACTERS, pytest.approx(30 * CHARACTERS))
    assert service.most_at_once <= service.concurrency


def test_every_answered_request_is_entered_with_what_was_billed(
    clean_database: Database, ranges: list[CaseRange]
) -> None:
    embed(clean_database, ranges, Service())
    assert [entry[0] for entry in ledger(clean_database)] == ["answered"] * 8
    with clean_database.connection("test") as connection:
        so_far = spent(connection, SPACE.name)
    assert so_far == {"usd": 30 * CHARACTERS, "usd_at_risk": 0, "tokens": 30 * CHARACTERS, "requests": 8}
    (by_run,) = spend_by_run(clean_database, SPACE.name)
    assert (by_run["run_id"], by_run["asset"], by_run["model"]) == ("run", "doc_embeddings", "lexical-v1")
    assert (by_run["requests"], by_run["texts"], by_run["usd"]) == (8, 30, 30 * CHARACTERS)


def test_an_entry_is_made_before_the_request_is_sent(clean_database: Database, ranges: list[CaseRange]) -> None:
    seen: list[bool] = []

    def look(number: int, texts: Sequence[str]) -> None:
        del number
        held = [entry for entry in ledger(clean_database) if entry[0] == "in_flight"]
        seen.append(any(entry[1] == len(texts) for entry in held))

    embed(clean_database, ranges, Service(answer=look, concurrency=1))
    assert seen == [True] * 8


@pytest.mark.parametrize("requests", [0, 1, 3, 7])
def test_the_budget_stops_before_the_request_that_would_exceed_it(
    clean_database: Database, ranges: list[CaseRange], requests: int
) -> None:
    budget = requests * 4 * CHARACTERS + CHARACTERS
    service = Service()
    with pytest.raises(BudgetReachedError) as error:
        embed(clean_database, ranges, service, max_usd=budget)
    assert len(service.requests) == requests, "what fits is sent, what does not is not"
    assert len(vectors(clean_database, "doc")) == len(service.billed) == requests * 4
    assert f"${budget:,.4f}" in str(error.value)
    assert "higher QBENCH_MAX_USD" in str(error.value)
    assert service.stopped == 0, "what was on its way is waited for"
    first = {text_hash(doc_text(f"Title {n:02}", None)) for n in range(requests * 4)}
    assert set(vectors(clean_database, "doc")) == first, "whole cases, in the order of cases"
    # Resumed with a higher budget, every text has been billed once.
    again = Service()
    embed(clean_database, ranges, again, max_usd=30 * CHARACTERS)
    assert sorted(service.billed + again.billed) == sorted(f"Title {n:02}\n" for n in range(30))


def test_a_budget_needs_a_price(clean_database: Database, ranges: list[CaseRange]) -> None:
    service = Service()
    with pytest.raises(EmbeddingError, match=r"price of lexical-v1 is not known.*QBENCH_PRICES"):
        embed_missing(
            clean_database, SPACE, "doc", ranges, service, Account("run", None, 5.0), lambda _: None, Embedding()
        )
    assert service.requests == []


def test_without_a_price_requests_are_counted_all_the_same(clean_database: Database, ranges: list[CaseRange]) -> None:
    embed_missing(clean_database, SPACE, "doc", ranges, Service(), Account("run"), lambda _: None, Embedding())
    assert {entry[2] for entry in ledger(clean_database)} == {None}
    assert sum(entry[1] for entry in ledger(clean_database)) == 30


def test_requests_of_a_killed_process_count_as_spent(clean_database: Database, ranges: list[CaseRange]) -> None:
    with clean_database.connection("test") as connection:
        reserve(connection, SPACE.name, "doc", "m", account(), texts=4, tokens=100)
        done = reserve(connection, SPACE.name, "doc", "m", account(), texts=4, tokens=50)
        settle(connection, done, account(), state="answered", tokens=50)
    with pytest.raises(BudgetReachedError, match=r"\$50.0000 spent and \$100.0000 perhaps billed without an answer"):
        embed(clean_database, ranges, Service(), max_usd=150 + CHARACTERS)
    assert ledger(clean_database)[0] == ("lost", 4, 0, 100)
    with clean_database.connection("test") as connection:
        assert mark_lost(connection, SPACE.name) == 0


def test_a_fatal_error_keeps_what_was_paid_for(clean_database: Database, ranges: list[CaseRange]) -> None:
    third = threading.Event()

    def answer(number: int, texts: Sequence[str]) -> None:
        del texts
        if number == 2:
            third.wait(30)
            raise EmbeddingError("no credit left", tokens_at_risk=7)
        if number == 3:
            third.set()
            time.sleep(0.2)  # still on its way when the second fails

    service = Service(answer=answer)
    with pytest.raises(EmbeddingError, match="no credit left"):
        embed(clean_database, ranges, service)
    assert len(vectors(clean_database, "doc")) == len(service.billed) >= 8
    assert service.stopped == 1
    states = [entry[0] for entry in ledger(clean_database)]
    assert states.count("answered") * 4 == len(service.billed)
    assert "in_flight" not in states
    assert sum(entry[3] for entry in ledger(clean_database)) == 7


def test_what_an_earlier_attempt_may_have_cost_is_remembered(clean_database: Database, ranges: list[CaseRange]) -> None:
    class Shaky(Service):
        def request(self, texts: Sequence[str], at_risk: AtRisk | None = None) -> Answer:
            answer = super().request(texts)
            assert at_risk is not None
            at_risk(3)  # tried again after that, and the last attempt but one told nobody
            return Answer(answer.vectors, answer.tokens, tokens_at_risk=5)

    done = embed(clean_database, ranges, Shaky())
    assert done.usd_at_risk == sum(entry[3] for entry in ledger(clean_database)) == 8 * 5


def test_answers_may_come_in_any_order(clean_database: Database, ranges: list[CaseRange]) -> None:
    embed(clean_database, ranges, Service(answer=lambda number, _: time.sleep(0.05 * (number % 3)), concurrency=4))
    stored = vectors(clean_database, "doc")
    for n in range(30):
        text = doc_text(f"Title {n:02}", None)
        assert np.abs(stored[text_hash(text)] - lexical.embed([text], 64)[0]).max() < 1e-3


def test_a_request_that_is_too_large_is_divided(clean_database: Database, ranges: list[CaseRange]) -> None:
    def answer(number: int, texts: Sequence[str]) -> None:
        del number
        if sum(map(len, texts)) > 2 * CHARACTERS:
            raise RequestTooLargeError("too large")

    service = Service(answer=answer)
    done = embed(clean_database, ranges, service)
    assert len(vectors(clean_database, "doc")) == len(service.billed) == 30
    assert len(set(service.billed)) == 30
    states = [entry[0] for entry in ledger(clean_database)]
    assert (states.count("answered"), states.count("failed")) == (done.requests, len(states) - done.requests)
    assert sum(entry[2] or 0 for entry in ledger(clean_database)) == 30 * CHARACTERS


def test_once_the_ceiling_is_known_no_larger_request_is_sent(clean_database: Database, ranges: list[CaseRange]) -> None:
    service = Service(concurrency=1)
    service.token_ceiling = 2 * CHARACTERS
    embed(clean_database, ranges, service)
    assert {len(texts) for texts in service.requests} == {2}


def test_a_text_above_the_limit_goes_in_pieces_and_is_averaged(clean_database: Database, tmp_path: Path) -> None:
    ensure_space(clean_database, SPACE)
    long = " ".join(f"word{n}" for n in range(60))
    ranges = stage(clean_database, tmp_path, ["Short", long, "Also short"])
    service = Service(limits=Limits(4, 100, 150))
    done = embed(clean_database, ranges, service)
    sent = [text for request in service.requests for text in request]
    parts = [text for text in sent if "word" in text]
    assert len(parts) > 3
    assert all(len(text) <= 100 for text in sent)
    assert sorted("".join(parts).split()) == sorted(long.split()), "nothing is cut off"
    assert done.in_pieces == 1
    stored = rows(clean_database, f"SELECT text_hash, pieces FROM {SPACE.name}.doc_embeddings ORDER BY pieces")
    assert [pieces for _, pieces in stored] == [1, 1, len(parts)]
    expected = average(lexical.embed(parts, 64), [len(part) for part in parts])
    assert np.abs(vectors(clean_database, "doc")[text_hash(doc_text(long, None))] - expected).max() < 1e-3


def test_a_text_the_service_finds_longer_than_counted_is_divided(clean_database: Database, tmp_path: Path) -> None:
    ensure_space(clean_database, SPACE)
    long = " ".join(f"word{n}" for n in range(60))
    ranges = stage(clean_database, tmp_path, ["Short", long])

    def answer(number: int, texts: Sequence[str]) -> None:
        del number
        if any(len(text) > 120 for text in texts):
            raise RequestTooLargeError("maximum context length")

    done = embed(clean_database, ranges, Service(answer=answer))
    assert done.in_pieces == 1
    assert len(vectors(clean_database, "doc")) == 2


def test_a_service_that_refuses_every_size_is_given_up(clean_database: Database, ranges: list[CaseRange]) -> None:
    def answer(number: int, texts: Sequence[str]) -> None:
        raise RequestTooLargeError("a request of 9 tokens is too large")

    with pytest.raises(RequestTooLargeError, match="too large"):
        embed(clean_database, ranges, Service(answer=answer))
    assert {entry[0] for entry in ledger(clean_database)} == {"failed"}


def test_a_text_that_is_a_case_and_a_step_is_paid_for_once(clean_database: Database, tmp_path: Path) -> None:
    ensure_space(clean_database, SPACE)
    ranges = stage(clean_database, tmp_path, ["Do 1", "Do 2", "Else"])  # steps say "Do 0" to "Do 2", and "Log in"
    docs, steps = Service(), Service()
    embed(clean_database, ranges, docs, "doc")
    done = embed(clean_database, ranges, steps, "step")
    assert done.shared == 2
    assert set(docs.billed) & set(steps.billed) == set()
    assert len(vectors(clean_database, "step")) == 4
    for text in ("Do 1\n", "Do 2\n"):
        assert (
            vectors(clean_database, "step")[text_hash(text)] == vectors(clean_database, "doc")[text_hash(text)]
        ).all()


def test_a_prefix_is_sent_and_is_no_part_of_what_names_a_text(clean_database: Database, tmp_path: Path) -> None:
    prefixed = Space("space_lexical_64_p", "lexical-v1", 64, "halfvec", text_prefix="passage: ")
    for space in (SPACE, prefixed):
        ensure_space(clean_database, space)
    long = " ".join(f"word{n}" for n in range(40))
    ranges = stage(clean_database, tmp_path, ["Short", long])
    plain, service = Service(), Service(limits=Limits(4, 100, 400))
    embed(clean_database, ranges, plain)
    embed_missing(clean_database, prefixed, "doc", ranges, service, account(), lambda _: None, Embedding())
    sent = [text for request in service.requests for text in request]
    assert len(sent) > 3
    assert all(text.startswith("passage: ") and len(text) <= 100 for text in sent)
    assert sorted("".join(text.removeprefix("passage: ") for text in sent).split()) == sorted(["Short", *long.split()])
    assert vectors(clean_database, "doc").keys() == vectors(clean_database, "doc", prefixed).keys()
    key = text_hash(doc_text("Short", None))
    expected = lexical.embed(["passage: Short\n"], 64)[0]
    assert np.abs(vectors(clean_database, "doc", prefixed)[key] - expected).max() < 1e-3


def test_the_budget_holds_over_attempts_that_may_have_been_billed(
    clean_database: Database, ranges: list[CaseRange]
) -> None:
    attempts: list[int] = []

    class Flaky(Service):
        def request(self, texts: Sequence[str], at_risk: AtRisk | None = None) -> Answer:
            tokens = sum(map(len, texts))
            for attempt in range(8):
                attempts.append(tokens)
                try:
                    at_risk(tokens) if at_risk else None
                except EmbeddingError as error:
                    error.tokens_at_risk = tokens * (attempt + 1)
                    raise
            raise AssertionError("nobody stopped it")

    one = 30 * CHARACTERS
    with pytest.raises(BudgetReachedError, match="perhaps billed"):
        embed(clean_database, ranges, Flaky(limits=Limits(64, 10_000, 10_000)), max_usd=3 * one)
    assert attempts == [one] * 3, "three may have been billed, and a fourth would be more than the budget"
    assert sum(entry[3] for entry in ledger(clean_database)) == 3 * one
    assert sum(entry[2] or 0 for entry in ledger(clean_database)) == 0


def test_what_was_asked_when_the_price_was_unknown_counts_later(
    clean_database: Database, ranges: list[CaseRange]
) -> None:
    embed_missing(
        clean_database, SPACE, "doc", ranges[:1], Service(), Account("run"), lambda _: None, Embedding()
    )  # fmt: skip
    service = Service()
    with pytest.raises(BudgetReachedError, match=f"{10 * CHARACTERS}.0000 spent"):
        embed(clean_database, ranges, service, max_usd=10 * CHARACTERS)
    assert service.requests == []


def test_the_requests_of_one_text_are_entered_together(clean_database: Database, tmp_path: Path) -> None:
    """Half of a text's vectors would be paid for, and lost with the process."""
    ensure_space(clean_database, SPACE)
    ranges = stage(clean_database, tmp_path, [" ".join(f"word{n}" for n in range(60))])
    service = Service(limits=Limits(4, 100, 150))
    with pytest.raises(BudgetReachedError):
        embed(clean_database, ranges, service, max_usd=200)
    assert service.requests == []
    assert {entry[0] for entry in ledger(clean_database)} <= {"failed"}
    done = embed(clean_database, ranges, service, max_usd=1000)
    assert done.requests > 2
    assert len(vectors(clean_database, "doc")) == 1


def test_short_texts_stay_whole_when_a_request_is_divided(clean_database: Database, tmp_path: Path) -> None:
    ensure_space(clean_database, SPACE)
    longs = [" ".join(f"{letter}{n}" for n in range(40)) for letter in "abc"]
    ranges = stage(clean_database, tmp_path, longs)

    def answer(number: int, texts: Sequence[str]) -> None:
        if number == 1:
            raise RequestTooLargeError("too large")

    service = Service(limits=Limits(8, 100, 1000), answer=answer)
    embed(clean_database, ranges, service)
    first, *others = service.requests
    assert len(first) > 4
    owners = [{text.split()[0][0] for text in request} for request in others]
    assert sorted("".join(sorted(owner)) for owner in owners) == ["a", "bc"], "no text is in two requests"


def test_a_prefix_stays_when_a_text_is_divided_again(clean_database: Database, tmp_path: Path) -> None:
    prefixed = Space("space_lexical_64_p", "lexical-v1", 64, "halfvec", text_prefix="passage: ")
    ensure_space(clean_database, prefixed)
    ranges = stage(clean_database, tmp_path, [" ".join(f"word{n}" for n in range(40))])

    def answer(number: int, texts: Sequence[str]) -> None:
        if any(len(text) > 120 for text in texts):
            raise RequestTooLargeError("maximum context length")

    service = Service(answer=answer)
    embed_missing(clean_database, prefixed, "doc", ranges, service, account(), lambda _: None, Embedding())
    assert len(service.billed) > 2
    assert all(text.startswith("passage: ") for text in service.billed)
    said = "".join(text.removeprefix("passage: ") for text in service.billed)
    assert sorted(said.split()) == sorted(f"word{n}" for n in range(40))


def test_who_loses_the_lock_cannot_go_on(clean_database: Database, ranges: list[CaseRange]) -> None:
    """The connection that holds it is the one that stores: a pooler or an administrator may cut it."""

    def answer(number: int, texts: Sequence[str]) -> None:
        if number == 3:
            ours = "SELECT oid FROM pg_database WHERE datname = current_database()"
            held = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = ({ours})"
            assert rows(clean_database, f"SELECT pg_terminate_backend(pid) FROM ({held}) holder") == [(True,)]

    first = Service(answer=answer, concurrency=1)
    with pytest.raises(psycopg.OperationalError):
        embed(clean_database, ranges, first)
    assert len(first.requests) <= 4
    lost = sum(entry[1] for entry in ledger(clean_database) if entry[0] == "in_flight")
    second = Service()
    embed(clean_database, ranges, second)
    assert len(vectors(clean_database, "doc")) == 30
    twice = len(first.billed) + len(second.billed) - 30
    assert twice <= lost
    assert sum(entry[1] for entry in ledger(clean_database) if entry[0] == "lost") == lost


def test_ctrl_c_while_the_budget_lands_keeps_what_is_answered(
    clean_database: Database, ranges: list[CaseRange], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first interruption ends waiting and retries; what is on its way is stored all the same."""
    interrupted = [False]
    wait_for = sending.wait_for

    def interrupt(*arguments: Any, **options: Any) -> Any:
        if service.requests and not interrupted[0] and len(service.requests) >= 3:
            interrupted[0] = True
            raise KeyboardInterrupt
        return wait_for(*arguments, **options)

    service = Service(answer=lambda *_: time.sleep(0.1))
    monkeypatch.setattr(sending, "wait_for", interrupt)
    with pytest.raises(KeyboardInterrupt):
        embed(clean_database, ranges, service, max_usd=3 * 4 * CHARACTERS)
    assert interrupted == [True]
    assert service.stopped == 1
    assert len(vectors(clean_database, "doc")) == len(service.billed) == 12


def test_each_partition_has_its_share_of_the_bill(clean_database: Database, ranges: list[CaseRange]) -> None:
    done = embed(clean_database, ranges, Service(limits=Limits(7, 10_000, 10_000)))
    assert [round(partition.tokens, 6) for partition in done.partitions.values()] == [10 * CHARACTERS] * 3
    assert sum(partition.usd for partition in done.partitions.values()) == pytest.approx(done.usd)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_answer_interrupted_while_it_is_stored_is_stored_all_the_same(
    clean_database: Database, ranges: list[CaseRange], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    store = sending.store_vectors
    calls = [0]

    def interrupted(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == 2 and moment == "before":
            raise KeyboardInterrupt
        store(*arguments)
        if calls[0] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sending, "store_vectors", interrupted)
    service = Service()
    with pytest.raises(KeyboardInterrupt):
        embed(clean_database, ranges, service)
    assert len(vectors(clean_database, "doc")) == len(service.billed) >= 8
    assert "in_flight" not in {entry[0] for entry in ledger(clean_database)}
