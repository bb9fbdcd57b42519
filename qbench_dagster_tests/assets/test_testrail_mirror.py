"""TestRail as the source, as Dagster sees it: pulls, what they tell and never tell, the sensor that asks for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.testrail_export import ExportError
from qbench_dagster.adapters.testrail_mirror import opened
from qbench_dagster.automation import pulls
from qbench_dagster.definitions import defs
from qbench_dagster.partitions import register_ranges
from qbench_dagster.resources import ExportResource
from qbench_dagster.settings import Settings
from qbench_dagster_tests.adapters.test_testrail_pull import NOW, small_data
from qbench_dagster_tests.support import rows
from qbench_dagster_tests.testrail_server import KEY, USER, TestRailServer

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@dataclass
class World:
    """The project on an instance of its own, and a TestRail."""

    instance: dg.DagsterInstance
    server: TestRailServer
    home: Path

    def pull(self, full: bool = False) -> dg.ExecuteInProcessResult:
        """The job of one pull."""
        return defs.resolve_job_def("pull_testrail").execute_in_process(
            instance=self.instance,
            run_config={**QUIET, "ops": {"testrail_mirror": {"config": {"full": full}}}},
            raise_on_error=False,
        )

    def tick(self, cursor: str | None = None) -> tuple[dg.RunRequest | str, str | None]:
        """What the sensor does now, a request or the reason why not, and its cursor."""
        context = dg.build_sensor_context(instance=self.instance, cursor=cursor)
        found: Any = pulls.testrail_pulls(context)
        return (str(found.skip_message) if isinstance(found, dg.SkipReason) else found), context.cursor


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with TestRailServer(small_data(large=6)) as server, dg.DagsterInstance.ephemeral() as instance:
        for variable, value in {
            "QBENCH_TESTRAIL_URL": server.url,
            "QBENCH_TESTRAIL_USER": USER,
            "QBENCH_TESTRAIL_API_KEY": KEY,
            "QBENCH_HOME": str(tmp_path / "home"),
        }.items():
            monkeypatch.setenv(variable, value)
        yield World(instance, server, tmp_path / "home")


def materialization(result: dg.ExecuteInProcessResult) -> dg.AssetMaterialization:
    (event,) = result.get_asset_materialization_events()
    return event.materialization


def told(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return {name: value.value for name, value in materialization(result).metadata.items()}


def version(result: dg.ExecuteInProcessResult) -> str:
    return str((materialization(result).tags or {})["dagster/data_version"])


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    return str(event.step_failure_data.user_failure_data.description)


def test_a_pull_tells_what_it_did(world: World) -> None:
    first = world.pull()
    assert first.success
    assert {name: told(first)[name] for name in ("cases", "added", "changed", "removed", "full", "published")} == {
        "cases": 17, "added": 17, "changed": 0, "removed": 0, "full": True, "published": True,
    }  # fmt: skip
    assert told(first)["mirror"] == str(world.home / "testrail.db")
    assert told(first)["requests"] == len(world.server.requests)
    world.server.data.cases[3] |= {"title": "Edited", "updated_on": NOW}
    second = world.pull()
    assert (told(second)["full"], told(second)["changed"]) == (False, 1)
    assert told(world.pull(full=True))["full"]


def test_a_pull_that_brings_nothing_leaves_what_is_downstream_up_to_date(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(NOW, NOW + 100))
    monkeypatch.setattr("qbench_dagster.adapters.testrail_api._timestamp", lambda _: next(ticks))
    first, idle = world.pull(), world.pull(full=True)
    assert version(idle) == version(first)
    del world.server.data.cases[3]
    assert version(world.pull(full=True)) != version(first)


def test_without_testrail_nothing_is_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QBENCH_TESTRAIL_URL")
    result = world.pull()
    assert result.success
    assert told(result) == {
        "summary": "QBENCH_TESTRAIL_URL is not set: the source is an export", "requests": 0, "seconds": 0.0,
    }  # fmt: skip
    assert not world.home.exists()


def test_a_project_that_cannot_be_read_is_a_warning(world: World) -> None:
    world.server.no_access = {4}
    result = world.pull()
    assert result.success
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity) == (
        "every_project_is_readable", False, dg.AssetCheckSeverity.WARN,
    )  # fmt: skip
    assert "may not read: 4." in str(check.description)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("QBENCH_TESTRAIL_API_KEY", "wrong-key-planted-0123", "does not accept the user and key"),
        ("QBENCH_TESTRAIL_API_KEY", "", "QBENCH_TESTRAIL_API_KEY: not set"),
        ("QBENCH_TESTRAIL_PROJECTS", "9", "shows no project 9"),
    ],
)
def test_what_stops_a_pull_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert said in failure(world.pull())


def test_the_key_is_in_no_event_log_or_metadata(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("qbench_dagster.adapters.testrail_api._BACKOFF", lambda _: 0.0)
    world.server.fail("", "echo", times=3)
    assert world.pull().success
    world.server.fail("", "echo", times=1000)
    failed = world.pull(full=True)
    assert "[secret]" in failure(failed)
    events = "".join(repr(entry) for run in world.instance.get_runs() for entry in world.instance.all_logs(run.run_id))
    assert len(events) > 1000
    files = b"".join(path.read_bytes() for path in world.home.iterdir())
    assert KEY not in caplog.text + events
    assert KEY.encode() not in files


def test_the_mirror_takes_the_place_of_an_export(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    export = ExportResource()
    assert export.location == world.home / "testrail.db"
    with pytest.raises(ExportError, match=r"TestRail was not pulled yet\. Run `qbench pull`"):
        export.open()
    world.pull()
    with export.open() as source:
        assert source.count() == 17
    monkeypatch.setenv("QBENCH_EXPORT", "elsewhere.db")
    assert export.location == Path("elsewhere.db")


def test_what_was_pulled_lands(world: World, fresh_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", fresh_url)
    world.pull()
    with ExportResource().open() as source:
        (key,) = register_ranges(world.instance, source, 100)
    landed = defs.resolve_job_def("land_cases").execute_in_process(
        instance=world.instance, tags={START: key, END: key}, run_config=QUIET, raise_on_error=False
    )
    assert landed.success
    with Database(fresh_url) as database:
        assert rows(database, "SELECT count(*), min(title) FROM staging.test_documents") == [(17, "Case 1")]


def test_the_sensor_asks_for_a_full_pull_then_for_what_changed(world: World) -> None:
    request, cursor = world.tick()
    assert isinstance(request, dg.RunRequest)
    assert request.run_config["ops"] == {"testrail_mirror": {"config": {"full": True}}}
    assert request.tags["qbench/requested_by"] == "testrail_pulls"
    assert "the next pull is in 300 s" in str(world.tick(cursor)[0])
    world.pull()
    request, again = world.tick(str(float(cursor or 0) - 300))
    assert isinstance(request, dg.RunRequest)
    assert request.run_config["ops"] == {"testrail_mirror": {"config": {"full": False}}}
    assert float(again or 0) >= float(cursor or 0)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("QBENCH_TESTRAIL_URL", "", "QBENCH_TESTRAIL_URL is not set"),
        ("QBENCH_EXPORT", "export.db", "QBENCH_EXPORT is set: the export is the source"),
        ("QBENCH_SYNC_INTERVAL_S", "0", "QBENCH_SYNC_INTERVAL_S is 0"),
    ],
)
def test_the_sensor_asks_for_none_where_testrail_is_not_followed(
    world: World, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert world.tick() == (said, None)


def test_a_clock_that_was_ahead_silences_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = time.time() + 30 * 86_400
    assert isinstance(world.tick(str(ahead))[0], dg.RunRequest)
    with monkeypatch.context() as patched:
        patched.setattr(pulls.time, "time", lambda: ahead)
        world.pull(full=True)
    request, _ = world.tick()
    assert isinstance(request, dg.RunRequest)
    assert request.run_config["ops"] == {"testrail_mirror": {"config": {"full": True}}}


def test_in_quiet_hours_only_a_full_pull_is_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_QUIET_HOURS", "00:00-23:59")
    monkeypatch.setattr(pulls.time, "time", lambda: datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp())
    assert isinstance(world.tick()[0], dg.RunRequest)
    world.pull()
    assert "QBENCH_QUIET_HOURS is 00:00-23:59 (UTC), it is 12:00" in str(world.tick()[0])


def test_one_pull_at_a_time_is_asked_for(world: World) -> None:
    location = RegisteredCodeLocationOrigin("location")
    run = world.instance.create_run_for_job(
        defs.resolve_job_def("pull_testrail"),
        tags={"qbench/requested_by": "testrail_pulls"},
        status=dg.DagsterRunStatus.QUEUED,
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "pull_testrail"),
        job_code_origin=None,
    )
    assert world.tick()[0] == f"run {run.run_id[:8]} is pulling"


def test_while_somebody_else_pulls_the_sensor_waits(world: World) -> None:
    with opened(world.home / "testrail.db", world.server.url):
        assert "another pull is at work" in str(world.tick()[0])


@pytest.mark.parametrize(
    ("at", "zone", "now", "begun"),
    [
        ("02:00", "UTC", "2026-11-20T12:00", "2026-11-20T01:00"),
        ("02:00", "UTC", "2026-11-20T01:00", "2026-11-20T01:00"),
        ("02:00", "UTC", "2026-11-20T00:59", "2026-11-19T01:00"),
        ("00:30", "UTC", "2026-11-20T23:30", "2026-11-20T23:30"),
        ("00:30", "UTC", "2026-11-20T23:29", "2026-11-19T23:30"),
        ("02:00", "Europe/Berlin", "2026-07-01T12:00", "2026-06-30T23:00"),
        ("23:00", "America/New_York", "2026-11-20T02:00", "2026-11-19T03:00"),
    ],
)
def test_a_full_pull_is_due_an_hour_before_the_reconcile(at: str, zone: str, now: str, begun: str) -> None:
    settings = Settings.model_construct(reconcile_at=at, timezone=zone)
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp()
    assert pulls._last_time_of_day(settings, moment) == datetime.fromisoformat(begun).replace(tzinfo=UTC)
