"""Searches and vectors against exact search, fresh vectors and old stores: numbers as brute force has them, and each
planted fault seen by the finding that is there for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qbench_dagster.adapters.comparing import ComparisonSettings
from qbench_dagster.adapters.embedders import EmbeddingError, LexicalEmbedder
from qbench_dagster.adapters.faiss_source import FaissSource
from qbench_dagster.adapters.indexing import ensure_index
from qbench_dagster.adapters.parity import Evaluated, evaluate
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.report import document as as_document
from qbench_dagster.adapters.report import schema
from qbench_dagster.adapters.space import KINDS, Kind, Space, ensure_space
from qbench_dagster.adapters.vector_source import SourceError
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.queries import QueryLogError
from qbench_dagster.core.ranges import ranges_of
from qbench_dagster_tests.adapters.old_stores import Opener, Point, faiss_store, published, qdrant_store
from qbench_dagster_tests.support import EXACT, SPACE, case, execute, fill_space, rows, run_pipeline, write_export

pytest.importorskip("faiss", reason="faiss-cpu is not installed (pip install -e '.[faiss]')")
pytest.importorskip("qdrant_client", reason="qdrant-client is not installed (pip install '.[qdrant]')")

RECALL, FILTERED, COVERED, VECTORS, REACHED = (
    "recall_reaches_target", "filtered_search_is_complete", "old_store_is_covered",
    "vectors_are_those_of_their_texts", "search_reaches_old_store",
)  # fmt: skip
RANGES = list(ranges_of(["from_0000000001"]).values())
WORDS = ("login", "password", "invoice", "printer", "upload", "search", "report", "calendar", "export", "payment")
CASES = 80


def cases(count: int = CASES) -> list[dict[str, Any]]:
    """Titles of words in common, none twice; two priorities; every seventh in another project."""
    return [
        case(
            n, f"{WORDS[n % 10]} {WORDS[n // 10 % 10]} number {n}", project_id=7 if n % 7 == 0 else 3,
            steps=f"Open the {WORDS[n % 10]} page {n}\nPress {WORDS[n * 3 % 10]} button {n}",
            priority_id=4 if n % 3 else 6,
        )
        for n in range(1, count + 1)
    ]  # fmt: skip


@pytest.fixture
def filled(clean_database: Database, tmp_path: Path) -> Database:
    run_pipeline(clean_database, write_export(tmp_path / "export.db", cases()), index=EXACT, keys=[RANGES[0].key])
    return clean_database


def embedder() -> Any:
    return closing(LexicalEmbedder(SPACE.dimensions))


def report(database: Database, *, space: Space = SPACE, target: float = 0.95, **compared: Any) -> Evaluated:
    settings = ComparisonSettings(**{"open_embedder": embedder, "queries": 20, "target_recall": target, **compared})
    return evaluate(
        database, space, RANGES, rows_in_export=None, details={}, progress=lambda _: None,
        comparison=settings,
    )  # fmt: skip


def against(database: Database, store: Opener, name: str = "faiss", **compared: Any) -> Evaluated:
    return report(database, open_stores=store, old_stores=[name], declared_model="lexical-v1", **compared)


def finding(evaluated: Evaluated, name: str) -> dict[str, Any]:
    return next(each for each in evaluated.report["findings"] if each["name"] == name)


def failed(evaluated: Evaluated) -> list[str]:
    return [each["name"] for each in evaluated.report["findings"] if not each["passed"]]


def comparisons(evaluated: Evaluated) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in evaluated.report["details"]["comparisons"]}


def tops(points: list[Point], queries: NDArray[np.float32], k: int = 10) -> list[set[int]]:
    """The test's own brute force: case ids of the k nearest points of each query."""
    vectors = np.stack([point.vector for point in points]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.asarray([point.payload["testCaseId"] for point in points])
    return [set(ids[np.argsort(-row)[:k]].tolist()) for row in queries.astype(np.float64) @ vectors.T]


def titles(database: Database) -> NDArray[np.float32]:
    return LexicalEmbedder(64).embed([title for (title,) in rows(database, "SELECT title FROM store.test_documents")])


def test_a_healthy_database_passes_and_says_what_was_compared(filled: Database) -> None:
    found = report(filled, queries=200)
    assert failed(found) == []
    assert finding(found, VECTORS)["numbers"]["embedded_again"] == sum(
        rows(filled, f"SELECT count(*) FROM {SPACE.name}.{kind}_embeddings")[0][0] for kind in KINDS
    )
    assert finding(found, VECTORS)["numbers"]["smallest_cosine"] > 0.9999
    made = comparisons(found)
    assert made["doc_search"]["summary"]["count"] == CASES
    assert made["doc_search"]["queries_from"] == "titles"
    assert made["doc_search"]["latency_ms"]["ours"]["p50"] > 0
    assert {each["filter"] for each in made.values()} >= {None, "project = 7"}
    assert finding(found, FILTERED)["numbers"]["asked"] > 0
    for name in (COVERED, REACHED):
        assert "no old store is named" in finding(found, name)["summary"]
    assert found.report["details"]["thresholds"] == {
        "target_recall": 0.95, "min_overlap": 0.9, "min_median_overlap": 0.95,
    }  # fmt: skip
    assert found.report["details"]["history"] == []
    again = report(filled, queries=50)
    assert again.fresh
    assert [past["passed"] for past in again.report["details"]["history"]] == [True]
    assert not report(filled, queries=50).fresh


def test_without_an_embedder_stored_vectors_are_the_queries(filled: Database) -> None:
    found = report(filled, open_embedder=None)
    assert failed(found) == []
    assert {each["queries_from"] for each in comparisons(found).values()} == {"stored", "perturbed", "crossed"}
    assert "there is no embedder at hand" in finding(found, VECTORS)["summary"]


# Vectors and their texts


@pytest.mark.parametrize("kind", KINDS)
def test_a_swapped_pair_of_vectors_is_named(filled: Database, kind: str) -> None:
    table = f"{SPACE.name}.{kind}_embeddings"
    store = {"doc": "test_documents", "step": "test_steps"}[kind]
    (a,), (b,) = rows(filled, f"SELECT text_hash FROM store.{store} WHERE test_case_id IN (3, 58) "
                              f"{'' if kind == 'doc' else 'AND step_index = 1'} ORDER BY test_case_id")  # fmt: skip
    execute(filled, f"""UPDATE {table} t SET embedding = o.embedding FROM {table} o
        WHERE (t.text_hash, o.text_hash) IN ((%s, %s), (%s, %s))""", a, b, b, a)  # fmt: skip
    found = report(filled)
    assert failed(found) == [VECTORS]
    assert {row["case_id"] for row in finding(found, VECTORS)["offenders"]} == {3, 58}
    assert finding(found, VECTORS)["numbers"]["of_another_text"] == 2


def test_a_stale_vector_is_named(filled: Database) -> None:
    """The vector of the text as it was before one word of it changed."""
    (old,) = LexicalEmbedder(64).embed(["printer printer number 42 of before\n"])
    execute(filled, f"""UPDATE {SPACE.name}.doc_embeddings SET embedding = %s::vector::halfvec
        WHERE text_hash = (SELECT text_hash FROM store.test_documents WHERE test_case_id = 42)""",
            "[" + ",".join(map(str, old.tolist())) + "]")  # fmt: skip
    found = report(filled)
    assert failed(found) == [VECTORS]
    (row,) = finding(found, VECTORS)["offenders"]
    assert (row["case_id"], row["kind"]) == (42, "doc")
    assert "number 42" in row["wrong"]


def test_an_embedder_that_fails_does_not_pass_unseen(filled: Database) -> None:
    class Failing(LexicalEmbedder):
        def embed(self, texts: Any) -> Any:
            if any("\n" in text for text in texts):  # a title alone has none
                raise EmbeddingError("the model cannot be loaded")
            return super().embed(texts)

    found = report(filled, open_embedder=lambda: closing(Failing(64)))
    assert failed(found) == [VECTORS]
    assert "the model cannot be loaded" in finding(found, VECTORS)["summary"]


# Searches against exact search


def test_an_index_with_too_few_links_is_told_with_its_queries(clean_database: Database, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    titled = [case(n, f"case {n} " + " ".join(rng.choice(WORDS, 6))) for n in range(1, 1201)]
    run_pipeline(clean_database, write_export(tmp_path / "export.db", titled), index=EXACT, keys=[RANGES[0].key])
    assert failed(report(clean_database, queries=60)) == []
    poor = IndexSettings(strategy="halfvec", m=2, ef_construction=4, ef_search=1, rerank=10)
    ensure_index(clean_database, SPACE, "doc", poor, lambda *_: None)
    found = report(clean_database, queries=60)
    assert RECALL in failed(found)
    assert set(failed(found)) <= {RECALL, FILTERED}
    asked = [row for row in finding(found, RECALL)["offenders"] if row.get("query")]
    assert asked
    assert all(row["share"] < 1 and row["theirs"] for row in asked)
    made = comparisons(found)["doc_search"]
    assert made["summary"]["mean"] < 0.95
    assert made["summary"]["low"] <= made["summary"]["mean"] <= made["summary"]["high"]


def replace_search(database: Database, body: str) -> None:
    """Have `qbench.search_documents` answer by `body`, of which %s is the call of the right one."""
    execute(database, "ALTER FUNCTION qbench.search_documents RENAME TO searched")
    signature = (
        "query_vector halfvec, k integer DEFAULT 10, with_priority text[] DEFAULT NULL, with_tags text[] DEFAULT NULL,"
        " with_platforms text[] DEFAULT NULL, with_test_type text[] DEFAULT NULL, in_folder text DEFAULT NULL,"
        " in_project bigint[] DEFAULT NULL, with_suite bigint[] DEFAULT NULL, updated_since timestamptz DEFAULT NULL,"
        " query_model text DEFAULT NULL"
    )
    call = (
        "SELECT test_case_id, similarity FROM qbench.searched(query_vector, k, with_priority => with_priority,"
        " with_tags => with_tags, with_platforms => with_platforms, with_test_type => with_test_type,"
        " in_folder => in_folder, in_project => in_project)"
    )
    execute(
        database,
        f"CREATE FUNCTION qbench.search_documents({signature}) RETURNS TABLE (test_case_id bigint, similarity float8)"
        f" LANGUAGE sql AS $$ {body.format(call=call)} $$",
    )
    execute(database, "GRANT EXECUTE ON FUNCTION qbench.search_documents TO qbench_reader")


@pytest.mark.parametrize(("limit", "returned"), [("3", 3), ("0", 0)])
def test_a_filtered_search_that_is_short_or_empty_is_named(filled: Database, limit: str, returned: int) -> None:
    replace_search(filled, f"{{call}} LIMIT CASE WHEN with_priority IS NULL THEN k ELSE {limit} END")
    found = report(filled)
    assert failed(found) == [FILTERED]
    short = finding(found, FILTERED)["offenders"][0]
    assert (short["filter"], short["returned"]) == ("priority = High", returned)
    assert short["matching"] == rows(filled, "SELECT count(*) FROM store.test_documents WHERE priority = 'High'")[0][0]
    assert short["query"]


def test_a_filter_that_lets_others_through_is_seen(filled: Database) -> None:
    replace_search(filled, "SELECT test_case_id, similarity FROM qbench.searched(query_vector, k)")
    found = report(filled)
    assert failed(found) == [FILTERED]
    assert "recall" in finding(found, FILTERED)["summary"]


def test_a_search_function_that_fails_is_a_finding(filled: Database) -> None:
    replace_search(filled, "SELECT 1/(k-k)::bigint, 0::float8")
    found = report(filled)
    assert failed(found) == [RECALL]
    assert "searching documents failed: division by zero" in finding(found, RECALL)["summary"]


# Old stores


@pytest.mark.parametrize("name", ["qdrant", "faiss", "faiss by distance"])
def test_an_old_store_that_holds_the_same_agrees(filled: Database, tmp_path: Path, name: str) -> None:
    points: Any = {kind: published(filled, kind) for kind in KINDS}
    if name == "qdrant":
        found = against(filled, qdrant_store(tmp_path / "q", points), "qdrant")
    else:
        found = against(filled, faiss_store(tmp_path / "f", points, inner=name == "faiss"))
    assert failed(found) == []
    stores = {each["kind"]: each for each in found.report["details"]["old_store"]}
    assert (stores["doc"]["points"], stores["doc"]["matched"], stores["doc"]["equal"]) == (CASES, CASES, CASES)
    assert stores["step"]["different"] == stores["step"]["only_there"] == stores["step"]["only_here"] == 0
    assert stores["doc"]["reasons"] == {}
    made = comparisons(found)
    doc = made[f"doc_overlap_{name[:6].strip()}"]
    assert (doc["summary"]["mean"], doc["summary"]["count"], doc["measure"]) == (1, 20, "overlap")
    assert doc["spearman"] > 0.999
    assert doc["latency_ms"]["ours"]["p95"] > 0 < doc["latency_ms"]["theirs"]["p95"]
    assert any(each["filter"] and each["against"] != "exact" for each in made.values())
    assert "step_overlap_" + name[:6].strip() in made


def test_the_overlap_is_the_one_of_brute_force(filled: Database, tmp_path: Path) -> None:
    """Other vectors there, of a part of the cases; and some there that are gone from here."""
    rng = np.random.default_rng(2)
    ours = [point for point in published(filled, "doc") if point.payload["testCaseId"] % 4]
    theirs = [point.moved(point.vector + 0.06 * rng.standard_normal(64)) for point in ours]
    gone = [
        Point({"testCaseId": 5000 + n, "title": f"gone {n}", "description": None}, ours[n].vector) for n in range(30)
    ]
    found = against(filled, qdrant_store(tmp_path / "q", {"doc": [*theirs, *gone]}), "qdrant", queries=CASES,
                    min_overlap=0.3, min_median_overlap=0.3)  # fmt: skip
    queries = titles(filled)
    expected = [len(a & b) / 10 for a, b in zip(tops(ours, queries), tops(theirs, queries), strict=True)]
    made = comparisons(found)["doc_overlap_qdrant"]
    assert made["summary"]["mean"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert made["summary"]["min"] == pytest.approx(min(expected), abs=1e-3)
    assert made["summary"]["median"] == pytest.approx(np.median(expected), abs=1e-3)
    assert 0.4 < np.mean(expected) < 0.95, "the comparison has something to tell"
    assert made["worst"][0]["share"] == pytest.approx(min(expected), abs=1e-3)
    worst = made["worst"][0]
    at = [title for (title,) in rows(filled, "SELECT title FROM store.test_documents")].index(worst["query"])
    assert {result["id"] for result in worst["ours"]} == tops(ours, queries)[at]
    assert {result["id"] for result in worst["theirs"]} == tops(theirs, queries)[at]
    for result in worst["ours"]:
        assert result["shared"] is (result["id"] in tops(theirs, queries)[at])
        assert result["title"].endswith(f"number {result['id']}")
    (store,) = found.report["details"]["old_store"]
    assert (store["points"], store["matched"], store["only_there"], store["only_here"]) == (90, 60, 30, 20)
    assert store["reasons"] == {"unknown_case": 30}
    assert finding(found, COVERED)["numbers"]["gone"] == list(range(5000, 5020)), "named, and not failed"
    assert failed(found) == [VECTORS]


def test_an_old_store_whose_vectors_differ_fails_and_names_them(filled: Database, tmp_path: Path) -> None:
    points = published(filled, "doc")
    points[6], points[30] = points[6].moved(points[30].vector), points[30].moved(points[6].vector)
    found = against(filled, faiss_store(tmp_path / "f", {"doc": points}))
    assert failed(found) == [VECTORS]
    assert {row["case_id"] for row in finding(found, VECTORS)["offenders"]} == {7, 31}
    assert found.report["details"]["old_store"][0]["different"] == 2


def test_a_reused_vector_has_to_be_the_stores_by_value(filled: Database, tmp_path: Path) -> None:
    execute(filled, f"UPDATE {SPACE.name}.doc_embeddings SET provenance = 'faiss'")
    points = published(filled, "doc")
    close = points[9].vector + np.float32(0.004) * np.eye(64, dtype=np.float32)[5]
    found = against(filled, faiss_store(tmp_path / "f", {"doc": [*points[:9], points[9].moved(close), *points[10:]]}))
    assert failed(found) == [VECTORS]
    (row,) = finding(found, VECTORS)["offenders"]
    assert row["case_id"] == 10
    assert "0.001 is rounding" in row["wrong"]


def test_an_old_store_that_searches_find_too_little_of_fails_with_both_lists(filled: Database, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    points = [point.moved(rng.standard_normal(64)) for point in published(filled, "doc")]
    found = against(filled, faiss_store(tmp_path / "f", {"doc": points}))
    assert failed(found) == [VECTORS, REACHED]
    row = next(row for row in finding(found, REACHED)["offenders"] if row.get("query"))
    assert len(row["ours"]) == len(row["theirs"]) == 10
    assert len(set(row["ours"]) & set(row["theirs"])) == round(row["share"] * 10)


def test_a_case_of_the_old_store_that_ours_lacks_is_named(filled: Database, tmp_path: Path) -> None:
    store = faiss_store(tmp_path / "f", {kind: published(filled, kind) for kind in KINDS})
    execute(filled, "DELETE FROM store.test_documents WHERE test_case_id = 42")
    found = against(filled, store)
    assert failed(found) == ["source_is_published_or_rejected", COVERED]
    assert [row["case_id"] for row in finding(found, COVERED)["offenders"]] == [42]
    assert found.report["details"]["old_store"][0]["reasons"] == {"unknown_case": 1}


def test_vectors_of_another_model_are_not_compared_and_said_so(filled: Database, tmp_path: Path) -> None:
    points = [Point({**p.payload, "embedding_model": "other"}, p.vector) for p in published(filled, "doc")]
    found = against(filled, faiss_store(tmp_path / "f", {"doc": points}))
    assert failed(found) == []
    assert "not compared: faiss, documents: other_model" in finding(found, REACHED)["summary"]
    assert found.report["details"]["old_store"][0]["equal"] == 0


def test_vectors_of_no_known_model_fail_until_someone_says_which(filled: Database, tmp_path: Path) -> None:
    store = faiss_store(tmp_path / "f", {"doc": published(filled, "doc")})
    found = report(filled, open_stores=store, old_stores=["faiss"])
    assert failed(found) == [REACHED]
    assert "QBENCH_REUSE_MODEL" in finding(found, REACHED)["summary"]


def test_an_old_store_that_cannot_be_read_does_not_pass_unseen(filled: Database) -> None:
    @contextmanager
    def gone() -> Any:
        raise SourceError("Qdrant at http://old cannot be reached")
        yield

    found = against(filled, gone, "qdrant")
    assert failed(found) == [COVERED, REACHED]
    assert finding(found, REACHED)["summary"].startswith("not compared: Qdrant at http://old cannot be reached")
    assert not against(filled, gone, "qdrant").fresh
    assert against(filled, lambda: nullcontext(()), "qdrant").fresh


def test_an_old_store_that_answers_nothing_is_not_taken_for_agreement(
    filled: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = faiss_store(tmp_path / "f", {"doc": published(filled, "doc")})
    search, asked = FaissSource.search, itertools.count()
    monkeypatch.setattr(FaissSource, "search", lambda *_: [])
    found = against(filled, store)
    assert failed(found) == [REACHED]
    assert "answered 20 of 20 queries for documents with nothing held here" in finding(found, REACHED)["summary"]
    monkeypatch.setattr(FaissSource, "search", lambda *given: search(*given) if next(asked) >= 6 else [])
    found = against(filled, store, min_overlap=0.91)
    assert failed(found) == []
    assert "queries for documents with nothing held here" in finding(found, REACHED)["summary"]


def test_a_kind_the_old_store_lacks_is_said(filled: Database, tmp_path: Path) -> None:
    found = against(filled, faiss_store(tmp_path / "f", {"doc": published(filled, "doc")}))
    assert failed(found) == []
    assert "not compared: faiss holds no steps" in finding(found, REACHED)["summary"]


def test_one_store_of_two_that_cannot_be_read_does_not_pass_unseen(filled: Database, tmp_path: Path) -> None:
    class Broken(FaissSource):
        provenance = "qdrant"

        def read(self, kind: Kind) -> Any:
            raise SourceError(f"its {kind}s cannot be read")

    @contextmanager
    def both() -> Any:
        with faiss_store(tmp_path / "f", {"doc": published(filled, "doc")})() as (readable,):
            yield [readable, Broken({"doc": (tmp_path / "f" / "doc.faiss", None)})]

    assert failed(against(filled, both)) == [COVERED, REACHED]


def test_an_old_store_that_grew_is_compared_again(filled: Database, tmp_path: Path) -> None:
    points = published(filled, "doc")
    store: Callable[[int], Opener] = lambda count: faiss_store(tmp_path / "f", {"doc": points[:count]})  # noqa: E731
    assert against(filled, store(50)).fresh
    assert not against(filled, store(50)).fresh
    assert against(filled, store(60)).fresh
    assert against(filled, store(60), min_overlap=0.8).fresh


# A space that is not read


def test_a_space_that_is_not_read_is_compared_without_the_search_functions(filled: Database, tmp_path: Path) -> None:
    other = Space("space_other", "lexical-v1", 64, "vector")
    ensure_space(filled, other)
    fill_space(filled, other, RANGES)
    found = against(filled, faiss_store(tmp_path / "f", {"doc": published(filled, "doc")}), space=other)
    assert failed(found) == []
    assert "reads are not on it" in finding(found, FILTERED)["summary"]
    made = comparisons(found)
    assert made["doc_overlap_faiss"]["summary"]["mean"] > 0.99
    assert made["doc_overlap_faiss"]["latency_ms"]["ours"] is None
    assert "doc_search" not in made


# The query log


def test_logged_queries_are_asked_with_their_filters(filled: Database, tmp_path: Path) -> None:
    log = tmp_path / "queries.jsonl"
    log.write_text('{"query": "printer does not print"}\n{"query": "invoice", "project": 7, "k": 5}\n')
    found = report(filled, query_log=log)
    assert failed(found) == []
    made = comparisons(found)
    assert (made["doc_search"]["queries_from"], made["doc_search"]["summary"]["count"]) == ("query log", 1)
    assert any(each["filter"] == "project = 7" and each["queries_from"] == "query log" for each in made.values())
    assert not report(filled, query_log=log).fresh
    log.write_text('{"query": "calendar"}\n')
    assert report(filled, query_log=log).fresh


def test_queries_of_any_k_are_held_against_ten(filled: Database, tmp_path: Path) -> None:
    """Fewer than ten do not make a perfect store fail, nor more a target at ten miss."""
    log = tmp_path / "queries.jsonl"
    store = faiss_store(tmp_path / "f", {"doc": published(filled, "doc")})
    for k in (3, 40):
        log.write_text(f'{{"query": "printer does not print", "k": {k}}}\n{{"query": "invoice", "k": {k}}}\n')
        found = against(filled, store, query_log=log)
        assert failed(found) == [], k
        made = comparisons(found)
        assert (made["doc_search"]["k"], made["doc_overlap_faiss"]["summary"]["mean"]) == (min(k, 10), 1), k


def test_a_broken_line_of_the_log_is_named(filled: Database, tmp_path: Path) -> None:
    log = tmp_path / "queries.jsonl"
    log.write_text('{"query": "printer"}\n{"vector": [1, 2]}\n')
    with pytest.raises(QueryLogError, match=r"queries\.jsonl, line 2: the vector has 2 dimensions"):
        report(filled, query_log=log)
    log.write_bytes(b"printer\n\xff\xfe\n")
    with pytest.raises(QueryLogError, match="line 2 is no UTF-8"):
        report(filled, query_log=log)
    with pytest.raises(QueryLogError, match=r"QBENCH_QUERY_LOG: .*: No such file"):
        report(filled, query_log=tmp_path / "none")
    log.write_text("printer\n")
    with pytest.raises(QueryLogError, match="nothing here to embed them with"):
        report(filled, query_log=log, open_embedder=None)


def test_a_report_with_an_old_store_is_what_the_schema_says(filled: Database, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    rng = np.random.default_rng(2)
    points = [point.moved(rng.standard_normal(64)) for point in published(filled, "doc")]
    found = against(filled, faiss_store(tmp_path / "f", {"doc": points, "step": published(filled, "step")}))
    assert any(each["worst"] for each in comparisons(found).values())
    jsonschema.validate(as_document(found.report), schema())
