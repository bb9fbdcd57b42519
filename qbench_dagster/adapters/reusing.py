"""Takes the vectors of old stores that are truly ours into a space, and records why the others were not.

How a store is read is in its own module, what makes a vector ours in `core/reuse.py`, a pass in `reuse_pass.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from qbench_dagster.adapters.planning import Reusable
from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts, fetch_value
from qbench_dagster.adapters.reuse_pass import Pass, Reused
from qbench_dagster.adapters.space import KINDS, Kind, Space, ensure_space, writing
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vector_source import SourceError, VectorSource
from qbench_dagster.core.reuse import Refusal, Wanted

SCRATCH = "pg_temp"
_POINT_TYPES = ["text", "text", "text", "text", "int8", "bytea", "text", "timestamptz"]


def reuse_vectors(
    database: Database,
    space: Space,
    sources: Sequence[VectorSource],
    *,
    declared_model: str | None,
    allow_quantized: bool,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Reused]:
    """Take what the space lacks from each store, in order, a batch a transaction; `progress` is told of each batch.

    A pass that is killed leaves whole batches, and the next one keeps them: together they do what one would have
    done. The refused points are replaced when a pass is through. `dry_run` does the same with temporary tables in
    place of the space's, in a transaction that is rolled back: its numbers are those of the pass that follows.
    Raises SourceError.
    """
    wanted = Wanted(space.model, space.dimensions, declared_model, allow_quantized)
    if not sources:
        return []
    if space.text_prefix:
        raise SourceError(
            f"The texts of {space.name} are embedded with the prefix {space.text_prefix!r}, and an old store does not "
            "say what its vectors were made of. Unset the old store, or QBENCH_TEXT_PREFIX."
        )
    if dry_run:
        with database.connection("plan reuse", long=True) as connection, connection.transaction(force_rollback=True):
            rooms = [_scratch(connection, space)]
            if fetch_value(
                connection, statement("reuse.sql", "space_exists"), space=space.name, table="doc_embeddings"
            ):
                rooms.append(space)
            return [Pass(connection, rooms, source, wanted, lambda _: None).run(progress) for source in sources]
    ensure_space(database, space)
    with writing(database, space), database.connection("reuse vectors", long=True) as connection:
        return [_recorded_pass(database, connection, space, source, wanted, progress) for source in sources]


def reusable_vectors(
    database: Database,
    space: Space,
    sources: Sequence[VectorSource],
    declared_model: str | None,
    allow_quantized: bool,
    progress: Callable[[int], None],
) -> Reusable:
    """What `reuse_vectors` would take, for the plan: texts by kind and store, and refusals by store and reason."""
    passes = reuse_vectors(
        database, space, sources, declared_model=declared_model, allow_quantized=allow_quantized, dry_run=True,
        progress=progress,
    )  # fmt: skip
    refused = {done.provenance: sum((tally.refused for tally in done.kinds.values()), Counter()) for done in passes}
    return Reusable(
        hashes={kind: {done.provenance: done.texts.get(kind, set()) for done in passes} for kind in KINDS},
        refused={
            name: {reason.value: count for reason, count in sorted(counts.items())} for name, counts in refused.items()
        },
    )


def check_read(database: Database, space: Space, kind: Kind, sources: Sequence[str]) -> None:
    """Raise SourceError if one of `sources` (by provenance) may hold vectors that embedding would pay for again.

    It was never read for this space, or texts have been staged since that it had.
    """
    with database.connection("check reuse", long=True) as connection:
        values = {"space": space.name, "sources": list(sources)}
        if unread := [name for (name,) in connection.execute(statement("reuse.sql", "unread"), values)]:
            raise SourceError(
                f"The old store ({', '.join(unread)}) has not been read for {space.name}, and what it holds would be "
                "embedded again: materialise reused_vectors first (job reuse_vectors; qbench run does), or unset it."
            )
        late = fetch_value(connection, statement("reuse.sql", f"late_{kind}s", space=space.name), **values)
    if late:
        raise SourceError(
            f"{late:,} texts were staged after the old store was read, and it has their vectors: materialise "
            "reused_vectors again (job reuse_vectors; qbench run does)."
        )


def list_refused(
    database: Database,
    space: Space,
    *,
    reason: Refusal | None = None,
    kind: Kind | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Points the last finished pass over each store did not take: source, kind, point_id, case_id, text_hash, …"""
    with database.connection("list refused points") as connection:
        return fetch_dicts(
            connection, statement("reuse.sql", "refused"), space=space.name, reason=reason, kind=kind, limit=limit
        )


def _scratch(connection: Connection, space: Space) -> Space:
    for kind in KINDS:
        connection.execute(
            statement("reuse.sql", "create_scratch", table=f"{kind}_embeddings", vector_type=space.vector_type,
                      dimensions=space.dimensions)
        )  # fmt: skip
    return replace(space, name=SCRATCH)


def _recorded_pass(
    database: Database,
    connection: Connection,
    space: Space,
    source: VectorSource,
    wanted: Wanted,
    progress: Callable[[int], None],
) -> Reused:
    """One pass, its refused points and itself recorded in a transaction of their own that ends with it."""
    values: dict[str, Any] = {"space": space.name, "source": source.provenance}
    with database.connection("record reuse", long=True) as recording, recording.transaction():
        started: datetime = fetch_value(recording, statement("reuse.sql", "now"))
        recording.execute(statement("reuse.sql", "forget_points"), values)

        def record(refused: Sequence[tuple[Any, ...]]) -> None:
            with recording.cursor() as cursor, cursor.copy(statement("reuse.sql", "copy_points")) as copy:
                copy.set_types(_POINT_TYPES)
                for row in refused:
                    copy.write_row((space.name, source.provenance, *row, started))

        done = Pass(connection, [space], source, wanted, record).run(progress)
        values |= {"description": done.description, "started_at": started, "counts": Jsonb(done.counts())}
        recording.execute(statement("reuse.sql", "record_pass"), values)
    return done
