"""What the server serves: the rows of an export as the objects TestRail's API answers with. No HTTP."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

Entity = dict[str, Any]

_FLAGS = ("show_announcement", "is_completed", "is_master", "is_baseline", "is_default")
_CUSTOM = {
    "preconditions": "custom_preconds",
    "steps": "custom_steps",
    "jiras": "custom_jiras",
    "refs_custom": "custom_refs",
    "comment": "custom_comment",
}
_SYSTEM = ("id", "title", "section_id", "template_id", "type_id", "priority_id", "refs", "created_on", "updated_on")
MULTISELECT = "custom_feature_tag"
"""Labels joined by commas in the export, option ids in the API."""


@dataclass
class TestRailData:
    """Everything by id. `broken`: cases whose `custom_fields` are no JSON, which no API can serve as they are."""

    __test__ = False

    projects: dict[int, Entity] = field(default_factory=dict)
    suites: dict[int, Entity] = field(default_factory=dict)
    sections: dict[int, Entity] = field(default_factory=dict)
    priorities: dict[int, Entity] = field(default_factory=dict)
    case_types: dict[int, Entity] = field(default_factory=dict)
    templates: dict[int, Entity] = field(default_factory=dict)
    cases: dict[int, Entity] = field(default_factory=dict)
    case_fields: list[Entity] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)

    @classmethod
    def of_export(cls, path: Path, most: int = -1) -> Self:
        """The data of an export, or its first cases with all of its look-up tables."""
        data = cls()
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as export:
            export.text_factory = _text
            export.row_factory = sqlite3.Row
            for table in ("projects", "suites", "sections", "priorities", "case_types", "templates"):
                for row in export.execute(f"SELECT * FROM {table} ORDER BY id"):
                    getattr(data, table)[row["id"]] = _lookup(dict(row))
            rows = [dict(row) for row in export.execute(f"SELECT * FROM cases ORDER BY id LIMIT {most}")]
        options = _options(rows)
        for order, row in enumerate(rows):
            data.cases[row["id"]] = data._case(row, order, options)
        data.case_fields = _fields(options)
        return data

    def _case(self, row: Entity, order: int, options: dict[str, int]) -> Entity:
        case = {name: row[name] for name in _SYSTEM}
        case |= {"suite_id": row["suite_id"], "project_id": row["project_id"], "display_order": order}
        case |= {"milestone_id": None, "created_by": 1, "updated_by": 2, "estimate": None, "estimate_forecast": "1m 5s"}
        case |= {"is_deleted": 0, **{theirs: row[ours] for ours, theirs in _CUSTOM.items()}}
        automated = row["is_automated"]
        case["custom_is_automated"] = None if automated is None else bool(automated)
        case["custom_steps_separated"] = _steps(row["steps_separated"])
        try:
            custom = json.loads(row["custom_fields"] or "{}")
        except ValueError:
            self.broken.add(row["id"])
            custom = {}
        glue = "\n\n".join(p for p in (row["preconditions"], row["steps"], custom.get("custom_expected")) if p) or None
        if row["steps_combined"] != glue:
            case["custom_steps_combined"] = row["steps_combined"]
        if options and isinstance(custom.get(MULTISELECT), str):
            custom[MULTISELECT] = [options[label] for label in custom[MULTISELECT].split(",")]
        return case | custom


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return value.decode("utf-8", "replace")


def _lookup(row: Entity) -> Entity:
    return {name: bool(value) if name in _FLAGS and value is not None else value for name, value in row.items()}


def _steps(text: str | None) -> Any:
    """The structured steps with what the API adds to each; text that is no JSON as it is."""
    if text is None:
        return None
    try:
        steps = json.loads(text)
    except ValueError:
        return text
    return [step | {"shared_step_id": 7, "additional_info": "", "refs": ""} for step in steps]


def _options(rows: list[Entity]) -> dict[str, int]:
    """Option ids of the labels in use; none where a label could not be put together again."""
    found: dict[str, int] = {}
    for row in rows:
        try:
            value = json.loads(row["custom_fields"] or "{}").get(MULTISELECT)
        except ValueError:
            continue
        for label in value.split(",") if isinstance(value, str) else ():
            found.setdefault(label, len(found) + 1)
    return found if all(label and label == label.strip() for label in found) else {}


def _fields(options: dict[str, int]) -> list[Entity]:
    everywhere = {"is_global": True, "project_ids": None}
    items = "\n".join(f"{number}, {label}" for label, number in options.items())
    texts = ("preconds", "steps", "expected", "comment")
    return [
        {"id": number, "name": name, "system_name": f"custom_{name}", "label": name.title(), "type_id": 3,
         "configs": [{"id": f"c{number}", "context": everywhere, "options": {"is_required": False, "rows": "5"}}]}
        for number, name in enumerate(texts, 1)
    ] + [
        {"id": 90, "name": "feature_tag", "system_name": MULTISELECT, "label": "Feature", "type_id": 12,
         "configs": [{"id": "c90", "context": everywhere, "options": {"is_required": False, "items": items}}]}
    ]  # fmt: skip
