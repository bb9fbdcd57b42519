"""`reused_vectors` as an asset: its counts, its checks when something is wrong, and what a person is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.assets.reused_vectors import reused_vectors
from qbench_dagster.definitions import build_definitions
from qbench_dagster_tests.support import execute, rows

faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed (pip install -e '.[faiss]')")

TITLES = ["Log in", "Log out", "Reset the password"]


@pytest.fixture
def store(database: Database, fresh_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three staged cases, and an index of 64 dimensions that has them."""
    values = {
        "DATABASE_URL": fresh_url, "QBENCH_HOME": str(tmp_path), "QBENCH_DIMENSIONS": "64",
        "QBENCH_FAISS_DOCS": str(tmp_path / "docs.faiss"), "QBENCH_REUSE_MODEL": "lexical-v1",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    for number, title in enumerate(TITLES, 1):
        execute(
            database,
            "INSERT INTO staging.test_documents (case_id, input_hash, recipe, doc_hash, text_hash, uid, title,"
            " platforms, tags, source, custom_fields, preconditions, issue_keys, issue_types, notes)"
            " VALUES (%s, '', 1, '', sha256(convert_to(%s || E'\\n', 'UTF8')), %s, %s,"
            " '{}', '{}', 'testrail', '{}', '{}', '{}', '{}', '{}')",
            number, title, f"testrail_{number}", title,
        )  # fmt: skip
    write(tmp_path, np.eye(3, 64, dtype=np.float32))
    return tmp_path


def write(folder: Path, vectors: Any, titles: list[str] = TITLES) -> None:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(folder / "docs.faiss"))
    said = [{"testCaseId": TITLES.index(title) + 1, "title": title, "description": None} for title in titles]
    (folder / "docs.json").write_text(json.dumps(said))


def materialize() -> tuple[dict[str, Any], dict[str, dg.AssetCheckEvaluation], dg.ExecuteInProcessResult]:
    resources = build_definitions().resources or {}
    wanted = {name: resources[name] for name in ("postgres", "embedder", "old_store", "progress")}
    result = dg.materialize([reused_vectors], resources=wanted, raise_on_error=False)
    found = {
        name: value.value
        for event in result.get_asset_materialization_events()
        for name, value in event.materialization.metadata.items()
    }
    return found, {check.check_name: check for check in result.get_asset_check_evaluations()}, result


def test_what_was_done_is_told(store: Path, database: Database) -> None:
    write(store, np.eye(4, 64, dtype=np.float32), [*TITLES, TITLES[0]])
    execute(database, "DELETE FROM staging.test_documents WHERE case_id = 3")
    told, checks, result = materialize()
    assert (told["points"], told["taken"], told["kept"], told["refused"], told["rows_written"]) == (4, 2, 0, 2, 2)
    counts = {"points": 4, "taken": 2, "kept": 0, "refused": {"unknown_case": 1, "conflicting_duplicate": 1}}
    assert told["by_store"] == {f"FAISS {store / 'docs.faiss'}": {"doc": counts}}
    assert "faiss, docs: 1 unknown_case. The case is not staged" in told["summary"]
    assert told["refused_samples"]["faiss: unknown_case"] == ["doc 2, case 3"]
    assert checks["reused_vectors_equal_their_source"].passed
    assert checks["reused_vectors_equal_their_source"].metadata["compared"].value == 2
    conflict = checks["stored_vectors_do_not_conflict"]
    assert not conflict.passed
    assert conflict.severity is dg.AssetCheckSeverity.WARN
    assert conflict.metadata["samples"].value == [["doc", "3", 1]]
    assert "1 points of old stores" in str(conflict.description)
    assert result.success, "a conflict is a warning"


def test_a_vector_that_is_not_its_sources_stops_what_follows(store: Path, database: Database) -> None:
    told, checks, _ = materialize()
    assert told["taken"] == 3
    assert all(check.passed for check in checks.values())
    write(store, np.eye(3, 64, dtype=np.float32) + np.float32(0.001))
    told, checks, result = materialize()
    check = checks["reused_vectors_equal_their_source"]
    assert not check.passed
    assert check.blocking
    assert not result.success
    assert check.metadata["unequal"].value == 3
    assert "3 vectors of an old store are not what it holds now" in str(check.description)


def test_without_an_old_store_it_is_a_note(store: Path, monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    monkeypatch.delenv("QBENCH_FAISS_DOCS")
    told, checks, result = materialize()
    assert result.success
    assert told["points"] == 0
    assert "no old store is set: QBENCH_QDRANT_URL" in told["summary"]
    assert all(check.passed for check in checks.values())
    assert rows(database, "SELECT count(*) FROM store.spaces") == [(0,)]


def test_a_store_that_cannot_be_read_fails_with_the_reason(store: Path) -> None:
    (store / "docs.json").unlink()
    _, _, result = materialize()
    assert not result.success
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    told = event.step_failure_data.user_failure_data
    assert told is not None, "not an error with a traceback: a failure that says why"
    assert "There is no metadata beside" in str(told.description)
