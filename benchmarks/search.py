"""`make bench-search`: search over 1,000,000 vectors, and on a smaller set beside other engines, against its targets.

python -m benchmarks.search [--rows 1000000] [--common-rows 40000] [--dimensions 3072] [--quick] [--page FILE]

Needs about 20 GB of disk and 25 minutes on two cores. Only a whole run writes docs/benchmark-search.md by itself, or
docs/benchmark-search-lexical.md with --structure lexical.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.search_bench.anatomy import parts
from benchmarks.search_bench.clients import Engine, measure, timed
from benchmarks.search_bench.corpus import STRUCTURES, Corpus, Truth
from benchmarks.search_bench.engines import ExactSearch, PlainHalfvec, SearchFunctions
from benchmarks.search_bench.libraries import BUILD, FaissHNSW, QdrantHNSW
from benchmarks.search_bench.page import render
from benchmarks.search_bench.tables import load_documents, load_vectors, served, space_of
from qbench_dagster.adapters.postgres import Database, fetch_dicts
from qbench_dagster.adapters.publishing import publish_face
from qbench_dagster.adapters.sql import statement

PAGES = {
    "semantic": Path("docs/benchmark-search.md"),
    "lexical": Path("docs/benchmark-search-lexical.md"),
}
ROWS, COMMON_ROWS, DIMENSIONS = 1_000_000, 40_000, 3072
TARGET_RECALL = 0.99
PACKAGES = {"psycopg": "psycopg", "faiss-cpu": "faiss", "qdrant-edge-py": "qdrant_edge"}

Tell = Callable[[str], None]


def main() -> None:
    """Measure, keep the results as JSON, and write the page."""
    arguments = _arguments()
    console = Console(highlight=False)
    if arguments.render:
        page = arguments.page or PAGES[arguments.structure]
        render(json.loads(_results_of(page).read_text(encoding="utf-8")), page)
        return
    full = (arguments.rows, arguments.common_rows, arguments.dimensions) == (ROWS, COMMON_ROWS, DIMENSIONS)
    usual = PAGES[arguments.structure]
    page = arguments.page or (usual if full else Path(tempfile.mkdtemp(prefix="qbench-bench-page-")) / usual.name)
    folder = arguments.again or Path(tempfile.mkdtemp(prefix="qbench-bench-", dir=arguments.home))
    folder.chmod(0o755)  # the embedded server is another user's where we are root
    started = time.monotonic()

    def tell(what: str) -> None:
        console.print(f"[{time.monotonic() - started:6.0f} s] {what}", markup=False, soft_wrap=True)

    if not full:
        tell(f"a partial run: its page is {page}, {usual} stays as it is")
    try:
        results = run(arguments, folder, tell)
    finally:
        if arguments.keep or arguments.again:
            tell(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    results |= {"full": full, "seconds": time.monotonic() - started}
    page.parent.mkdir(parents=True, exist_ok=True)
    _results_of(page).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    render(results, page)
    tell(f"written: {page}")


def run(arguments: argparse.Namespace, folder: Path, tell: Tell) -> dict[str, Any]:
    """Both parts, as they are kept."""
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.search --rows {arguments.rows} --common-rows {arguments.common_rows} "
        f"--dimensions {arguments.dimensions} --queries {arguments.queries} --structure {arguments.structure}",
        "structure": arguments.structure,
        "remark": arguments.remark,
        "cores": os.cpu_count(),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "target_recall": TARGET_RECALL,
        "graph": {"m": BUILD.m, "ef_construction": BUILD.ef_construction},
        "versions": {},
        "large": None,
        "common": None,
    }
    for name, rows, measured in (("large", arguments.rows, large), ("common", arguments.common_rows, common)):
        if rows:
            corpus = Corpus(rows, arguments.dimensions, arguments.queries, structure=arguments.structure)
            with served(folder / name, "bench") as database:
                results["versions"] |= _versions(database)
                results[name] = measured(database, corpus, folder / name, arguments.seconds, tell)
            if not (arguments.keep or arguments.again):
                shutil.rmtree(folder / name)
    results["versions"] |= {package: version(package) for package in PACKAGES if find_spec(PACKAGES[package])}
    return results


def _loaded(database: Database, corpus: Corpus, folder: Path, tell: Tell) -> tuple[Truth, dict[str, float]]:
    """The corpus in the database, its exact neighbours, and how long loading took: now, or when it was kept."""
    truth, kept = Truth(corpus), folder / "loaded.json"
    if kept.exists():
        tell("finding the exact neighbours in what was kept")
        for rows, vectors in corpus.blocks():
            truth.add(rows, vectors)
        publish_face(database, space_of(corpus))  # the functions of today
        return truth, json.loads(kept.read_text(encoding="utf-8"))

    def so_far(what: str) -> Callable[[int], None]:
        step = max(1, corpus.rows // 10)
        seen = [0]

        def count(rows: int) -> None:
            if rows // step > seen[0]:
                seen[0] = rows // step
                tell(f"{what}: {rows:,} of {corpus.rows:,}")

        return count

    took = load_vectors(database, corpus, truth, so_far("vectors stored"))
    took |= load_documents(database, corpus, so_far("cases published"))
    kept.write_text(json.dumps(took), encoding="utf-8")
    return truth, took


def large(database: Database, corpus: Corpus, folder: Path, seconds: float, tell: Tell) -> dict[str, Any]:
    """The search functions alone, over very many vectors."""
    truth, loaded = _loaded(database, corpus, folder, tell)
    engine = SearchFunctions(database, loaded, tell)
    built = engine.build(corpus)
    tell(f"index built in {built.build_s:.0f} s")
    result = measure(engine, corpus, truth, built, target=TARGET_RECALL, seconds=seconds, tell=tell)
    with engine.hybrid_client() as search:
        hybrid = asdict(timed(search, corpus, truth, None)) | {"recall": None}  # its scores are no cosines
    tell(f"hybrid: p95 {hybrid['p95_ms']:.1f} ms")
    return {
        "dimensions": corpus.dimensions,
        "loaded": loaded,
        "result": asdict(result),
        "hybrid": hybrid,
        "parts": parts(database, corpus, result.depth or 1),
    }


def common(database: Database, corpus: Corpus, folder: Path, seconds: float, tell: Tell) -> dict[str, Any]:
    """Every engine on the same vectors, one after the other. Qdrant's is left out where it is not installed."""
    truth, loaded = _loaded(database, corpus, folder, tell)
    engines: list[Engine] = [kind(database, loaded, tell) for kind in (SearchFunctions, PlainHalfvec, ExactSearch)]
    engines.append(FaissHNSW(folder))
    if find_spec("qdrant_edge"):
        engines += [QdrantHNSW(folder), QdrantHNSW(folder, quantized=True)]
    else:
        tell("without Qdrant's engine: pip install qdrant-edge-py")
    results = []
    for engine in engines:
        tell(f"{engine.name}: building")
        built = engine.build(corpus)
        tell(f"{engine.name}: stored in {built.load_s:.1f} s, indexed in {built.build_s:.1f} s")
        result = measure(engine, corpus, truth, built, target=TARGET_RECALL, seconds=seconds, tell=tell)
        results.append(asdict(result))
        engine.close()
    return {"rows": corpus.rows, "dimensions": corpus.dimensions, "engines": results}


def _versions(database: Database) -> dict[str, str]:
    with database.connection("bench versions") as connection:
        server = fetch_dicts(connection, statement("setup.sql", "server"))[0]
        vector = fetch_dicts(connection, statement("setup.sql", "vector_installed"))[0]
    return {"PostgreSQL": server["version"], "pgvector": vector["version"]}


def _results_of(page: Path) -> Path:
    return page.with_suffix(".json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="of the large set; 0 leaves it out")
    parser.add_argument("--common-rows", type=int, default=COMMON_ROWS, help="of the common set; 0 leaves it out")
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    parser.add_argument("--structure", choices=STRUCTURES, default="semantic", help="how the vectors lie (corpus.py)")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5, help="that many clients search, each time")
    parser.add_argument(
        "--home", type=Path, help="folder for the databases: 20 GB (default: the system's temporary one)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the databases where they are")
    parser.add_argument("--again", type=Path, help="measure what a run with --keep left in that folder")
    parser.add_argument("--page", type=Path, help="write the page there (a whole run: one of docs/)")
    parser.add_argument("--quick", action="store_true", help="20,000 and 5,000 rows: shows that it runs, not how fast")
    parser.add_argument("--remark", default="", help="what a reader of the page should know: what else ran meanwhile")
    parser.add_argument("--render", action="store_true", help="write the page anew from the results beside it")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.common_rows, arguments.seconds = 20_000, 5_000, 2
    return arguments


if __name__ == "__main__":
    main()
