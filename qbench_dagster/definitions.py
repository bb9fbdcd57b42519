"""Assembly only: explicit lists into one `dg.Definitions`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from qbench_dagster.automation import (
    PARTITIONED_ASSETS,
    WHOLE_ASSETS,
    build_reconcile,
    check_tables,
    embed_and_publish,
    embedding_batches,
    export_changes,
    index_after_loads,
    index_and_report,
    land_cases,
    load_cases,
    plan_case_ranges,
    plan_embeddings,
    pull_testrail,
    reuse_vectors,
    testrail_pulls,
)
from qbench_dagster.checks import TABLE_CHECKS
from qbench_dagster.progress import Progress
from qbench_dagster.resources import (
    EmbedderResource,
    ExportResource,
    OldStoreResource,
    PostgresResource,
    TestRailResource,
)
from qbench_dagster.settings import Settings, SettingsError, load_settings

KEPT_FRESH = {dg.AssetKey("pg_tables"), dg.AssetKey("parity_report")}
"""They turn red in the UI when the sync falls behind."""


def build_definitions(**resources: object) -> dg.Definitions:
    """The project; `resources` take the place of those of the same name."""
    settings = _settings()
    return dg.Definitions(
        assets=_kept_fresh([*PARTITIONED_ASSETS, *WHOLE_ASSETS], timedelta(hours=settings.stale_after_h)),
        asset_checks=TABLE_CHECKS,
        jobs=[
            load_cases,
            land_cases,
            embed_and_publish,
            index_and_report,
            reuse_vectors,
            pull_testrail,
            plan_embeddings,
            check_tables,
            plan_case_ranges,
        ],
        schedules=[build_reconcile(settings.reconcile_at, settings.timezone)],
        sensors=[testrail_pulls, export_changes, embedding_batches, index_after_loads],
        resources={
            "postgres": PostgresResource(),
            "export": ExportResource(),
            "testrail": TestRailResource(),
            "embedder": EmbedderResource(),
            "old_store": OldStoreResource(),
            "progress": Progress(),
            **resources,
        },
        # The stages follow one another and work set-based: a process for each step would add 3 to 4 s a step.
        executor=dg.in_process_executor,
    )


def _settings() -> Settings:
    """Of the environment; the defaults where that is wrong. Then the UI comes up, and every run says what is wrong."""
    try:
        return load_settings()
    except SettingsError:
        return Settings.model_construct()


def _kept_fresh(assets: Sequence[dg.AssetsDefinition], stale_after: timedelta) -> Sequence[dg.AssetsDefinition]:
    policy = dg.FreshnessPolicy.time_window(fail_window=stale_after)
    return dg.map_asset_specs(
        lambda spec: dg.apply_freshness_policy(spec, policy) if spec.key in KEPT_FRESH else spec, assets
    )


defs = build_definitions()
