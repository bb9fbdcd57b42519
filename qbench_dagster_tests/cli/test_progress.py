"""The bars of the terminal, and that the run's log hears of the work beside them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import rich.progress

from qbench_dagster import progress
from qbench_dagster.cli.run import TerminalProgress


def test_the_log_of_a_run_at_a_terminal_hears_of_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_S", -1.0)
    told: list[str] = []
    context: Any = SimpleNamespace(log=SimpleNamespace(info=told.append))
    bars = rich.progress.Progress(disable=True)
    terminal = TerminalProgress(bars)
    with terminal.track(context, "landing", 20) as advance:
        advance(5)
        assert bars.tasks[0].completed == 5
    with terminal.track_phases(context, "indexing") as tell:
        tell("loading", 3, 10)
        assert (bars.tasks[1].description, bars.tasks[1].completed) == ("indexing (loading)", 3)
    assert told == ["landing: 5 of 20", "indexing: loading, 3 of 10"]
