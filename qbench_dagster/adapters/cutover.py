"""Embedding spaces side by side: which there are, moving reads to another and back, dropping one.

What the views and functions are is `publishing.py`; what a space must hold to be read is `parity.py`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import psycopg

from qbench_dagster.adapters.comparing import ComparisonSettings
from qbench_dagster.adapters.indexing import ensure_index
from qbench_dagster.adapters.ledger import spent
from qbench_dagster.adapters.parity import evaluate
from qbench_dagster.adapters.postgres import Connection, Database, DatabaseError, fetch_dicts, fetch_value
from qbench_dagster.adapters.publishing import FACE_LOCK, replace_face
from qbench_dagster.adapters.queries import read_log
from qbench_dagster.adapters.space import KINDS, Kind, Space, active_space, writing
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.model import TEXT_RECIPE
from qbench_dagster.core.ranges import CaseRange

Building = Callable[[str, int, int], None]


class ChecksFailedError(DatabaseError):
    """Reads stay where they are, because an invariant does not hold in the space they were to move to."""

    def __init__(self, space: str, report: Mapping[str, Any]) -> None:
        failed = [finding for finding in report["findings"] if not finding["passed"]]
        super().__init__(
            f"Reads stay where they are: {len(failed)} of {len(report['findings'])} checks of {space} do not hold. "
            + " ".join(f"{finding['title']}: {finding['summary']}." for finding in failed)
        )
        self.report = dict(report)


@dataclass(frozen=True, slots=True)
class CutOver:
    """Where reads were and are. `report_id` is the row of store.parity_reports that allowed it, None for a way back."""

    from_space: str
    to_space: str
    moved: bool
    report_id: int | None = None
    report: Mapping[str, Any] | None = None


def find_space(database: Database, name: str) -> Space:
    """The space of that name. Raises DatabaseError that lists those there are."""
    with database.connection("find space") as connection:
        return _find(connection, name)


def indexed_as(database: Database, space: Space, kind: Kind, default: IndexSettings) -> IndexSettings:
    """How one table of the space is indexed and searched; `default` where it is not yet.

    The settings speak of the space they name. Another one keeps what it has: rebuilding it would change what is read.
    """
    with database.connection("find index") as connection:
        found = fetch_dicts(connection, statement("cutover.sql", "indexed_as"), space=space.name, kind=kind)
    return (
        replace(default, **{name: value for name, value in found[0].items() if value is not None}) if found else default
    )


def read_space(database: Database, own: Space) -> Space:
    """What the application reads: the active space; while there is none, `own`, which the settings name."""
    active = active_space(database)
    return own if active is None or active.name == own.name else active


def keep_index(database: Database, space: Space, default: IndexSettings, building: Building) -> None:
    """Build what is missing of the indexes of `space`, as they were built before. Cheap where nothing is."""
    for kind in KINDS:
        ensure_index(database, space, kind, indexed_as(database, space, kind, default), partial(_tell, building, kind))


def cut_over(
    database: Database,
    target: Space,
    default: IndexSettings,
    ranges: Sequence[CaseRange],
    *,
    by: str,
    comparison: ComparisonSettings,
    details: Mapping[str, Any],
    building: Building,
    comparing: Callable[[int], None],
) -> CutOver:
    """Move reads to `target`, in one transaction, after every invariant was found to hold there.

    Its indexes are built first if they are missing. Nothing moves where it is active already.
    Raises DatabaseError for a space that lacks vectors, ChecksFailedError with the report where a check fails.
    """
    active = _active(database)
    if active.name == target.name:
        return CutOver(active.name, target.name, moved=False)
    with database.connection("check vectors", long=True) as connection:
        _check_complete(connection, target)  # before an index is built over half of them
    if comparison.query_log:
        read_log(comparison.query_log, comparison.queries, target)  # before an index is built for nothing
    keep_index(database, target, default, building)
    evaluated = evaluate(
        database,
        target,
        ranges,
        comparison=comparison,
        rows_in_export=None,  # whether the export has changed since says nothing about either space
        details=details,
        progress=comparing,
    )
    with database.connection("find report") as connection:
        report_id = fetch_value(connection, statement("cutover.sql", "last_report"), space=target.name)
    if not evaluated.passed:
        raise ChecksFailedError(target.name, evaluated.report)
    _swap(database, active, target, by, report_id)
    return CutOver(active.name, target.name, moved=True, report_id=report_id, report=evaluated.report)


def cut_back(database: Database, default: IndexSettings, *, by: str, building: Building) -> CutOver:
    """Move reads back to where they were before the last cut-over.

    The way out of a bad one, so no full report stands in its way: that space was proven when it was read, its rows are
    immutable, and published cases are compared with staging whatever is read. What may have changed is examined: that
    it has the vectors of all published rows, and its indexes. Raises DatabaseError where it lacks vectors or is gone.
    """
    active = _active(database)
    with database.connection("find last cut-over") as connection:
        previous = previous_space(connection)
        if previous is None:
            raise DatabaseError("Reads were never moved, so there is nothing to go back to. See: qbench spaces")
        target = _find(connection, previous)
        _check_complete(connection, target)
    if active.name == target.name:
        return CutOver(active.name, target.name, moved=False)
    keep_index(database, target, default, building)
    _swap(database, active, target, by, None)
    return CutOver(active.name, target.name, moved=True)


def previous_space(connection: Connection) -> str | None:
    """Name of the space that reads were on before the last cut-over; it may be gone."""
    found = fetch_value(connection, statement("cutover.sql", "last_cutover"))
    return None if found is None else str(found)


def list_spaces(database: Database) -> list[dict[str, Any]]:
    """Every space: what it is, what it holds, what it weighs and what it cost.

    `coverage_percent` is the share of published documents and steps it has the vectors of (never rounded up);
    `previous` marks the one that the way back leads to. Counting by provenance reads all vectors.
    """
    with database.connection("list spaces", long=True) as connection:
        published = fetch_value(connection, statement("cutover.sql", "published_rows"))
        previous = previous_space(connection)
        listed = fetch_dicts(connection, statement("cutover.sql", "listing"))
        for row in listed:
            name = row["name"]
            vectors = fetch_dicts(connection, statement("parity.sql", "provenance", space=name))
            lacking = sum(_lacking(connection, name))
            row["documents"] = sum(found["vectors"] for found in vectors if found["kind"] == "doc")
            row["steps"] = sum(found["vectors"] for found in vectors if found["kind"] == "step")
            row["provenance"] = {
                origin: sum(found["vectors"] for found in vectors if found["provenance"] == origin)
                for origin in sorted({found["provenance"] for found in vectors})
            }
            row["coverage_percent"] = (
                math.floor(10_000 * (published - lacking) / published) / 100 if published else None
            )
            row["previous"] = name == previous and not row["active"]
            row.update(spent(connection, name))
    return listed


def purge(database: Database, name: str) -> dict[str, Any]:
    """Drop a space with all its vectors; what was spent on it stays in the ledger. Returns its `name` and `bytes`.

    Raises DatabaseError for an unknown space, the active one, and one that somebody's own views read.
    """
    space = find_space(database, name)
    with (
        writing(database, space),
        database.exclusive(FACE_LOCK, queue=True),
        database.connection("purge", long=True, owner=True) as connection,
        connection.transaction(),
    ):
        active = fetch_value(connection, statement("embed.sql", "active"))
        if active == name:
            raise DatabaseError(f"{name} is what the application reads. Move reads first: qbench cutover SPACE")
        dependents = [view for (view,) in connection.execute(statement("cutover.sql", "dependents"), {"space": name})]
        if dependents:
            raise DatabaseError(f"{name} is read by {', '.join(dependents)}. Drop them first.")
        freed = fetch_value(connection, statement("cutover.sql", "bytes_of"), space=name)
        connection.execute(statement("setup.sql", "wait_briefly"))  # meanwhile nobody publishes
        try:
            connection.execute(statement("cutover.sql", "drop_schema", space=name))
        except psycopg.errors.LockNotAvailable:
            raise DatabaseError(f"{name} is in use: a run or a report reads it. Let that end, then again.") from None
        connection.execute(statement("cutover.sql", "forget"), {"space": name})
    return {"name": name, "bytes": freed}


def _tell(building: Building, kind: Kind, phase: str, done: int, rows: int) -> None:
    building(f"{kind}s: {phase}", done, rows)


def _active(database: Database) -> Space:
    active = active_space(database)
    if active is None:
        raise DatabaseError("Nothing is published yet: run `qbench run --export PATH` first. It activates its space.")
    return active


def _find(connection: Connection, name: str) -> Space:
    known = {row["name"]: row for row in fetch_dicts(connection, statement("cutover.sql", "find"))}
    if name not in known:
        there = ", ".join(f"{row['name']} (active)" if row["active"] else row["name"] for row in known.values())
        raise DatabaseError(f"There is no embedding space {name}. There are: {there or 'none yet'}.")
    return Space(**{field.name: known[name][field.name] for field in fields(Space)})


def _lacking(connection: Connection, name: str) -> tuple[int, int]:
    counted = fetch_dicts(connection, statement("parity.sql", "completeness", space=name))[0]
    return counted["documents_without_vector"], counted["steps_without_vector"]


def _check_complete(connection: Connection, space: Space) -> None:
    documents, steps = _lacking(connection, space.name)
    if not documents and not steps:
        return
    recipe = fetch_dicts(connection, statement("embed.sql", "describe"), name=space.name)[0]["recipe"]
    active = fetch_dicts(connection, statement("embed.sql", "active"))
    read = active[0]["recipe"] if active else TEXT_RECIPE
    if recipe != TEXT_RECIPE:
        remedy = (
            f"It was made for texts of recipe {recipe}, this version makes those of recipe {TEXT_RECIPE}: it cannot "
            "be filled any more."
        )
    elif read != TEXT_RECIPE:
        remedy = (
            f"What is published are texts of recipe {read}, this version makes those of recipe {TEXT_RECIPE}, whose "
            "vectors have other names: it will never have those. Use the version of qbench that published them."
        )
    else:
        remedy = f"Fill it: {fill_command(space)}, then again."
    raise DatabaseError(
        f"Reads stay where they are: {space.name} lacks the vectors of {documents:,} published documents and "
        f"{steps:,} steps. {remedy}"
    )


def fill_command(space: Space) -> str:
    """The command that fills `space`, whatever the shell has set: all that names a space, quoted for it."""
    settings = {
        "QBENCH_EMBEDDER": space.embedder,
        "QBENCH_MODEL": space.model,
        "QBENCH_DIMENSIONS": str(space.dimensions),
        "QBENCH_VECTOR_TYPE": space.vector_type,
        "QBENCH_TEXT_PREFIX": space.text_prefix,  # also an empty one, or another's prefix would fill, and pay for, that
        "QBENCH_QUERY_PREFIX": space.query_prefix or "",
    }
    given = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    folder, _, fingerprint = space.model.partition("@")
    where = f" (QBENCH_MODEL is the folder {folder} of then)" if space.embedder == "local" and fingerprint else ""
    return f"{' '.join(given)} qbench run{where}"


def _swap(database: Database, source: Space, target: Space, by: str, report_id: int | None) -> None:
    with (
        database.exclusive(FACE_LOCK, queue=True),
        database.connection("cut over", long=True, owner=True) as connection,
    ):
        # While the lock is held nobody publishes, so what holds now holds at the commit.
        active = fetch_value(connection, statement("embed.sql", "active"))
        if active != source.name:
            raise DatabaseError(f"Somebody moved reads from {source.name} to {active} meanwhile. See: qbench spaces")
        _check_complete(connection, _find(connection, target.name))
        entry = {"from_space": source.name, "to_space": target.name, "by": by, "report": report_id}
        replace_face(
            database, connection, target, lambda: connection.execute(statement("cutover.sql", "record"), entry)
        )
