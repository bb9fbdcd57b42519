"""Jira keys and related issues: every reference kept, each once, and the key that a person would name."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.references import kind, references


def found(
    custom: dict[str, object] | None = None,
    jiras: object = None,
    refs: object = None,
    refs_custom: object = None,
) -> tuple[str | None, list[tuple[str, str]]]:
    key, issues = references(custom or {}, jiras, refs, refs_custom)
    return key, [(issue.key, issue.kind) for issue in issues]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("ABC-12", "jira"),
        ("A1_B-7", "jira"),
        ("UTF-8", "reference"),
        ("SHA-256", "reference"),
        ("abc-12", "reference"),
        ("#11234", "number"),
        ("42", "number"),
        ("https://e.test/a,b", "url"),
        ("[spec](https://e.test)", "url"),
        ("see the wiki", "reference"),
    ],
)
def test_the_kind_follows_the_form(key: str, expected: str) -> None:
    assert kind(key) == expected


def test_all_columns_are_read_in_order_and_each_reference_once() -> None:
    assert found({"custom_jira": "ABC-1"}, "ABC-2, ABC-3", "ABC-2;#7\n42", "ABC-1 https://e.test/x") == (
        "ABC-2",
        [
            ("ABC-1", "jira"),
            ("ABC-2", "jira"),
            ("ABC-3", "jira"),
            ("#7", "number"),
            ("42", "number"),
            ("https://e.test/x", "url"),
        ],
    )


def test_html_around_a_reference_is_no_part_of_it() -> None:
    assert found(refs="https://e.test/pull/67<br>") == (None, [("https://e.test/pull/67", "url")])
    assert found(refs='<a href="https://j.test/browse/ABC-9">ABC-9</a>') == (
        "ABC-9",
        [("ABC-9", "jira"), ("https://j.test/browse/ABC-9", "url")],
    )


def test_a_url_keeps_its_commas_and_a_list_of_urls_is_split() -> None:
    assert found(refs="https://e.test/a,b,https://e.test/c, https://e.test/d") == (
        None,
        [("https://e.test/a,b", "url"), ("https://e.test/c", "url"), ("https://e.test/d", "url")],
    )


def test_a_phrase_stays_whole_and_its_keys_can_be_found() -> None:
    assert found(jiras="Fixes ABC-12 in part") == (
        "ABC-12",
        [("Fixes ABC-12 in part", "reference"), ("ABC-12", "jira")],
    )


def test_a_key_in_a_browse_url_counts_but_not_any_dash_in_a_url() -> None:
    assert found(refs="https://j.test/browse/WALK-672")[0] == "WALK-672"
    assert found(refs="https://e.test/TR/REC-20120101")[0] is None


@pytest.mark.parametrize("name", ["jira_key", "custom_jira_key", "jira_id", "custom_issue_key", "Jira_Key"])
def test_an_explicit_key_field_goes_first(name: str) -> None:
    assert found({name: "XY-1"}, "ABC-2")[0] == "XY-1"
    assert found({name: "soon, maybe"}, "ABC-2")[0] == "soon, maybe"
    assert found({name: "first XY-3, then XY-4"}, "ABC-2")[0] == "XY-3"
    assert found({name: None}, "ABC-2")[0] == "ABC-2"


def test_the_columns_are_asked_in_order_for_the_key() -> None:
    assert found(None, "none", "ABC-3", "ABC-4")[0] == "ABC-3"
    assert found(None, None, "UTF-8", "ABC-4")[0] == "ABC-4"
    assert found(None, None, "12", None)[0] is None


def test_long_and_multi_line_values_are_kept() -> None:
    keys = [f"LONG-{number}" for number in range(500)]
    assert [key for key, _ in found(jiras="\r\n".join(keys))[1]] == keys


def test_odd_values_are_text() -> None:
    assert found({"jira_ids": [1, "ABC-1"]}, 12, 1.5)[1] == [
        ("1", "number"),
        ("ABC-1", "jira"),
        ("12", "number"),
        ("1.5", "reference"),
    ]


TEXT = st.lists(
    st.sampled_from(
        ["ABC-1", "#7", "https://e.test/a", "word", ", ", ";", "\n", " ", "(", ")", "<br>", ".", "é", "a,b"]
    )
).map("".join) | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>&"), max_size=40)


@given(TEXT, TEXT)
def test_no_word_of_a_reference_is_lost(first: str, second: str) -> None:
    _, issues = found({"custom_jira": first}, second)
    have = {word for key, _ in issues for word in re.findall(r"\w+", key)}
    wanted = set(re.findall(r"\w+", re.sub("<br>", "\n", f"{first}\n{second}")))
    assert wanted <= have
    assert len(issues) == len(set(issues))
    assert all(key.strip() for key, _ in issues)
