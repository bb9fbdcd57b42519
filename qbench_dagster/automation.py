"""Jobs: what is started together; and the sensor that starts one when a batch of embeddings has ended."""

import hashlib
import time
from collections.abc import Sequence

import dagster as dg

from qbench_dagster.adapters.batching import keys_that_wait, look
from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.assets.embedding_plan import embedding_plan
from qbench_dagster.assets.embeddings import doc_embeddings, step_embeddings
from qbench_dagster.assets.hnsw_index import hnsw_index
from qbench_dagster.assets.normalized_testdocs import normalized_testdocs
from qbench_dagster.assets.parity_report import parity_report
from qbench_dagster.assets.pg_tables import pg_tables
from qbench_dagster.assets.reused_vectors import reused_vectors
from qbench_dagster.assets.sqlite_cases import sqlite_cases
from qbench_dagster.checks import TABLE_CHECKS
from qbench_dagster.core.batches import pause_s
from qbench_dagster.partitions import range_tags, register_ranges, registered_ranges
from qbench_dagster.resources import EmbedderResource, ExportResource, PostgresResource
from qbench_dagster.settings import load_settings

PARTITIONED_ASSETS = [sqlite_cases, normalized_testdocs, doc_embeddings, step_embeddings, pg_tables]
WHOLE_ASSETS = [reused_vectors, embedding_plan, hnsw_index, parity_report]

# An unpartitioned asset in a partitioned job would run in every partition's run: two jobs.
load_cases = dg.define_asset_job(
    "load_cases",
    selection=dg.AssetSelection.assets(*PARTITIONED_ASSETS) - dg.AssetSelection.checks(*TABLE_CHECKS),
    description="Everything that works by case range, from the export to the published rows.",
)

land_cases = dg.define_asset_job(
    "land_cases",
    selection=dg.AssetSelection.assets(sqlite_cases, normalized_testdocs),
    description="The first half of load_cases, before reuse_vectors: from the export to normalised cases.",
)

embed_and_publish = dg.define_asset_job(
    "embed_and_publish",
    selection=dg.AssetSelection.assets(doc_embeddings, step_embeddings, pg_tables)
    - dg.AssetSelection.checks(*TABLE_CHECKS),
    description="The second half of load_cases, after reuse_vectors: vectors for what still lacks them, then publish.",
)

index_and_report = dg.define_asset_job(
    "index_and_report",
    selection=dg.AssetSelection.assets(hnsw_index, parity_report),
    description="The indexes and the parity report, over the whole database.",
)

reuse_vectors = dg.define_asset_job(
    "reuse_vectors",
    selection=dg.AssetSelection.assets(reused_vectors),
    description="Takes the vectors an old Qdrant or FAISS holds; run it before anything is embedded.",
)

plan_embeddings = dg.define_asset_job(
    "plan_embeddings",
    selection=dg.AssetSelection.assets(embedding_plan),
    description="What embedding will take: texts, reusable vectors, dollars, disk and time. Nothing is spent.",
)

check_tables = dg.define_asset_job(
    "check_tables",
    selection=dg.AssetSelection.checks(*TABLE_CHECKS),
    description="The whole-table checks alone: quick, and nothing is written.",
)

REQUESTED_BY = "qbench/requested_by"
ENDED_BATCHES = "qbench/ended_batches"
"""Names, by a hash, the batches that a run was asked for, so that its fate is known at the next look."""
ON_THEIR_WAY = [
    # Not "not started": by a daemon that died before it queued the run. Asked for again by its key, it is queued.
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
POLL_TIMEOUT_S = 5.0
SILENT_S = 3600.0
"""A run tells of its progress every ten seconds. After a deploy that took the code server with it nobody else marks its
runs failed: the default launcher cannot ask after a process."""


@dg.sensor(
    name="embedding_batches",
    job=load_cases,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="With QBENCH_OPENAI_MODE=batch: asks after the batches that are out, and runs load_cases over the "
    "ranges that wait once one has ended. What is out, and how it stands, is kept in PostgreSQL.",
)
def embedding_batches(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """One run at a time; over the same batches again only after a pause that doubles with each that failed."""
    settings = load_settings()
    if settings.openai_mode != "batch" or settings.openai_api_key is None:
        return dg.SkipReason("QBENCH_OPENAI_MODE is not batch, or OPENAI_API_KEY is not set")
    try:
        with PostgresResource().yield_for_execution(dg.build_init_resource_context()) as postgres:
            return _request_run(context.instance, postgres.database)
    except (EmbeddingError, DatabaseError) as error:
        return dg.SkipReason(str(error))


def _request_run(instance: dg.DagsterInstance, database: Database) -> dg.RunRequest | dg.SkipReason:
    embedder, ranges = EmbedderResource(), registered_ranges(instance)
    waiting, ids, out = set[str](), list[str](), 0
    for space in embedder.maintained(database):
        if space.embedder != "openai":
            continue
        with embedder.batches(space, timeout_s=POLL_TIMEOUT_S, attempts=1) as service:
            count, ended = look(database, space, service)
        out += count
        if ended:
            ids += [str(batch.id) for batch in ended]
            waiting |= keys_that_wait(database, space, ended, list(ranges.values()))
    over = range_tags(instance, waiting)
    if not over:
        return dg.SkipReason(f"{out} batches are out, none is to be taken in now" if out else "no batch is out")
    return _attempt(instance, ids, over)


def _attempt(instance: dg.DagsterInstance, ids: Sequence[str], over: dict[str, str]) -> dg.RunRequest | dg.SkipReason:
    """The next run over batches that ended: by another key than those that came to naught, for a key is run once.

    A run whose process was killed is one of them once Dagster, a person, or its silence here has marked it failed.
    """
    ours = dg.RunsFilter(tags={REQUESTED_BY: "embedding_batches"}, statuses=ON_THEIR_WAY)
    for record in instance.get_run_records(ours):
        run = record.dagster_run
        if run.status == dg.DagsterRunStatus.QUEUED or time.time() - _heard_at(instance, record) < SILENT_S:
            return dg.SkipReason(
                f"run {run.run_id[:8]} sees to what has ended ({run.status.value.lower()}); if its process is gone, "
                "terminate it in the UI (Runs), and another is asked for"
            )
        told = f"Nothing was heard of this run for {SILENT_S / 60:.0f} minutes: its process is taken to be gone."
        instance.report_run_failed(run, told)
    named = hashlib.sha256(" ".join(sorted(ids)).encode()).hexdigest()
    known = instance.get_run_records(dg.RunsFilter(tags={ENDED_BATCHES: named}))  # newest first
    before = [record for record in known if record.dagster_run.is_finished]
    last = before[0].dagster_run.run_id if before else "none"
    if before:
        ended_at = before[0].end_time or before[0].update_timestamp.timestamp()
        left = ended_at + pause_s(len(before)) - time.time()
        if left > 0:
            return dg.SkipReason(
                f"run {last[:8]} did not take in what has ended, {len(before)} so far: another is asked for in "
                f"{left / 60:.0f} minutes, or when another batch has ended. Its log says why."
            )
    return dg.RunRequest(
        run_key=f"batches {named} after {last}",
        tags={**over, REQUESTED_BY: "embedding_batches", ENDED_BATCHES: named},
    )


def _heard_at(instance: dg.DagsterInstance, record: dg.RunRecord) -> float:
    """When a run last told of itself, in seconds of the epoch."""
    told = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False).records
    return max([record.update_timestamp.timestamp(), *(each.event_log_entry.timestamp for each in told)])


@dg.run_status_sensor(
    name="index_after_batches",
    run_status=dg.DagsterRunStatus.SUCCESS,
    monitored_jobs=[load_cases],
    request_job=index_and_report,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Runs index_and_report once a load that embedding_batches asked for has published its cases.",
)
def index_after_batches(context: dg.RunStatusSensorContext) -> dg.RunRequest | dg.SkipReason:
    """A load that skipped a step still waits for batches: then there is nothing new to index."""
    run = context.dagster_run
    if run.tags.get(REQUESTED_BY) != "embedding_batches":
        return dg.SkipReason("somebody else asked for that run, and sees to the index")
    if context.instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_SKIPPED, limit=1).records:
        return dg.SkipReason("texts still wait in batches")
    return dg.RunRequest(run_key=run.run_id)


@dg.op
def register_case_ranges(context: dg.OpExecutionContext, export: ExportResource) -> None:
    """Plan the case ranges the export needs and register them as partitions."""
    with export.open() as source:
        new = register_ranges(context.instance, source, load_settings().partition_cases)
    context.log.info(f"{len(new)} new case ranges: {', '.join(new) or 'none was needed'}")


@dg.job(description="Plans case ranges from the export, so that there are partitions to materialise.")
def plan_case_ranges() -> None:
    """Run this once before the first backfill, and whenever the export has outgrown its last range."""
    register_case_ranges()
