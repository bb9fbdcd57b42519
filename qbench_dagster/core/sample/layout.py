"""How people write a list of steps into one text field: numbers, bullets, HTML, Gherkin, tables, prose.

Only the notation belongs here, never the words. Each function keeps every word of the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Final, TypeAlias

from qbench_dagster.core.sample.content import Steps

Layout: TypeAlias = Callable[[Steps], str]


def _actions(steps: Steps) -> list[str]:
    return [content for content, _ in steps if content]


def numbered(steps: Steps) -> str:
    """`1. …` on lines of their own."""
    return "\n".join(f"{i}. {action}" for i, action in enumerate(_actions(steps), 1))


def breaks(steps: Steps) -> str:
    """Numbers with `<br>` between, on one line."""
    return "<br>".join(f"{i}. {action}" for i, action in enumerate(_actions(steps), 1))


def break_lines(steps: Steps) -> str:
    """`<br>` and a line end."""
    return "<br>\n".join(_actions(steps))


def bullets(steps: Steps) -> str:
    """`- …`."""
    return "\n".join(f"- {action}" for action in _actions(steps))


def stars(steps: Steps) -> str:
    """`* …`, with trailing spaces as editors leave them."""
    return "\n".join(f"* {action}  " for action in _actions(steps))


def lines(steps: Steps) -> str:
    """One step a line, no marks."""
    return "\n".join(_actions(steps))


def prose(steps: Steps) -> str:
    """One paragraph."""
    text = ". ".join(action.rstrip(".") for action in _actions(steps))
    return text + "." if len(steps) > 1 else text


def html_paragraphs(steps: Steps) -> str:
    """`<p>` for each step, entities for what HTML reserves."""
    return "\n<br />\n".join(f"<p>{escape(action)}&nbsp;</p>" for action in _actions(steps))


def html_list(steps: Steps) -> str:
    """`<ol>`, as rich-text editors write it."""
    items = "".join(f"<li>{escape(action)}</li>\n" for action in _actions(steps))
    return f'<p><font color="#333333">Steps</font></p>\n<ol>\n{items}</ol>'


def gherkin(steps: Steps) -> str:
    """GIVEN / WHEN / THEN / AND."""
    out: list[str] = []
    for i, (content, expected) in enumerate(steps):
        if content:
            out.append(f"{('GIVEN', 'WHEN')[i] if i < 2 else 'AND'} {content}")
        if expected:
            out.append(f"THEN {expected}")
    if len(steps) == 1:
        out[0] = out[0].replace("GIVEN", "WHEN", 1)
    return "\n".join(out)


def triple_pipe_table(steps: Steps) -> str:
    """TestRail's own table."""
    rows = "\n".join(f"|| {i} | {content} | {expected}" for i, (content, expected) in enumerate(steps, 1))
    return f"|||:No | Action | Result\n{rows}"


def markdown_table(steps: Steps) -> str:
    """A Markdown table."""
    rows = "\n".join(f"| {i} | {content} | {expected} |" for i, (content, expected) in enumerate(steps, 1))
    return f"| # | Action | Result |\n|---|---|---|\n{rows}"


LAYOUTS: Final[tuple[tuple[Layout, float], ...]] = (
    (numbered, 0.30),
    (breaks, 0.14),
    (break_lines, 0.06),
    (bullets, 0.08),
    (stars, 0.03),
    (lines, 0.08),
    (prose, 0.14),
    (html_paragraphs, 0.04),
    (html_list, 0.03),
    (gherkin, 0.07),
    (triple_pipe_table, 0.015),
    (markdown_table, 0.015),
)


def expected_text(steps: Steps) -> str | None:
    """The expected results as one field, numbered by step when there are several."""
    results = [(i, expected) for i, (_, expected) in enumerate(steps, 1) if expected]
    if not results:
        return None
    if len(results) == 1:
        return results[0][1]
    return "\n".join(f"{i}. {expected}" for i, expected in results)
