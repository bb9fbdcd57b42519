"""What a parity report says: findings, each with its numbers and its offenders, and the verdict. Values only.

The findings about searches and about vectors by value are `search_parity.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qbench_dagster.core.recall import SAMPLES

MAX_OFFENDERS = 100
_UNSOUND = ("zero", "not_finite", "wrong_norm")


@dataclass(frozen=True, slots=True)
class Finding:
    """One invariant, evaluated over the whole database."""

    name: str
    """The healthy condition, e.g. `source_is_published_or_rejected`."""
    title: str
    passed: bool
    summary: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    offenders: Sequence[Mapping[str, Any]] = ()
    """Up to 100 things that break the invariant: case ids with what is wrong, text hashes, privileges."""
    offender_count: int = 0


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """One partition in the report."""

    key: str
    source_cases: int
    published: int
    rejected: int
    incomplete: int
    steps: int
    held: int = 0
    """Cases that a rollback keeps as it put them, whatever the source says: rejected, published as before, or again."""
    brought_back: int = 0
    """Those of them that are published although the source has them no more, or rejected."""

    @property
    def balanced(self) -> bool:
        """Whether every source case is published or rejected, and nothing else is but what was brought back."""
        return self.source_cases + self.brought_back == self.published + self.rejected

    def shortfall(self) -> str:
        """What does not add up, and what to do, for a person."""
        told = f"{self.source_cases} source cases, {self.published} published, {self.rejected} rejected"
        if self.held:
            told += f"; {self.held} are held by a rollback, {self.brought_back} of them beside the source"
        if self.incomplete:
            told += (
                f"; {self.incomplete} are not published as they are now, because they or a step of theirs lack a "
                "vector: materialise doc_embeddings and step_embeddings, then pg_tables"
            )
        return told


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The whole report. `details` holds what is shown beside the findings: settings, sizes, versions, recall."""

    created_at: str
    space: str
    findings: Sequence[Finding]
    partitions: Sequence[PartitionRow]
    rejects: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """The verdict: every invariant holds."""
        return all(finding.passed for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, verdict first."""
        return {"passed": self.passed, **asdict(self)}


def accounting(
    partitions: Sequence[PartitionRow],
    in_export: int | None,
    unaccounted: Sequence[Mapping[str, Any]],
    count: int,
) -> Finding:
    """Invariant 1. `in_export` is the row count of the export itself, None where it is not at hand.

    A case that is published as it was before is not accounted for, and nothing landed is nothing proven.
    """
    source = sum(row.source_cases for row in partitions)
    published = sum(row.published for row in partitions)
    rejected = sum(row.rejected for row in partitions)
    stale = in_export is not None and in_export != source
    incomplete = sum(row.incomplete for row in partitions)
    held = sum(row.held for row in partitions)
    brought_back = sum(row.brought_back for row in partitions)
    balanced = source + brought_back == published + rejected and all(row.balanced for row in partitions)
    passed = source > 0 and balanced and not incomplete and not count and not stale
    beside = f" + {brought_back:,} that a rollback brought back" if brought_back else ""
    summary = f"{source:,} source cases{beside} = {published:,} published + {rejected:,} rejected"
    if source + brought_back != published + rejected:
        summary = f"{source:,} source cases, but {published:,} published + {rejected:,} rejected"
    elif not partitions:
        summary = "nothing was landed yet: no case range is registered; qbench run and job plan_case_ranges do that"
    elif not source:
        summary = "nothing was landed yet: materialise sqlite_cases"
    elif count or incomplete:
        summary += f", but {max(count, incomplete):,} of them not as the source is now"
    if held:
        summary += f"; {held:,} held by a rollback, see qbench history"
    if stale:
        summary += f"; the export itself holds {in_export:,} rows: materialise sqlite_cases"
    return Finding(
        "source_is_published_or_rejected",
        "Every source case is published or rejected",
        passed,
        summary,
        {
            "source_cases": source,
            "published": published,
            "rejected": rejected,
            "rows_in_export": in_export,
            "held": held,
            "brought_back": brought_back,
        },
        unaccounted[:MAX_OFFENDERS],
        count,
    )


def words_kept(compared: int, lost: Mapping[int, Sequence[str]], *, published: int) -> Finding:
    """Invariant 2. `lost` maps case ids to the words that are missing from their published rows.

    `compared` are those of the `published` cases whose source holds a word that could be lost.
    """
    offenders = [{"case_id": case_id, "lost": list(words[:20])} for case_id, words in sorted(lost.items())]
    return Finding(
        "no_word_lost",
        "No word of steps and preconditions is lost",
        not lost,
        f"{compared:,} of {published:,} published cases have words there and were compared, {len(lost):,} lost a word",
        {"compared": compared, "published": published, "cases_with_lost_words": len(lost)},
        offenders[:MAX_OFFENDERS],
        len(lost),
    )


def published_as_staged(compared: int, different: Sequence[Mapping[str, Any]], count: int) -> Finding:
    """Invariant 1, by value. `different` are up to 100 of the `count` cases whose published rows were changed since."""
    return Finding(
        "published_rows_are_what_was_staged",
        "Published rows are what was normalised",
        not count,
        f"{compared:,} published cases compared value by value, {count:,} differ",
        {"compared": compared, "different": count},
        different[:MAX_OFFENDERS],
        count,
    )


def vectors_complete(
    counts: Mapping[str, int], health: Mapping[str, Mapping[str, Any]], offenders: Sequence[Mapping[str, Any]]
) -> Finding:
    """Invariant 4. `counts` are rows lacking a vector and orphans; `health` is VectorHealth by kind.

    `offenders` are the counted rows, one by one: those that do not fit in are the only ones not listed.
    """
    unsound = [
        {"kind": kind, "text_hash": digest, "wrong": wrong}
        for kind, found in health.items()
        for wrong in _UNSOUND
        for digest in found[wrong]
    ]
    bad = sum(counts.values())
    vectors = sum(found["rows"] for found in health.values())
    cut = any(len(found[wrong]) >= SAMPLES for found in health.values() for wrong in _UNSOUND)
    return Finding(
        "vectors_complete_and_sound",
        "Every published document and step has a sound vector",
        not bad and not unsound,
        f"{vectors:,} vectors examined, {'at least ' if cut else ''}{len(unsound)} unsound; "
        f"{bad:,} {'row' if bad == 1 else 'rows'} without a vector, words or a document",
        {**counts, "vectors": vectors, "unsound_vectors": len(unsound)},
        [*offenders, *unsound][:MAX_OFFENDERS],
        bad + len(unsound),
    )


def least_privilege(excess: Sequence[Mapping[str, Any]], missing: Sequence[Mapping[str, Any]]) -> Finding:
    """Invariant 9. `excess` are rights qbench_reader should not have, `missing` those it needs."""
    offenders = [*excess, *missing]
    return Finding(
        "reader_has_least_privilege",
        "qbench_reader reads qbench and nothing else",
        not offenders,
        f"{len(excess)} {'right' if len(excess) == 1 else 'rights'} too many, {len(missing)} missing",
        {"excess": len(excess), "missing": len(missing)},
        offenders[:MAX_OFFENDERS],
        len(offenders),
    )
