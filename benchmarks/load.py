"""`make bench`: the whole graph on sample cases, cold and unchanged, against its targets and row-by-row INSERTs.

python -m benchmarks.load [--cases 104121] [--small 10000] [--keep] [--markdown docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.inserts import Writing, compare_writing
from qbench_dagster.adapters.embedded import start_server, stop_server
from qbench_dagster.adapters.postgres import Database, ensure_database
from qbench_dagster.adapters.reading import Filters, search, status
from qbench_dagster.adapters.sample_writer import write_sample
from qbench_dagster.core.lexical import embed

STAGES = ("sqlite_cases", "normalized_testdocs", "doc_embeddings", "step_embeddings", "pg_tables", "hnsw_index",
          "parity_report")  # fmt: skip
QUERIES = 200
FLOAT32_BYTES = 4 * 3072
MIB = 2**20


@dataclass(frozen=True)
class Run:
    """One `qbench run` as a user would start it: seconds by the wall, memory of our processes, what it said."""

    wall: float
    peak_mib: float
    said: Mapping[str, Any]

    @property
    def orchestration(self) -> float:
        """Share of the wall time outside the stages: imports, Dagster's events, planning."""
        return 1 - sum(self.said["seconds"].values()) / self.wall


def qbench_run(home: Path, export: Path) -> Run:
    """Run it in a process of its own; memory is the largest sum of resident sets of it and its children."""
    command = [sys.executable, "-m", "qbench_dagster.cli", "run", "--export", str(export), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("QBENCH_", "DATABASE_"))}
    started = time.monotonic()
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**environment, "QBENCH_HOME": str(home)}
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    output, _ = process.communicate()
    wall = time.monotonic() - started
    watcher.join()
    if process.returncode:
        raise SystemExit(f"qbench run failed with {process.returncode}:\n{output.decode()[-3000:]}")
    return Run(wall, peak / MIB, json.loads(output))


def _resident(pid: int) -> int:
    try:
        main = psutil.Process(pid)
        # The embedded PostgreSQL is a daemon, no child of ours.
        return sum(
            each.memory_info().rss for each in [main, *main.children(recursive=True)] if "postgres" not in each.name()
        )
    except psutil.Error:
        return 0


def latencies(database: Database, filters: Filters) -> tuple[float, float]:
    """(p50, p95) in milliseconds of qbench.search_documents for 200 titles with a word left out."""
    with database.connection("bench") as connection:
        sample = "SELECT title FROM qbench.test_documents ORDER BY md5(test_case_id::text) LIMIT %s"
        titles = [title for (title,) in connection.execute(sample, (QUERIES,))]
    queries = embed([" ".join(title.split()[1:]) or title for title in titles], 3072)
    search(database, queries[0], 10, filters)
    measured = []
    for query in queries:
        started = time.perf_counter()
        search(database, query, 10, filters)
        measured.append((time.perf_counter() - started) * 1000)
    return float(np.percentile(measured, 50)), float(np.percentile(measured, 95))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Load sample cases, measure, and compare with row-by-row INSERTs.")
    parser.add_argument("--cases", type=int, default=104_121)
    parser.add_argument("--small", type=int, default=10_000, help="the smaller load that memory is compared with")
    parser.add_argument("--insert-cases", type=int, default=1_000, help="cases written row by row")
    parser.add_argument("--keep", action="store_true", help="leave the databases where they are")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="qbench-bench-"))
    folder.chmod(0o755)
    homes = {"large": folder / "large", "small": folder / "small"}
    try:
        exports = {}
        for name, cases in (("small", arguments.small), ("large", arguments.cases)):
            exports[name] = folder / f"{name}.db"
            console.print(f"writing {cases:,} sample cases")
            write_sample(exports[name], cases, 729)
        console.print(f"loading {arguments.small:,} cases")
        small = qbench_run(homes["small"], exports["small"])
        stop_server(homes["small"])
        console.print(f"loading {arguments.cases:,} cases")
        cold = qbench_run(homes["large"], exports["large"])
        console.print("loading them again, unchanged")
        again = [qbench_run(homes["large"], exports["large"]) for _ in range(3)]
        console.print("searching")
        server = start_server(homes["large"])
        with Database(ensure_database(server, "qbench")) as database:
            searches = {name: latencies(database, filters) for name, filters in (
                ("plain", Filters()), ("priority = High", Filters(priority=["High"])))}  # fmt: skip
            standing = status(database)
        console.print(f"writing {arguments.insert_cases:,} cases row by row, and as the pipeline does")
        writing = compare_writing(ensure_database(server, "row_by_row"), ensure_database(server, "set_based"),
                                  folder / "inserts.db", arguments.insert_cases)  # fmt: skip
        tables = summarise(small, cold, min(again, key=lambda run: run.wall), searches, standing, writing)
        for title, table in tables.items():
            console.print(shown(title, table))
        if arguments.markdown:
            arguments.markdown.write_text(markdown(tables, arguments.cases), encoding="utf-8")
            console.print(f"written: {arguments.markdown}")
    finally:
        for home in homes.values():
            if home.exists():
                stop_server(home)
        if arguments.keep:
            console.print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def summarise(
    small: Run,
    cold: Run,
    again: Run,
    searches: Mapping[str, tuple[float, float]],
    standing: Mapping[str, Any],
    writing: Writing,
) -> dict[str, pd.DataFrame]:
    """The tables: seconds by stage, and the figures beside their targets."""
    said = cold.said
    stages = pd.DataFrame(
        [
            {
                "stage": stage,
                "cold s": round(said["seconds"][stage], 1),
                "again s": round(again.said["seconds"][stage], 2),
                "rows written": said["stages"][stage].get("rows_written", 0),
            }
            for stage in STAGES
        ]
        + [{"stage": "wall (with start-up)", "cold s": round(cold.wall, 1), "again s": round(again.wall, 2),
            "rows written": said["rows_written"]}]
    )  # fmt: skip
    vectors = said["texts_embedded"]
    embedding = said["seconds"]["doc_embeddings"] + said["seconds"]["step_embeddings"]
    index = said["stages"]["hnsw_index"]
    disk = standing["database_bytes"] / (vectors * FLOAT32_BYTES)
    share, recall = again.wall / cold.wall, min(said["recall"].values())
    idle = (again.said["rows_written"], again.said["texts_embedded"])
    build_rate = index["rows"] / index["build_seconds"]
    rows: list[tuple[str, str, str, bool | None]] = [
        ("cold run", f"{cold.wall:.1f} s", "<= 150 s", cold.wall <= 150),
        ("second run, unchanged", f"{share:.1%} of the cold run", "<= 5 %", share <= 0.05),
        ("second run: rows written, texts embedded", f"{idle[0]}, {idle[1]}", "0, 0", idle == (0, 0)),
        ("orchestration, cold", f"{cold.orchestration:.1%}", "<= 10 %", cold.orchestration <= 0.10),
        ("peak memory of our processes", f"{cold.peak_mib:,.0f} MiB", "<= 600 MB", cold.peak_mib * MIB <= 600e6),
        ("peak memory against the small load", f"{cold.peak_mib / small.peak_mib:.2f} x", "<= 1.3 x",
         cold.peak_mib <= 1.3 * small.peak_mib),
        ("disk, whole database, against float32 vectors", f"{disk:.2f} x", "<= 1.0 x", disk <= 1.0),
        ("writing against row-by-row INSERTs", f"{writing.ratio:.1f} x", ">= 10 x", writing.ratio >= 10),
        ("recall@10, lowest of four", f"{recall:.3f}", ">= 0.95", recall >= 0.95),
        ("cases/s, cold", f"{said['source_cases'] / cold.wall:,.0f}", "", None),
        ("vectors/s (embedded and stored)", f"{vectors / embedding:,.0f}", "", None),
        ("index build", f"{build_rate:,.0f} rows/s, {index['index_bytes'] / MIB:,.0f} MiB", "", None),
    ]  # fmt: skip
    for name, (p50, p95) in searches.items():
        rows.append((f"search, {name}", f"p50 {p50:.1f} ms, p95 {p95:.1f} ms", "", None))
    rows.append(("row-by-row INSERTs, vectors as text", f"{writing.row_by_row:,.0f} rows/s", "", None))
    rows.append(("the pipeline's COPY and set-based INSERTs", f"{writing.set_based:,.0f} rows/s", "", None))
    figures = pd.DataFrame(
        [(name, value, target, {True: "yes", False: "NO", None: ""}[met]) for name, value, target, met in rows],
        columns=["figure", "measured", "target", "reached"],
    )
    return {"Seconds by stage": stages, "Figures": figures}


def shown(title: str, frame: pd.DataFrame) -> Table:
    """A frame as a terminal table."""
    table = Table(*map(str, frame.columns), title=title, title_justify="left")
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    return table


def markdown(tables: Mapping[str, pd.DataFrame], cases: int) -> str:
    """The tables as a page for docs/."""
    machine = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    about = (
        f"Written by `python -m benchmarks.load --markdown docs/benchmarks.md` on {cases:,} sample cases, {machine}, "
        f"Python {platform.python_version()}, embedded PostgreSQL. Absolute times on another machine differ; the "
        "ratios should not by much."
    )
    lines = ["# Benchmarks", "", about]
    for title, frame in tables.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| " + " | ".join(map(str, frame.columns)) + " |",
            "|---" * len(frame.columns) + "|",
        ]
        for row in frame.itertuples(index=False):
            lines.append("| " + " | ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in row) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
