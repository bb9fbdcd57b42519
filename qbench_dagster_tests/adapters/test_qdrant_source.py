"""Qdrant in local mode and over HTTP: every point once, the right vector of it, and no key in any message."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qbench_dagster.adapters.qdrant_source import QdrantSource
from qbench_dagster.adapters.space import Kind
from qbench_dagster.adapters.vector_source import BATCH_POINTS, SourceError

qdrant_client = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed (pip install '.[qdrant]')")
from qdrant_client import QdrantClient, models  # noqa: E402

DIMENSIONS = 8
COUNT = 2 * BATCH_POINTS + 76
KEY = "sk-of-the-old-qdrant-1234567890"
COLLECTIONS: dict[Kind, str] = {"doc": "test_docs", "step": "test_steps"}


def params(size: int = DIMENSIONS, **more: Any) -> models.VectorParams:
    return models.VectorParams(size=size, distance=more.pop("distance", models.Distance.COSINE), **more)


def vectors(count: int, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    return np.random.Generator(np.random.PCG64(3)).standard_normal((count, dimensions)).astype(np.float32)


def point_id(n: int) -> Any:
    """Integers far apart and UUIDs, as an ingest that was changed half way leaves them."""
    return n * 8_589_934_593 if n % 2 else str(uuid.UUID(int=n * 2**96 + n, version=4))


def fill(client: QdrantClient, name: str = "test_docs", vectors_config: Any = None, count: int = COUNT) -> None:
    client.create_collection(name, vectors_config=vectors_config or params())
    storage = client._client.collections[name].storage  # type: ignore[attr-defined]
    if storage is not None:  # it commits point by point, and tests need not outlive a power cut
        storage.storage.execute("PRAGMA synchronous = OFF")
        storage.storage.execute("PRAGMA journal_mode = MEMORY")
    client.upsert(
        name,
        [
            models.PointStruct(id=point_id(n), vector=row.tolist(), payload={"n": n})
            for n, row in enumerate(vectors(count))
        ],
    )


@contextmanager
def folder(path: Path) -> Iterator[QdrantClient]:
    client = QdrantClient(path=str(path))
    try:
        yield client
    finally:
        client.close()


def read(source: QdrantSource, kind: Kind = "doc") -> dict[int, tuple[str, NDArray[np.float32] | None, bool]]:
    found: dict[int, tuple[str, NDArray[np.float32] | None, bool]] = {}
    total = 0
    for batch in source.read(kind):
        assert 0 < len(batch.ids) <= BATCH_POINTS
        total += len(batch.ids)
        assert total <= COUNT, "a page comes twice"
        for name, payload, vector in zip(batch.ids, batch.payloads, batch.vectors, strict=True):
            found[payload["n"]] = (name, vector, batch.quantized)
    assert len(found) == total == source.count(kind)
    return found


def assert_all_there(found: dict[int, tuple[str, NDArray[np.float32] | None, bool]], count: int = COUNT) -> None:
    truth = vectors(count)
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    assert set(found) == set(range(count))
    for n, (name, vector, _) in found.items():
        assert name == str(point_id(n))
        assert vector is not None
        assert vector.dtype == np.float32
        assert np.abs(vector / np.linalg.norm(vector) - truth[n]).max() < 1e-6


def test_a_folder_is_read_page_by_page(tmp_path: Path) -> None:
    with folder(tmp_path / "q") as client:
        fill(client)
    with QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=tmp_path / "q") as source:
        assert source.kinds() == ["doc"], "a collection that is missing is no error while the other is there"
        assert source.describe() == f"Qdrant {tmp_path / 'q'} (test_docs)"
        assert_all_there(read(source))
        assert not any(quantized for _, _, quantized in read(source).values())
        assert list(read(source)) == list(read(source)), "always in the same order"


def test_both_collections_and_lengths_as_they_are(tmp_path: Path) -> None:
    with folder(tmp_path) as client:
        fill(client, "cases", params(distance=models.Distance.DOT), 20)
        fill(client, "parts", params(distance=models.Distance.EUCLID), 30)
    names: dict[Kind, str] = {"doc": "cases", "step": "parts"}
    with QdrantSource(names, dimensions=DIMENSIONS, path=tmp_path) as source:
        assert source.kinds() == ["doc", "step"]
        assert_all_there(read(source), 20)
        assert_all_there(read(source, "step"), 30)
        assert source.describe().endswith("(cases, parts)")
    with QdrantSource(names, dimensions=DIMENSIONS, path=tmp_path) as source:
        assert source.count("doc") == 20, "the folder's lock was let go of"


def named(tmp_path: Path, config: dict[str, Any], points: list[Any], sparse: dict[str, Any] | None = None) -> Path:
    with folder(tmp_path / "q") as client:
        client.create_collection("test_docs", vectors_config=config, sparse_vectors_config=sparse)
        if points:
            client.upsert(
                "test_docs", [models.PointStruct(id=n, vector=v, payload={"n": n}) for n, v in enumerate(points, 1)]
            )
    return tmp_path / "q"


ONE = [1.0] + [0.0] * (DIMENSIONS - 1)
OTHER = [0.0, 1.0] + [0.0] * (DIMENSIONS - 2)


def first_vector(path: Path, name: str | None = None, dimensions: int = DIMENSIONS) -> Any:
    with QdrantSource(COLLECTIONS, dimensions=dimensions, path=path, vector_name=name) as source:
        vector = read(source)[1][1]
        return None if vector is None else (source.describe().rpartition("(")[2], vector.tolist())


def test_which_of_several_vectors_is_read(tmp_path: Path) -> None:
    only = named(tmp_path / "only", {"text": params()}, [{"text": ONE}])
    assert first_vector(only) == ("test_docs.text)", ONE)
    assert first_vector(only, dimensions=99)[1] == ONE, "the only one there is, whatever its size"
    fitting = named(tmp_path / "fit", {"text": params(), "image": params(4)}, [{"text": ONE, "image": [1, 0, 0, 0]}])
    assert first_vector(fitting) == ("test_docs.text)", ONE)
    assert first_vector(fitting, "image")[1] == [1, 0, 0, 0]
    two = named(tmp_path / "two", {"title": params(), "text": params()}, [{"title": ONE, "text": OTHER}])
    assert first_vector(two, "text")[1] == OTHER
    with pytest.raises(
        SourceError, match=r"vectors text of 8, title of 8, 2 of 8 dimensions. Set QBENCH_QDRANT_VECTOR"
    ):
        first_vector(two)
    with pytest.raises(SourceError, match="vectors text of 8, title of 8, and none named body"):
        first_vector(two, "body")
    unnamed = named(tmp_path / "unnamed", {"image": params(), "": params()}, [{"": ONE, "image": OTHER}])
    assert first_vector(unnamed) == ("test_docs)", ONE)
    assert first_vector(unnamed, "image")[1] == OTHER


def test_a_point_may_lack_the_vector(tmp_path: Path) -> None:
    path = named(tmp_path, {"title": params(), "text": params(4)}, [{"text": [1, 0, 0, 0]}, {"title": ONE}])
    with QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=path) as source:
        found = read(source)
    assert found[1][1] is None
    assert found[2][1] is not None


def test_sparse_vectors_are_passed_over(tmp_path: Path) -> None:
    sparse = {"words": models.SparseVectorParams()}
    words = models.SparseVector(indices=[3], values=[1.0])
    path = named(tmp_path / "both", {"text": params()}, [{"text": ONE, "words": words}], sparse)
    assert first_vector(path)[1] == ONE
    with folder(tmp_path / "beside") as client:
        client.create_collection("test_docs", vectors_config=params(), sparse_vectors_config=sparse)
        client.upsert("test_docs", [models.PointStruct(id=1, vector={"": ONE, "words": words}, payload={"n": 1})])
    assert first_vector(tmp_path / "beside")[1] == ONE
    only = named(tmp_path / "sparse", {}, [{"words": words}], sparse)
    with pytest.raises(SourceError, match="test_docs have sparse vectors only"):
        first_vector(only)


def test_a_multivector_is_refused(tmp_path: Path) -> None:
    config = {"late": params(multivector_config=models.MultiVectorConfig(comparator="max_sim"))}
    path = named(tmp_path, config, [{"late": [ONE, OTHER]}])
    with pytest.raises(SourceError, match="Vector late of collection test_docs is a multivector"):
        first_vector(path)


@pytest.mark.parametrize(
    ("datatype", "quantized"),
    [(None, False), ("float32", False), ("float16", False), ("uint8", True), ("turbo8", True)],
)
def test_the_datatype_tells_what_is_lossy(tmp_path: Path, datatype: str | None, quantized: bool) -> None:
    path = named(tmp_path, {"text": params(datatype=datatype)}, [{"text": ONE}])
    with QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=path) as source:
        assert read(source)[1][2] is quantized


def test_no_folder_is_made_where_none_is(tmp_path: Path) -> None:
    (tmp_path / "storage" / "collections").mkdir(parents=True)
    for path in (tmp_path / "none", tmp_path / "storage"):
        with pytest.raises(SourceError, match=r"no folder of a Qdrant in local mode: it has no meta\.json"):
            QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=path)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["collections", "storage"]


def test_a_folder_that_is_open_elsewhere(tmp_path: Path) -> None:
    with folder(tmp_path) as client:
        fill(client, count=3)
        with pytest.raises(SourceError, match="is open in another process"):
            QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=tmp_path)
    with QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=tmp_path) as source:
        assert source.count("doc") == 3


def test_a_damaged_folder(tmp_path: Path) -> None:
    with folder(tmp_path) as client:
        fill(client, count=3)
    (tmp_path / "collection" / "test_docs" / "storage.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(SourceError, match=r"cannot be read: DatabaseError: file is not a database"):
        QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=tmp_path)
    store = tmp_path / "collection" / "test_docs" / "storage.sqlite"
    store.unlink()
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("CREATE TABLE points (id TEXT PRIMARY KEY, point BLOB)")
        connection.execute("INSERT INTO points VALUES ('x', ?)", (b"no pickle",))
    with pytest.raises(SourceError, match="cannot be read: UnpicklingError"):
        QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(SourceError, match="cannot be read: JSONDecodeError"):
        QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=tmp_path)


def test_collections_of_other_names_are_named(tmp_path: Path) -> None:
    with folder(tmp_path) as client:
        fill(client, "cases_v2", count=1)
        fill(client, "cases_v1", count=1)
    with pytest.raises(SourceError, match="no collection test_docs and no test_steps; it has cases_v1, cases_v2"):
        QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=tmp_path)


# Searching


def searched(source: QdrantSource, k: int, among: list[int] | None = None) -> list[tuple[int, float]]:
    query = np.asarray(ONE, np.float32)
    chosen = None if among is None else [str(point_id(n)) for n in among]
    hits = source.search("doc", query, k, chosen)
    assert [hit.id for hit in hits] == [str(point_id(hit.payload["n"])) for hit in hits]
    return [(hit.payload["n"], hit.score) for hit in hits]


def nearest(k: int, among: list[int] | None = None) -> list[tuple[int, float]]:
    """The test's own brute force: the k nearest by cosine."""
    found = vectors(COUNT).astype(np.float64)
    cosines = found @ np.asarray(ONE) / np.linalg.norm(found, axis=1)
    order = [n for n in np.argsort(-cosines).tolist() if among is None or n in among]
    return [(n, float(cosines[n])) for n in order[:k]]


@pytest.mark.parametrize("distance", [models.Distance.COSINE, models.Distance.DOT, models.Distance.EUCLID])
def test_a_search_gives_the_nearest_with_their_cosines(tmp_path: Path, distance: models.Distance) -> None:
    with folder(tmp_path / "q") as client:
        client.create_collection("test_docs", vectors_config=params(distance=distance))
        units = vectors(COUNT)[:100] / np.linalg.norm(vectors(COUNT)[:100], axis=1, keepdims=True)
        client.upsert("test_docs", [models.PointStruct(id=point_id(n), vector=units[n].tolist(), payload={"n": n})
                                    for n in range(100)])  # fmt: skip
    with QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, path=tmp_path / "q") as source:
        expected = nearest(7, list(range(100)))
        found = searched(source, 7)
        assert [n for n, _ in found] == [n for n, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)
        few = list(range(10, 30, 3))
        assert [n for n, _ in searched(source, 9, few)] == [n for n, _ in nearest(9, few)]
        assert searched(source, 5, []) == []


# Over HTTP


class Facade(ThreadingHTTPServer):
    """What a Qdrant server answers, from a client in local mode behind it. Asks for a key if it has one."""

    def __init__(self, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.client = QdrantClient(":memory:")
        self.lock = threading.Lock()
        self.key = key
        self.scrolls: list[dict[str, Any]] = []
        self.breaks_at = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Facade

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, asked: dict[str, Any]) -> None:
        if self.server.key is not None and self.headers.get("api-key") != self.server.key:
            status, result = 401, {"status": {"error": f"{self.headers.get('api-key')} is no key"}}
        else:
            with self.server.lock:
                status, result = self.found(self.path.partition("?")[0].strip("/").split("/"), asked)
        body = json.dumps(result).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def found(self, path: list[str], asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        client = self.server.client
        result: Any
        if path == ["collections"]:
            result = client.get_collections()
        elif path[0] != "collections" or not client.collection_exists(path[1]):
            return 404, {"status": {"error": "Not found"}}
        elif path[2:] == []:
            result = client.get_collection(path[1])
        elif path[2:] == ["points", "count"]:
            result = client.count(path[1], exact=True)
        elif path[2:] == ["points", "scroll"]:
            self.server.scrolls.append(asked)
            if len(self.server.scrolls) == self.server.breaks_at:
                return 500, {"status": {"error": "out of memory"}}
            records, offset = client.scroll(
                path[1], limit=asked["limit"], offset=asked.get("offset"), with_payload=asked["with_payload"],
                with_vectors=asked["with_vector"],
            )  # fmt: skip
            result = models.ScrollResult(points=records, next_page_offset=offset)
        elif path[2:] == ["points", "query"]:
            only = models.Filter.model_validate(asked["filter"]) if asked.get("filter") else None
            result = client.query_points(
                path[1], query=asked["query"]["nearest"], limit=asked["limit"], query_filter=only,
                with_payload=asked["with_payload"],
            )  # fmt: skip
        else:
            return 404, {"status": {"error": "Not found"}}
        return 200, {"result": result.model_dump(mode="json"), "status": "ok", "time": 0.0}


@pytest.fixture
def facade() -> Iterator[Facade]:
    with Facade(KEY) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
        server.client.close()


def serve(facade: Facade, key: str | None = KEY, user: str = "") -> QdrantSource:
    url = facade.url.replace("//", f"//{user}")
    return QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, url=url, api_key=key)


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_server_is_read_page_by_page(facade: Facade, recwarn: pytest.WarningsRecorder) -> None:
    fill(facade.client)
    with serve(facade) as source:
        assert source.kinds() == ["doc"]
        assert source.describe() == f"Qdrant {facade.url} (test_docs)"
        assert_all_there(read(source))
    assert facade.scrolls[0].get("offset") is None
    offsets = [scroll["offset"] for scroll in facade.scrolls[1:]]
    assert len(offsets) == 2
    assert set(offsets) <= {point_id(n) for n in range(COUNT)}, "the next page begins where the last one said"
    assert not [str(each.message) for each in recwarn if "version" in str(each.message)]


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_only_the_vector_that_is_read_is_sent(facade: Facade) -> None:
    facade.client.create_collection("test_docs", vectors_config={"text": params(), "image": params(4)})
    vector = {"text": ONE, "image": [1.0, 0, 0, 0]}
    facade.client.upsert("test_docs", [models.PointStruct(id=1, vector=vector, payload={"n": 1})])
    with serve(facade) as source:
        _, found, _ = read(source)[1]
    assert found is not None
    assert found.tolist() == ONE
    assert [scroll["with_vector"] for scroll in facade.scrolls] == [["text"]]


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize("wrong", [None, "sk-some-other-key-0987654321"])
def test_a_wrong_key_is_refused_and_never_shown(facade: Facade, wrong: str | None) -> None:
    fill(facade.client, count=1)
    with pytest.raises(SourceError, match=r"answered 401 Unauthorized\. Set QBENCH_QDRANT_API_KEY") as caught:
        serve(facade, wrong, "somebody:secret-word@")
    assert caught.value.__suppress_context__
    shown = str(caught.value) + repr(caught.value.__cause__)
    assert "sk-" not in shown
    assert "secret-word" not in shown


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_key_from_a_mounted_file_ends_with_its_line(facade: Facade) -> None:
    fill(facade.client, count=3)
    with serve(facade, f" {KEY}\r\n") as source:
        assert source.count("doc") == 3


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize("key", ["planted-secret\n-1234", "planted-sécret-1234", "planted secret", "planted\x00secret"])
def test_a_key_that_no_header_can_hold_is_refused_and_never_shown(facade: Facade, key: str) -> None:
    fill(facade.client, count=1)
    with pytest.raises(SourceError, match="QBENCH_QDRANT_API_KEY holds white space or characters") as caught:
        serve(facade, key)
    assert caught.value.__suppress_context__
    assert "planted" not in str(caught.value)
    assert facade.scrolls == []


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_server_without_the_collections_and_one_that_is_none(facade: Facade) -> None:
    with pytest.raises(SourceError, match="it has none at all"):
        serve(facade)
    fill(facade.client, "other", count=1)
    with pytest.raises(SourceError, match=r"it has other\. Set QBENCH_QDRANT_DOCS"):
        serve(facade)


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_server_that_breaks_off_ends_the_pass(facade: Facade) -> None:
    """And is not taken for the end of the points."""
    fill(facade.client)
    facade.breaks_at = 2
    with serve(facade) as source:
        pages = source.read("doc")
        next(pages)
        with pytest.raises(SourceError, match="answered 500") as caught:
            next(pages)
    assert "out of memory" not in str(caught.value), "a body may hold anything"


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_nobody_at_home(facade: Facade) -> None:
    url = facade.url
    facade.shutdown()
    facade.server_close()
    with pytest.raises(SourceError, match=r"cannot be reached: .*Connection refused.*port 6333") as caught:
        QdrantSource(COLLECTIONS, dimensions=DIMENSIONS, url=url, api_key=KEY)
    assert KEY not in str(caught.value)


def test_a_collection_that_a_person_named_has_to_be_there(tmp_path: Path) -> None:
    with folder(tmp_path) as client:
        fill(client, "test_docs", count=1)
    names: dict[Kind, str] = {"doc": "test_docs", "step": "steps"}
    with pytest.raises(SourceError, match=r"no collection steps; it has test_docs. Set QBENCH_QDRANT_DOCS and"):
        QdrantSource(names, dimensions=8, path=tmp_path, required=["step"])
    with QdrantSource(names, dimensions=8, path=tmp_path, required=["doc"]) as source:
        assert source.kinds() == ["doc"]


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_server_is_searched(facade: Facade) -> None:
    fill(facade.client)
    with serve(facade) as source:
        found = searched(source, 10)
        assert [n for n, _ in found] == [n for n, _ in nearest(10)]
        assert [n for n, _ in searched(source, 3, [5, 8, 13, 21])] == [n for n, _ in nearest(3, [5, 8, 13, 21])]
