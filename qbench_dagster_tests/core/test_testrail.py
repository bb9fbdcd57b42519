"""TestRail's answers as rows of the export: which field goes where, what is left out, and what is kept as it is."""

from __future__ import annotations

import json
import math
import sqlite3
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.adapters.sample_writer import TABLES
from qbench_dagster.core.testrail import COLUMNS, NotTestRailError, case_row, is_deleted, lookup_row, option_labels

SYSTEM = {
    "id": 7, "title": "Log in", "section_id": 3, "template_id": 1, "type_id": 4, "priority_id": 2, "milestone_id": 9,
    "refs": "QA-1", "created_by": 5, "created_on": 100, "updated_by": 6, "updated_on": 200, "estimate": "1m",
    "estimate_forecast": "2m", "suite_id": 2, "display_order": 11, "is_deleted": 0,
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = [*SYSTEM, "custom_preconds", "custom_steps", "custom_steps_separated", "custom_is_automated", "custom_expected"]


def row_of(options: Any = None, /, **fields: Any) -> dict[str, Any]:
    """The row of a case with these fields, by column."""
    row = case_row({**SYSTEM, **fields}, 1, None, options or {})
    return dict(zip(COLUMNS["cases"], row, strict=True))


def test_columns_are_those_of_the_export() -> None:
    with sqlite3.connect(":memory:") as db:
        for table, columns in TABLES.items():
            db.execute(f"CREATE TABLE {table} ({columns})")
            found = tuple(name for _, name, *_ in db.execute(f"PRAGMA table_info({table})"))
            assert found == COLUMNS[table]


def test_each_field_has_its_column() -> None:
    row = row_of(
        custom_preconds="A user", custom_steps="Type", custom_jiras="J-1", custom_refs="R-1", custom_comment="Why",
        custom_is_automated=True, custom_expected="Seen", custom_other=[1, 2], labels=[{"id": 1, "title": "smoke"}],
    )  # fmt: skip
    assert row == {
        "id": 7, "suite_id": 2, "section_id": 3, "project_id": 1, "title": "Log in", "template_id": 1, "type_id": 4,
        "priority_id": 2, "refs": "QA-1", "created_on": 100, "updated_on": 200, "preconditions": "A user",
        "steps": "Type", "steps_separated": None, "steps_combined": "A user\n\nType\n\nSeen", "jiras": "J-1",
        "refs_custom": "R-1", "comment": "Why", "is_automated": 1,
        "custom_fields": json.dumps(
            {"custom_expected": "Seen", "custom_other": [1, 2], "labels": [{"id": 1, "title": "smoke"}]}
        ),
    }  # fmt: skip


def test_what_moves_when_other_cases_do_is_left_out() -> None:
    before, after = row_of(), row_of(display_order=99, estimate_forecast="9m", updated_by=1, milestone_id=None)
    assert before == after
    assert before["custom_fields"] == "{}"


def test_structured_steps_are_the_exports_json() -> None:
    steps = [
        {"content": "Type", "expected": None, "shared_step_id": 7, "additional_info": "", "refs": None},
        {"content": "Press", "expected": "Seen", "additional_info": "with a mouse", "refs": "QA-2"},
    ]
    found = row_of(custom_steps_separated=steps)["steps_separated"]
    assert found == json.dumps(
        [
            {"content": "Type", "expected": ""},
            {"content": "Press", "expected": "Seen", "additional_info": "with a mouse", "refs": "QA-2"},
        ]
    )


@pytest.mark.parametrize("text", ['[{"content": "Ty', "", "no steps"])
def test_structured_steps_that_are_text_stay_as_they_are(text: str) -> None:
    assert row_of(custom_steps_separated=text)["steps_separated"] == text


@pytest.mark.parametrize(
    ("fields", "combined"),
    [
        ({}, None),
        ({"custom_preconds": "A", "custom_steps": "", "custom_expected": None}, "A"),
        ({"custom_expected": "C"}, "C"),
        ({"custom_steps": "B", "custom_steps_combined": None}, None),
        ({"custom_steps": "B", "custom_steps_combined": "ours"}, "ours"),
    ],
)
def test_combined_steps_are_made_as_the_export_makes_them(fields: dict[str, Any], combined: str | None) -> None:
    assert row_of(**fields)["steps_combined"] == combined


def field(system_name: str, type_id: int, *configs: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """A field of get_case_fields."""
    made = [{"context": context, "options": {"items": items}} for context, items in configs]
    return {"system_name": system_name, "type_id": type_id, "configs": made}


EVERYWHERE = {"is_global": True, "project_ids": None}


def test_options_are_shown_by_their_labels() -> None:
    fields = [
        field("custom_level", 6, (EVERYWHERE, "1, First\n2, Second, or later\r\n3,Third")),
        field("custom_areas", 12, (EVERYWHERE, "1, Web\n2, App")),
        field("custom_count", 2, (EVERYWHERE, "1, no option")),
    ]
    labels = option_labels(fields, 1)
    row = row_of(labels, custom_level=2, custom_areas=[2, 1, 9], custom_count=1, custom_none=None)
    assert json.loads(row["custom_fields"]) == {
        "custom_level": "Second, or later", "custom_areas": "App,Web,9", "custom_count": 1, "custom_none": None,
    }  # fmt: skip
    assert json.loads(row_of(labels, custom_level=8, custom_areas=None)["custom_fields"]) == {
        "custom_level": 8,
        "custom_areas": None,
    }


@pytest.mark.parametrize("ids", [[4, 5], "4,5", ["4", "5"], "4, 5"])
def test_options_of_a_project_come_before_those_of_all(ids: Any) -> None:
    own = ({"is_global": False, "project_ids": ids}, "1, own")
    fields = [field("custom_level", 6, (EVERYWHERE, "1, of all"), own)]
    assert option_labels(fields, 5) == {"custom_level": {"1": "own"}}
    assert option_labels(fields, 6) == {"custom_level": {"1": "of all"}}
    assert option_labels([field("custom_level", 6, own)], 6) == {}


def test_missing_values_fit_the_exports_columns() -> None:
    row = dict(zip(COLUMNS["cases"], case_row({"id": 7}, 1, 2, {}), strict=True))
    assert (row["title"], row["section_id"], row["suite_id"], row["project_id"]) == ("", 0, 2, 1)
    assert lookup_row("sections", {"id": 5, "name": None, "parent_id": None}) == (5, 0, "", None, None, None, None)


def test_flags_are_numbers_and_a_suite_belongs_to_the_project_asked_for() -> None:
    suite = {"id": 2, "name": "Master", "is_master": True, "is_completed": False, "url": "https://x", "more": 1}
    assert lookup_row("suites", suite, project_id=4) == (2, 4, "Master", None, 1, None, 0, None, "https://x")


@pytest.mark.parametrize("wrong", [{}, {"id": None}, {"id": "7"}, {"id": True}, {"id": 7.5}])
def test_an_entry_without_id_is_not_testrails(wrong: dict[str, Any]) -> None:
    with pytest.raises(NotTestRailError, match="no whole number as its id"):
        case_row(wrong, 1, 2, {})
    with pytest.raises(NotTestRailError, match="an entry of suites"):
        lookup_row("suites", wrong)


def test_archived_cases_are_told_apart() -> None:
    assert [is_deleted(case) for case in ({}, {"is_deleted": 0}, {"is_deleted": 1}, {"is_deleted": True})] == [
        False, False, True, True,
    ]  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=10), JSON, max_size=8), st.integers(1, 10**9))
def test_any_case_becomes_a_row_sqlite_takes_and_loses_no_field(case: dict[str, Any], case_id: int) -> None:
    row = dict(zip(COLUMNS["cases"], case_row({**case, "id": case_id}, 1, 2, {}), strict=True))
    assert row["id"] == case_id
    for cell in row.values():
        assert cell is None or isinstance(cell, str | int | float)
        assert not isinstance(cell, bool)
        assert not isinstance(cell, int) or abs(cell) <= 2**63
    custom = json.loads(row["custom_fields"])
    for name, value in case.items():
        if name.startswith("custom_") and name not in ("custom_expected",):
            continue
        if name not in SYSTEM and name not in COLUMNS["cases"]:
            assert custom[name] == value or (isinstance(value, float) and math.isinf(value))
