"""The graph with a paid embedder: what is told before, spent, refused and reused, and that no key is in any log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest

from qbench_dagster.core.texts import doc_text, step_text
from qbench_dagster_tests.assets.test_graph import (
    Graph,
    checks,
    graph,
    materialized,
    metadata,
    some_cases,
    totals,
)
from qbench_dagster_tests.openai_server import OpenAIServer, count_words, vector_of
from qbench_dagster_tests.support import rows, write_export

__all__ = ["graph"]  # a fixture

MODEL = "text-embedding-3-large"
KEY = "sk-planted-0123456789"
LANDED = ("sqlite_cases", "normalized_testdocs")
EMBEDDED = ("doc_embeddings", "step_embeddings", "pg_tables")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    """OpenAI in place of the lexical embedder, answering with 64 dimensions."""
    with OpenAIServer(key=KEY, max_inputs=50) as running:
        for variable, value in {
            "QBENCH_EMBEDDER": "openai",
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": running.base_url,
            "QBENCH_MAX_INPUTS": "50",
        }.items():
            monkeypatch.setenv(variable, value)
        yield running


@pytest.fixture
def planned(graph: Graph, server: OpenAIServer) -> Graph:
    """Cases to embed, with their ranges registered."""
    write_export(graph.export, some_cases(120))
    graph.plan()
    return graph


def failures(graph: Graph) -> str:
    """What the failed steps of the last run said to a person."""
    told = []
    for event in graph.runs[-1].filter_events(lambda event: event.is_step_failure):
        said = event.step_failure_data.user_failure_data
        told.append(str(said.description if said else event.step_failure_data.error.message))
    return "\n".join(told)


def wanted(graph: Graph) -> set[str]:
    """Every text the staged cases have."""
    docs = rows(graph.database, "SELECT title, description FROM staging.test_documents")
    steps = rows(graph.database, "SELECT action, expected FROM staging.test_steps")
    return {doc_text(*row) for row in docs} | {step_text(*row) for row in steps}


def test_every_text_is_paid_for_once_and_the_run_says_what_it_cost(planned: Graph, server: OpenAIServer) -> None:
    result = planned.load()
    assert result.success, failures(planned)
    assert set(server.billed) == wanted(planned)
    assert set(server.billed.values()) == {1}
    dollars = server.ledger.tokens * 0.13 / 1e6
    assert sum(totals(result, "tokens").values()) == server.ledger.tokens
    assert sum(totals(result, "usd").values()) == pytest.approx(dollars, abs=2e-6)
    by_partition = [
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.materialization.asset_key.path[0] in ("doc_embeddings", "step_embeddings")
    ]
    assert len(by_partition) == 2 * len(planned.keys()) > 2
    assert sum(float(told["usd"].value) for told in by_partition) == pytest.approx(dollars), "what the UI plots adds up"
    assert sum(int(told["tokens"].value) for told in by_partition) == pytest.approx(server.ledger.tokens, abs=2)
    by_run = rows(planned.database, "SELECT run_id, kind, sum(usd) FROM store.embedding_requests GROUP BY 1, 2")
    assert {row[0] for row in by_run} == {result.run_id}
    assert sum(row[2] for row in by_run) == pytest.approx(server.ledger.tokens * 0.13 / 1e6)
    again = planned.load()
    assert totals(again, "texts_embedded")["doc_embeddings"] == 0
    assert set(server.billed.values()) == {1}


def test_the_budget_is_a_clear_state_from_which_a_run_goes_on(
    planned: Graph, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBENCH_MAX_USD", "0.0001")
    result = planned.load()
    assert not result.success
    assert "The budget of $0.0001 for space_te3large_64 is reached" in failures(planned)
    assert "pg_tables" not in materialized(result)
    assert 0 < server.ledger.tokens * 0.13 / 1e6 <= 0.0001
    monkeypatch.setenv("QBENCH_MAX_USD", "1")
    assert planned.load().success, failures(planned)
    assert set(server.billed.values()) == {1}
    assert set(server.billed) == wanted(planned)


def test_the_plan_is_what_then_happens(planned: Graph, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    keys = planned.keys()
    assert planned.run("load_cases", (keys[0], keys[-1]), only=LANDED).success
    assert planned.run("plan_embeddings").success, failures(planned)
    plan = metadata(planned.runs[-1])["embedding_plan"]["json"]
    assert server.ledger.seen == []
    assert (plan["cases"], plan["rejected"]) == (119, 1)
    assert "estimate" in plan["tokens_by"]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    result = planned.load()
    assert result.success, failures(planned)
    embedded = totals(result, "texts_embedded")
    for kind in ("doc", "step"):
        assert plan["kinds"][kind]["to_embed"] == embedded[f"{kind}_embeddings"]
        assert plan["kinds"][kind]["requests"] == totals(result, "requests")[f"{kind}_embeddings"]
    assert plan["usd"] == pytest.approx(2 * plan["usd_by_batch"])
    billed = sum(map(count_words, server.billed))
    assert 0.7 * billed < plan["tokens"] < 1.5 * billed, "the server counts words"
    assert planned.run("plan_embeddings").success
    after = metadata(planned.runs[-1])["embedding_plan"]["json"]
    assert (after["to_embed"], after["tokens"]) == (0, 0)
    assert after["spent_usd"] == pytest.approx(server.ledger.tokens * 0.13 / 1e6)


def test_nothing_the_old_store_holds_is_embedded(
    planned: Graph, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    faiss = pytest.importorskip("faiss")
    keys = planned.keys()
    assert planned.run("load_cases", (keys[0], keys[-1]), only=LANDED).success
    docs = rows(
        planned.database, "SELECT uid, title, description FROM staging.test_documents ORDER BY case_id LIMIT 80"
    )
    old = [{"uid": uid, "title": title, "description": description} for uid, title, description in docs]
    old[3]["title"] = "Not what it says today"
    index = faiss.IndexFlatIP(64)
    index.add(np.stack([vector_of(doc_text(row["title"], row["description"]), 64, MODEL) for row in old]))
    faiss.write_index(index, str(tmp_path / "docs.faiss"))
    (tmp_path / "docs.json").write_text(json.dumps(old))
    monkeypatch.setenv("QBENCH_FAISS_DOCS", str(tmp_path / "docs.faiss"))
    monkeypatch.setenv("QBENCH_FAISS_DOCS_METADATA", str(tmp_path / "docs.json"))

    # Nobody has said which model made them, and the store has not been read: neither is guessed.
    assert not planned.run("load_cases", (keys[0], keys[-1]), only=EMBEDDED).success
    assert "materialise reused_vectors" in failures(planned)
    assert server.ledger.seen == []

    monkeypatch.setenv("QBENCH_REUSE_MODEL", MODEL)
    assert planned.run("plan_embeddings").success, failures(planned)
    plan = metadata(planned.runs[-1])["embedding_plan"]["json"]
    assert plan["kinds"]["doc"]["reusable"] == {"faiss": 79}
    assert plan["refused"] == {"faiss": {"stale_text": 1}}
    assert planned.run("reuse_vectors").success, failures(planned)
    assert checks(planned.runs[-1]) == {
        "reused_vectors:reused_vectors_equal_their_source": True,
        "reused_vectors:stored_vectors_do_not_conflict": True,
    }
    result = planned.run("load_cases", (keys[0], keys[-1]), only=EMBEDDED)
    assert result.success, failures(planned)
    reused = {doc_text(row["title"], row["description"]) for row in old[:3] + old[4:]}
    assert set(server.billed) == wanted(planned) - reused
    assert totals(result, "texts_embedded")["doc_embeddings"] == plan["kinds"]["doc"]["to_embed"] == 119 - 79


def test_a_wrong_key_ends_the_run_once_and_is_nowhere_written(
    planned: Graph, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, server_url: str
) -> None:
    wrong = "sk-wrong-planted-9876543210"
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    result = planned.load()
    assert not result.success
    assert "OPENAI_API_KEY" in failures(planned)
    assert len(server.ledger.seen) <= 2 * 9, "one try for each request that was in flight: nobody tries again"
    assert wrong not in everything_logged()
    assert "sk-wrong" not in everything_logged()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert planned.load().success, failures(planned)
    assert planned.run("index_and_report").success, failures(planned)
    report = rows(planned.database, "SELECT report::text FROM store.parity_reports")[0][0]
    assert "OPENAI_API_KEY" in report
    assert KEY not in report
    assert KEY not in everything_logged()


def everything_logged() -> str:
    """Every row of Dagster's storage, as text."""
    import os  # noqa: PLC0415

    with psycopg.connect(os.environ["QBENCH_DAGSTER_DATABASE_URL"]) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return "\n".join(
            str(connection.execute(f'SELECT t::text FROM "{table}" t').fetchall())  # type: ignore[arg-type]
            for (table,) in tables
        )
