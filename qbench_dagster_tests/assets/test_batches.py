"""Embedding by batches as Dagster sees it: runs that wait without failing, and the sensor that goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import Space, writing
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.automation import batches, embedding_batches
from qbench_dagster.definitions import defs
from qbench_dagster.partitions import register_ranges
from qbench_dagster_tests.assets.after import after_load
from qbench_dagster_tests.openai_server import BatchOutcome, OpenAIServer
from qbench_dagster_tests.openai_server.server import KEY
from qbench_dagster_tests.support import case, execute, rows, write_export

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
SPACE = Space("space_te3large_64", "text-embedding-3-large", 64, "halfvec", "openai")
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
CASES, A_RANGE = 40, 10
TEXTS = {"doc": 40, "step": 8}


@dataclass
class World:
    """The project on an instance of its own, a server, and an export of four ranges."""

    instance: dg.DagsterInstance
    database: Database
    server: OpenAIServer
    keys: list[str]

    def load(self, tags: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
        """`load_cases` over all ranges, or as a run was requested."""
        return defs.resolve_job_def("load_cases").execute_in_process(
            instance=self.instance,
            tags=tags or {START: self.keys[0], END: self.keys[-1]},
            run_config=QUIET,
            raise_on_error=False,
        )

    def tick(self) -> dg.RunRequest | str:
        """What the sensor does now: a request, or the reason why not."""
        found: Any = embedding_batches(dg.build_sensor_context(instance=self.instance))
        return str(found.skip_message) if isinstance(found, dg.SkipReason) else found

    def requested(self) -> dg.RunRequest:
        """The run that the sensor asks for."""
        found = self.tick()
        assert isinstance(found, dg.RunRequest), found
        return found

    def published(self) -> int:
        """Cases that are published."""
        return int(rows(self.database, "SELECT count(*) FROM store.test_documents")[0][0])


@pytest.fixture
def world(fresh_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    cases = [
        case(n, f"Title {n}", steps_separated=[{"content": f"Do {n % 8}", "expected": ""}]) for n in range(1, CASES + 1)
    ]
    export = write_export(tmp_path / "export.db", cases)
    with OpenAIServer(batch_polls=0) as server:
        for variable, value in {
            "DATABASE_URL": fresh_url,
            "QBENCH_EXPORT": str(export),
            "QBENCH_HOME": str(tmp_path / "home"),
            "QBENCH_EMBEDDER": "openai",
            "QBENCH_DIMENSIONS": "64",
            "QBENCH_INDEX": "exact",
            "QBENCH_PARITY_QUERIES": "10",
            "QBENCH_OPENAI_MODE": "batch",
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": server.base_url,
        }.items():
            monkeypatch.setenv(variable, value)
        with Database(fresh_url) as database, dg.DagsterInstance.ephemeral() as instance:
            with TestRailExport(export) as source:
                keys = register_ranges(instance, source, A_RANGE)
            yield World(instance, database, server, keys)


def materialized(result: dg.ExecuteInProcessResult) -> set[str]:
    return {event.materialization.asset_key.to_user_string() for event in result.get_asset_materialization_events()}


def test_a_run_waits_without_failing_and_a_later_one_publishes(world: World) -> None:
    first = world.load()
    assert first.success
    assert materialized(first) == {"sqlite_cases", "normalized_testdocs"}
    checks = {
        each.asset_check_key.to_user_string(): each
        for each in first.get_asset_check_evaluations()
        if each.check_name == "every_text_has_a_vector"
    }
    assert set(checks) == {"doc_embeddings:every_text_has_a_vector", "step_embeddings:every_text_has_a_vector"}
    for kind, count in TEXTS.items():
        found = checks[f"{kind}_embeddings:every_text_has_a_vector"]
        assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert found.description is not None
        assert f"{count} texts of " in found.description
        assert "wait in 1 batch at the service" in found.description
        assert {name: found.metadata[name].value for name in ("waiting", "unsent", "batches")} == {
            "waiting": count, "unsent": 0, "batches": 1,
        }  # fmt: skip
    assert first.filter_events(lambda event: event.is_step_skipped)
    assert world.published() == 0

    world.server.advance_batches(4)
    last = world.load()
    assert last.success
    assert materialized(last) >= {"doc_embeddings", "step_embeddings", "pg_tables"}
    assert all(each.passed for each in last.get_asset_check_evaluations())
    assert world.published() == CASES
    assert set(world.server.billed_by_batch.values()) == {1}
    assert not world.server.billed
    assert world.server.billed_by_batch.total() == sum(TEXTS.values())

    sent = len(world.server.ledger.seen)
    again = world.load()
    assert again.success
    assert len(world.server.ledger.seen) == sent, "nothing to do, nothing asked"


def test_requests_mode_waits_for_what_is_out_and_asks_for_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.load({START: world.keys[0], END: world.keys[0]})
    monkeypatch.setenv("QBENCH_OPENAI_MODE", "requests")
    first = world.load()
    assert first.success
    assert materialized(first) == {"sqlite_cases", "normalized_testdocs"}
    world.server.advance_batches(4)
    assert world.load().success
    assert world.published() == CASES
    by_batch, by_request = world.server.billed_by_batch, world.server.billed
    assert by_batch.total() == A_RANGE + TEXTS["step"]
    assert by_request.total() == CASES - A_RANGE
    assert not set(by_batch) & set(by_request)


def test_what_the_service_refuses_fails_the_run_and_says_why(world: World) -> None:
    world.server.batch_next("failed")
    world.load()
    world.server.advance_batches(4)
    result = world.load()
    assert not result.success
    [failed] = result.filter_events(lambda event: event.is_step_failure)
    assert failed.step_key == "doc_embeddings"
    error: Any = failed.step_failure_data.error
    assert "was refused by the service: line 1: invalid_json_line" in error.to_string()
    assert KEY not in error.to_string()


@pytest.mark.parametrize("variable", ["QBENCH_OPENAI_MODE", "OPENAI_API_KEY"])
def test_the_sensor_touches_nothing_unless_batches_are_wanted(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.delenv(variable)
    monkeypatch.delenv("DATABASE_URL")  # it would start the embedded server
    monkeypatch.setenv("QBENCH_HOME", str(tmp_path / "untouched"))
    assert world.tick() == "QBENCH_OPENAI_MODE is not batch, or OPENAI_API_KEY is not set"
    assert not (tmp_path / "untouched").exists()
    assert not world.server.ledger.seen


def test_the_sensor_asks_for_one_run_when_a_batch_has_ended(world: World) -> None:
    assert world.tick() == "no batch is out"
    world.load()
    assert world.tick() == "2 batches are out, none is to be taken in now"
    assert rows(world.database, "SELECT DISTINCT status FROM store.batches") == [("validating",)]
    world.server.advance_batches(4)
    asked = world.requested()
    assert (asked.tags[START], asked.tags[END]) == (world.keys[0], world.keys[-1])
    assert world.requested().run_key == asked.run_key, "the same work is asked for once"
    with writing(world.database, SPACE):
        assert world.tick() == "2 batches are out, none is to be taken in now"
    assert world.load(dict(asked.tags)).success
    assert world.published() == CASES
    assert world.tick() == "no batch is out"


def test_the_run_is_over_the_ranges_that_wait(world: World) -> None:
    assert world.load({START: world.keys[1], END: world.keys[2]}).success
    world.server.advance_batches(4)
    asked = world.requested()
    assert (asked.tags[START], asked.tags[END]) == (world.keys[1], world.keys[2])


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts the sensor so many seconds ahead of the runs."""
    clock, ahead = time.time, [0.0]
    monkeypatch.setattr(batches, "time", SimpleNamespace(time=lambda: clock() + ahead[0]))

    def look(seconds: float) -> None:
        ahead[0] = seconds

    return look


def test_a_run_that_failed_is_made_up_for_after_a_while(world: World, later: Callable[[float], None]) -> None:
    world.load()
    world.server.advance_batches(4)
    world.server.fail_when(lambda *_: True, "bad-key", path="/v1/files", method="GET")
    keys = set()
    for minutes in (5, 10, 20):
        asked = world.requested()
        keys.add(asked.run_key)
        assert not world.load(dict(asked.tags)).success
        later(0)
        assert f"another is asked for in {minutes} minutes" in str(world.tick())
        later(minutes * 60 - 30)
        assert "did not take in what has ended" in str(world.tick())
        later(minutes * 60)
    assert len(keys) == 3, "a key is run once"
    world.server.faults.clear()
    assert world.load(dict(world.requested().tags)).success
    assert world.published() == CASES
    assert world.tick() == "no batch is out"


def make_run(world: World, asked: dg.RunRequest, status: dg.DagsterRunStatus) -> str:
    """A run as the daemon makes it of a request."""
    tags = {**asked.tags, "dagster/run_key": str(asked.run_key)}
    job = defs.resolve_job_def("load_cases")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("qbench"), "defs"), job.name)
    return world.instance.create_run_for_job(job, tags=tags, status=status, remote_job_origin=origin).run_id


@pytest.mark.parametrize("status", ["QUEUED", "STARTING", "STARTED", "CANCELING"])
def test_no_second_run_is_asked_for_while_one_is_on_its_way(world: World, status: str) -> None:
    world.load({START: world.keys[0], END: world.keys[0]})
    docs, steps = list(world.server.batches._batches.values())
    for _ in range(4):
        world.server.batches._advance(docs)
    asked = world.requested()
    run_id = make_run(world, asked, dg.DagsterRunStatus(status))
    told = f"run {run_id[:8]} sees to what has ended ({status.lower()})"
    assert told in str(world.tick())
    for _ in range(4):
        world.server.batches._advance(steps)
    assert told in str(world.tick()), "nor for what ended since"
    run = world.instance.get_run_by_id(run_id)
    assert run is not None
    world.instance.report_run_canceled(run)  # its process is gone
    again = world.requested()
    assert again.run_key != asked.run_key


def test_a_run_that_was_killed_is_made_up_for(world: World, later: Callable[[float], None]) -> None:
    world.load()
    world.server.advance_batches(4)
    asked = world.requested()
    run = world.instance.get_run_by_id(make_run(world, asked, dg.DagsterRunStatus.STARTED))
    assert run is not None
    world.instance.report_run_failed(run)
    assert "another is asked for in 5 minutes" in str(world.tick())
    later(301)
    again = world.requested()
    assert again.run_key != asked.run_key
    world.instance.delete_run(run.run_id)
    assert world.requested().run_key == asked.run_key, "nothing of it is left"
    assert world.load(dict(again.tags)).success
    assert world.published() == CASES


def test_a_run_that_is_silent_for_an_hour_is_taken_to_be_gone(world: World, later: Callable[[float], None]) -> None:
    world.load()
    world.server.advance_batches(4)
    asked = world.requested()
    run_id = make_run(world, asked, dg.DagsterRunStatus.STARTED)
    alive = dg.DagsterEvent("ENGINE_EVENT", "load_cases", event_specific_data=EngineEventData())
    world.instance.report_dagster_event(alive, run_id, timestamp=time.time() + 3_000)
    later(3_700)
    assert "sees to what has ended (started)" in str(world.tick())
    later(6_700)
    again = world.requested()
    assert again.run_key != asked.run_key
    run = world.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.FAILURE
    later(0)
    assert "another is asked for in 5 minutes" in str(world.tick())


def test_a_run_that_waits_for_its_turn_is_not_taken_to_be_gone(world: World, later: Callable[[float], None]) -> None:
    world.load()
    world.server.advance_batches(4)
    make_run(world, world.requested(), dg.DagsterRunStatus.QUEUED)
    later(86_400)
    assert "sees to what has ended (queued)" in str(world.tick())


def test_a_run_that_no_daemon_queued_is_asked_for_by_its_key(world: World) -> None:
    world.load()
    world.server.advance_batches(4)
    asked = world.requested()
    make_run(world, asked, dg.DagsterRunStatus.NOT_STARTED)
    assert world.requested().run_key == asked.run_key, "by which Dagster finds it, and queues it"


def test_what_a_run_took_in_and_waits_still_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_MAX_INPUTS", "10")
    world.server.batch_next(BatchOutcome("expired", share=0.75))
    world.load()
    world.server.advance_batches(4)
    result = world.load()
    assert "doc_embeddings" not in materialized(result)
    [seen] = [event.asset_observation_data.asset_observation for event in result.get_asset_observation_events()]
    assert seen.asset_key == dg.AssetKey("doc_embeddings")
    told: dict[str, Any] = {name: value.value for name, value in seen.metadata.items()}
    [(tokens, usd)] = rows(
        world.database,
        "SELECT sum(tokens), sum(usd) FROM store.embedding_requests WHERE state = 'answered' AND kind = 'doc'",
    )
    assert (told["tokens"], told["usd"]) == (tokens, pytest.approx(usd, abs=1e-6))
    assert 0 < told["texts_embedded"] < TEXTS["doc"]
    idle = world.load()
    assert not idle.get_asset_observation_events(), "nothing was taken in, nothing is told"


def test_a_run_that_failed_is_asked_for_again_when_another_batch_ends(world: World) -> None:
    world.load({START: world.keys[0], END: world.keys[0]})
    docs, steps = list(world.server.batches._batches.values())
    for _ in range(4):
        world.server.batches._advance(docs)
    asked = world.requested()
    world.server.fail_when(lambda *_: True, "bad-key", path="/v1/files", method="GET")
    assert not world.load(dict(asked.tags)).success
    assert "or when another batch has ended" in str(world.tick())
    for _ in range(4):
        world.server.batches._advance(steps)
    again = world.requested()
    assert again.run_key != asked.run_key
    world.server.faults.clear()
    assert world.load(dict(again.tags)).success
    assert world.published() == A_RANGE


def test_a_batch_that_was_never_sent_is_seen_to_after_a_while(world: World) -> None:
    world.load()
    execute(world.database, "UPDATE store.batches SET state = 'preparing', remote_id = NULL WHERE kind = 'doc'")
    assert world.tick() == "2 batches are out, none is to be taken in now"
    execute(world.database, "UPDATE store.batches SET created_at = now() - interval '16 minutes' WHERE kind = 'doc'")
    asked = world.requested()
    assert world.load(dict(asked.tags)).success
    assert len(world.server.batches._batches) == 2, "it was found at the service"
    assert world.tick() == "2 batches are out, none is to be taken in now"


def test_a_full_queue_is_not_asked_every_minute(world: World) -> None:
    world.server.batch_next(BatchOutcome("failed", code="token_limit_exceeded", message="Too many.", line=None))
    world.load()
    world.server.advance_batches(1)
    assert world.tick() == "2 batches are out, none is to be taken in now"
    execute(world.database, "UPDATE store.batches SET created_at = now() - interval '16 minutes'")
    assert world.requested()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("OPENAI_BASE_URL", "http://127.0.0.1:9/v1", "Cannot reach"),
        ("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none", "Cannot connect"),
    ],
)
def test_what_cannot_be_reached_is_a_reason_to_wait(
    world: World, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    world.load()
    monkeypatch.setenv(variable, value)
    assert told in str(world.tick())


def test_the_sensor_looks_once_a_minute() -> None:
    assert embedding_batches.minimum_interval_seconds == 60


def test_the_index_is_seen_to_when_batches_brought_everything(world: World) -> None:
    assert "somebody else" in str(after_load(world.instance, world.load()))
    world.server.advance_batches(3)
    result = world.load(dict(world.requested().tags))
    asked = after_load(world.instance, result)
    assert isinstance(asked, dg.RunRequest), asked
    assert asked.run_key == result.run_id


def test_the_index_waits_while_texts_wait(world: World) -> None:
    result = world.load({START: world.keys[0], END: world.keys[-1], "qbench/requested_by": "embedding_batches"})
    assert result.success
    assert after_load(world.instance, result) == "texts still wait in batches"
