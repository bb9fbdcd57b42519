"""Which cases are difficult on purpose: names, shares, and the cases each one falls on.

What a difficulty does to a case is `planting.py`. A case has at most one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from qbench_dagster.core.sample.draw import Draw
from qbench_dagster.core.sample.ids import case_ids, validate

ALWAYS_FROM: Final = 200
"""From this many cases on, each difficulty is there at least once."""


class Difficulty(NamedTuple):
    """A share of all cases, a least number of them, and whether unplanted cases never have it."""

    share: float
    least: int
    exclusive: bool


DIFFICULTIES: Final[Mapping[str, Difficulty]] = {
    "html": Difficulty(0.002, 1, False),
    "crlf": Difficulty(0.002, 1, True),
    "gherkin": Difficulty(0.002, 1, False),
    "repeated_steps": Difficulty(0.001, 1, False),
    "several_jira_keys": Difficulty(0.001, 2, True),
    "unknown_type": Difficulty(0.036, 4, True),
    "unknown_priority": Difficulty(0.001, 1, True),
    "broken_json_steps": Difficulty(0.0005, 1, True),
    "broken_json_custom_fields": Difficulty(0.0005, 1, True),
    "expected_only_step": Difficulty(0.001, 1, False),
    "section_cycle": Difficulty(0.0005, 3, True),
    "section_orphan": Difficulty(0.0005, 2, True),
    "very_long_text": Difficulty(0.0002, 3, True),
    "nul": Difficulty(0.0005, 3, True),
    "lone_surrogate": Difficulty(0.0005, 2, True),
    "control_char": Difficulty(0.0005, 1, True),
    "right_to_left": Difficulty(0.001, 2, True),
    "cjk": Difficulty(0.002, 1, True),
    "emoji": Difficulty(0.002, 1, True),
    "zero_width_nbsp": Difficulty(0.001, 1, True),
    "whitespace_only": Difficulty(0.001, 1, True),
    "blank_title": Difficulty(0.0002, 1, True),
    "attachment_image": Difficulty(0.002, 1, True),
    "placeholder_tags": Difficulty(0.001, 1, True),
    "markdown_table": Difficulty(0.001, 1, False),
    "triple_pipe_table": Difficulty(0.001, 1, False),
    "code_fence": Difficulty(0.002, 1, True),
    "slash_in_section_name": Difficulty(0.001, 2, True),
    "shared_updated_on": Difficulty(0.005, 3, False),
    "updated_before_created": Difficulty(0.0005, 1, True),
    "combined_only": Difficulty(0.001, 1, False),
    "identical_cases": Difficulty(0.005, 3, False),
    "snake_refs": Difficulty(0.001, 1, True),
    "url_refs": Difficulty(0.001, 1, False),
}
"""In a fixed order. `exclusive`: the planted cases are the only ones, so a test may count them."""


class Planted(NamedTuple):
    """The difficulty of a case, and the how-manieth of its kind it is (variants take turns)."""

    name: str
    number: int
    total: int


def allocate(cases: int, seed: int) -> dict[int, Planted]:
    """The difficult cases by their position in the export."""
    validate(cases)
    draw = Draw(seed, "difficulties")
    labels: list[Planted] = []
    for name, kind in DIFFICULTIES.items():
        count = int(cases * kind.share + 0.5)
        if count < kind.least:
            count = kind.least if cases >= ALWAYS_FROM else 0
        labels += [Planted(name, number, count) for number in range(count)]
    # One case in each of as many equal stretches, so that they lie all over the export.
    places = len(labels)
    result: dict[int, Planted] = {}
    for i, label in enumerate(draw.shuffled(labels)):
        start, end = cases * i // places, cases * (i + 1) // places
        result[start + draw.below(end - start)] = label
    return result


def planted(cases: int, seed: int) -> dict[str, list[int]]:
    """Case ids by difficulty, as `write_sample(cases, seed)` writes them; every name is a key."""
    places = allocate(cases, seed)
    result: dict[str, list[int]] = {name: [] for name in DIFFICULTIES}
    for position, case_id in enumerate(case_ids(cases, seed)):
        if position in places:
            result[places[position].name].append(case_id)
    return result
