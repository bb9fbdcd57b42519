"""A case while it is made: the columns of `cases` as Python values, and the row they become.

Only the shape and the joining of the text fields belong here; what is in them comes from elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qbench_dagster.core.sample.content import Steps

Cell: TypeAlias = str | bytes | int | None
"""`bytes` is text that is not valid UTF-8; it goes into a TEXT cell as it is."""

Row: TypeAlias = tuple[Cell, ...]


@dataclass(slots=True)
class CaseDraft:
    """One case. `overrides` replaces finished cells, for JSON and text that no Python value can hold."""

    id: int
    suite_id: int
    section_id: int
    project_id: int
    title: str
    template_id: int
    type_id: int
    priority_id: int
    created_on: int
    updated_on: int
    is_automated: int | None
    refs: str | None = None
    preconditions: str | None = None
    steps: str | None = None
    separated: Steps | None = None
    combined: str | None = None
    jiras: str | None = None
    refs_custom: str | None = None
    comment: str | None = None
    custom: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, str | bytes] = field(default_factory=dict)

    def set_free_text(self, text: str, expected: str | None = None) -> None:
        """Make `text` the only steps of the case, with the combined form that goes with it."""
        self.steps, self.separated = text, None
        self.custom["custom_expected"] = expected
        self.combined = joined(self.preconditions, text, expected)

    def set_separated(self, steps: Steps) -> None:
        """Make `steps` the only steps of the case."""
        self.steps = self.combined = None
        self.custom["custom_expected"] = None
        self.separated = steps

    def separated_json(self) -> str | None:
        """The JSON text of the structured steps, ASCII-escaped like the original's."""
        if self.separated is None:
            return None
        return json.dumps([{"content": content, "expected": expected} for content, expected in self.separated])

    def row(self) -> Row:
        """The cells in the order of the table's columns."""
        cells: dict[str, Cell] = {
            "id": self.id,
            "suite_id": self.suite_id,
            "section_id": self.section_id,
            "project_id": self.project_id,
            "title": self.title,
            "template_id": self.template_id,
            "type_id": self.type_id,
            "priority_id": self.priority_id,
            "refs": self.refs,
            "created_on": self.created_on,
            "updated_on": self.updated_on,
            "preconditions": self.preconditions,
            "steps": self.steps,
            "steps_separated": self.separated_json(),
            "steps_combined": self.combined,
            "jiras": self.jiras,
            "refs_custom": self.refs_custom,
            "comment": self.comment,
            "is_automated": self.is_automated,
            "custom_fields": json.dumps(self.custom),
        }
        if self.overrides:
            cells.update(self.overrides)
        return tuple(cells.values())


def joined(*parts: str | None) -> str | None:
    """The parts that are there, with an empty line between: how the export makes `steps_combined`."""
    present = [part for part in parts if part]
    return "\n\n".join(present) if present else None
