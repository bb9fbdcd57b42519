"""`qbench backup` and `qbench restore`: what they print, and how they end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qbench_dagster.adapters import restore as restoring
from qbench_dagster.adapters.postgres import Database, ensure_database
from qbench_dagster.cli import app
from qbench_dagster_tests.support import case, rows, run_pipeline, write_export


@pytest.fixture(scope="module")
def source(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a database that was filled."""
    url = ensure_database(server_url, f"cli_backed_up_{os.getpid()}")
    with Database(url) as database:
        run_pipeline(database, write_export(tmp_path_factory.mktemp("export") / "export.db", [case(1), case(2, "Out")]))
    return url


def qbench(home: Path, url: str, *arguments: str, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of a command in this process."""
    settings = {"QBENCH_HOME": str(home), "DATABASE_URL": url, "COLUMNS": "200", "OPENAI_API_KEY": "sk-planted"}
    done = CliRunner().invoke(app, list(arguments), env=settings)
    assert done.exit_code == code, f"{arguments} ended with {done.exit_code}: {done.output} {done.exception!r}"
    return done.stdout, done.stderr


def test_there_and_back(source: str, tmp_path: Path, fresh_url: str) -> None:
    folder = tmp_path / "of today"
    told = json.loads(qbench(tmp_path, source, "backup", str(folder), "--json")[0])
    assert told["folder"] == str(folder)
    assert told["rows"] > 10
    assert told["bytes"] == sum(entry.stat().st_size for entry in (folder / "dump").iterdir())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["OPENAI_API_KEY"] == manifest["settings"]["DATABASE_URL"] == "(set)"
    assert "sk-planted" not in (folder / "manifest.json").read_text()

    again, said = qbench(tmp_path, fresh_url, "restore", str(folder), "--json")
    back = json.loads(again)
    assert (back["equal"], back["different"], back["rows"]) == (True, [], told["rows"])
    with Database(fresh_url) as database:
        assert rows(database, "SELECT title FROM qbench.test_documents ORDER BY id") == [("Log in",), ("Out",)]
    assert "Traceback" not in said
    found = json.loads(qbench(tmp_path, fresh_url, "search", "out", "--json")[0])
    assert "Out" in json.dumps(found)

    _, refused = qbench(tmp_path, fresh_url, "restore", str(folder), code=2)
    assert refused.startswith("error: The database holds landing, qbench, ")
    _, refused = qbench(tmp_path, source, "backup", str(folder), code=2)
    assert refused.startswith(f"error: {folder} holds something already (dump, manifest.json). Name a new folder.")


def test_in_words(source: str, tmp_path: Path, fresh_url: str) -> None:
    out, _ = qbench(tmp_path, source, "backup", str(tmp_path / "b"))
    assert " rows of " in out
    assert f"Back: qbench restore {tmp_path / 'b'}" in out
    out, _ = qbench(tmp_path, fresh_url, "restore", str(tmp_path / "b"))
    assert "each compared and as it was" in out


def test_what_differs_ends_with_1(source: str, tmp_path: Path, fresh_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is changed after pg_restore is done is found, and its table named."""
    qbench(tmp_path, source, "backup", str(tmp_path / "b"))
    hashed = restoring.table_states

    def planted(connection: object, *arguments: object) -> object:
        connection.execute("UPDATE store.test_documents SET title = 'Planted' WHERE test_case_id = 2")  # type: ignore[attr-defined]
        return hashed(connection, *arguments)  # type: ignore[arg-type]

    def unusable(_: object) -> object:
        raise AssertionError("the verdict is not to wait for what may fail")

    monkeypatch.setattr(restoring, "table_states", planted)
    monkeypatch.setattr(restoring, "Database", unusable)
    out, said = qbench(tmp_path, fresh_url, "restore", str(tmp_path / "b"), "--json", code=1)
    told = "store.test_documents has as many rows as it had (2), and at least one of them differs"
    assert (json.loads(out)["equal"], json.loads(out)["different"]) == (False, [told])
    assert said.endswith(f"error: What was restored is not what was backed up: {told}.\n")


def test_a_folder_that_is_no_backup_starts_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["restore", str(tmp_path / "none")], env={"QBENCH_HOME": str(tmp_path / "home")})
    assert (done.exit_code, done.stdout) == (2, "")
    assert "is no backup, or not all of one" in done.stderr
    assert not (tmp_path / "home").exists()
