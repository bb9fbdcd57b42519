"""Plain text of a step field -> steps: the tables and GIVEN/WHEN/THEN blocks in it, lists for the rest.

The two notations with their own idea of an expected result belong here; lists are `segments.py`, and
several fields together are `merge.py`. No word of the text is dropped.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

from qbench_dagster.core.model import Step
from qbench_dagster.core.segments import fenced, is_heading, items, steps_of_items

Parsed = tuple[Step, int | None]

_KEYWORD = re.compile(r"\s*(?:[-*•]\s+|\d{1,2}[.)]\s*)?(?:\*\*|__|\*|_)?(given|when|then|and|but)\b[\s*_:,]", re.I)
_LIST_SIGNS = frozenset("0123456789-*•")
_HEADER = re.compile(r"\s*(?:feature|scenario(?: outline)?|background|examples?)\s*:", re.I)
_EXAMPLES = re.compile(r"\s*examples?\s*:", re.I)
_INLINE_KEYWORD = re.compile(r"(?<=\S)[ \t]+(?=(?:GIVEN|WHEN|THEN)\b)")
_ACTION_COLUMN = re.compile(r"\b(?:actions?|steps?|step description|do|procedure)\b|操作|手順", re.I)
_EXPECTED_COLUMN = re.compile(r"\b(?:expected|expectation|expected results?|results?)\b|期待", re.I)
_NUMBER_COLUMN = re.compile(r"\s*(?:#|no\.?|nr\.?|step|step ?#|step no\.?|number|id)\s*", re.I)
_RULE_ROW = re.compile(r"[\s|:\-=+]*-[\s|:\-=+]*")
_PIPE = re.compile(r"(?<!\\)\|")


def steps(text: str, lines_are_items: bool = False) -> list[Parsed]:
    """The steps of one field, each with its list ordinal if it has one."""
    if not text.strip():
        return []
    if "|" in text and "\n" in text and (found := _with_tables(text)):
        return found
    if "hen" in text or "HEN" in text or "iven" in text or "IVEN" in text:
        found = _gherkin(text)
        if found:
            return found
    result = steps_of_items(text)
    if lines_are_items and len(result) == 1 and "\n" in result[0][0].action and not result[0][0].expected:
        return [(Step(line.strip()), None) for line in result[0][0].action.split("\n") if line.strip()]
    return result


def is_gherkin(text: str) -> bool:
    """Whether a text starts with a GIVEN/WHEN/THEN keyword."""
    found = _KEYWORD.match(text)
    return found is not None and found[1].lower() in ("given", "when", "then")


def expected_items(text: str) -> list[tuple[str, int | None]]:
    """The expected results of a field of their own, with ordinals where they are numbered."""
    if is_gherkin(text):
        return [(line, None) for line in _keyword_runs(text.split("\n"))]
    return [(item.text, item.ordinal) for item in items(text)]


def _keyword_runs(lines: list[str]) -> list[str]:
    runs: list[list[str]] = []
    flags = fenced(lines)
    for line, flag in zip(lines, flags, strict=True):
        if not runs or (not flag and _KEYWORD.match(line)):
            runs.append([line])
        else:
            runs[-1].append(line)
    return [text for run in runs if (text := "\n".join(run).strip())]


def _gherkin(text: str) -> list[Parsed]:
    if text.lstrip()[:5].strip() in ("GIVEN", "WHEN"):
        text = _INLINE_KEYWORD.sub("\n", text)
    lines = text.split("\n")
    words = [found[1].lower() for line in lines if (found := _KEYWORD.match(line))]
    main = [word for word in words if word in ("given", "when", "then")]
    first = next((line for line in lines if line.strip() and not _HEADER.match(line)), "")
    if not main or (len(words) < 2 and words != ["then"]) or not is_gherkin(first):
        return []
    if "then" not in main and first.lstrip()[:1] in _LIST_SIGNS:
        return []  # "1. When on / 2. When off": a list whose items happen to begin so
    return _Scenario(lines).steps()


class _Scenario:
    """Given/When lines are the action of a step, Then lines its expected results."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._result: list[Parsed] = []
        self._action: list[str] = []
        self._expected: list[list[str]] = []
        self._examples: list[str] = []
        self._after_then = False

    def steps(self) -> list[Parsed]:
        for line, flag in zip(self._lines, fenced(self._lines), strict=True):
            found = None if flag else _KEYWORD.match(line)
            word = found[1].lower() if found else ""
            examples = not flag and _EXAMPLES.match(line) and (self._action or self._expected)
            if examples or (self._examples and not word):
                self._examples.append(line)
            elif word in ("given", "when") or (not flag and _HEADER.match(line)):
                if self._after_then or self._examples:
                    self._close()
                self._action.append(line)
            elif word == "then":
                self._after_then = True
                self._expected.append([line])
            elif word and self._after_then:
                self._expected.append([line])
            elif self._after_then:
                self._expected[-1].append(line)
            else:
                self._action.append(line)
        self._close()
        return self._result

    def _close(self) -> None:
        expected = tuple(text for run in self._expected if (text := "\n".join(run).strip()))
        action = "\n".join(self._action).strip()
        if action or expected:
            data = "\n".join(self._examples).strip() or None
            self._result.append((Step(action, expected, data), None))
        self._action, self._expected, self._examples, self._after_then = [], [], [], False


def _with_tables(text: str) -> list[Parsed]:
    """The steps of a text with at least one action/expected table; nothing if there is none."""
    lines = text.split("\n")
    flags = fenced(lines)
    result: list[Parsed] = []
    start = index = 0
    while index < len(lines):
        columns = None if flags[index] or "|" not in lines[index] else _columns(lines[index])
        if columns is None:
            index += 1
            continue
        end = index + 1
        while end < len(lines) and "|" in lines[end] and not flags[end]:
            end += 1
        rows = [_cells(line) for line in lines[index + 1 : end] if not _RULE_ROW.fullmatch(line)]
        if rows:
            before = steps("\n".join(lines[start:index]))
            found = _rows(_cells(lines[index]), columns, rows)
            if before and is_heading(before[-1][0].action) and not before[-1][0].expected:
                heading, first = before.pop()[0].action, found[0][0]
                found[0] = (replace(first, data=f"{heading}\n{first.data or ''}".strip()), None)
            result += before + found
            start = end
        index = end
    return result + steps("\n".join(lines[start:])) if start else []


def _columns(line: str) -> tuple[int, int] | None:
    """The positions of the action and the expected column of a header row, None if it is no such row."""
    if not _EXPECTED_COLUMN.search(line):
        return None
    cells = _cells(line)
    if len(cells) < 2 or any(len(cell) > 60 for cell in cells):
        return None
    expected = [i for i, cell in enumerate(cells) if _EXPECTED_COLUMN.search(cell)]
    expected = [i for i in expected if re.search("expect|期待", cells[i], re.I)] or expected
    actions = [i for i, cell in enumerate(cells) if i not in expected and _ACTION_COLUMN.search(cell)]
    if len(actions) > 1:
        actions = [i for i in actions if not _NUMBER_COLUMN.fullmatch(cells[i])] or actions
    return (actions[0], expected[0]) if actions and expected else None


def _cells(line: str) -> list[str]:
    """The cells of a row: `| a | b |`, `a | b`, or TestRail's `||| :a | :b` and `|| a | b`."""
    row = line.strip()
    testrail = row.startswith("||")
    row = row.lstrip("|") if testrail else row.removeprefix("|")
    if row.endswith("|") and not row.endswith("\\|"):
        row = row[:-1]
    cells = [cell.strip() for cell in _PIPE.split(row)]
    return [cell.removeprefix(":").strip() for cell in cells] if line.strip().startswith("|||") else cells


def _rows(header: list[str], columns: tuple[int, int], rows: list[list[str]]) -> list[Parsed]:
    action, expected = columns
    result: list[Parsed] = []
    for number, row in enumerate(rows):
        cells = row + [""] * (len(header) - len(row))
        data = [" | ".join(header)] if number == 0 else []
        data += [
            f"{header[i]}: {cell}" if i < len(header) and header[i] else cell
            for i, cell in enumerate(cells)
            if cell and i not in columns
        ]
        result.append(
            (
                Step(cells[action], (cells[expected],) if cells[expected] else (), "\n".join(data) or None),
                None,
            )
        )
    return _without_empty(result)


def _without_empty(rows: list[Parsed]) -> list[Parsed]:
    """A row with neither action nor expected shows its data as the action."""
    return [
        (step if step.action or step.expected else Step(step.data or ""), ordinal)
        for step, ordinal in rows
        if step.action or step.expected or step.data
    ]


def ascending(ordinals: list[int | None]) -> bool:
    """Whether every ordinal is there and each is larger than the one before."""
    return all(n is not None for n in ordinals) and all(
        a is not None and b is not None and a < b for a, b in pairwise(ordinals)
    )
