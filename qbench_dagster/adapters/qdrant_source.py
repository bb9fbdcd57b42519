"""Reads the points of an old Qdrant: a server, or a folder in local mode. Nothing of it is changed.

Local mode reads the whole folder into memory when it is opened, and what it reads are pickles: open no folder that
a stranger wrote.
"""

from __future__ import annotations

import logging
import pickle
import sqlite3
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.secrets import UnusableKeyError, hidden, usable_key
from qbench_dagster.adapters.space import KINDS, Kind
from qbench_dagster.adapters.vector_source import BATCH_POINTS, Batch, Hit, SourceError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

TIMEOUT_S = 120
WHOLE_DATATYPES = {None, "float32", "float16"}
"""How a coordinate may be kept without losing more than halfvec does; `uint8` and the `turbo` types lose more."""
UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    AttributeError,
    EOFError,
    pickle.PickleError,
    sqlite3.Error,
)
"""What the client lets through of a damaged folder: it reads JSON, SQLite and pickles without looking."""
_UNNAMED = ""

log = logging.getLogger(__name__)


class QdrantSource:
    """The vectors of two collections of a Qdrant. Use as a context manager, or `close` it."""

    provenance = "qdrant"

    def __init__(
        self,
        collections: Mapping[Kind, str],
        *,
        dimensions: int,
        url: str | None = None,
        path: Path | None = None,
        api_key: str | None = None,
        vector_name: str | None = None,
        required: Container[Kind] = (),
    ) -> None:
        """Open the server at `url`, with `api_key` if it asks for one, or else the folder `path`.

        `vector_name` is read of points with several vectors; without it the unnamed one, the only one, or the only
        one of `dimensions`. One of the collections may be missing, unless it is `required` (a person named it).
        Raises SourceError.
        """
        try:
            self._key = usable_key("QBENCH_QDRANT_API_KEY", api_key or "")
        except UnusableKeyError as error:
            raise SourceError(str(error)) from None
        self._where = _without_credentials(url) if url else str(path)
        self._names: dict[Kind, tuple[str, str, bool]] = {}  # collection, vector, quantized
        self._metrics: dict[Kind, str] = {}
        self._client = self._open(url, path)
        try:
            for kind in KINDS:
                name = collections.get(kind)
                vectors = self._vectors(name) if name else None
                if name and vectors is not None:
                    chosen = _choose(name, vectors, vector_name, dimensions)
                    datatype = vectors[chosen].datatype
                    self._metrics[kind] = str(getattr(vectors[chosen].distance, "value", vectors[chosen].distance))
                    self._names[kind] = (name, chosen, getattr(datatype, "value", datatype) not in WHOLE_DATATYPES)
            missing = [(kind, name) for kind, name in collections.items() if kind not in self._names]
            if missing:
                told = (
                    f"Qdrant at {self._where} has no collection {' and no '.join(name for _, name in missing)}; it has "
                    f"{', '.join(self._collections()) or 'none at all'}. Set QBENCH_QDRANT_DOCS and "
                    "QBENCH_QDRANT_STEPS to the names of yours."
                )
                if not self._names or any(kind in required for kind, _ in missing):
                    raise SourceError(told)
                log.warning(told)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> QdrantSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the server, or of the folder and its lock."""
        self._client.close()

    def describe(self) -> str:
        """Where it is and which collections are read; no key, no password."""
        names = (f"{name}.{vector}" if vector else name for name, vector, _ in self._names.values())
        return f"Qdrant {self._where} ({', '.join(names)})"

    def kinds(self) -> Sequence[Kind]:
        """The kinds whose collection there is."""
        return list(self._names)

    def count(self, kind: Kind) -> int:
        """How many points its collection has."""
        with self._errors():
            return int(self._client.count(self._names[kind][0], exact=True).count)

    def read(self, kind: Kind) -> Iterator[Batch]:
        """All points by id, page by page: each page says where the next begins. Raises SourceError."""
        name, vector, quantized = self._names[kind]
        offset: Any = None
        while True:
            with self._errors():
                records, offset = self._client.scroll(
                    name,
                    limit=BATCH_POINTS,
                    offset=offset,
                    with_payload=True,
                    with_vectors=[vector] if vector else True,
                )
            if records:
                yield Batch(
                    ids=[str(record.id) for record in records],
                    payloads=[record.payload or {} for record in records],
                    vectors=[_vector(record.vector, vector) for record in records],
                    quantized=quantized,
                )
            if offset is None:
                return

    def search(self, kind: Kind, vector: NDArray[np.float32], k: int, among: Sequence[str] | None = None) -> list[Hit]:
        """The k points nearest to a unit vector, as the collection is configured to search. Raises SourceError."""
        from qdrant_client import models  # noqa: PLC0415

        name, using, _ = self._names[kind]
        only = None
        if among is not None:
            ids: list[Any] = [int(each) if each.isdigit() else each for each in among]
            only = models.Filter(must=[models.HasIdCondition(has_id=ids)])
        with self._errors():
            found = self._client.query_points(
                name, query=vector.tolist(), using=using or None, limit=k, query_filter=only, with_payload=True
            ).points
        metric = self._metrics[kind]
        return [Hit(str(point.id), point.payload or {}, _nearness(metric, point.score)) for point in found]

    def _open(self, url: str | None, path: Path | None) -> QdrantClient:
        try:
            from qdrant_client import QdrantClient  # noqa: PLC0415 (optional, and 1 s to import)
        except ImportError:
            raise SourceError(
                "Qdrant is set, and qdrant-client is not installed. Install it: pip install 'qbench_dagster[qdrant]'"
            ) from None
        if url:
            with self._errors():
                return QdrantClient(url=url, api_key=self._key or None, timeout=TIMEOUT_S, check_compatibility=False)
        if path is None:
            raise SourceError("Neither QBENCH_QDRANT_URL nor QBENCH_QDRANT_PATH is set.")
        if not (path / "meta.json").is_file():  # the client would make an empty one there
            raise SourceError(
                f"{path} is no folder of a Qdrant in local mode: it has no meta.json. Set QBENCH_QDRANT_PATH to the "
                "folder that QdrantClient(path=…) was given; the storage of a Qdrant server is read through its URL."
            )
        with self._errors(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Local mode is not recommended")
            return QdrantClient(path=str(path))

    def _collections(self) -> list[str]:
        with self._errors():
            return sorted(each.name for each in self._client.get_collections().collections)

    def _vectors(self, collection: str) -> dict[str, Any] | None:
        """Parameters of the collection's dense vectors by name, the unnamed one under ""; None if it is missing."""
        from qdrant_client.http.exceptions import UnexpectedResponse  # noqa: PLC0415

        with self._errors():
            try:
                params = self._client.get_collection(collection).config.params
            except ValueError:  # what local mode says of a collection it has not
                return None
            except UnexpectedResponse as error:
                if error.status_code == 404:
                    return None
                raise
        vectors = params.vectors or {}
        return dict(vectors) if isinstance(vectors, dict) else {_UNNAMED: vectors}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the client raises, as SourceError: without the key, a body or a header of the server's."""
        from qdrant_client.http.exceptions import ApiException, UnexpectedResponse  # noqa: PLC0415

        try:
            yield
        except UnexpectedResponse as error:
            what = f"{error.status_code} {error.reason_phrase}"
            if error.status_code in (401, 403):
                what += ". Set QBENCH_QDRANT_API_KEY to a key that may read"
            elif error.status_code == 404:
                what += ". Is it a Qdrant? Its REST port is 6333 unless the URL says another"
            raise SourceError(f"Qdrant at {self._where} answered {what}.") from None
        except ApiException as error:
            raise SourceError(
                f"Qdrant at {self._where} cannot be reached: {self._hidden(getattr(error, 'source', error))}. Check "
                "QBENCH_QDRANT_URL and that the server runs (port 6333 unless the URL says another)."
            ) from None
        except UNREADABLE as error:
            if "already accessed" in str(error):
                raise SourceError(
                    f"The Qdrant folder {self._where} is open in another process. Stop that, or read a copy of it."
                ) from None
            hint = " The client has to be able to write there, if only its lock file." * isinstance(error, OSError)
            raise SourceError(f"Qdrant at {self._where} cannot be read: {self._hidden(error)}.{hint}") from None

    def _hidden(self, error: object) -> str:
        return hidden(f"{type(error).__name__}: {error}", [self._key])


def _choose(collection: str, vectors: Mapping[str, Any], wanted: str | None, dimensions: int) -> str:
    """Name of the vector to read. Raises SourceError where there is none, or more than one that might be meant."""
    known = ", ".join(f"{name or '(unnamed)'} of {each.size}" for name, each in sorted(vectors.items()))
    if not vectors:
        raise SourceError(f"The points of collection {collection} have sparse vectors only: there is nothing to reuse.")
    if wanted is not None:
        chosen = [name for name in vectors if name == wanted]
    elif _UNNAMED in vectors:
        chosen = [_UNNAMED]
    else:
        fitting = [name for name, each in vectors.items() if each.size == dimensions]
        chosen = list(vectors) if len(vectors) == 1 else fitting
    if len(chosen) != 1:
        raise SourceError(
            f"The points of collection {collection} have the vectors {known}"
            + (f", and none named {wanted}" if wanted is not None else f", {len(chosen)} of {dimensions} dimensions")
            + ". Set QBENCH_QDRANT_VECTOR to the one to read."
        )
    if vectors[chosen[0]].multivector_config is not None:
        raise SourceError(
            f"Vector {chosen[0] or '(unnamed)'} of collection {collection} is a multivector, several a point: such "
            "cannot be the vector of a text. Set QBENCH_QDRANT_VECTOR to another."
        )
    return chosen[0]


def _vector(found: Any, name: str) -> NDArray[np.float32] | None:
    """The vector `name` of a point; None where it has none."""
    if isinstance(found, dict):
        found = found.get(name)
    return np.asarray(found, dtype=np.float32) if isinstance(found, list) and found else None


def _nearness(metric: str, score: float) -> float:
    """Qdrant's score as one that is larger where a point is nearer: of two unit vectors the cosine, if it tells."""
    if metric == "Euclid":
        return 1 - score * score / 2
    return -score if metric == "Manhattan" else score


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
