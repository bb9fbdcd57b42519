"""Engines inside this process: faiss-cpu's HNSW and Qdrant's (qdrant-edge-py). No network, no SQL, no second copy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.search_bench.clients import Built, Hits, K, Search
from benchmarks.search_bench.corpus import FILTERS, Corpus, Filter, Floats
from qbench_dagster.core.indexes import IndexSettings

BUILD = IndexSettings("halfvec")
"""The m and ef_construction that the project builds with by default: every graph has the same."""
DEPTHS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
POINTS = 1000
FULL_SCAN_KB = 10_000
"""Qdrant's default: where a filter leaves fewer kB of vectors they are compared one by one, as is a tiny collection."""


def _unit(vectors: np.ndarray) -> Floats:
    single = vectors.astype(np.float32)
    return single / np.linalg.norm(single, axis=1, keepdims=True)


class FaissHNSW:
    """faiss-cpu, IndexHNSWFlat on float32, in memory. Filters are bitmaps made before."""

    name = "faiss-cpu HNSW"
    about = "IndexHNSWFlat, float32, in this process; a filter is a bitmap of rows that was made before"
    depths: Sequence[int] = DEPTHS

    def __init__(self, folder: Path) -> None:
        self._path = folder / "faiss.index"
        self._depth = self.depths[0]

    def build(self, corpus: Corpus) -> Built:
        """Add all vectors with as many threads as there are cores."""
        import faiss  # noqa: PLC0415 (optional)

        faiss.omp_set_num_threads(os.cpu_count() or 1)
        self._faiss = faiss
        self._index = faiss.IndexHNSWFlat(corpus.dimensions, BUILD.m, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = BUILD.ef_construction
        vectors = np.vstack([_unit(block) for _, block in corpus.blocks()])
        started = perf_counter()
        self._index.add(vectors)
        built = perf_counter() - started
        faiss.omp_set_num_threads(1)
        self._queries = _unit(corpus.query_vectors)
        bits = {each.name: np.packbits(corpus.matching(each), bitorder="little") for each in FILTERS}
        self._bits = bits  # a selector reads them where they are
        self._selectors = {name: faiss.IDSelectorBitmap(value) for name, value in bits.items()}
        faiss.write_index(self._index, str(self._path))
        size = self._path.stat().st_size
        self._path.unlink()
        graph = size - vectors.nbytes
        return Built(0.0, built, graph, size, f"{self._index.ntotal:,} nodes in the graph")

    def set_depth(self, depth: int) -> None:
        """efSearch."""
        self._depth = depth

    @contextmanager
    def client(self) -> Iterator[Search]:
        """A thread that searches."""
        self._faiss.omp_set_num_threads(1)  # is per thread: one client, one core

        def search(query: int, only: Filter | None) -> Hits:
            selector = {"sel": self._selectors[only.name]} if only else {}
            parameters = self._faiss.SearchParametersHNSW(efSearch=self._depth, **selector)
            cosines, rows = self._index.search(self._queries[query : query + 1], K, params=parameters)
            return [
                (row, cosine) for row, cosine in zip(rows[0].tolist(), cosines[0].tolist(), strict=True) if row >= 0
            ]

        yield search

    def close(self) -> None:
        """Let go of its memory."""
        del self._index


class QdrantHNSW:
    """Qdrant's engine in this process.

    By default its graph has links for the values of each payload index, which is several graphs in one: with float32
    vectors it is built without them, the fastest build there is to compare with; quantized it is built with them.
    """

    depths: Sequence[int] = DEPTHS

    def __init__(self, folder: Path, *, quantized: bool = False) -> None:
        self._folder = folder / ("qdrant-binary" if quantized else "qdrant")
        self._quantized = quantized
        self._depth = self.depths[0]
        self.name = "Qdrant, binary" if quantized else "Qdrant"
        self.about = "qdrant-edge-py in this process, " + (
            "binary quantization with rescoring, graph with links for filters (its default)"
            if quantized
            else "float32 vectors, graph without links for filters (its fastest build)"
        )

    def build(self, corpus: Corpus) -> Built:
        """Upsert all points, then optimise until nothing is left to do."""
        import qdrant_edge as qdrant  # noqa: PLC0415 (optional)

        self._qdrant = qdrant
        self._folder.mkdir(parents=True)
        cores = os.cpu_count() or 1
        graph = qdrant.HnswIndexConfig(BUILD.m, BUILD.ef_construction, FULL_SCAN_KB, max_indexing_threads=cores)
        config = qdrant.EdgeConfig(
            vectors=qdrant.EdgeVectorParams(size=corpus.dimensions, distance=qdrant.Distance.Cosine),
            hnsw_config=graph,
            quantization_config=qdrant.BinaryQuantizationConfig(always_ram=True) if self._quantized else None,
            optimizers=qdrant.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=10),
        )
        self._shard = qdrant.EdgeShard.create(str(self._folder), config)
        for column in dict.fromkeys(each.column for each in FILTERS):
            kind = qdrant.IntegerIndexParams if column == "project_id" else qdrant.KeywordIndexParams
            index = qdrant.UpdateOperation.create_field_index(column, kind(enable_hnsw=self._quantized))
            self._shard.update(index)
        loading = 0.0
        for rows, block in corpus.blocks():
            vectors, payloads = _unit(block), corpus.payloads(rows)
            for start in range(0, len(rows), POINTS):
                part = slice(start, start + POINTS)
                points = [
                    qdrant.Point(row, vector, payload)
                    for row, vector, payload in zip(
                        rows[part].tolist(), vectors[part].tolist(), payloads[part], strict=True
                    )
                ]
                started = perf_counter()
                self._shard.update(qdrant.UpdateOperation.upsert_points(points))
                loading += perf_counter() - started
        started = perf_counter()
        while self._shard.optimize():
            pass
        built = perf_counter() - started
        self._queries = _unit(corpus.query_vectors).tolist()
        match = {each.name: qdrant.FieldCondition(each.column, match=qdrant.MatchValue(each.value)) for each in FILTERS}
        self._filters = {name: qdrant.Filter(must=[condition]) for name, condition in match.items()}
        info = self._shard.info()
        if info.indexed_vectors_count < corpus.rows:
            raise AssertionError(f"Qdrant indexed {info.indexed_vectors_count:,} of {corpus.rows:,} vectors")
        files = {path: path.stat().st_size for path in self._folder.rglob("*") if path.is_file()}
        index = sum(size for path, size in files.items() if "vector_index" in path.parts or "quantized" in path.name)
        kept = sum(size for path, size in files.items() if "wal" not in path.parts)
        return Built(loading, built, index, kept, f"{info.indexed_vectors_count:,} vectors in the graph, indexed_only")

    def set_depth(self, depth: int) -> None:
        """hnsw_ef; with quantization as many are compared exactly."""
        quantization = None
        if self._quantized:
            quantization = self._qdrant.QuantizationSearchParams(rescore=True, oversampling=depth / K)
        self._parameters = self._qdrant.SearchParams(hnsw_ef=depth, indexed_only=True, quantization=quantization)

    @contextmanager
    def client(self) -> Iterator[Search]:
        """A thread that searches; the binding lets go of the interpreter meanwhile."""
        request, nearest = self._qdrant.QueryRequest, self._qdrant.Query.Nearest

        def search(query: int, only: Filter | None) -> Hits:
            asked: dict[str, Any] = {"filter": self._filters[only.name]} if only else {}
            points = self._shard.query(
                request(limit=K, query=nearest(self._queries[query]), params=self._parameters, **asked)
            )
            return [(point.id, point.score) for point in points]

        yield search

    def close(self) -> None:
        """Let go of its memory."""
        self._shard.close()
