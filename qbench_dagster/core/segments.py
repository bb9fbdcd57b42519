"""Plain text of a step field -> step segments: numbered and bullet lists, prose with headings.

Only the line structure of one text belongs here. Tables and GIVEN/WHEN/THEN are `blocks.py`, HTML is
`markup.py`, several fields together are `merge.py`. No line with a word in it is ever dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qbench_dagster.core.model import Step

_MARKER = re.compile(
    r"(?P<indent>[ \t\u00a0\u3000]*)(?:(?P<bullet>[-*+•●◦‣–・])(?=[ \t\u00a0\u3000]|$)"
    r"|(?P<word>(?i:step|schritt|étape|paso|手順|ステップ)[ \t]*)?(?P<number>\d{1,3})"
    r"(?:[-–]\d{1,3}(?=[.)][ \t])|[a-z](?=[.)][ \t]))?"
    r"(?P<sign>[.)]|(?(word)[:\-–]?|(?!)))"
    r"(?P<gap>(?=[ \t\u00a0\u3000]|$)|(?=[^\s\d.,;:)])|(?(word)(?=\b)|(?!))))"
)
_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(`{3,}|~{3,})([^`]*)$")
_EXPECTED_LABEL = re.compile(
    r"[\s>#]*[-*+•]?\s*[*_]{0,2}(?:expected(?:\s+(?:results?|behaviou?rs?|outcomes?|output))?|期待(?:結果|値|動作)|確認)"
    r"[*_]{0,2}\s*(?:[:：]|$)",
    re.IGNORECASE,
)
_STEP_WORD = re.compile(r"\b(?:steps?|procedure|do the following)\b|手順", re.IGNORECASE)
_WORD = re.compile(r"\w")
_BULLETS = re.compile(r"[ \t\u00a0\u3000]*[-*+•●◦‣–・][ \t\u00a0\u3000]+")


@dataclass(frozen=True, slots=True)
class Item:
    """A run of lines that belong together, and its ordinal when the list is numbered."""

    text: str
    ordinal: int | None = None
    expected: bool = False  # it stands under a heading such as "Expected results"


@dataclass(slots=True)
class _Line:
    text: str
    fenced: bool
    indent: int = 0
    bullet: bool = False
    number: int | None = None
    loose: bool = False  # "1.Log in": a marker only as part of a sequence

    @property
    def marker(self) -> bool:
        return self.bullet or self.number is not None


def items(text: str) -> list[Item]:
    """The top-level list items of a text with what surrounds them; one item where there is no list."""
    if "\n" not in text:
        return [_item(text)] if _WORD.search(text) or text.strip() else []
    lines = _parsed(text)
    if not any(line.marker for line in lines):
        return [Item(_tidy(text))] if text.strip() else []
    return _Grouper(lines).items()


def steps_of_items(text: str) -> list[tuple[Step, int | None]]:
    """The items of a text as steps; lines under an "Expected:" label become expected results."""
    result: list[tuple[Step, int | None]] = []
    for item in items(text):
        action, expected = ("", (item.text,)) if item.expected else _divided(item.text)
        if not action and result and expected:
            step, ordinal = result[-1]
            result[-1] = (Step(step.action, (*step.expected, *expected), step.data), ordinal)
        else:
            result.append((Step(action, expected), item.ordinal))
    return result


def fenced(lines: list[str]) -> list[bool]:
    """For each line whether it is part of a code fence (the fence marks included)."""
    result, mark = [], ""
    for line in lines:
        found = _FENCE.match(line) if "```" in line or "~~~" in line else None
        if mark:
            result.append(True)
            if found and found[1].startswith(mark) and not found[2].strip():
                mark = ""
        else:
            mark = found[1] if found else ""
            result.append(bool(found))
    return result


def is_heading(text: str) -> bool:
    """Whether a line only announces what follows: `Steps:`, `### Setup`, `**Verify**`, `{% if x %}`."""
    line = text.strip()
    if not line or "\n" in line or len(line) > 120:
        return False
    if line.startswith(("#", "{%")) or line.endswith((":", "：", ":**", "：**", "%}")):
        return True
    if len(line) > 4 and line.startswith(("**", "__")) and line.endswith(("**", "__")):
        return line.count("**") <= 2
    return line.isupper() and " " not in line


def strip_ordinal(text: str) -> str:
    """The text without a leading list ordinal or bullet."""
    return marker_and_rest(text)[1]


def marker_and_rest(text: str) -> tuple[str, str]:
    """A leading list ordinal or bullet, and the text behind it."""
    found = _MARKER.match(text)
    return (found[0].strip(), text[found.end() :].strip()) if found else ("", text.strip())


def _parsed(text: str) -> list[_Line]:
    raw = text.split("\n")
    flags = fenced(raw) if "```" in text or "~~~" in text else [False] * len(raw)
    lines: list[_Line] = []
    for content, flag in zip(raw, flags, strict=True):
        line = _Line(content, flag)
        found = None if flag and not _opens_item(content) else _MARKER.match(content)
        if found and not (flag and lines and lines[-1].fenced):
            line.indent = _width(found["indent"])
            line.bullet = found["bullet"] is not None
            if found["number"]:
                line.number = int(found["number"])
                line.loose = not content[found.end() : found.end() + 1].isspace() and found.end() < len(content)
        elif not flag:
            line.indent = _width(content[: len(content) - len(content.lstrip())])
        lines.append(line)
    _settle(lines)
    return lines


def _opens_item(content: str) -> bool:
    return _FENCE.match(content) is not None and _MARKER.match(content) is not None


def _settle(lines: list[_Line]) -> None:
    """A loose marker ("1.Log in", "2.5mm") counts only next to its neighbour in a sequence."""
    numbers = {line.number for line in lines if line.number is not None}
    for line in lines:
        if line.loose and line.number is not None and not numbers & {line.number - 1, line.number + 1}:
            line.number = None


def _width(indent: str) -> int:
    return len(indent.expandtabs(4))


class _Grouper:
    """Walks the lines once and cuts them where a top-level item, a heading or prose begins."""

    def __init__(self, lines: list[_Line]) -> None:
        self._lines = lines
        self._done: list[Item] = []
        self._open: list[str] = []
        self._ordinal: int | None = None
        self._in_item = False
        self._intro = False  # the open lines announce what follows
        self._bound = False  # bullets that follow are data of the open sentence
        self._top = 0
        self._last: int | None = None  # ordinal of the last top-level item
        self._nested: int | None = None  # ordinal of the last nested item
        self._expected = False
        self._numbered_ahead = self._lookahead()

    def items(self) -> list[Item]:
        blank = False
        for index, line in enumerate(self._lines):
            if not line.text.strip() and not line.fenced:
                blank = True
                if self._open:
                    self._open.append("")
                continue
            if line.marker and self._is_top(line, index):
                self._start_item(line)
            elif line.marker or line.fenced:
                if line.number is not None and self._in_item:
                    self._nested = line.number
                self._open.append(line.text)
            else:
                self._prose(line, blank)
            blank = False
        self._close()
        return self._done

    def _lookahead(self) -> list[int | None]:
        """For each line the ordinal of the next numbered line."""
        ahead: list[int | None] = []
        following: int | None = None
        for line in reversed(self._lines):
            ahead.append(following)
            if line.number is not None:
                following = line.number
        return ahead[::-1]

    def _is_top(self, line: _Line, index: int) -> bool:
        if not self._in_item:
            return not (self._bound and line.bullet)
        if line.number is not None:
            continues = self._last is not None and line.number == self._last + 1
            if line.indent <= self._top + 1:
                # "- Section / 1. a / 2. b" without indent: the numbers are the steps
                return True
            # the outer strip of a field, or sloppy indents: the sequence decides
            return continues and not (self._nested is not None and line.number == self._nested + 1)
        if self._bound or line.indent > self._top + 1:
            return False
        # a bullet at the level of a numbered list is a detail of its item, unless the numbers restart
        return self._last is None or self._numbered_ahead[index] == 1

    def _start_item(self, line: _Line) -> None:
        announced = self._in_item and self._ordinal is None and is_heading("\n".join(self._open).strip())
        if not self._intro and not announced:
            self._close()
        self._open.append(line.text if line.number is not None else _BULLETS.sub("", line.text, count=1))
        self._ordinal = line.number
        self._in_item, self._intro, self._bound = True, False, False
        self._top = line.indent
        self._last, self._nested = line.number, None

    def _prose(self, line: _Line, blank: bool) -> None:
        heading = is_heading(line.text)
        outside = line.indent <= self._top and (blank or line.text.startswith("#"))
        if not self._in_item:
            if heading and not self._intro:
                self._close()
            if heading:
                self._expected = _EXPECTED_LABEL.match(line.text) is not None
            elif not heading and self._intro and blank and self._open:
                self._intro = False
            self._open.append(line.text)
            self._intro = heading if len([text for text in self._open if text]) == 1 or heading else False
            self._set_bound(line.text)
        elif outside and heading:
            self._close()
            self._open.append(line.text)
            self._in_item, self._intro, self._last = False, True, None
            self._expected = _EXPECTED_LABEL.match(line.text) is not None
            self._set_bound(line.text)
        else:
            self._open.append(line.text)

    def _set_bound(self, text: str) -> None:
        """`Create a file with these properties:` binds the bullets that follow to itself."""
        line = text.strip().rstrip("*_ ")
        self._bound = (
            line.endswith((":", "："))
            and not line.startswith(("#", "*", "_"))
            and len(line.split()) > 6
            and _STEP_WORD.search(line) is None
        )

    def _close(self) -> None:
        text = _tidy("\n".join(self._open))
        if text:
            self._done.append(Item(text, self._ordinal, self._expected))
        self._open, self._ordinal, self._intro = [], None, False


def _item(text: str) -> Item:
    found = _MARKER.match(text)
    if found and found["bullet"]:
        return Item(text[found.end() :].strip())
    return Item(text.strip(), int(found["number"]) if found else None)


def _tidy(text: str) -> str:
    """Outer blank lines and common indent off; the inner layout stays."""
    lines = text.strip("\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        return ""
    rest = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    first = len(lines[0]) - len(lines[0].lstrip())
    cut = min([first, *rest]) if first else 0
    return "\n".join([line[cut:] if not line[:cut].strip() else line for line in lines]).strip()


def _divided(text: str) -> tuple[str, tuple[str, ...]]:
    """An item's action, and its expected results where a label announces them."""
    lines = text.split("\n")
    if len(lines) == 1 and _EXPECTED_LABEL.match(strip_ordinal(text)) is None:
        return text, ()
    flags = fenced(lines)
    for index, line in enumerate(lines):
        if not flags[index] and _EXPECTED_LABEL.match(strip_ordinal(line) if index == 0 else line):
            expected = _tidy("\n".join(lines[index:]))
            return "\n".join(lines[:index]).rstrip(), (expected,)
    return text, ()
