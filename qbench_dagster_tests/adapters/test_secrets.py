"""Keys: usable as they come from a file or a shell, and in no text however an error quotes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.adapters.secrets import SHORTEST, UnusableKeyError, hidden, usable_key

PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=SHORTEST)
AROUND = st.text(" \t\r\n", max_size=3)


@given(AROUND, PRINTABLE, AROUND)
def test_white_space_around_a_key_is_no_part_of_it(before: str, key: str, after: str) -> None:
    assert usable_key("KEY", before + key + after) == key


def test_no_key_is_an_empty_one() -> None:
    assert usable_key("KEY", " \n") == ""


@pytest.mark.parametrize("key", ["a b", "a\nb", "a\tb", "a\u00a0b", "schlüssel", "a\x7fb", "\u2028x y", "a\ud800b"])
def test_what_no_header_can_hold_is_refused_by_its_variable_alone(key: str) -> None:
    with pytest.raises(UnusableKeyError) as caught:
        usable_key("SOME_KEY", key)
    assert str(caught.value).startswith("SOME_KEY holds white space or characters that no key has")
    assert key not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.text(min_size=SHORTEST).filter(lambda secret: secret not in "value ''"))
def test_a_secret_is_hidden_as_it_is_and_as_python_quotes_it(secret: str) -> None:
    assert hidden(f"value {secret}", [secret], by="") == "value "
    assert hidden(f"value {secret!r}", [secret], by="")[:-1] in ("value '", 'value "')


def test_a_secret_that_holds_another_is_hidden_whole() -> None:
    assert hidden("key abcd-efgh, abcd", ["abcd", "abcd-efgh"]) == "key [secret], [secret]"
    assert hidden("a key", ["", "a"]) == "a key", "hiding that would only garble it"
