"""`reused_vectors`: the vectors an old store has of our texts, before any text is embedded."""

import time

import dagster as dg

from qbench_dagster.adapters.reuse_pass import Reused, Tally
from qbench_dagster.adapters.reusing import reuse_vectors
from qbench_dagster.adapters.vector_source import SourceError
from qbench_dagster.assets.normalized_testdocs import normalized_testdocs
from qbench_dagster.assets.stage import ended_by
from qbench_dagster.core.reuse import VALUE_TOLERANCE, Refusal
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, OldStoreResource, PostgresResource

NO_STORE = "no old store is set: QBENCH_QDRANT_URL, QBENCH_QDRANT_PATH, QBENCH_FAISS_DOCS, QBENCH_FAISS_STEPS"


@dg.asset(
    deps=[normalized_testdocs],
    group_name="embedding_space",
    kinds={"python", "postgres", "qdrant"},
    check_specs=[
        dg.AssetCheckSpec(
            "reused_vectors_equal_their_source",
            asset="reused_vectors",
            blocking=True,
            description="Read back from PostgreSQL, each vector of an old store is the store's within 1e-3 by value.",
        ),
        dg.AssetCheckSpec(
            "stored_vectors_do_not_conflict",
            asset="reused_vectors",
            description="No text has two vectors in the old stores, or one there and one here, of cosine below 0.999.",
        ),
    ],
)
def reused_vectors(
    context: dg.AssetExecutionContext,
    postgres: PostgresResource,
    embedder: EmbedderResource,
    old_store: OldStoreResource,
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult:
    """Vectors of a Qdrant and of FAISS indexes, taken if case, text, model and dimensions are ours.

    What is not taken is counted by reason and listed in store.source_points.
    """
    started = time.monotonic()
    with ended_by(SourceError), old_store.open() as sources, progress.track(context, "old stores", None) as advance:
        passes = reuse_vectors(
            postgres.database,
            embedder.space,
            sources,
            declared_model=old_store.declared_model,
            allow_quantized=old_store.allow_quantized,
            progress=advance,
        )
    tallies = [tally for done in passes for tally in done.kinds.values()]
    taken = sum(tally.taken for tally in tallies)
    return dg.MaterializeResult(
        metadata={
            "points": sum(tally.points for tally in tallies),
            "taken": taken,
            "kept": sum(tally.kept for tally in tallies),
            "refused": sum(tally.refused.total() for tally in tallies),
            "rows_written": taken,
            "by_store": {done.description: done.counts() for done in passes},
            "summary": dg.MetadataValue.md(_summary(passes) if passes else NO_STORE),
            "refused_samples": {
                f"{done.provenance}: {reason.value}": [f"{kind} {point}, case {case}" for kind, point, case in found]
                for done in passes
                for reason, found in done.samples.items()
            },
            "seconds": round(time.monotonic() - started, 3),
        },
        check_results=[_equal(passes, tallies), _free_of_conflicts(passes, tallies)],
    )


def _equal(passes: list[Reused], tallies: list[Tally]) -> dg.AssetCheckResult:
    unequal = sum(tally.unequal for tally in tallies)
    told = (
        f"{unequal:,} vectors of an old store are not what it holds now: it has changed since, or the space was "
        "changed by hand. Delete these vectors from the space and materialise again."
    )
    return dg.AssetCheckResult(
        check_name="reused_vectors_equal_their_source",
        passed=not unequal,
        description=told if unequal else None,
        metadata={
            "compared": sum(tally.taken + tally.kept for tally in tallies),
            "unequal": unequal,
            "max_error": max((tally.max_error for tally in tallies), default=0.0),
            "tolerance": VALUE_TOLERANCE,
            "samples": [list(found) for done in passes for found in done.unequal_samples],
        },
    )


def _free_of_conflicts(passes: list[Reused], tallies: list[Tally]) -> dg.AssetCheckResult:
    reason = Refusal.CONFLICTING_DUPLICATE
    conflicts = sum(tally.refused[reason] for tally in tallies)
    told = (
        f"{conflicts:,} points of old stores have another vector for a text than it has here; store.source_points "
        f"lists them as {reason.value}. {reason.remedy}"
    )
    return dg.AssetCheckResult(
        check_name="stored_vectors_do_not_conflict",
        passed=not conflicts,
        severity=dg.AssetCheckSeverity.WARN,
        description=told if conflicts else None,
        metadata={
            "conflicts": conflicts,
            "samples": [list(found) for done in passes for found in done.samples.get(reason, [])],
        },
    )


def _summary(passes: list[Reused]) -> str:
    """What was taken and what was not, and what can be done about it, as Markdown."""
    lines = ["| store | vectors of | points | taken | kept | refused |", "|---|---|--:|--:|--:|--:|"]
    remedies = []
    for done in passes:
        for kind, tally in done.kinds.items():
            lines.append(
                f"| {done.description} | {kind}s | {tally.points:,} | {tally.taken:,} | {tally.kept:,} "
                f"| {tally.refused.total():,} |"
            )
            remedies += [
                f"- {done.provenance}, {kind}s: {tally.refused[reason]:,} {reason.value}. {reason.remedy}"
                for reason in Refusal
                if tally.refused[reason]
            ]
    return "\n".join([*lines, "", *remedies])
