"""Each run that changes something is one entry, with what it replaced; kept for a while, and then purged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qbench_dagster.adapters.history import (
    PublishingRun,
    Purged,
    finish_run,
    list_syncs,
    purge_history,
    read_changes,
)
from qbench_dagster.adapters.landing import DeleteGuardError
from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.adapters.publishing import guard_removals, publish_cases
from qbench_dagster.adapters.rollback import plan_rollback, roll_back
from qbench_dagster.core.history import RollbackRefusedError, differences
from qbench_dagster.core.ranges import ranges_of
from qbench_dagster_tests.adapters.syncs import Source, published
from qbench_dagster_tests.support import SPACE, case, execute, rows

WHOLE = ranges_of(["from_0000000001"])["from_0000000001"]


@pytest.fixture
def source(clean_database: Database, tmp_path: Path) -> Source:
    """Ten cases, not loaded yet."""
    steps = [{"content": "Open", "expected": "Shown"}]
    return Source(clean_database, tmp_path, [case(n, f"Case {n}", steps_separated=steps) for n in range(1, 11)])


AGED = (
    "UPDATE store.sync_runs SET started_at = started_at - interval '91 days', "
    "finished_at = finished_at - interval '91 days' WHERE id <= %s"
)


def log(database: Database) -> list[tuple[Any, ...]]:
    """The changes without their hashes: sync, case, whether it was and is published."""
    query = "SELECT sync_id, test_case_id, before_hash IS NOT NULL, after_hash IS NOT NULL FROM store.change_log"
    return rows(database, f"{query} ORDER BY 1, 2")


# What is entered


def test_a_run_is_one_entry_over_all_its_partitions(source: Source) -> None:
    keys = list(source.sync(target=4, finish=False).ranges)
    (entry,) = list_syncs(source.database)
    assert len(keys) > 1
    assert (entry.kind, entry.run_id, entry.by, entry.partitions) == ("sync", "run-1", "tester", keys)
    assert (entry.added, entry.changed, entry.removed, entry.undoes) == (10, 0, 0, None)
    assert entry.finished_at is None
    assert log(source.database) == [(entry.id, n, False, True) for n in range(1, 11)]
    assert rows(source.database, "SELECT * FROM store.case_versions") == [], "a first load replaces nothing"
    finish_run(source.database, PublishingRun("run-1", "tester"), 90)
    assert list_syncs(source.database)[0].finished_at is not None


def test_a_run_that_changes_nothing_makes_none(source: Source) -> None:
    source.sync()
    before = rows(source.database, "SELECT xmin::text, * FROM store.sync_runs")
    source.sync()
    finish_run(source.database, PublishingRun("run-2", "tester"), 90)
    assert rows(source.database, "SELECT xmin::text, * FROM store.sync_runs") == before


def test_what_is_replaced_is_kept_once(source: Source) -> None:
    source.sync()
    first = source.newest
    hashes = dict(rows(source.database, "SELECT test_case_id, doc_hash FROM store.test_documents"))
    for title in ("Other", "Case 1", "Other"):  # there and back: two versions, however often
        source.edit(1, title=title)
        source.cases.pop(2, None)
        source.sync()
    entries = list_syncs(source.database)
    assert [(each.added, each.changed, each.removed) for each in entries] == [
        (0, 1, 0),
        (0, 1, 0),
        (0, 1, 1),
        (10, 0, 0),
    ]
    assert [each.id for each in entries] == [first + 3, first + 2, first + 1, first], "numbers without gaps"
    kept = rows(source.database, "SELECT test_case_id, doc_hash FROM store.case_versions ORDER BY 1")
    assert sorted(case_id for case_id, _ in kept) == [1, 1, 2]
    assert {(1, hashes[1]), (2, hashes[2])} < set(kept)
    assert log(source.database)[10:] == [
        (first + 1, 1, True, True), (first + 1, 2, True, False), (first + 2, 1, True, True), (first + 3, 1, True, True)
    ]  # fmt: skip
    assert [each.did for each in list_syncs(source.database, case_id=2)] == ["removed", "added"]
    assert [each.did for each in list_syncs(source.database, case_id=1, limit=2)] == ["changed", "changed"]


def test_a_step_that_is_tried_again_stays_one_entry(source: Source) -> None:
    source.sync()
    source.edit(1, title="Second")
    source.sync()
    source.edit(1, title="Third")
    source._runs -= 1  # the same run, over what changed meanwhile
    source.sync()
    assert len(list_syncs(source.database)) == 2
    roll_back(source.database, source.newest, by="tester")
    assert rows(source.database, "SELECT title FROM store.test_documents WHERE test_case_id = 1") == [("Case 1",)]


def test_what_fails_leaves_no_entry(source: Source) -> None:
    source.sync()
    source.edit(1, title="Second")
    execute(source.database, "ALTER TABLE store.test_documents ADD CONSTRAINT planted CHECK (title <> 'Second')")
    try:
        with pytest.raises(Exception, match="planted"):
            source.sync()
    finally:
        execute(source.database, "ALTER TABLE store.test_documents DROP CONSTRAINT planted")
    assert len(list_syncs(source.database)) == 1
    assert rows(source.database, "SELECT * FROM store.case_versions") == []


# What it says


def test_a_diff_shows_cases_before_and_after(source: Source) -> None:
    source.sync()
    source.edit(1, title="Other", steps_separated=[{"content": "Open"}, {"content": "Close", "expected": "Gone"}])
    source.cases[11] = case(11, "New")
    del source.cases[2]
    source.sync()
    sync_id = source.newest
    source.edit(1, title="Third")
    source.sync()  # what was after is a version by now
    entry, changes = read_changes(source.database, sync_id)
    assert (entry.id, entry.added, entry.changed, entry.removed) == (sync_id, 1, 1, 1)
    assert [(each.case_id, each.what, each.lost) for each in changes] == [
        (1, "changed", ()), (2, "removed", ()), (11, "added", ())
    ]  # fmt: skip
    told = [(each.what, each.before, each.after) for each in differences(changes[0].before, changes[0].after)]
    assert told == [
        ("title", "Case 1", "Other"),
        ("step 1", "Open\nexpected: Shown", "Open"),
        ("step 2", None, "Close\nexpected: Gone"),
    ]
    assert changes[1].after is None
    assert changes[2].before is None
    assert read_changes(source.database, sync_id, case_id=2)[1] == [changes[1]]
    assert read_changes(source.database, sync_id, limit=2)[1] == changes[:2]
    assert read_changes(source.database, sync_id, case_id=3)[1] == []
    with pytest.raises(DatabaseError, match="There is no sync 999999"):
        read_changes(source.database, 999_999)


def test_a_version_that_is_not_kept_is_said_so(source: Source) -> None:
    source.sync()
    source.edit(1, title="Other")
    source.sync()
    execute(source.database, "DELETE FROM store.case_versions")
    assert read_changes(source.database, source.newest)[1][0].lost == ("before",)
    with pytest.raises(RollbackRefusedError, match="1 of its cases are not kept as they were before it"):
        roll_back(source.database, source.newest, by="tester", force=True)


# Purged


def test_what_is_older_is_purged_and_says_why_not(source: Source) -> None:
    source.sync()
    first = source.newest
    for title in ("Second", "Third"):
        source.edit(1, title=title)
        del source.cases[max(source.cases)]
        source.sync()
    assert purge_history(source.database, 90) == Purged()
    execute(source.database, AGED, first + 1)
    execute(source.database, "UPDATE store.case_versions SET saved_at = now() - interval '91 days'")
    # The first's ten, two of the second; of its two versions one is what the third begins from.
    assert purge_history(source.database, 90) == Purged(syncs=2, changes=12, versions=2)
    assert purge_history(source.database, 90) == Purged()
    assert len(list_syncs(source.database)) == 3
    with pytest.raises(DatabaseError, match=rf"sync {first + 1} changed was purged on .* QBENCH_HISTORY_DAYS"):
        read_changes(source.database, first + 1)
    assert f"What sync {first + 1} replaced was purged on" in plan_rollback(source.database, first + 1).objections()[0]
    with pytest.raises(RollbackRefusedError, match="qbench restore"):
        roll_back(source.database, first + 1, by="tester", force=True)
    roll_back(source.database, first + 2, by="tester")
    assert rows(source.database, "SELECT title FROM store.test_documents WHERE test_case_id IN (1, 9) ORDER BY 1") == [
        ("Case 9",), ("Second",)
    ]  # fmt: skip


def test_a_rollback_that_holds_cases_is_not_purged(source: Source) -> None:
    source.sync()
    source.edit(1, title="Second")
    source.sync()
    synced = published(source.database)
    made = roll_back(source.database, source.newest, by="tester")
    execute(source.database, AGED, source.newest)
    execute(source.database, "UPDATE store.case_versions SET saved_at = now() - interval '91 days'")
    assert purge_history(source.database, 90).syncs == 2
    roll_back(source.database, made, by="tester")
    assert published(source.database) == synced


def test_a_run_that_takes_longer_than_the_history_is_kept_is_not_purged(source: Source) -> None:
    source.sync(finish=False)
    execute(source.database, "UPDATE store.sync_runs SET started_at = now() - interval '2 days'")
    assert purge_history(source.database, 1) == Purged(), "it is under way"
    finish_run(source.database, PublishingRun("run-1", "tester"), 1)
    assert purge_history(source.database, 1) == Purged(), "it has just ended"
    execute(source.database, "UPDATE store.sync_runs SET started_at = now() - interval '9 days', finished_at = NULL")
    assert purge_history(source.database, 1).syncs == 1, "it was killed"


def test_a_version_that_is_kept_anew_while_others_are_purged_stays(source: Source) -> None:
    """It is of a sync that the purge cannot see yet."""
    source.sync()
    source.edit(1, title="Second")
    source.sync()
    execute(source.database, AGED, source.newest)
    execute(source.database, "UPDATE store.case_versions SET saved_at = now() - interval '1 day'")
    assert purge_history(source.database, 90) == Purged(syncs=2, changes=11, versions=0)


# The guard


@pytest.fixture
def many(clean_database: Database, tmp_path: Path) -> Source:
    """200 cases, loaded in two partitions."""
    found = Source(clean_database, tmp_path, [case(n, f"Case {n % 9}") for n in range(1, 201)])
    found.sync(target=100)
    return found


def test_mass_rejects_stop_before_anything_is_changed(many: Source) -> None:
    before = published(many.database)
    for case_id in range(1, 61):
        many.edit(case_id, title=" ")
    many.edit(100, title="Also changed")
    told = (
        r"from_0000000001: 60 of 100 published cases would be taken away \(for instance 1, 2, 3, 4, 5\): they are gone "
        r"from the source, or rejected since .* more than 20%. Nothing of it was changed.*--allow-deletes .*pg_tables"
    )
    with pytest.raises(DeleteGuardError, match=told):
        many.sync(target=100, max_delete_share=0.2)
    assert published(many.database) == before
    assert len(list_syncs(many.database)) == 1
    ranges = list(ranges_of(["from_0000000001", "from_0000000101"]).values())
    with pytest.raises(DeleteGuardError, match="from_0000000001: 60 of 100"):
        guard_removals(many.database, ranges, 0.2)
    guard_removals(many.database, ranges, 0.6)
    many.sync(target=100, max_delete_share=1)  # confirmed
    assert (list_syncs(many.database)[0].changed, list_syncs(many.database)[0].removed) == (1, 60)


def test_many_small_losses_stop_a_run_too(many: Source) -> None:
    for case_id in [*range(1, 31), *range(101, 131)]:
        many.edit(case_id, title=" ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qbench_dagster_tests.support.publish_cases", lambda *_, **__: None)
        many.sync(target=100)
    low, high = ranges_of(["from_0000000001", "from_0000000101"]).values()
    for each in (low, high):
        guard_removals(many.database, [each], 0.2)
    guard_removals(many.database, [low, high], 0.3)
    with pytest.raises(DeleteGuardError, match="2 partitions from from_0000000001 to from_0000000101: 60 of 200"):
        guard_removals(many.database, [low, high], 0.2)


def test_what_a_rollback_brought_back_is_not_about_to_go(many: Source) -> None:
    for case_id in range(1, 61):
        del many.cases[case_id]
    many.sync(target=100)
    roll_back(many.database, many.newest, by="tester")
    done = publish_cases(many.database, SPACE, WHOLE, max_delete_share=0)
    assert (done.removed, done.brought_back, done.held) == (0, 60, 60)
    guard_removals(many.database, [WHOLE], 0)
