"""The sensor `export_changes`: the database follows the export. Its states and words are `core/watch.py`."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import dagster as dg
import psycopg

from qbench_dagster.adapters import publishing, staging
from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
from qbench_dagster.adapters.watching import difference, identify, is_published, unfilled
from qbench_dagster.automation.jobs import load_cases
from qbench_dagster.automation.runs import (
    CHANGES,
    REQUESTED_BY,
    SYNC_KEY,
    never_loaded,
    newest_of,
    runs_at_work,
    runs_for,
)
from qbench_dagster.core.ranges import CaseRange, range_bound, ranges_with
from qbench_dagster.core.watch import (
    Asked,
    Cursor,
    Fate,
    FileId,
    Rules,
    State,
    ask,
    fate_of,
    in_the_way,
    reasons_to_wait,
)
from qbench_dagster.partitions import new_ranges, register_ranges, registered_ranges, span_tags, spans
from qbench_dagster.resources import EmbedderResource, ExportResource, PostgresResource
from qbench_dagster.settings import Settings, load_settings

BUSY_TIMEOUT_S = 2.0
"""A tick that waits for the export keeps the other sensors waiting; the next is 30 s away."""

Outcome = list[dg.RunRequest] | dg.SkipReason


@dg.sensor(
    name=CHANGES,
    job=load_cases,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for cases that changed in the export (every QBENCH_SYNC_INTERVAL_S, not in QBENCH_QUIET_HOURS) "
    "and runs load_cases over exactly their partitions. Begins once a person has loaded all of them.",
)
def export_changes(context: dg.SensorEvaluationContext) -> Outcome:
    """One request at a time. The cursor moves on only when all of it was brought in."""
    look = _Look(context.instance, Cursor.read(context.cursor), load_settings(), time.time())
    try:
        outcome = look.outcome()
    except (ExportError, DatabaseError, psycopg.Error) as error:
        outcome = look.skip(State.UNREADABLE, str(error).strip())
    context.update_cursor(look.cursor.write())
    if isinstance(outcome, list):
        context.log.info(look.told)
    return outcome


class _Look:
    """One evaluation of the sensor; `cursor` is what is to be remembered of it, `told` what it says to a person."""

    def __init__(self, instance: dg.DagsterInstance, cursor: Cursor, settings: Settings, now: float) -> None:
        self._instance, self._settings, self._now = instance, settings, now
        self._rules = Rules(settings.sync_interval_s, settings.sync_overlap_s, settings.quiet_hours, settings.timezone)
        self._export = ExportResource()
        self._seen_to = 0  # where the last partition begins of a request that was fulfilled and left some to ask for
        self.cursor = cursor
        self.told = ""

    def skip(self, state: State, told: str) -> dg.SkipReason:
        """Nothing is asked for, and why."""
        self.told = f"{state.value}: {told}"
        return dg.SkipReason(self.told)

    def outcome(self) -> Outcome:
        """Runs to ask for, or why none."""
        path = self._export.location
        file = identify(path) if path else None
        unloaded, fate = self._unloaded(), self._fate(file)
        waits = reasons_to_wait(
            self.cursor, self._rules, fate, file, self._now,
            clock=self._clock(), where=str(path or "QBENCH_EXPORT is not set"), unloaded=unloaded,
        )  # fmt: skip
        for state, told in waits:
            if state is State.NOTHING_NEW:
                self.cursor = replace(self.cursor, looked_at=self._now)
            return self.skip(state, told)
        if fate is not None and fate.lost and self.cursor.asked:
            self.told = f"{State.CHANGED.value}: {len(fate.left)} partitions have no run, and are asked for again"
            return self._requests(self.cursor.asked, fate.left)
        assert file is not None
        with (
            PostgresResource().yield_for_execution(dg.build_init_resource_context()) as postgres,
            self._export.open(busy_timeout_s=BUSY_TIMEOUT_S) as source,
        ):
            return self._compare(postgres.database, source, file, fate.left if fate else ())

    def _clock(self) -> str:
        """The time of day where the quiet hours are."""
        return datetime.fromtimestamp(self._now, ZoneInfo(self._rules.timezone)).strftime("%H:%M")

    def _unloaded(self) -> str | None:
        """Why there is nothing to follow yet."""
        if self.cursor.following:
            return None
        told = never_loaded(self._instance)
        self.cursor = replace(self.cursor, following=told is None)
        return told

    def _fate(self, file: FileId | None) -> Fate | None:
        """What became of what was asked for; None where there is nothing more to be done about it."""
        asked = self.cursor.asked
        if asked is None:
            return None
        seen = [*runs_at_work(self._instance, self._now), *runs_for(self._instance, asked.key, self._now)]
        fate = fate_of(asked, seen, file)
        deleted = set(asked.partitions).difference(registered_ranges(self._instance))
        if fate.state is not State.SUCCEEDED and not deleted:
            return fate
        by_others = any(run.key != asked.key for run in fate.runs)  # perhaps without reading the export
        if asked.rest or by_others or deleted:  # it is compared again, at once
            self._seen_to = 0 if by_others or deleted else range_bound(asked.partitions[-1])
            self.cursor = replace(self.cursor, asked=None, looked_at=0.0)
            return None
        self.cursor = self.cursor.brought_in(asked.file, asked.watermark)
        return fate

    def _compare(self, database: Database, source: TestRailExport, file: FileId, left: Sequence[str]) -> Outcome:
        """Ask for the partitions of the cases that differ, and for what is `left` of an earlier request."""
        if not is_published(database):
            return self.skip(State.UNLOADED, f"{database.shown_url} holds no case. `qbench run` loads them")
        if told := unfilled(database, EmbedderResource().space):
            return self.skip(State.UNLOADED, told)
        target, newest = self._settings.partition_cases, source.newest_update()
        found = difference(database, source, self.cursor.since(file, newest, self._rules.overlap_s))
        # A case from the future must not hide those of today.
        watermark = None if newest is None else min(newest, self._now)
        replaced = "the file was replaced, " if self.cursor.is_replaced_by(file) else ""
        told = (
            f"{replaced}{found.compared:,} cases compared: {found.added:,} added, {found.changed:,} changed, "
            f"{found.removed:,} gone"
        )
        self.cursor = replace(self.cursor, looked_at=self._now)
        ranges, planned = registered_ranges(self._instance), new_ranges(self._instance, source, target)
        behind = self._behind(database, ranges)
        if behind:
            told += f"; {len(behind)} partitions were landed and not published"
        affected = {*ranges_with(found.ids, ranges.values()), *left, *behind, *(list(ranges)[-1:] if planned else ())}
        if not affected:
            self.cursor = self.cursor.brought_in(file, watermark)
            return self.skip(State.NOTHING_NEW, told)
        if busy := in_the_way(runs_at_work(self._instance, self._now), affected):
            names = ", ".join(run.told for run in busy)
            return self.skip(State.WAITING, f"{told}. Waits for {names}, which is over the same partitions")
        if planned:
            planned = register_ranges(self._instance, source, target)
            ranges = registered_ranges(self._instance)
            behind = self._behind(database, ranges)
        wanted = {*ranges_with(found.ids, ranges.values()), *left, *behind, *planned}
        asked = ask(
            self.cursor, [key for key in ranges if key in wanted], file, watermark,
            most=self._settings.sync_partitions, after=newest_of(self._instance, CHANGES),
        )  # fmt: skip
        self.cursor = replace(self.cursor, asked=asked)
        rest = f"; {asked.rest} more are asked for after that" if asked.rest else ""
        self.told = f"{State.CHANGED.value}: {told}, in {len(asked.partitions)} partitions{rest}"
        return self._requests(asked, asked.partitions)

    def _behind(self, database: Database, ranges: Mapping[str, CaseRange]) -> set[str]:
        """Partitions that somebody landed, for a plan or in a run that failed, and nobody published.

        Not those a request was just fulfilled for: their texts wait in a batch, and asking again would not end.
        """
        of = list(ranges.values())
        due = staging.ranges_due(database, of) | publishing.ranges_due(database, of)
        return {key for key in due if range_bound(key) > self._seen_to}

    def _requests(self, asked: Asked, keys: Sequence[str]) -> list[dg.RunRequest]:
        """A run for each span of `keys`: Dagster's are over neighbours only."""
        return [
            dg.RunRequest(
                run_key=f"{CHANGES} {asked.key} {span[0]}",
                tags={**span_tags(span), REQUESTED_BY: CHANGES, SYNC_KEY: asked.key},
            )
            for span in spans(self._instance, keys)
        ]
