"""The nightly comparison of everything, what follows it, and the colour of what it keeps fresh."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.freshness import FreshnessStateRecord
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import InProcessTestWorkspaceLoadTarget, freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon.freshness import FreshnessDaemon
from dagster._time import get_current_datetime

from qbench_dagster.automation.reconcile import request_all
from qbench_dagster.definitions import build_definitions
from qbench_dagster_tests.assets.after import after_load
from qbench_dagster_tests.automation.conftest import LOG
from qbench_dagster_tests.automation.world import T0, World
from qbench_dagster_tests.support import case, insert_cases, rows


def tick(world: World) -> dg.RunRequest | str:
    """What the schedule does at its time."""
    found = request_all(world.instance, LOG)
    return str(found.skip_message) if isinstance(found, dg.SkipReason) else found


def asked(world: World) -> dg.RunRequest:
    """The run that it asks for."""
    found = tick(world)
    assert isinstance(found, dg.RunRequest), found
    return found


def test_what_updated_on_does_not_tell_is_found_at_night(world: World) -> None:
    with closing(sqlite3.connect(world.export)) as connection, connection:
        connection.execute("UPDATE cases SET updated_on = ? WHERE id = 60", [T0 + 90_000])
    world.age()
    assert world.load(world.asked()[0].tags).success
    assert world.said().startswith("succeeded")
    world.edit("UPDATE cases SET title = 'Silent' WHERE id = 15", "UPDATE sections SET name = 'Renamed' WHERE id = 10",
               "UPDATE priorities SET name = '1 - High Priority' WHERE id = 6")  # fmt: skip
    assert "nothing new" in world.said(), "the sensor goes by updated_on"
    request = asked(world)
    assert world.over([request]) == [["0", "1", "2", "3", "4", "5"]]
    assert request.tags["qbench/requested_by"] == "nightly_reconcile"
    result = world.load(request.tags)
    assert result.success
    assert world.titles()[15] == "Silent"
    seen = rows(world.database, "SELECT DISTINCT folder_structure, priority FROM store.test_documents")
    assert [(folder, priority) for folder, priority in seen] == [("Renamed", "High")]
    follows = after_load(world.instance, result)
    assert isinstance(follows, dg.RunRequest)
    assert follows.run_key == result.run_id
    assert after_load(world.instance, world.runs[0]) == "somebody else asked for that run, and sees to the index"


def test_it_runs_once_and_not_before_a_person_has_loaded(empty_world: World) -> None:
    world = empty_world
    assert "nothing was ever loaded" in str(tick(world))
    world.plan()
    assert "6 of 6 partitions were never loaded" in str(tick(world))
    for key in world.keys:
        world.instance.report_runless_asset_event(dg.AssetMaterialization("pg_tables", partition=key))
    run = world.make_run(asked(world).tags)
    assert tick(world) == f"run {run.run_id[:8]} of an earlier night is still under way"
    world.instance.report_run_failed(run)
    assert asked(world)


def test_new_ranges_are_registered_unless_somebody_works_on_the_one_they_cut(world: World) -> None:
    with closing(sqlite3.connect(world.export)) as connection, connection:
        insert_cases(connection, [case(n, f"Title {n}") for n in range(61, 81)])
    run = world.make_run({"dagster/partition": world.keys[5]})
    assert len(world.over([asked(world)])[0]) == 6
    world.instance.report_run_canceled(run)
    assert len(world.over([asked(world)])[0]) == 8


def test_an_export_that_cannot_be_read_makes_a_run_that_says_so(world: World) -> None:
    world.export.unlink()
    request = asked(world)
    assert len(world.over([request])[0]) == 6
    assert not world.load(request.tags).success, "a night without comparison is red, not silent"


def test_another_space_is_not_filled_unasked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_DIMENSIONS", "32")
    assert "the settings name space_lexical_32" in str(tick(world))
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    assert asked(world), "of a database that cannot be asked the run says so"


def schedule_of(definitions: dg.Definitions) -> dg.ScheduleDefinition:
    (found,) = [each for each in definitions.schedules or [] if each.name == "nightly_reconcile"]
    assert isinstance(found, dg.ScheduleDefinition)
    return found


def stale_after_h(definitions: dg.Definitions) -> dict[str, float]:
    graph = definitions.resolve_asset_graph()
    policies = {key.to_user_string(): graph.get(key).freshness_policy for key in graph.get_all_asset_keys()}
    return {
        name: policy.fail_window.to_timedelta().total_seconds() / 3600 for name, policy in policies.items() if policy
    }


def test_when_it_runs_and_what_it_keeps_fresh_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    definitions = build_definitions()
    assert schedule_of(definitions).cron_schedule == "0 2 * * *"
    assert stale_after_h(definitions) == {"pg_tables": 26, "parity_report": 26}
    monkeypatch.setenv("QBENCH_RECONCILE_AT", "23:05")
    monkeypatch.setenv("QBENCH_TIMEZONE", "Europe/Berlin")
    monkeypatch.setenv("QBENCH_STALE_AFTER_H", "50")
    definitions = build_definitions()
    schedule = schedule_of(definitions)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("5 23 * * *", "Europe/Berlin")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert stale_after_h(definitions) == {"pg_tables": 50, "parity_report": 50}
    monkeypatch.setenv("QBENCH_RECONCILE_AT", "at night")
    assert schedule_of(build_definitions()).cron_schedule == "0 2 * * *", "the UI comes up, and runs say what is wrong"


@contextmanager
def workspace(instance: dg.DagsterInstance) -> Iterator[WorkspaceProcessContext]:
    """The project as the daemon sees it."""
    origin = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="qbench_dagster.definitions"))
    with WorkspaceProcessContext(instance, InProcessTestWorkspaceLoadTarget(origin)) as context:
        yield context


async def colour(context: WorkspaceProcessContext, asset: str) -> str:
    """The state that the daemon has stored."""
    record = await FreshnessStateRecord.gen(context.create_request_context(), dg.AssetKey(asset))
    assert record is not None
    return record.freshness_state.value


def test_assets_turn_red_when_the_sync_falls_behind() -> None:
    began = get_current_datetime()
    with dg.instance_for_test() as instance, workspace(instance) as context:

        def colours() -> dict[str, str]:
            list(FreshnessDaemon().run_iteration(context))
            return {name: asyncio.run(colour(context, name)) for name in ("pg_tables", "parity_report", "hnsw_index")}

        assert colours() == {"pg_tables": "UNKNOWN", "parity_report": "UNKNOWN", "hnsw_index": "NOT_APPLICABLE"}
        found: Any = schedule_of(build_definitions())(dg.build_schedule_context(instance=instance))
        assert "nothing was ever loaded" in found.skip_message
        for name in ("pg_tables", "parity_report"):
            instance.report_runless_asset_event(dg.AssetMaterialization(name))
        assert colours() == {"pg_tables": "PASS", "parity_report": "PASS", "hnsw_index": "NOT_APPLICABLE"}
        with freeze_time(began.replace(year=began.year + 1)):
            assert colours() == {"pg_tables": "FAIL", "parity_report": "FAIL", "hnsw_index": "NOT_APPLICABLE"}
            instance.report_runless_asset_event(dg.AssetMaterialization("pg_tables", partition="any"))
            assert colours()["pg_tables"] == "PASS"
