"""`qbench batches`: what is out, asked after, and given up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qbench_dagster.adapters.batching import advance
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import ensure_space
from qbench_dagster.cli import app
from qbench_dagster.core.tally import Embedding
from qbench_dagster_tests.adapters.test_batching import SPACE, account, service_for
from qbench_dagster_tests.adapters.test_embedding import stage
from qbench_dagster_tests.openai_server import OpenAIServer
from qbench_dagster_tests.openai_server.server import KEY


@dataclass
class World:
    """A database with one batch out, and its server."""

    database: Database
    server: OpenAIServer

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["batches", *arguments])

    def json(self, *arguments: str) -> dict[str, Any]:
        result = self.run("--json", *arguments)
        assert result.exit_code == 0, result.output
        read: dict[str, Any] = json.loads(result.stdout)
        return read


@pytest.fixture
def world(database: Database, fresh_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with OpenAIServer(batch_polls=0) as server:
        for variable, value in {
            "DATABASE_URL": fresh_url, "QBENCH_HOME": str(tmp_path), "QBENCH_EMBEDDER": "openai",
            "QBENCH_DIMENSIONS": "64", "QBENCH_OPENAI_MODE": "batch", "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": server.base_url,
        }.items():  # fmt: skip
            monkeypatch.setenv(variable, value)
        ranges = stage(database, tmp_path, [f"Title {n}" for n in range(8)])
        ensure_space(database, SPACE)
        with service_for(server.base_url) as service:
            advance(database, SPACE, "doc", ranges, service, account(), Embedding(), lambda _: None)
        yield World(database, server)


def test_batches_are_listed_and_asked_after(world: World) -> None:
    result = world.run()
    assert result.exit_code == 0, result.output
    assert "batch_00000001  submitted, validating at the service" in result.stdout
    assert "0 of 2 lines done, 8 texts, 16 tokens, $0.0000" in result.stdout
    assert world.json()["to_take_in"] is None
    world.server.advance_batches(4)
    found = world.json("--poll")
    assert found["to_take_in"] == 1
    assert (found["batches"][0]["status"], found["batches"][0]["state"]) == ("completed", "submitted")
    assert "1 to take in: qbench run does" in world.run("--poll").stdout


def test_a_batch_that_is_alive_is_not_given_up(world: World) -> None:
    result = world.run("--forget", "batch_00000001")
    assert result.exit_code == 1
    assert "is at the service, validating, 0 of 0 lines done: it is not given up" in result.output
    assert world.json()["batches"][0]["state"] == "submitted"


def test_a_batch_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    del world.server.batches._batches["batch_00000001"]
    monkeypatch.setenv("QBENCH_EMBEDDER", "lexical")  # the batch says which model it is of
    result = world.run("--forget", "batch_00000001")
    assert result.exit_code == 0, result.output
    assert "is given up: its 8 texts are sent again by the next run" in " ".join(result.stdout.split())
    assert world.json()["batches"][0]["state"] == "abandoned"
    again = world.run("--forget", "batch_00000001")
    assert again.exit_code == 2
    assert "No batch batch_00000001 is out" in again.output


def test_a_service_that_is_away_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.server.fail_when(lambda *_: True, "bad-key", path="/v1/batches")
    result = world.run("--poll")
    assert result.exit_code == 1
    assert "does not accept the key" in result.output
    assert KEY not in result.output


def test_without_any_batch_it_says_so(
    database: Database, fresh_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", fresh_url)
    monkeypatch.setenv("QBENCH_HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["batches"])
    assert (result.exit_code, result.stdout) == (0, "no batch was sent yet\n")
