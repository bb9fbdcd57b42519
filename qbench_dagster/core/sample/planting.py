"""What each planted difficulty does to a case. Only the alteration belongs here.

Shares and places are `difficulties.py`. Each function leaves the rest of the case as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, TypeAlias

from qbench_dagster.core.sample import layout, scripts
from qbench_dagster.core.sample.company import UNKNOWN_PRIORITY_IDS, UNKNOWN_TYPE_IDS
from qbench_dagster.core.sample.content import Steps, jira_keys, steps
from qbench_dagster.core.sample.difficulties import Planted
from qbench_dagster.core.sample.draft import CaseDraft, joined
from qbench_dagster.core.sample.draw import Draw
from qbench_dagster.core.sample.tree import (
    CYCLE_SECTION_IDS,
    MISSING_SECTION_ID,
    ORPHAN_SECTION_ID,
    SLASH_SECTION_IDS,
    SuiteRow,
)
from qbench_dagster.core.sample.vocabulary import Area, fill

LONG_TEXT: Final = 64_000
SHARED_UPDATED_ON: Final = 1_747_947_648
"""Also the latest time of the sample."""

Plant: TypeAlias = Callable[[CaseDraft, Draw, Area, int], None]


def plant(case: CaseDraft, label: Planted, draw: Draw, area: Area, special: SuiteRow) -> None:
    """Give the case the difficulty of its label."""
    if label.name in _SECTIONS:
        wrong = _SECTIONS[label.name]
        case.suite_id, case.project_id = special.id, special.project_id
        case.section_id = wrong[label.number % len(wrong)]
    elif label.name in _PLANTS:
        _PLANTS[label.name](case, draw, area, label.number)


_SECTIONS: Final = {
    "section_cycle": CYCLE_SECTION_IDS,
    "section_orphan": (ORPHAN_SECTION_ID, MISSING_SECTION_ID),
    "slash_in_section_name": SLASH_SECTION_IDS,
}


def _some_steps(draw: Draw, area: Area, least: int) -> Steps:
    """At least so many steps, each with an action and an expected result."""
    result: Steps = []
    while len(result) < least:
        action, outcome = draw.pick(area.flows)
        result.append((fill(draw, action), fill(draw, outcome)))
    return result


def _with_layout(write: layout.Layout) -> Plant:
    def write_steps(case: CaseDraft, draw: Draw, area: Area, _: int) -> None:
        case.set_free_text(write(_some_steps(draw, area, draw.between(2, 5))))

    return write_steps


def _html(case: CaseDraft, draw: Draw, area: Area, _: int) -> None:
    table = fill(draw, "<table><tr><td>{venue}</td><td>{money}</td></tr></table>")
    written = layout.html_list(_some_steps(draw, area, 3))
    case.set_free_text(f"{written}\n{table}", fill(draw, "<p><b>{error}</b> &amp; no charge</p>"))


def _crlf(case: CaseDraft, draw: Draw, area: Area, _: int) -> None:
    case.preconditions = "\n".join(fill(draw, setup) for setup in area.setups[:2])
    case.set_free_text(layout.numbered(_some_steps(draw, area, 3)), "OK\nNothing is lost")
    case.comment = fill(draw, "{comment}\n{comment}")
    for name in ("preconditions", "steps", "combined", "comment"):
        setattr(case, name, getattr(case, name).replace("\n", "\r\n"))
    case.custom["custom_expected"] = "OK\r\nNothing is lost"


def _repeated_steps(case: CaseDraft, draw: Draw, area: Area, _: int) -> None:
    once = _some_steps(draw, area, 1)
    case.set_separated([*once * draw.between(3, 6), *_some_steps(draw, area, 1), *once])


def _several_jira_keys(case: CaseDraft, draw: Draw, area: Area, number: int) -> None:
    case.jiras = (", ", "\n")[number % 2].join(jira_keys(draw, area, draw.between(9, 14)))


def _unknown_type(case: CaseDraft, _: Draw, __: Area, number: int) -> None:
    case.type_id = UNKNOWN_TYPE_IDS[number % len(UNKNOWN_TYPE_IDS)]


def _unknown_priority(case: CaseDraft, _: Draw, __: Area, number: int) -> None:
    case.priority_id = UNKNOWN_PRIORITY_IDS[number % len(UNKNOWN_PRIORITY_IDS)]


def _broken_json_steps(case: CaseDraft, draw: Draw, area: Area, _: int) -> None:
    case.set_separated(_some_steps(draw, area, 3))
    whole = case.separated_json() or ""
    case.overrides["steps_separated"] = whole[: len(whole) - draw.between(3, 40)]


def _broken_json_custom_fields(case: CaseDraft, draw: Draw, _: Area, __: int) -> None:
    whole = json.dumps(case.custom)
    case.overrides["custom_fields"] = whole[: len(whole) - draw.between(1, 12)]


def _expected_only_step(case: CaseDraft, draw: Draw, area: Area, _: int) -> None:
    first, second, third = _some_steps(draw, area, 3)
    case.set_separated([first, ("", second[1]), third])


def _very_long_text(case: CaseDraft, draw: Draw, area: Area, number: int) -> None:
    parts: Steps = []
    length = 0
    while length < LONG_TEXT:
        parts += steps(draw, area)
        length = sum(len(content) for content, _ in parts)
    text = layout.lines(parts)
    where = number % 3
    if where == 0:
        case.set_free_text(text)
    elif where == 1:
        case.preconditions = text
        if case.combined is not None:
            case.combined = joined(text, case.steps, case.custom.get("custom_expected"))
    else:
        case.set_separated([(text, "Every line was carried out"), *_some_steps(draw, area, 1)])


def _nul(case: CaseDraft, draw: Draw, area: Area, number: int) -> None:
    where = number % 3
    if where == 0:
        case.title = f"{case.title}\0 (restored from backup)"
    elif where == 1:
        case.set_free_text("\0\n".join(content for content, _ in _some_steps(draw, area, 3)))
    else:
        case.set_separated([(f"{content}\0", expected) for content, expected in _some_steps(draw, area, 2)])
        case.comment = fill(draw, "{comment}\0")


def _lone_surrogate(case: CaseDraft, draw: Draw, area: Area, number: int) -> None:
    if number % 2 == 0:
        case.set_free_text(layout.numbered(_some_steps(draw, area, 2)))
        case.overrides["steps"] = f"{case.steps} \ud83d".encode("utf-8", "surrogatepass")
        case.overrides["comment"] = b"caf\xe9 by the north gate"
    else:
        case.set_separated([(f"{content} \ud800", result) for content, result in _some_steps(draw, area, 2)])


def _in_text(prefix: str, suffix: str = "") -> Plant:
    """Put marks at both ends of every step of a free text and of the title."""

    def mark(case: CaseDraft, draw: Draw, area: Area, _: int) -> None:
        marked = [(f"{prefix}{content}{suffix}", expected) for content, expected in _some_steps(draw, area, 2)]
        case.set_free_text(layout.numbered(marked), marked[0][1])
        case.title = f"{case.title}{suffix or prefix}"

    return mark


def _in_script(titles: tuple[str, ...], actions: tuple[str, ...]) -> Plant:
    def translate(case: CaseDraft, draw: Draw, _: Area, number: int) -> None:
        case.title = fill(draw, titles[number % len(titles)])
        wanted = actions[number % 2 :: 2]
        case.set_free_text("\n".join(f"{i}. {fill(draw, action)}" for i, action in enumerate(wanted, 1)))

    return translate


def _whitespace_only(case: CaseDraft, _: Draw, __: Area, ___: int) -> None:
    case.set_free_text(" \n\t ")
    case.preconditions, case.refs, case.comment, case.combined = "  \n\n  ", " ", "\t", " \n\t "


def _blank_title(case: CaseDraft, _: Draw, __: Area, number: int) -> None:
    case.title = " " * (1 + number % 5)


def _added(line: str) -> Plant:
    """Put a line after the steps of a free text."""

    def add(case: CaseDraft, draw: Draw, area: Area, _: int) -> None:
        written = layout.numbered(_some_steps(draw, area, 2))
        case.set_free_text(f"{written}\n{fill(draw, line)}", fill(draw, "{hot_expected}"))

    return add


def _shared_updated_on(case: CaseDraft, _: Draw, __: Area, ___: int) -> None:
    case.updated_on = SHARED_UPDATED_ON


def _updated_before_created(case: CaseDraft, draw: Draw, _: Area, __: int) -> None:
    case.updated_on = case.created_on - draw.between(60, 9_000_000)


def _combined_only(case: CaseDraft, draw: Draw, area: Area, _: int) -> None:
    case.set_free_text(layout.numbered(_some_steps(draw, area, 3)))
    case.steps = None


def _snake_refs(case: CaseDraft, draw: Draw, area: Area, _: int) -> None:
    topic = draw.pick(area.topics).lower().replace(" ", "_").replace("-", "_")
    case.refs = f"{topic}_v{draw.between(2, 9)}, req_{area.code.lower()}_{draw.between(10, 999)}"


def _url_refs(case: CaseDraft, draw: Draw, _: Area, __: int) -> None:
    case.refs = fill(
        draw,
        "https://wiki.example/pages/{n:1000-99999}?focus={n:1-99}#part-{n:1-9} https://tracker.example/browse/{ticket}",
    )


_PLANTS: Final[dict[str, Plant]] = {
    "html": _html,
    "crlf": _crlf,
    "gherkin": _with_layout(layout.gherkin),
    "repeated_steps": _repeated_steps,
    "several_jira_keys": _several_jira_keys,
    "unknown_type": _unknown_type,
    "unknown_priority": _unknown_priority,
    "broken_json_steps": _broken_json_steps,
    "broken_json_custom_fields": _broken_json_custom_fields,
    "expected_only_step": _expected_only_step,
    "very_long_text": _very_long_text,
    "nul": _nul,
    "lone_surrogate": _lone_surrogate,
    "control_char": _in_text("\x03"),
    "right_to_left": _in_script(scripts.RTL_TITLES, scripts.RTL_ACTIONS),
    "cjk": _in_script(scripts.CJK_TITLES, scripts.CJK_ACTIONS),
    "emoji": _in_text("", " 🎟️👩‍🚀"),
    "zero_width_nbsp": _in_text("\ufeff", "\u200b\u00a0end"),
    "whitespace_only": _whitespace_only,
    "blank_title": _blank_title,
    "attachment_image": _added("![](index.php?/attachments/get/{n:1-99999})\n![](index.php?/attachments/get/7)"),
    "placeholder_tags": _added("Log in as <username> with <password> and open <base_url>/matches/<match-id>"),
    "markdown_table": _with_layout(layout.markdown_table),
    "triple_pipe_table": _with_layout(layout.triple_pipe_table),
    "code_fence": _added(
        "```\ncurl -s https://api.example/v2/players/{n:1-999} | jq '.[] | .id'\n\tif (a < b) { exit {n:1-9}; }\n```"
    ),
    "shared_updated_on": _shared_updated_on,
    "updated_before_created": _updated_before_created,
    "combined_only": _combined_only,
    "snake_refs": _snake_refs,
    "url_refs": _url_refs,
}
"""`identical_cases` is not here: `rows.py` gives such cases the same words to begin with."""
