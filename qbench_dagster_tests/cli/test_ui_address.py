"""`qbench ui` listens where nobody else can reach it, unless told otherwise."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qbench_dagster.cli import app


@pytest.fixture
def started(fresh_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have taken this process's place."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "environ", {**os.environ, "DATABASE_URL": fresh_url, "QBENCH_HOME": str(tmp_path)})
    return commands


def test_only_this_machine_reaches_the_ui(started: list[list[str]]) -> None:
    done = CliRunner().invoke(app, ["ui", "--port", "1"])
    assert done.exit_code == 0, done.output
    (command,) = started
    assert command[command.index("-h") + 1] == "127.0.0.1"
    assert "asks nobody" not in done.output


def test_elsewhere_it_is_told_that_the_ui_has_no_login(started: list[list[str]]) -> None:
    done = CliRunner().invoke(app, ["ui", "--port", "1", "--host", "0.0.0.0"])
    (command,) = started
    assert command[command.index("-h") + 1] == "0.0.0.0"
    assert "the UI asks nobody who he is" in done.output
    assert "reverse proxy" in done.output
