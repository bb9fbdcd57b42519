"""The proof that no word was lost, and that it would notice one that was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qbench_dagster.core.words import FIELDS, has_words, lost_words

WORDS = st.lists(st.from_regex(r"\A[a-zA-Z0-9äé]{1,8}\Z"), min_size=1, max_size=12)


@pytest.mark.parametrize("field", FIELDS)
def test_a_word_missing_from_the_published_row_is_named(field: str) -> None:
    assert lost_words({field: "open the page"}, ["open the page"]) == []
    assert lost_words({field: "open the page"}, ["open the"]) == ["page"]
    assert lost_words({field: "open the page"}, []) == ["open", "page", "the"]


@pytest.mark.parametrize("raw", [{}, {"title": "x"}, dict.fromkeys(FIELDS), dict.fromkeys(FIELDS, "")])
def test_a_row_without_step_texts_has_nothing_to_lose(raw: dict[str, Any]) -> None:
    assert lost_words(raw, []) == []


@given(WORDS, st.sampled_from(FIELDS), st.data())
def test_taking_any_word_away_is_noticed(words: list[str], field: str, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(words))
    raw = {field: " ".join(words) if field != "steps_separated" else json.dumps([{"content": " ".join(words)}])}
    assert lost_words(raw, [" ".join(words)]) == []
    kept = [word for word in words if word != gone]
    assert lost_words(raw, [" ".join(kept)]) == [gone]


@given(WORDS, WORDS)
def test_words_of_all_published_texts_count_together(first: list[str], second: list[str]) -> None:
    assert lost_words({"steps": " ".join(first + second)}, [" ".join(second), " ".join(first)]) == []


@given(st.from_regex(r"\A[a-z]{2,8}\Z"))
def test_case_counts(word: str) -> None:
    assume(word.upper() != word)
    assert lost_words({"steps": word.upper()}, [word]) == [word.upper()]


@pytest.mark.parametrize(
    ("source", "published"),
    [
        ("a<b>c</b>", "ac"),
        ("a<b>c</b>", "a c"),
        ("one<br>two", "one\ntwo"),
        ("<p>Save &amp; close</p>", "Save & close"),
        ('<a href="http://x.y/z">here</a>', "here"),
        ("caf&eacute;", "café"),
        ("<td>cell</td><td>two</td>", "cell | two"),
    ],
)
def test_markup_is_no_word(source: str, published: str) -> None:
    assert lost_words({"steps": source}, [published]) == []


@pytest.mark.parametrize("source", ["<user> logs in", "List<String> value", "if a < b then c"])
def test_what_only_looks_like_a_tag_is_text(source: str) -> None:
    assert lost_words({"steps": source}, [source]) == []
    assert lost_words({"steps": source}, ["logs in value if a then"]) != []


def test_a_word_lost_beside_markup_is_still_noticed() -> None:
    assert lost_words({"steps": "<b>open</b> the page"}, ["open page"]) == ["the"]


@pytest.mark.parametrize("as_text", [True, False])
def test_every_value_of_the_structured_steps_is_read_and_no_key(as_text: bool) -> None:
    steps: Any = [{"content": "click", "expected": "shown", "additional": {"refs": ["R1", 42]}, "done": True}]
    raw = {"steps_separated": json.dumps(steps) if as_text else steps}
    assert lost_words(raw, ["click shown R1 42"]) == []
    assert lost_words(raw, ["click R1"]) == ["42", "shown"]


def test_malformed_json_is_text() -> None:
    assert lost_words({"steps_separated": '[{"content": "click"'}, ["content"]) == ["click"]


@pytest.mark.parametrize("opening", ["[", '{"content": '])
def test_json_nested_too_deeply_to_parse_is_text(opening: str) -> None:
    deep = opening * 100_000
    assert lost_words({"steps_separated": f"{deep} click"}, [deep]) == ["click"]


def test_deeply_nested_values_are_read() -> None:
    nested: Any = ["click"]
    for _ in range(50_000):
        nested = [{"content": nested}]
    assert lost_words({"steps_separated": nested}, ["shown"]) == ["click"]


@pytest.mark.parametrize(
    ("raw", "has"),
    [
        ({}, False),
        (dict.fromkeys(FIELDS), False),
        ({"steps": " - ", "steps_separated": '[{"content": ""}]'}, False),
        ({"title": "x"}, False),
        ({"steps": "x"}, True),
        ({"steps_separated": '[{"content": "", "expected": "shown"}]'}, True),
    ],
)
def test_a_row_without_a_word_has_nothing_to_compare(raw: dict[str, Any], has: bool) -> None:
    assert has_words(raw) is has


def test_words_need_no_spaces() -> None:
    assert lost_words({"steps": "ログインする"}, ["ログイン"]) == ["ログインする"]
    assert lost_words({"steps": 4711}, ["4711"]) == []
    assert lost_words({"steps": 4711}, ["471"]) == ["4711"]
