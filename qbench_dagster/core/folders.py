r"""Paths in TestRail's section tree, which may have orphans and circles.

Names are joined by "/"; a "/" inside a name is written `\/` and a backslash `\\`, so a path can be taken apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import TypeVar

from qbench_dagster.core.markup import plain
from qbench_dagster.core.model import Section

Key = TypeVar("Key", bound=Hashable)


def folder_path(section: Key, sections: Mapping[Key, Section[Key]]) -> tuple[str | None, str | None]:
    """(path from the root to `section`, what is wrong with it or None).

    Where the tree is broken, the part that is known, from `section` upwards, is the path.
    """
    names: list[str] = []
    seen: set[Key] = set()
    current: Key | None = section
    problem = None
    while current is not None:
        known = sections.get(current)
        if known is None or current in seen:
            what = "missing" if known is None else "its own ancestor"
            problem = f"section {current} is {what}, the path begins below it"
            break
        seen.add(current)
        names.append(_escaped(known.name))
        current = known.parent_id
    return "/".join(reversed(names)) or None, problem


def section_paths(sections: Mapping[str, Section[str]]) -> dict[str, str]:
    """Path of each section of the export, by its key as text."""
    return {key: folder_path(key, sections)[0] or "" for key in sections}


@lru_cache(maxsize=16384)
def _escaped(name: str) -> str:
    return " ".join(plain(name).split("\n")).replace("\\", "\\\\").replace("/", "\\/")
