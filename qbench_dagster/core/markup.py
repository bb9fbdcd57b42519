"""HTML and other markup of a TestRail text field -> plain text that PostgreSQL and JSON can hold.

Only what one string says belongs here: tags, entities, links. Characters are `characters.py`, where a step
begins is `segments.py`, how two fields are joined is `merge.py`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import unescape
from html.entities import html5

from qbench_dagster.core.characters import clean, is_blank, text_of

_INLINE = "span b i u s em strong font a sub sup small big del ins strike center code tt kbd mark q cite"
_BLOCK = "p div ul ol li table thead tbody tfoot tr td th caption h1 h2 h3 h4 h5 h6 pre blockquote hr dl dt dd br img"
_NAMES = "|".join(sorted(f"{_INLINE} {_BLOCK}".split(), key=len, reverse=True))
_ATTRIBUTES = (
    "href src alt title class style id align valign width height border cellpadding cellspacing colspan "
    "rowspan color size face target rel name lang dir type start value bgcolor nowrap clear scope hspace "
    "vspace summary"
).replace(" ", "|")
_TAG = (
    rf"(?P<tag><(?P<close>/?)(?P<name>{_NAMES})"
    rf"(?P<attrs>(?:\s++(?:{_ATTRIBUTES}|(?:data|aria)-[\w-]+|on[a-z]+|xmlns[\w:]*)"
    r"(?:\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s\"'=<>`]++))?)*+)\s*+/?>)"
)
_ENTITY = r"(?P<entity>&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});)"
_FENCE = (
    r"(?P<fence>^[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(?P<mark>`{3,}|~{3,})[^\n`<]*\n"
    r"(?:.*?^[ \t>]*(?P=mark)[`~]*[ \t]*$|.*))"
)
_CODE = r"(?P<code>(?<!`)(?P<ticks>`+)(?!`)[^\n]{0,2000}?(?<!`)(?P=ticks)(?!`))"
_FLAGS = re.IGNORECASE | re.MULTILINE | re.DOTALL
_ENTITIES = re.compile(_ENTITY)
_TOKEN = re.compile(f"{_TAG}|{_ENTITY}", _FLAGS)
_TOKEN_OR_CODE = re.compile(f"{_FENCE}|{_CODE}|{_TAG}|{_ENTITY}", _FLAGS)
_ATTRIBUTE = re.compile(r"([\w:-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'=<>`]+))")
_PARAGRAPH = re.compile(r"<(?:p|div)(?:\s[^<>]*)?>", re.IGNORECASE)
_BR_IN_CODE = re.compile(r"<br\s*/?>", re.IGNORECASE)

_LOWER = {code: code + 32 for code in range(65, 91)}
_NEEDS_CLOSE = frozenset(_INLINE.split())
_CHILDREN = {"ul": ("<li",), "ol": ("<li",), "dl": ("<dt", "<dd"), "table": ("<tr", "<td", "<th")}
_CHILDREN |= dict.fromkeys(("thead", "tbody", "tfoot", "tr"), ("<tr", "<td", "<th"))


def plain(value: object) -> str:
    """The plain text of a field, stripped; blank texts (also NBSP or zero-width only) are empty."""
    text = unstripped(value)
    return "" if is_blank(text) else text.strip()


def unstripped(value: object) -> str:
    """As `plain`, with the outer white space kept: the indent of the first line tells list levels."""
    text = value if isinstance(value, str) else text_of(value)
    if "<" not in text and "&" not in text:
        return clean(text)
    return _converted(text)


def has_paragraphs(value: object) -> bool:
    """Whether a raw field is written as a run of HTML paragraphs, so that its lines are items."""
    return isinstance(value, str) and "<" in value and len(_PARAGRAPH.findall(value)) > 1


@lru_cache(maxsize=2048)
def _converted(text: str) -> str:
    text = clean(text)
    pattern = _TOKEN_OR_CODE if "`" in text or "~~~" in text else _TOKEN
    writer = _Writer(text.translate(_LOWER))
    position = 0
    while match := pattern.search(text, position):
        start, end = match.span()
        if start > position:
            writer.text(text[position:start])
        if match.lastgroup == "code" and _swallows_breaks(match[0]):
            end = match.end("ticks")  # a stray backtick, no code span: read on right behind it
            writer.text(match["ticks"])
        elif match.lastgroup == "entity":
            writer.text(_entity(match[0]))
        elif match.lastgroup == "tag":
            writer.tag(match)
        else:
            writer.verbatim(match[0])
        position = end
    writer.text(text[position:])
    return clean(writer.result())


def _swallows_breaks(code: str) -> bool:
    inner = code.strip("` ")
    found = _BR_IN_CODE.search(inner)
    return found is not None and found[0] != inner


def _entity(entity: str) -> str:
    if entity[1] == "#":
        return unescape(entity) or " "
    if entity == "&nbsp;":
        return " "
    return html5.get(entity[1:], entity)


def _decoded(text: str) -> str:
    return _ENTITIES.sub(lambda match: _entity(match[0]), text) if "&" in text else text


class _Writer:
    """Collects plain text; knows open lists, links and table cells."""

    def __init__(self, lowered: str) -> None:
        self._source = lowered
        self._found: dict[str, int] = {}  # where each tag occurs last
        self._out: list[str] = []
        self._lists: list[int | None] = []  # the next ordinal of each open <ol>, None for <ul>
        self._links: list[tuple[str, int]] = []
        self._eat: str | None = None  # white space to drop from the next text
        self._in_cell = False
        self._cells = 0

    def text(self, text: str) -> None:
        if not text:
            return
        if self._eat is not None:
            text = self._dropped(text)
            if not text:
                return
        if self._in_cell and "\n" in text:
            text = " ".join(text.split("\n"))
        self._out.append(text)

    def verbatim(self, text: str) -> None:
        self._eat = None
        self._out.append(text)

    def _dropped(self, text: str) -> str:
        if self._eat == "line":  # after <br>: the line's rest, one line end at most
            rest = text.lstrip(" \t")
            if rest.startswith("\n"):
                rest = rest[1:]
                self._eat = None
                return rest
        else:
            rest = text.lstrip(" \t\n")
        if rest:
            self._eat = None
        return rest

    def _trim(self, chars: str) -> None:
        while self._out and len(self._out) > (self._links[-1][1] if self._links else 0):
            kept = self._out[-1].rstrip(chars)
            if kept:
                self._out[-1] = kept
                return
            self._out.pop()

    def _break(self) -> None:
        """One line end where a block begins or ends."""
        if self._in_cell:
            self._space()
        else:
            self._trim(" \t\n")
            if self._out:
                self._out.append("\n")
        self._eat = "all"

    def _space(self) -> None:
        if self._out and not self._out[-1].endswith((" ", "\n")):
            self._out.append(" ")

    def tag(self, match: re.Match[str]) -> None:
        name, closing, attrs = match["name"].lower(), bool(match["close"]), match["attrs"]
        if not self._is_markup(name, closing, attrs, match.end()):
            self.text(match[0])
        elif name == "br":
            if self._in_cell:
                self._space()
            else:
                self._trim(" \t")
                self._out.append("\n")
            self._eat = "line"
        elif name == "img":
            values = _attributes(attrs)
            self.text(f"![{values.get('alt', '')}]({values['src']})")
        elif name == "a":
            self._link(closing, attrs)
        elif name not in _NEEDS_CLOSE or name == "center":
            self._block(name, closing, attrs)

    def _is_markup(self, name: str, closing: bool, attrs: str, end: int) -> bool:
        """Whether a tag is markup, not a placeholder such as `<b>` in `from <a> to <b>`."""
        if name == "img":
            return "src" in _attributes(attrs)
        if closing or attrs:
            return True
        if name in _NEEDS_CLOSE:
            return self._last(f"</{name}") >= end
        children = _CHILDREN.get(name)
        return children is None or any(self._last(child) >= end for child in children)

    def _last(self, tag: str) -> int:
        if tag not in self._found:
            self._found[tag] = self._source.rfind(tag)
        return self._found[tag]

    def _link(self, closing: bool, attrs: str) -> None:
        if not closing:
            self._links.append((_attributes(attrs).get("href", ""), len(self._out)))
        elif self._links:
            href, start = self._links.pop()
            label = "".join(self._out[start:])
            if href and label.strip() != href:
                self._out[start:] = [f"{label} ({href})" if label.strip() else href]
            self._eat = None

    def _block(self, name: str, closing: bool, attrs: str) -> None:
        if name in ("td", "th"):
            if not closing:
                if self._cells:
                    self._trim(" \t\n")
                    self._out.append(" | ")
                self._cells += 1
                self._eat = "all"
            self._in_cell = not closing
            return
        if name in ("tr", "table"):
            self._in_cell = False
            self._cells = 0
        self._break()
        if name in ("ol", "ul"):
            if not closing:
                start = _attributes(attrs).get("start", "1")
                self._lists.append((int(start) if _is_small(start) else 1) if name == "ol" else None)
            elif self._lists:
                self._lists.pop()
        elif name == "li" and not closing:
            self._item(_attributes(attrs).get("value", ""))

    def _item(self, value: str) -> None:
        indent = "    " * min(len(self._lists) - 1, 12)
        ordinal = self._lists[-1] if self._lists else None
        if ordinal is None:
            self._out.append(f"{indent}- ")
            return
        if _is_small(value):
            ordinal = int(value)
        self._out.append(f"{indent}{ordinal}. ")
        self._lists[-1] = ordinal + 1

    def result(self) -> str:
        while self._links:
            self._link(closing=True, attrs="")
        return "".join(self._out)


def _is_small(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) < 7


@lru_cache(maxsize=256)
def _attributes(attrs: str) -> dict[str, str]:
    return {m[1].lower(): _decoded(m[2] or m[3] or m[4] or "") for m in _ATTRIBUTE.finditer(attrs)}
