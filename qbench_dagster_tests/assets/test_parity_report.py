"""`parity_report` as an asset: settings reach the comparison, numbers the metadata, a broken log whoever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS
from qbench_dagster.assets.parity_report import INVARIANTS, parity_report
from qbench_dagster.definitions import build_definitions
from qbench_dagster_tests.adapters.old_stores import faiss_store, published
from qbench_dagster_tests.support import SPACE, case, run_pipeline, write_export

pytest.importorskip("faiss", reason="faiss-cpu is not installed (pip install -e '.[faiss]')")


@pytest.fixture
def home(database: Database, fresh_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty published cases, an old FAISS index of them, and a query log."""
    titled = [case(n, f"Case {n}", steps=f"Open page{n}") for n in range(1, 21)]
    run_pipeline(database, write_export(tmp_path / "export.db", titled))
    faiss_store(tmp_path / "old", {kind: published(database, kind) for kind in KINDS})
    (tmp_path / "queries.txt").write_text("open a page\ncase 7\n")
    values = {
        "DATABASE_URL": fresh_url, "QBENCH_HOME": str(tmp_path), "QBENCH_DIMENSIONS": str(SPACE.dimensions),
        "QBENCH_FAISS_DOCS": str(tmp_path / "old" / "doc.faiss"), "QBENCH_REUSE_MODEL": "lexical-v1",
        "QBENCH_QUERY_LOG": str(tmp_path / "queries.txt"), "QBENCH_UI_URL": "http://ui.example:3000/",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def materialize() -> tuple[dict[str, Any], dict[str, dg.AssetCheckEvaluation], dg.ExecuteInProcessResult]:
    resources = build_definitions().resources or {}
    result = dg.materialize([parity_report], resources=resources, raise_on_error=False)
    found = {
        name: value.value
        for event in result.get_asset_materialization_events()
        for name, value in event.materialization.metadata.items()
    }
    return found, {check.check_name: check for check in result.get_asset_check_evaluations()}, result


def test_every_finding_is_a_blocking_check_and_its_numbers_can_be_plotted(home: Path) -> None:
    told, checks, result = materialize()
    assert set(checks) == set(INVARIANTS)
    assert all(check.blocking for check in checks.values())
    failed = [name for name, check in checks.items() if not check.passed]
    assert failed == ["source_is_published_or_rejected"], "no range is registered here"
    assert (told["recall_10_min"], told["overlap_min"]) == (1.0, 1.0)
    assert 0 < told["p95_ms_ours"] < 60_000
    assert told["p95_ms_theirs"] > 0
    assert f"http://ui.example:3000/runs/{result.run_id}" in (home / "reports" / "parity.json").read_text()
    assert checks["search_reaches_old_store"].metadata["doc_overlap_faiss"].value == 1.0
    assert materialize()[0]["fresh"] is False


def test_a_broken_query_log_ends_the_run_with_its_line(home: Path) -> None:
    (home / "queries.txt").write_text('{"query": "x"}\n{"qery": "y"}\n')
    _, _, result = materialize()
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    told = event.step_failure_data.user_failure_data
    assert told is not None, "not an error with a traceback: a failure that says why"
    assert "queries.txt, line 2 has qery; known are" in str(told.description)


def test_an_old_store_that_is_gone_does_not_pass(home: Path) -> None:
    (home / "old" / "doc.faiss").unlink()
    _, checks, _ = materialize()
    assert not checks["old_store_is_covered"].passed
    assert not checks["search_reaches_old_store"].passed
    assert "There is no FAISS index" in str(checks["search_reaches_old_store"].description)
