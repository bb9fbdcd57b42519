"""A wheel works: what lies at the top of the repository goes with it, and is found inside it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed (pip install -e '.[dev]'), and a test asks no index for it")
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(unpacked: Path, code: str) -> str:
    """What `code` prints where the unpacked wheel comes before the repository."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=unpacked.parent,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def files_under(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_sql_goes_along_byte_for_byte(unpacked: Path) -> None:
    repository = files_under(ROOT / "sql")
    assert len(repository) > 10
    assert files_under(unpacked / "qbench_dagster" / "sql") == repository


def test_every_file_of_the_package_goes_along(unpacked: Path) -> None:
    ours = {
        name: content
        for name, content in files_under(ROOT / "qbench_dagster").items()
        if "__pycache__" not in name and not name.startswith("sql/")
    }
    theirs = files_under(unpacked / "qbench_dagster")
    assert {name for name, content in ours.items() if theirs.get(name) != content} == set()
    assert any(name.endswith(".j2") for name in ours)
    assert theirs["dagster.yaml"] == (ROOT / "dagster.yaml").read_bytes()


def test_nothing_else_goes_along(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"qbench_dagster", "qbench_dagster-0.1.0.dist-info"}
    assert [name for name in names if "__pycache__" in name or name.endswith((".db", ".pyc"))] == []


def test_the_sql_is_found_inside(unpacked: Path) -> None:
    code = (
        "from qbench_dagster.adapters import sql\n"
        "print(sql.__file__)\n"
        "print(sql.sql_folder())\n"
        "print(sql.statement('setup.sql', 'create_schema', name='a').as_string(None))\n"
        "print(sorted(entry.name for entry in sql.sql_folder().joinpath('migrations').iterdir()))\n"
    )
    file, folder, statement, migrations = python(unpacked, code).splitlines()
    assert Path(file).is_relative_to(unpacked)
    assert folder == str(unpacked / "qbench_dagster" / "sql")
    assert statement == 'CREATE SCHEMA IF NOT EXISTS "a";'
    assert migrations == repr(sorted(path.name for path in (ROOT / "sql" / "migrations").iterdir()))


def test_the_sql_that_is_not_inside_is_missed(unpacked: Path, tmp_path: Path) -> None:
    """The test above is no test of the repository's own folder: without the SQL the same wheel fails."""
    code = "from qbench_dagster.adapters import sql; print(sql.sql_folder().is_dir())"
    hidden = (unpacked / "qbench_dagster" / "sql").rename(tmp_path / "sql")
    try:
        assert python(unpacked, code) == "False"
    finally:
        hidden.rename(unpacked / "qbench_dagster" / "sql")
    assert python(unpacked, code) == "True"


def test_a_database_is_set_up_and_dagsters_home_made_from_a_wheel(
    unpacked: Path, fresh_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", fresh_url)
    monkeypatch.setenv("QBENCH_HOME", str(tmp_path))
    code = (
        "from qbench_dagster import dagster_home\n"
        "from qbench_dagster.adapters.postgres import Database\n"
        "from qbench_dagster.settings import load_settings\n"
        "print(dagster_home.__file__)\n"
        "print(dagster_home.prepare_dagster_home(load_settings()))\n"
        "Database(load_settings().database_url.get_secret_value()).close()\n"
    )
    file, home = python(unpacked, code).splitlines()
    assert Path(file).is_relative_to(unpacked)
    assert home == str(tmp_path / "dagster")
    assert (tmp_path / "dagster" / "dagster.yaml").read_bytes() == (ROOT / "dagster.yaml").read_bytes()


def test_the_command_is_installed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "qbench = qbench_dagster.cli:app" in archive.read(entry_points).decode()
    assert callable(importlib.import_module("qbench_dagster.cli").app)


def test_the_workspace_names_a_module_that_has_definitions() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    (location,) = [entry["python_module"] for entry in workspace["load_from"]]
    module = importlib.import_module(location["module_name"])
    assert module.defs.resolve_all_asset_specs()
    assert (ROOT / location["working_directory"]).resolve() == ROOT


def test_dagsters_settings_are_yaml_that_names_our_storage() -> None:
    settings = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    assert settings["storage"]["postgres"]["postgres_url"] == {"env": "QBENCH_DAGSTER_STORAGE"}
    assert settings["telemetry"] == {"enabled": False}
