"""Values of a SQLite export as JSON that PostgreSQL's jsonb can hold. Reading the file is `testrail_export.py`."""

from __future__ import annotations

import json
import math
from typing import Any

from qbench_dagster.core.values import integer

_KEY_COLUMNS = frozenset(
    ["id", "suite_id", "section_id", "project_id", "template_id", "type_id", "priority_id", "parent_id"]
)


def id_value(column: str, value: Any) -> Any:
    """10 for 10.0, and where a look-up table is referred to for "10" and " 10" as well: one id, one key.

    pandas stores every integer column that holds a NULL as floats. Text in an id column that nobody knows may
    be anything ("007"), so it stays.
    """
    if isinstance(value, float):
        return int(value) if value.is_integer() and (column == "id" or column.endswith("_id")) else value
    if isinstance(value, bytes) and column in _KEY_COLUMNS and (number := integer(text_of(value))) is not None:
        return number
    return value


def json_value(value: Any) -> Any:
    """A SQLite value as one that PostgreSQL's jsonb can hold."""
    if isinstance(value, bytes):
        return text_of(value).replace("\0", "\ufffd")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def json_text(value: Any) -> str:
    """JSON for a jsonb column, not escaped, so that it stays readable and short."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def text_of(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")
