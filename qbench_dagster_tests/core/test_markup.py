"""Markup -> plain text: what counts as HTML, what stays verbatim, and that no word is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.characters import clean, is_blank, text_of
from qbench_dagster.core.markup import has_paragraphs, plain

WORD = st.text("abcXYZ0189éß手順", min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("1. Open<br>2. Scroll <BR/>\n3. Close", "1. Open\n2. Scroll\n3. Close"),
        ("a<br><br>b", "a\n\nb"),
        ("<p>One</p>\n<p>Two &amp; three</p>", "One\nTwo & three"),
        ('<p class="x">in<b>lin</b>e</p>', "inline"),
        ("<div>open <i>it</i> <b>never closed", "open it <b>never closed"),
        ("<ol><li>One</li><li>Two</li></ol>", "1. One\n2. Two"),
        ("<ol start=4><li>Four<li>Five</ol>", "4. Four\n5. Five"),
        ("<ul><li>A<ol><li>x</li></ol></li>\n<li>B</li></ul>end", "- A\n    1. x\n- B\nend"),
        ('see <a href="https://e.test/?a=1&amp;b=2">docs</a>.', "see docs (https://e.test/?a=1&b=2)."),
        ("<a href='https://e.test'>https://e.test</a>", "https://e.test"),
        ('<img src="index.php?/attachments/get/7" alt="shot">', "![shot](index.php?/attachments/get/7)"),
        (
            "<table><tr><th>Do</th><th>See</th></tr><tr><td><p>press</p></td><td>light</td></tr></table>",
            "Do | See\npress | light",
        ),
        ("&lt;tag&gt; &eacute; &#8364; a&nbsp;b", "<tag> é € a b"),
        ("?a=1&copy=2&amp", "?a=1&copy=2&amp"),
        ("line\r\nnext\rlast", "line\nnext\nlast"),
        ("  \u00a0 outer \u3000", "outer"),
        ("zero\u200bwidth", "zero\u200bwidth"),
    ],
)
def test_html_becomes_the_text_a_reader_sees(raw: str, expected: str) -> None:
    assert plain(raw) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Open <channel> as <username> when a < b and c > d",
        "peer <a> talks to peer <b>",
        "<script>alert(1)</script> <table> <img>",
        "<a:prop/> <br2. typo",
        "run `<br>` and `a &amp; b`",
        "```\n<p>kept &lt;as it is</p>\n```",
        "[link](https://e.test) ![](index.php?/attachments/get/7) **bold** _em_",
        "trailing spaces  \n\tand tabs stay",
        "R&D; AT&T",
        "U+FFFD \ufffd stays",
    ],
)
def test_what_is_not_html_stays_verbatim(text: str) -> None:
    assert plain(text) == text


def test_a_stray_backtick_does_not_hide_line_breaks() -> None:
    assert plain("don`t stop<br>it`s <b>on</b>") == "don`t stop\nit`s on"


def test_characters_postgresql_refuses_are_gone_and_words_stay_apart() -> None:
    assert clean("a\x00b\x03c\ud800d") == "a b c\ufffdd"
    assert clean("\ud83d\ude00") == "😀"
    assert plain("a&#0;b &#x1;c") == "a\ufffdb  c"


@pytest.mark.parametrize("text", ["", "  ", "\u00a0\u200b\ufeff\t\n", "&nbsp;<br><p>&#8203;</p>"])
def test_invisible_text_is_blank(text: str) -> None:
    assert plain(text) == ""
    assert is_blank(plain(text))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (12, "12"),
        (1.5, "1.5"),
        (True, "true"),
        (b"a\xff", "a\ufffd"),
        (["a", 2], "a\n2"),
        ({"k": "v"}, "k: v"),
    ],
)
def test_any_value_has_a_text(value: object, expected: str) -> None:
    assert text_of(value) == expected


def test_a_run_of_paragraphs_is_recognised() -> None:
    assert has_paragraphs("<p>a</p><P class=x>b</P>")
    assert not has_paragraphs("<p>a</p>")
    assert not has_paragraphs("a\nb")


@given(st.text())
def test_no_text_raises_and_every_result_can_be_stored(text: str) -> None:
    result = plain(text)
    result.encode()
    assert "\0" not in result
    assert "\r" not in result


@given(st.text(alphabet="<>/&;`~brpolitd =\"'#\n ax1.-", max_size=80))
def test_markup_soup_never_raises(text: str) -> None:
    plain(text).encode()


@given(st.text(st.characters(exclude_characters="<&\r", exclude_categories=["Cs", "Cc"])))
def test_text_without_markup_only_loses_its_outer_space(text: str) -> None:
    assert plain(text) == ("" if is_blank(text) else text.strip())


PIECES = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "{}",
                "<p>{}</p>",
                "<b>{}</b>",
                "<br>{}",
                "<li>{}",
                "<td>{}</td>",
                "<tr>{}",
                "<h2>{}",
                "</div>{}",
                "<a href='u'>{}</a>",
                "<ol><li>{}</ol>",
                "<{} x>",
                "`{}`",
                "<i>{}",
                "</table>{}",
                "&lt;{}",
                "<a>{}",
            ]
        ),
        WORD,
    ),
    max_size=12,
)


@given(PIECES)
def test_no_visible_word_is_lost(pieces: list[tuple[str, str]]) -> None:
    result = plain(" ".join(form.format(word) for form, word in pieces))
    words = re.findall(r"\w+", result)
    for _, word in pieces:
        assert word in words


@given(PIECES)
def test_plain_text_stays_as_it_is_when_read_again(pieces: list[tuple[str, str]]) -> None:
    once = plain(" ".join(form.format(word) for form, word in pieces if form not in ("&lt;{}", "<i>{}", "<a>{}")))
    assert plain(once) == once
