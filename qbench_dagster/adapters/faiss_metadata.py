"""The rows that lie beside a FAISS index, and which row is of which vector. The index is read in `faiss_source.py`.

That a row tells the text is checked later; that it is this vector's nothing can check. So a row is matched by an id,
or by its position if there are exactly as many rows as vectors, or the files are refused.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.vector_source import SourceError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
PICKLES = (".pkl", ".pickle")
VECTOR_ID_FIELDS = ("faiss_id", "faissId", "vector_id", "vectorId", "index_id")
OWN_ID_FIELDS = ("id", "_id", "testCaseId", "test_case_id", "case_id")
"""Of a table's own ids, which some stores gave to the vectors too: they are the vectors' only if all of them fit."""
POINT_NAME = "id"
_STRUCTURED = ("expected", "metadata")
"""CSV cells that may hold JSON. Of others a leading bracket is text."""


@dataclass(frozen=True, slots=True)
class Rows:
    """`by_id`: what is said of each vector, by its id or position. `names` of some: what to call the point."""

    by_id: Mapping[int, Mapping[str, Any]]
    names: Mapping[int, str]


Loaded = tuple[list[Mapping[str, Any]], list[str] | None]
"""Rows in order, and their keys if they came with such."""


def read_rows(
    index: Path, metadata: Path | None, vectors: int, ids: NDArray[np.int64] | None, allow_pickle: bool
) -> Rows:
    """The rows of `metadata` (or of the file beside `index`) by what the index calls its `vectors`.

    `ids` are the index's own; None where it calls them by position. Raises SourceError.
    """
    path = metadata or _beside(index)
    rows, keys = _load(path, allow_pickle)
    field, numbers = _numbers(rows, keys, vectors, ids)
    if numbers is None:
        if ids is not None:
            raise SourceError(
                f"{path}: {index.name} names its vectors by id (such as {', '.join(map(str, ids[:3]))}), and no field "
                f"of the rows holds these ids. Give each row its vector's id as {VECTOR_ID_FIELDS[0]}."
            )
        named = next((field for field in VECTOR_ID_FIELDS for row in rows[:1] if field in row), None)
        if named is not None:
            raise SourceError(
                f"{path}: the field {named} is not the position of the row's vector, which in {index.name} goes from "
                f"0 to {vectors - 1}. Correct it, or leave it out if rows and vectors are in the same order."
            )
        if len(rows) != vectors:
            raise SourceError(
                f"{path} has {len(rows):,} rows for the {vectors:,} vectors of {index.name}. Without an id nobody can "
                f"say which row is of which vector: give each row its vector's position as {VECTOR_ID_FIELDS[0]}."
            )
        numbers = list(range(len(rows)))
    by_id = dict(zip(numbers, rows, strict=True))
    if len(by_id) < len(rows):
        twice = Counter(numbers).most_common(1)[0][0]
        raise SourceError(f"{path}: two rows have {field} {twice}. Nobody can say which is of that vector.")
    called = keys or [str(row.get(POINT_NAME) or "") for row in rows]
    return Rows(by_id, {number: name for number, name in zip(numbers, called, strict=True) if name})


def _numbers(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str] | None, vectors: int, ids: NDArray[np.int64] | None
) -> tuple[str, list[int] | None]:
    """The field that holds each row's vector id, and the ids; None if no field does for certain.

    A wrong match would give texts the vectors of others, and nothing would show it: 1-based ids of an index that
    counts from 0, or row numbers that happen to be ids of some vectors, match nothing.
    """
    held = set(range(vectors) if ids is None else ids.tolist())
    columns: list[tuple[str, list[Any]]] = [("key", list(keys))] if keys else []
    columns += [(field, [row.get(field) for row in rows]) for field in VECTOR_ID_FIELDS + OWN_ID_FIELDS]
    partly: list[tuple[str, list[int]]] = []
    for field, values in columns:
        numbers = [number for value in values if (number := _whole(value)) is not None]
        if not numbers or len(numbers) < len(rows):
            continue
        found = set(numbers)
        if found == held:
            return field, numbers
        if field in VECTOR_ID_FIELDS:
            fits = found <= held if ids is None else bool(found & held)
        else:
            fits = ids is not None and (found <= held or found >= held)
        if fits:
            partly.append((field, numbers))
    return partly[0] if partly else ("", None)


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else None
    return value if isinstance(value, int) else None


def _beside(index: Path) -> Path:
    stems = [index.with_suffix(suffix) for suffix in SUFFIXES] + [
        index.with_name(f"{index.stem}_metadata{suffix}") for suffix in SUFFIXES
    ]
    found = [path for path in [*stems, *(index.with_suffix(suffix) for suffix in PICKLES)] if path.is_file()]
    if not found:
        raise SourceError(
            f"There is no metadata beside {index} (such as {stems[0].name}). Without it nobody can say whose its "
            "vectors are: set QBENCH_FAISS_DOCS_METADATA or QBENCH_FAISS_STEPS_METADATA."
        )
    return found[0]


def _load(path: Path, allow_pickle: bool) -> Loaded:
    readers: dict[str, Callable[[Path], Loaded]] = {
        ".json": _json, ".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet,
    }  # fmt: skip
    suffix = path.suffix.lower()
    if suffix in PICKLES and not allow_pickle:
        raise SourceError(
            f"{path} is a pickle, and is not read: loading one runs whatever code its writer put there. Write the rows "
            "as JSON, JSONL, CSV or Parquet; or, if you trust who wrote it, set QBENCH_FAISS_ALLOW_PICKLE=true."
        )
    reader = _pickle if suffix in PICKLES else readers.get(suffix)
    if reader is None:
        raise SourceError(f"{path}: metadata is JSON, JSONL, CSV or Parquet, by its name; {suffix or 'this'} is not.")
    try:
        rows, keys = reader(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise SourceError(f"{path} is no {suffix[1:].upper()}: {error}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise SourceError(f"{path}: row {number} is {str(row)[:60]!r}, not an object with fields.")
    return rows, keys


def _json(path: Path) -> Loaded:
    return _rows_of(json.loads(path.read_text(encoding="utf-8-sig")))


def _rows_of(found: Any) -> Loaded:
    """A list of rows; an object of rows by id; or a list in an object of one field."""
    if isinstance(found, Mapping) and len(found) == 1 and isinstance(inner := next(iter(found.values())), list):
        found = inner
    if isinstance(found, Mapping):
        return list(found.values()), [str(key) for key in found]
    if isinstance(found, list):
        return found, None
    raise ValueError(f"it holds one {type(found).__name__}, not rows")


def _jsonl(path: Path) -> Loaded:
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
    return rows, None


def _csv(path: Path) -> Loaded:
    limit = csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than some descriptions
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows: list[Mapping[str, Any]] = []
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"line {reader.line_num}: not as many cells as the header has")
                rows.append({name: _cell(name, cell) for name, cell in row.items()})
            return rows, None
    finally:
        csv.field_size_limit(limit)


def _cell(name: str, cell: str) -> Any:
    if name in _STRUCTURED and cell[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return cell


def _parquet(path: Path) -> Loaded:
    try:
        import pyarrow.parquet  # noqa: PLC0415 (optional)
    except ImportError:
        raise SourceError(
            f"{path} is Parquet, and pyarrow is not installed. Install it: pip install 'qbench_dagster[faiss]'"
        ) from None
    return pyarrow.parquet.read_table(io.BytesIO(path.read_bytes())).to_pylist(), None


def _pickle(path: Path) -> Loaded:
    """Rows as in JSON; or LangChain's (docstore, id of each position)."""
    try:
        found = pickle.loads(path.read_bytes())  # noqa: S301 (asked for)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{type(error).__name__}: {error}. It may need the packages of the program that wrote it"
        ) from None
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        return _rows_of(found)
    documents: Any = getattr(found[0], "_dict", found[0])
    by_position: Mapping[Any, Any] = found[1]
    rows: list[Mapping[str, Any]] = []
    for position, name in by_position.items():
        if (document := documents.get(name)) is None:
            raise ValueError(f"it has no document {name!r:.60}, of the vector at {position}")
        text, said = getattr(document, "page_content", None), getattr(document, "metadata", {})
        rows.append({"faiss_id": position, "id": str(name), "page_content": text, "metadata": said})
    return rows, None
