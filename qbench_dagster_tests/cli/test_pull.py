"""`qbench pull`, and `qbench run` with TestRail as the source, in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qbench_dagster_tests.adapters.test_testrail_pull import NOW, small_data
from qbench_dagster_tests.cli.test_cli import SMALL, Terminal
from qbench_dagster_tests.testrail_server import KEY, USER, TestRailServer


@pytest.fixture
def server() -> Iterator[TestRailServer]:
    with TestRailServer(small_data(large=20)) as running:
        yield running


@pytest.fixture
def qbench(server: TestRailServer, fresh_url: str, tmp_path: Path) -> Terminal:
    own = {"QBENCH_TESTRAIL_URL": server.url, "QBENCH_TESTRAIL_USER": USER, "QBENCH_TESTRAIL_API_KEY": KEY}
    return Terminal(tmp_path / "home", {**SMALL, "DATABASE_URL": fresh_url, **own})


def test_run_pulls_first_and_pull_alone_brings_what_changed(server: TestRailServer, qbench: Terminal) -> None:
    first = qbench("run", "--json").json()
    assert (first["ok"], first["source_cases"], first["published"]) == (True, 31, 31)
    assert first["stages"]["testrail_mirror"]["added"] == 31
    server.data.cases[2] |= {"title": "Edited", "updated_on": NOW}
    del server.data.cases[3]
    pulled = qbench("pull", "--json").json()
    assert (pulled["cases"], pulled["changed"], pulled["removed"], pulled["full"]) == (30, 1, 1, False)
    shown = qbench("pull", "--full")
    assert "30 cases mirrored: 0 added, 0 changed, 0 gone; asked for all cases, " in shown.out
    assert KEY not in shown.out + shown.err


def test_what_is_wrong_is_said_at_once(qbench: Terminal) -> None:
    assert "TestRail is not set" in qbench("pull", code=2, QBENCH_TESTRAIL_URL="").err
    assert "QBENCH_TESTRAIL_API_KEY: not set" in qbench("run", code=2, QBENCH_TESTRAIL_API_KEY="").err
    wrong = "wrong-key-planted-0123"
    refused = qbench("run", code=1, QBENCH_TESTRAIL_API_KEY=wrong)
    assert "does not accept the user and key" in refused.err
    assert wrong not in refused.out + refused.err
