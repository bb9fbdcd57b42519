"""A raw row -> TestDoc | Reject: every rule of every column, and rows nobody would write."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench_dagster.core import normalize as module
from qbench_dagster.core.model import Lookups, Reject, RejectReason, Section, Step, TestDoc
from qbench_dagster.core.normalize import conditions, normalize, priority_word
from qbench_dagster.core.ranges import LARGEST_ID
from qbench_dagster.core.texts import doc_text, step_text, text_hash, words

LOOKUPS = Lookups(
    sections={
        1: Section("Root", None),
        2: Section("A/B", 1),
        3: Section("back\\slash", 2),
        4: Section("orphan", 99),
        5: Section("ring one", 6),
        6: Section("ring two", 5),
    },
    priorities={4: "1 - High Priority", 6: "2 - medium priority", 7: "P0 Blocker", 8: "  "},
    case_types={1: "Regression"},
)


def doc(**columns: Any) -> TestDoc:
    result = normalize({"id": 729, "title": "Log in", **columns}, LOOKUPS)
    assert isinstance(result, TestDoc)
    return result


def reject(**columns: Any) -> Reject:
    result = normalize({"id": 729, "title": "Log in", **columns}, LOOKUPS)
    assert isinstance(result, Reject)
    return result


def test_the_smallest_row_is_a_case() -> None:
    case = doc()
    assert (case.case_id, case.uid, case.title, case.source) == (729, "testrail_729", "Log in", "testrail")
    assert case.steps == case.preconditions == case.notes == case.tags == case.related_issues == ()
    assert (case.description, case.summary, case.priority, case.folder_structure) == (None, None, None, None)


@pytest.mark.parametrize("bad", [None, 0, -1, 2**47, 2**70, 1.5, "abc", "", True, b"7", math.nan, math.inf])
def test_an_id_that_is_no_id_is_rejected(bad: object) -> None:
    result = reject(id=bad)
    assert result.reason is RejectReason.INVALID_ID
    assert str(LARGEST_ID) in result.detail
    assert -(2**63) <= result.case_id < 2**63


@pytest.mark.parametrize(("good", "case_id"), [(1, 1), (LARGEST_ID, LARGEST_ID), ("12", 12), (12.0, 12)])
def test_the_whole_range_of_ids_is_taken(good: object, case_id: int) -> None:
    assert doc(id=good).case_id == case_id


@pytest.mark.parametrize("blank", [None, "", " \t\n", "\u00a0\u200b\ufeff", "\x00", "<br>", "&nbsp;"])
def test_a_blank_title_is_rejected(blank: object) -> None:
    assert reject(title=blank).reason is RejectReason.BLANK_TITLE


@pytest.mark.parametrize("title", ["@@", "1", "👍", "<channel>", "\ufffd"])
def test_a_short_title_is_a_title(title: str) -> None:
    assert doc(title=title).title == title


def test_too_many_steps_and_too_much_text_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STEPS", 3)
    assert reject(steps_separated=[{"content": str(n)} for n in range(4)]).reason is RejectReason.TOO_LARGE
    assert len(doc(steps_separated=[{"content": str(n)} for n in range(3)]).steps) == 3
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    assert reject(comment="é" * 60).reason is RejectReason.TOO_LARGE
    assert doc(comment="e" * 60).summary == "e" * 60


def test_text_without_html_is_unchanged_so_that_its_vector_can_be_reused() -> None:
    text = "First  line \r\n\tsecond *line* with <placeholder>\x00"
    case = doc(preconditions=f"\n{text}\n")
    assert case.description == "First  line \n\tsecond *line* with <placeholder>"
    assert doc_text(case.title, case.description) == f"Log in\n{case.description}"
    assert doc_text("t", None) == "t\n"
    assert step_text("do", ["see", "hear"]) == "do\nsee\nhear"
    assert step_text("do", ()) == "do\n"
    assert text_hash("é").hex() == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"
    assert words("Log_in 2 手順, é!") == ["Log_in", "2", "手順", "é"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one sentence", ("one sentence",)),
        ("- a is on\n- b is on", ("a is on", "b is on")),
        ("1. a\n   more\n2. b", ("1. a\n   more", "2. b")),
        ("Device: x\nServer: y", ("Device: x", "Server: y")),
        ("A sentence wrapped\nover two lines.\nNext.", ("A sentence wrapped\nover two lines.", "Next.")),
        ("Given a\n  And b", ("Given a", "And b")),
        ("First\n\nSecond", ("First", "Second")),
        ("Run\n```\na\n\nb\n```\nthen", ("Run", "```\na\n\nb\n```", "then")),
    ],
)
def test_preconditions_are_listed_one_by_one(text: str, expected: tuple[str, ...]) -> None:
    assert conditions(text) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1 - High Priority", "High"),
        ("4 - critical", "Critical"),
        ("LOW", "Low"),
        ("Medium", "Medium"),
        ("P0 Blocker", "P0 Blocker"),
        ("Very High", "Very High"),
        ("Highest", "Highest"),
        ("Low to High", "Low to High"),
    ],
)
def test_a_priority_is_its_word(name: str, expected: str) -> None:
    assert priority_word(name) == expected


def test_unknown_look_ups_are_kept_as_text_with_a_note() -> None:
    assert doc(priority_id=4).priority == "High"
    assert doc(priority_id="6").priority == "Medium"
    assert doc(priority_id=99).priority == "99"
    assert doc(priority_id="abc").priority == "abc"
    assert doc(priority_id=8).priority == "8"
    assert doc(type_id=1).test_type == "Regression"
    assert doc(type_id=5).test_type == "5"
    assert doc(type_id=5).notes == ("type_id: 5 is not in the look-up table",)


@pytest.mark.parametrize(
    ("value", "expected", "noted"),
    [
        (1, True, False),
        (0, False, False),
        ("true", True, False),
        ("0", False, False),
        (1.0, True, False),
        (None, None, False),
        ("", None, False),
        (2, None, True),
        ("maybe", None, True),
    ],
)
def test_automation_is_yes_no_or_unknown(value: object, expected: bool | None, noted: bool) -> None:
    case = doc(is_automated=value)
    assert case.is_automated is expected
    assert bool(case.notes) is noted


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (1_700_000_000, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("1700000000", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("2024-01-02T03:04:05Z", datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2024-01-02 03:04:05", datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2024-01-02T03:04:05+02:00", datetime(2024, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("20240102", datetime(2024, 1, 2, tzinfo=UTC)),
        (None, None),
        ("", None),
    ],
)
def test_times_are_utc(value: object, expected: datetime | None) -> None:
    case = doc(created_on=value, updated_on=value)
    assert case.source_created_at == case.source_updated_at == expected
    assert case.notes == ()


@pytest.mark.parametrize(
    "bad", ["soon", 10**18, -(10**18), math.nan, math.inf, True, "0001-01-01T00:00:00+14:00", 10**400]
)
def test_a_time_that_is_none_is_noted(bad: object) -> None:
    case = doc(created_on=bad)
    assert case.source_created_at is None
    assert case.notes[0].startswith("created_on: not a time: ")


def test_folders_are_joined_reversibly_and_every_tree_ends() -> None:
    assert doc(section_id=2).folder_structure == r"Root/A\/B"
    assert doc(section_id=3).folder_structure == r"Root/A\/B/back\\slash"
    assert doc(section_id=4).folder_structure == "orphan"
    assert doc(section_id=4).notes == ("section_id: section 99 is missing, the path begins below it",)
    assert doc(section_id=5).folder_structure == "ring two/ring one"
    assert doc(section_id=5).notes == ("section_id: section 5 is its own ancestor, the path begins below it",)
    assert doc(section_id=77).folder_structure is None
    assert doc(section_id="x").notes == ("section_id: not a whole number: x",)


@pytest.mark.parametrize("name", ["tags", "custom_tags", "labels", "custom_label"])
def test_tags_come_from_lists_and_strings(name: str) -> None:
    assert doc(custom_fields={name: " a, b;c\na "}).tags == ("a", "b", "c")
    assert doc(custom_fields={name: ["a", 1, None, {"id": 7, "title": "b"}, "a"]}).tags == ("a", "1", "b")
    assert doc(custom_fields={name: None}).tags == ()


def test_platforms_have_their_own_fields() -> None:
    case = doc(custom_fields='{"custom_platform": "iOS", "platforms": ["Android", "iOS"], "tags": "x"}')
    assert (case.platforms, case.tags) == (("Android", "iOS"), ("x",))


def test_custom_fields_are_kept_and_made_storable() -> None:
    text = '{"a": "x\\u0000y", "b": ["\\ud800", NaN, -Infinity, 1e999, 1.5], "c": {"k\\u0000": null}}'
    assert doc(custom_fields=text).custom_fields == {
        "a": "x y",
        "b": ["\ufffd", "NaN", "-Infinity", "1e999", 1.5],
        "c": {"k ": None},
    }
    assert doc(custom_fields='{"emoji": "\\ud83d\\ude00"}').custom_fields == {"emoji": "😀"}
    assert doc(custom_fields={"n": math.nan, "t": (1, b"x")}).custom_fields == {"n": "nan", "t": [1, "x"]}


@pytest.mark.parametrize("text", ['{"a": ', "[1, 2]", '"text"', "plain", "[" * 100_000, "9" * 5000])
def test_custom_fields_that_are_no_object_are_kept_raw(text: str) -> None:
    case = doc(custom_fields=text)
    assert case.custom_fields == {"_raw": text}
    assert case.notes[0].startswith("custom_fields: ")


def test_columns_nobody_knows_are_custom_fields() -> None:
    case = doc(custom_fields='{"a": 1}', a=2, custom_expected="it works\x00", milestone_id=None)
    assert case.custom_fields == {"a": 1, "custom_expected": "it works ", "milestone_id": None}
    assert case.steps == (Step("", ("it works",)),)


def test_no_nesting_is_too_deep() -> None:
    deep: list[Any] = ["word"]
    for _ in range(5000):
        deep = [deep]
    case = doc(steps_separated=[deep], custom_fields={"a": deep}, extra=deep, preconditions=deep)
    assert case.steps == (Step("word"),)
    assert case.description == "word"
    assert case.custom_fields == {"_raw": "a: word", "extra": "word"}


def test_references_and_comment_are_plain() -> None:
    case = doc(refs="ABC-1<br>\r\n#2", comment="<p>why</p>", jiras="ABC-3")
    assert (case.refs, case.summary, case.jira_key) == ("ABC-1\n#2", "why", "ABC-3")
    assert [issue.key for issue in case.related_issues] == ["ABC-3", "ABC-1", "#2"]


def test_notes_name_the_field_and_show_little_of_it() -> None:
    case = doc(created_on="x" * 500, suite_id="y" * 500, steps_separated="{broken", is_automated="z" * 500)
    assert len(case.notes) == 4
    assert all(len(note) < 120 and ": " in note for note in case.notes)


TEXT = st.text(max_size=40) | st.text(st.sampled_from("<>/pbr&;`-*1.|: \n\r\t\0\ud800aA手"), max_size=40)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=8)
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
NAMES = [*sorted(module.COLUMNS), "custom_expected", "jira_key", "tags", "extra\0"]
ROW = st.dictionaries(st.sampled_from(NAMES), VALUE | TEXT)


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from strings(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from strings(item)


@settings(max_examples=400)
@given(ROW, st.booleans())
def test_no_row_raises_and_every_text_can_be_stored(row: dict[str, Any], with_key: bool) -> None:
    if with_key:
        row |= {"id": 7, "title": "t"}
    result = normalize(row, LOOKUPS)
    assert result == normalize(row, LOOKUPS)
    assert isinstance(result, TestDoc) or not with_key
    for text in strings(result):
        text.encode()
        assert "\0" not in text
    if isinstance(result, TestDoc):
        for number in (result.suite_id, result.section_id, result.project_id):
            assert number is None or -(2**63) <= number < 2**63


def test_what_is_too_long_to_list_is_joined_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LISTED", 3)
    case = doc(preconditions="One.\nTwo.\nThree.\nFour.\nFive.", refs="AB-1, AB-2, #3, AB-4")
    assert case.preconditions == ("One.", "Two.", "Three.\nFour.\nFive.")
    assert [(issue.key, issue.kind) for issue in case.related_issues] == [
        ("AB-1", "jira"), ("AB-2", "jira"), ("#3, AB-4", "reference"),
    ]  # fmt: skip
    assert [note.split(":")[0] for note in case.notes] == ["preconditions", "refs"]
    case = doc(preconditions="One.\nTwo.\nThree.", refs="A-1, A-2, #3")
    assert (len(case.preconditions), len(case.related_issues), case.notes) == (3, 3, ())


def test_a_long_text_is_no_label_and_stays_in_the_custom_fields() -> None:
    custom = {"custom_tags": ["x" * 500, "y" * 501], "platform": "iOS, " + "z" * 600}
    case = doc(custom_fields=custom)
    assert (case.tags, case.platforms) == (("x" * 500,), ("iOS",))
    assert case.custom_fields == custom
    assert [note[:50] for note in case.notes] == [
        "platform: 600 characters are no label, kept in cus",
        "custom_tags: 501 characters are no label, kept in ",
    ]
