"""Whole-table asset checks: facts about all published rows, asked of the database, whenever someone wants to know.

Facts about the partitions of a run are inline checks of the assets; the full proof is `parity_report`.
"""

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import dagster as dg

from qbench_dagster.adapters.cutover import read_space
from qbench_dagster.adapters.examining import examine
from qbench_dagster.adapters.index_use import examine_use
from qbench_dagster.adapters.parity import check_accounting, check_completeness, check_privileges
from qbench_dagster.adapters.space import KINDS, Kind, active_space, ensure_space
from qbench_dagster.assets.hnsw_index import hnsw_index
from qbench_dagster.assets.pg_tables import pg_tables
from qbench_dagster.core.parity import Finding
from qbench_dagster.partitions import registered_ranges
from qbench_dagster.progress import Progress
from qbench_dagster.resources import EmbedderResource, PostgresResource


@dg.asset_check(asset=pg_tables, description="Source cases = published + rejected, over the whole database.")
def every_case_is_accounted_for(
    context: dg.AssetCheckExecutionContext, postgres: PostgresResource
) -> dg.AssetCheckResult:
    """Invariant 1."""
    return _result(check_accounting(postgres.database, list(registered_ranges(context.instance).values())))


@dg.asset_check(asset=pg_tables, description="Every published document and step has its vector; nothing is orphaned.")
def every_row_is_complete(postgres: PostgresResource, embedder: EmbedderResource) -> dg.AssetCheckResult:
    """Invariant 4 of what the application reads, but for the vectors' values, which `hnsw_index` examines."""
    return _result(check_completeness(postgres.database, active_space(postgres.database) or embedder.space))


@dg.asset_check(asset=pg_tables, description="qbench_reader reads schema qbench and nothing else.")
def reader_has_least_privilege(postgres: PostgresResource) -> dg.AssetCheckResult:
    """Invariant 9."""
    return _result(check_privileges(postgres.database))


def build_plausible_check(kind: Kind) -> dg.AssetChecksDefinition:
    """The check of every stored vector of `kind`, in the space the settings name."""

    @dg.asset_check(
        asset=f"{kind}_embeddings",
        name="vectors_are_plausible",
        description="No vector is zero, constant, random, of a wrong norm, shared by texts, or another text's. "
        "QBENCH_FRESH_SAMPLE embeds some texts again.",
    )
    def vectors_are_plausible(
        context: dg.AssetCheckExecutionContext,
        postgres: PostgresResource,
        embedder: EmbedderResource,
        progress: dg.ResourceParam[Progress],
    ) -> dg.AssetCheckResult:
        """Invariant 4, by value. Zero, constant, of a wrong norm, or another text's: errors. Odd ones: warnings."""
        space, sample = embedder.space, postgres.settings.fresh_sample
        ensure_space(postgres.database, space)
        asked = sample or space.embedder != "openai"  # a key is for who asks
        with (
            progress.track(context, f"examine {kind}s", None) as advance,
            embedder.open(space) if asked else nullcontext() as opened,
        ):
            found = examine(
                postgres.database,
                space,
                kind,
                opened,
                fresh_sample=sample,
                progress=advance,
                account=embedder.account(space, context.run.run_id),
            )
        told = [f"{count:,} {what.replace('_', ' ')}" for what, count in {**found.errors, **found.warnings}.items()]
        return dg.AssetCheckResult(
            passed=found.passed and not found.warnings,
            severity=dg.AssetCheckSeverity.WARN if found.passed else dg.AssetCheckSeverity.ERROR,
            description=f"{found.rows:,} vectors examined: {', '.join(told) or 'nothing odd'}"
            + (f"; {found.fresh_failed}" if found.fresh_failed else ""),
            metadata=asdict(found),
        )

    return vectors_are_plausible


@dg.asset_check(asset=hnsw_index, description="The plans of searches, and the public functions, read the index.")
def searches_use_the_index(postgres: PostgresResource, embedder: EmbedderResource) -> dg.AssetCheckResult:
    """What makes a search fast; `recall_reaches_target` is what makes it right."""
    ensure_space(postgres.database, embedder.space)
    spaces = {space.name: space for space in (embedder.space, read_space(postgres.database, embedder.space))}
    found = {f"{name} {kind}s": examine_use(postgres.database, space, kind)
             for name, space in spaces.items() for kind in KINDS}  # fmt: skip
    wrong = {where: use for where, use in found.items() if not use.used}
    return dg.AssetCheckResult(
        passed=not wrong,
        description="; ".join(f"{where}: {use.told}" for where, use in (wrong or found).items()),
        metadata={where: asdict(use) for where, use in found.items()},
    )


def _result(finding: Finding) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {**finding.numbers, "offenders": list(finding.offenders)[:20]}
    return dg.AssetCheckResult(passed=finding.passed, description=finding.summary, metadata=metadata)


TABLE_CHECKS = [
    every_case_is_accounted_for,
    every_row_is_complete,
    reader_has_least_privilege,
    searches_use_the_index,
    *(build_plausible_check(kind) for kind in KINDS),
]
