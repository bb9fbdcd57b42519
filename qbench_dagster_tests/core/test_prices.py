"""Prices: the built-in list, a user's table over it, and errors that name what is wrong."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.prices import PRICES, Price, cost, parse_prices

LARGE = "text-embedding-3-large"


def test_the_list_prices() -> None:
    assert {model: (price.usd_per_million, price.batch_usd_per_million) for model, price in PRICES.items()} == {
        "text-embedding-3-large": (0.13, 0.065),
        "text-embedding-3-small": (0.02, 0.01),
        "text-embedding-ada-002": (0.10, 0.05),
    }


def test_a_table_is_laid_over_the_list() -> None:
    table = {LARGE: {"usd_per_million": 0.2, "batch_usd_per_million": 0.1}, "mine": {"usd_per_million": 0}}
    found = parse_prices(json.dumps(table))
    assert found == PRICES | {LARGE: Price(0.2, 0.1), "mine": Price(0.0, 0.0)}
    assert PRICES[LARGE] == Price(0.13, 0.065)  # the list itself stays


def test_no_discount_is_taken_for_granted() -> None:
    assert parse_prices('{"mine": {"usd_per_million": 3}}')["mine"] == Price(3.0, 3.0)


def test_an_empty_table_is_the_list() -> None:
    assert parse_prices("{}") == PRICES


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ("0.13", "must be a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"mine": 0.13}', "'mine' must be an object"),
        ('{"mine": {}}', "'mine' lacks usd_per_million"),
        ('{"mine": {"batch_usd_per_million": 1}}', "'mine' lacks usd_per_million"),
        ('{"mine": {"usd_per_million": 1, "usd": 2}}', "'mine' has the unknown field 'usd'"),
        (
            '{"mine": {"usd_per_million": "0.13"}}',
            "usd_per_million of 'mine' must be a number of dollars, not \"0.13\"",
        ),
        ('{"mine": {"usd_per_million": null}}', "usd_per_million of 'mine' must be a number of dollars, not null"),
        ('{"mine": {"usd_per_million": true}}', "usd_per_million of 'mine' must be a number of dollars, not true"),
        ('{"mine": {"usd_per_million": -1}}', "usd_per_million of 'mine' must be a number of dollars from 0, not -1.0"),
        ('{"mine": {"usd_per_million": NaN}}', "usd_per_million of 'mine' must be a number of dollars from 0, not nan"),
        ('{"mine": {"usd_per_million": 1e999}}', "usd_per_million of 'mine' must be a number of dollars from 0"),
        (f'{{"mine": {{"usd_per_million": 1{"0" * 400}}}}}', "usd_per_million of 'mine' must be a number of dollars"),
        (
            '{"mine": {"usd_per_million": 1, "batch_usd_per_million": []}}',
            "batch_usd_per_million of 'mine' must be a number of dollars",
        ),
        ('{"mine": {"usd_per_million": 1}, "mine": {"usd_per_million": 2}}', "has 'mine' twice"),
    ],
)
def test_an_error_names_the_model_and_the_field(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        parse_prices(text)


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_any_json_is_prices_or_a_value_error(table: object) -> None:
    try:
        found = parse_prices(json.dumps(table))
    except ValueError:
        return
    assert isinstance(table, dict)
    assert set(found) == set(PRICES) | set(table)


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.floats(0, 100))
def test_cost_adds_up(first: int, second: int, usd: float) -> None:
    assert cost(first + second, usd) == pytest.approx(cost(first, usd) + cost(second, usd))


def test_cost_of_a_million() -> None:
    assert cost(1_000_000, 0.13) == pytest.approx(0.13)
    assert cost(2_403_621, 0.065) == pytest.approx(0.156235365)
    assert cost(0, 0.13) == 0
