"""The ledger: what was asked of embedding services and what it cost, entered before it is sent.

So a process that is killed leaves a trace of what it may have been billed for, and a budget holds over
interruptions, retries and runs side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts, fetch_value
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.prices import cost

CENT_FRACTION = 1e-9
"""Sums of doubles: what is this near the budget has not exceeded it."""


class BudgetReachedError(EmbeddingError):
    """The next request would exceed the budget. What was paid for is stored; a higher budget resumes."""


@dataclass(frozen=True, slots=True)
class Account:
    """On whose behalf requests are sent: the run, the price (dollars a million tokens), and the budget of the space.

    `usd_per_million` None: the price is not known; requests are counted, dollars are not.
    """

    run_id: str
    usd_per_million: float | None = None
    max_usd: float | None = None
    way: str = "request"

    def usd(self, tokens: int) -> float | None:
        """What `tokens` cost, None where the price is not known."""
        return None if self.usd_per_million is None else cost(tokens, self.usd_per_million)


def check_account(account: Account, model: str) -> None:
    """Raise EmbeddingError for a budget that cannot be kept, because the price is not known."""
    if account.max_usd is not None and account.usd_per_million is None:
        raise EmbeddingError(
            f"QBENCH_MAX_USD is set, and the price of {model} is not known. Name it in a JSON file "
            f'({{"{model}": {{"usd_per_million": 0.1}}}}) and set QBENCH_PRICES to its path, or unset QBENCH_MAX_USD.'
        )


def reserve(
    connection: Connection, space: str, kind: str, model: str, account: Account, *, texts: int, tokens: int
) -> int:
    """Enter a request before it is sent; returns its id. Raises BudgetReachedError if it would exceed the budget."""
    usd = account.usd(tokens)
    limit = None if account.max_usd is None else account.max_usd + CENT_FRACTION
    values = {"space": space, "kind": kind, "model": model, "way": account.way, "run_id": account.run_id,
              "texts": texts, "tokens": tokens, "usd": usd, "max_usd": limit,
              "usd_per_million": account.usd_per_million}  # fmt: skip
    entered = fetch_value(connection, statement("ledger.sql", "reserve"), **values)
    if entered is None:
        raise _reached(account, space, spent(connection, space, account.usd_per_million), texts, usd or 0.0)
    return int(entered)


def book_risk(connection: Connection, space: str, entry: int, account: Account, *, texts: int, tokens: int) -> None:
    """Note that an attempt of a request may have been billed, before it is tried again.

    Raises BudgetReachedError if another attempt, on top of it, would exceed the budget.
    """
    usd = account.usd(tokens) or 0.0
    connection.execute(statement("ledger.sql", "book_risk"), {"id": entry, "usd_at_risk": usd})
    if account.max_usd is not None:
        so_far = spent(connection, space, account.usd_per_million)  # the entry's own price is in it
        if so_far["usd"] + so_far["usd_at_risk"] > account.max_usd + CENT_FRACTION:
            raise _reached(account, space, {**so_far, "usd": so_far["usd"] - usd}, texts, usd)


def _reached(account: Account, space: str, so_far: Mapping[str, Any], texts: int, usd: float) -> BudgetReachedError:
    return BudgetReachedError(
        f"The budget of ${account.max_usd:,.4f} for {space} is reached: ${so_far['usd']:,.4f} spent"
        + (f" and ${so_far['usd_at_risk']:,.4f} perhaps billed without an answer" if so_far["usd_at_risk"] else "")
        + f", the next request of {texts:,} texts costs about ${usd:,.4f}. Everything paid for is stored. "
        "To go on, run again with a higher QBENCH_MAX_USD."
    )


def settle(
    connection: Connection, entry: int, account: Account, *, state: str, tokens: int, tokens_at_risk: int = 0
) -> None:
    """Say how a request ended: `answered` with the tokens billed, or `failed`."""
    usd = account.usd(tokens) if state == "answered" else 0.0
    connection.execute(
        statement("ledger.sql", "settle"),
        {"id": entry, "state": state, "tokens": tokens, "usd": usd, "usd_at_risk": account.usd(tokens_at_risk) or 0.0},
    )


def mark_lost(connection: Connection, space: str) -> int:
    """Count requests of processes that are gone as spent; returns how many. Hold the space's lock."""
    return max(0, connection.execute(statement("ledger.sql", "mark_lost"), {"space": space}).rowcount)


def spent(connection: Connection, space: str, usd_per_million: float | None = None) -> dict[str, Any]:
    """`usd`, `usd_at_risk`, `tokens` and `requests` of a space, over all runs.

    Requests entered when their price was not known count at `usd_per_million`.
    """
    return fetch_dicts(connection, statement("ledger.sql", "spent"), space=space, usd_per_million=usd_per_million)[0]


def spend_by_run(database: Database, space: str, limit: int = 20) -> list[dict[str, Any]]:
    """Spend of a space by run, asset and way, newest first."""
    with database.connection("read ledger") as connection:
        return fetch_dicts(connection, statement("ledger.sql", "spend_by_run"), space=space, limit=limit)
