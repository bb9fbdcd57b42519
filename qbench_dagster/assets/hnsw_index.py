"""`hnsw_index`: the approximate indexes of the space, chosen, built and measured."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import dagster as dg

from qbench_dagster.adapters.cutover import keep_index, read_space
from qbench_dagster.adapters.indexing import Build, ensure_index
from qbench_dagster.adapters.measuring import Measured, measure, search_curves
from qbench_dagster.adapters.space import KINDS, ensure_space
from qbench_dagster.assets.embeddings import doc_embeddings, step_embeddings
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, PostgresResource


@dg.asset(
    deps=[doc_embeddings, step_embeddings],
    group_name="published",
    kinds={"postgres"},
    pool="index_builds",
    check_specs=[
        dg.AssetCheckSpec(
            "recall_reaches_target",
            asset="hnsw_index",
            blocking=True,
            description="recall@10 against exact search, for stored and moved vectors, and those of the other table.",
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
    """Indexes of the settings' space, documents and steps each as measures best, built beside the old ones and swapped.

    An index that is there, valid and as asked for is kept: PostgreSQL adds new rows to it by itself. Where the
    application reads another space, that one keeps the indexes it was built with; `parity_report` measures them.
    """
    started, settings, space = time.monotonic(), postgres.index_settings, embedder.space
    ensure_space(postgres.database, space)
    builds = {}
    for kind in KINDS:
        with progress.track_phases(context, f"hnsw_index: {kind}s") as tell:
            builds[kind] = ensure_index(postgres.database, space, kind, settings, tell)
        for told in (f"{kind}s: {builds[kind].why}", *builds[kind].notes):
            context.log.info(told)
    measured = {kind: measure(postgres.database, space, kind) for kind in KINDS}
    read = read_space(postgres.database, space)
    if read.name != space.name:
        with progress.track_phases(context, f"hnsw_index: {read.name}, which is read") as tell:
            keep_index(postgres.database, read, settings, tell)
    target = settings.target_recall
    shares = {
        f"recall_{kind}_{queries}": share for kind, found in measured.items() for queries, share in found.means.items()
    }
    unsound = {kind: asdict(found.health) for kind, found in measured.items() if not found.health.sound}
    curves = search_curves(postgres.database, space)
    return dg.MaterializeResult(
        metadata={
            **shares,
            "strategy": ", ".join(sorted({build.strategy for build in builds.values()})),
            **{f"p95_ms_{kind}": found.p95_ms for kind, found in measured.items()},
            "rows": sum(build.rows for build in builds.values()),
            "index_bytes": sum(build.bytes for build in builds.values()),
            "rebuilt": [kind for kind, build in builds.items() if build.rebuilt],
            "build_seconds": round(sum(build.seconds for build in builds.values() if build.rebuilt), 3),
            "seconds": round(time.monotonic() - started, 3),
            "why": dg.MetadataValue.md(_why(builds, curves)),
            "curves": dg.MetadataValue.md(_table(curves)),
            "builds": [asdict(build) for build in builds.values()],
            "advice": {row["kind"]: row["advice"] for row in curves if row["advice"]},
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="recall_reaches_target",
                passed=all(found.reaches(target) for found in measured.values()),
                description=_told(shares, target),
                metadata={**shares, "target": target, "searched": [_searched(found) for found in measured.values()]},
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


def _searched(found: Measured) -> str:
    if found.strategy == "exact":
        return f"{found.kind}s: exact"
    return f"{found.kind}s: {found.strategy}, ef_search {found.ef_search}, rerank {found.rerank}"


def _told(shares: Mapping[str, float], target: float) -> str:
    """The lowest recall, and what raises it."""
    lowest = min(shares.values(), default=1.0)
    if lowest >= target:
        return f"recall@10 is {lowest:.3f} or better"
    return (
        f"recall@10 is {lowest:.3f}, below QBENCH_TARGET_RECALL {target}: raise QBENCH_EF_SEARCH or "
        "QBENCH_HNSW_EF_CONSTRUCTION, or set QBENCH_INDEX=auto"
    )


def _why(builds: Mapping[Any, Build], told: list[dict[str, Any]]) -> str:
    """What each table has, why, and what there was to say."""
    chosen = {row["kind"]: row["advice"]["why"] for row in told if row["advice"]}
    lines = []
    for kind, build in builds.items():
        lines.append(f"- **{kind}s**: {build.choice}, {'built' if build.rebuilt else 'kept'}: {build.why}")
        lines += [f"    - {text}" for text in (*([chosen[kind]] if kind in chosen else []), *build.notes)]
    return "\n".join(lines)


def _table(told: list[dict[str, Any]]) -> str:
    """The curves of both tables."""
    lines = ["| | ef_search | rerank | recall@10 | at least | recall@100 | p50 ms | p95 ms |", "|" + " --- |" * 8]
    for row in told:
        lines += [
            f"| {row['kind']}s, {row['strategy']} | {point['ef_search']} | {point['rerank']} "
            f"| {point['recall_10']:.3f} | {point['recall_10_low']:.3f} | {point['recall_100']:.3f} "
            f"| {point['p50_ms']:.2f} | {point['p95_ms']:.2f} |"
            for point in row["curve"] or ()
        ]
    return "\n".join(lines)
