"""Which index a table of vectors has: chosen, built beside the old one, verified, swapped, and the old one dropped.

store.index_builds is the one place that says how a table is searched: its row changes when a new index is the one to
use. How one is built is `building.py`, how it does `measuring.py`, which is best `advising.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from psycopg.types.json import Jsonb

from qbench_dagster.adapters.advising import advise
from qbench_dagster.adapters.building import Building, Progress, build_index, drop_index
from qbench_dagster.adapters.index_use import indexes_used
from qbench_dagster.adapters.measuring import choice_in, measure, write_counters
from qbench_dagster.adapters.postgres import Database, DatabaseError, fetch_dicts, fetch_value
from qbench_dagster.adapters.probing import Truth, ground_truth, search_curve
from qbench_dagster.adapters.retiring import clear_away, drop_others, existing, wait_for_readers
from qbench_dagster.adapters.space import Kind, Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vectors import table_of
from qbench_dagster.core.advice import Point, pick, still_holds
from qbench_dagster.core.indexes import EXACT, IndexChoice, IndexSettings, choice_of, lists_outgrown

log = logging.getLogger(__name__)

DEAD_SHARE = 0.2
BLOAT = 1.2
BLOAT_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Build:
    """One table's index as it is now, and why. `seconds` is what its build took, when it was built."""

    kind: str
    strategy: str
    rows: int
    bytes: int
    seconds: float
    rebuilt: bool
    why: str
    choice: IndexChoice
    notes: Sequence[str] = ()


def ensure_index(database: Database, space: Space, kind: Kind, settings: IndexSettings, progress: Progress) -> Build:
    """Make the index of one table what the settings ask for, or with `auto` what measures best. Kept where it is.

    Reads have an index all the time: the new one is built under another name, verified, and the old one dropped when
    nobody uses it. `progress` is told the phase, how much is done and how much there is.
    Raises DatabaseError where an index is not used once built, or cannot be built.
    """
    table = table_of(kind)
    with (
        database.exclusive(f"index of {space.name}.{table}"),
        database.connection(f"index {kind}", long=True, owner=True) as connection,
    ):
        work = Building(database, connection, space, table, settings, progress)
        return _Ensuring(work, kind).run()


class _Ensuring:
    """One call of `ensure_index`, under its lock."""

    def __init__(self, work: Building, kind: Kind) -> None:
        self.work, self.kind, self.settings = work, kind, work.settings
        self.connection, self.space, self.table = work.connection, work.space, work.table
        self.names = {"space": work.space.name, "table": work.table}
        self.known = self._recorded()
        self.truth: Truth | None = None

    def run(self) -> Build:
        clear_away(self.work, self.known["index_name"] if self.known else None)
        rows = int(fetch_value(self.connection, statement("index.sql", "count_rows", **self.names)))
        order, advice = self._order(rows)
        for number, strategy in enumerate(order):
            choice = self._choice(strategy, rows)
            last = number + 1 == len(order)
            done = self._keep_or_build(choice, rows, advice, last)
            if done is not None:
                return done
            told = f"{choice} misses the recall of {self.settings.target_recall:g} over all {rows:,} vectors"
            self.work.note(f"{told}; {order[number + 1]} is next")
            advice = advice and {**advice, "chosen": order[number + 1], "why": f"{told}. {advice['why']}"}
        raise AssertionError("the last one is always taken")

    def _recorded(self) -> dict[str, Any] | None:
        found = fetch_dicts(self.connection, statement("index.sql", "build_of"), space=self.space.name, kind=self.kind)
        return found[0] if found else None

    def _existing(self) -> list[dict[str, Any]]:
        return existing(self.work)

    # What to have

    def _order(self, rows: int) -> tuple[Sequence[str], dict[str, Any] | None]:
        """The strategies to try, best first, and what says so."""
        if self.settings.strategy != "auto":
            # What `auto` found stays true of an index that is kept as it was chosen: another space's, by a cut-over.
            kept = self.known is not None and self.known["strategy"] == self.settings.strategy
            return [self.settings.strategy], self.known["advice"] if self.known and kept else None
        advice: dict[str, Any] | None = self.known["advice"] if self.known else None
        if self.known and advice and still_holds(advice, self.settings, rows):
            order = advice["order"]
            return order[order.index(self.known["strategy"]) :], advice
        if rows == 0:
            return [EXACT], None
        made = advise(self.work, rows)
        log.info("%s.%s: %s", self.space.name, self.table, made.why)
        return made.order, made.as_json(self.settings, rows)

    def _choice(self, strategy: str, rows: int) -> IndexChoice:
        """The parameters asked for; where the settings leave them open, those there are."""
        choice = choice_of(self.settings, strategy, self.space.dimensions, rows)
        if self.known is None or self.known["strategy"] != strategy:
            return choice
        there = choice_in(self.known)
        if strategy == "ivfflat" and self.settings.lists is None and not lists_outgrown(self.known["rows"], rows):
            choice = replace(choice, lists=there.lists)
        if self.settings.ef_search in (None, there.ef_search):
            choice = choice.searched(there.ef_search, self.settings.rerank or there.rerank)
        return choice

    def _why_build(self, choice: IndexChoice, rows: int) -> str | None:
        """Why the index there is will not do; None where it does."""
        if self.known is None:
            return "there was none"
        there = choice_in(self.known)
        if there.strategy != choice.strategy or (there.built_as != choice.built_as and not choice.exact):
            return f"{choice} instead of {there}"
        if choice.exact:
            return None
        index = next((index for index in self._existing() if index["name"] == self.known["index_name"]), None)
        if index is None:
            return f"the index {self.known['index_name']} is gone, or was invalid"
        return self._unlike(index, choice) or self._worn(self.known, index, rows)

    def _unlike(self, index: Mapping[str, Any], choice: IndexChoice) -> str | None:
        """What an index of the right name has that it should not."""
        method = "ivfflat" if choice.strategy == "ivfflat" else "hnsw"
        wanted = {"m": choice.m, "ef_construction": choice.ef_construction, "lists": choice.lists}
        options = {f"{name}={value}" for name, value in wanted.items() if value is not None}
        if index["method"] != method or set(index["options"]) != options:
            return f"{index['name']} is {index['method']} with {', '.join(index['options']) or 'no options'}"
        if index["name"] not in indexes_used(self.connection, self.space, self.table, choice, prefer=True):
            return f"{index['name']} is on another expression: searches cannot use it"
        return None

    def _worn(self, known: Mapping[str, Any], index: Mapping[str, Any], rows: int) -> str | None:
        """What its table went through since it was built."""
        deleted, before, indexed = self._deleted() or 0, known["deleted"] or 0, max(known["rows"], 1)
        lost = deleted - before if deleted >= before else deleted  # less: the server's counters began anew
        if lost > DEAD_SHARE * indexed:
            return f"{lost:,} of the {indexed:,} rows it was built for were deleted since"
        if index["bytes"] > BLOAT * known["bytes"] * max(1.0, rows / indexed) + BLOAT_BYTES:
            return (
                f"it has grown to {index['bytes']:,} bytes for {rows:,} rows, from {known['bytes']:,} for {indexed:,}"
            )
        return None

    def _deleted(self) -> int | None:
        count = fetch_value(self.connection, statement("index.sql", "deleted_rows"), **self.names)
        return None if count is None else int(count)

    # Having it

    def _keep_or_build(
        self, choice: IndexChoice, rows: int, advice: Mapping[str, Any] | None, last: bool
    ) -> Build | None:
        """The table's index as `choice` wants it; None where it misses the recall and is not the last to try."""
        why = self._why_build(choice, rows)
        if why is not None:
            return self._build(choice, rows, advice, why, last)
        assert self.known is not None
        if self.known["advice"] != advice:
            self._execute("record_advice", advice=None if advice is None else Jsonb(advice))
        there = choice_in(self.known)
        if choice.exact:
            pass
        elif not self._tuned:
            if there != choice:
                self._record_search(choice, None)
        elif self.known["curve"] is None or there != choice or not self._reaches():
            choice, curve, reached = self._tune(choice)
            if not reached and not last:
                return None
            self._record_search(choice, curve)
            measure(self.work.database, self.space, self.kind, self.truth)
        size = sum(index["bytes"] for index in self._existing())
        why = "no index is needed" if choice.exact else f"{choice} is there and as asked for"
        return Build(self.kind, choice.strategy, rows, size, self.known["seconds"], False, why, choice, self.work.notes)

    def _build(
        self, choice: IndexChoice, rows: int, advice: Mapping[str, Any] | None, why: str, last: bool
    ) -> Build | None:
        # VACUUM also gives the planner the number of rows, without which it would not use the index.
        self.connection.execute(statement("index.sql", "vacuum", **self.names))
        deleted, name, seconds, size, curve = self._deleted(), None, 0.0, 0, None
        alone = reached = True
        if not choice.exact:
            name = self._free_name(choice)
            seconds = build_index(self.work, name, choice, rows)
            index = next(index for index in self._existing() if index["name"] == name)
            size = int(index["bytes"])
            # Beside an index of the same expression nobody can say which one is used, or measure this one.
            alone = name in indexes_used(self.connection, self.space, self.table, choice, prefer=True)
            if alone and self._tuned:
                choice, curve, reached = self._tune(choice)
                if not reached and not last:
                    drop_index(self.connection, self.space, name)
                    return None
        self._execute(
            "record_build",
            **asdict(choice), index_name=name, rows=rows, bytes=size, seconds=seconds, deleted=deleted,
            curve=_as_json(curve), advice=None if advice is None else Jsonb(advice),
        )  # fmt: skip
        wait_for_readers(self.work)
        drop_others(self.work, name)
        if not alone:
            assert name is not None
            if name not in indexes_used(self.connection, self.space, self.table, choice, prefer=True):
                raise DatabaseError(f"The index {name} of {self.space.name} was built, and PostgreSQL cannot use it.")
            if self._tuned:
                choice, curve, reached = self._tune(choice)
                self._record_search(choice, curve)
                if not reached and not last:
                    self.known = self._recorded()
                    return None
        if self.truth is not None:
            measure(self.work.database, self.space, self.kind, self.truth)
        return Build(self.kind, choice.strategy, rows, size, seconds, True, why, choice, self.work.notes)

    @property
    def _tuned(self) -> bool:
        """Whether how far to search is to be measured."""
        return self.settings.ef_search is None or self.settings.strategy == "auto"

    def _reaches(self) -> bool:
        return measure(self.work.database, self.space, self.kind).reaches(self.settings.target_recall)

    def _tune(self, choice: IndexChoice) -> tuple[IndexChoice, list[Point], bool]:
        """The choice searched as far as it takes, the curve, and whether that meets the target."""
        if self.truth is None:
            self.work.progress("exact search, to compare with", 0, 1)
            counters = write_counters(self.work.database, self.space)  # before: what is written meanwhile is not in it
            self.truth = replace(ground_truth(self.connection, self.space, self.table), counters=counters)
        curve = search_curve(
            self.connection, self.space, self.table, choice, self.truth, self.settings, self.work.progress
        )
        point, reached = pick(curve, self.settings.target_recall)
        return choice.searched(point.ef_search, point.rerank), curve, reached

    def _free_name(self, choice: IndexChoice) -> str:
        taken = {index["name"] for index in self._existing()}
        stem = f"{self.table}_{choice.strategy}"
        return next(name for number in range(1, len(taken) + 2) if (name := f"{stem}_{number}") not in taken)

    def _record_search(self, choice: IndexChoice, curve: list[Point] | None) -> None:
        self._execute("record_search", ef_search=choice.ef_search, rerank=choice.rerank, curve=_as_json(curve))

    def _execute(self, name: str, **values: Any) -> None:
        self.connection.execute(statement("index.sql", name), {"space": self.space.name, "kind": self.kind, **values})


def _as_json(curve: list[Point] | None) -> Jsonb | None:
    return None if curve is None else Jsonb([asdict(point) for point in curve])
