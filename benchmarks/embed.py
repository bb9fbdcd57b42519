"""`make bench-embed`: the embedding stage against a local server without latency, beside the plain client in a loop.

python -m benchmarks.embed [--cases 20000 | --export testrail_data.db] [--markdown docs/benchmark-embedding.md]

The server is a process of its own and embeds nothing: what is measured is everything but the model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import openai
from rich.console import Console
from rich.table import Table

from qbench_dagster.adapters.embedded import start_server, stop_server
from qbench_dagster.adapters.embedding import embed_missing
from qbench_dagster.adapters.landing import land_cases, land_lookups
from qbench_dagster.adapters.ledger import Account
from qbench_dagster.adapters.openai_embedder import OpenAIEmbedder
from qbench_dagster.adapters.postgres import Database, ensure_database
from qbench_dagster.adapters.sample_writer import write_sample
from qbench_dagster.adapters.space import KINDS, Space, ensure_space
from qbench_dagster.adapters.staging import load_lookups, stage_cases
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.adapters.tokenizer import token_counter
from qbench_dagster.core.folders import section_paths
from qbench_dagster.core.packing import Sized, fewest
from qbench_dagster.core.ranges import LARGEST_ID, CaseRange
from qbench_dagster.core.requests import Limits
from qbench_dagster.core.tally import Embedding
from qbench_dagster.core.texts import doc_text, step_text
from qbench_dagster_tests.openai_server import count_words, served
from qbench_dagster_tests.openai_server.server import KEY

SPACE = Space("space_te3large_3072", "text-embedding-3-large", 3072, "halfvec", "openai")
EVERYTHING = CaseRange("all", 1, LARGEST_ID + 1)
LATENCY_S = 0.05
PACED_S = 20
"""Seconds that sending everything takes at the allowed rate, in the measurement with rate limits."""
BURST_S = 2
MIB = 2**20


def texts_of(database: Database) -> dict[str, list[str]]:
    """The distinct texts to embed, by kind; what both kinds have is a document's."""
    with database.connection("bench", long=True) as connection:
        docs = {doc_text(*row) for row in connection.execute("SELECT title, description FROM staging.test_documents")}
        steps = {step_text(*row) for row in connection.execute("SELECT action, expected FROM staging.test_steps")}
    return {"doc": sorted(docs), "step": sorted(steps - docs)}


def stage(database: Database, export: Path) -> None:
    """Bring the export as far as staging."""
    with TestRailExport(export) as source:
        land_lookups(database, source, section_paths)
        land_cases(database, source, EVERYTHING, max_delete_share=1.0)
    stage_cases(database, load_lookups(database), EVERYTHING, lambda _: None)


def embedder(base_url: str) -> OpenAIEmbedder:
    """The embedder as `qbench run` makes it."""
    return OpenAIEmbedder(
        model=SPACE.model, dimensions=SPACE.dimensions, api_key=KEY, base_url=base_url, limits=Limits(), concurrency=8,
        timeout_s=120, send_dimensions=True, count_tokens=token_counter(SPACE.model), paid=True,
    )  # fmt: skip


def through_the_stage(database_url: str, base_url: str) -> int:
    """Embed and store everything; returns how many texts."""
    done = Embedding()
    with Database(database_url) as database:
        for kind in KINDS:
            account = Account("bench", 0.13)
            embed_missing(database, SPACE, kind, [EVERYTHING], embedder(base_url), account, lambda _: None, done)
    return done.embedded


def through_the_client(database_url: str, base_url: str) -> int:
    """The same texts through the plain client, 2,048 a request, one after the other; nothing is stored.

    Texts above the token limit are left out: the client would end there.
    """
    client = openai.OpenAI(api_key=KEY, base_url=base_url)
    with Database(database_url) as database:
        texts = texts_of(database)
    count, longest = 0, Limits().tokens_per_input
    for kind in KINDS:
        short = [text for text in texts[kind] if count_words(text) <= longest]
        for batch in _batches(short, 2048):
            answer = client.embeddings.create(input=batch, model=SPACE.model, dimensions=SPACE.dimensions)
            count += len(answer.data)
    return count


def _batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield list(texts[start : start + size])


WORK = {"stage": through_the_stage, "client": through_the_client}


def worker(name: str, database_url: str, base_url: str) -> dict[str, float]:
    """Do the work in a process of its own: seconds, texts, and the largest resident memory of the process."""
    command = [sys.executable, "-m", "benchmarks.embed", "--worker", name, database_url, base_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def empty(database: Database) -> None:
    """An empty space again."""
    with database.connection("bench") as connection:
        connection.execute("TRUNCATE space_te3large_3072.doc_embeddings, space_te3large_3072.step_embeddings")


def measure(export: Path, folder: Path) -> list[tuple[str, str, str]]:
    """(figure, measured, target) of everything."""
    home = folder / "home"
    home.mkdir()
    url = ensure_database(start_server(home, memory_mb=2048), "qbench")
    with Database(url) as database:
        stage(database, export)
        ensure_space(database, SPACE)
        texts = texts_of(database)
        total = sum(map(len, texts.values()))
        counter = token_counter(SPACE.model)
        tokens = {kind: counter(texts[kind]) for kind in KINDS}
        least = sum(fewest([Sized(None, size) for size in tokens[kind]], Limits()) for kind in KINDS)
        with served() as server:
            plain = worker("client", url, server.base_url)
            server.clear_ledger()
            staged = worker("stage", url, server.base_url)
            sent = server.ledger()
        empty(database)
        with served("--latency", str(LATENCY_S)) as server:
            slow_plain = worker("client", url, server.base_url)
            slow_staged = worker("stage", url, server.base_url)
        empty(database)
        share, refused = paced(url, sent["tokens"])
    if staged["texts"] != total:
        raise SystemExit(f"{total:,} texts, but {staged['texts']:,} embedded")
    stop_server(home)
    rate, plain_rate = staged["texts"] / staged["seconds"], plain["texts"] / plain["seconds"]
    slow = (slow_staged["texts"] / slow_staged["seconds"]) / (slow_plain["texts"] / slow_plain["seconds"])
    return [
        ("texts", f"{total:,}", ""),
        ("the stage: embedded and stored", f"{rate:,.0f} texts/s", ""),
        ("plain client in a loop, nothing stored", f"{plain_rate:,.0f} texts/s", ""),
        ("the stage against the plain client", f"{rate / plain_rate:.2f} x", ""),
        (f"the same with {1000 * LATENCY_S:.0f} ms latency", f"{slow:.2f} x", ""),
        ("requests, against the fewest possible", f"{sent['requests']} / {least}", "<= 1.05 x"),
        ("texts sent twice", f"{sent['texts'] - sent['distinct_texts']}", "0"),
        ("tokens billed by the server", f"{sent['tokens']:,}", ""),
        (f"tokens counted by us ({counter.describe().split(':')[0]})", f"{sum(map(sum, tokens.values())):,}", ""),
        (f"share of the allowed rate kept, {1000 * LATENCY_S:.0f} ms latency", f"{share:.0%}", ">= 80 %"),
        ("requests refused for the rate meanwhile", f"{refused}", ""),
        ("peak memory of the stage", f"{staged['peak_mib']:,.0f} MiB", ""),
        ("peak memory of the plain client", f"{plain['peak_mib']:,.0f} MiB", ""),
    ]


def paced(url: str, tokens: int) -> tuple[float, int]:
    """(share of the server's allowed rate that is kept, requests refused for the rate).

    The bucket may be emptied at once: allowed is what it holds and what flows in while the stage runs.
    """
    per_minute = 60 * tokens // PACED_S
    arguments = ("--tokens-per-minute", str(per_minute), "--burst-seconds", str(BURST_S), "--latency", str(LATENCY_S))
    with served(*arguments) as server:
        worker("stage", url, server.base_url)
        ledger = server.ledger(times=True)
    times = [seen["at"] for seen in ledger["seen"] if seen["outcome"] == "ok"]
    allowed = per_minute / 60 * (times[-1] - times[0] + BURST_S)
    return ledger["tokens"] / allowed, sum(ledger["refused"].values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000, help="sample cases, without an export")
    parser.add_argument("--export", type=Path, help="a TestRail export instead")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, database_url, base_url = arguments.worker
        started = time.perf_counter()
        texts = WORK[name](database_url, base_url)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(json.dumps({"seconds": seconds, "texts": texts, "peak_mib": peak}) + "\n")
        return
    folder = Path(tempfile.mkdtemp(prefix="qbench-bench-"))
    folder.chmod(0o755)
    export = arguments.export
    if export is None:
        export = folder / "sample.db"
        write_sample(export, arguments.cases, 729, lambda *_: None)
    try:
        rows = measure(export.absolute(), folder)
    finally:
        stop_server(folder / "home")
        shutil.rmtree(folder, ignore_errors=True)
    show(rows, arguments.markdown, f"{arguments.cases:,} sample cases" if arguments.export is None else "an export")


def show(rows: list[tuple[str, str, str]], markdown: Path | None, what: str) -> None:
    """Print the table, and write it where that is asked for."""
    table = Table("figure", "measured", "target", title="Embedding", title_justify="left", show_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if markdown:
        about = (
            f"Written by `python -m benchmarks.embed --markdown {markdown}` on {what}, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, embedded PostgreSQL. The server is local and embeds nothing, so this "
            "is what everything but the model costs; server, stage and PostgreSQL share the cores."
        )
        lines = [f"| {' | '.join(row)} |" for row in rows]
        told = ["# Embedding", "", about, "", "| figure | measured | target |", "|---|---|---|", *lines]
        markdown.write_text("\n".join(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
