"""Who may import whom (DESIGN.md, section 5): read from the source, tried in a fresh interpreter, linted by ruff."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "qbench_dagster"
OUTSIDE = {"psycopg", "psycopg2", "psycopg_pool", "sqlite3", "openai", "dagster", "dagster_postgres"}

CORE = {"core"}
ADAPTERS = {"adapters", *CORE}
WIRING = {"settings", *ADAPTERS}
RESOURCES = {"wiring", *WIRING}
PARTITIONS = {"adapters.testrail_export", *CORE}
ASSETS = {"assets", "partitions", "progress", "resources", *ADAPTERS}
AUTOMATION = {"automation", "checks", "settings", *ASSETS}
ALLOWED: dict[str, set[str]] = {
    "core": CORE,
    "adapters": ADAPTERS,
    "settings": set(),
    "wiring": WIRING,
    "dagster_home": WIRING,
    "resources": RESOURCES,
    "partitions": PARTITIONS,
    "progress": set(),
    "assets": ASSETS,
    "checks": ASSETS,
    "automation": AUTOMATION,
    "definitions": AUTOMATION,
    "cli": {"cli", "dagster_home", "definitions", *RESOURCES, *AUTOMATION},
}
"""What each module or package directly under qbench_dagster may import of it."""

ASSET_HELPERS = {f"{PACKAGE}.assets.stage", f"{PACKAGE}.assets.lineage"}


def modules(*packages: str) -> dict[str, str]:
    """Source of every module of the package, or of some of its packages, by dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not packages or any(f"{name}.".startswith(f"{PACKAGE}.{package}.") for package in packages):
            found[name] = path.read_text(encoding="utf-8")
    return found


def imports_of(source: str) -> set[str]:
    """Every module and name that is imported, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wrong_imports(sources: Mapping[str, str]) -> set[tuple[str, str]]:
    """Imports that go the other way, as (module, what it imports)."""
    wrong = set()
    for module, source in sources.items():
        if module == PACKAGE:
            allowed: set[str] = set()
        else:
            layer = module.split(".")[1]
            assert layer in ALLOWED, f"{module} is new: say in DESIGN.md and here what it may import"
            allowed = ALLOWED[layer]
        for imported in imports_of(source):
            inside = imported.removeprefix(f"{PACKAGE}.")
            if imported.split(".")[0] != PACKAGE:
                continue
            if not any(f"{inside}.".startswith(f"{name}.") for name in allowed):
                wrong.add((module, imported))
    return wrong


def test_imports_go_one_way() -> None:
    assert wrong_imports(modules()) == set()
    assert set(ALLOWED) == {name.split(".")[1] for name in modules() if name != PACKAGE}


LAYERS = ["core", "adapters", "wiring", "resources", "assets", "checks", "automation", "definitions", "cli"]


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        *((low, high) for index, low in enumerate(LAYERS) for high in LAYERS[index + 1 :] if low != "assets" or high),
        *(("partitions", high) for high in (*LAYERS[2:], "adapters.postgres", "adapters.sql", "settings")),
        *((low, "settings") for low in ("core", "adapters", "assets", "checks")),
        *((low, "dagster_home") for low in LAYERS[:-1]),
        *(("settings", other) for other in (*LAYERS, "partitions")),
        *((low, "partitions") for low in ("core", "adapters", "wiring", "resources", "settings")),
        ("assets", "wiring"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("statement", ["from {} import x", "import {}", "def f():\n    from {} import x"])
def test_an_import_the_other_way_is_seen(module: str, imported: str, statement: str) -> None:
    target = f"{PACKAGE}.{imported}"
    for name in (f"{PACKAGE}.{module}", f"{PACKAGE}.{module}.inside"):
        assert wrong_imports({name: statement.format(target)}) != set()
        parent, _, last = target.rpartition(".")
        assert wrong_imports({name: f"from {parent} import {last}"}) == {(name, target)}


def calls_to_other_assets(sources: Mapping[str, str]) -> set[tuple[str, str]]:
    """Asset modules know each other for `deps` only: none calls what it imports from another."""
    wrong = set()
    for module, source in sources.items():
        tree = ast.parse(source)
        others = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and str(node.module).startswith(f"{PACKAGE}.assets")
            and node.module not in ASSET_HELPERS
            for alias in node.names
        }
        called = {ast.unparse(node.func).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Call)}
        wrong |= {(module, name) for name in others & called}
    return wrong


def test_no_asset_calls_another() -> None:
    assert calls_to_other_assets(modules("assets")) == set()
    assert len(modules("assets")) > 5
    for helper in ASSET_HELPERS:
        used = {name for name in imports_of(modules("assets")[helper]) if name.startswith(f"{PACKAGE}.assets")}
        assert used == set(), "helpers know no asset"


def test_a_call_to_another_asset_is_seen() -> None:
    header = f"from {PACKAGE}.assets.pg_tables import pg_tables\nfrom {PACKAGE}.assets.stage import Stage\n"
    assert calls_to_other_assets({"a": header + "@dg.asset(deps=[pg_tables])\ndef f(): Stage()"}) == set()
    assert calls_to_other_assets({"a": header + "def f():\n    return pg_tables(1)"}) == {("a", "pg_tables")}
    assert calls_to_other_assets({"a": header + "x = pg_tables.op.compute(1)"}) == {("a", "pg_tables")}


def loaded_by(names: Iterable[str], *path: Path) -> set[str]:
    """Top-level packages that a fresh interpreter holds after importing `names`."""
    code = (
        "import importlib, json, sys\n"
        "sys.path += json.loads(sys.argv[2])\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps([name.partition('.')[0] for name in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(names)), json.dumps([str(folder) for folder in path])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_core_brings_nothing_from_outside_along() -> None:
    names = modules("core")
    assert len(names) > 30
    assert loaded_by(names) & OUTSIDE == set()


def test_core_and_adapters_bring_no_dagster_along() -> None:
    loaded = loaded_by(modules("core", "adapters"))
    assert "psycopg" in loaded
    assert {name for name in loaded if name.startswith("dagster")} == set()


def test_what_comes_along_indirectly_is_seen(tmp_path: Path) -> None:
    (tmp_path / "planted_outer.py").write_text("import planted_inner")
    (tmp_path / "planted_inner.py").write_text("import sqlite3, dagster_postgres")
    assert {"sqlite3", "dagster", "dagster_postgres"} <= loaded_by(["planted_outer"], tmp_path)


def test_core_reads_no_clock_no_environment_and_no_file() -> None:
    banned = {"os", "time", "pathlib", "subprocess", "socket", "shutil", "tempfile", "io", "urllib.request"}
    wrong = {
        (module, imported)
        for module, source in modules("core").items()
        for imported in imports_of(source)
        if imported in banned or imported.rpartition(".")[0] in banned
    }
    assert wrong == set()


PLANTED = {
    "core/planted.py": True,
    "core/sample/planted.py": True,
    "adapters/planted.py": True,
    "adapters/deeper/planted.py": True,
    "assets/planted.py": False,
    "cli/planted.py": False,
    "planted.py": False,
}


@pytest.mark.parametrize("line", ["import dagster as dg", "from dagster import asset", "import dagster_postgres"])
def test_ruff_keeps_dagster_out_of_core_and_adapters(tmp_path: Path, line: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for place in PLANTED:
        file = tmp_path / PACKAGE / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{line}\n")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", "."],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {
        Path(problem["filename"]).relative_to(tmp_path.resolve() / PACKAGE).as_posix()
        for problem in json.loads(done.stdout)
        if problem["code"] == "TID251"
    }
    assert found == {place for place, flagged in PLANTED.items() if flagged}
