"""What embedding models cost: the published list prices, a user's table over them, tokens into dollars.

No file is read here and nothing is billed; what was spent is in the ledger.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars of a million tokens: sent by request, and by the batch API."""

    usd_per_million: float
    batch_usd_per_million: float


# List prices as published by OpenAI, 2026-11. A batch costs half.
PRICES = {
    "text-embedding-3-large": Price(0.13, 0.065),
    "text-embedding-3-small": Price(0.02, 0.01),
    "text-embedding-ada-002": Price(0.10, 0.05),
}

_SYNC, _BATCH = "usd_per_million", "batch_usd_per_million"
_EXAMPLE = '{"text-embedding-3-large": {"usd_per_million": 0.13, "batch_usd_per_million": 0.065}}'


def parse_prices(text: str) -> dict[str, Price]:
    """The list prices with a user's JSON table over them, by model: `{model: {"usd_per_million": dollars}}`.

    `batch_usd_per_million` is as much unless it is given: a discount is not taken for granted. Raises ValueError,
    which names the model and the field.
    """
    try:
        table = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"the price table is nested too deeply; write it as {_EXAMPLE}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the price table is not JSON ({error}); write it as {_EXAMPLE}") from None
    if not isinstance(table, dict):
        raise ValueError(f"the price table must be a JSON object; write it as {_EXAMPLE}")
    return PRICES | {model: _price(model, entry) for model, entry in table.items()}


def cost(tokens: int, usd_per_million: float) -> float:
    """US dollars of `tokens`."""
    return tokens * usd_per_million / 1_000_000


def _price(model: str, entry: Any) -> Price:
    if not isinstance(entry, dict):
        raise ValueError(f"the price of {model!r} must be an object; write the table as {_EXAMPLE}")
    if unknown := sorted(set(entry) - {_SYNC, _BATCH}):
        raise ValueError(f"the price of {model!r} has the unknown field {unknown[0]!r}; there are {_SYNC} and {_BATCH}")
    if _SYNC not in entry:
        raise ValueError(f"the price of {model!r} lacks {_SYNC}")
    usd = _dollars(model, _SYNC, entry[_SYNC])
    return Price(usd, _dollars(model, _BATCH, entry[_BATCH]) if _BATCH in entry else usd)


def _dollars(model: str, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{field} of {model!r} must be a number of dollars, not {json.dumps(value)[:80]}")
    try:
        dollars = float(value)
    except OverflowError:
        dollars = math.inf
    if not 0 <= dollars < math.inf:  # JSON as Python reads it knows NaN and Infinity
        raise ValueError(f"{field} of {model!r} must be a number of dollars from 0, not {dollars}")
    return dollars


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are all different: of two prices for a model, the wrong one could win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the price table has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found
