"""Values of a dynamically typed row -> int, bool, time, JSON object; None with a note where there is none.

Only single values belong here; which column means what is `normalize.py`. Never raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from qbench_dagster.core.characters import is_blank, text_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BOOLS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def integer(value: object) -> int | None:
    """An int, or what is written like one ("12", 12.0), within a PostgreSQL bigint."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        digits = text.removeprefix("-")
        value = int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    return None


def boolean(value: object, column: str, notes: list[str]) -> bool | None:
    """True or False from 0, 1, "true", "false"; NULL and blank are None."""
    if value is None or isinstance(value, bool):
        return value
    text = text_of(integer(value) if isinstance(value, float) else value).strip().lower()
    if text and text not in _BOOLS:
        notes.append(f"{column}: not a yes or no: {shown(value)}")
    return _BOOLS.get(text)


def timestamp(value: object, column: str, notes: list[str]) -> datetime | None:
    """An aware UTC time from Unix seconds or an ISO string (UTC if it names no zone)."""
    if value is None or (isinstance(value, str) and is_blank(value)):
        return None
    try:
        seconds = None if isinstance(value, bool) else _seconds(value)
        if seconds is not None:
            return _EPOCH + timedelta(seconds=seconds)
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.strip())
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass
    notes.append(f"{column}: not a time: {shown(value)}")
    return None


def _seconds(value: object) -> float | int | None:
    if isinstance(value, str):
        text = value.strip()
        # eight digits and fewer are left to ISO ("20240131")
        if not text.isascii() or not text.removeprefix("-").replace(".", "", 1).isdigit() or len(text) == 8:
            return None
        return float(text)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def shown(value: object) -> str:
    """A value for a note or a reject: one line of at most 60 characters."""
    text = " ".join(text_of(value).split()) if not isinstance(value, type(None)) else "NULL"
    return text if len(text) <= 60 else text[:59] + "…"


def json_object(value: object, column: str, notes: list[str]) -> dict[str, Any]:  # noqa: PLR0911
    """A JSON object from its text (or as it is); what is no object is kept under `_raw`."""
    if value is None or value == "":
        return {}
    try:
        if isinstance(value, Mapping):
            return _clean_object(value)
        parsed = json.loads(text_of(value), parse_constant=str, parse_float=_finite)
        if isinstance(parsed, dict):
            return _clean_object(parsed) if "\\u" in text_of(value) else parsed
        if parsed is None:
            return {}
    except (ValueError, RecursionError):
        notes.append(f"{column}: malformed JSON, kept as text")
        return {"_raw": text_of(value)}
    if isinstance(value, str) and is_blank(value):
        return {}
    notes.append(f"{column}: not a JSON object, kept as text")
    return {"_raw": text_of(value)}


def _finite(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def _clean_object(value: Mapping[Any, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, item in value.items():
        name = json_safe_text(key) if isinstance(key, str) else text_of(key)
        while name in result:
            name += "_"
        result[name] = json_safe(item)
    return result


def json_safe(value: object) -> Any:
    """A value that PostgreSQL's jsonb takes: no NUL, no lone surrogate, no NaN or Infinity."""
    if isinstance(value, str):
        return json_safe_text(value)
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return _clean_object(value)
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return text_of(value)


def json_safe_text(text: str) -> str:
    """Text without NUL and lone surrogates; all else (line ends too) as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", " ")
