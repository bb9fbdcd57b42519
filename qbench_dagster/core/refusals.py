"""What the refusals of an embedding service say: OpenAI's codes, and the numbers that stand in words only.

Codes and texts. What follows from a refusal is decided where it is met: `openai_client.py`, `batches.py`.
"""

from __future__ import annotations

import re

QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""The account cannot pay. It comes as a 429, and would for ever."""

TOO_LARGE_CODES = frozenset(
    {"max_tokens_per_request", "context_length_exceeded", "array_above_max_length", "string_above_max_length"}
)

# "Limit 30000, Requested 40000" of a minute's tokens, "Limit: 3,000,000 enqueued tokens" of batches. Eighteen
# characters hold every number that can be meant: Python refuses to read one of more than 4,300 digits.
_NAMED_LIMIT = re.compile(r"\blimit(?::\s*|\s+)([0-9][0-9,]{0,17})", re.IGNORECASE)


def named_limit(said: str) -> int:
    """The limit that a message names, 0 where it names none."""
    found = _NAMED_LIMIT.search(said)
    return int(found[1].replace(",", "")) if found else 0


def says_too_large(said: str) -> bool:
    """OpenAI and others name it in words only: an input over the model's, a request over the account's minute."""
    lower = said.lower()
    return "context length" in lower or "request too large" in lower or "max_tokens_per_request" in lower
