"""The asset graph, spelled out: who changes it on purpose changes it here too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from qbench_dagster.definitions import build_definitions, defs
from qbench_dagster.resources import ExportResource

RANGES = 'Dynamic partitions: "case_ranges"'
PYTHON, SQL = {"python", "postgres"}, {"postgres"}

# asset: (upstream assets, group, kinds, partitions)
ASSETS: dict[str, tuple[set[str], str, set[str], str | None]] = {
    "testrail_mirror": (set(), "source", {"python", "sqlite"}, None),
    "sqlite_cases": ({"testrail_mirror"}, "source", {"sqlite", "postgres"}, RANGES),
    "normalized_testdocs": ({"sqlite_cases"}, "source", PYTHON, RANGES),
    "reused_vectors": ({"normalized_testdocs"}, "embedding_space", {*PYTHON, "qdrant"}, None),
    "embedding_plan": ({"normalized_testdocs"}, "embedding_space", PYTHON, None),
    "doc_embeddings": ({"normalized_testdocs", "reused_vectors"}, "embedding_space", PYTHON, RANGES),
    "step_embeddings": ({"normalized_testdocs", "reused_vectors"}, "embedding_space", PYTHON, RANGES),
    "pg_tables": ({"normalized_testdocs", "doc_embeddings", "step_embeddings"}, "published", SQL, RANGES),
    "hnsw_index": ({"doc_embeddings", "step_embeddings"}, "published", SQL, None),
    "parity_report": ({"pg_tables", "hnsw_index"}, "published", PYTHON, None),
}

# check: whether it blocks what is downstream of its asset
CHECKS = {
    "testrail_mirror:every_project_is_readable": False,
    "sqlite_cases:every_source_row_landed": True,
    "normalized_testdocs:every_landed_case_is_staged_or_rejected": True,
    "reused_vectors:reused_vectors_equal_their_source": True,
    "reused_vectors:stored_vectors_do_not_conflict": False,
    "doc_embeddings:every_text_has_a_vector": True,
    "doc_embeddings:vectors_are_plausible": False,
    "step_embeddings:every_text_has_a_vector": True,
    "step_embeddings:vectors_are_plausible": False,
    "pg_tables:source_is_published_or_rejected": True,
    "pg_tables:every_case_is_accounted_for": False,
    "pg_tables:every_row_is_complete": False,
    "pg_tables:reader_has_least_privilege": False,
    "hnsw_index:recall_reaches_target": True,
    "hnsw_index:vectors_are_sound": True,
    "hnsw_index:searches_use_the_index": False,
    "parity_report:source_is_published_or_rejected": True,
    "parity_report:no_word_lost": True,
    "parity_report:published_rows_are_what_was_staged": True,
    "parity_report:vectors_complete_and_sound": True,
    "parity_report:vectors_are_those_of_their_texts": True,
    "parity_report:recall_reaches_target": True,
    "parity_report:filtered_search_is_complete": True,
    "parity_report:old_store_is_covered": True,
    "parity_report:search_reaches_old_store": True,
    "parity_report:reader_has_least_privilege": True,
}

PARTITIONED = {name for name, (_, _, _, partitions) in ASSETS.items() if partitions}
WHOLE = set(ASSETS) - PARTITIONED
INLINE_WARNINGS = {"reused_vectors:stored_vectors_do_not_conflict", "testrail_mirror:every_project_is_readable"}
TABLE_CHECKS = {name for name, blocks in CHECKS.items() if not blocks} - INLINE_WARNINGS
INDEX_AND_REPORT = {"hnsw_index", "parity_report"}

# job: (assets, checks, partitions)
JOBS: dict[str, tuple[set[str], set[str], str | None]] = {
    "load_cases": (PARTITIONED, {c for c, b in CHECKS.items() if b and c.split(":")[0] in PARTITIONED}, RANGES),
    "land_cases": (
        {"sqlite_cases", "normalized_testdocs"},
        {c for c, b in CHECKS.items() if b and c.split(":")[0] in ("sqlite_cases", "normalized_testdocs")},
        RANGES,
    ),
    "embed_and_publish": (
        {"doc_embeddings", "step_embeddings", "pg_tables"},
        {c for c, b in CHECKS.items() if b and c.split(":")[0] in ("doc_embeddings", "step_embeddings", "pg_tables")},
        RANGES,
    ),
    "index_and_report": (INDEX_AND_REPORT, {c for c in CHECKS if c.split(":")[0] in INDEX_AND_REPORT}, None),
    "reuse_vectors": ({"reused_vectors"}, {c for c in CHECKS if c.startswith("reused_vectors:")}, None),
    "pull_testrail": ({"testrail_mirror"}, {"testrail_mirror:every_project_is_readable"}, None),
    "plan_embeddings": ({"embedding_plan"}, set(), None),
    "check_tables": (set(), TABLE_CHECKS, None),
    "plan_case_ranges": (set(), set(), None),
}


def graph() -> Any:
    """The resolved asset graph."""
    return defs.resolve_asset_graph()


def names(keys: Any) -> set[str]:
    """Keys of assets or checks as people write them."""
    return {key.to_user_string() for key in keys}


def partitions_of(thing: Any) -> str | None:
    """The partitions of an asset or a job, as text."""
    return str(thing.partitions_def) if thing.partitions_def else None


def test_graph_is_this() -> None:
    nodes = {key.to_user_string(): graph().get(key) for key in graph().get_all_asset_keys()}
    found = {
        name: (names(node.parent_keys), node.group_name, set(node.kinds), partitions_of(node))
        for name, node in nodes.items()
    }
    assert found == ASSETS


def test_checks_are_these_and_block_or_not() -> None:
    specs = {key.to_user_string(): graph().get_check_spec(key) for key in graph().asset_check_keys}
    assert {name: spec.blocking for name, spec in specs.items()} == CHECKS


def test_jobs_select_this() -> None:
    jobs = {job.name: job for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    found = {
        name: (
            names(job.asset_layer.selected_asset_keys),
            names(job.asset_layer.asset_graph.asset_check_keys),
            partitions_of(job),
        )
        for name, job in jobs.items()
    }
    assert found == JOBS


def test_sensors_are_these_and_run_by_themselves() -> None:
    sensors = {sensor.name: sensor for sensor in defs.sensors or []}
    assert {name: sensor.job_name for name, sensor in sensors.items()} == {
        "testrail_pulls": "pull_testrail",
        "export_changes": "load_cases",
        "embedding_batches": "load_cases",
        "index_after_loads": "index_and_report",
    }
    for sensor in sensors.values():
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
        assert len(sensor.description or "") > 40


def test_the_schedule_is_this_and_runs_by_itself() -> None:
    (schedule,) = defs.schedules or []
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.name, schedule.job_name) == ("nightly_reconcile", "load_cases")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert len(schedule.description or "") > 40


def test_no_whole_asset_is_in_a_partitioned_job() -> None:
    """It would be materialised in every partition's run."""
    for name, (assets, checks, partitions) in JOBS.items():
        if partitions is not None:
            job = defs.resolve_job_def(name)
            assert not names(job.asset_layer.selected_asset_keys) & WHOLE, name
            assert not names(job.asset_layer.asset_graph.asset_check_keys) & TABLE_CHECKS, name
            assert assets
            assert checks


def test_a_run_takes_many_ranges() -> None:
    policies = {name: graph().get(dg.AssetKey(name)).backfill_policy for name in ASSETS}
    for name in PARTITIONED:
        assert policies[name] == dg.BackfillPolicy.multi_run(max_partitions_per_run=100), name
    assert all(policies[name] is None for name in WHOLE)


def test_everything_a_person_sees_is_described() -> None:
    for key in graph().get_all_asset_keys():
        assert len(graph().get(key).description or "") > 40, key
    for key in graph().asset_check_keys:
        assert len(graph().get_check_spec(key).description or "") > 20, key
    for name in JOBS:
        assert len(defs.resolve_job_def(name).description or "") > 20, name


def test_definitions_load() -> None:
    dg.Definitions.validate_loadable(defs)


def test_definitions_that_do_not_fit_together_are_not_loadable() -> None:
    """The guard itself: an asset in a partitioned job whose partitions are others is refused."""
    other = dg.StaticPartitionsDefinition(["a"])

    @dg.asset(partitions_def=other)
    def stranger() -> None: ...

    job = dg.define_asset_job("mixed", selection=["stranger", "sqlite_cases"])
    broken = dg.Definitions.merge(defs, dg.Definitions(assets=[stranger], jobs=[job]))
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="Failed to resolve asset job mixed"):
        dg.Definitions.validate_loadable(broken)


def test_a_resource_can_be_replaced() -> None:
    replaced = build_definitions(export=ExportResource(path="elsewhere.db"))
    assert replaced.resources is not None
    assert replaced.resources["export"].path == "elsewhere.db"
    assert set(replaced.resources) == {"postgres", "export", "testrail", "embedder", "old_store", "progress"}


def test_loading_touches_no_database_and_no_export(tmp_path: Path) -> None:
    """The code location loads where nothing can be reached: the UI comes up and says what is wrong in a run."""
    home = tmp_path / "home"
    environment = {
        **os.environ,
        "DATABASE_URL": "postgresql://nobody:nothing@127.0.0.1:1/none",
        "QBENCH_EXPORT": str(tmp_path / "missing.db"),
        "QBENCH_HOME": str(home),
    }
    code = "import dagster as dg; from qbench_dagster.definitions import defs; dg.Definitions.validate_loadable(defs)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not home.exists()
