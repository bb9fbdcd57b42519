"""The sensor `testrail_pulls`: keeps the mirror of TestRail up to date, where TestRail is the source.

What is brought on from there, and when, is `sync.py`: to it the mirror is an export.
"""

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg

from qbench_dagster.adapters.testrail_work import MirrorError
from qbench_dagster.automation.jobs import pull_testrail
from qbench_dagster.automation.runs import PULLS, REQUESTED_BY, under_way
from qbench_dagster.core.watch import is_quiet
from qbench_dagster.resources import TestRailResource
from qbench_dagster.settings import Settings, load_settings

LEAD = timedelta(hours=1)
"""How long before nightly_reconcile a full pull is begun: at 180 requests a minute, 100,000 cases in 300 suites take
ten minutes, if nobody else asks."""


@dg.sensor(
    name=PULLS,
    job=pull_testrail,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="With QBENCH_TESTRAIL_URL: runs pull_testrail every QBENCH_SYNC_INTERVAL_S, not in QBENCH_QUIET_HOURS; "
    "once a day, an hour before nightly_reconcile, for every case.",
)
def testrail_pulls(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """One pull at a time. One that failed is asked for again after the interval, and goes on where it was."""
    settings, now = load_settings(), time.time()
    if told := _unused(settings):
        return dg.SkipReason(told)
    for record in under_way(context.instance, now, {REQUESTED_BY: PULLS}):
        return dg.SkipReason(f"run {record.dagster_run.run_id[:8]} is pulling")
    early = float(context.cursor or 0) + settings.sync_interval_s - now
    if 0 < early <= settings.sync_interval_s:  # more: the clock was ahead when it was noted
        return dg.SkipReason(f"the next pull is in {early:.0f} s (QBENCH_SYNC_INTERVAL_S)")
    try:
        full = _full_is_due(settings, now)
    except MirrorError as error:
        return dg.SkipReason(str(error))
    clock = datetime.fromtimestamp(now, ZoneInfo(settings.timezone)).strftime("%H:%M")
    if not full and is_quiet(settings.quiet_hours, clock):
        return dg.SkipReason(f"QBENCH_QUIET_HOURS is {settings.quiet_hours} ({settings.timezone}), it is {clock}")
    context.update_cursor(str(now))
    return dg.RunRequest(
        run_key=f"{PULLS} {now:.0f}",
        run_config=dg.RunConfig(ops={"testrail_mirror": {"config": {"full": full}}}),
        tags={REQUESTED_BY: PULLS},
    )


def _unused(settings: Settings) -> str | None:
    """Why TestRail is not followed."""
    if settings.testrail_url is None:
        return "QBENCH_TESTRAIL_URL is not set"
    if settings.export is not None:
        return "QBENCH_EXPORT is set: the export is the source"
    return None if settings.sync_interval_s else "QBENCH_SYNC_INTERVAL_S is 0"


def _full_is_due(settings: Settings, now: float) -> bool:
    """Whether none was begun since the hour before the last nightly_reconcile, or there never was one.

    One in the future was begun while the clock was ahead.
    """
    last = TestRailResource().last_full_pull()
    return last is None or not _last_time_of_day(settings, now).timestamp() <= last <= now


def _last_time_of_day(settings: Settings, now: float) -> datetime:
    hour, minute = map(int, settings.reconcile_at.split(":"))
    zone = ZoneInfo(settings.timezone)
    today = datetime.fromtimestamp(now, zone)
    for days in range(-1, 2):
        day = today.date() - timedelta(days=days)
        begun = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone).astimezone(UTC) - LEAD
        if begun.timestamp() <= now:
            return begun
    raise AssertionError("a time of day was within the last two days")
