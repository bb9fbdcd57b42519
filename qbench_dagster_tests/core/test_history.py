"""What differs between two versions of a case, and what speaks against undoing a sync."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.history import (
    Difference,
    RollbackPlan,
    Sync,
    changed_lines,
    differences,
    refusals,
)

NOW = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
SYNC = Sync(12, "sync", "run", "me", NOW, NOW, ["from_0000000001"], 1, 2, 3, None, None, None, None)
PLAN = RollbackPlan(SYNC, 1, 2, 3, [], 0, [], [])
CASE: dict[str, Any] = {
    "document": {"test_case_id": 1, "doc_hash": "\\x00", "title": "Log in", "description": None, "tags": ["a", "b"],
                 "platforms": [], "is_automated": False, "custom_fields": {"odd": [1], "plain": "x"},
                 "ingested_at": "2026", "updated_at": "2026"},
    "steps": [{"test_case_id": 1, "step_index": n, "action": f"Do {n}", "expected": ["Seen"], "data": None,
               "text_hash": "\\x00"} for n in range(1, 13)],
    "preconditions": [{"test_case_id": 1, "order_index": 0, "condition": "A user"}],
    "related_issues": [{"test_case_id": 1, "order_index": 0, "issue_key": "KEY-1", "issue_type": "jira"}],
}  # fmt: skip


def changed(**columns: Any) -> dict[str, Any]:
    found = copy.deepcopy(CASE)
    found["document"].update(columns)
    return found


def test_fields_come_as_a_person_reads_them_and_lists_by_number() -> None:
    other = changed(title="Log out", tags=["a"], description="New", is_automated=True, zone="odd", doc_hash="\\x01",
                    updated_at="2027", custom_fields={"odd": [1, 2]})  # fmt: skip
    other["steps"] = [{**CASE["steps"][0], "data": "x"}, *CASE["steps"][1:10]]
    other["preconditions"] = []
    other["related_issues"][0]["issue_key"] = "KEY-2"
    assert [(each.what, each.before, each.after) for each in differences(CASE, other)] == [
        ("title", "Log in", "Log out"),
        ("description", None, "New"),
        ("tags", "a, b", "a"),
        ("is_automated", "false", "true"),
        ("custom_fields.odd", "[1]", "[1, 2]"),
        ("custom_fields.plain", "x", None),
        ("zone", None, "odd"),
        ("precondition 1", "A user", None),
        ("step 1", "Do 1\nexpected: Seen", "Do 1\nexpected: Seen\ndata: x"),
        ("step 11", "Do 11\nexpected: Seen", None),
        ("step 12", "Do 12\nexpected: Seen", None),
        ("related issue 1", "KEY-1 (jira)", "KEY-2 (jira)"),
    ]


def test_a_case_that_was_not_there_differs_in_everything_it_has() -> None:
    added, removed = differences(None, CASE), differences(CASE, None)
    assert [each.what for each in added][:3] == ["title", "tags", "is_automated"]
    assert len(added) == len(removed) == 3 + 2 + 1 + 12 + 1
    assert all(each.before is None for each in added)
    assert [(each.what, each.after, each.before) for each in removed] == [
        (each.what, each.before, each.after) for each in added
    ]
    assert differences(CASE, CASE) == differences(None, None) == []


_texts = st.none() | st.text(st.sampled_from("ab\n"), max_size=12)


@given(before=_texts, after=_texts)
def test_lines_that_differ_are_all_that_does(before: str | None, after: str | None) -> None:
    lines = changed_lines(Difference("title", before, after))
    for sign, text in (("-", before), ("+", after)):
        told = [line for mark, line in lines if mark == sign]
        kept = iter([] if text is None else text.split("\n"))
        assert all(line in kept for line in told), "in the order of the text"
    old, new = ([] if text is None else text.split("\n") for text in (before, after))
    assert len(old) - sum(mark == "-" for mark, _ in lines) == len(new) - sum(mark == "+" for mark, _ in lines)
    assert bool(lines) is (before != after)


def test_very_long_texts_are_shown_as_replaced() -> None:
    before, after = "\n".join(["same"] * 3000), "\n".join(["same"] * 3001)
    assert len(changed_lines(Difference("step 1", before, after))) == 6001


def objections_to(**facts: Any) -> list[str]:
    given = {"lost": 0, "taken_uids": [], "missing_texts": 0, "complete_spaces": [], **facts}
    return refusals(given.pop("sync", SYNC), given.pop("cases", 6), **given)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"sync": replace(SYNC, purged_at=NOW), "cases": 0}, "purged on 2026-03-04"),
        ({"cases": 0}, "nothing to undo: every case of sync 12 is as it was before it."),
        ({"cases": 0, "sync": replace(SYNC, undone_by=13)}, "sync 13 undid it"),
        ({"lost": 2}, "2 of its cases are not kept"),
        ({"missing_texts": 2}, "2 texts of the cases as they were have no vector"),
        ({"missing_texts": 2, "complete_spaces": ["a", "b"]}, "a and b has them: qbench cutover a"),
        ({"taken_uids": [{"case_id": 1, "uid": "u", "held_by": 3}]}, "qbench history --case 3"),
    ],
)
def test_each_refusal_says_what_to_do(facts: dict[str, Any], told: str) -> None:
    (said,) = objections_to(**facts)
    assert told in said


def test_only_what_changed_since_can_be_forced() -> None:
    assert objections_to() == PLAN.objections() == []
    assert PLAN.cases == 6
    later = replace(PLAN, changed_since=30, changed_by=[(1, 13), (2, None)])
    (said,) = later.objections()
    assert "30 of its cases changed again since (1 by sync 13, 2 by someone outside of any sync, and 28 more)" in said
    assert "--force" in said
    assert later.objections(force=True) == []
    going = replace(PLAN, sync=replace(SYNC, finished_at=None))
    (said,) = going.objections()
    assert "Sync 12 is not finished" in said
    assert going.objections(force=True) == []
    assert replace(later, refusals=["no"]).objections(force=True) == ["no"]
