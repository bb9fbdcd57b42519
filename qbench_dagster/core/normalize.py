"""A raw case row of the export -> TestDoc, or Reject with a reason: which column becomes which value.

What the columns mean belongs here. How steps are read is `merge.py`, references `references.py`, markup
`markup.py`, single values `values.py`. Pure: the same row and look-ups give the same result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from qbench_dagster.core.blocks import is_gherkin
from qbench_dagster.core.characters import text_of
from qbench_dagster.core.folders import folder_path
from qbench_dagster.core.markup import plain, unstripped
from qbench_dagster.core.merge import merge_steps
from qbench_dagster.core.model import Lookups, Reject, RejectReason, RelatedIssue, TestDoc
from qbench_dagster.core.ranges import LARGEST_ID
from qbench_dagster.core.references import references
from qbench_dagster.core.segments import fenced, items
from qbench_dagster.core.values import boolean, integer, json_object, json_safe, shown, timestamp

_KNOWN = """
    id suite_id section_id project_id title template_id type_id priority_id refs created_on updated_on
    preconditions steps steps_separated steps_combined jiras refs_custom comment is_automated custom_fields
"""
COLUMNS = frozenset(_KNOWN.split())
MAX_STEPS = 65_535
MAX_BYTES = 64 * 2**20
MAX_LISTED = 65_535
"""Of one case: ids of preconditions and issues are case id * 65,536 + their index."""
MAX_LABEL = 500
"""Characters of a label; a longer one is a text, which the index on tags and platforms could not hold."""

_PRIORITY = re.compile(r"\b(critical|high|medium|low)\b", re.IGNORECASE)
_DEGREE = re.compile(r"\b(?:very|not|non|highest|lowest)\b", re.IGNORECASE)
_TAGS = tuple(prefix + name for name in ("tags", "tag", "labels", "label") for prefix in ("", "custom_"))
_PLATFORMS = tuple(prefix + name for name in ("platforms", "platform") for prefix in ("", "custom_"))
_SENTENCE_END = (".", ":", ";", "!", "?", "。", "：", ">", ")", "|")


def normalize(raw: Mapping[str, Any], lookups: Lookups) -> TestDoc | Reject:
    """The published form of a row. Odd values are kept or noted; only three things reject a row."""
    case_id = integer(raw.get("id"))
    if case_id is None or not 1 <= case_id <= LARGEST_ID:
        detail = f"id is {shown(raw.get('id'))}, not a whole number from 1 to {LARGEST_ID}"
        return Reject(case_id or 0, RejectReason.INVALID_ID, detail)
    if (size := _size(raw)) > MAX_BYTES:
        detail = f"{size:,} bytes of text, the limit is {MAX_BYTES:,}"
        return Reject(case_id, RejectReason.TOO_LARGE, detail)
    title = plain(raw.get("title"))
    if not title:
        return Reject(case_id, RejectReason.BLANK_TITLE, f"title is {shown(repr(raw.get('title')))}")
    notes: list[str] = []
    custom = _custom_fields(raw, notes)
    preconditions = raw.get("preconditions")
    description = plain(preconditions)
    steps, step_notes = merge_steps(
        steps=raw.get("steps"),
        separated=raw.get("steps_separated"),
        combined=raw.get("steps_combined"),
        expected=custom.get("custom_expected"),
        preconditions=preconditions,
    )
    notes += step_notes
    if len(steps) > MAX_STEPS:
        return Reject(case_id, RejectReason.TOO_LARGE, f"{len(steps):,} steps, the limit is {MAX_STEPS:,}")
    jira_key, issues = references(custom, raw.get("jiras"), raw.get("refs"), raw.get("refs_custom"))
    section_id = _id(raw, "section_id", notes)
    return TestDoc(
        case_id=case_id,
        uid=f"testrail_{case_id}",
        title=title,
        description=description or None,
        summary=plain(raw.get("comment")) or None,
        preconditions=_conditions(preconditions, notes) if description else (),
        steps=steps,
        priority=_named(raw.get("priority_id"), lookups.priorities, "priority_id", notes, priority_word),
        test_type=_named(raw.get("type_id"), lookups.case_types, "type_id", notes, plain),
        platforms=_labels(custom, _PLATFORMS, notes),
        tags=_labels(custom, _TAGS, notes),
        folder_structure=_folder(section_id, lookups, notes),
        suite_id=_id(raw, "suite_id", notes),
        section_id=section_id,
        project_id=_id(raw, "project_id", notes),
        jira_key=jira_key,
        related_issues=_listed(issues, notes),
        is_automated=boolean(raw.get("is_automated"), "is_automated", notes),
        refs=plain(raw.get("refs")) or None,
        custom_fields=custom,
        source="testrail",
        source_created_at=timestamp(raw.get("created_on"), "created_on", notes),
        source_updated_at=timestamp(raw.get("updated_on"), "updated_on", notes),
        notes=tuple(notes),
    )


@lru_cache(maxsize=256)
def priority_word(name: str) -> str:
    """The word of a priority, whatever number stands before it; any other name as it is."""
    found = {word.capitalize() for word in _PRIORITY.findall(name)}
    return found.pop() if len(found) == 1 and not _DEGREE.search(name) else plain(name)


@lru_cache(maxsize=2048)
def conditions(text: str) -> tuple[str, ...]:
    """The preconditions one by one: list items, GIVEN/AND lines, paragraphs or lines."""
    parts = [text] if is_gherkin(text) else [item.text for item in items(text)]
    if len(parts) > 1:
        return tuple(parts)
    return tuple(filter(None, ("\n".join(run).strip() for run in _runs(parts[0].split("\n"))))) if parts else ()


def _conditions(value: object, notes: list[str]) -> tuple[str, ...]:
    found = conditions(unstripped(value))
    if len(found) <= MAX_LISTED:
        return found
    notes.append(f"preconditions: {len(found):,} conditions, those after {MAX_LISTED:,} are joined to the last")
    return (*found[: MAX_LISTED - 1], "\n".join(found[MAX_LISTED - 1 :]))


def _listed(issues: tuple[RelatedIssue, ...], notes: list[str]) -> tuple[RelatedIssue, ...]:
    if len(issues) <= MAX_LISTED:
        return issues
    notes.append(f"refs: {len(issues):,} references, those after {MAX_LISTED:,} are joined to the last")
    rest = ", ".join(issue.key for issue in issues[MAX_LISTED - 1 :])
    return (*issues[: MAX_LISTED - 1], RelatedIssue(rest, "reference"))


def _runs(lines: list[str]) -> Iterator[list[str]]:
    """Lines that make one condition: a fence, a table, a sentence wrapped over lines."""
    run: list[str] = []
    was_fenced = False
    for line, flag in zip(lines, fenced(lines), strict=True):
        joined = bool(run) and (
            (flag and was_fenced)
            or (line.lstrip().startswith("|") and run[-1].lstrip().startswith("|"))
            or (not flag and not was_fenced and _continues(run[-1], line))
        )
        if run and not joined:
            yield run
            run = []
        run.append(line)
        was_fenced = flag
    if run:
        yield run


def _continues(before: str, line: str) -> bool:
    text = line.strip()
    return bool(text) and text[0].islower() and bool(before.strip()) and not before.rstrip().endswith(_SENTENCE_END)


def _size(raw: Mapping[str, Any]) -> int:
    texts = [value for value in raw.values() if isinstance(value, str | bytes)]
    count = sum(map(len, texts))
    if count * 4 <= MAX_BYTES:
        return count
    return sum(len(t.encode("utf-8", "surrogatepass")) if isinstance(t, str) else len(t) for t in texts)


def _custom_fields(raw: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The custom fields object, with the columns nobody knows under their own names."""
    custom = json_object(raw.get("custom_fields"), "custom_fields", notes)
    for column in [name for name in raw if name not in COLUMNS]:
        name = text_of(column)
        if name not in custom:
            try:
                custom[name] = json_safe(raw[column])
            except RecursionError:
                custom[name] = text_of(raw[column])
                notes.append(f"{name[:40]}: nested too deeply, kept as text")
    return custom


def _id(raw: Mapping[str, Any], column: str, notes: list[str]) -> int | None:
    value = raw.get(column)
    number = integer(value)
    if number is None and value is not None:
        notes.append(f"{column}: not a whole number: {shown(value)}")
    return number


def _named(value: object, names: Mapping[int, str], column: str, notes: list[str], read: Any) -> str | None:
    """The name of a look-up id; an unknown id as text."""
    if value is None:
        return None
    number = integer(value)
    name = None if number is None else names.get(number)
    if name is not None and (word := str(read(name))):
        return word
    text = plain(value if number is None else number)
    notes.append(f"{column}: {shown(value)} is not in the look-up table")
    return text or None


def _labels(custom: Mapping[str, Any], names: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name in names:
        if name in custom:
            for label in _label_texts(custom[name]):
                if len(label) <= MAX_LABEL:
                    found[label] = None
                else:
                    notes.append(
                        f"{name}: {len(label):,} characters are no label, kept in custom_fields: {shown(label)}"
                    )
    return tuple(found)


def _label_texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield from filter(None, map(plain, re.split(r"[,;\n]", unstripped(value))))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _label_texts(item)
    elif isinstance(value, Mapping):
        yield from _label_texts(next((value[k] for k in ("name", "title", "label") if value.get(k)), None))
    elif value is not None and not isinstance(value, bool):
        yield text_of(value)


def _folder(section_id: int | None, lookups: Lookups, notes: list[str]) -> str | None:
    if section_id is None:
        return None
    path, problem = folder_path(section_id, lookups.sections)
    if problem:
        notes.append(f"section_id: {problem}")
    return path
