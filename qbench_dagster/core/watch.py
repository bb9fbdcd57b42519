"""The states of the sensor `export_changes`: when it looks at the export, and what became of the runs it asked for.

Pure: the file, the runs and the clock come in as values; the next cursor and words for a person go out. What differs
between the export and the landing room is found by `adapters/watching.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from qbench_dagster.core.batches import FIRST_PAUSE_S, pause_s

SETTLE_S = 5.0
"""A file that was written more recently may be written still: what copies 100 MB pauses for less than this."""


class State(StrEnum):
    """What a look came to. Each is told to a person in its own words."""

    OFF = "off"
    UNLOADED = "nothing loaded yet"
    IN_FLIGHT = "in flight"
    WAITING = "waiting for another run"
    FAILED = "failed"
    GUARDED = "stopped by the delete guard"
    SUCCEEDED = "succeeded"
    QUIET = "quiet hours"
    EARLY = "too early"
    MISSING = "file missing"
    SETTLING = "being written"
    UNREADABLE = "not readable"
    NOTHING_NEW = "nothing new"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class FileId:
    """By what a file that changed is told without opening it. A write-ahead log beside it is part of it."""

    inode: int
    size: int
    modified_ns: int
    wal_size: int = 0
    wal_modified_ns: int = 0

    @property
    def modified_at(self) -> float:
        """Seconds of the epoch."""
        return max(self.modified_ns, self.wal_modified_ns) / 1e9

    def replaces(self, before: FileId | None) -> bool:
        """Whether it is another file under the same name, or was written anew in place: SQLite's only grow."""
        return before is not None and (self.inode != before.inode or self.size < before.size)

    def is_settling(self, now: float) -> bool:
        """Whether it was written just now. A time far in the future says nothing."""
        return abs(now - self.modified_at) < SETTLE_S


@dataclass(frozen=True, slots=True)
class Asked:
    """What runs were asked for: the work, the state of the file it was found in, and how often it was tried."""

    key: str
    partitions: tuple[str, ...]
    file: FileId
    watermark: float | None
    attempts: int = 1
    rest: int = 0
    """Partitions that differed as well, and were left for the next request."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """What the sensor remembers. `file` and `watermark` are of the last look whose changes were all brought in."""

    file: FileId | None = None
    watermark: float | None = None
    asked: Asked | None = None
    looked_at: float = 0.0
    following: bool = False
    """Whether every partition was loaded once, by a person: from then on new ones are loaded unasked."""

    def write(self) -> str:
        """As the text that Dagster keeps."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def read(cls, text: str | None) -> Cursor:
        """Inverse of `write`. What cannot be read is forgotten: then everything is compared once more."""
        try:
            given: dict[str, Any] = json.loads(text or "{}")
            file, asked = given.pop("file", None), given.pop("asked", None)
            if asked:
                partitions = tuple(asked.pop("partitions"))
                asked = Asked(**{**asked, "file": FileId(**asked["file"])}, partitions=partitions)
            return cls(**given, file=FileId(**file) if file else None, asked=asked or None)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def brought_in(self, file: FileId, watermark: float | None) -> Cursor:
        """Nothing is outstanding of what `file` held."""
        return replace(self, file=file, watermark=watermark, asked=None)

    def is_replaced_by(self, file: FileId) -> bool:
        """Whether `file` is another than the one that is brought in, or than the one that runs were asked for."""
        return file.replaces(self.file) or (self.asked is not None and file.replaces(self.asked.file))

    def since(self, file: FileId, newest: float | None, overlap_s: float) -> float | None:
        """From which `updated_on` rows are compared; None for all.

        The overlap is for clocks that go back, and for cases that share the watermark's second. All are compared
        where the watermark says nothing: of a replaced file, and where nothing is as new as it any more.
        """
        if self.watermark is None or newest is None or newest < self.watermark or self.is_replaced_by(file):
            return None
        return self.watermark - overlap_s


@dataclass(frozen=True, slots=True)
class SeenRun:
    """A run of Dagster's, as far as it matters here. `key` is that of what it was asked for; `ended_at` 0: not yet."""

    id: str
    told: str
    partitions: frozenset[str]
    outcome: str  # "under way", "succeeded" or "failed"
    key: str | None = None
    ended_at: float = 0.0
    guard: str | None = None
    """What the delete guard said when it stopped the run."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of what was asked for, and the `left` of it that no run has brought in."""

    state: State
    left: tuple[str, ...] = ()
    runs: tuple[SeenRun, ...] = ()
    lost: bool = False
    """Whether there is no run for what is left: the daemon died before it launched it, or somebody deleted it."""
    again_at: float = 0.0

    def due(self, now: float) -> bool:
        """Whether it is to be asked for again."""
        return self.state in (State.FAILED, State.GUARDED) and now >= self.again_at

    def told(self, now: float) -> str:
        """For a person."""
        names = ", ".join(run.told for run in self.runs)
        if self.state is State.IN_FLIGHT:
            return f"{names}: under way. If its process is gone, terminate it in the UI (Runs): it is asked for again"
        if self.state is State.SUCCEEDED:
            return f"{names}: what was asked for is published"
        if self.state is State.GUARDED:
            said = next(run.guard for run in self.runs if run.guard)
            return f"{names}: {said} It is tried again when the export has changed"
        return (
            f"{names} failed; its log says why. {len(self.left)} partitions are asked for again in "
            f"{max(0.0, self.again_at - now) / 60:.0f} minutes, or {FIRST_PAUSE_S / 60:.0f} minutes after the failure "
            "once the export has changed"
        )


def fate_of(asked: Asked, runs: Sequence[SeenRun], file: FileId | None) -> Fate:
    """What became of `asked`, by `runs`: ours, and those of others that succeeded since. `file` is as it is now.

    It is tried again after a pause that doubles with each attempt, or after the first pause when the file has changed,
    which may be the cure. What the delete guard stopped is tried again only with another file: it would be stopped
    again. Somebody's own run over the same partitions settles either, as far as it read the export.
    """
    ours = [run for run in runs if run.key == asked.key]
    done = {key for run in runs if run.outcome == "succeeded" for key in run.partitions}
    left = tuple(key for key in asked.partitions if key not in done)
    if under_way := [run for run in ours if run.outcome == "under way"]:
        return Fate(State.IN_FLIGHT, left, tuple(under_way))
    if not left:
        by = [run for run in runs if run.outcome == "succeeded" and run.partitions.intersection(asked.partitions)]
        return Fate(State.SUCCEEDED, (), tuple(by))
    failed = [run for run in ours if run.outcome == "failed" and run.partitions.intersection(left)]
    if not failed:
        return Fate(State.FAILED, left, lost=True)
    changed = file is not None and file != asked.file
    guarded = any(run.guard for run in failed)
    pause = FIRST_PAUSE_S if changed else float("inf") if guarded else pause_s(asked.attempts)
    again_at = max(run.ended_at for run in failed) + pause
    return Fate(State.GUARDED if guarded else State.FAILED, left, tuple(failed), again_at=again_at)


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that a look is held to: seconds, and `HH:MM-HH:MM` as people in `timezone` read the clock."""

    interval_s: float
    overlap_s: float
    quiet_hours: str | None
    timezone: str


def reasons_to_wait(
    cursor: Cursor,
    rules: Rules,
    fate: Fate | None,
    file: FileId | None,
    now: float,
    *,
    clock: str,
    where: str,
    unloaded: str | None,
) -> Iterator[tuple[State, str]]:
    """Why the export is not opened now, the weightiest first; none if it is to be.

    `fate` is of what was asked for, `file` the export at `where` as it is, `clock` the local time as `HH:MM`.
    """
    if not rules.interval_s:
        yield State.OFF, "QBENCH_SYNC_INTERVAL_S is 0. nightly_reconcile still compares everything"
    if unloaded is not None:
        yield State.UNLOADED, unloaded
    if fate is not None and not fate.due(now):
        yield fate.state, fate.told(now)
    if is_quiet(rules.quiet_hours, clock):
        yield State.QUIET, f"QBENCH_QUIET_HOURS is {rules.quiet_hours} ({rules.timezone}), it is {clock}"
    if fate is not None and fate.lost:
        return
    early = cursor.looked_at + rules.interval_s - now
    if fate is None and 0 < early <= rules.interval_s:  # more: by a clock that was ahead, and was set right
        yield State.EARLY, f"the next look is in {early:.0f} s (QBENCH_SYNC_INTERVAL_S)"
    if file is None:
        yield State.MISSING, f"{where}: there is no such file, or its folder cannot be read. Bring it back"
    elif fate is None and file == cursor.file:
        yield State.NOTHING_NEW, f"{where} was not written since the last look"
    elif file.is_settling(now):
        yield State.SETTLING, f"{where} was written {now - file.modified_at:.0f} s ago, and may still be"


def ask(
    cursor: Cursor, wanted: Sequence[str], file: FileId, watermark: float | None, *, most: int, after: str
) -> Asked:
    """A request for the first `most` of `wanted`. The same again has the same key, until a run `after` it has ended.

    Dagster runs a key once: a look that is repeated because its end was lost asks for no second run.
    """
    taken = tuple(wanted[:most])
    named = json.dumps([asdict(file), taken, after])
    return Asked(
        key=hashlib.sha256(named.encode()).hexdigest()[:16],
        partitions=taken,
        file=file,
        watermark=watermark,
        attempts=cursor.asked.attempts + 1 if cursor.asked else 1,
        rest=len(wanted) - len(taken),
    )


def is_quiet(quiet_hours: str | None, clock: str) -> bool:
    """Whether `clock` (`HH:MM`) is within `HH:MM-HH:MM`, which may go over midnight and excludes its end."""
    if quiet_hours is None:
        return False
    begin, _, end = quiet_hours.partition("-")
    return begin <= clock < end if begin <= end else clock >= begin or clock < end


def in_the_way(runs: Iterable[SeenRun], partitions: Iterable[str]) -> list[SeenRun]:
    """The runs that work on any of `partitions` at this moment."""
    keys = set(partitions)
    return [run for run in runs if run.outcome == "under way" and run.partitions & keys]
