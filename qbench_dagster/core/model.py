"""The values that pass between the rooms of the database: a TestDoc with its steps, or a reject.

Only data lives here. How a TestDoc is made is `normalize.py`; what is embedded of it is `texts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

NORMALIZER_VERSION = 1
"""Raise when the same case would normalise to something else: every case is then normalised again."""

TEXT_RECIPE = 1
"""Version of the text forms that name a vector by their hash (core/texts.py). They are fixed: raised, no stored vector
belongs to any text, and the space that is read is neither filled nor left for one of the new version (docs/adr/0012).
What a model wants put before a text is no part of them: that is the space's prefix, so that spaces of two prefixes
share the hashes of the published rows."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a test: what to do, what should be seen, and the data it needs.

    `action` may be empty when the source has only an expected result; then `expected` is not empty.
    """

    action: str
    expected: tuple[str, ...] = ()
    data: str | None = None


@dataclass(frozen=True, slots=True)
class RelatedIssue:
    """A reference of a case to something outside TestRail.

    `key` is kept as written (`PROJ-12`, `#11234`, `https://…`); `kind` is one of
    `jira`, `url`, `number`, `reference`.
    """

    key: str
    kind: str


@dataclass(frozen=True, slots=True)
class TestDoc:
    """A test case as it is published. Texts are plain text: no HTML, `\\n` line ends, no NUL."""

    __test__ = False  # pytest: this is a value, not a test class

    case_id: int
    uid: str
    title: str
    description: str | None
    summary: str | None
    preconditions: tuple[str, ...]
    steps: tuple[Step, ...]
    priority: str | None
    test_type: str | None
    platforms: tuple[str, ...]
    tags: tuple[str, ...]
    folder_structure: str | None
    suite_id: int | None
    section_id: int | None
    project_id: int | None
    jira_key: str | None
    related_issues: tuple[RelatedIssue, ...]
    is_automated: bool | None
    refs: str | None
    custom_fields: Mapping[str, Any]
    source: str
    source_created_at: datetime | None
    source_updated_at: datetime | None
    notes: tuple[str, ...] = field(default=())
    """What was odd in the source and how it was handled, e.g. `steps_separated: malformed JSON, kept as text`."""


class RejectReason(StrEnum):
    """Why a source row cannot be published. Each names what a person should do about it."""

    INVALID_ID = "invalid_id"
    DUPLICATE_ID = "duplicate_id"
    BLANK_TITLE = "blank_title"
    TOO_LARGE = "too_large"
    ROLLED_BACK = "rolled_back"

    @property
    def remedy(self) -> str:
        """What the owner of the source can do, in one sentence."""
        return {
            RejectReason.INVALID_ID: "Give the row a positive integer id, or remove it from the export.",
            RejectReason.DUPLICATE_ID: "Two rows share this id: remove one from the export.",
            RejectReason.BLANK_TITLE: "Give the case a title in TestRail and export it again.",
            RejectReason.TOO_LARGE: "Split the case in TestRail, or attach the long text as a file.",
            RejectReason.ROLLED_BACK: "It is published when it changes in TestRail, or when the rollback lets it go: "
            "each row names the command.",
        }[self]


@dataclass(frozen=True, slots=True)
class Reject:
    """A source row that is not published, kept with its reason until the source changes."""

    case_id: int
    reason: RejectReason
    detail: str


Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Section(Generic[Key]):
    """A node of TestRail's section tree. `parent_id` may point nowhere, or in a circle."""

    name: str
    parent_id: Key | None


@dataclass(frozen=True, slots=True)
class Lookups:
    """The look-up tables of an export, by id, as landed."""

    sections: Mapping[int, Section[int]]
    priorities: Mapping[int, str]
    case_types: Mapping[int, str]
    version: bytes = b""
    """Of the landed tables they were read from: while it is the same, so are the names."""
