"""What is embedded of a case and of a step, and the hash that names a text in an embedding space.

Both text forms are the predecessor's: change one and no stored vector can be reused. Nothing else that
makes text belongs here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Literal

_WORD = re.compile(r"\w+")


def doc_text(title: str, description: str | None) -> str:
    """The text of a whole case: its title, a line end, and its description if it has one."""
    return f"{title}\n{description or ''}"


def step_text(action: str, expected: Iterable[str]) -> str:
    """The text of one step: its action, a line end, and its expected results one a line."""
    return action + "\n" + "\n".join(expected)


def text_of(kind: Literal["doc", "step"], first: str, second: Any) -> str:
    """The text of a staged row: of a case its title and description, of a step its action and expected results."""
    return doc_text(first, second) if kind == "doc" else step_text(first, second)


def text_hash(text: str) -> bytes:
    """The SHA-256 of the text's UTF-8, the key of the embedding tables."""
    return hashlib.sha256(text.encode()).digest()


def words(text: str) -> list[str]:
    """The words of a text, digits included, in order and in their own case."""
    return _WORD.findall(text)
