"""What a sync did and what undoing it would do, as values; what differs between two versions of a case.

Where versions are kept is `adapters/history.py`; how it looks in a terminal is `cli/history.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import SequenceMatcher
from typing import Any

FIELDS = (
    *("title", "description", "summary", "folder_structure", "priority", "test_type", "jira_key", "refs", "tags"),
    *("platforms", "is_automated", "project_id", "suite_id", "section_id", "source", "uid"),
    *("source_created_at", "source_updated_at"),
)
"""Fields of a document in the order a person reads them; others follow by name."""
_LISTS = ("precondition", "step", "related issue")
_OF_THE_STORE = {"test_case_id", "doc_hash", "text_hash", "ingested_at", "updated_at", "custom_fields"}
_MAX_LINES = 2000
"""Longer texts are shown as replaced: aligning lines takes time of their product."""

_BACKUP = "A backup from before it has that: qbench restore."

Content = Mapping[str, Any]
"""A case as store.case_versions keeps it: `document`, `steps`, `preconditions`, `related_issues`, rows by column."""


class RollbackRefusedError(RuntimeError):
    """The sync was not undone, and nothing was changed; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Sync:
    """One numbered entry of the history. Counts are of cases."""

    id: int
    kind: str
    """`sync` or `rollback`."""
    run_id: str | None
    by: str
    started_at: datetime
    finished_at: datetime | None
    """None: it is under way, or its process was killed."""
    partitions: Sequence[str]
    added: int
    changed: int
    removed: int
    undoes: int | None
    undone_by: int | None
    """The last rollback that undid it."""
    purged_at: datetime | None
    did: str | None
    """What it did to the case that was asked about: `added`, `changed` or `removed`."""


@dataclass(frozen=True, slots=True)
class CaseChange:
    """One case before and after a sync; None where it was not published, or is not kept any more."""

    case_id: int
    what: str
    """`added`, `changed` or `removed`."""
    before: Content | None
    after: Content | None
    lost: tuple[str, ...] = ()
    """Which of `before` and `after` is not kept any more."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that differs, e.g. `title` or `step 2`; None on a side that does not have it."""

    what: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """What undoing a sync comes to, and what speaks against it. Counts are of cases."""

    sync: Sync
    leave: int
    """Published by the sync: not published any more."""
    change_back: int
    come_back: int
    """Taken away by the sync: published again."""
    refusals: Sequence[str]
    """Why it cannot be undone, whatever one is ready to lose."""
    changed_since: int
    """Cases that something later changed again: their later state would be lost."""
    changed_by: Sequence[tuple[int, int | None]]
    """Up to 20 of them, each with the last sync that changed it; None: nobody knows who did."""
    examples: Sequence[tuple[int, str, str]]
    """Up to 10 cases: id, what becomes of it, title."""

    @property
    def cases(self) -> int:
        """Cases that would not stay as they are."""
        return self.leave + self.change_back + self.come_back

    def objections(self, *, force: bool = False) -> list[str]:
        """Why it is not to be undone; with `force` what was changed since is given up, and it need not be finished."""
        found = list(self.refusals)
        if self.sync.finished_at is None and not force:
            found.append(
                f"Sync {self.sync.id} is not finished: its run goes on, and would be undone in part; or it failed or "
                "was killed, and stays so. Let it end; if it did, --force."
            )
        if self.changed_since and not force:
            listed = ", ".join(
                f"{case_id} by {f'sync {sync_id}' if sync_id else 'someone outside of any sync'}"
                for case_id, sync_id in self.changed_by
            )
            more = self.changed_since - len(self.changed_by)
            listed += f", and {more:,} more" if more > 0 else ""
            found.append(
                f"{self.changed_since:,} of its cases changed again since ({listed}). Undo the later syncs first, the "
                "newest first; or lose those changes with --force."
            )
        return found


def refusals(
    sync: Sync,
    cases: int,
    *,
    lost: int,
    taken_uids: Sequence[Mapping[str, Any]],
    missing_texts: int,
    complete_spaces: Sequence[str],
) -> list[str]:
    """Why `sync` cannot be undone. `lost` versions are kept no more; `missing_texts` have no vector in what is read.

    `complete_spaces` are other spaces that have them all.
    """
    if sync.purged_at is not None:
        when = f"{sync.purged_at:%Y-%m-%d}"
        return [f"What sync {sync.id} replaced was purged on {when}: it is kept for QBENCH_HISTORY_DAYS. {_BACKUP}"]
    if not cases:
        undone = f": sync {sync.undone_by} undid it" if sync.undone_by else ""
        return [f"There is nothing to undo: every case of sync {sync.id} is as it was before it{undone}."]
    found = []
    if lost:
        found.append(f"{lost:,} of its cases are not kept as they were before it. {_BACKUP}")
    if missing_texts:
        way = (
            f"{' and '.join(complete_spaces)} has them: qbench cutover {complete_spaces[0]}, then this again."
            if complete_spaces
            else "No other space has them. Put the cases back in TestRail: the next sync embeds and publishes them."
        )
        found.append(
            f"{missing_texts:,} texts of the cases as they were have no vector in the space that is read, and no case "
            f"is published without. {way}"
        )
    found += [
        f"Case {row['case_id']} would get its uid {row['uid']} back, which case {row['held_by']} has now: undo the "
        f"sync that published that one first (qbench history --case {row['held_by']})."
        for row in taken_uids
    ]
    return found


def differences(before: Content | None, after: Content | None) -> list[Difference]:
    """What differs between two versions of a case, field by field, steps and lists by their number."""
    old, new = dict(_texts(before)), dict(_texts(after))
    named = sorted(old.keys() | new.keys(), key=_place)
    return [Difference(what, old.get(what), new.get(what)) for what in named if old.get(what) != new.get(what)]


def _place(what: str) -> tuple[int, int, str]:
    """Where a person looks for it: fields of the document, other fields by name, then each list by number."""
    if what in FIELDS:
        return 0, FIELDS.index(what), ""
    name, _, number = what.rpartition(" ")
    return (2 + _LISTS.index(name), int(number), "") if name in _LISTS else (1, 0, what)


def _texts(content: Content | None) -> Iterator[tuple[str, str]]:
    if content is None:
        return
    document = content["document"]
    for name, value in document.items():
        if name not in _OF_THE_STORE and value not in (None, []):
            yield name, _text(value)
    for name, value in (document.get("custom_fields") or {}).items():
        yield f"custom_fields.{name}", _text(value)
    for row in content["preconditions"]:
        yield f"precondition {row['order_index'] + 1}", row["condition"]
    for row in content["steps"]:
        expected = [f"expected: {one}" for one in row["expected"]]
        yield (
            f"step {row['step_index']}",
            "\n".join([row["action"], *expected, *([f"data: {row['data']}"] if row["data"] else [])]),
        )
    for row in content["related_issues"]:
        yield f"related issue {row['order_index'] + 1}", f"{row['issue_key']} ({row['issue_type']})"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def changed_lines(difference: Difference) -> list[tuple[str, str]]:
    """The lines that differ, in order, each with `-` (before) or `+` (after)."""
    old = [] if difference.before is None else difference.before.split("\n")
    new = [] if difference.after is None else difference.after.split("\n")
    if max(len(old), len(new)) > _MAX_LINES:
        return [*(("-", line) for line in old), *(("+", line) for line in new)]
    found: list[tuple[str, str]] = []
    for tag, first, last, begin, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            found += [("-", line) for line in old[first:last]] + [("+", line) for line in new[begin:end]]
    return found
