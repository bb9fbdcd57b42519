"""`steps_separated`, TestRail's structured steps: JSON or a list -> Steps, or the text it could not read.

Only this one field belongs here; a structured step is never split again. Joining it with the free-text
fields is `merge.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from qbench_dagster.core.characters import is_blank, text_of
from qbench_dagster.core.markup import plain
from qbench_dagster.core.model import Step

_ACTION = ("content", "action", "step", "description")
_EXPECTED = ("expected", "expected_result", "expectedResult")


def read_structured(value: object) -> tuple[list[Step], str, str | None]:
    """The structured steps, the text that is not structured, and a note when it could not be read."""
    if value is None or (isinstance(value, str) and (not value or is_blank(value))):
        return [], "", None
    parsed = value
    if isinstance(value, str | bytes):
        text = text_of(value)
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            return [], text, "steps_separated: malformed JSON, kept as text"
    if isinstance(parsed, Mapping):
        parsed = [parsed]
    if not isinstance(parsed, list | tuple):
        text = "" if parsed is None else text_of(parsed)
        note = "steps_separated: not a list, kept as text" if text else None
        return [], text, note
    steps: list[Step] = []
    for entry in parsed:
        _add(steps, entry)
    return steps, "", None


def _add(steps: list[Step], entry: object) -> None:
    if not isinstance(entry, Mapping):
        action = plain(entry)
        if action:
            steps.append(Step(action))
        return
    used = set()
    texts = []
    for names in (_ACTION, _EXPECTED):
        key = next((name for name in names if entry.get(name) not in (None, "")), names[0])
        used.add(key)
        texts.append(plain(entry.get(key)))
    action, expected = texts
    data = "\n".join(
        f"{plain(key)}: {text}"
        for key, value in entry.items()
        if key not in used and value not in (None, "", [], {}) and (text := plain(value))
    )
    if action or expected:
        steps.append(Step(action, (expected,) if expected else (), data or None))
    elif data and steps:
        last = steps[-1]
        steps[-1] = Step(last.action, last.expected, f"{last.data}\n{data}" if last.data else data)
    elif data:
        steps.append(Step(data))
