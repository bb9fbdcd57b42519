"""`make bench-sync`: what following an export costs, and whether what it leads to is a fresh load, row by row.

python -m benchmarks.sync [--cases 104121] [--real PATH] [--keep]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pandas as pd
from rich.console import Console

from benchmarks.load import qbench_run, shown
from qbench_dagster.adapters.embedded import start_server, stop_server
from qbench_dagster.adapters.postgres import Database, ensure_database
from qbench_dagster.adapters.sample_writer import write_sample
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.automation.reconcile import request_all
from qbench_dagster.core.ranges import ranges_with
from qbench_dagster.dagster_home import prepare_dagster_home
from qbench_dagster.partitions import keys_of_tags, registered_ranges
from qbench_dagster.settings import load_settings
from qbench_dagster_tests.automation.edits import Amounts, differences, edit_export, published, texts_of
from qbench_dagster_tests.automation.world import World
from qbench_dagster_tests.support import REAL_EXPORT

SPACE = "space_lexical_3072"
CHANGED = 100
SYNC_SHARE, TICK_S = 0.03, 1.0
LOG = logging.getLogger(__name__)
CODE = "from dagster._cli import main; main()"


@dataclass
class Figures:
    """What was measured, beside what it should be."""

    rows: list[tuple[str, str, str, bool | None]] = field(default_factory=list)

    def add(self, name: str, value: str, target: str = "", reached: bool | None = None) -> None:
        """One line."""
        self.rows.append((name, value, target, reached))

    def frame(self) -> pd.DataFrame:
        """As a table."""
        told = {True: "yes", False: "NO", None: ""}
        return pd.DataFrame(
            [(name, value, target, told[reached]) for name, value, target, reached in self.rows],
            columns=["figure", "measured", "target", "reached"],
        )


@contextmanager
def following(home: Path, export: Path) -> Iterator[World]:
    """The export as `qbench run` loaded it, in its own Dagster instance, and the sensor that follows it."""
    for variable, value in {"QBENCH_HOME": home, "QBENCH_EXPORT": export}.items():
        os.environ[variable] = str(value)
    prepare_dagster_home(load_settings())
    url = ensure_database(start_server(home), "qbench")
    with Database(url) as database, dg.DagsterInstance.get() as instance:
        yield World(instance, database, export)


def run_as_a_process(tags: dict[str, str]) -> None:
    """`load_cases` in a process of its own, as the daemon starts it."""
    command = [sys.executable, "-c", CODE, "job", "execute", "-m", "qbench_dagster.definitions", "-j", "load_cases",
               "--tags", json.dumps(tags)]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603


def revise(export: Path, ids: Sequence[int], mark: str) -> None:
    """Edit the titles of some cases, and say so in their `updated_on`."""
    with closing(sqlite3.connect(export)) as connection, connection:
        (newest,) = connection.execute("SELECT max(updated_on) FROM cases").fetchone()
        connection.executemany(
            "UPDATE cases SET title = title || ?, updated_on = ? WHERE id = ?",
            [(f" ({mark} {number})", newest + 60, case_id) for number, case_id in enumerate(ids)],
        )


@dataclass
class Followed:
    """What it took to bring a change in: seconds of looking and of running, and over what."""

    looked: float = 0.0
    ran: float = 0.0
    partitions: int = 0
    runs: int = 0


def follow(world: World, start: Callable[[dict[str, str]], object]) -> Followed:
    """Tick, and run what is asked for by `start`, until all of it is in."""
    done = Followed()
    while True:
        world.ahead += 10_000
        began = time.perf_counter()
        found = world.tick()
        looked = time.perf_counter()
        if not isinstance(found, list):
            if not found.startswith("succeeded"):
                raise SystemExit(found)
            return done
        for each in found:
            start(dict(each.tags))
        done.looked += looked - began
        done.ran += time.perf_counter() - looked
        done.partitions += sum(len(keys_of_tags(world.instance, each.tags)) for each in found)
        done.runs += len(found)


def measure_sync(folder: Path, cases: int, figures: Figures, console: Console) -> None:
    """What a sync of a hundred changed cases costs beside a cold run, and a tick that finds nothing."""
    export, home = folder / "sample.db", folder / "sample"
    console.print(f"writing {cases:,} sample cases, and loading them")
    write_sample(export, cases, 729)
    cold = qbench_run(home, export)
    figures.add(f"cold run of {cases:,} cases", f"{cold.wall:.1f} s")
    with following(home, export) as world:
        world.age()
        started = time.perf_counter()
        world.tick()
        figures.add("first tick: every case compared", f"{time.perf_counter() - started:.2f} s")
        figures.add("tick, unchanged file", *_tick(world, lambda: None))
        figures.add("tick, touched but equal file", *_tick(world, world.age))
        with TestRailExport(export) as source:
            ids = source.case_ids()
        for where, chosen in (
            (f"{CHANGED} of the newest tenth changed", ids[-len(ids) // 10 :: max(1, len(ids) // 10 // CHANGED)]),
            (f"{CHANGED} changed all over", ids[:: max(1, len(ids) // CHANGED)]),
        ):
            console.print(where)
            for again in (False, True):
                revise(export, chosen[:CHANGED], f"{where} {again}")
                world.age()
                done = follow(world, run_as_a_process if again else world.load)
                share = (done.looked + done.ran) / cold.wall
                told = f"{done.looked:.2f} s to see it, {done.ran:.1f} s to publish it, {share:.1%}"
                if again:
                    figures.add(f"{where}: the same in processes of its own", told)
                else:
                    figures.add(f"{where} ({done.partitions} partitions, {done.runs} runs)", told,
                                f"<= {SYNC_SHARE:.0%} of the cold run", share <= SYNC_SHARE)  # fmt: skip
    stop_server(home)


def _tick(world: World, before: Callable[[], None]) -> tuple[str, str, bool]:
    """A tick that finds nothing new."""
    taken = []
    for _ in range(3):
        before()
        world.ahead += 10_000
        started = time.perf_counter()
        said = world.tick()
        taken.append(time.perf_counter() - started)
        if not str(said).startswith("nothing new"):
            raise SystemExit(f"a tick that should find nothing: {said}")
    return f"{min(taken):.3f} s", f"<= {TICK_S:.0f} s", min(taken) <= TICK_S


def follow_a_day(folder: Path, source: Path, figures: Figures, console: Console) -> None:
    """200 edited, 20 added, 20 removed, 5 moved, a section renamed: one tick, one reconcile, against a fresh load."""
    export, home, other = folder / "real.db", folder / "real", folder / "fresh"
    shutil.copyfile(source, export)
    export.chmod(0o600)
    console.print(f"loading {source}")
    qbench_run(home, export)
    with following(home, export) as world:
        world.age()
        world.tick()
        before, ranges = texts_of(world.database, SPACE), registered_ranges(world.instance)
        with TestRailExport(export) as opened:
            ids = opened.case_ids()
        listed = list(ranges.values())
        busy = [each for number, each in enumerate(listed) if number % 3 != 1]
        within = [case_id for case_id in ids if any(case_id in each for each in busy)]
        done = edit_export(export, within, Amounts())
        world.age()
        requests = world.asked()
        requested = [key for each in requests for key in keys_of_tags(world.instance, each.tags)]
        expected = ranges_with(done.told, listed)
        console.print("following a day's work")
        for each in requests:
            world.load(each.tags)
        told = world.said(1)
        night = request_all(world.instance, LOG)
        if not isinstance(night, dg.RunRequest):
            raise SystemExit(night.skip_message)
        world.load(night.tags)
        synced, after = published(world.database, SPACE), texts_of(world.database, SPACE)
    stop_server(home)
    console.print("loading the edited export into an empty database")
    qbench_run(other, export)
    with following(other, export) as fresh:
        wrong = differences(synced, published(fresh.database, SPACE))
        new = texts_of(fresh.database, SPACE) - before
    stop_server(other)
    figures.add(f"{source.name}: partitions run", f"{len(requested)} of {len(listed)}", f"{len(expected)} that changed",
                requested == expected and told.startswith("succeeded"))  # fmt: skip
    rows = sum(len(each) for each in synced.values())
    told_rows = {table: len(keys) for table, keys in wrong.items()} or 0
    figures.add(f"{source.name}: {rows:,} rows that differ from a fresh load", str(told_rows), "0", not wrong)
    figures.add(f"{source.name}: texts embedded", f"{len(after - before):,}", f"{len(new):,} that are new",
                after - before == new)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Follow an export, measure, and compare with a fresh load.")
    parser.add_argument("--cases", type=int, default=104_121, help="sample cases; 0: none")
    parser.add_argument(
        "--real", type=Path, default=REAL_EXPORT, help="an export for a day's work; left out if missing"
    )
    parser.add_argument("--keep", action="store_true", help="leave the databases where they are")
    arguments = parser.parse_args()
    console, figures = Console(), Figures()
    for name in list(os.environ):
        if name.startswith(("QBENCH_", "DAGSTER_", "DATABASE_")):
            del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="qbs"))
    folder.chmod(0o755)
    try:
        if arguments.real.exists():
            follow_a_day(folder, arguments.real, figures, console)
        if arguments.cases:
            measure_sync(folder, arguments.cases, figures, console)
    finally:
        for home in ("real", "fresh", "sample"):
            if (folder / home).exists():
                stop_server(folder / home)
        if arguments.keep:
            console.print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    console.print(shown("Following an export", figures.frame()))
    if any(reached is False for *_, reached in figures.rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
