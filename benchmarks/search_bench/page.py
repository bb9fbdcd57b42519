"""docs/benchmark-search.md from stored results: tables with targets, plots, what each number means, how to repeat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.search_bench.corpus import FILTERS
from benchmarks.search_bench.plots import Results, draw, engine_named

MIB = 2**20
OURS, HALFVEC, QDRANTS = "qbench (binary + rerank)", "pgvector halfvec HNSW", ("Qdrant", "Qdrant, binary")
CALIBRATION = {
    "semantic": """\
The vectors are made: an area, a topic, a family of cases, a part of another family, and a deviation of each case's own,
rotated so that every coordinate carries a part of everything. How much of each is calibrated on 32,000 real cases
as a language model places them (all-MiniLM-L6-v2); queries are drawn as the rows are, but are none of them. The same
with vectors of the lexical embedder, which are harder to search at this size: [lexical](benchmark-search-lexical.md).

| 32,000 vectors | real cases | real steps | this corpus |
|---|---|---|---|
| cosine of the 1st neighbour: median | 0.93 | 0.88 | 0.89 |
| of the 10th | 0.78 | 0.64 | 0.78 |
| of the 100th | 0.57 | 0.48 | 0.63 |
| of two at random | 0.10 | 0.09 | 0.10 |
| intrinsic dimension (100 neighbours) | 9.5 | 12.3 | 12.1 |
| recall@10 of HNSW (16, 64) on floats, ef_search 10, 40, 100, 200 | 0.893, 0.986, 0.993, 0.997 | \
0.936, 0.988, 0.995, 0.998 | 0.910, 0.981, 0.994, 0.995 |
""",
    "lexical": """\
The vectors are made: a topic, a family of cases within it, and a deviation of each case's own, rotated so that every
coordinate carries a part of everything. They are calibrated on 32,363 real test cases with vectors of the lexical
embedder, and queries are drawn as the rows are, but are none of them. With so little in common between families a graph
finds its way between them badly, the worse the more there are: [the vectors of a language model](benchmark-search.md)
are easier.

| 32,363 vectors | real cases | real steps | this corpus |
|---|---|---|---|
| cosine of the 1st neighbour: quartiles | 0.68, 0.87, 0.95 | 0.61, 0.78, 0.90 | 0.70, 0.87, 0.97 |
| of the 10th | 0.41, 0.61, 0.87 | 0.34, 0.44, 0.56 | 0.37, 0.59, 0.87 |
| of the 100th | 0.24, 0.37, 0.54 | 0.23, 0.29, 0.36 | 0.23, 0.29, 0.52 |
| variance in the 10, 100, 1,000 strongest directions | 25, 52, 92 % | 12, 42, 88 % | 17, 53, 92 % |
| recall@10 of comparing the signs of all, 40 candidates | 0.996 | 0.995 | 0.991 |
| recall@10 of binary HNSW (16, 128), 40, 100, 200, 400 candidates | 0.917, 0.960, 0.973, 0.988 | \
0.979, 0.991, 0.994, 0.998 | 0.956, 0.979, 0.985, 0.987 |
""",
}
FILTERED = """
Filters of 50 %, 5 % and 0.1 % match by chance (rows anywhere), or *by topic*: then the rows that match lie together,
and most queries have none of them near, which is the hard kind for a graph."""
NOTES = """\
- **stored, indexed**: seconds to bring the vectors in (COPY; upsert), and to build the index over them, with all
  cores. Making vectors is not in it. faiss keeps what it is given, so it stores while it indexes.
- **index**: bytes of the graph with what it holds of the vectors, a vector. faiss and Qdrant keep the vectors beside
  the graph, which is what searches read: that is not counted against them.
- **depth**: candidates (ef_search, efSearch, hnsw_ef), the least of those tried that reach the recall. For qbench it
  is also how many are compared exactly.
- **p50, p95, p99**: one client, one search after the other. **q/s with n**: so many clients at once for some seconds.
  Where single searches are slow, fewer than all queries are asked (20 at least).
- qbench, pgvector and exact search are asked over a socket with prepared statements and binary vectors, as an
  application asks; faiss and Qdrant are called in this process, without network, SQL, transactions or rights. Clients
  and PostgreSQL share the cores.
- **recall@10**: share of the ten nearest (by cosine, found by multiplying matrices) that are returned; ties count.
- Every filtered answer is checked to hold matching rows only; *short* counts answers with fewer rows than there are."""


def render(results: Results, page: Path) -> None:
    """Write the page, and its plots beside it."""
    page.parent.mkdir(parents=True, exist_ok=True)
    plots = draw(results, page)
    large, common = results["large"], results["common"]
    lines = [f"# Search: {results['structure']} vectors", "", _about(results), ""]
    if results.get("remark"):
        lines += [f"**{results['remark']}**", ""]
    if not results["full"]:
        lines += ["**A partial run: not the sizes that the targets are about.**", ""]
    lines += ["## Targets", "", *_table(("", "target", "measured", "reached"), _targets(results)), ""]
    if large:
        lines += _large(large)
    if common:
        lines += _common(common)
    lines += [f"![{title}]({name})\n\n*{title}.*\n" for name, title in plots]
    repeat = (
        f"It took {results['seconds'] / 60:.0f} minutes here. The numbers above are kept in the JSON file beside this "
        "page; `--render` writes the page from it anew."
    )
    for title, text in (("What the numbers mean", NOTES), ("The data", CALIBRATION[results["structure"]] + FILTERED),
                        ("How to repeat it", f"    {results['command']}\n\n{repeat}")):  # fmt: skip
        lines += [f"## {title}", "", text, ""]
    page.write_text("\n".join(lines), encoding="utf-8")


def _about(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"Written by `make bench-search` on {results['cores']} cores and {results['memory_gib']:.0f} GiB of memory. "
        f"{versions}. Every graph is built with m {results['graph']['m']} and ef_construction "
        f"{results['graph']['ef_construction']}, the project's defaults. "
        "Absolute times on another machine differ; how they compare should not by much."
    )


def _large(large: Mapping[str, Any]) -> list[str]:
    result, built = large["result"], large["result"]["built"]
    rows = result["rows"]
    figures = [
        ("vectors", f"{rows:,} of {large['dimensions']:,} dimensions"),
        ("stored (COPY BINARY)", f"{rows / built['load_s']:,.0f} vectors/s"),
        ("index built", f"{built['build_s']:,.0f} s, {rows / built['build_s']:,.0f} vectors/s"),
        ("index size", f"{built['index_bytes'] / MIB:,.0f} MiB, {built['index_bytes'] / rows:,.0f} bytes a vector"),
        ("whole database", f"{built['total_bytes'] / MIB:,.0f} MiB"),
        ("depth", f"{result['depth']:,} candidates"),
        *((f"searches/s, {count} client{'s' * (int(count) > 1)}", f"{rate:,.0f}")
          for count, rate in result["qps"].items()),
    ]  # fmt: skip
    curve = [f"{timed['recall']:.3f} at {depth:,} ({timed['p50_ms']:.1f} ms)" for depth, timed in result["curve"]]
    searches = [
        ("no filter", result["single"]),
        *result["filtered"].items(),
        ("hybrid (vector and words)", large["hybrid"]),
    ]
    return [
        f"## {rows:,} vectors in PostgreSQL", "",
        *_table(("", "measured"), figures), "",
        *_table(("filter", "recall@10", "p50 ms", "p95 ms", "p99 ms", "short"),
                [_timed(name, timed) for name, timed in searches]), "",
        f"Recall against depth: {', '.join(curve)}.", "",
        "Where the time of one search goes (median of the least of three runs):", "",
        *_table(("", "ms"), [(what, f"{took:.2f}") for what, took in large["parts"]]), "",
    ]  # fmt: skip


def _timed(name: str, timed: Mapping[str, float]) -> tuple[str, ...]:
    recall = "" if timed["recall"] is None else f"{timed['recall']:.3f}"
    return (name, recall, *(f"{timed[each]:.1f}" for each in ("p50_ms", "p95_ms", "p99_ms")), f"{timed['short']}")


def _common(common: Mapping[str, Any]) -> list[str]:
    engines = common["engines"]
    return [
        f"## Side by side: {common['rows']:,} vectors of {common['dimensions']:,} dimensions", "",
        *_table(("", "stored s", "indexed s", "index B/vector", "depth", "recall@10", "p50 ms", "p95 ms", "p99 ms",
                 "q/s with 1", "with 4", "with 16"), [_engine(each) for each in engines]), "",
        "Filtered, recall@10 and p95 in ms:", "",
        *_table(("", *(each.name for each in FILTERS)), [_filtered(each) for each in engines]), "",
        *(f"- **{each['name']}**: {each['about']}. {each['built']['proof']}." for each in engines), "",
    ]  # fmt: skip


def _engine(engine: Mapping[str, Any]) -> tuple[str, ...]:
    built, single = engine["built"], engine["single"]
    return (
        engine["name"],
        f"{built['load_s']:.1f}",
        f"{built['build_s']:.1f}",
        f"{built['index_bytes'] / engine['rows']:,.0f}",
        "" if engine["depth"] is None else f"{engine['depth']:,}",
        f"{single['recall']:.3f}" + ("" if engine["reached"] else " (missed)"),
        *(f"{single[each]:.2f}" for each in ("p50_ms", "p95_ms", "p99_ms")),
        *(f"{rate:,.0f}" for rate in engine["qps"].values()),
    )


def _filtered(engine: Mapping[str, Any]) -> tuple[str, ...]:
    cells = []
    for each in FILTERS:
        timed = engine["filtered"][each.name]
        short = f", {timed['short']} short" if timed["short"] else ""
        cells.append(f"{timed['recall']:.3f}, {timed['p95_ms']:.1f}{short}")
    return engine["name"], *cells


def _targets(results: Results) -> list[tuple[str, str, str, str]]:
    rows: list[tuple[str, str, str, bool]] = []
    if results["large"]:
        result, target = results["large"]["result"], results["target_recall"]
        worst = max(result["filtered"], key=lambda name: result["filtered"][name]["p95_ms"])
        slowest, p95 = result["filtered"][worst], result["single"]["p95_ms"]
        at = f"{result['rows']:,} vectors: "
        rows += [
            (at + "recall@10", f">= {target}", f"{result['single']['recall']:.3f}", result["reached"]),
            (at + "p95, one client", "<= 15 ms", f"{p95:.1f} ms", p95 <= 15),
            (at + f"p95 filtered, the slowest ({worst})", "<= 25 ms", f"{slowest['p95_ms']:.1f} ms",
             slowest["p95_ms"] <= 25),
            (at + "recall@10 filtered, the lowest", f">= {target}",
             f"{(low := min(each['recall'] for each in result['filtered'].values())):.3f}", low >= target),
            (at + "p95 hybrid", "<= 40 ms", f"{results['large']['hybrid']['p95_ms']:.1f} ms",
             results["large"]["hybrid"]["p95_ms"] <= 40),
        ]  # fmt: skip
    if results["common"]:
        rows += list(_compared(results["common"]["engines"]))
    return [(name, target, measured, "yes" if met else "NO") for name, target, measured, met in rows]


def _compared(engines: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str, str, bool]]:
    ours, halfvec = engine_named(engines, OURS), engine_named(engines, HALFVEC)
    if ours and halfvec:
        faster = halfvec["built"]["build_s"] / ours["built"]["build_s"]
        smaller = halfvec["built"]["index_bytes"] / ours["built"]["index_bytes"]
        yield "index build against plain halfvec HNSW", ">= 5 x faster", f"{faster:.1f} x", faster >= 5
        yield "index size against plain halfvec HNSW", ">= 8 x smaller", f"{smaller:.1f} x", smaller >= 8
    for name in QDRANTS:
        theirs = engine_named(engines, name)
        if ours and theirs:
            took, limit = (each["built"]["load_s"] + each["built"]["build_s"] for each in (ours, theirs))
            yield f"stored and indexed, against {name}", f"<= {limit:.1f} s", f"{took:.1f} s", took <= limit
            p50, limit = ours["single"]["p50_ms"], theirs["single"]["p50_ms"]
            yield f"p50, against {name}", f"<= {limit:.2f} ms", f"{p50:.2f} ms", p50 <= limit


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
