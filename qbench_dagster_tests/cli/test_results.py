"""How search results read: on a narrow terminal, a wide one, and in a file."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from qbench_dagster.cli.results import show_cases, show_steps

CASE: dict[str, Any] = {
    "test_case_id": 729, "score": 0.03, "similarity": 0.8125, "vector_rank": 2, "text_rank": 1, "priority": "High",
    "title": "Log in\nwith [bold]PROJ-123[/bold] and a wrong password that is told in many more words than fit",
    "test_type": None, "folder_structure": "A very long way down/" * 5 + "Login",
}  # fmt: skip
STEPS = {729: [{"step_index": 3, "action": "Press log in", "expected": ["An error", "is shown"]},
               {"step_index": 4, "action": "", "expected": ["Nothing"]}]}  # fmt: skip
STEP: dict[str, Any] = {
    "test_case_id": 729, "step_index": 3, "similarity": 0.5, "action": "Press log in", "expected": ["An error"],
    "title": "Log in", "cases": 1234,
}  # fmt: skip


def shown(show: Any, *arguments: Any, width: int = 80, terminal: bool = False) -> str:
    file = io.StringIO()
    show(
        Console(file=file, width=width, force_terminal=terminal, color_system="standard" if terminal else None),
        *arguments,
    )
    return file.getvalue()


def test_a_file_gets_all_of_it_and_nothing_but_text() -> None:
    told = shown(show_cases, [CASE], STEPS, "PROJ-123 login")
    first, facts, *steps = told.splitlines()
    assert first == (
        "  1. 0.812  Log in with [bold]PROJ-123[/bold] and a wrong password that is told in many more words than fit"
    )
    assert facts.startswith("            C729  High  words #1, vector #2  …")
    assert facts.endswith("A very long way down/Login")
    assert steps == ["            step 3: Press log in → An error; is shown", "            step 4: Nothing"]
    assert "\x1b" not in told


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_gets_lines_that_fit_with_the_words_marked(width: int) -> None:
    told = shown(show_cases, [CASE], STEPS, "proj-123 LOG", width=width, terminal=True)
    assert len(told.splitlines()) == 4
    assert "\x1b[1;33mLog\x1b[0m" in told
    if width == 200:
        assert "\x1b[1;33mPROJ\x1b[0m" in told
        assert "████" in told
    assert "wrong\x1b" not in told, "no word of the query"


def test_words_are_marked_whole_and_those_of_other_scripts_anywhere() -> None:
    row = {**CASE, "title": "log in, login; ログイン画面を開く"}
    told = shown(show_cases, [row], {}, "log 画面", width=200, terminal=True)
    assert told.count("\x1b[1;33m") == 2
    assert "\x1b[1;33m画面\x1b[0m" in told


@pytest.mark.parametrize(
    ("row", "told"),
    [({"matched": "jira_key", "reference": "PROJ-1"}, "PROJ-1 is its key"),
     ({"matched": "url", "reference": "https://x/PROJ-1"}, "https://x/PROJ-1 refers to it (url)")],
)  # fmt: skip
def test_how_a_key_led_here_is_told(row: dict[str, Any], told: str) -> None:
    facts = {name: CASE[name] for name in ("test_case_id", "title", "priority", "test_type", "folder_structure")}
    assert told in shown(show_cases, [{**facts, **row}], {}, "PROJ-1")


def test_steps_tell_where_they_are() -> None:
    assert shown(show_steps, [STEP], "log in").splitlines() == [
        "  1. 0.500  Press log in",
        "            C729 step 3: Log in  (+1,233 more cases)",
        "            expected: An error",
    ]


def test_nothing_found_is_said() -> None:
    assert shown(show_cases, [], {}, "x") == shown(show_steps, [], "x") == "nothing matches\n"


def test_a_title_cannot_write_to_the_terminal() -> None:
    row = {**CASE, "title": "a\x1b[2Jb\x07c\u202ed", "folder_structure": None}
    assert "a [2Jb c d" in shown(show_cases, [row], {}, "\x1b")


def test_an_endless_query_marks_its_first_words() -> None:
    assert "Log in" in shown(show_cases, [CASE], {}, "log " + "x" * 100_000)
