"""What a data engineer does in the Dagster UI, done by a real browser: look, materialise, backfill, read, stop.

Set QBENCH_SCREENSHOTS to a folder to keep the pictures.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from qbench_dagster.adapters.embedded import stop_server

playwright = pytest.importorskip("playwright.sync_api", reason="the UI tests need playwright (pip install '.[dev]')")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="the UI tests need a Chromium on the PATH (Debian: apt-get install chromium)"
)

# Taken before the fixture of conftest.py hides the QBENCH_ variables from the tests.
SCREENSHOTS = os.environ.get("QBENCH_SCREENSHOTS")

ASSETS = (
    "sqlite_cases", "normalized_testdocs", "doc_embeddings", "step_embeddings", "pg_tables", "hnsw_index",
    "parity_report", "reused_vectors", "embedding_plan",
)  # fmt: skip
GROUPS = ("source", "embedding_space", "published")
CASES, PARTITION_CASES = 1200, 300
UP_S, RUN_S, DOWN_S = 90, 120, 30


def wait_for(what: str, ask: Callable[[], Any], seconds: float) -> Any:
    """Ask until the answer is true; the answer."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.3)
    return answer


@dataclass
class Server:
    """`qbench ui` on a home of its own."""

    home: Path
    export: Path
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    family: list[psutil.Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Answer of Dagster's GraphQL."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return dict(answer["data"])

    def answers(self) -> bool:
        """Whether it is up, code location and daemon included."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            found = self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return bool(found["repositoriesOrError"].get("nodes"))

    def runs(self) -> list[dict[str, Any]]:
        """Its runs, newest first."""
        return list(
            self.ask(
                "{ runsOrError { ... on Runs { results { runId status jobName "
                "assetSelection { path } tags { key value } } } } }"
            )["runsOrError"]["results"]
        )

    def finished(self, count: int) -> list[dict[str, Any]] | None:
        """The runs, once there are `count` and none is under way."""
        runs = self.runs()
        done = {"SUCCESS", "FAILURE", "CANCELED"}
        return runs if len(runs) == count and all(run["status"] in done for run in runs) else None


def environment(home: Path, export: Path) -> dict[str, str]:
    """Settings of the server: small vectors, exact search, four ranges."""
    return {
        **os.environ,
        "QBENCH_HOME": str(home),
        "QBENCH_EXPORT": str(export),
        "QBENCH_PARTITION_CASES": str(PARTITION_CASES),
        "QBENCH_DIMENSIONS": "256",
        "QBENCH_PG_MEMORY_MB": "512",
    }


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def qbench(home: Path, export: Path, *arguments: str) -> str:
    """Output of a command that has to succeed."""
    command = [sys.executable, "-m", "qbench_dagster.cli", *arguments]
    done = subprocess.run(command, env=environment(home, export), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start_ui(home: Path, export: Path) -> Server:
    """Start `qbench ui` in a session of its own, as a terminal would, and wait until it answers."""
    port, log = free_port(), home / "ui.log"
    command = [sys.executable, "-m", "qbench_dagster.cli", "ui", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment(home, export), stdout=output, stderr=output, start_new_session=True
        )
    server = Server(home, export, port, process, log)
    try:
        wait_for("qbench ui", server.answers, UP_S)
    finally:
        if process.poll() is None:
            server.family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        if not server.family or sys.exc_info()[0] is not None:
            kill(server)
    return server


def gone(server: Server) -> bool:
    """Whether every process the server was made of has ended."""
    server.process.poll()
    return not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in server.family)


def kill(server: Server) -> None:
    """End what is left of a server, whatever the test did."""
    for member in server.family:
        if member.is_running():
            member.kill()
    server.process.wait(10)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """QBENCH_HOME; short, for the limit of socket paths."""
    folder = Path(tempfile.mkdtemp(prefix="qbu"))
    folder.chmod(0o755)
    yield folder
    stop_server(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def export(home: Path) -> Path:
    """A made-up export of four ranges."""
    path = home / "export.db"
    qbench(home, path, "sample", str(path), "--cases", str(CASES))
    return path


class Browser:
    """A page of the UI, and a numbered picture of what was on it."""

    def __init__(self, page: Any, server: Server, folder: Path) -> None:
        self.page, self._server, self._folder, self._number = page, server, folder, 0

    def open(self, path: str) -> None:
        """Go to a page and let it settle: it loads its parts one after another."""
        self.page.goto(self._server.url + path, wait_until="load")
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is loading any more; for a picture, until it has come to rest."""
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_timeout(1000 if SCREENSHOTS else 200)

    def see(self, *texts: str) -> None:
        """Every text has to become visible."""
        for text in texts:
            self.page.get_by_text(text).filter(visible=True).first.wait_for(timeout=20_000)

    def picture(self, name: str) -> None:
        """Keep what is on the page, if anybody wants it."""
        if not SCREENSHOTS:
            return
        self._number += 1
        self.page.screenshot(path=self._folder / f"{self._number:02d}_{name}.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go."""
    folder = Path(SCREENSHOTS) if SCREENSHOTS else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def launch(browser: Browser, keys: list[str], button: str) -> None:
    """Materialise partitions `keys` of all five partitioned assets, from the page of the job."""
    page = browser.page
    browser.open("/locations/qbench_dagster.definitions/jobs/load_cases")
    page.get_by_role("button", name="Materialize all").click()
    # There is no old store, so nobody has materialised reused_vectors: Dagster asks whether to go on without it.
    confirm, choose = page.get_by_role("button", name="Confirm"), page.get_by_text("Select a partition or create one")
    confirm.or_(choose).first.wait_for()
    if confirm.is_visible():
        confirm.click()
        confirm.wait_for(state="hidden")
        browser.settle()  # the list closes again while that dialog still fades
    choose.click()
    browser.see(*keys)
    for key in keys:
        page.get_by_text(key).filter(visible=True).last.click()
    browser.picture(f"choose_{len(keys)}")
    page.keyboard.press("Escape")
    page.get_by_role("button", name=button).click()
    browser.settle()


def latest_materialization(server: Server, asset: str) -> dict[str, Any]:
    """Metadata of the newest materialisation, by label: the entry's own type and values."""
    found = server.ask(
        """query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
            assetMaterializations(limit: 1) { metadataEntries { __typename label
                ... on IntMetadataEntry { intValue } ... on PathMetadataEntry { path }
                ... on MarkdownMetadataEntry { mdStr } } } } } }""",
        key={"path": [asset]},
    )["assetOrError"]["assetMaterializations"]
    return {entry["label"]: entry for entry in found[0]["metadataEntries"]} if found else {}


def partition_counts(server: Server, asset: str) -> tuple[int, int, int]:
    """(materialised, failed, all) partitions of an asset."""
    found = server.ask(
        """query($keys: [AssetKeyInput!]) { assetNodes(assetKeys: $keys) {
            partitionStats { numMaterialized numFailed numPartitions } } }""",
        keys=[{"path": [asset]}],
    )["assetNodes"][0]["partitionStats"]
    return found["numMaterialized"], found["numFailed"], found["numPartitions"]


def check_results(server: Server, asset: str) -> dict[str, bool | None]:
    """The newest result of each check of an asset; None for one that was never evaluated."""
    found = server.ask(
        """query($keys: [AssetKeyInput!]) { assetNodes(assetKeys: $keys) { assetChecksOrError {
            ... on AssetChecks { checks { name
                executionForLatestMaterialization { evaluation { success } } } } } } }""",
        keys=[{"path": [asset]}],
    )["assetNodes"][0]["assetChecksOrError"]["checks"]
    return {
        check["name"]: execution["evaluation"]["success"]
        if (execution := check["executionForLatestMaterialization"]) and execution["evaluation"]
        else None
        for check in found
    }


def published(home: Path, export: Path) -> int:
    """Rows of the view the application reads."""
    with psycopg.connect(qbench(home, export, "url").strip()) as connection:
        return int(connection.execute("SELECT count(*) FROM qbench.test_documents").fetchone()[0])  # type: ignore[index]


def test_materialise_backfill_and_read(home: Path, export: Path, pictures: Path) -> None:
    server = start_ui(home, export)
    try:
        with playwright.sync_playwright() as engine:
            chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 1600, "height": 1000})
            work_in_the_ui(server, Browser(page, server, pictures))
            chromium.close()
        process = server.process
        server.family += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        wait_for("SIGTERM ends every process of qbench ui", lambda: gone(server), DOWN_S)
        assert published(home, export) > 0  # the embedded PostgreSQL stays
    finally:
        kill(server)


def work_in_the_ui(server: Server, browser: Browser) -> None:
    """Everything up to reading the report."""
    page = browser.page
    browser.open("/asset-groups")
    assert page.get_by_text("Join the Dagster community").count() == 0
    browser.see(*GROUPS)
    page.keyboard.press("Alt+e")  # opens all groups
    browser.settle()
    # The graph shortens a name that does not fit its box.
    browser.see(*(name for name in ASSETS if name != "normalized_testdocs"), "normaliz…_testdocs")
    browser.picture("graph")
    browser.open("/assets")
    browser.see(*ASSETS, *GROUPS)
    browser.picture("catalog")

    keys = server.ask('{ assetNodes(assetKeys: [{path: ["pg_tables"]}]) { partitionKeys } }')
    ranges = keys["assetNodes"][0]["partitionKeys"]
    assert len(ranges) == CASES // PARTITION_CASES
    assert ranges == sorted(ranges)

    launch(browser, ranges[:1], "Launch 1 run")
    (run,) = wait_for("the run of one partition", lambda: server.finished(1), RUN_S)
    assert run["status"] == "SUCCESS"
    assert {step["path"][0] for step in run["assetSelection"]} == set(ASSETS[:5])
    assert partition_counts(server, "pg_tables") == (1, 0, 4)
    assert published(server.home, server.export) == published_in(server, ranges[0])
    browser.open(f"/runs/{run['runId']}")
    browser.see("Success")
    browser.picture("run_of_one")

    launch(browser, ranges[1:], "Launch backfill")
    browser.picture("backfill_started")
    runs = wait_for("the backfill over three partitions", lambda: server.finished(2), RUN_S)
    assert runs[0]["status"] == "SUCCESS"  # one run took all three
    tags = {tag["key"]: tag["value"] for tag in runs[0]["tags"]}
    assert "dagster/backfill" in tags
    assert (tags["dagster/asset_partition_range_start"], tags["dagster/asset_partition_range_end"]) == (
        ranges[1],
        ranges[3],
    )
    for asset in ASSETS[:5]:
        assert partition_counts(server, asset) == (4, 0, 4), asset
    browser.open("/runs/?view=backfills")
    browser.picture("backfills")

    browser.open("/locations/qbench_dagster.definitions/jobs/index_and_report")
    page.get_by_role("button", name="Materialize all").click()
    wait_for("index_and_report is launched", lambda: len(server.runs()) == 3, RUN_S)
    # The two that follow need nothing of it: three processes that start are waited for together.
    browser.open("/locations/qbench_dagster.definitions/jobs/check_tables/playground")
    browser.picture("check_tables")
    page.get_by_role("button", name="Launch run").click()
    wait_for("check_tables is launched", lambda: len(server.runs()) == 4, RUN_S)
    browser.open("/locations/qbench_dagster.definitions/jobs/plan_embeddings")
    page.get_by_role("button", name="Materialize").first.click()
    runs = wait_for("index_and_report, check_tables and plan_embeddings", lambda: server.finished(5), 2 * RUN_S)
    assert {run["jobName"]: run["status"] for run in runs[:3]} == dict.fromkeys(
        ("index_and_report", "check_tables", "plan_embeddings"), "SUCCESS"
    )
    browser.open("/assets/embedding_plan?view=overview")
    browser.picture("embedding_plan")
    plan = latest_materialization(server, "embedding_plan")["plan"]["mdStr"]
    assert "| to embed | 0 | 0 | 0 |" in plan

    for asset in ASSETS[:7]:
        results = check_results(server, asset)
        assert results, asset
        assert all(results.values()), (asset, results)

    browser.open("/asset-groups")  # the groups are open still
    browser.picture("graph_green")
    browser.open("/assets/pg_tables?view=overview")
    browser.picture("pg_tables")
    browser.see("embedding", "qbench.test_documents")  # the columns, and where they are
    browser.open("/assets/pg_tables?view=partitions&partition=" + ranges[1])
    browser.picture("pg_tables_partition")
    browser.open("/assets/pg_tables?view=checks")
    browser.see("every_case_is_accounted_for", "every_row_is_complete", "reader_has_least_privilege")
    browser.picture("pg_tables_checks")
    browser.open("/assets/doc_embeddings?view=overview")
    page.get_by_text("Plots", exact=True).first.click()
    browser.settle()
    browser.picture("doc_embeddings_plots")
    browser.see("usd", "tokens")  # what each partition has cost, run by run
    browser.open("/assets/hnsw_index?view=overview")
    browser.picture("hnsw_index")
    browser.open("/assets/normalized_testdocs?view=overview")
    browser.picture("normalized_testdocs")
    browser.open("/assets/sqlite_cases?view=overview")
    browser.picture("sqlite_cases")

    report = latest_materialization(server, "parity_report")
    assert Path(report["report"]["path"]).is_file()
    assert "An application can be switched over" in report["verdict"]["mdStr"]
    browser.open("/assets/parity_report?view=overview")
    browser.picture("parity_report")
    browser.open("/assets/parity_report?view=events")
    browser.picture("parity_report_events")
    browser.see("verdict", "parity.html")
    browser.open("/assets/parity_report?view=checks")
    browser.see("no_word_lost")
    browser.picture("parity_report_checks")


def published_in(server: Server, partition: str) -> int:
    """The row count the UI shows for a partition of pg_tables."""
    found = server.ask(
        """query($key: AssetKeyInput!, $of: [String!]) { assetOrError(assetKey: $key) { ... on Asset {
            assetMaterializations(partitions: $of, limit: 1) { metadataEntries { label
                ... on IntMetadataEntry { intValue } } } } } }""",
        key={"path": ["pg_tables"]},
        of=[partition],
    )["assetOrError"]["assetMaterializations"][0]["metadataEntries"]
    return int(next(entry["intValue"] for entry in found if entry["label"] == "dagster/partition_row_count"))


def test_ctrl_c_leaves_postgres_and_nothing_else(home: Path, export: Path) -> None:
    server = start_ui(home, export)
    try:
        assert len(server.family) >= 4  # dagster dev, its code server, web server and daemon
        os.killpg(server.process.pid, signal.SIGINT)  # what a terminal sends
        wait_for("Ctrl-C ends every process of qbench ui", lambda: gone(server), DOWN_S)
        postmaster = psutil.Process(int((home / "pg" / "postmaster.pid").read_text().splitlines()[0]))
        assert postmaster.is_running()
        assert json.loads(qbench(home, export, "stop", "--json")) == {"stopped": True}
        postmaster.wait(DOWN_S) if postmaster.is_running() else None
        assert not postmaster.is_running()
        assert json.loads(qbench(home, export, "stop", "--json")) == {"stopped": False}
    finally:
        kill(server)
