"""`hnsw_index`: the approximate indexes of the space, built and measured."""

import time
from dataclasses import asdict

import dagster as dg

from qbench_dagster.adapters.cutover import keep_index, read_space
from qbench_dagster.adapters.indexing import apply_strategy, ensure_index, measure
from qbench_dagster.adapters.space import KINDS, ensure_space
from qbench_dagster.assets.embeddings import doc_embeddings, step_embeddings
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, PostgresResource


@dg.asset(
    deps=[doc_embeddings, step_embeddings],
    group_name="published",
    kinds={"postgres"},
    check_specs=[
        dg.AssetCheckSpec(
            "recall_reaches_target",
            asset="hnsw_index",
            blocking=True,
            description="recall@10 against exact search, for stored and for perturbed vectors.",
        ),
        dg.AssetCheckSpec(
            "vectors_are_sound",
            asset="hnsw_index",
            blocking=True,
            description="No vector is zero, not finite, or of the wrong norm.",
        ),
    ],
)
def hnsw_index(
    context: dg.AssetExecutionContext,
    postgres: PostgresResource,
    embedder: EmbedderResource,
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult:
    """HNSW indexes of the settings' space, built beside the old ones and swapped, then measured.

    An index that is there, valid and of the same settings is kept: PostgreSQL adds new rows to it by itself. Where the
    application reads another space, that one keeps the indexes it was built with; `parity_report` measures them.
    """
    started, settings, space = time.monotonic(), postgres.index_settings, embedder.space
    ensure_space(postgres.database, space)
    builds = {}
    for kind in KINDS:
        with progress.track_phases(context, f"hnsw_index: {kind}s") as tell:
            builds[kind] = ensure_index(postgres.database, space, kind, settings, tell)
    apply_strategy(postgres.database, space, settings)
    measured = {kind: measure(postgres.database, space, kind, settings) for kind in KINDS}
    read, _ = read_space(postgres.database, space, settings)
    if read.name != space.name:
        with progress.track_phases(context, f"hnsw_index: {read.name}, which is read") as tell:
            keep_index(postgres.database, read, settings, tell)
    target = postgres.settings.target_recall
    shares = {
        f"recall_{kind}_{queries}": share
        for kind, found in measured.items()
        for queries, share in (("stored", found.stored), ("perturbed", found.perturbed))
        if share is not None
    }
    unsound = {kind: asdict(found.health) for kind, found in measured.items() if not found.health.sound}
    return dg.MaterializeResult(
        metadata={
            **shares,
            "strategy": settings.strategy,
            "rows": sum(build.rows for build in builds.values()),
            "index_bytes": sum(build.bytes for build in builds.values()),
            "rebuilt": [kind for kind, build in builds.items() if build.rebuilt],
            "build_seconds": round(sum(build.seconds for build in builds.values() if build.rebuilt), 3),
            "seconds": round(time.monotonic() - started, 3),
            "builds": [asdict(build) for build in builds.values()],
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="recall_reaches_target",
                passed=all(share >= target for share in shares.values()),
                description=_told(shares, target),
                metadata={**shares, "target": target, "ef_search": settings.ef_search},
            ),
            dg.AssetCheckResult(
                check_name="vectors_are_sound",
                passed=not unsound,
                metadata={
                    "vectors": sum(found.health.rows for found in measured.values()),
                    "unsound": unsound,
                },
            ),
        ],
    )


def _told(shares: dict[str, float], target: float) -> str:
    """The lowest recall, and what raises it."""
    lowest = min(shares.values(), default=1.0)
    if lowest >= target:
        return f"recall@10 is {lowest:.3f} or better"
    return (
        f"recall@10 is {lowest:.3f}, below QBENCH_TARGET_RECALL {target}: raise QBENCH_EF_SEARCH or "
        "QBENCH_HNSW_EF_CONSTRUCTION, or set QBENCH_INDEX=halfvec"
    )
