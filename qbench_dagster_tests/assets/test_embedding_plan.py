"""`embedding_plan` where two spaces are kept complete; and that no asset or check leaves a client open."""

from __future__ import annotations

import pytest

from qbench_dagster.adapters.embedders import LexicalEmbedder
from qbench_dagster_tests.assets.test_graph import Graph, failure, graph, metadata, some_cases
from qbench_dagster_tests.support import execute, write_export

__all__ = ["graph"]  # a fixture

LANDED = ("sqlite_cases", "normalized_testdocs")
READ = "space_te3small_64"
SMALL = {"QBENCH_EMBEDDER": "openai", "QBENCH_MODEL": "text-embedding-3-small"}


def test_what_the_space_that_is_read_takes_is_planned_too(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run fills it as well: a plan of half of what is paid would be worse than none."""
    write_export(graph.export, some_cases(30))
    keys = graph.plan()
    assert graph.run("load_cases", (keys[0], keys[-1]), only=LANDED).success

    def planned() -> dict[str, object]:
        result = graph.run("plan_embeddings")
        assert result.success, failure(result)
        return metadata(result)["embedding_plan"]

    with monkeypatch.context() as patched:
        for variable, value in SMALL.items():
            patched.setenv(variable, value)
        alone = planned()["json"]
    assert alone["also"] == [], "nothing is read yet"  # type: ignore[index]
    execute(graph.database, "UPDATE store.spaces SET active = true WHERE name = %s", READ)
    monkeypatch.setenv("QBENCH_MAX_USD", "3")
    monkeypatch.setenv("QBENCH_OPENAI_MODE", "batch")
    told = planned()
    plan = told["json"]
    assert (plan["space"], plan["tokens"], plan["way"]) == ("space_lexical_64", 0, "request")  # type: ignore[index]
    (other,) = plan["also"]  # type: ignore[index]
    for name in ("space", "to_embed", "tokens", "usd", "usd_by_batch", "kinds"):
        assert other[name] == alone[name], name  # type: ignore[index]
    assert (other["way"], other["usd_to_pay"]) == ("batch", other["usd_by_batch"])
    assert other["within_budget"] is True
    assert other["to_embed"] > 0
    assert READ in str(told["plan"])
    assert told["texts_to_embed"] == plan["to_embed"]  # type: ignore[index]
    execute(graph.database, "DELETE FROM staging.test_documents; DELETE FROM staging.test_steps")
    # Nor is its model loaded, which need not even be on this machine.
    execute(graph.database, "UPDATE store.spaces SET embedder = 'local', model = 'gone@12345678' WHERE active")
    assert planned()["json"]["also"] == [], "where there is nothing to embed there is nothing to say"  # type: ignore[index]


def test_every_embedder_that_is_opened_is_closed(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, closed = [], []
    made = LexicalEmbedder.__init__

    def counted(embedder: LexicalEmbedder, dimensions: int) -> None:
        opened.append(embedder)
        made(embedder, dimensions)

    def close(embedder: LexicalEmbedder) -> None:
        closed.append(embedder)

    monkeypatch.setattr(LexicalEmbedder, "__init__", counted)
    monkeypatch.setattr(LexicalEmbedder, "close", close)
    write_export(graph.export, some_cases(30))
    graph.plan()
    assert graph.load().success
    assert len(opened) == 2, "one of each asset"
    assert graph.run("check_tables").success
    assert len(opened) == 4, "one of each check"
    assert {id(each) for each in opened} == {id(each) for each in closed}
