"""Any value as text that PostgreSQL, JSON and UTF-8 can hold: control characters, surrogates, line ends.

Characters only; tags and entities are `markup.py`. Nothing here removes a word or joins two.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f]")
_INVISIBLE = dict.fromkeys([0xAD, 0x180E, *range(0x200B, 0x2010), *range(0x2060, 0x2065), 0xFEFF, 0x3164])


def clean(text: str) -> str:
    """Text with LF line ends and without characters PostgreSQL or UTF-8 refuse.

    Control characters become spaces (so that no two words grow together), lone surrogates U+FFFD.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _UNSAFE.search(text) is None:
        return text
    text = _CONTROL.sub(" ", text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_blank(text: str) -> bool:
    """Whether a person would see nothing: only spaces, NBSP, zero-width and format characters."""
    return not text.translate(_INVISIBLE).strip()


def text_of(value: object) -> str:  # noqa: PLR0911
    """Any value of a dynamically typed column or JSON as clean text; None is empty."""
    if isinstance(value, str):
        return clean(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return clean(value.decode("utf-8", "replace"))
    if isinstance(value, list | tuple | dict):
        return "\n".join(_leaves(value))
    try:
        return clean(str(value))
    except ValueError:  # an int of more digits than Python prints
        return hex(value) if isinstance(value, int) else ""


def _leaves(value: object) -> list[str]:
    """The texts of a nested value in order, a key before its value; without recursion, however deep."""
    texts: list[str] = []
    stack: list[tuple[str, object]] = [("", value)]
    while stack:
        label, item = stack.pop()
        if isinstance(item, dict):
            stack += [(f"{label}{text_of(key)}: ", inner) for key, inner in reversed(item.items())]
        elif isinstance(item, list | tuple):
            stack += [(label if index == 0 else "", inner) for index, inner in reversed(list(enumerate(item)))]
        elif text := label + text_of(item):
            texts.append(text)
    return texts
