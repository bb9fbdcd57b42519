"""The sensor `embedding_batches`: starts a run when a batch of embeddings at the service has ended."""

import hashlib
import time
from collections.abc import Sequence

import dagster as dg

from qbench_dagster.adapters.batching import keys_that_wait, look
from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.automation.jobs import load_cases
from qbench_dagster.automation.runs import BATCHES, REQUESTED_BY, ended_at, under_way
from qbench_dagster.core.batches import pause_s
from qbench_dagster.partitions import range_tags, registered_ranges
from qbench_dagster.resources import EmbedderResource, PostgresResource
from qbench_dagster.settings import load_settings

ENDED_BATCHES = "qbench/ended_batches"
"""Names, by a hash, the batches that a run was asked for, so that its fate is known at the next look."""
POLL_TIMEOUT_S = 5.0


@dg.sensor(
    name=BATCHES,
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
    now = time.time()
    for record in under_way(instance, now, {REQUESTED_BY: BATCHES}):
        run = record.dagster_run
        return dg.SkipReason(
            f"run {run.run_id[:8]} sees to what has ended ({run.status.value.lower()}); if its process is gone, "
            "terminate it in the UI (Runs), and another is asked for"
        )
    named = hashlib.sha256(" ".join(sorted(ids)).encode()).hexdigest()
    known = instance.get_run_records(dg.RunsFilter(tags={ENDED_BATCHES: named}))  # newest first
    before = [record for record in known if record.dagster_run.is_finished]
    last = before[0].dagster_run.run_id if before else "none"
    if before:
        left = ended_at(before[0], now) + pause_s(len(before)) - now
        if left > 0:
            return dg.SkipReason(
                f"run {last[:8]} did not take in what has ended, {len(before)} so far: another is asked for in "
                f"{left / 60:.0f} minutes, or when another batch has ended. Its log says why."
            )
    return dg.RunRequest(
        run_key=f"batches {named} after {last}",
        tags={**over, REQUESTED_BY: BATCHES, ENDED_BATCHES: named},
    )
