"""Which text is already there: containment of whole word sequences, without regard to markup.

Only the comparison of texts belongs here; what is done with the answer is `merge.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from qbench_dagster.core.texts import words

_BUDGET = 400_000_000  # characters searched for one case, about 0.1 s; then only equal texts count
_WORD = re.compile(r"\w+")


@lru_cache(maxsize=4096)
def key(text: str) -> str:
    """A text's words between NULs: `key(a) in key(b)` tells whether b holds a's word sequence."""
    return "\0" + "\0".join(words(text)) + "\0"


class Known:
    """Texts that are there already."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._keys = [key(text) for text in texts]
        self._joined = "\1".join(self._keys)
        self._equal = set(self._keys)
        self._left = _BUDGET

    def has(self, text: str) -> bool:
        """Whether one of the texts holds this one's word sequence; a text without words is held."""
        needle = key(text)
        if needle in self._equal or needle == "\0\0":
            return True
        self._left -= len(self._joined)
        return self._left > 0 and needle in self._joined


def remainder(text: str, known: list[str]) -> str:
    """What of a glued text is in none of the known ones: whole lines, or the rest of a line.

    A known line between two new ones stays, so that what remains reads as it was written.
    """
    lines = text.split("\n")
    spans = [list(_WORD.finditer(line)) for line in lines]
    covered = _covered([match[0] for line in spans for match in line], known)
    held = Known(known)
    kept: list[str | None] = []
    weak: list[int] = []
    position = 0
    for index, (line, found) in enumerate(zip(lines, spans, strict=True)):
        flags = covered[position : position + len(found)]
        position += len(found)
        new = [match for match, flag in zip(found, flags, strict=True) if not flag]
        if not new:
            kept.append(None)
        elif held.has(line) or held.has(line[new[0].start() : new[-1].end()]):
            kept.append(None)
            weak.append(index)
        elif len(new) == len(found):
            kept.append(line)
        else:
            kept.append(line[new[0].start() : new[-1].end()])
    for index in weak:
        before = index > 0 and kept[index - 1]
        after = next((kept[i] for i in range(index + 1, min(index + 3, len(kept))) if i not in weak), None)
        if before and after:
            kept[index] = lines[index]
    return "\n".join(line for line in kept if line is not None)


def _covered(tokens: list[str], known: list[str]) -> bytearray:
    """For each word whether it is part of a known text that occurs as a whole."""
    covered = bytearray(len(tokens))
    hay = "\0" + "\0".join(tokens) + "\0"
    left = _BUDGET
    for needle in sorted({key(text) for text in known}, key=len, reverse=True):
        left -= len(hay)
        if needle == "\0\0" or left < 0:
            continue
        found = hay.find(needle)
        while found >= 0:
            start = hay.count("\0", 0, found + 1) - 1
            size = needle.count("\0") - 1
            if not any(covered[start : start + size]):
                covered[start : start + size] = b"\1" * size
                break
            left -= len(hay)
            found = hay.find(needle, found + 1) if left > 0 else -1
    return covered
