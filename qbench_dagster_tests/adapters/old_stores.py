"""Old stores made of what is published, as the predecessor would have filled them: for tests of reuse and of parity."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.faiss_source import FaissSource
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.qdrant_source import QdrantSource
from qbench_dagster.adapters.space import Kind
from qbench_dagster.adapters.vector_source import VectorSource
from qbench_dagster_tests.support import SPACE, rows


@dataclass(frozen=True)
class Point:
    """One point: payload and vector, (64,)."""

    payload: dict[str, Any]
    vector: NDArray[np.float32]

    def moved(self, vector: Any) -> Point:
        """The same with another vector."""
        return replace(self, vector=np.asarray(vector, np.float32))


def published(database: Database, kind: Kind) -> list[Point]:
    """A point of every published case or step, with the vector it has here."""
    if kind == "doc":
        found = rows(
            database,
            f"SELECT d.test_case_id, d.title, d.description, e.embedding::real[] FROM store.test_documents d "
            f"JOIN {SPACE.name}.doc_embeddings e USING (text_hash) ORDER BY 1",
        )
        return [
            Point({"testCaseId": case_id, "title": title, "description": description}, np.asarray(vector, np.float32))
            for case_id, title, description, vector in found
        ]
    found = rows(
        database,
        f"SELECT s.test_case_id, s.step_index, s.action, s.expected, e.embedding::real[] FROM store.test_steps s "
        f"JOIN {SPACE.name}.step_embeddings e USING (text_hash) ORDER BY 1, 2",
    )
    return [
        Point(
            {"parent_testCaseId": case_id, "step_index": index - 1, "action": action, "expected": expected},
            np.asarray(vector, np.float32),
        )
        for case_id, index, action, expected, vector in found
    ]


Opener = Callable[[], Any]
"""What ComparisonSettings.open_stores takes."""


def qdrant_store(folder: Path, points: dict[Kind, Sequence[Point]]) -> Opener:
    """A Qdrant folder in local mode, opened for as long as it is compared with."""
    from qdrant_client import QdrantClient, models  # noqa: PLC0415

    client = QdrantClient(path=str(folder))
    for kind, held in points.items():
        size = len(held[0].vector)
        params = models.VectorParams(size=size, distance=models.Distance.COSINE)
        client.create_collection(f"test_{kind}s", vectors_config=params)
        client.upsert(
            f"test_{kind}s",
            [models.PointStruct(id=n, vector=p.vector.tolist(), payload=p.payload) for n, p in enumerate(held)],
        )
    client.close()

    @contextmanager
    def opened() -> Iterator[list[VectorSource]]:
        names = {kind: f"test_{kind}s" for kind in points}
        with QdrantSource(names, dimensions=SPACE.dimensions, path=folder) as source:
            yield [source]

    return opened


def faiss_store(folder: Path, points: dict[Kind, Sequence[Point]], *, inner: bool = True) -> Opener:
    """A FAISS index of each kind, by inner product or by distance, its metadata beside it."""
    import faiss  # noqa: PLC0415

    folder.mkdir(exist_ok=True)
    files: dict[Kind, tuple[Path, Path | None]] = {}
    for kind, held in points.items():
        index = (faiss.IndexFlatIP if inner else faiss.IndexFlatL2)(len(held[0].vector))
        index.add(np.stack([point.vector for point in held]))
        path = folder / f"{kind}.faiss"
        faiss.write_index(index, str(path))
        path.with_suffix(".json").write_text(json.dumps([point.payload for point in held]))
        files[kind] = (path, None)

    @contextmanager
    def opened() -> Iterator[list[VectorSource]]:
        yield [FaissSource(files)]

    return opened
