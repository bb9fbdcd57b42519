"""Reads the vectors of old FAISS indexes: whatever FAISS can give back, as long as it is sure whose each is.

What lies beside an index, a row for each vector, is read in `faiss_metadata.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.faiss_metadata import Rows, read_rows
from qbench_dagster.adapters.space import KINDS, Kind
from qbench_dagster.adapters.vector_source import BATCH_POINTS, Batch, Hit, SourceError

WHOLE_INDEXES = {"IndexFlat", "IndexFlatL2", "IndexFlatIP", "IndexHNSWFlat", "IndexNSGFlat", "IndexIVFFlat",
                 "IndexRefineFlat"}  # fmt: skip
"""Those that keep the vectors as they were. Of all others only half-precision scalar quantizers do."""

ORTHONORMAL = 1e-3
"""Rotations that FAISS makes are off by 1e-6, whitening by 1."""


@dataclass(frozen=True, slots=True)
class _Opened:
    path: Path
    index: Any
    """Owns all there is inside: FAISS frees the parts with it."""
    parts: Any
    """What reconstructs by key: the index itself, or the one inside an IDMap."""
    keys: NDArray[np.int64]
    """What `parts` calls each vector, in the order of reading."""
    ids: NDArray[np.int64] | None
    """What the index calls each vector, where it has ids of its own; None where they are positions."""
    quantized: bool
    rows: Rows


class FaissSource:
    """The vectors of one or two FAISS indexes, each with its metadata."""

    provenance = "faiss"

    def __init__(self, files: Mapping[Kind, tuple[Path, Path | None]], *, allow_pickle: bool = False) -> None:
        """Open each index and its metadata; without a path to it, the metadata beside the index.

        Indexes are mapped, not read: their pages can be let go of. Raises SourceError.
        """
        self._opened = {kind: _open(*files[kind], allow_pickle) for kind in KINDS if kind in files}

    def describe(self) -> str:
        """The paths of the indexes."""
        return f"FAISS {', '.join(str(opened.path) for opened in self._opened.values())}"

    def kinds(self) -> Sequence[Kind]:
        """The kinds that have an index."""
        return list(self._opened)

    def count(self, kind: Kind) -> int:
        """How many vectors the index has, and rows without vector."""
        opened = self._opened[kind]
        return len(opened.keys) + len(_without_vector(opened))

    def read(self, kind: Kind) -> Iterator[Batch]:
        """All vectors in the order of their keys, then the rows that have none. Raises SourceError."""
        opened = self._opened[kind]
        rows = opened.rows
        names = opened.keys if opened.ids is None else opened.ids
        seen: dict[int, int] = {}
        for start in range(0, len(opened.keys), BATCH_POINTS):
            part = slice(start, start + BATCH_POINTS)
            found = [int(name) for name in names[part]]
            ids = []
            for name in found:
                seen[name] = seen.get(name, 0) + 1
                ids.append(rows.names.get(name, str(name)) + (f" ({seen[name]})" if seen[name] > 1 else ""))
            yield Batch(
                ids=ids,
                payloads=[rows.by_id.get(name, {}) for name in found],
                vectors=[_reconstruct(opened, int(key)) for key in opened.keys[part]],
                quantized=opened.quantized,
            )
        left = _without_vector(opened)
        for start in range(0, len(left), BATCH_POINTS):
            found = left[start : start + BATCH_POINTS]
            yield Batch(
                ids=[rows.names.get(name, str(name)) for name in found],
                payloads=[rows.by_id[name] for name in found],
                vectors=[None] * len(found),
                quantized=opened.quantized,
            )

    def search(self, kind: Kind, vector: NDArray[np.float32], k: int, among: Sequence[str] | None = None) -> list[Hit]:
        """The k vectors nearest to a unit vector, by the index and its metric. Raises SourceError.

        FAISS knows no payloads: who filters asks for more and drops, and so does this for `among`.
        """
        opened = self._opened[kind]
        wanted = None if among is None else set(among)
        asked = k
        while True:
            hits = _nearest(opened, vector, min(asked, opened.index.ntotal))
            kept = [hit for hit in hits if wanted is None or hit.id in wanted]
            if len(kept) >= k or asked >= opened.index.ntotal or wanted is None:
                return kept[:k]
            asked *= 10


def _nearest(opened: _Opened, vector: NDArray[np.float32], k: int) -> list[Hit]:
    if k == 0:
        return []
    if vector.shape != (opened.index.d,):
        raise SourceError(f"{opened.path}: its vectors have {opened.index.d} dimensions, the query {len(vector)}.")
    try:
        scores, names = opened.index.search(np.ascontiguousarray(vector[None], dtype=np.float32), k)
    except RuntimeError as error:
        raise SourceError(f"{opened.path} cannot be searched: {_short(error)}") from None
    rows = opened.rows
    inner = opened.index.metric_type == 0  # METRIC_INNER_PRODUCT; of unit vectors the squared L2 distance is 2 - 2 cos
    return [
        Hit(rows.names.get(name, str(name)), rows.by_id.get(name, {}), float(score if inner else 1 - score / 2))
        for name, score in zip(names[0].tolist(), scores[0].tolist(), strict=True)
        if name >= 0  # an IVF that probes few lists pads with -1
    ]


def _without_vector(opened: _Opened) -> list[int]:
    names = set((opened.keys if opened.ids is None else opened.ids).tolist())
    return [name for name in opened.rows.by_id if name not in names]


def _open(path: Path, metadata: Path | None, allow_pickle: bool) -> _Opened:
    try:
        import faiss  # noqa: PLC0415 (optional)
    except ImportError:
        raise SourceError(
            "A FAISS index is set, and faiss-cpu is not installed. Install it: pip install 'qbench_dagster[faiss]'"
        ) from None
    if not path.is_file():
        raise SourceError(f"There is no FAISS index at {path}. Check QBENCH_FAISS_DOCS and QBENCH_FAISS_STEPS.")
    try:
        index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        if '("IB' in str(error):
            raise SourceError(
                f"{path} is a binary FAISS index: it holds one bit a coordinate, of which no vector can be made. "
                "There is nothing to reuse in it."
            ) from None
        raise SourceError(f"{path} cannot be read as a FAISS index: {_short(error)}") from None
    parts, ids = index, None
    if type(index).__name__ in ("IndexIDMap", "IndexIDMap2"):
        # The map's own reconstruct ends the process where an id is missing, or in IndexIDMap always: it throws in
        # a thread of OpenMP. So it is read by position from what is inside.
        parts, ids = faiss.downcast_index(index.index), faiss.vector_to_array(index.id_map)
    keys = _keys(faiss, parts, path)
    if ids is not None and not (len(ids) == len(keys) and (keys == np.arange(len(keys))).all()):
        raise SourceError(
            f"{path}: the ids of the {type(index).__name__} are not those of the vectors inside, as after remove_ids "
            "on an IVF. Nobody can say whose each vector is; it is not read."
        )
    if ids is None and not (keys == np.arange(len(keys))).all():
        ids = keys
    rows = read_rows(path, metadata, len(keys), ids, allow_pickle)
    opened = _Opened(path, index, parts, keys, ids, _is_lossy(faiss, parts, path), rows)
    if len(keys):
        _reconstruct(opened, int(keys[0]))
    return opened


def _keys(faiss: Any, index: Any, path: Path) -> NDArray[np.int64]:
    """What `index` calls its vectors, ascending. An IVF is made able to look one up."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None or type(index).__name__.startswith("IndexRefine"):
        return np.arange(index.ntotal, dtype=np.int64)
    lists = ivf.invlists
    found = [
        faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
        for number in range(lists.nlist)
        if (size := lists.list_size(number))
    ]
    keys = np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
    if (keys[1:] == keys[:-1]).any():
        raise SourceError(
            f"{path}: {type(index).__name__} holds id {keys[:-1][keys[1:] == keys[:-1]][0]} more than once, and gives "
            "one vector for all. Nobody can say whose it is; the index is not read."
        )
    ivf.set_direct_map_type(faiss.DirectMap.Hashtable)
    return np.asarray(keys, dtype=np.int64)


def _is_lossy(faiss: Any, index: Any, path: Path) -> bool:
    """Whether what the index gives back is less than what was added. Raises SourceError if it is something else."""
    name = type(index).__name__
    if name == "IndexPreTransform":
        chain = [faiss.downcast_VectorTransform(index.chain.at(n)) for n in range(index.chain.size())]
        losses = [_loses(faiss, transform, path) for transform in chain]
        return any(losses) or _is_lossy(faiss, faiss.downcast_index(index.index), path)
    if hasattr(index, "sq"):
        return bool(index.sq.qtype != faiss.ScalarQuantizer.QT_fp16)
    if name == "IndexHNSWSQ":
        return _is_lossy(faiss, faiss.downcast_index(index.storage), path)
    return name not in WHOLE_INDEXES


def _loses(faiss: Any, transform: Any, path: Path) -> bool:
    """Whether a transformation cannot be taken back. Normalising can, for vectors are compared at length 1."""
    name = type(transform).__name__
    if not hasattr(transform, "A"):
        is_exact = name == "CenteringTransform" or (name == "NormalizationTransform" and transform.norm == 2.0)
        return not is_exact
    matrix = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
    # FAISS takes back by transposing, and calls any matrix it reads orthonormal (1.15.1): of a whitening PCA it gives
    # back vectors that are off by more than their length.
    if np.abs(matrix @ matrix.T - np.eye(len(matrix), dtype=np.float32)).max() > ORTHONORMAL:
        raise SourceError(
            f"{path}: the index transforms its vectors ({name}) in a way FAISS cannot take back, such as whitening. "
            "There is nothing to reuse in it; use the index it was made of."
        )
    return bool(transform.d_out < transform.d_in)


def _reconstruct(opened: _Opened, key: int) -> NDArray[np.float32]:
    # One by one: reconstruct_n and reconstruct_batch throw in a thread of OpenMP, which ends the process.
    try:
        return np.asarray(opened.parts.reconstruct(key), dtype=np.float32)
    except RuntimeError as error:
        raise SourceError(
            f"{opened.path}: {type(opened.parts).__name__} does not give back its vectors ({_short(error)}). There is "
            "nothing to reuse in it; use the index it was made of."
        ) from None


def _short(error: RuntimeError) -> str:
    """What FAISS says, without its C++ signature."""
    return str(error).rpartition(".cpp:")[2].partition(": ")[2][:200] or str(error)[:200]
