"""The sensor in a real dagster-daemon: a case that changes is published by a run nobody started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from qbench_dagster.automation.runs import REQUESTED_BY
from qbench_dagster.dagster_home import DAGSTER_URL_VARIABLE, prepare_dagster_home
from qbench_dagster.settings import load_settings
from qbench_dagster_tests.automation.world import T0, World

SECONDS = 240


@contextmanager
def daemon(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A dagster-daemon over the project, with this process's settings."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "-m", "qbench_dagster.definitions"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):  # its code server may outlive it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(found: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    """Ask until the answer is true; the answer."""
    deadline = time.monotonic() + SECONDS
    while not (answer := found()):
        waits = process.poll() is None and time.monotonic() < deadline
        assert waits, log.read_text()[-4000:]
        time.sleep(0.5)
    return answer


def test_a_daemon_follows_the_export(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DAGSTER_HOME", DAGSTER_URL_VARIABLE, "DAGSTER_EVENT_BATCH_SIZE"):
        monkeypatch.setenv(variable, "")  # so that what is prepared is taken back afterwards
        monkeypatch.delenv(variable)
    prepare_dagster_home(load_settings())
    world.edit(f"UPDATE cases SET title = 'Followed', updated_on = {T0 + 999} WHERE id IN (5, 15)")
    log = tmp_path / "daemon.log"
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("case_ranges", world.keys)
        for key in world.keys:
            instance.report_runless_asset_event(dg.AssetMaterialization("pg_tables", partition=key))
        with daemon(log) as process:
            ours = dg.RunsFilter(tags={REQUESTED_BY: "export_changes"}, statuses=[dg.DagsterRunStatus.SUCCESS])
            runs = wait_for(lambda: instance.get_runs(ours), process, log)
        assert len(runs) == 1
        assert world.titles()[5] == world.titles()[15] == "Followed"
        materialized = instance.fetch_materializations(dg.AssetKey("pg_tables"), limit=2).records
        assert {record.partition_key for record in materialized} == set(world.keys[:2])
        (state,) = [each for each in instance.all_instigator_state() if each.instigator_name == "export_changes"]
        assert state.instigator_data is not None
        assert '"asked":{"key"' in str(state.instigator_data.cursor)  # type: ignore[union-attr]
