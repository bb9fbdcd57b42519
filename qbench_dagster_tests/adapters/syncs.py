"""A source that changes and is synced again and again, and what stands in the store after each time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from qbench_dagster.adapters.history import PublishingRun, finish_run, list_syncs
from qbench_dagster.adapters.postgres import Database
from qbench_dagster_tests.support import Outcome, case, rows, run_pipeline, write_export

TABLES = {"test_documents": "test_case_id", "test_steps": "test_case_id, step_index",
          "test_preconditions": "test_case_id, order_index", "test_related_issues": "test_case_id, order_index",
          "test_words": "test_case_id"}  # fmt: skip


def published(database: Database) -> dict[str, list[Any]]:
    """Every published row, words included, but for when it was published."""
    return {
        table: [
            row
            for (row,) in rows(
                database, f"SELECT to_jsonb(t) - 'ingested_at' - 'updated_at' FROM store.{table} t ORDER BY {order}"
            )
        ]
        for table, order in TABLES.items()
    }


class Source:
    """An export of a few cases, and the database it is synced into."""

    def __init__(self, database: Database, folder: Path, cases: list[dict[str, Any]], **tables: Any) -> None:
        self.database = database
        self.cases = {row["id"]: row for row in cases}
        self.tables = tables
        self._path = folder / "export.db"
        self._runs = 0

    def sync(self, *, target: int = 5000, max_delete_share: float = 1.0, finish: bool = True) -> Outcome:
        """One run over everything, by `tester`; without `finish` as if it went on."""
        self._runs += 1
        write_export(self._path, [self.cases[key] for key in sorted(self.cases)], **self.tables)
        run = PublishingRun(f"run-{self._runs}", "tester")
        done = run_pipeline(self.database, self._path, target=target, max_delete_share=max_delete_share, run=run)
        if finish:
            finish_run(self.database, run, 90)
        return done

    def edit(self, case_id: int, **columns: Any) -> None:
        """Change a case of the source."""
        self.cases[case_id] = case(case_id, **{**self.cases[case_id], **columns, "id": case_id})

    @property
    def newest(self) -> int:
        """Number of the last entry of the history."""
        return list_syncs(self.database, limit=1)[0].id


def draw_change(source: Source, draw: random.Random) -> None:
    """One change a person may make in TestRail: edits, moves, a blank title, a case more or less, one that returns."""
    ids = sorted(source.cases)
    case_id = draw.choice(ids)
    match draw.randrange(8):
        case 0:
            source.edit(case_id, title=f"Title {draw.randrange(5)}")
        case 1:
            steps = [{"content": f"Press {draw.randrange(9)}", "expected": "Done"} for _ in range(draw.randrange(4))]
            source.edit(case_id, steps_separated=steps)
        case 2:
            source.edit(case_id, preconditions="\n".join(f"Row {draw.randrange(5)}" for _ in range(draw.randrange(4))))
        case 3:
            source.edit(case_id, refs=", ".join(f"KEY-{draw.randrange(9)}" for _ in range(draw.randrange(3))))
        case 4:
            source.edit(case_id, section_id=draw.choice([10, 11]))
        case 5:
            source.edit(case_id, title=draw.choice(["  ", "Back again"]))
        case 6:
            new = draw.randrange(1, 60)
            source.cases.setdefault(new, case(new, f"Added {new}", steps_separated=[{"content": "Look"}]))
        case _:
            if len(ids) > 5:
                del source.cases[case_id]
