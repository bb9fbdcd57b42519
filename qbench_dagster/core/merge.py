"""The merge of a case's step fields (structured, free text, combined, expected) into one tuple of Steps.

Which field wins, where a text goes that only one of them has, and the proof that no word was lost belong
here. Reading one field is `structured.py` and `blocks.py`, comparing texts is `overlap.py`.
"""

from __future__ import annotations

from dataclasses import replace

from qbench_dagster.core import blocks
from qbench_dagster.core.blocks import Parsed
from qbench_dagster.core.characters import text_of
from qbench_dagster.core.markup import has_paragraphs, plain, unstripped
from qbench_dagster.core.model import Step
from qbench_dagster.core.overlap import key, remainder
from qbench_dagster.core.segments import strip_ordinal
from qbench_dagster.core.structured import read_structured
from qbench_dagster.core.texts import words
from qbench_dagster.core.weave import weave


def merge_steps(
    *,
    steps: object = None,
    separated: object = None,
    combined: object = None,
    expected: object = None,
    preconditions: object = None,
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """The steps of a case from its raw fields, and notes on what was odd in them."""
    notes: list[str] = []
    structured, unread, note = read_structured(separated)
    if note:
        notes.append(note)
    free_text, result = unstripped(steps), plain(expected)
    free, result_left = _free(free_text, result, has_paragraphs(steps))
    if unread:
        text = unstripped(unread)
        free += [] if words(text) and key(text) in key(free_text) else blocks.steps(text)
    rest = ""
    if combined is not None and not _is_glue(combined, preconditions, steps, expected):
        texts = [part for step in structured for part in (step.action, *step.expected, step.data or "") if part]
        rest = remainder(unstripped(combined), [*filter(None, (plain(preconditions), free_text, result)), *texts])
        if rest.strip():
            late, result_left = _free(rest, result_left, has_paragraphs(combined))
            free += late
    merged = weave(structured, free) if structured and free else free or [(step, None) for step in structured]
    merged = _with_expected(merged, result_left, has_paragraphs(steps) and has_paragraphs(expected))
    sources = [free_text, unread and unstripped(unread), rest, result]
    sources += [part for step in structured for part in (step.action, *step.expected, step.data or "")]
    return _without_loss(merged, [text for text in sources if text], notes), tuple(notes)


def _free(text: str, expected: str, lines_are_items: bool) -> tuple[list[Parsed], str]:
    """The steps of a free text, and the expected results that are still to be given to a step."""
    if expected and blocks.is_gherkin(text) and blocks.is_gherkin(expected):
        found = blocks.steps(f"{text.strip()}\n{expected}")
        if any(step.expected for step, _ in found):
            return found, ""
    return blocks.steps(text, lines_are_items), expected


def _is_glue(combined: object, *parts: object) -> bool:
    """Whether steps_combined is nothing but the other fields joined, as the export writes it."""
    if not isinstance(combined, str):
        return not text_of(combined)
    if "```" in combined or "~~~" in combined:  # a fence one field leaves open reaches into the next
        return False
    return combined == "\n\n".join(part for part in parts if isinstance(part, str) and part)


def _with_expected(steps: list[Parsed], text: str, by_line: bool) -> list[Parsed]:
    """Expected results by ordinal where they are numbered like the steps, else at the last step.

    Steps and results that are both HTML paragraphs, as many of one as of the other, go together too.
    """
    if not text:
        return steps
    needle = key(text)
    if any(needle in key("\n".join(step.expected)) for step, _ in steps if step.expected):
        return steps
    items = blocks.expected_items(text)
    if not steps:
        return [(Step("", tuple(item for item, _ in items)), None)]
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if by_line and len(items) == 1 and len(lines) == len(steps):
        items = [(line, index) for index, line in enumerate(lines)]
    places = _places([ordinal for _, ordinal in items], [ordinal for _, ordinal in steps])
    result = list(steps)
    for (item, _), place in zip(items, places, strict=True):
        step, ordinal = result[place]
        bare = key(strip_ordinal(item))  # "LED on" of steps_separated is "1. LED on" here
        kept = tuple(text for text in step.expected if key(text) != bare)
        result[place] = (replace(step, expected=(*kept, item)), ordinal)
    return result


def _places(expected: list[int | None], steps: list[int | None]) -> list[int]:
    """For each expected result the index of its step."""
    last = [len(steps) - 1] * len(expected)
    if not blocks.ascending(expected):
        return last
    numbered = {ordinal: index for index, ordinal in enumerate(steps) if ordinal is not None}
    unique = len(numbered) == sum(ordinal is not None for ordinal in steps)
    same = unique and set(expected) == set(numbered)
    gaps = unique and set(expected) <= set(numbered) and expected != list(range(1, len(expected) + 1))
    if same or gaps:
        return [numbered[ordinal] for ordinal in expected if ordinal is not None]
    if len(expected) == len(steps) and len(steps) > 1:
        return list(range(len(steps)))
    return last


def _without_loss(steps: list[Parsed], sources: list[str], notes: list[str]) -> tuple[Step, ...]:
    """The safety net: lines with a word that is in no step become a step of their own."""
    result = [step for step, _ in steps]
    have = set(words("\n".join([part for s in result for part in (s.action, *s.expected, s.data or "")])))
    missing = set(words("\n".join(sources))) - have
    if missing:
        lines = [line for text in sources for line in text.split("\n") if not missing.isdisjoint(words(line))]
        result.append(Step("\n".join(dict.fromkeys(line.strip() for line in lines))))
        notes.append(f"steps: {len(missing)} words without a place, their lines are the last step")
    return tuple(result)
