"""The verdicts of the parity reports that are kept in store.parity_reports, over time. Making one is `parity.py`."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from qbench_dagster.adapters.postgres import Connection, fetch_dicts
from qbench_dagster.adapters.sql import statement

HISTORY = 50


def history(connection: Connection, space: str | None = None, at_most: int = HISTORY) -> list[dict[str, Any]]:
    """Kept reports, newest first, of every space or of one: id, created_at, space, passed, failed, numbers.

    `failed` names the findings that failed; `numbers` has `published` and `recall_10_min`, each None where the
    report does not say.
    """
    rows = fetch_dicts(connection, statement("reports.sql", "history"), space=space, at_most=at_most)
    return [
        {
            "id": row["id"],
            "created_at": row["created_at"].astimezone(UTC).isoformat(timespec="seconds"),
            "space": row["space"],
            "passed": row["passed"],
            "failed": row["failed"],
            "numbers": {"published": row["published"], "recall_10_min": row["recall_10_min"]},
        }
        for row in rows
    ]
