"""The merge of the step fields: structure found, words kept, nothing said twice."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench_dagster.core import merge
from qbench_dagster.core.markup import plain
from qbench_dagster.core.merge import merge_steps
from qbench_dagster.core.model import Step


def steps(**fields: object) -> list[Step]:
    return list(merge_steps(**fields)[0])  # type: ignore[arg-type]


def actions(**fields: object) -> list[str]:
    return [step.action for step in steps(**fields)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. Log in\n2. Open it\n3. Close", ["1. Log in", "2. Open it", "3. Close"]),
        ("1) Log in\n2) Open", ["1) Log in", "2) Open"]),
        ("Step 1: go\nStep 2: come", ["Step 1: go", "Step 2: come"]),
        ("1.Log in<br>2.Open", ["1.Log in", "2.Open"]),
        ("\n      1. Log in;\n      2. Open\n   ", ["1. Log in;", "2. Open"]),
        ("1. a\n   more of a\n   - detail\n2. b", ["1. a\n   more of a\n   - detail", "2. b"]),
        ("1. a\n- detail\n- detail too\n2. b", ["1. a\n- detail\n- detail too", "2. b"]),
        ("1. a\n1. b\n1. c", ["1. a", "1. b", "1. c"]),
        ("1. a\n   1. inner\n   2. inner too\n2. b", ["1. a\n   1. inner\n   2. inner too", "2. b"]),
        ("Wait until the\n5.Gear lamp is on", None),
        ("1. When on\n    2. When off", ["1. When on", "2. When off"]),
        ("1. a\n3-5. several\n6. b", ["1. a", "3-5. several", "6. b"]),
        ("- a\n- b\n  - c\n  more\n- d", ["a", "b\n  - c\n  more", "d"]),
        ("* a\n* b", ["a", "b"]),
        ("Steps:\n\n* a\n* b", ["Steps:\n\na", "b"]),
        ("Open the app\n- tap one\n- tap two", ["Open the app", "tap one", "tap two"]),
        ("Create a file that has the following properties:\n- x=1\n- y=2", None),
        ("1. go\n\n```\n2. no step\n```\n\n2. come", ["1. go\n\n```\n2. no step\n```", "2. come"]),
        ("plain prose\nover several lines\nwithout any list", None),
        ("Install version 2.5 and wait\n3.5 GB are used", None),
        ("<ol><li>Open</li><li>Close</li></ol>", ["1. Open", "2. Close"]),
        ("<p>Open</p>\n<p>Close</p>", ["Open", "Close"]),
        ("| key | value |\n|---|---|\n| a | 1 |", None),
    ],
)
def test_a_list_becomes_steps_and_prose_stays_one(text: str, expected: list[str] | None) -> None:
    assert actions(steps=text) == ([text] if expected is None else expected)


def test_given_when_then_is_read_as_action_and_expected() -> None:
    found = steps(
        steps="Given a door\n  And a key\nWhen I turn it\nThen it opens\n  And it squeaks\nWhen I push\nThen it moves"
    )
    assert found == [
        Step("Given a door\n  And a key\nWhen I turn it", ("Then it opens", "And it squeaks")),
        Step("When I push", ("Then it moves",)),
    ]


def test_a_when_field_takes_the_then_of_the_expected_field() -> None:
    assert steps(steps="When I go\n  And wait", expected="Then it is there\n  And red") == [
        Step("When I go\n  And wait", ("Then it is there", "And red"))
    ]


def test_capital_keywords_in_one_line_are_read_too() -> None:
    assert steps(steps="GIVEN a door WHEN I push THEN it opens") == [
        Step("GIVEN a door\nWHEN I push", ("THEN it opens",))
    ]


def test_examples_of_an_outline_are_data() -> None:
    found = steps(steps="When I go\nThen I am there\n\nExamples:\n| place |\n| home |")
    assert found == [Step("When I go", ("Then I am there",), "Examples:\n| place |\n| home |")]


def test_tables_with_action_and_expected_give_a_step_a_row() -> None:
    testrail = steps(steps="||| :Step | :Expected result\n|| Open it | It opens\n|| Close it | It closes")
    assert testrail == [
        Step("Open it", ("It opens",), "Step | Expected result"),
        Step("Close it", ("It closes",)),
    ]
    markdown = steps(steps="| # | Action | Expected | Note |\n|---|---|---|---|\n| 1 | Open | Opens | slow |")
    assert markdown == [Step("Open", ("Opens",), "# | Action | Expected | Note\n#: 1\nNote: slow")]
    html = steps(steps="<table><tr><th>Action</th><th>Expected</th></tr><tr><td>Go</td><td>Gone</td></tr></table>")
    assert html == [Step("Go", ("Gone",), "Action | Expected")]


@pytest.mark.parametrize(
    ("text", "expected", "result"),
    [
        ("1. a\n2. b", "1. x\n2. y", [("1. x",), ("2. y",)]),
        ("1. a\n2. b\n3. c\n4. d", "2. x\n4. y", [(), ("2. x",), (), ("4. y",)]),
        ("1. a\n2. b\n3. c", "1. x\n2. y", [(), (), ("1. x", "2. y")]),
        ("1. a\n2. b", "all is well", [(), ("all is well",)]),
        ("1. a\n2. b", "- x\n- y", [(), ("x", "y")]),
        ("<p>a</p><p>b</p>", "<p>x</p><p>y</p>", [("x",), ("y",)]),
        ("1. a\nExpected: x\n2. b", "", [("Expected: x",), ()]),
        ("- a\n\n**Expected results**\n- x\n- y", "", [("**Expected results**\nx", "y")]),
    ],
)
def test_expected_results_go_where_they_belong(text: str, expected: str, result: list[tuple[str, ...]]) -> None:
    assert [step.expected for step in steps(steps=text, expected=expected)] == result


def test_an_expected_result_without_steps_is_a_step() -> None:
    assert steps(expected="- one\n- two") == [Step("", ("one", "two"))]


def test_structured_and_free_text_are_one_with_the_richer_wording() -> None:
    separated = json.dumps([{"content": "Attach probe", "expected": "LED on"}, {"content": "Detach", "expected": ""}])
    assert steps(separated=separated, steps="1. Attach probe\n2. Detach\n3. Store it") == [
        Step("1. Attach probe", ("LED on",)),
        Step("2. Detach"),
        Step("3. Store it"),
    ]
    assert steps(separated=separated, steps="1. Attach probe\n2. Detach", expected="1. LED on\n2. LED off") == [
        Step("1. Attach probe", ("1. LED on",)),
        Step("2. Detach", ("2. LED off",)),
    ]


def test_a_repeated_click_is_kept_where_new_steps_surround_it() -> None:
    separated = [{"content": text} for text in ("Open A", "Click OK", "Open B")]
    free = "- Open A\n- Click OK\n- Open B\n- Click OK\n- Open C"
    assert actions(separated=separated, steps=free) == ["Open A", "Click OK", "Open B", "Click OK", "Open C"]


def test_new_text_is_placed_between_the_steps_that_surround_it() -> None:
    separated = [{"content": "Open A"}, {"content": "Open C"}]
    assert actions(separated=separated, steps="- Open A\n- then turn left\n- Open C") == [
        "Open A",
        "then turn left",
        "Open C",
    ]


def test_a_structured_block_swallows_the_lines_it_holds() -> None:
    separated = [{"content": "- go\n- come", "expected": "- here"}]
    found = steps(separated=separated, steps="- go\n- come\n- **Verify**\n    - here")
    assert found == [Step("- go\n- come", ("- here",), "**Verify**")]


def test_another_case_of_the_same_words_is_no_further_step() -> None:
    assert steps(separated=[{"content": "Open the door"}], steps="open THE door") == [
        Step("Open the door", (), "open THE door")
    ]


def test_structured_extras_are_data_and_odd_entries_are_kept() -> None:
    separated = [
        {"content": "do", "expected": None, "additional_info": "use <b>care</b>", "shared_step_id": None},
        {"content": None, "expected": "seen"},
        {"content": 12, "expected": ["a", "b"]},
        "just text",
        None,
        {"content": " ", "expected": "\u200b"},
    ]
    assert steps(separated=separated) == [
        Step("do", (), "additional_info: use care"),
        Step("", ("seen",)),
        Step("12", ("a\nb",)),
        Step("just text"),
    ]


@pytest.mark.parametrize("text", ["[{'content': 'x1'}]", '[{"content":"a","expec', "just text"])
def test_malformed_structured_steps_are_kept_as_text(text: str) -> None:
    found, notes = merge_steps(separated=text)
    assert found == (Step(text),)
    assert notes == ("steps_separated: malformed JSON, kept as text",)


def test_the_combined_field_adds_only_what_is_nowhere_else() -> None:
    fields = {"steps": "1. a\n2. b", "expected": "1. x\n2. y", "preconditions": "Pre"}
    known = steps(**fields)
    assert steps(**fields, combined="Pre\n\n1. a\n2. b\n\n1. x\n2. y") == known
    assert steps(**fields, combined="Pre<br>1. a<br>2. b<br>1. x<br>2. y") == known
    assert steps(**fields, combined="Pre 1. a 2. b 1. x 2. y") == known
    assert steps(**fields, combined="Pre\n\n1. a\n2. b\n\nand <b>more</b>") == [*known, Step("and more")]


def test_the_combined_field_alone_gives_the_steps() -> None:
    assert steps(combined="Pre\n\n1. a\n2. b\n\nfine", preconditions="Pre", expected="fine") == [
        Step("1. a"),
        Step("2. b", ("fine",)),
    ]


def test_the_safety_net_catches_what_the_merge_would_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "weave", lambda structured, _: [(step, None) for step in structured])
    found, notes = merge_steps(separated=[{"content": "one"}], steps="- one\n- two here")
    assert found == (Step("one"), Step("- two here"))
    assert notes == ("steps: 2 words without a place, their lines are the last step",)


WORDS = ["open", "close", "A", "a", "ok", "OK", "1", "2", "log_in", "Ünï", "手順", "x9"]
PHRASE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
LINE = st.tuples(
    st.sampled_from(
        [
            "",
            "1. ",
            "2. ",
            "3) ",
            "- ",
            "  - ",
            "* ",
            "When ",
            "Then ",
            "And ",
            "Given ",
            "| ",
            "<p>",
            "Expected: ",
            "|| ",
            "||| :Step | :Expected | ",
            "| Action | Expected |\n| ",
            "```\n",
            "## ",
            "**b**:\n",
            "<li>",
            "    ",
        ]
    ),
    PHRASE,
    st.sampled_from(["", "", " | b", ":", "<br>", "</p>", "."]),
).map("".join)
FIELD = st.none() | st.lists(LINE, max_size=6).map("\n".join)
SEPARATED = st.none() | st.lists(
    st.fixed_dictionaries({"content": FIELD, "expected": FIELD, "refs": FIELD}), max_size=4
)


@settings(max_examples=400)
@given(FIELD, SEPARATED, FIELD, FIELD, FIELD, st.booleans(), st.booleans())
def test_no_word_of_any_field_is_lost(
    free: str | None,
    separated: list[dict[str, str | None]] | None,
    combined: str | None,
    expected: str | None,
    preconditions: str | None,
    glued: bool,
    as_text: bool,
) -> None:
    if glued:
        combined = "\n\n".join(filter(None, (preconditions, free, expected, combined)))
    fields = {
        "steps": free,
        "separated": json.dumps(separated) if as_text else separated,
        "combined": combined,
        "expected": expected,
        "preconditions": preconditions,
    }
    found, notes = merge_steps(**fields)  # type: ignore[arg-type]
    text = "\n".join([plain(preconditions), *(part for s in found for part in (s.action, *s.expected, s.data or ""))])
    have = set(re.findall(r"\w+", text))
    sources = [free, combined, expected, *(value for step in separated or () for value in step.values())]
    for source in sources:
        assert set(re.findall(r"\w+", plain(source))) <= have, source
    assert merge_steps(**fields) == (found, notes)  # type: ignore[arg-type]
    assert all(step.action or step.expected for step in found)


@given(st.lists(PHRASE, min_size=1, max_size=6, unique=True))
def test_three_copies_of_the_same_steps_are_one(phrases: list[str]) -> None:
    free = "\n".join(f"{number}. {phrase}" for number, phrase in enumerate(phrases, 1))
    found = steps(separated=[{"content": phrase} for phrase in phrases], steps=free, combined=free)
    assert all(first != second for first, second in pairwise(found))
    assert len(found) == len(phrases)


def test_a_field_of_many_lines_does_not_take_minutes() -> None:
    lines = "\n".join(f"- line {number} of it" for number in range(6000))
    other = [{"content": f"step {number}"} for number in range(500)]
    assert len(steps(steps=lines, separated=other)) == 6500
