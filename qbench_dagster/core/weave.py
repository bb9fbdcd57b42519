"""Structured steps and free-text steps of one case -> one list, each step once, in the order of both.

Only the alignment of the two lists belongs here. The words of a free-text step that its structured twin
lacks are never dropped: they replace it, join it, or stay a step at their place.
"""

from __future__ import annotations

from dataclasses import replace

from qbench_dagster.core.blocks import Parsed
from qbench_dagster.core.model import Step
from qbench_dagster.core.overlap import Known, key
from qbench_dagster.core.segments import fenced, is_heading, marker_and_rest, strip_ordinal


def weave(structured: list[Step], free: list[Parsed]) -> list[Parsed]:
    """The structured steps with what only the free text has, placed where the free text has it."""
    return _Weaver(structured).woven(free)


class _Weaver:
    def __init__(self, structured: list[Step]) -> None:
        self._steps: list[Parsed] = [(step, None) for step in structured]
        self._keys = [_step_key(step) for step in structured]
        self._actions = [key(step.action) for step in structured]
        self._known = Known([part for s in structured for part in (s.action, *s.expected, s.data or "") if part])
        self._slots: dict[int, list[Parsed]] = {}
        self._cursor = -1  # the structured step that matched last
        self._tail = len(structured) - 1

    def woven(self, free: list[Parsed]) -> list[Parsed]:
        kinds = [self._kind(step) for step, _ in free]
        for index, ((step, ordinal), kind) in enumerate(zip(free, kinds, strict=True)):
            new_neighbour = "new" in kinds[max(0, index - 1) : index + 2]
            self._place(step, ordinal, kind, new_neighbour)
        result: list[Parsed] = [*self._slots.get(-1, [])]
        if self._cursor < 0:  # nothing in common: the structured steps come first
            return self._steps + result
        for index, parsed in enumerate(self._steps):
            result.append(parsed)
            result += self._slots.get(index, [])
        return result

    def _kind(self, step: Step) -> str:
        if self._known.has(step.action) and all(map(self._known.has, (*step.expected, step.data or ""))):
            return "known"
        bare = strip_ordinal(step.action)
        return "known" if bare and key(bare) in self._actions else "new"

    def _place(self, step: Step, ordinal: int | None, kind: str, new_neighbour: bool) -> None:
        at = self._find(step.action)
        if at is not None:
            self._cursor = at
            self._take_ordinal(at, step.action, ordinal)
            self._add_expected(at, step)
        elif kind == "known" and self._known.has(step.action):
            if new_neighbour:  # seen before, but written again here
                self._slots.setdefault(self._cursor, []).append((step, ordinal))
        else:
            self._leftover(step, ordinal)

    def _find(self, action: str) -> int | None:
        """The next structured step, from the last match on, that says the same or more."""
        wanted = key(action)
        if wanted == "\0\0":
            return None if action else self._cursor if self._cursor >= 0 else None
        bare = key(strip_ordinal(action))
        start = max(self._cursor, 0)
        for index in range(start, len(self._keys)):
            if wanted in self._keys[index] or (bare != "\0\0" and self._actions[index].startswith(bare)):
                return index
        return None

    def _take_ordinal(self, at: int, action: str, ordinal: int | None) -> None:
        """Gives a structured step the ordinal that its free-text twin has before the same words."""
        marker, rest = marker_and_rest(action)
        own = self._steps[at][0].action
        if key(action) in self._keys[at] or key(marker) == "\0\0" or not self._actions[at].startswith(key(rest)):
            return
        self._take(at, action if key(rest) == self._actions[at] else f"{marker} {own}", ordinal)

    def _take(self, at: int, action: str, ordinal: int | None) -> None:
        """The variant with more words stands for both."""
        step, known = self._steps[at]
        self._steps[at] = (replace(step, action=action), ordinal or known)
        self._actions[at] = key(action)
        self._keys[at] = _step_key(self._steps[at][0])

    def _add_expected(self, at: int, step: Step) -> None:
        target, ordinal = self._steps[at]
        held = self._keys[at]
        for item in step.expected:
            more, labels = ("", "") if key(item) in held else self._new_lines(item)
            if more:
                target = replace(target, expected=(*target.expected, more))
            if labels:
                target = _with_data(target, labels)
        if step.data and key(step.data) not in held and not self._known.has(step.data):
            target = _with_data(target, step.data)
        if target is not self._steps[at][0]:
            self._steps[at] = (target, ordinal)
            self._keys[at] = _step_key(target)

    def _new_lines(self, text: str) -> tuple[str, str]:
        """What of a text is nowhere yet, or only the headings that announce what is there already."""
        if self._known.has(text):
            return "", ""
        kept = [unit for unit in _units(text) if not self._known.has(unit)]
        new = "\n".join(kept).strip()
        return ("", new) if all(map(is_heading, kept)) and len(kept) < len(_units(text)) else (new, "")

    def _leftover(self, step: Step, ordinal: int | None) -> None:
        """A free-text step that no structured one holds as a whole: what is new of it, by lines."""
        units = _units(step.action)
        richer = None if all(map(self._held, units)) else self._richer(step.action)
        if richer is not None:
            self._cursor = richer
            self._take(richer, step.action, ordinal)
            self._add_expected(richer, step)
            return
        kept, matched = [], None
        for unit in units:
            found = self._find(unit)
            if found is not None:
                self._cursor = matched = found
                self._take_ordinal(found, unit, None)
            elif not self._known.has(unit):
                kept.append(unit)
        found_expected = [self._new_lines(item) for item in step.expected]
        expected = tuple(new for new, _ in found_expected if new)
        labels = [label for _, label in found_expected if label]
        labels += [step.data] if step.data and not self._known.has(step.data) else []
        data = "\n".join(labels) or None
        if matched is not None and all(map(is_heading, kept)):
            self._join(matched, kept, expected, data)
        elif kept or expected or data:
            self._insert(Step("\n".join(kept).strip(), expected, data), ordinal)

    def _held(self, text: str) -> bool:
        bare = key(strip_ordinal(text))
        return self._known.has(text) or any(action.startswith(bare) for action in self._actions)

    def _join(self, at: int, headings: list[str], expected: tuple[str, ...], data: str | None) -> None:
        step, ordinal = self._steps[at]
        step = replace(step, expected=(*step.expected, *expected))
        for text in (*headings, data):
            step = _with_data(step, text) if text else step
        self._steps[at] = (step, ordinal)
        self._keys[at] = _step_key(step)

    def _insert(self, step: Step, ordinal: int | None) -> None:
        if not step.action and not step.expected:
            step = Step(step.data or "")
        if not step.action and self._cursor >= 0 and not self._slots.get(self._cursor):
            self._join(self._cursor, [], step.expected, step.data)
            return
        twin = self._same_but_case(step)
        if twin is not None:
            self._join(twin, [step.action], (), None)
            return
        self._slots.setdefault(self._cursor, []).append((step, ordinal))

    def _same_but_case(self, step: Step) -> int | None:
        """A structured step of the same words in another case: the variant joins its data."""
        if step.expected or not step.action:
            return None
        wanted = key(step.action).casefold()
        return next((i for i, action in enumerate(self._actions) if action.casefold() == wanted), None)

    def _richer(self, action: str) -> int | None:
        """The one structured step that is most of this text, if there is just one."""
        wanted = key(action)
        start = max(self._cursor, 0)
        inside = [
            index
            for index in range(start, len(self._actions))
            if self._actions[index] != "\0\0" and self._actions[index] in wanted
        ]
        if len(inside) == 1 and len(self._actions[inside[0]]) * 2 > len(wanted):
            return inside[0]
        return None


def _step_key(step: Step) -> str:
    return "\1".join([key(step.action), *map(key, step.expected), key(step.data or "")])


def _with_data(step: Step, text: str) -> Step:
    return replace(step, data=f"{step.data}\n{text}" if step.data else text)


def _units(text: str) -> list[str]:
    """The lines of a text, a code fence being one."""
    lines = text.split("\n")
    if "```" not in text and "~~~" not in text:
        return lines
    units: list[str] = []
    inside = False
    for line, flag in zip(lines, fenced(lines), strict=True):
        if flag and inside:
            units[-1] += "\n" + line
        else:
            units.append(line)
        inside = flag
    return units
