"""Undoing a sync: exactly what was, in one transaction, and left so by the next run until the source changes."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qbench_dagster.adapters.history import PublishingRun, list_holds, list_syncs
from qbench_dagster.adapters.parity import check_accounting, check_completeness, evaluate
from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.adapters.publishing import partition_counts, publish_cases, ranges_due
from qbench_dagster.adapters.reading import status
from qbench_dagster.adapters.report import write_report
from qbench_dagster.adapters.rollback import count_held, plan_rollback, release_holds, roll_back
from qbench_dagster.adapters.space import Space, ensure_space
from qbench_dagster.core.history import RollbackRefusedError
from qbench_dagster.core.ranges import ranges_of
from qbench_dagster_tests.adapters.syncs import Source, draw_change, published
from qbench_dagster_tests.support import SPACE, case, execute, fill_space, rows

WHOLE = ranges_of(["from_0000000001"])["from_0000000001"]
CASES = [
    case(1, "Log in", section_id=11, steps_separated=[{"content": "Open", "expected": "Shown"}, {"content": "Type"}],
         preconditions="A user\nA password", refs="PROJ-1, PROJ-2", custom_fields={"odd": [1, {"a": None}]}),
    case(2, "Log out", steps_separated=[{"content": "Press log out", "expected": "Gone"}], refs="#12"),
    case(3, "Nothing to do", is_automated=1),
    case(4, "Upload", steps="1. Pick a file\n2. Send it"),
    case(5, "   "),
]  # fmt: skip


@pytest.fixture
def source(clean_database: Database, tmp_path: Path) -> Source:
    """Five cases, loaded."""
    found = Source(clean_database, tmp_path, CASES)
    found.sync()
    return found


def balanced(database: Database) -> bool:
    """Whether every case is accounted for, and whole."""
    keys = {key for (keys,) in rows(database, "SELECT partitions FROM store.sync_runs") for key in keys}
    ranges = list(ranges_of(keys or [WHOLE.key]).values())
    return check_accounting(database, ranges).passed and check_completeness(database, SPACE).passed


# What was


@pytest.mark.parametrize("seed", [1, 729])
def test_ten_syncs_undone_newest_first_give_what_stood_before_each(
    clean_database: Database, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    source = Source(clean_database, tmp_path, [case(n, f"Case {n % 7}") for n in range(1, 16)])
    stood: dict[int, Any] = {}
    before = published(clean_database)
    for number in range(10):
        for _ in range(0 if number == 0 else 6):
            draw_change(source, draw)
        if number == 5:  # a renamed section changes cases that nobody touched
            source.tables = {"sections": ((10, "Renamed", None), (11, "Login", 10))}
        source.sync(target=10, max_delete_share=1)
        stood[source.newest], before = before, published(clean_database)
    assert len(stood) == 10
    assert len({str(state) for state in stood.values()}) == 10
    last = published(clean_database)

    undone = {}
    for sync_id in sorted(stood, reverse=True):
        undone[sync_id] = roll_back(clean_database, sync_id, by="tester")
        assert published(clean_database) == stood[sync_id]
        assert balanced(clean_database), sync_id
    held = published(clean_database)
    again = source.sync(target=10)
    assert published(clean_database) == held, "the next run leaves it so"
    assert again.texts_embedded == 0

    states = [*list(stood.values())[1:], last]
    for sync_id, state in zip(sorted(undone), states, strict=True):  # undone as well, the last rollback first
        roll_back(clean_database, undone[sync_id], by="tester")
        assert published(clean_database) == state
        assert balanced(clean_database), sync_id
    assert rows(clean_database, "SELECT * FROM store.held_cases") == []
    assert source.sync(target=10).rows_written == 0


def test_a_rollback_is_an_entry_of_its_own(source: Source) -> None:
    source.edit(1, title="Other")
    source.cases[6] = case(6, "New")
    del source.cases[2]
    source.sync()
    undone = source.newest
    ingested = rows(source.database, "SELECT ingested_at FROM store.test_documents WHERE test_case_id = 1")
    made = roll_back(source.database, undone, by="somebody")
    entry, sync, _ = list_syncs(source.database)
    assert (entry.id, entry.kind, entry.undoes, entry.by, entry.run_id) == (made, "rollback", undone, "somebody", None)
    assert (entry.added, entry.changed, entry.removed) == (1, 1, 1)
    assert entry.finished_at is not None
    assert entry.partitions == sync.partitions == [WHOLE.key]
    assert (sync.undone_by, sync.added, sync.changed, sync.removed) == (made, 1, 1, 1)
    assert ingested == rows(source.database, "SELECT ingested_at FROM store.test_documents WHERE test_case_id = 1")
    assert rows(
        source.database, "SELECT 1 FROM store.test_documents WHERE test_case_id = 1 AND updated_at > ingested_at"
    )


def test_the_preview_says_what_would_be_done_and_does_nothing(source: Source) -> None:
    source.edit(1, title="Other")
    source.cases[6] = case(6, "New")
    del source.cases[2]
    source.sync()
    before = published(source.database)
    plan = plan_rollback(source.database, source.newest)
    assert (plan.leave, plan.change_back, plan.come_back, plan.cases) == (1, 1, 1, 3)
    assert plan.objections() == []
    assert list(plan.examples) == [(1, "changes back", "Log in"), (2, "comes back", "Log out"), (6, "leaves", "New")]
    assert published(source.database) == before
    assert len(list_syncs(source.database)) == 2
    with pytest.raises(DatabaseError, match="There is no sync 999999"):
        plan_rollback(source.database, 999_999)


# Held until the source changes


def test_what_was_undone_is_not_done_again_until_the_source_changes(source: Source) -> None:
    loaded = published(source.database)
    source.edit(1, title="Other")
    source.cases[6] = case(6, "New")
    del source.cases[2]
    source.sync()
    synced = published(source.database)
    made = roll_back(source.database, source.newest, by="tester")
    for _ in range(2):
        outcome = source.sync()
        assert published(source.database) == loaded
        assert (outcome.published[WHOLE.key].written, outcome.published[WHOLE.key].removed) == (0, 0)
        assert ranges_due(source.database, [WHOLE]) == set()
    counts = partition_counts(source.database, [WHOLE])[WHOLE.key]
    # case 5 has no title; 6 is kept out; 2 is published beside the source
    assert (counts.source_cases, counts.published, counts.rejected) == (5, 4, 2)
    assert (counts.held, counts.brought_back, counts.incomplete, counts.balanced) == (3, 1, 0, True)
    assert "3 are held by a rollback" in counts.shortfall()
    found = check_accounting(source.database, [WHOLE])
    assert found.passed, found
    assert found.summary == (
        "5 source cases + 1 that a rollback brought back = 4 published + 2 rejected; "
        "3 held by a rollback, see qbench history"
    )
    told = status(source.database)
    assert (told["rejected"], told["held"], told["brought_back"]) == (2, 3, 1)
    (kept_out,) = [row for row in told["rejects"] if row["reason"] == "rolled_back"]
    assert kept_out["cases"] == 1
    assert f"qbench rollback {made} --release" in kept_out["example"]

    source.edit(1, title="Third")  # each change of the source lifts the hold of that case alone
    source.sync()
    assert rows(source.database, "SELECT title FROM store.test_documents WHERE test_case_id = 1") == [("Third",)]
    assert rows(source.database, "SELECT test_case_id FROM store.held_cases ORDER BY 1") == [(2,), (6,)]
    source.edit(6, title="Newer")
    source.cases[2] = case(2, "Log out for good")
    source.sync()
    assert rows(source.database, "SELECT count(*) FROM store.held_cases") == [(0,)]
    assert rows(source.database, "SELECT test_case_id FROM store.test_documents ORDER BY 1") == [
        (n,) for n in (1, 2, 3, 4, 6)
    ]
    assert synced != published(source.database)
    assert balanced(source.database)


def test_the_parity_report_compares_all_but_what_is_held(source: Source, tmp_path: Path) -> None:
    source.edit(1, steps_separated=[{"content": "Words that nobody has seen"}])
    source.cases[6] = case(6, "New")
    del source.cases[2]
    source.sync()
    roll_back(source.database, source.newest, by="tester")
    made = evaluate(source.database, SPACE, [WHOLE], rows_in_export=5, details={}, progress=lambda _: None)
    findings = {finding["name"]: finding for finding in made.report["findings"]}
    assert [name for name, finding in findings.items() if not finding["passed"]] == []
    assert findings["no_word_lost"]["numbers"]["compared"] == 1, "case 4; the words of 1 are of an older source"
    assert findings["published_rows_are_what_was_staged"]["numbers"]["compared"] == 2
    assert findings["source_is_published_or_rejected"]["numbers"]["held"] == 3
    assert {(row["case_id"], row["reason"]) for row in made.report["rejects"]} == {
        (5, "blank_title"),
        (6, "rolled_back"),
    }
    page, _ = write_report(made.report, tmp_path)
    shown = page.read_text(encoding="utf-8")
    assert "brought back by a rollback" in shown
    assert "too many</p>" not in shown
    execute(source.database, "UPDATE store.test_steps SET action = 'Lost' WHERE test_case_id = 4")
    made = evaluate(source.database, SPACE, [WHOLE], rows_in_export=5, details={}, progress=lambda _: None)
    assert not made.passed, "all others are compared as ever"


def test_a_source_that_went_back_and_forth_is_followed(source: Source) -> None:
    """Held at "Log in" against "Other"; the source says "Log in" for a while, and then "Other" again: a new change."""
    source.edit(1, title="Other")
    source.sync()
    roll_back(source.database, source.newest, by="tester")
    source.edit(1, title="Log in")
    assert source.sync().published[WHOLE.key].written == 0
    assert rows(source.database, "SELECT * FROM store.held_cases") == []
    source.edit(1, title="Other")
    assert source.sync().published[WHOLE.key].written == 1


def test_a_stale_hold_makes_its_range_due(source: Source) -> None:
    source.edit(1, title="Other")
    source.sync()
    roll_back(source.database, source.newest, by="tester")
    execute(source.database, "UPDATE staging.test_documents s SET doc_hash = t.doc_hash FROM store.test_documents t "
            "WHERE t.test_case_id = s.case_id")  # fmt: skip
    assert ranges_due(source.database, [WHOLE]) == {WHOLE.key}


def test_a_rejected_case_that_is_brought_back_counts_once(source: Source) -> None:
    source.edit(1, title="  ")
    source.sync()
    roll_back(source.database, source.newest, by="tester")
    source.sync()
    counts = partition_counts(source.database, [WHOLE])[WHOLE.key]
    assert (counts.source_cases, counts.published, counts.rejected, counts.brought_back) == (5, 4, 2, 1)
    assert balanced(source.database)
    source.edit(1, title="Log in once more")
    assert source.sync().published[WHOLE.key].written == 1
    assert balanced(source.database)


def test_undoing_the_rollback_lifts_its_holds(source: Source) -> None:
    source.edit(1, title="Other")
    source.sync()
    synced = published(source.database)
    made = roll_back(source.database, source.newest, by="tester")
    (held,) = list_holds(source.database, case_id=1)
    assert (held["sync_id"], held["cases"], held["kept_out"], held["brought_back"]) == (made, 1, 0, 0)
    assert list_holds(source.database, case_id=3) == []
    source.edit(1, title="Staged, and not published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qbench_dagster_tests.support.publish_cases", lambda *_, **__: None)
        source.sync()
    again = roll_back(source.database, made, by="tester")
    assert published(source.database) == synced
    assert rows(source.database, "SELECT * FROM store.held_cases") == [], "what is staged since is newer, and due"
    assert publish_cases(source.database, SPACE, WHOLE, PublishingRun("later", "tester")).written == 1
    plan = plan_rollback(source.database, again)
    assert plan.changed_since == 1


def test_holds_are_let_go_without_taking_back_what_came_since(source: Source) -> None:
    for case_id in (1, 2, 3):
        source.edit(case_id, title="Undone")
    source.cases[6] = case(6, "New")
    source.sync()
    made = roll_back(source.database, source.newest, by="tester")
    source.edit(2, title="Newer")
    source.sync()
    stood = published(source.database)
    assert count_held(source.database, made) == 3
    assert published(source.database) == stood
    assert release_holds(source.database, made) == 3
    assert published(source.database) == stood
    assert ranges_due(source.database, [WHOLE]) == {WHOLE.key}
    assert source.sync().published[WHOLE.key].written == 3
    titles = "SELECT title FROM store.test_documents WHERE test_case_id IN (1, 2, 3, 6) ORDER BY test_case_id"
    assert rows(source.database, titles) == [("Undone",), ("Newer",), ("Undone",), ("New",)]
    assert count_held(source.database, made) == 0
    assert balanced(source.database)
    for ask in (count_held, release_holds):
        with pytest.raises(DatabaseError, match="There is no sync 999999"):
            ask(source.database, 999_999)


def test_only_the_holds_of_that_rollback_are_let_go(source: Source) -> None:
    made = []
    for case_id in (1, 2):
        source.edit(case_id, title="Undone")
        source.sync()
        made.append(roll_back(source.database, source.newest, by="tester"))
    assert release_holds(source.database, made[0]) == 1
    assert rows(source.database, "SELECT test_case_id, sync_id FROM store.held_cases") == [(2, made[1])]


# Refused


def test_a_run_that_goes_on_is_not_undone_in_part(source: Source) -> None:
    source.edit(1, title="Second")
    source.sync(finish=False)
    before = published(source.database)
    with pytest.raises(RollbackRefusedError, match=rf"Sync {source.newest} is not finished: .*--force"):
        roll_back(source.database, source.newest, by="tester")
    assert published(source.database) == before
    roll_back(source.database, source.newest, by="tester", force=True)
    assert balanced(source.database)


def test_what_something_later_depends_on_is_not_undone_unless_forced(source: Source) -> None:
    source.edit(1, title="Second")
    source.edit(3, title="Second too")
    source.sync()
    second = source.newest
    source.edit(1, title="Third")
    source.sync()
    third, before = source.newest, published(source.database)
    with pytest.raises(RollbackRefusedError, match=rf"1 of its cases changed again since \(1 by sync {third}\)"):
        roll_back(source.database, second, by="tester")
    assert published(source.database) == before
    assert len(list_syncs(source.database)) == 3
    roll_back(source.database, second, by="tester", force=True)
    titles = "SELECT title FROM store.test_documents WHERE test_case_id IN (1, 3) ORDER BY test_case_id"
    assert rows(source.database, titles) == [("Log in",), ("Nothing to do",)]
    source.sync()
    assert rows(source.database, titles) == [("Log in",), ("Nothing to do",)]
    assert balanced(source.database)


def test_a_store_somebody_wrote_to_is_told(source: Source) -> None:
    source.edit(1, title="Second")
    source.sync()
    execute(source.database, "UPDATE store.test_documents SET doc_hash = '' WHERE test_case_id = 1")
    assert plan_rollback(source.database, source.newest).changed_by == [(1, None)]
    with pytest.raises(RollbackRefusedError, match=r"1 by someone outside of any sync"):
        roll_back(source.database, source.newest, by="tester")


def test_nothing_is_undone_twice(source: Source) -> None:
    source.edit(1, title="Second")
    source.sync()
    undone = source.newest
    made = roll_back(source.database, undone, by="tester")
    with pytest.raises(RollbackRefusedError, match=rf"nothing to undo.*as it was before it: sync {made} undid it"):
        roll_back(source.database, undone, by="tester", force=True)


def test_no_case_comes_back_without_its_vectors(source: Source) -> None:
    """Reads were moved to a space that was filled after the texts had changed."""
    source.edit(1, title="Second", steps_separated=[{"content": "Something else"}])
    source.sync()
    other = Space("space_other_32", "lexical-v1", 32, "halfvec")
    fill_space(source.database, other, [WHOLE])
    execute(source.database, "UPDATE store.spaces SET active = false")
    execute(source.database, "UPDATE store.spaces SET active = true WHERE name = %s", other.name)
    before = published(source.database)
    told = r"3 texts .* have no vector in the space that is read.* space_lexical_64 has them: qbench cutover space_lex"
    with pytest.raises(RollbackRefusedError, match=told):
        roll_back(source.database, source.newest, by="tester", force=True)
    assert published(source.database) == before
    execute(source.database, f"TRUNCATE {SPACE.name}.step_embeddings")
    with pytest.raises(RollbackRefusedError, match=r"No other space has them\. Put the cases back in TestRail"):
        roll_back(source.database, source.newest, by="tester")


def test_a_uid_that_another_case_has_is_named(source: Source) -> None:
    del source.cases[1]
    source.sync()
    execute(source.database, "UPDATE store.test_documents SET uid = 'testrail_1' WHERE test_case_id = 3")
    told = "Case 1 would get its uid testrail_1 back, which case 3 has now"
    with pytest.raises(RollbackRefusedError, match=told):
        roll_back(source.database, source.newest, by="tester", force=True)


# Beside others


def waiting(database: Database, name: str) -> bool:
    """Whether the session of that name waits for a lock."""
    query = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    return bool(rows(database, query, name))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def stopped_at(database: Database, table: str) -> Any:
    """Whoever writes to `table` waits until the end of the block."""
    with database.connection("stopper") as connection, connection.transaction():
        connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")  # type: ignore[call-overload]
        yield


def begun(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """`work` in a thread, and where its result or its error will be."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except RollbackRefusedError as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


def staged(source: Source, case_id: int, **columns: Any) -> None:
    """Bring a change as far as staging and its vectors."""
    source.edit(case_id, **columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qbench_dagster_tests.support.publish_cases", lambda *_, **__: None)
        source.sync()


def test_a_sync_beside_a_rollback_waits_and_leaves_what_it_undid(source: Source) -> None:
    source.edit(1, title="Second")
    source.sync()
    undone = source.newest
    staged(source, 3, title="Meanwhile")
    with stopped_at(source.database, "store.held_cases"):  # the last table a rollback writes to
        undoing, _ = begun(lambda: roll_back(source.database, undone, by="tester"))
        until(lambda: waiting(source.database, f"qbench rollback {undone}"))
        publishing, done = begun(
            lambda: publish_cases(source.database, SPACE, WHOLE, PublishingRun("beside", "tester"))
        )
        until(lambda: waiting(source.database, f"qbench publish {WHOLE.key}"))
        assert rows(source.database, "SELECT title FROM store.test_documents WHERE test_case_id = 1") == [("Second",)]
    undoing.join()
    publishing.join()
    assert (done[0].written, done[0].removed) == (1, 0)
    titles = "SELECT test_case_id, title FROM store.test_documents WHERE test_case_id IN (1, 3) ORDER BY 1"
    assert rows(source.database, titles) == [(1, "Log in"), (3, "Meanwhile")]
    assert balanced(source.database)


@pytest.mark.parametrize("title", [None, "Third"])
def test_a_rollback_beside_a_sync_waits_and_sees_what_it_did(source: Source, title: str | None) -> None:
    source.edit(1, title="Second")
    source.sync()
    undone = source.newest
    staged(source, 1 if title else 3, title=title or "Meanwhile")
    with stopped_at(source.database, "store.sync_runs"):
        publishing, _ = begun(lambda: publish_cases(source.database, SPACE, WHOLE, PublishingRun("beside", "tester")))
        until(lambda: waiting(source.database, f"qbench publish {WHOLE.key}"))
        undoing, result = begun(lambda: roll_back(source.database, undone, by="tester"))
        until(lambda: waiting(source.database, f"qbench rollback {undone}"))
    publishing.join()
    undoing.join()
    shown = rows(source.database, "SELECT title FROM store.test_documents WHERE test_case_id = 1")
    assert isinstance(result[0], RollbackRefusedError) is bool(title)
    assert shown == [(title or "Log in",)]
    assert balanced(source.database)


def test_killed_in_the_middle_it_has_done_nothing(source: Source) -> None:
    source.edit(1, title="Second")
    del source.cases[2]
    source.sync()
    undone, before = source.newest, published(source.database)
    code = (
        "import sys; from qbench_dagster.adapters.postgres import Database; "
        "from qbench_dagster.adapters.rollback import roll_back; "
        "roll_back(Database(sys.argv[1]), int(sys.argv[2]), by='tester')"
    )
    with stopped_at(source.database, "store.held_cases"):  # everything but the holds is written by then
        process = subprocess.Popen([sys.executable, "-c", code, source.database.url, str(undone)])
        until(lambda: waiting(source.database, f"qbench rollback {undone}"))
        process.kill()
        process.wait()
        assert published(source.database) == before
    until(
        lambda: (
            not rows(source.database, "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'qbench rollback%%'")
        )
    )
    assert published(source.database) == before
    assert [sync.kind for sync in list_syncs(source.database)] == ["sync", "sync"]
    roll_back(source.database, undone, by="tester")
    assert balanced(source.database)


def test_other_spaces_are_not_asked_without_need(source: Source) -> None:
    """A space of other settings, empty as yet, does not stand in the way."""
    ensure_space(source.database, Space("space_other_32", "lexical-v1", 32, "halfvec"))
    source.edit(1, title="Second")
    source.sync()
    assert plan_rollback(source.database, source.newest).objections() == []
