"""The proof that no word was lost: source fields against published texts, case by case.

It shares no code with the normaliser it checks: its own tokens, its own idea of markup.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_TOKEN = re.compile(r"\w+")
_TAG = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|br|center|cite|code|col|colgroup|dd|del|div|dl|dt|em|figcaption|figure|font|"
    r"h[1-6]|hr|i|img|ins|kbd|li|mark|ol|p|pre|q|s|samp|small|span|strike|strong|sub|sup|table|tbody|td|tfoot|"
    r"th|thead|tr|tt|u|ul|var)\b[^<>]*>",
    re.IGNORECASE,
)
FIELDS = ("preconditions", "steps", "steps_separated", "steps_combined")


def lost_words(raw: Mapping[str, Any], published: Iterable[str]) -> list[str]:
    """Words of the step fields and preconditions of source row `raw` that no published text holds, sorted.

    `raw` is a row of landing.cases; `published` are the case's preconditions, actions, expected results and
    data. Case counts: `Login` is not `login`.
    """
    texts = list(_source_texts(raw))
    if not texts:
        return []
    kept = set(_TOKEN.findall("\n".join(published)))
    lost = set(_TOKEN.findall("\n".join(texts))) - kept
    if not lost:
        return []
    # Something differs: it may be markup. `a<b>c</b>` may stand as `ac` or as `a c`; entities may be decoded.
    glued = _words(_TAG.sub("", text) for text in texts) - kept
    parted = _words(_TAG.sub(" ", text) for text in texts) - kept
    return sorted(glued & parted)


def has_words(raw: Mapping[str, Any]) -> bool:
    """Whether the step fields and preconditions of source row `raw` hold a word that could be lost."""
    return any(_TOKEN.search(text) for text in _source_texts(raw))


def _source_texts(raw: Mapping[str, Any]) -> Iterator[str]:
    for field in FIELDS:
        yield from _texts(field, raw.get(field))


def _words(texts: Iterable[str]) -> set[str]:
    return set(_TOKEN.findall(html.unescape("\n".join(texts))))


def _texts(field: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if field == "steps_separated":
        parsed = value
        if isinstance(value, str):
            try:
                parsed = json.loads(value)
            except (ValueError, RecursionError):  # malformed, or nested too deeply to be steps: text as it is
                parsed = value
        yield from _leaves(parsed)
    else:
        yield str(value)


def _leaves(value: Any) -> Iterator[str]:
    """Every text and number in a JSON value; the names of keys are structure, not words."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Mapping):
            pending += item.values()
        elif isinstance(item, list):
            pending += item
        elif item is not None and not isinstance(item, bool):
            yield str(item)
