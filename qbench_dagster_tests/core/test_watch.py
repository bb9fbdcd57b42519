"""The sensor's states, without file, run or clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.watch import (
    Asked,
    Cursor,
    Fate,
    FileId,
    Rules,
    SeenRun,
    State,
    ask,
    fate_of,
    in_the_way,
    is_quiet,
    reasons_to_wait,
)

NOW = 1_800_000_000.0
FILE = FileId(7, 1000, int((NOW - 60) * 1e9))
LATER = replace(FILE, modified_ns=int((NOW - 30) * 1e9))
RULES = Rules(300, 3600, None, "UTC")
ASKED = Asked("k", ("a", "b"), FILE, 5.0)

numbers = st.integers(0, 2**62)
files = st.builds(FileId, numbers, numbers, numbers, numbers, numbers)
floats = st.floats(0, 1e12)
asked = st.builds(
    Asked, st.text(), st.lists(st.text()).map(tuple), files, st.none() | floats, st.integers(1, 99),
    st.integers(0, 99),
)  # fmt: skip
cursors = st.builds(Cursor, st.none() | files, st.none() | floats, st.none() | asked, floats, st.booleans())


@given(cursors)
def test_a_cursor_is_read_as_it_was_written(cursor: Cursor) -> None:
    assert Cursor.read(cursor.write()) == cursor


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", '{"file": 3}', '{"asked": {"key": "x"}}', '{"new": 1}'])
def test_a_cursor_that_cannot_be_read_is_forgotten(text: str | None) -> None:
    assert Cursor.read(text) == Cursor()


@pytest.mark.parametrize(
    ("hours", "clock", "quiet"),
    [
        (None, "03:00", False), ("22:00-06:00", "22:00", True), ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "06:00", False), ("22:00-06:00", "21:59", False), ("09:00-17:00", "09:00", True),
        ("09:00-17:00", "17:00", False), ("09:00-17:00", "08:59", False), ("00:00-00:00", "00:00", False),
    ],
)  # fmt: skip
def test_quiet_hours_may_go_over_midnight(hours: str | None, clock: str, quiet: bool) -> None:
    assert is_quiet(hours, clock) is quiet


def test_a_replaced_file_is_told_from_one_that_grew() -> None:
    grown = replace(FILE, size=2000, modified_ns=FILE.modified_ns + 1, wal_size=9)
    assert not grown.replaces(FILE)
    assert not FILE.replaces(None)
    assert replace(FILE, inode=8).replaces(FILE)
    assert replace(FILE, size=999).replaces(FILE)


def test_a_file_settles_and_the_log_beside_it_counts() -> None:
    def written(ago: float, wal_ago: float = 1e6) -> bool:
        return FileId(1, 1, int((NOW - ago) * 1e9), 1, int((NOW - wal_ago) * 1e9)).is_settling(NOW)

    assert written(4.9)
    assert written(1e6, 4.9)
    assert not written(5.1)
    assert not written(-86_400), "a wrong clock must not keep it from being read for ever"


@pytest.mark.parametrize(
    ("cursor", "file", "newest", "since"),
    [
        (Cursor(), FILE, 9000.0, None),
        (Cursor(FILE, 8000.0), LATER, 9000.0, 4400.0),
        (Cursor(FILE, 8000.0), LATER, 8000.0, 4400.0),
        (Cursor(FILE, 8000.0), LATER, 7999.0, None),
        (Cursor(FILE, 8000.0), LATER, None, None),
        (Cursor(FILE, 8000.0), replace(LATER, inode=8), 9000.0, None),
        (Cursor(FILE, 8000.0, replace(ASKED, file=replace(LATER, inode=8))), LATER, 9000.0, None),
        (Cursor(FILE, 8000.0, replace(ASKED, file=replace(LATER, inode=8))), replace(LATER, inode=8), 9000.0, None),
    ],
)
def test_from_where_on_rows_are_compared(cursor: Cursor, file: FileId, newest: float, since: float | None) -> None:
    assert cursor.since(file, newest, 3600) == since


def run(outcome: str, *partitions: str, **values: Any) -> SeenRun:
    return SeenRun("id", "run x", frozenset(partitions), outcome, **{"key": "k", "ended_at": NOW - 10, **values})


@pytest.mark.parametrize(
    ("runs", "state", "left"),
    [
        ([run("under way", "a", "b")], State.IN_FLIGHT, ("a", "b")),
        ([run("succeeded", "a"), run("under way", "b")], State.IN_FLIGHT, ("b",)),
        ([run("failed", "a"), run("under way", "b")], State.IN_FLIGHT, ("a", "b")),
        ([run("succeeded", "a", "b")], State.SUCCEEDED, ()),
        ([run("succeeded", "a"), run("succeeded", "b")], State.SUCCEEDED, ()),
        ([run("failed", "a", "b"), run("succeeded", "a", "b", "c", key=None)], State.SUCCEEDED, ()),
        ([run("failed", "a", "b"), run("under way", "a", "b", key=None)], State.FAILED, ("a", "b")),
        ([run("succeeded", "a"), run("failed", "b")], State.FAILED, ("b",)),
        ([run("failed", "a", "b", guard="Too many.")], State.GUARDED, ("a", "b")),
    ],
)
def test_what_became_of_what_was_asked_for(runs: list[SeenRun], state: State, left: tuple[str, ...]) -> None:
    fate = fate_of(ASKED, runs, FILE)
    assert (fate.state, fate.left, fate.lost) == (state, left, False)
    assert "run x" in fate.told(NOW)
    assert not fate.due(NOW)


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [run("succeeded", "a")],
        [run("failed", "a", key="other")],
        [run("failed", "a"), run("succeeded", "a", key=None)],
    ],
)
def test_what_has_no_run_is_lost_and_due_at_once(runs: list[SeenRun]) -> None:
    fate = fate_of(ASKED, runs, FILE)
    assert fate.lost
    assert fate.due(NOW)


@pytest.mark.parametrize(("attempts", "minutes"), [(1, 5), (2, 10), (3, 20), (30, 360)])
def test_a_failed_run_is_made_up_for_after_a_pause_that_doubles(attempts: int, minutes: int) -> None:
    fate = fate_of(replace(ASKED, attempts=attempts), [run("failed", "a", "b", ended_at=NOW)], FILE)
    assert not fate.due(NOW + minutes * 60 - 1)
    assert fate.due(NOW + minutes * 60)
    assert f"in {minutes} minutes" in fate.told(NOW)
    changed = fate_of(replace(ASKED, attempts=attempts), [run("failed", "a", "b", ended_at=NOW)], LATER)
    assert not changed.due(NOW + 299)
    assert changed.due(NOW + 300)


def test_what_the_delete_guard_stopped_waits_for_another_file() -> None:
    runs = [run("failed", "a", "b", ended_at=NOW, guard="60 of its 100 cases are gone. Confirm with --allow-deletes.")]
    fate = fate_of(ASKED, runs, FILE)
    assert not fate.due(NOW + 1e9)
    assert "--allow-deletes" in fate.told(NOW)
    assert fate_of(ASKED, runs, LATER).due(NOW + 300)
    assert not fate_of(ASKED, runs, None).due(NOW + 1e9), "a file that is gone is no other file"


def test_a_request_has_the_same_key_until_a_run_has_ended() -> None:
    first = ask(Cursor(), "abcde", FILE, 1.0, most=3, after="none")
    assert (first.partitions, first.rest, first.attempts) == (("a", "b", "c"), 2, 1)
    assert ask(Cursor(), "abcde", FILE, 1.0, most=3, after="none").key == first.key
    again = ask(Cursor(asked=first), "abcde", FILE, 1.0, most=3, after="run 1")
    assert again.attempts == 2
    others = [ask(Cursor(), "abd", FILE, 1.0, most=3, after="none"), again,
              ask(Cursor(), "abc", LATER, 1.0, most=3, after="none")]  # fmt: skip
    assert len({first.key, *(each.key for each in others)}) == 4


def test_only_runs_over_the_same_partitions_are_in_the_way() -> None:
    runs = [run("under way", "a", "b"), run("under way", "c"), run("succeeded", "b")]
    assert in_the_way(runs, ["b"]) == runs[:1]
    assert in_the_way(runs, ["d"]) == []


def first_reason(cursor: Cursor, *, rules: Rules = RULES, fate: Fate | None = None, file: FileId | None = FILE,
                 clock: str = "12:00", unloaded: str | None = None) -> State | None:  # fmt: skip
    reasons = reasons_to_wait(cursor, rules, fate, file, NOW, clock=clock, where="here", unloaded=unloaded)
    return next((state for state, _ in reasons), None)


def test_every_reason_to_wait_in_its_order() -> None:
    seen = Cursor(FILE, looked_at=NOW - 299)
    old = replace(seen, looked_at=NOW - 300)
    failed = fate_of(ASKED, [run("failed", "a", "b")], FILE)
    due = fate_of(ASKED, [run("failed", "a", "b", ended_at=NOW - 300)], FILE)
    lost = fate_of(ASKED, [], FILE)
    quiet = replace(RULES, quiet_hours="22:00-06:00")
    young = replace(FILE, modified_ns=int(NOW * 1e9))
    assert first_reason(seen, rules=replace(quiet, interval_s=0), fate=failed, unloaded="x") is State.OFF
    assert first_reason(seen, rules=quiet, clock="23:00", fate=failed, unloaded="x") is State.UNLOADED
    assert first_reason(seen, rules=quiet, clock="23:00", fate=failed) is State.FAILED
    assert first_reason(seen, rules=quiet, clock="23:00", fate=due) is State.QUIET
    assert first_reason(seen, rules=quiet, clock="23:00", fate=lost) is State.QUIET
    assert first_reason(seen, fate=lost, file=None) is None
    assert first_reason(seen, file=None) is State.EARLY
    assert first_reason(replace(seen, looked_at=NOW), file=None) is State.EARLY
    assert first_reason(replace(seen, looked_at=NOW + 1), file=None) is State.MISSING, "the clock was ahead"
    assert first_reason(old, file=None) is State.MISSING
    assert first_reason(seen, fate=due, file=None) is State.MISSING
    assert first_reason(old) is State.NOTHING_NEW
    assert first_reason(old, file=young) is State.SETTLING
    assert first_reason(seen, fate=due, file=young) is State.SETTLING
    assert first_reason(old, file=LATER) is None
    assert first_reason(seen, fate=due) is None, "asked for again, though the file is the same"
