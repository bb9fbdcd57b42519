"""Parity reports as they come out of a run, made up: one that passed, one that failed, one of before comparisons."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from qbench_dagster.core.agreement import summarize
from qbench_dagster.core.parity import Finding, ParityReport, PartitionRow

SPACE = "space_te3large_3072"
CREATED_AT = "2026-03-04T03:12:55+00:00"
RUN_URL = "http://127.0.0.1:3000/runs/0b1f2c9e-8b7b-4d1c-9a55-1d7a2f3f9f10"
BOUNDS = [729, 6841, 12_388, 19_204, 150_331, 402_117, 988_210, 1_204_551, 2_511_008, 3_870_442, 5_120_700,
          7_004_213, 9_881_004, 12_640_118, 15_002_371, 18_442_090, 21_007_665, 24_881_902, 28_114_003,
          31_450_781, 34_200_118]  # fmt: skip
REJECTS: list[dict[str, Any]] = [
    {"case_id": 12_400 + n, "reason": "blank_title", "detail": "title is '   '"} for n in range(3)
] + [
    {"case_id": 34_799_866, "reason": "too_large", "detail": "1,412,220 characters (1,048,576 at most)"},
    {"case_id": None, "reason": "invalid_id", "detail": "id is 'none'"},
    {"case_id": 88, "reason": "of_another_version", "detail": "ünïcode – 試験"},
]  # fmt: skip
TITLES = (
    "Login with wrong password is refused", "Locked account cannot log in", "Password reset mail arrives",
    "Two-factor code expires after 30 s", "Session ends after logout", "Login form keeps the user name",
    "Single sign-on falls back to password", "Remember me survives a restart", "Captcha after five attempts",
    "Login from an unknown device is reported", "تسجيل الدخول بكلمة مرور خاطئة", "ログインに失敗する 🙂",
)  # fmt: skip


def partitions(lost: int = 0) -> list[PartitionRow]:
    rejected = {2: 3, 7: 41, 20: 1}
    rows = []
    for at, bound in enumerate(BOUNDS):
        source = 5_000 if at < len(BOUNDS) - 1 else 4_121
        gone = lost if at == 11 else 0
        no = rejected.get(at, 0)
        rows.append(PartitionRow(f"from_{bound:010d}", source, source - no - gone, no, gone, source * 6 + at * 137))
    return rows


def comparison(
    kind: str, k: int, mean: float, *, against: str = "exact", queries: str = "stored", seed: int,
    filter_text: str | None = None, threshold: float | None = 0.95, worst: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One comparison over 200 queries whose shares have about this mean."""
    generator = np.random.default_rng(seed)
    shares = generator.binomial(k, mean, 200) / k
    ours = np.sort(generator.lognormal(math.log(2.6 if k == 10 else 4.1), 0.32, 200)).round(3)
    theirs = np.sort(generator.lognormal(math.log(7.5), 0.45, 200)).round(3)
    summary = summarize(shares)
    assert summary
    old = against != "exact"
    sides = {"ours": ours.tolist(), "theirs": theirs.tolist() if old else None}
    measure = "overlap" if old else "recall"
    name = "_".join([kind, measure, str(k), *([against] if old else []), queries.replace(" ", "_")])
    told = {"stored": "stored vectors", "perturbed": "stored vectors moved"}.get(queries, f"the {queries}")
    title = f"{'documents' if kind == 'doc' else 'steps'}: {measure}@{k} {f'with {against}' if old else 'of the index'}"
    title += f", {told} as queries" + (f", only {filter_text}" if filter_text else "")
    return {
        "name": name + ("_filtered" if filter_text else ""),
        "title": title, "kind": kind, "against": against, "queries_from": queries, "filter": filter_text,
        "k": k, "measure": measure, "threshold": threshold,
        "passed": threshold is None or summary.mean >= threshold,
        "summary": asdict(summary), "spearman": 0.991 if old else None, "empty": 0,
        "latency_ms": {side: percentiles(values) for side, values in sides.items()},
        "latencies_ms": sides,
        "worst": [case(n) for n in range(3)] if worst else [],
    }  # fmt: skip


def percentiles(values: list[float] | None) -> dict[str, float] | None:
    if values is None:
        return None
    return {f"p{at}": round(float(np.percentile(values, at)), 3) for at in (50, 95, 99)}


def case(n: int) -> dict[str, Any]:
    """A query both sides answer, differently at every third result."""

    def side(first: int) -> list[dict[str, Any]]:
        ids = [4_711 + 3 * n + (at if at % 3 else at * 10 + first) for at in range(10)]
        return [
            {"id": case_id, "title": TITLES[case_id % len(TITLES)], "shared": bool(at % 3),
             "similarity": round(0.91 - 0.013 * at - 0.02 * n, 4)}
            for at, case_id in enumerate(ids)
        ]  # fmt: skip

    return {
        "query": f"user cannot log in with wrong password ({n})",
        "share": 0.6 + 0.1 * n,
        "ours": side(1),
        "theirs": side(5),
    }


def index(kind: str, *, reached: float = 0.994) -> dict[str, Any]:
    curve = [
        {"ef_search": ef, "rerank": 4 * ef, "recall_10": round(1 - (1 - reached) * (120 / ef) ** 1.1, 4),
         "recall_10_low": round(1 - (1 - reached) * (120 / ef) ** 1.1 - 0.3 / ef, 4),
         "recall_100": round(1 - (1 - reached) * 1.9 * (120 / ef) ** 1.05, 4), "p50_ms": 0.7 + ef / 90,
         "p95_ms": 1.2 + ef / 55}
        for ef in (40, 60, 80, 120, 200, 400, 800)
    ]  # fmt: skip
    strategies = []
    for name, best, p95, seconds, size in (
        ("binary", 0.996, 2.4, 0.8, 712.0), ("subvector", 0.988, 2.1, 2.2, 1_610.0),
        ("ivfflat", 0.981, 6.8, 3.1, 6_300.0),
        ("halfvec", 0.998, 3.9, 6.4, 8_192.0), ("exact", 1.0, 24.0, 0.0, 0.0),
    ):  # fmt: skip
        points = [] if name == "exact" else [
            {"ef_search": ef, "rerank": 4 * ef, "recall_10": round(1 - (1 - best) * (200 / ef) ** 0.9, 4),
             "recall_10_low": round(1 - (1 - best) * (200 / ef) ** 0.9 - 0.004, 4),
             "recall_100": round(1 - (1 - best) * 1.8 * (200 / ef) ** 0.9, 4), "p50_ms": round(p95 * ef / 420, 3),
             "p95_ms": round(p95 * (ef / 200) ** 0.7, 3)}
            for ef in (40, 80, 120, 200)
        ]  # fmt: skip
        strategies.append({
            "strategy": name, "recall_10": best, "recall_100": round(1 - (1 - best) * 1.8, 4), "p95_ms": p95,
            "projected_p95_ms": p95 * (60 if name == "exact" else 1.6), "build_seconds": seconds,
            "projected_build_seconds": seconds * 55, "bytes_per_row": size, "ef_search": 120, "rerank": 480,
            "meets": name != "exact", "curve": points,
        })  # fmt: skip
    return {
        "kind": kind, "strategy": "binary", "m": 16, "ef_construction": 64, "lists": None, "shortened": None,
        "ef_search": 120, "rerank": 480, "rows": 92_541 if kind == "doc" else 277_103, "bytes": 65_000_000,
        "seconds": 13.2, "built_at": "2026-03-03 22:10:04+00", "curve": curve,
        "advice": {
            "sample": 5_000, "rows": 92_541, "asked": [16, 64], "order": ["binary", "subvector", "halfvec", "exact"],
            "skipped": {"ivfflat": "dominated"}, "target_recall": 0.95, "target_p95_ms": 15.0, "chosen": "binary",
            "why": "the cheapest of 3 that meet recall@10 ≥ 0.95 and p95 ≤ 15 ms: 44 s and 66 MB over all rows",
            "strategies": strategies,
        },
    }  # fmt: skip


def old_details(recall: dict[str, Any]) -> dict[str, Any]:
    """Details as reports had them before comparisons."""
    tables = {
        "landing.cases": (412_000_000, 31_000_000), "landing.rejected_rows": (65_536, 16_384),
        "staging.test_documents": (298_000_000, 9_400_000), "staging.test_steps": (388_000_000, 22_000_000),
        "staging.rejects": (81_920, 16_384), "store.test_documents": (305_000_000, 41_000_000),
        "store.test_steps": (402_000_000, 66_000_000), "store.test_preconditions": (88_000_000, 12_000_000),
        "store.test_related_issues": (21_000_000, 6_000_000), "store.change_log": (16_384, 8_192),
        f"{SPACE}.doc_embeddings": (893_000_000, 71_000_000),
        f"{SPACE}.step_embeddings": (2_420_000_000, 194_000_000),
    }  # fmt: skip
    return {
        "recall": recall,
        "target_recall": 0.95,
        "provenance": [
            {"kind": "doc", "provenance": "openai", "vectors": 11_204},
            {"kind": "doc", "provenance": "qdrant", "vectors": 81_337},
            {"kind": "step", "provenance": "openai", "vectors": 212_870},
            {"kind": "step", "provenance": "qdrant", "vectors": 60_112},
            {"kind": "step", "provenance": "faiss", "vectors": 4_121},
        ],
        "sizes": [{"relation": name, "kind": "r", "bytes": size, "index_bytes": index_size}
                  for name, (size, index_size) in tables.items()],
        "versions": {"postgresql": "18.4", "pgvector": "0.8.5", "qbench": "0.1.0", "python": "3.11.7"},
        "settings": {"embedder": "lexical", "dimensions": 3072, "index_strategy": "binary", "hnsw_m": 16,
                     "ef_search": 100, "target_recall": 0.95},
        "indexes": [
            {"kind": "doc", "strategy": "binary", "rows": 92_541, "bytes": 65_000_000,
             "seconds": 13.2, "rebuilt": True},
            {"kind": "step", "strategy": "binary", "rows": 277_103, "bytes": 180_000_000, "seconds": 41.7,
             "built_at": "2026-03-03 22:10:04+00"},
        ],
        "export": "/data/testrail_data.db",
        "run_id": "0b1f2c9e-8b7b-4d1c-9a55-1d7a2f3f9f10",
        "seconds": 48.3,
    }  # fmt: skip


def old_recall(stored: float | None, perturbed: float | None, rows: int) -> dict[str, Any]:
    queries = 0 if stored is None else 100
    health = {"rows": rows, "zero": [], "not_finite": [], "wrong_norm": []}
    return {"stored": stored, "perturbed": perturbed, "queries": queries, "ef_search": 100, "p50_ms": 1.482,
            "p95_ms": 4.611, "health": health, "fresh": queries > 0}  # fmt: skip


def measured(kind: str) -> dict[str, Any]:
    """What was measured of an index, with a number a query."""
    shares = {"10": [1.0, 0.9, 1.0], "100": [0.99, 0.97, 1.0]}
    health = {"rows": 92_541, "zero": [], "not_finite": [], "wrong_norm": []}
    return {"kind": kind, "strategy": "binary", "ef_search": 120, "rerank": 480, "rows": 92_541, "queries": 6,
            "recall": {"stored": shares, "perturbed": shares}, "latencies_ms": [2.1, 2.4, 2.2, 3.0, 2.8, 2.9],
            "health": health, "fresh": True}  # fmt: skip


def history(count: int = 14) -> list[dict[str, Any]]:
    low = ["recall_reaches_target", "no_word_lost"]
    failed = {2: low, 3: low, 9: ["search_reaches_old_store"]}
    return [
        {
            "id": 40 - n,
            "created_at": f"2026-02-{28 - n:02}T03:1{n % 10}:55+00:00",
            "space": SPACE,
            "passed": n not in failed,
            "failed": failed.get(n, []),
            "numbers": {
                "published": 104_076 - 31 * n,
                "recall_10_min": round(0.972 - 0.0007 * n - 0.03 * (n in (2, 3)), 4),
            },
        }
        for n in range(count)
    ]


def details(comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    stores = [
        {"store": "qdrant", "kind": "doc", "points": 83_410, "matched": 81_337,
         "only_there": 2_073, "only_here": 22_739, "equal": 81_337, "different": 0, "min_cosine": 0.99987,
         "median_cosine": 0.99999,
         "reasons": {"no such case": 1_904, "text changed": 169}},
        {"store": "qdrant", "kind": "step", "points": 66_002, "matched": 60_112,
         "only_there": 5_890, "only_here": 216_991, "equal": 60_112, "different": 0, "min_cosine": None,
         "median_cosine": None, "reasons": {"text changed": 5_890}},
    ]  # fmt: skip
    return {
        **old_details({"doc": measured("doc"), "step": measured("step")}),
        "indexes": [index("doc"), index("step", reached=0.986)],
        "comparisons": comparisons,
        "old_store": stores,
        "history": history(),
        "run_url": RUN_URL,
        "thresholds": {"target_recall": 0.95, "min_overlap": 0.9, "min_median_overlap": 0.95},
    }


def good_comparisons() -> list[dict[str, Any]]:
    old: dict[str, Any] = {"against": "qdrant", "queries": "query log", "threshold": 0.9}
    return [
        comparison("doc", 10, 0.995, seed=1), comparison("doc", 100, 0.985, seed=2, threshold=None),
        comparison("doc", 10, 0.974, queries="perturbed", seed=3, worst=True),
        comparison("step", 10, 0.99, seed=4), comparison("step", 100, 0.98, seed=5, threshold=None),
        comparison("step", 10, 0.966, queries="perturbed", seed=6),
        comparison("doc", 10, 0.956, seed=7, filter_text="priority = High", threshold=0.95),
        comparison("step", 10, 0.997, seed=8, filter_text="tag = smoke", threshold=0.95),
        comparison("doc", 10, 0.965, seed=9, **old), comparison("step", 10, 0.958, seed=10, **old),
        comparison("doc", 10, 0.97, seed=11, filter_text="priority = High", **old),
    ]  # fmt: skip


def bad_comparisons() -> list[dict[str, Any]]:
    good = good_comparisons()
    good[5] = comparison("step", 10, 0.884, queries="perturbed", seed=6, worst=True)
    good[9] = comparison("step", 10, 0.71, seed=10, against="qdrant", queries="query log", threshold=0.9, worst=True)
    return good


def finding(name: str, title: str, summary: str, numbers: dict[str, Any], offenders: list[dict[str, Any]] | None = None,
            count: int | None = None) -> Finding:  # fmt: skip
    listed = offenders or []
    total = len(listed) if count is None else count
    return Finding(name, title, not total, summary, numbers, listed[:100], total)


def findings(*, good: bool) -> list[Finding]:
    stuck = "landed, but not normalised: materialise normalized_testdocs"
    lost = [] if good else [{"case_id": 7_004_213 + n, "wrong": stuck} for n in range(128)]
    zero = (
        [] if good else [{"kind": "step", "text_hash": f"{n:064x}", "wrong": "zero"} for n in (0xDEAD << 200, 0xBEEF)]
    )
    low = [] if good else [{"queries": "step_perturbed_10", "recall": 0.8841}]
    far = [] if good else [{"comparison": "step_overlap_10_qdrant", "mean": 0.71, "query": "user cannot log in"}]
    return [
        finding("source_is_published_or_rejected", "Every source case is published or rejected",
                "104,121 source cases = 104,076 published + 45 rejected" if good
                else "104,121 source cases, but 103,948 published + 45 rejected",
                {"source_cases": 104_121, "published": 104_076 - len(lost), "rejected": 45}, lost),
        finding("no_word_lost", "No word of steps and preconditions is lost",
                f"104,076 of 104,076 published cases have words there, {0 if good else 2} lost a word",
                {"compared": 104_076, "cases_with_lost_words": 0 if good else 2},
                [] if good else [{"case_id": 4711, "lost": ["größe"]}, {"case_id": 34_799_866, "lost": ["logout"]}]),
        finding("published_rows_are_what_was_staged", "Published rows are what was normalised",
                "104,076 published cases compared value by value, 0 differ", {"compared": 104_076, "different": 0}),
        finding("vectors_complete_and_sound", "Every published document and step has a sound vector",
                "369,644 vectors examined, 0 unsound; 0 rows without a vector or a document",
                {"vectors": 369_644, "unsound_vectors": 0 if good else 2},
                zero),
        finding("recall_reaches_target", "recall@10 of the index is at least 0.95",
                f"doc_stored 0.995, doc_perturbed 0.974, step_stored 0.990, step_perturbed {0.966 if good else 0.884}",
                {"doc_stored": 0.995, "step_perturbed": 0.966 if good else 0.884, "target": 0.95}, low),
        finding("filtered_search_is_complete", "A filtered search returns min(k, matching rows)",
                "60 filtered searches, none short or empty", {"searches": 60, "short": 0}),
        finding("old_store_is_covered", "Every case of the old store that the source has is published",
                "qdrant: 83,410 documents, 2,073 of them gone from the source", {"points": 149_412}),
        finding("search_reaches_old_store", "Searches find what the old store finds",
                "mean overlap with qdrant 0.958" if good else "steps: mean overlap 0.710, asked for 0.9",
                {"step_overlap_10": 0.958 if good else 0.71}, far),
        finding("reader_has_least_privilege", "qbench_reader reads qbench and nothing else",
                "0 rights too many, 0 missing" if good else "1 right too many, 0 missing",
                {"excess": 0 if good else 1, "missing": 0},
                [] if good else [{"object": "store.test_steps", "privilege": "SELECT",
                                  "remedy": "REVOKE SELECT ON store.test_steps FROM qbench_reader;"}]),
    ]  # fmt: skip


def passed_report() -> ParityReport:
    return ParityReport(CREATED_AT, SPACE, findings(good=True), partitions(), REJECTS, details(good_comparisons()))


def failed_report() -> ParityReport:
    return ParityReport(
        CREATED_AT, SPACE, findings(good=False), partitions(lost=128), REJECTS, details(bad_comparisons())
    )


def old_report() -> ParityReport:
    """As it was kept in databases before comparisons, old store and history were in it."""
    recall = {"doc": old_recall(0.998, 0.971, 92_541), "step": old_recall(0.994, 0.9622, 277_103)}
    later = ("filtered_search_is_complete", "old_store_is_covered", "search_reaches_old_store")
    kept = [one for one in findings(good=True) if one.name not in later]
    return ParityReport(CREATED_AT, SPACE, kept, partitions(), REJECTS, old_details(recall))


EMPTY = ParityReport(CREATED_AT, SPACE, [], [], [], {})
EMPTY_DATABASE = ParityReport(
    CREATED_AT,
    SPACE,
    [Finding("source_is_published_or_rejected", "Every source case is published or rejected", False,
             "nothing was landed yet", {"source_cases": 0, "published": 0, "rejected": 0, "rows_in_export": 0})],
    [PartitionRow("from_0000000001", 0, 0, 0, 0, 0)],
    [],
    {"recall": {"doc": old_recall(None, None, 0), "step": None}, "target_recall": None, "provenance": [],
     "sizes": [{"relation": "landing.cases", "kind": "r", "bytes": 0, "index_bytes": 0}], "export": None},
)  # fmt: skip
