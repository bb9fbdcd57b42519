"""An invented TestRail export of any size, the same for the same (cases, seed): `qbench sample`.

Only pure generators of rows live in this package: no SQLite, no files, no clock, no global random.
What writes them into a file is `adapters/sample_writer.py`.
"""

from __future__ import annotations

from qbench_dagster.core.sample.difficulties import ALWAYS_FROM, DIFFICULTIES, planted
from qbench_dagster.core.sample.draft import Cell, Row
from qbench_dagster.core.sample.ids import FIRST_ID, LAST_ID, MAX_CASES, case_ids, validate
from qbench_dagster.core.sample.rows import case_rows, lookup_rows

__all__ = [
    "ALWAYS_FROM",
    "DIFFICULTIES",
    "FIRST_ID",
    "LAST_ID",
    "MAX_CASES",
    "Cell",
    "Row",
    "case_ids",
    "case_rows",
    "lookup_rows",
    "planted",
    "validate",
]
