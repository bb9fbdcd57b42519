"""What TestRail's API answers -> rows of the export's tables: which field becomes which column.

How answers are paged is `testrail_pages.py`, what a column means downstream `normalize.py`. Pure; never raises
but NotTestRailError, for what no TestRail answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

Cell: TypeAlias = str | int | float | None
Row: TypeAlias = tuple[Cell, ...]

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "projects": (
        "id", "name", "announcement", "show_announcement", "is_completed", "completed_on", "suite_mode", "url",
    ),
    "suites": (
        "id", "project_id", "name", "description", "is_master", "is_baseline", "is_completed", "completed_on", "url",
    ),
    "sections": ("id", "suite_id", "name", "description", "parent_id", "display_order", "depth"),
    "priorities": ("id", "name", "short_name", "is_default", "priority"),
    "case_types": ("id", "name", "is_default"),
    "templates": ("id", "name", "is_default"),
    "cases": (
        "id", "suite_id", "section_id", "project_id", "title", "template_id", "type_id", "priority_id", "refs",
        "created_on", "updated_on", "preconditions", "steps", "steps_separated", "steps_combined", "jiras",
        "refs_custom", "comment", "is_automated", "custom_fields",
    ),
}  # fmt: skip
"""Tables of the export with their columns in order."""

_OWN_COLUMN: Final = {
    "custom_preconds": "preconditions",
    "custom_steps": "steps",
    "custom_steps_separated": "steps_separated",
    "custom_steps_combined": "steps_combined",
    "custom_jiras": "jiras",
    "custom_refs": "refs_custom",
    "custom_comment": "comment",
    "custom_is_automated": "is_automated",
}
_NO_CONTENT: Final = frozenset(
    # Of a case, and in no column. `display_order` and the forecast move when other cases do: kept, they would make
    # documents differ that nobody edited.
    ["created_by", "updated_by", "milestone_id", "estimate", "estimate_forecast", "display_order", "is_deleted"]
)
_REQUIRED: Final = {"title": "", "name": "", "section_id": 0, "suite_id": 0}
"""What stands for a value that is missing where the export's columns hold no NULL."""
_DROPDOWN, _MULTISELECT = 6, 12


class NotTestRailError(ValueError):
    """An answer that is not what TestRail's documentation says; the text says what it was."""


Labels: TypeAlias = Mapping[str, Mapping[str, str]]
"""For each dropdown and multi-select field of a project, by its system name: option id -> label."""


def option_labels(fields: Iterable[Mapping[str, Any]], project_id: int) -> Labels:
    """The labels of `get_case_fields` as they apply to one project: its own configuration before the global one."""
    found: dict[str, dict[str, str]] = {}
    for field in fields:
        if field.get("type_id") not in (_DROPDOWN, _MULTISELECT):
            continue
        configs = [config for config in field.get("configs") or () if isinstance(config, Mapping)]
        own = [config for config in configs if _is_for(config, project_id)]
        everyone = [config for config in configs if (config.get("context") or {}).get("is_global")]
        for config in (own or everyone)[:1]:
            items = str((config.get("options") or {}).get("items") or "")
            pairs = (line.split(",", 1) for line in items.splitlines() if "," in line)
            found[str(field.get("system_name"))] = {number.strip(): label.strip() for number, label in pairs}
    return found


def _is_for(config: Mapping[str, Any], project_id: int) -> bool:
    projects = (config.get("context") or {}).get("project_ids") or ()
    named = projects.split(",") if isinstance(projects, str) else projects
    return str(project_id) in {str(each).strip() for each in named}


def lookup_row(table: str, entry: Mapping[str, Any], **own: int) -> Row:
    """An entry of a look-up table as its row; `own` are columns the answer may lack."""
    _checked_id(table, entry)
    return tuple(_cell(_value(column, entry, own)) for column in COLUMNS[table])


def case_row(case: Mapping[str, Any], project_id: int, suite_id: int | None, labels: Labels) -> Row:
    """A case of `get_cases` as its row of `cases`.

    `steps_combined` is in no TestRail: it is made as the export makes it, unless a custom field of that name is there.
    """
    _checked_id("cases", case)
    own: dict[str, Any] = {"project_id": project_id}
    if case.get("suite_id") is None and suite_id is not None:
        own["suite_id"] = suite_id
    custom: dict[str, Any] = {}
    for name, value in case.items():
        if name in _OWN_COLUMN:
            own[_OWN_COLUMN[name]] = _labelled(value, labels.get(name))
        elif name not in _SYSTEM:
            custom[name] = _labelled(value, labels.get(name))
    own["steps_separated"] = _structured(own.get("steps_separated"))
    if "steps_combined" not in own:
        own["steps_combined"] = _combined(own.get("preconditions"), own.get("steps"), custom.get("custom_expected"))
    own["custom_fields"] = json.dumps(custom)
    return tuple(_cell(_value(column, case, own)) for column in COLUMNS["cases"])


_SYSTEM: Final = _NO_CONTENT | set(COLUMNS["cases"])


def is_deleted(case: Mapping[str, Any]) -> bool:
    """Whether it is only kept for the archive."""
    return bool(case.get("is_deleted"))


def _checked_id(table: str, entry: object) -> None:
    number = entry.get("id") if isinstance(entry, Mapping) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise NotTestRailError(f"an entry of {table} has no whole number as its id: {str(entry)[:200]}")


def _value(column: str, entry: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    value = own[column] if column in own else entry.get(column)
    return _REQUIRED.get(column) if value is None else value


def _cell(value: Any) -> Cell:
    """A JSON value as SQLite holds it; lists and objects as their JSON text."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if value is None or isinstance(value, str | float):
        return value
    return json.dumps(value)


def _labelled(value: Any, options: Mapping[str, str] | None) -> Any:
    """Option ids by their labels, several of them joined by commas as the export has them; an unknown id as it is."""
    if options is None or value is None or isinstance(value, bool):
        return value
    if isinstance(value, list):
        return ",".join(options.get(str(each), str(each)) for each in value)
    return options.get(str(value), value)


def _structured(steps: Any) -> str | None:
    """The structured steps as the export's JSON text; what the API adds to a step is kept where it says something."""
    if steps is None or isinstance(steps, str):
        return steps
    if not isinstance(steps, list):
        return json.dumps(steps)
    return json.dumps([_step(step) if isinstance(step, Mapping) else step for step in steps])


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    more = {name: value for name, value in step.items() if name not in ("content", "expected", "shared_step_id")}
    return {
        "content": step.get("content") or "",
        "expected": step.get("expected") or "",
        **{name: value for name, value in more.items() if value not in (None, "", [], {})},
    }


def _combined(*parts: Any) -> str | None:
    """Joined by an empty line, as in each of the 39,869 rows of a real export."""
    return "\n\n".join(part for part in parts if isinstance(part, str) and part) or None
