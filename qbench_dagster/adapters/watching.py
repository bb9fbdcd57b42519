"""What of the export differs from the landing room, found without landing it; and by what a changed file is told.

Nothing is written here. What is done about a difference is decided by `core/watch.py` and the sensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench_dagster.adapters.postgres import Database, fetch_value
from qbench_dagster.adapters.space import Space, active_space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.core.ranges import LARGEST_ID, CaseRange
from qbench_dagster.core.watch import FileId

EVERY_ID = CaseRange("all", 1, LARGEST_ID + 1)
WITHOUT_ID = 0
"""Stands for the rows that have no usable id; they are accounted for in the first range."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Ids of the cases that are not as they were landed, ascending, and how many rows were compared by content."""

    ids: list[int]
    added: int
    changed: int
    removed: int
    compared: int


def identify(path: Path) -> FileId | None:
    """The file as it is now, by two stats; None where there is none, or none that can be reached."""
    try:
        file = path.stat()
    except OSError:
        return None
    try:
        wal = path.with_name(path.name + "-wal").stat()
    except OSError:
        wal = None
    if wal is None or not wal.st_size:  # a reader makes an empty one
        return FileId(file.st_ino, file.st_size, file.st_mtime_ns)
    return FileId(file.st_ino, file.st_size, file.st_mtime_ns, wal.st_size, wal.st_mtime_ns)


def is_published(database: Database) -> bool:
    """Whether any case is published."""
    with database.connection("watch: published") as connection:
        return bool(fetch_value(connection, statement("watch.sql", "is_published")))


def unfilled(database: Database, space: Space) -> str | None:
    """Why nobody may embed into `space` unasked: reads are on another, and it holds no vector. None where one may.

    What a first load of a space may cost is a person's to decide, and settings may have changed by mistake.
    """
    active = active_space(database)
    if active is None or active.name == space.name:
        return None
    with database.connection("watch: space") as connection:
        made = fetch_value(connection, statement("watch.sql", "is_made"), space=space.name)
        if made and fetch_value(connection, statement("watch.sql", "is_filled", space=space.name)):
            return None
    return (
        f"the settings name {space.name}, which holds no vector, and reads are on {active.name}. `qbench run` fills it "
        "(`qbench plan` says what that costs); or set QBENCH_EMBEDDER, QBENCH_MODEL and QBENCH_DIMENSIONS back"
    )


def difference(database: Database, export: TestRailExport, since: float | None) -> Difference:
    """Compare all ids, and the content of the rows whose `updated_on` is at least `since` or tells nothing.

    None compares the content of all rows, those without a usable id included. Of rows that share an id one that
    is gone is not noticed by less: the nightly reconcile lands them all.
    """
    ids = set(export.case_ids())
    seen: defaultdict[int, set[bytes]] = defaultdict(set)
    compared, position = 0, export.columns.index("id")
    for batch in export.rows(EVERY_ID, since):
        for row in batch:
            seen[row.values[position]].add(row.content_hash)
        compared += len(batch)
    with database.connection("watch", long=True) as connection:
        if since is None:
            if without := {row.content_hash for row in export.rows_without_id()}:
                seen[WITHOUT_ID] = without
                ids.add(WITHOUT_ID)
            known = _by_id(connection.execute(statement("watch.sql", "landed_hashes"), binary=True))
            landed = set(known)
        else:
            landed = {key for (key,) in connection.execute(statement("watch.sql", "landed_ids"), binary=True)}
            looked_up = {"ids": list(seen)}
            known = _by_id(connection.execute(statement("watch.sql", "landed_hashes_of"), looked_up, binary=True))
    added, removed = ids - landed, landed - ids
    # Of rows that share an id, some may be older than `since`.
    changed = {key for key in seen if key not in added and not _same(seen[key], known[key], whole=since is None)}
    return Difference(sorted(added | removed | changed), len(added), len(changed), len(removed), compared)


def _same(seen: set[bytes], known: set[bytes], *, whole: bool) -> bool:
    return seen == known if whole else seen <= known


def _by_id(rows: Iterable[tuple[Any, ...]]) -> defaultdict[int, set[bytes]]:
    found: defaultdict[int, set[bytes]] = defaultdict(set)
    for case_id, content_hash in rows:
        found[case_id].add(content_hash)
    return found
