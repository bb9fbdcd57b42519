"""The schedule `nightly_reconcile`, and the sensor that sees to the indexes and the report after a load by itself.

What the sensors of changes and batches ask for is theirs.
"""

import logging
import time

import dagster as dg
import psycopg

from qbench_dagster.adapters.postgres import DatabaseError
from qbench_dagster.adapters.testrail_export import ExportError
from qbench_dagster.adapters.watching import unfilled
from qbench_dagster.automation.jobs import index_and_report, load_cases
from qbench_dagster.automation.runs import BATCHES, RECONCILE, REQUESTED_BY, never_loaded, runs_at_work, under_way
from qbench_dagster.partitions import range_tags, register_ranges, registered_ranges
from qbench_dagster.resources import EmbedderResource, ExportResource, PostgresResource
from qbench_dagster.settings import load_settings

BUSY_TIMEOUT_S = 2.0


def build_reconcile(at: str, timezone: str) -> dg.ScheduleDefinition:
    """The schedule that compares all cases every day `at` (`HH:MM`) in `timezone`."""
    hour, minute = at.split(":")

    @dg.schedule(
        name=RECONCILE,
        job=load_cases,
        cron_schedule=f"{int(minute)} {int(hour)} * * *",
        execution_timezone=timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Compares every case with the export by its content: finds edits that did not move updated_on, "
        "deletes, and sections and priorities that were renamed. Then the indexes and the parity report.",
    )
    def nightly_reconcile(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return request_all(context.instance, context.log)

    return nightly_reconcile


def request_all(instance: dg.DagsterInstance, log: logging.Logger) -> dg.RunRequest | dg.SkipReason:
    """A run over all ranges, unless the last one is not done yet, or nobody has loaded anything or filled the space."""
    now = time.time()
    for record in under_way(instance, now, {REQUESTED_BY: RECONCILE}):
        return dg.SkipReason(f"run {record.dagster_run.run_id[:8]} of an earlier night is still under way")
    if told := never_loaded(instance) or _unfilled(log):
        return dg.SkipReason(told)
    if not runs_at_work(instance, now):  # a new range would cut the one that such a run may be working on
        try:
            with ExportResource().open(busy_timeout_s=BUSY_TIMEOUT_S) as source:
                register_ranges(instance, source, load_settings().partition_cases)
        except ExportError as error:
            log.warning(f"{error} No new case range was looked for.")  # the run waits longer, or says so red
    return dg.RunRequest(tags={**range_tags(instance, registered_ranges(instance)), REQUESTED_BY: RECONCILE})


def _unfilled(log: logging.Logger) -> str | None:
    """Why a run would embed everything, unasked. Of a database that cannot be asked the run itself says so, red."""
    try:
        with PostgresResource().yield_for_execution(dg.build_init_resource_context()) as postgres:
            return unfilled(postgres.database, EmbedderResource().space)
    except (DatabaseError, psycopg.Error) as error:
        log.warning(str(error).strip())
        return None


@dg.run_status_sensor(
    name="index_after_loads",
    run_status=dg.DagsterRunStatus.SUCCESS,
    monitored_jobs=[load_cases],
    request_job=index_and_report,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Runs index_and_report once a load that embedding_batches or nightly_reconcile asked for has published "
    "its cases. Not after export_changes: PostgreSQL keeps the indexes up to date with every row.",
)
def index_after_loads(context: dg.RunStatusSensorContext) -> dg.RunRequest | dg.SkipReason:
    """A load that skipped a step still waits for batches: then there is nothing new to index."""
    run = context.dagster_run
    if run.tags.get(REQUESTED_BY) not in (BATCHES, RECONCILE):
        return dg.SkipReason("somebody else asked for that run, and sees to the index")
    if context.instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_SKIPPED, limit=1).records:
        return dg.SkipReason("texts still wait in batches")
    return dg.RunRequest(run_key=run.run_id)
