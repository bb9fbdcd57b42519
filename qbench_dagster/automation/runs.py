"""What Dagster knows of runs, as the sensors need it: which are under way, over which partitions, for whom."""

from collections.abc import Collection, Iterator, Mapping

import dagster as dg

from qbench_dagster.core.watch import SeenRun
from qbench_dagster.partitions import keys_of_tags, registered_ranges

REQUESTED_BY = "qbench/requested_by"
BATCHES, CHANGES, RECONCILE = "embedding_batches", "export_changes", "nightly_reconcile"
PULLS = "testrail_pulls"
FOLLOWERS = (CHANGES, RECONCILE)
"""Who asks for runs, and which of them bring in what changed."""
SYNC_KEY = "qbench/sync"
"""Names what `export_changes` asked a run for, so that its fate is known at the next look."""
ON_THEIR_WAY = [
    # Not "not started": by a daemon that died before it queued the run. Asked for again by its key, it is queued.
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
SILENT_S = 3600.0
"""A run tells of its progress every ten seconds. After a deploy that took the code server with it nobody else marks its
runs failed: the default launcher cannot ask after a process."""
PUBLISHING_JOBS = {"load_cases", "embed_and_publish"}
NEWEST = 50  # runs that are looked through for one that made up for ours


def under_way(
    instance: dg.DagsterInstance, now: float, tags: Mapping[str, str] | None = None
) -> Iterator[dg.RunRecord]:
    """The runs that are under way, at `now` in seconds of the epoch. One that fell silent is taken to be gone.

    Of ours it is marked as failed; those of others are left to them.
    """
    for record in instance.get_run_records(dg.RunsFilter(tags=tags, statuses=ON_THEIR_WAY)):
        run = record.dagster_run
        if run.status == dg.DagsterRunStatus.QUEUED or now - _heard_at(instance, record) < SILENT_S:
            yield record
        elif REQUESTED_BY in run.tags:
            told = f"Nothing was heard of this run for {SILENT_S / 60:.0f} minutes: its process is taken to be gone."
            instance.report_run_failed(run, told)


def _heard_at(instance: dg.DagsterInstance, record: dg.RunRecord) -> float:
    """When a run last told of itself, in seconds of the epoch."""
    told = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False).records
    return max([record.update_timestamp.timestamp(), *(each.event_log_entry.timestamp for each in told)])


def ended_at(record: dg.RunRecord, now: float) -> float:
    """When a finished run ended, in seconds of the epoch. 0, long ago, by a clock that is ahead of `now`.

    It was set right since, and what waits for a pause after that moment would wait until it is reached.
    """
    ended = record.end_time or record.update_timestamp.timestamp()
    return ended if ended <= now else 0.0


def runs_at_work(instance: dg.DagsterInstance, now: float) -> list[SeenRun]:
    """The runs over case ranges that are under way, whoever asked for them."""
    seen = [_seen(instance, record, "under way", now) for record in under_way(instance, now)]
    return [run for run in seen if run.partitions]


def runs_for(instance: dg.DagsterInstance, key: str, now: float) -> list[SeenRun]:
    """The finished runs for what was asked by `key`, and those of others, made after the first of them, that published.

    One of those made up for ours where it was over the same, if it read the export: that is for the caller to see.
    """
    ours = instance.get_run_records(dg.RunsFilter(tags={SYNC_KEY: key}))
    first = min((record.storage_id for record in ours), default=float("inf"))
    succeeded = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]), limit=NEWEST)
    theirs = [each for each in succeeded if each.storage_id > first and _publishes(each.dagster_run)]
    found = {record.dagster_run.run_id: record for record in (*ours, *theirs) if record.dagster_run.is_finished}
    return [
        _seen(instance, record, "succeeded" if record.dagster_run.is_success else "failed", now)
        for record in found.values()
    ]


def newest_of(instance: dg.DagsterInstance, requested_by: str) -> str:
    """Id of the newest finished run somebody asked for, "none" without one."""
    finished = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    known = instance.get_run_records(dg.RunsFilter(tags={REQUESTED_BY: requested_by}, statuses=finished), limit=1)
    return known[0].dagster_run.run_id if known else "none"


def never_loaded(instance: dg.DagsterInstance) -> str | None:
    """Why there is nothing to follow yet, None once there is. What a first load may cost is a person's to decide.

    Followed is what was loaded whole once, or was followed before: a range that is new then is loaded unasked.
    """
    ranges = registered_ranges(instance)
    if ranges and any(instance.get_run_records(dg.RunsFilter(tags={REQUESTED_BY: by}), limit=1) for by in FOLLOWERS):
        return None
    missing = set(ranges) - instance.get_materialized_partitions(dg.AssetKey("pg_tables"))
    if ranges and not missing:
        return None
    what = f"{len(missing)} of {len(ranges)} partitions were never loaded" if ranges else "nothing was ever loaded"
    return f"{what}. `qbench run` does (in the UI: load_cases over all partitions); from then on changes follow"


def _publishes(run: dg.DagsterRun) -> bool:
    """Whether it brings cases as far as the published rows; from the UI a run may be over some of the assets."""
    chosen: Collection[dg.AssetKey] = run.asset_selection or ()
    return dg.AssetKey("pg_tables") in chosen if chosen else run.job_name in PUBLISHING_JOBS


def _seen(instance: dg.DagsterInstance, record: dg.RunRecord, outcome: str, now: float) -> SeenRun:
    run, tags = record.dagster_run, record.dagster_run.tags
    backfill = tags.get("dagster/backfill")
    asker = tags.get(REQUESTED_BY) or (f"backfill {backfill}" if backfill else "started by hand")
    return SeenRun(
        id=run.run_id,
        told=f"run {run.run_id[:8]} ({run.job_name.lstrip('_')}, {asker})",
        partitions=frozenset(keys_of_tags(instance, tags)),
        outcome=outcome,
        key=tags.get(SYNC_KEY),
        ended_at=ended_at(record, now) if run.is_finished else 0.0,
        guard=_guard(instance, run.run_id) if outcome == "failed" else None,
    )


def _guard(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """What the delete guard said, if it stopped the run."""
    failures = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    for record in failures:
        event = record.event_log_entry.dagster_event
        error = event.step_failure_data.error if event else None
        while error is not None:
            _, found, told = error.message.partition("DeleteGuardError: ")
            if found:
                return told.strip()
            error = error.cause
    return None
