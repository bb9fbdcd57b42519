"""The text of a staged row, whichever table it is of."""

from __future__ import annotations

from qbench_dagster.core.texts import doc_text, step_text, text_of


def test_the_text_of_a_row_is_that_of_its_kind() -> None:
    assert text_of("doc", "Log in", None) == doc_text("Log in", None) == "Log in\n"
    assert text_of("doc", "Log in", "As Ada") == "Log in\nAs Ada"
    assert text_of("step", "Press", ["See", "Hear"]) == step_text("Press", ["See", "Hear"]) == "Press\nSee\nHear"
