"""Every state of the sensor `export_changes`, on a Dagster instance with real runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from qbench_dagster.automation import export_changes
from qbench_dagster.definitions import defs
from qbench_dagster.partitions import RANGE_END, RANGE_START, SINGLE
from qbench_dagster_tests.automation.world import QUIET, T0, World, small_export
from qbench_dagster_tests.support import case, execute, insert_cases


def renamed(*ids: int, time: int = T0 + 1000) -> str:
    chosen = ", ".join(map(str, ids))
    return f"UPDATE cases SET title = 'New ' || id, updated_on = {time} WHERE id IN ({chosen})"


def test_the_first_load_is_a_persons(empty_world: World) -> None:
    world = empty_world
    assert "nothing loaded yet: nothing was ever loaded. `qbench run` does" in world.said()
    world.plan()
    assert "6 of 6 partitions were never loaded" in world.said()
    assert world.load({RANGE_START: world.keys[0], RANGE_END: world.keys[2]}).success
    assert "3 of 6 partitions were never loaded" in world.said()
    assert world.load({RANGE_START: world.keys[3], RANGE_END: world.keys[5]}).success
    assert "nothing new: 60 cases compared" in world.said(0)
    assert world.remembered.watermark == T0 + 60


def test_a_database_that_was_emptied_is_a_persons_too(world: World) -> None:
    execute(world.database, "TRUNCATE store.test_documents CASCADE")
    world.edit(renamed(5))
    said = world.said()
    assert said.startswith("nothing loaded yet: postgresql://")
    assert "holds no case" in said


def test_a_change_is_asked_for_once_and_the_cursor_moves_when_it_is_in(world: World) -> None:
    before = world.remembered
    world.edit(renamed(5, 15, 45))
    assert "too early: the next look is in" in world.said(200)
    asked = world.asked()
    assert world.over(asked) == [["0", "1"], ["4"]]
    assert {each.tags["qbench/requested_by"] for each in asked} == {"export_changes"}
    again = world.asked(30)
    assert [each.run_key for each in again] == [each.run_key for each in asked], "by its key it is run once"
    runs = [world.make_run(each.tags, "QUEUED") for each in asked]
    said = world.said()
    assert said.startswith(
        f"in flight: run {runs[1].run_id[:8]} (load_cases, export_changes), run {runs[0].run_id[:8]}"
    )
    assert (world.remembered.file, world.remembered.watermark) == (before.file, before.watermark)
    for run in runs:
        world.instance.delete_run(run.run_id)
    assert world.load(asked[0].tags).success
    assert world.over(world.asked(30)) == [["4"]], "one of two has no run any more"
    assert (world.remembered.file, world.remembered.watermark) == (before.file, before.watermark)
    assert world.load(asked[1].tags).success
    said = world.said(30)
    assert said.startswith("succeeded: run ")
    assert "what was asked for is published" in said
    assert world.remembered.asked is None
    assert world.remembered.watermark == T0 + 1000
    assert {world.titles()[n] for n in (5, 15, 45)} == {"New 5", "New 15", "New 45"}
    assert "nothing new: " in world.said()
    assert "was not written since the last look" in world.said(301)


def test_a_look_at_an_unchanged_file_opens_neither_file_nor_database(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    world.export.chmod(0)
    assert "was not written since the last look" in world.said()
    world.age()
    assert world.said().startswith("not readable: ")


def test_a_file_that_was_touched_is_compared_by_its_newest_cases(world: World) -> None:
    world.edit(renamed(60, time=T0 + 9000))
    assert world.load(world.asked()[0].tags).success
    world.said()
    world.age()
    assert "nothing new: 1 cases compared: 0 added, 0 changed, 0 gone" in world.said()


def test_a_clock_that_goes_back_within_the_overlap_is_made_up_for(world: World) -> None:
    world.edit(renamed(60, time=T0 + 9000))
    assert world.load(world.asked()[0].tags).success
    world.said()
    world.edit(renamed(15, time=T0 + 9000 - 3600), renamed(25, time=T0 + 9000 - 3601), renamed(35, time=T0 + 9000))
    assert world.over(world.asked()) == [["1"], ["3"]]


def test_a_case_from_the_future_hides_nothing(world: World) -> None:
    now = int(time.time())
    world.edit(renamed(60, time=now + 10**8))
    assert world.load(world.asked()[0].tags).success
    world.said()
    world.edit(renamed(15, time=now + 300))
    assert world.over(world.asked()) == [["1"]]


def test_new_ranges_are_registered_and_loaded_and_removed_cases_go(world: World) -> None:
    world.edit("DELETE FROM cases WHERE id IN (1, 2)")
    with closing(sqlite3.connect(world.export)) as connection, connection:
        insert_cases(connection, [case(n, f"Title {n}", updated_on=T0 + 500) for n in range(61, 81)])
    world.age()
    busy = world.make_run({RANGE_START: world.keys[5], RANGE_END: world.keys[5]})
    said = world.said()
    assert said.startswith("waiting for another run: ")
    assert f"20 added, 0 changed, 2 gone. Waits for run {busy.run_id[:8]}" in said
    assert len(world.keys) == 6, "no range is cut while a run is at work on it"
    world.instance.report_run_canceled(busy)
    asked = world.asked()
    assert world.over(asked) == [["0"], ["6", "7"]]
    for each in asked:
        assert world.load(each.tags).success
    assert world.said().startswith("succeeded")
    assert sorted(world.titles()) == list(range(3, 81))


def test_a_range_that_somebody_filled_without_cutting_it_is_cut(world: World) -> None:
    with closing(sqlite3.connect(world.export)) as connection, connection:
        insert_cases(connection, [case(n, f"Title {n}", updated_on=T0 + 500) for n in range(61, 81)])
    world.age()
    assert world.load().success
    assert world.over(world.asked()) == [["6", "7"]]


def test_more_than_a_request_may_hold_is_asked_for_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_SYNC_PARTITIONS", "2")
    before = world.remembered.watermark
    world.edit(renamed(5, 25, 26, 45))
    first = world.asked()
    assert world.over(first) == [["0"], ["2"]]
    for each in first:
        assert world.load(each.tags).success
    rest = world.asked(1)
    assert world.over(rest) == [["4"]]
    assert world.remembered.watermark == before, "not before all of it is in"
    assert world.load(rest[0].tags).success
    assert world.said(1).startswith("succeeded")
    assert world.remembered.watermark == T0 + 1000


@pytest.mark.parametrize("status", ["QUEUED", "STARTED"])
def test_somebody_elses_run_over_the_same_partitions_is_waited_for(world: World, status: str) -> None:
    world.edit(renamed(15))
    backfill = {RANGE_START: world.keys[0], RANGE_END: world.keys[2], "dagster/backfill": "abcd"}
    run = world.make_run(backfill, status)
    said = world.said()
    assert said.endswith(
        f"Waits for run {run.run_id[:8]} (load_cases, backfill abcd), which is over the same partitions"
    )
    world.instance.report_run_canceled(run)
    world.make_run({"dagster/partition": world.keys[2]})
    world.make_run({RANGE_START: world.keys[3], RANGE_END: world.keys[5]})
    world.make_run({}, job="index_and_report")
    assert world.over(world.asked()) == [["1"]]


def test_a_run_of_others_that_fell_silent_is_not_waited_for_and_not_touched(world: World) -> None:
    world.edit(renamed(15))
    run = world.make_run({RANGE_START: world.keys[0], RANGE_END: world.keys[2]})
    assert "waiting for another run" in world.said()
    assert world.over(world.asked(3700)) == [["1"]]
    found = world.instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status == dg.DagsterRunStatus.STARTED


def test_a_failed_run_is_made_up_for_with_a_pause_that_doubles(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.remembered
    world.edit(renamed(15))
    keys = set()
    for minutes in (5, 10):
        [request] = world.asked()
        keys.add(request.run_key)
        monkeypatch.setenv("QBENCH_QDRANT_PATH", "/nowhere")  # embedding cannot know whether it would pay twice
        assert not world.load(request.tags).success
        world.ahead = 0.0
        assert f"1 partitions are asked for again in {minutes} minutes" in world.said(0)
        assert world.said(minutes * 60 - 20).startswith("failed: run ")
        world.ahead += 25
    assert len(keys) == 2
    assert (world.remembered.file, world.remembered.watermark) == (before.file, before.watermark)
    monkeypatch.delenv("QBENCH_QDRANT_PATH")
    world.edit(renamed(25))
    [request] = world.asked(0)
    assert world.over([request]) == [["1", "2"]], "what is landed but not published, and what changed since"
    assert world.load(request.tags).success
    assert world.said(1).startswith("succeeded")
    assert (world.titles()[15], world.titles()[25]) == ("New 15", "New 25")


def test_another_file_may_be_the_cure_and_a_persons_run_is_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.edit(renamed(15))
    [request] = world.asked()
    world.instance.report_run_failed(world.make_run(request.tags))
    world.ahead = 0.0
    [request] = world.asked(301)
    world.instance.report_run_failed(world.make_run(request.tags))
    world.ahead = 0.0
    assert "failed" in world.said(301)
    world.edit(renamed(16))
    [request] = world.asked(0)
    assert world.over([request]) == [["1"]]
    world.instance.report_run_failed(world.make_run(request.tags))
    world.ahead = 0.0
    assert "in 20 minutes" in world.said(0)
    assert world.load().success
    assert "nothing new: 60 cases compared: 0 added, 0 changed, 0 gone" in world.said(0)
    assert world.remembered.asked is None
    assert world.remembered.watermark == T0 + 1000


def test_a_persons_run_that_did_not_read_the_export_is_no_cure(world: World) -> None:
    world.edit(renamed(15))
    [request] = world.asked()
    world.instance.report_run_failed(world.make_run(request.tags))
    world.ahead = 0.0
    published = defs.resolve_job_def("load_cases").execute_in_process(
        instance=world.instance, tags={SINGLE: world.keys[1]}, asset_selection=[dg.AssetKey("pg_tables")],
        run_config=QUIET, raise_on_error=False,
    )  # fmt: skip
    assert published.success
    assert world.titles()[15] == "Title 15"
    [request] = world.asked(0)
    assert world.load(request.tags).success
    assert world.said(1).startswith("succeeded")
    assert world.titles()[15] == "New 15"


def test_what_was_landed_and_not_published_is_brought_in(world: World) -> None:
    world.edit(renamed(15, 45))
    assert world.load(job="land_cases").success, "as a plan does"
    world.edit(renamed(25))
    busy = world.make_run({SINGLE: world.keys[1]})
    assert "1 changed, 0 gone; 2 partitions were landed and not published. Waits for" in world.said()
    world.instance.report_run_canceled(busy)
    requests = world.asked()
    assert world.over(requests) == [["1", "2"], ["4"]]
    for each in requests:
        assert world.load(each.tags).success
    assert world.said(1).startswith("succeeded")
    assert {world.titles()[n] for n in (15, 25, 45)} == {"New 15", "New 25", "New 45"}


def test_what_waits_though_its_runs_succeed_is_asked_for_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_SYNC_PARTITIONS", "2")
    world.edit(renamed(5, 15, 25, 35, 45))
    assert world.load(job="land_cases").success
    world.age()
    over = []
    for _ in range(3):
        [request] = world.asked()
        over += world.over([request])
        world.make_run(request.tags, "SUCCESS")  # as where the texts wait in a batch
    assert over == [["0", "1"], ["2", "3"], ["4"]]
    assert world.said(1).startswith("succeeded")


def test_a_range_that_was_deleted_is_not_asked_for_for_ever(world: World) -> None:
    world.edit(renamed(15, 55))
    requests = world.asked()
    assert world.over(requests) == [["1"], ["5"]]
    world.instance.delete_dynamic_partition("case_ranges", world.keys[5])
    for each in world.asked(0):
        assert world.load(each.tags).success
    assert world.said(1).startswith("succeeded")
    assert {world.titles()[n] for n in (15, 55)} == {"New 15", "New 55"}
    assert world.remembered.asked is None


def test_a_clock_that_was_ahead_is_forgotten(world: World) -> None:
    assert "nothing new" in world.said(30 * 86_400)
    world.ahead = 0.0
    world.edit(renamed(15))
    [request] = world.asked(0)
    world.instance.report_run_failed(world.make_run(request.tags))
    assert world.over(world.asked(-30 * 86_400)) == [["1"]], "by the clock of now that run failed in the future"


def test_a_database_that_fails_while_it_is_asked_is_told(world: World) -> None:
    execute(world.database, "ALTER TABLE landing.cases RENAME TO elsewhere")
    world.edit(renamed(15))
    assert world.said().startswith('not readable: relation "landing.cases" does not exist')


def test_another_space_is_not_filled_unasked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_DIMENSIONS", "32")
    world.edit(renamed(15))
    said = world.said()
    assert said.startswith("nothing loaded yet: the settings name space_lexical_32")
    assert "and reads are on space_lexical_64. `qbench run` fills it" in said
    monkeypatch.setenv("QBENCH_DIMENSIONS", "64")
    assert world.over(world.asked(0)) == [["1"]]


def test_what_the_delete_guard_stopped_is_a_persons_decision(world: World) -> None:
    with closing(sqlite3.connect(world.export)) as connection, connection:
        insert_cases(connection, [case(n, f"Title {n}", updated_on=T0) for n in range(61, 161)])
    world.age()
    for each in world.asked():
        assert world.load(each.tags).success
    assert world.said().startswith("succeeded")
    world.edit("DELETE FROM cases WHERE id > 80")
    [request] = world.asked()
    assert not world.load(request.tags).success
    world.ahead = 0.0
    said = world.said(0)
    assert said.startswith("stopped by the delete guard: run ")
    assert "80 of their" in said
    assert "run once with --allow-deletes" in said
    assert "It is tried again when the export has changed" in said
    assert world.said(100_000).startswith("stopped by the delete guard")
    assert len(world.titles()) == 160
    assert world.load(
        config={name: {"config": {"allow_deletes": True}} for name in ("sqlite_cases", "pg_tables")}
    ).success
    assert "0 added, 0 changed, 0 gone" in world.said(0)
    assert world.remembered.asked is None
    assert len(world.titles()) == 80


def test_off_and_quiet_hours(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.edit(renamed(15))
    monkeypatch.setenv("QBENCH_SYNC_INTERVAL_S", "0")
    assert world.said(10_000).startswith("off: QBENCH_SYNC_INTERVAL_S is 0")
    monkeypatch.setenv("QBENCH_SYNC_INTERVAL_S", "60")
    here = time.localtime(time.time() + world.ahead)
    monkeypatch.setenv("QBENCH_TIMEZONE", "Asia/Kolkata")  # five and a half hours ahead of UTC
    there = (time.gmtime(time.time() + world.ahead).tm_hour * 60 + here.tm_min + 330) % 1440
    begin, end = (there - 10) % 1440, (there + 10) % 1440
    monkeypatch.setenv("QBENCH_QUIET_HOURS", f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}")
    assert "(Asia/Kolkata)" in world.said(0)
    monkeypatch.setenv("QBENCH_TIMEZONE", "UTC")
    assert world.over(world.asked(0)) == [["1"]]


def test_a_file_that_is_missing_or_written_or_locked_or_damaged(world: World, tmp_path: Path) -> None:
    kept = tmp_path / "kept.db"
    world.export.rename(kept)
    assert f"file missing: {world.export}: there is no such file" in world.said()
    with closing(sqlite3.connect(kept)) as connection, connection:
        connection.execute(renamed(15))
    kept.rename(world.export)
    now = time.time() + world.ahead
    os.utime(world.export, (now, now))
    assert "being written: " in world.said(0)
    os.utime(world.export, (now - 60, now - 60))
    with closing(sqlite3.connect(world.export, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        said = world.said(0)
        assert said.startswith("not readable: ")
        assert "If another program is writing it, wait until it is done" in said
        writer.execute("ROLLBACK")
    shutil.copyfile(world.export, kept)
    os.truncate(world.export, world.export.stat().st_size - 100)
    world.age()
    assert "is damaged (cut off" in world.said(0)
    shutil.copyfile(kept, world.export)
    world.age()
    assert world.over(world.asked(0)) == [["1"]]


@pytest.mark.parametrize("how", ["other inode", "shrunk"])
def test_a_file_that_was_replaced_is_compared_whole(world: World, tmp_path: Path, how: str) -> None:
    world.edit("UPDATE cases SET updated_on = updated_on + 90000")
    for each in world.asked():
        assert world.load(each.tags).success
    world.said()
    if how == "other inode":
        other = small_export(tmp_path / "other.db")
        with closing(sqlite3.connect(other)) as connection, connection:
            connection.execute("UPDATE cases SET updated_on = updated_on + 90000")
            connection.execute("UPDATE cases SET title = 'Silent' WHERE id = 15")
        world.age(other)
        other.replace(world.export)
    else:
        with closing(sqlite3.connect(world.export, isolation_level=None)) as connection:
            connection.execute("CREATE TABLE ballast AS SELECT zeroblob(100000) AS padding")
        world.age()
        assert "nothing new" in world.said()
        with closing(sqlite3.connect(world.export, isolation_level=None)) as connection:
            connection.execute("UPDATE cases SET title = 'Silent' WHERE id = 15")
            connection.execute("DROP TABLE ballast")
            connection.execute("VACUUM")
        world.age()
    assert world.over(world.asked()) == [["1"]]


def test_the_sensor_looks_often_and_runs_by_itself() -> None:
    assert export_changes.minimum_interval_seconds == 30
    assert export_changes.default_status == dg.DefaultSensorStatus.RUNNING
