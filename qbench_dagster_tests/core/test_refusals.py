"""What refusals say in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.refusals import named_limit, says_too_large


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        ("Request too large for m on tokens per min (TPM): Limit 30000, Requested 40000.", 30_000),
        ("Enqueued token limit reached for m in organization org-1. Limit: 3,000,000 enqueued tokens.", 3_000_000),
        ("limit:7", 7),
        ("Rate limit reached for m", 0),
        ("limited 5, limit5, limit of 5", 0),
        ("", 0),
    ],
)
def test_the_limit_that_a_message_names(said: str, limit: int) -> None:
    assert named_limit(said) == limit


@given(st.text("limtLIMT: ,0123456789\u0663x"), st.integers(0, 10**13))
def test_no_message_breaks_the_reading(noise: str, number: int) -> None:
    assert named_limit(noise) >= 0
    assert named_limit(f"Limit: {number:,} tokens") == number
    assert named_limit("limit " + "9" * 5_000) > 0


@pytest.mark.parametrize(
    ("said", "large"),
    [
        ("This model's maximum context length is 8192 tokens", True),
        ("Request too large for text-embedding-3-large", True),
        ("max 300000 tokens per request: max_tokens_per_request", True),
        ("Rate limit reached", False),
    ],
)
def test_what_is_said_in_words_only(said: str, large: bool) -> None:
    assert says_too_large(said) is large
