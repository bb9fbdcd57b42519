"""The README's way with a key of one's own: plan, run with a budget, go on, look at the spaces, move reads, search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qbench_dagster_tests.cli.test_cli import Terminal, export, terminal
from qbench_dagster_tests.openai_server import OpenAIServer

__all__ = ["export", "terminal"]  # fixtures

KEY = "sk-planted-0123456789"
SPACE = "space_te3large_48"


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(key=KEY) as running:
        yield running


def test_the_readmes_way(terminal: Terminal, export: Path, server: OpenAIServer) -> None:
    """One after the other, as a person would: each step stands on the one before."""
    told = terminal("run", "--export", str(export), "--json").json()  # the lexical space is there first
    paid = {"QBENCH_EMBEDDER": "openai", "QBENCH_DIMENSIONS": "48", "QBENCH_EXPORT": str(export),
            "QBENCH_QUERY_PREFIX": "query: "}  # fmt: skip
    texts = told["texts_embedded"]

    shown = terminal("plan", **paid).out
    assert "to embed" in shown
    assert "by batch" in shown
    planned = terminal("plan", "--json", **paid).json()
    assert planned["space"] == SPACE
    assert planned["to_embed"] == pytest.approx(texts, abs=5)  # a text of both tables is counted once
    assert server.ledger.seen == []

    needs_key = terminal("run", code=2, **paid).err
    assert "OPENAI_API_KEY is not set" in needs_key
    paid |= {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url}
    budget = planned["usd"] / 2
    stopped = terminal("run", "--max-usd", f"{budget:.9f}", code=1, **paid)
    assert "The budget of $" in stopped.err
    assert "texts embedded" in stopped.out, "what was paid for before is told"
    assert "not published yet" not in terminal("status", **paid).out
    assert server.ledger.tokens * 0.13 / 1e6 <= budget
    done = terminal("run", "--json", **paid).json()
    assert done["ok"]
    assert "reads are still on space_lexical_64" in "".join(done["warnings"])
    assert set(server.billed.values()) == {1}
    billed = server.billed.total()
    assert planned["to_embed"] <= billed <= planned["to_embed"] + 10  # the sample has texts that go in pieces
    assert done["published"] == told["published"]

    spaces = {space["name"]: space for space in terminal("spaces", "--json", **paid).json()["spaces"]}
    assert {name: space["active"] for name, space in spaces.items()} == {"space_lexical_64": True, SPACE: False}
    assert terminal("search", "log in", **paid).err.count("space_lexical_64") == 1
    assert server.billed.total() == billed, "the space that is read embeds the query"

    terminal("cutover", SPACE, **paid)
    found = terminal("search", "log in", "-k", "3", "--json", **paid).json()
    assert len(found["results"]) == 3
    assert server.billed["query: log in"] == 1
    terminal("cutover", "--back", **paid)
    assert terminal("search", "log in", "--json", **paid).json()["results"]
    assert server.billed["query: log in"] == 1
    assert KEY not in terminal("status", "--json", **paid).out
    logs = [path for path in terminal.home.rglob("*") if path.is_file() and path.stat().st_size < 50_000_000]
    assert not [path for path in logs if KEY.encode() in path.read_bytes()], "the key is in no file we keep"
