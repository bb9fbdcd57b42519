"""`make bench-search` end to end on a few rows, and the page it writes."""

import copy
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from benchmarks import search
from benchmarks.search_bench import page
from benchmarks.search_bench.clients import Built, measure, throughput, timed
from benchmarks.search_bench.corpus import FILTERS, Corpus, Truth
from qbench_dagster.adapters.postgres import Database, ensure_database

ROWS, DIMENSIONS = 300, 64


def _corpus() -> Corpus:
    return Corpus(ROWS, DIMENSIONS, queries=12)


@pytest.fixture(scope="module")
def results(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a run over 300 rows keeps, as JSON gives it back."""
    folder = tmp_path_factory.mktemp("bench")
    told: list[str] = []
    kept = {
        "command": "python -m benchmarks.search", "structure": "semantic", "cores": 2, "memory_gib": 8.0,
        "target_recall": 0.99,
        "versions": {"PostgreSQL": "18"}, "graph": {"m": 16, "ef_construction": 128}, "full": False, "seconds": 60.0,
    }  # fmt: skip
    for name, part in (("large", search.large), ("common", search.common)):
        with Database(ensure_database(server_url, f"bench_{name}")) as database:
            (folder / name).mkdir()
            kept[name] = part(database, _corpus(), folder / name, 0.05, told.append)
    assert any("recall" in line for line in told)
    return json.loads(json.dumps(kept))


def test_every_engine_is_measured(results: dict) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("qdrant_edge")
    engines = {each["name"]: each for each in results["common"]["engines"]}
    assert list(engines) == [
        "qbench (binary + rerank)", "pgvector halfvec HNSW", "exact", "faiss-cpu HNSW", "Qdrant", "Qdrant, binary"
    ]  # fmt: skip
    for name, engine in engines.items():
        assert engine["reached"], name
        assert engine["rows"] == ROWS
        assert list(engine["qps"]) == ["1", "4", "16"]
        assert min(engine["qps"].values()) > 0
        assert list(engine["filtered"]) == [each.name for each in FILTERS]
    assert "Index Scan using doc_embeddings_halfvec" in engines["pgvector halfvec HNSW"]["built"]["proof"]
    assert "300 vectors in the graph" in engines["Qdrant"]["built"]["proof"]
    assert engines["exact"]["single"]["recall"] == 1
    assert engines["exact"]["built"]["index_bytes"] == 0


def test_our_answers_are_complete_under_every_filter(results: dict) -> None:
    ours = [each for each in results["common"]["engines"] if each["name"] in ("qbench (binary + rerank)", "exact")]
    for result in (results["large"]["result"], *ours):
        assert {timed["short"] for timed in (result["single"], *result["filtered"].values())} == {0}
        assert min(timed["recall"] for timed in result["filtered"].values()) >= 0.97


def test_the_parts_of_a_search_are_timed(results: dict) -> None:
    parts = dict(results["large"]["parts"])
    assert parts["qbench.search_documents"] > parts["a round trip (SELECT 1)"] > 0
    assert results["large"]["hybrid"]["p95_ms"] > 0


def test_the_page_has_every_engine_every_filter_and_its_plots(results: dict, tmp_path: Path) -> None:
    page.render(results, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "A partial run" in text
    for engine in results["common"]["engines"]:
        assert f"| {engine['name']} |" in text
    assert all(each.name in text for each in FILTERS)
    plots = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg")}
    assert len(plots) == 3
    for name, svg in plots.items():
        assert f"]({name})" in text
        assert len(svg) < 100_000
    assert str(tmp_path) not in text


def test_a_page_without_the_large_set_has_no_target_of_it(results: dict, tmp_path: Path) -> None:
    page.render({**results, "large": None}, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "15 ms" not in text
    assert len(list(tmp_path.glob("*.svg"))) == 2


def _verdicts(results: dict, tmp_path: Path) -> dict[str, str]:
    page.render(results, tmp_path / "page.md")
    lines = (tmp_path / "page.md").read_text(encoding="utf-8").split("## Targets")[1].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.endswith(("yes |", "NO |"))]
    return {row[0].split(": ")[-1].split(" (")[0]: row[-1] for row in cells}


def test_targets_are_judged_by_what_was_measured(results: dict, tmp_path: Path) -> None:
    good = copy.deepcopy(results)
    large = good["large"]
    large["result"]["single"] |= {"recall": 0.99, "p95_ms": 15.0}
    for filtered in large["result"]["filtered"].values():
        filtered |= {"recall": 0.99, "p95_ms": 25.0}
    large["hybrid"]["p95_ms"] = 40.0
    engines = {each["name"]: each for each in good["common"]["engines"]}
    ours, halfvec = engines["qbench (binary + rerank)"], engines["pgvector halfvec HNSW"]
    ours["built"] |= {"load_s": 1.0, "build_s": 2.0, "index_bytes": 100}
    halfvec["built"] |= {"build_s": 10.0, "index_bytes": 800}
    ours["single"]["p50_ms"] = 1.0
    theirs = [engine for name, engine in engines.items() if name.startswith("Qdrant")]
    for engine in theirs:
        engine["built"] |= {"load_s": 1.5, "build_s": 1.5}
        engine["single"]["p50_ms"] = 1.0
    verdicts = _verdicts(good, tmp_path)
    assert len(verdicts) >= 7
    assert set(verdicts.values()) == {"yes"}
    large["result"]["single"]["p95_ms"] = 15.1
    large["result"]["filtered"]["5 %, by topic"] |= {"p95_ms": 25.1, "recall": 0.98}
    large["hybrid"]["p95_ms"] = 40.1
    halfvec["built"] |= {"build_s": 9.9, "index_bytes": 799}
    for engine in theirs:
        engine["built"]["build_s"] = 1.4
        engine["single"]["p50_ms"] = 0.9
    assert [name for name, met in _verdicts(good, tmp_path).items() if met == "yes"] == ["recall@10"]


def test_a_partial_run_leaves_the_page_in_docs_alone(
    results: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "benchmark-search.md").write_text("whole", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "run", lambda *_: dict(results))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["search", "--quick"])
    search.main()
    assert (docs / "benchmark-search.md").read_text(encoding="utf-8") == "whole"
    assert [path.parent.parent for path in tmp_path.rglob("qbench-bench-page-*/*.md")] == [tmp_path]
    monkeypatch.setattr(sys, "argv", ["search"])
    search.main()
    assert "A partial run" not in (docs / "benchmark-search.md").read_text(encoding="utf-8")
    kept = json.loads((docs / "benchmark-search.json").read_text(encoding="utf-8"))
    assert kept["full"]
    (docs / "benchmark-search.md").unlink()
    monkeypatch.setattr(search, "run", None)
    monkeypatch.setattr(sys, "argv", ["search", "--render"])
    search.main()
    assert (docs / "benchmark-search.md").exists()


class _Planted:
    """An engine that knows the answers, and forgets all but `depth` of them."""

    name, about, depths = "planted", "", (2, 5, 10)

    def __init__(self, corpus: Corpus, wrong: int | None = None) -> None:
        vectors = np.vstack([vectors for _, vectors in corpus.blocks()]).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self._cosines = corpus.query_vectors / np.linalg.norm(corpus.query_vectors, axis=1, keepdims=True) @ vectors.T
        self._corpus, self._wrong, self._depth = corpus, wrong, 10

    def build(self, _corpus: Corpus) -> Built:
        return Built(1, 1, 1, 1, "")

    def set_depth(self, depth: int) -> None:
        self._depth = depth

    def close(self) -> None:
        pass

    def client(self):
        return nullcontext(self._search)

    def _search(self, query, only):
        if self._wrong == query:
            raise RuntimeError("planted")
        rows = np.arange(self._corpus.rows) if only is None else np.flatnonzero(self._corpus.matching(only))
        best = rows[np.argsort(-self._cosines[query][rows])][: self._depth]
        return [(int(row), float(self._cosines[query][row])) for row in best]


@pytest.fixture(scope="module")
def truth() -> Truth:
    found = Truth(_corpus())
    for rows, vectors in _corpus().blocks():
        found.add(rows, vectors)
    return found


def test_the_least_depth_that_reaches_the_recall_is_taken(truth: Truth) -> None:
    engine = _Planted(_corpus())
    built = engine.build(_corpus())
    result = measure(engine, _corpus(), truth, built, target=0.5, seconds=0.01, tell=lambda _: None)
    assert (result.depth, result.reached) == (5, True)
    assert [point.recall for _, point in result.curve] == pytest.approx([0.2, 0.5])
    assert result.single.short == 3 * 12
    missed = measure(engine, _corpus(), truth, built, target=1.1, seconds=0.01, tell=lambda _: None)
    assert (missed.depth, missed.reached) == (10, False)


def test_a_row_that_does_not_match_its_filter_stops_the_benchmark(truth: Truth) -> None:
    engine = _Planted(_corpus())
    with pytest.raises(AssertionError, match="does not match"):
        timed(lambda query, _: engine._search(query, None), _corpus(), truth, FILTERS[0])


def test_a_client_that_fails_is_no_slow_client(truth: Truth) -> None:
    with pytest.raises(RuntimeError, match="planted"):
        throughput(_Planted(_corpus(), wrong=0), _corpus(), 4, 0.01)
