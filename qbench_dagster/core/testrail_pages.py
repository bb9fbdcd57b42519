"""Pages of the API: what one answer holds of a list, and where the next one begins. Pure.

Asking for them is `adapters/testrail_api.py`, what their entries become `testrail.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qbench_dagster.core.testrail import NotTestRailError

PAGE = 250
"""Entries of a page: the most TestRail gives."""

_OFFSET = re.compile(r"[?&]offset=(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, and the offset of the next page, None after the last. `whole`: the server does not page this list."""

    entries: list[Mapping[str, Any]]
    next_offset: int | None
    whole: bool = False


def read_page(answer: Any, name: str, offset: int) -> Page:
    """The page at `offset` of the list `name`. Raises NotTestRailError.

    Servers before 6.7 answer with the whole list instead. Of the link to the next page only the offset is used: no
    answer decides to whom the key is sent. One that does not move on would be followed for ever.
    """
    if isinstance(answer, list):
        return Page(_entries(answer, name), None, whole=True)
    if not isinstance(answer, dict) or not isinstance(answer.get(name), list):
        raise NotTestRailError(f"no list of {name}: {answer}")
    entries = _entries(answer[name], name)
    links = answer.get("_links")
    if not isinstance(links, dict):
        limit = answer.get("limit")
        full = isinstance(limit, int) and 0 < limit <= len(entries)
        return Page(entries, offset + len(entries) if full else None)
    if not links.get("next"):
        return Page(entries, None)
    found = _OFFSET.search(str(links["next"]))
    following = int(found[1]) if found else offset + len(entries)
    if following <= offset:
        raise NotTestRailError(f"the page of {name} after offset {offset} begins at {following}")
    return Page(entries, following)


def _entries(found: list[Any], name: str) -> list[Mapping[str, Any]]:
    if wrong := [entry for entry in found if not isinstance(entry, dict)]:
        raise NotTestRailError(f"an entry of {name} is no object: {wrong[0]}")
    return found
