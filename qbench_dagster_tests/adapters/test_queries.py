"""Queries as vectors: each distinct one is paid for once, in the ledger and within the budget; drawn ones are free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qbench_dagster.adapters.embedders import EmbeddingError, LexicalEmbedder
from qbench_dagster.adapters.ledger import Account, BudgetReachedError
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.queries import NOISE, draw_questions, embed_log, filters_of_data
from qbench_dagster.adapters.space import KINDS, ensure_space
from qbench_dagster.core.queries import Filter, Query
from qbench_dagster.core.requests import Answer
from qbench_dagster_tests.support import SPACE, case, execute, rows, run_pipeline, write_export

ACCOUNT = Account("r1", usd_per_million=1.0)


class Paid(LexicalEmbedder):
    """Costs a token a character, and remembers what it was asked."""

    paid = True

    def __init__(self, fails: bool = False) -> None:
        super().__init__(SPACE.dimensions)
        self.asked: list[str] = []
        self._fails = fails

    def request(self, texts: Sequence[str], at_risk: Any = None) -> Answer:  # noqa: ARG002
        self.asked += texts
        if self._fails:
            raise EmbeddingError("the service does not answer", tokens_at_risk=5)
        return Answer(self.embed(texts), sum(map(len, texts)))


def log(*texts: str) -> list[Query]:
    return [Query(text, line=number) for number, text in enumerate(texts, 1)]


def spent(database: Database) -> list[tuple[Any, ...]]:
    return rows(database, "SELECT kind, state, texts, tokens, usd FROM store.embedding_requests ORDER BY id")


def test_a_query_is_paid_for_once_with_its_prefix(clean_database: Database) -> None:
    space = replace(SPACE, query_prefix="query: ")
    ensure_space(clean_database, space)
    embedder = Paid()
    found = embed_log(clean_database, space, log("log in", "print", "log in"), embedder, ACCOUNT)
    assert embedder.asked == ["query: log in", "query: print"]
    assert spent(clean_database) == [("query", "answered", 2, 25, pytest.approx(25e-6))]
    assert [question.label for question in found] == ["log in", "print", "log in"]
    assert found[0].vector == pytest.approx(LexicalEmbedder(64).embed(["query: log in"])[0], abs=1e-6)
    again = embed_log(clean_database, space, log("print", "upload"), embedder, ACCOUNT)
    assert embedder.asked[2:] == ["query: upload"]
    assert np.array_equal(again[0].vector, found[1].vector)
    execute(clean_database, "UPDATE store.spaces SET query_prefix = ''")
    embed_log(clean_database, replace(space, query_prefix=None), log("print"), embedder, ACCOUNT)
    assert embedder.asked[3:] == ["print"], "with another prefix it is another text"


def test_the_budget_holds_and_what_was_paid_for_stays(clean_database: Database) -> None:
    ensure_space(clean_database, SPACE)
    embed_log(clean_database, SPACE, log("paid before"), Paid(), replace(ACCOUNT, max_usd=12e-6))
    embedder = Paid()
    with pytest.raises(BudgetReachedError, match="higher QBENCH_MAX_USD"):
        embed_log(clean_database, SPACE, log("paid before", "more"), embedder, replace(ACCOUNT, max_usd=12e-6))
    assert embedder.asked == []
    assert embed_log(clean_database, SPACE, log("paid before"), embedder, ACCOUNT)
    with pytest.raises(EmbeddingError, match="QBENCH_PRICES"):
        embed_log(clean_database, SPACE, log("x"), Paid(), Account("r", None, 1.0))
    with pytest.raises(ValueError, match="account"):
        embed_log(clean_database, SPACE, log("x"), Paid(), None)


def test_a_service_that_fails_is_entered_as_failed(clean_database: Database) -> None:
    ensure_space(clean_database, SPACE)
    with pytest.raises(EmbeddingError, match="does not answer"):
        embed_log(clean_database, SPACE, log("log in"), Paid(fails=True), ACCOUNT)
    assert rows(clean_database, "SELECT state, usd, usd_at_risk FROM store.embedding_requests") == [
        ("failed", 0.0, pytest.approx(5e-6))
    ]
    assert rows(clean_database, "SELECT count(*) FROM store.query_vectors") == [(0,)]


def test_free_queries_and_vectors_are_kept_nowhere(clean_database: Database) -> None:
    ensure_space(clean_database, SPACE)
    given = Query(None, tuple([0.0] * 63 + [2.0]), 5, Filter(tags=("x",)), 7)
    found = embed_log(clean_database, SPACE, [*log("log in"), given], LexicalEmbedder(64), None)
    assert (found[1].k, found[1].filter, found[1].label) == (5, Filter(tags=("x",)), "vector of line 7")
    assert found[1].vector.tolist() == [0.0] * 63 + [1.0]
    assert rows(clean_database, "SELECT count(*) FROM store.query_vectors") == [(0,)]
    assert spent(clean_database) == []


def test_drawn_questions_are_the_same_of_the_same_rows_and_cost_nothing(
    clean_database: Database, tmp_path: Any
) -> None:
    cases = [case(n, f"case {n % 20} of page{n % 20}", priority_id=4 if n % 2 else 6) for n in range(1, 41)]
    run_pipeline(clean_database, write_export(tmp_path / "export.db", cases))
    with clean_database.connection("test") as connection:
        for kind in KINDS:
            origin, found = draw_questions(connection, SPACE, kind, 15, LexicalEmbedder(64))
            assert (origin, len({question.label for question in found}), len(found)) == ("titles", 15, 15)
            again = draw_questions(connection, SPACE, kind, 15, LexicalEmbedder(64))[1]
            assert [question.label for question in again] == [question.label for question in found]
        assert len(draw_questions(connection, SPACE, "doc", 99, LexicalEmbedder(64))[1]) == 20, "no title twice"
        embedder = Paid()
        origin, found = draw_questions(connection, SPACE, "doc", 15, embedder)
        assert (origin, embedder.asked, len(found)) == ("perturbed", [], 15)
        stored = [np.asarray(v, np.float32) for (v,) in
                  rows(clean_database, f"SELECT embedding::real[] FROM {SPACE.name}.doc_embeddings")]  # fmt: skip
        for question in found:
            assert np.linalg.norm(question.vector) == pytest.approx(1, abs=1e-5)
            nearest = max(float(vector @ question.vector) for vector in stored)
            assert nearest == pytest.approx(1 / np.hypot(1, NOISE), abs=0.15)
        assert draw_questions(connection, SPACE, "step", 15, None) == ("perturbed", []), "there are no steps"
        assert filters_of_data(connection)[0].priority in (("High",), ("Medium",))
