"""FAISS indexes of many types and their metadata in every format: each vector with its own row, or a clear refusal."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qbench_dagster.adapters.faiss_source import FaissSource
from qbench_dagster.adapters.vector_source import BATCH_POINTS, SourceError

faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed (pip install -e '.[faiss]')")

faiss.omp_set_num_threads(1)  # its threads spin: with two tests at a time a k-means of 4 s takes 20
DIMENSIONS = 16
COUNT = 600
SPARSE = np.arange(COUNT, dtype=np.int64) * 49_711 + 729
"""Ids as TestRail's: 729 to 29,777,618."""


def vectors(count: int = COUNT, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    return np.random.Generator(np.random.PCG64(5)).standard_normal((count, dimensions)).astype(np.float32)


def rows(count: int = COUNT, **more: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [
        {"testCaseId": 1000 + n, "title": f"Case {n}", **{k: make(n) for k, make in more.items()}} for n in range(count)
    ]


def write_index(path: Path, factory: str, ids: NDArray[np.int64] | None = None) -> Path:
    index = faiss.index_factory(DIMENSIONS, factory)
    index.train(vectors())
    if ids is None:
        index.add(vectors())
    else:
        index.add_with_ids(vectors(), ids)
    faiss.write_index(index, str(path))
    return path


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


Point = tuple[str, dict[str, Any], NDArray[np.float32] | None]


def points(source: FaissSource) -> list[Point]:
    found: list[Point] = []
    for batch in source.read("doc"):
        assert 0 < len(batch.ids) <= BATCH_POINTS
        found += zip(batch.ids, map(dict, batch.payloads), batch.vectors, strict=True)
    assert len(found) == source.count("doc")
    return found


def read(index: Path, metadata: Path | None = None, *, allow_pickle: bool = False) -> list[Point]:
    return points(FaissSource({"doc": (index, metadata)}, allow_pickle=allow_pickle))


def lossy(index: Path, metadata: Path) -> bool:
    return next(iter(FaissSource({"doc": (index, metadata)}).read("doc"))).quantized


def assert_each_has_its_own(found: Sequence[Point], tolerance: float = 1e-5) -> None:
    """Vector n is of case 1000 + n, in whatever order they come."""
    assert len(found) == COUNT
    truth = vectors()
    assert {payload["testCaseId"] for _, payload, _ in found} == set(range(1000, 1000 + COUNT))
    for _, payload, vector in found:
        assert vector is not None
        assert np.abs(vector - truth[payload["testCaseId"] - 1000]).max() <= tolerance


WHOLE = ["Flat", "HNSW8", "IVF8,Flat", "IVF8_HNSW8,Flat", "RR16,Flat", "PCA16,Flat", "NSG8",
         "Flat,RFlat", "IVF8,Flat,RFlat"]  # fmt: skip


@pytest.mark.parametrize("factory", WHOLE)
def test_vectors_come_back_whole_by_position(tmp_path: Path, factory: str) -> None:
    index = write_index(tmp_path / "docs.faiss", factory)
    metadata = write_json(tmp_path / "docs.json", rows())
    found = read(index)
    assert_each_has_its_own(found, 1e-4)
    assert [name for name, _, _ in found] == [str(n) for n in range(COUNT)]
    assert not lossy(index, metadata)


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap2,Flat", "IDMap,HNSW8", "IDMap2,IVF8,Flat", "IVF8,Flat",
                                     "IDMap,PCA16,Flat", "RR16,IVF8,Flat"])  # fmt: skip
@pytest.mark.parametrize("field", ["faiss_id", "id", "vectorId"])
def test_vectors_are_matched_by_sparse_ids(tmp_path: Path, factory: str, field: str) -> None:
    index = write_index(tmp_path / "docs.faiss", factory, SPARSE)
    shuffled = rows(**{field: lambda n: int(SPARSE[n])})
    np.random.Generator(np.random.PCG64(9)).shuffle(shuffled)  # type: ignore[arg-type]
    metadata = write_json(tmp_path / "docs.json", shuffled)
    found = read(index)
    assert_each_has_its_own(found, 1e-4)
    assert {name for name, _, _ in found} == {str(n) for n in SPARSE}
    assert not lossy(index, metadata)


@pytest.mark.parametrize("factory", ["SQ8", "SQ4", "SQbf16", "IVF8,SQ8", "PQ4x4", "IVF8,PQ4x4", "LSH",
                                     "HNSW8_SQ8", "PCA8,Flat", "RQ1x4", "PQ4x4fs"])  # fmt: skip
def test_a_lossy_index_says_so(tmp_path: Path, factory: str) -> None:
    index = write_index(tmp_path / "docs.faiss", factory)
    assert lossy(index, write_json(tmp_path / "rows.json", rows()))


@pytest.mark.parametrize("factory", ["SQfp16", "IVF8,SQfp16", "HNSW8_SQfp16", "L2norm,Flat"])
def test_half_precision_and_length_are_no_loss(tmp_path: Path, factory: str) -> None:
    index = write_index(tmp_path / "docs.faiss", factory)
    metadata = write_json(tmp_path / "rows.json", rows())
    assert not lossy(index, metadata)
    truth = vectors() / np.linalg.norm(vectors(), axis=1, keepdims=True)
    for n, (_, _, vector) in enumerate(read(index, metadata)):
        assert vector is not None
        assert np.linalg.norm(vector / np.linalg.norm(vector) - truth[n]) < 1e-3


def test_what_cannot_be_given_back_is_named(tmp_path: Path) -> None:
    index = write_index(tmp_path / "docs.faiss", "ITQ8,LSH")
    with pytest.raises(SourceError, match=r"docs\.faiss: IndexPreTransform does not give back its vectors"):
        read(index, write_json(tmp_path / "rows.json", rows()))


@pytest.mark.parametrize("factory", ["PCAW16,Flat", "PCAW8,Flat", "IDMap,PCAW16,Flat"])
def test_what_would_come_back_wrong_is_refused(tmp_path: Path, factory: str) -> None:
    """Read from a file, FAISS takes a whitening for a rotation: its vectors come back off by more than their length."""
    index = write_index(tmp_path / "docs.faiss", factory, SPARSE if "IDMap" in factory else None)
    with pytest.raises(SourceError, match=r"PCAMatrix\) in a way FAISS cannot take back"):
        read(
            index,
            write_json(
                tmp_path / "rows.json", rows(**({"faiss_id": lambda n: int(SPARSE[n])} if "IDMap" in factory else {}))
            ),
        )


def test_binary_junk_and_missing_indexes(tmp_path: Path) -> None:
    metadata = write_json(tmp_path / "rows.json", rows())
    binary = faiss.IndexBinaryFlat(DIMENSIONS)
    binary.add(np.zeros((3, DIMENSIONS // 8), np.uint8))
    faiss.write_index_binary(binary, str(tmp_path / "binary.faiss"))
    with pytest.raises(SourceError, match=r"binary\.faiss is a binary FAISS index: it holds one bit"):
        read(tmp_path / "binary.faiss", metadata)
    (tmp_path / "junk.faiss").write_text("this is no index")
    with pytest.raises(SourceError, match=r"junk\.faiss cannot be read as a FAISS index"):
        read(tmp_path / "junk.faiss", metadata)
    with pytest.raises(SourceError, match=r"no FAISS index at .*none\.faiss"):
        read(tmp_path / "none.faiss", metadata)


def test_an_empty_index_has_nothing(tmp_path: Path) -> None:
    faiss.write_index(faiss.IndexFlatIP(DIMENSIONS), str(tmp_path / "docs.faiss"))
    assert read(tmp_path / "docs.faiss", write_json(tmp_path / "rows.json", [])) == []


def test_ids_that_are_there_twice(tmp_path: Path) -> None:
    """Two vectors of one id: an IDMap gives both back, and the row is of both; an IVF cannot, and is refused."""
    twice = SPARSE.copy()
    twice[1] = twice[0]
    unique = [row for n, row in enumerate(rows(faiss_id=lambda n: int(SPARSE[n]))) if n != 1]
    metadata = write_json(tmp_path / "rows.json", unique)
    found = read(write_index(tmp_path / "map.faiss", "IDMap,Flat", twice), metadata)
    assert [name for name, _, _ in found[:3]] == ["729", "729 (2)", str(SPARSE[2])]
    assert [payload["testCaseId"] for _, payload, _ in found[:3]] == [1000, 1000, 1002]
    with pytest.raises(SourceError, match="IndexIVFFlat holds id 729 more than once"):
        read(write_index(tmp_path / "ivf.faiss", "IVF8,Flat", twice), metadata)


def test_after_a_removal_the_ids_still_fit_or_nothing_is_read(tmp_path: Path) -> None:
    left = rows(faiss_id=lambda n: int(SPARSE[n]))
    metadata = write_json(tmp_path / "rows.json", left)
    for factory, certain in (("IDMap,Flat", True), ("IVF8,Flat", True), ("IDMap,IVF8,Flat", False)):
        index = faiss.index_factory(DIMENSIONS, factory)
        index.train(vectors())
        index.add_with_ids(vectors(), SPARSE)
        index.remove_ids(SPARSE[:5] if certain else SPARSE[3:5])
        faiss.write_index(index, str(tmp_path / "docs.faiss"))
        if not certain:
            with pytest.raises(SourceError, match="ids of the IndexIDMap are not those of the vectors inside"):
                read(tmp_path / "docs.faiss", metadata)
            continue
        found = read(tmp_path / "docs.faiss", metadata)
        with_vector = [(name, payload) for name, payload, vector in found if vector is not None]
        assert len(with_vector) == COUNT - 5
        assert [payload["testCaseId"] for _, payload, vector in found if vector is None] == list(range(1000, 1005))
        truth = vectors()
        for _, payload, vector in found:
            assert vector is None or np.array_equal(vector, truth[payload["testCaseId"] - 1000])


# Metadata


def test_every_format_says_the_same(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install -e '.[faiss]')")
    parquet = pytest.importorskip("pyarrow.parquet")
    index = write_index(tmp_path / "docs.faiss", "Flat")
    long = "x" * 200_000  # beyond csv's own limit of a cell
    said = rows(expected=lambda n: ["ok", f'\u4f60\u597d, "{n}"'], description=lambda n: long if n == 7 else "a\nb")
    write_json(tmp_path / "rows.json", said)
    write_json(tmp_path / "nested.json", {"documents": said})
    (tmp_path / "rows.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, said)), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(said), tmp_path / "rows.parquet")
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(said))
    expected = [payload for _, payload, _ in read(index, tmp_path / "rows.json")]
    assert expected == said
    for name in ("nested.json", "rows.jsonl", "rows.parquet", "rows.pkl"):
        found = read(index, tmp_path / name, allow_pickle=True)
        assert [payload for _, payload, _ in found] == said, name
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, said[0])
        writer.writeheader()
        writer.writerows({**row, "expected": json.dumps(row["expected"])} for row in said)
    as_text = [{**row, "testCaseId": str(row["testCaseId"])} for row in said]
    assert [payload for _, payload, _ in read(index, tmp_path / "rows.csv")] == as_text
    assert csv.field_size_limit() == 131_072, "left as it was"


def test_metadata_by_key(tmp_path: Path) -> None:
    by_id = {str(SPARSE[n]): row for n, row in reversed(list(enumerate(rows())))}
    index = write_index(tmp_path / "docs.faiss", "IDMap,Flat", SPARSE)
    assert_each_has_its_own(read(index, write_json(tmp_path / "by_id.json", by_id)))
    by_uuid = {f"0000-{n:x}": row for n, row in enumerate(rows())}
    found = read(write_index(tmp_path / "flat.faiss", "Flat"), write_json(tmp_path / "by_uuid.json", by_uuid))
    assert_each_has_its_own(found)
    assert [name for name, _, _ in found[9:11]] == ["0000-9", "0000-a"], "keys are what the points are called"


def test_the_ids_of_cases_may_be_those_of_the_vectors(tmp_path: Path) -> None:
    index = write_index(tmp_path / "docs.faiss", "IDMap,Flat", np.arange(1000, 1000 + COUNT))
    numbered = list(reversed(rows(id=lambda n: n + 1200)))  # ids of vectors too, some of them, and of others
    assert_each_has_its_own(read(index, write_json(tmp_path / "rows.json", numbered)))


def test_metadata_is_found_beside_its_index(tmp_path: Path) -> None:
    index = write_index(tmp_path / "docs.index", "Flat")
    with pytest.raises(SourceError, match=r"no metadata beside .*docs\.index \(such as docs\.jsonl\)"):
        read(index)
    (tmp_path / "docs.pkl").write_bytes(pickle.dumps(rows()))
    with pytest.raises(SourceError, match=r"docs\.pkl is a pickle"):
        read(index)
    write_json(tmp_path / "docs_metadata.json", rows())
    assert_each_has_its_own(read(index))


class Trap:
    """Unpickling it leaves a file behind, as a pickle can do anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".PKL"])
def test_a_pickle_is_refused_with_the_reason(tmp_path: Path, suffix: str) -> None:
    index, sprung = write_index(tmp_path / "docs.faiss", "Flat"), tmp_path / "sprung"
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(pickle.dumps([Trap(sprung)]))
    with pytest.raises(SourceError, match=r"loading one runs whatever code.*QBENCH_FAISS_ALLOW_PICKLE"):
        read(index, path)
    assert not sprung.exists()
    with pytest.raises(SourceError, match="row 1 is"):
        read(index, path, allow_pickle=True)
    assert sprung.exists(), "asked for, it is loaded"


class Document:
    """As LangChain's."""

    def __init__(self, text: str, metadata: dict[str, Any]) -> None:
        self.page_content, self.metadata = text, metadata


class Docstore:
    """As LangChain's InMemoryDocstore."""

    def __init__(self, documents: dict[str, Document]) -> None:
        self._dict = documents


def test_what_langchain_saves_can_be_read(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index.faiss", "Flat")
    names = {n: f"uuid-{n}" for n in range(COUNT)}
    documents = {names[n]: Document(f"text {n}", {"testCaseId": n}) for n in reversed(range(COUNT))}
    (tmp_path / "index.pkl").write_bytes(pickle.dumps((Docstore(documents), names)))
    found = read(index, allow_pickle=True)
    name, payload, vector = found[42]
    assert (name, payload["page_content"], payload["metadata"]) == ("uuid-42", "text 42", {"testCaseId": 42})
    assert vector is not None
    assert np.array_equal(vector, vectors()[42])
    del documents["uuid-7"]
    (tmp_path / "index.pkl").write_bytes(pickle.dumps((Docstore(documents), names)))
    with pytest.raises(SourceError, match="it has no document 'uuid-7', of the vector at 7"):
        read(index, allow_pickle=True)
    (tmp_path / "index.pkl").write_bytes(b"cno_such_module\nThing\n.")
    with pytest.raises(SourceError, match=r"ModuleNotFoundError.*may need the packages"):
        read(index, allow_pickle=True)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (rows(COUNT - 1), "599 rows for the 600 vectors"),
        (rows(COUNT + 1), "601 rows for the 600 vectors"),
        (rows(faiss_id=lambda n: n + 1), "faiss_id is not the position of the row's vector, .* from 0 to 599"),
        (rows(faiss_id=lambda n: n // 2), "two rows have faiss_id 0"),
        ([*rows(COUNT - 1), "x"], "row 600 is 'x'"),
        ("x", "is no JSON: it holds one str"),
    ],
)
def test_rows_that_may_be_of_another_vector_are_refused(tmp_path: Path, said: Any, told: str) -> None:
    index = write_index(tmp_path / "docs.faiss", "Flat")
    with pytest.raises(SourceError, match=told):
        read(index, write_json(tmp_path / "rows.json", said))


@pytest.mark.parametrize(
    "said",
    [
        rows(),
        rows(id=lambda n: n),  # row numbers, as of any table
        rows(id=lambda n: int(SPARSE[n]) + (n % 2)),  # half of them ids of vectors by chance
        rows(faiss_id=lambda n: n),
    ],
)
def test_without_its_ids_a_map_is_refused(tmp_path: Path, said: Any) -> None:
    index = write_index(tmp_path / "docs.faiss", "IDMap,Flat", SPARSE)
    with pytest.raises(SourceError, match=r"names its vectors by id \(such as 729, 50440, 100151\), and no field"):
        read(index, write_json(tmp_path / "rows.json", said))


def test_an_own_id_that_is_no_position_leaves_the_order_to_decide(tmp_path: Path) -> None:
    index = write_index(tmp_path / "docs.faiss", "Flat")
    assert_each_has_its_own(read(index, write_json(tmp_path / "rows.json", rows(id=lambda n: n + 1))))
    positions = list(reversed(rows(id=lambda n: n)))
    assert_each_has_its_own(read(index, write_json(tmp_path / "rows.json", positions)))


def test_vectors_without_row_and_rows_without_vector_are_both_read(tmp_path: Path) -> None:
    index = write_index(tmp_path / "docs.faiss", "IDMap,Flat", SPARSE)
    said = rows(COUNT + 3, faiss_id=lambda n: int(SPARSE[n]) if n < COUNT else -n)[5:]
    found = read(index, write_json(tmp_path / "rows.json", said))
    assert len(found) == COUNT + 3
    assert [name for name, payload, _ in found if not payload] == [str(n) for n in SPARSE[:5]]
    without = [(name, payload["testCaseId"]) for name, payload, vector in found if vector is None]
    assert without == [("-600", 1600), ("-601", 1601), ("-602", 1602)]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.json", "[", r"rows\.json is no JSON: Expecting value"),
        ("rows.json", "[" * 100_000, r"rows\.json is no JSON"),
        ("rows.jsonl", '{"a": 1}\n{"a": ', r"rows\.jsonl is no JSONL: line 2: "),
        ("rows.csv", "a,b\n1,2\n3\n", r"rows\.csv is no CSV: line 3: not as many cells"),
        ("rows.csv", 'a,b\n1,"2', r"rows\.csv is no CSV: "),
        ("rows.parquet", "x", r"rows\.parquet is no PARQUET: "),
        ("rows.xlsx", "x", r"JSON, JSONL, CSV or Parquet, by its name; \.xlsx is not"),
        ("rows", "x", "by its name; this is not"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path: Path, name: str, content: str, told: str) -> None:
    index = write_index(tmp_path / "docs.faiss", "Flat")
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=told):
        read(index, tmp_path / name)


def test_not_utf8_and_not_there(tmp_path: Path) -> None:
    index = write_index(tmp_path / "docs.faiss", "Flat")
    (tmp_path / "rows.json").write_bytes(b'["\xff"]')
    with pytest.raises(SourceError, match=r"rows\.json is no JSON: 'utf-8' codec"):
        read(index, tmp_path / "rows.json")
    with pytest.raises(SourceError, match=r"none\.json cannot be read: No such file"):
        read(index, tmp_path / "none.json")


def test_a_source_says_what_it_is(tmp_path: Path) -> None:
    docs, steps = write_index(tmp_path / "docs.faiss", "Flat"), write_index(tmp_path / "steps.faiss", "HNSW8")
    write_json(tmp_path / "docs.json", rows())
    write_json(tmp_path / "steps.json", rows())
    source = FaissSource({"step": (steps, None), "doc": (docs, None)})
    assert source.kinds() == ["doc", "step"]
    assert source.provenance == "faiss"
    assert source.describe() == f"FAISS {docs}, {steps}"
    assert source.count("step") == COUNT


# Searching


def cosines() -> NDArray[np.float64]:
    found = vectors().astype(np.float64)
    return np.asarray(found @ QUERY / np.linalg.norm(found, axis=1))


QUERY = np.eye(DIMENSIONS, dtype=np.float32)[3]


@pytest.mark.parametrize("factory", ["Flat", "IDMap,Flat", "HNSW16,Flat", "L2norm,Flat", "IVF4,Flat"])
@pytest.mark.parametrize("inner", [True, False])
def test_a_search_gives_the_nearest_by_the_metric_of_the_index(tmp_path: Path, factory: str, inner: bool) -> None:
    units = vectors() / np.linalg.norm(vectors(), axis=1, keepdims=True)
    index = faiss.index_factory(DIMENSIONS, factory, faiss.METRIC_INNER_PRODUCT if inner else faiss.METRIC_L2)
    index.train(units)
    if factory.startswith(("IDMap", "IVF")):
        index.add_with_ids(units, SPARSE)
        ids = SPARSE.tolist()
    else:
        index.add(units)
        ids = list(range(COUNT))
    if factory.startswith("IVF"):
        index.nprobe = 4
    if factory.startswith("HNSW"):
        index.hnsw.efSearch = COUNT
    faiss.write_index(index, str(tmp_path / "i.faiss"))
    write_json(tmp_path / "i.json", [{**row, "faiss_id": name} for row, name in zip(rows(), ids, strict=True)])
    source = FaissSource({"doc": (tmp_path / "i.faiss", None)})
    order = np.argsort(-cosines())
    found = source.search("doc", QUERY, 12)
    assert [hit.payload["testCaseId"] - 1000 for hit in found] == order[:12].tolist()
    assert [hit.score for hit in found] == pytest.approx(cosines()[order[:12]].tolist(), abs=1e-5)
    names = {payload["testCaseId"]: name for name, payload, _ in points(source)}
    some = [n for n in order.tolist() if n % 50 == 0]
    kept = source.search("doc", QUERY, 5, [names[1000 + n] for n in some])
    assert [hit.payload["testCaseId"] - 1000 for hit in kept] == some[:5]


def test_a_search_never_asks_for_what_is_not_there(tmp_path: Path) -> None:
    write_index(tmp_path / "i.faiss", "Flat")
    write_json(tmp_path / "i.json", rows())
    source = FaissSource({"doc": (tmp_path / "i.faiss", None)})
    assert len(source.search("doc", QUERY, 10_000)) == COUNT
    assert source.search("doc", QUERY, 3, []) == []
    with pytest.raises(SourceError, match="have 16 dimensions, the query 17"):
        source.search("doc", np.ones(17, np.float32), 3)
