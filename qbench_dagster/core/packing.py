"""Texts into requests: how many fit into one, and how a text too long for the model is sent in pieces.

Sizes come in as numbers or as a counting function; how tokens are counted is `tokens.py`, what a service
takes is `requests.py`. Nothing is sent from here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qbench_dagster.core.requests import Limits

T = TypeVar("T")

# Where a cut is welcome, best first: after a line, a sentence, a blank, a character.
_CUTS = tuple(map(re.compile, (r"\n+", r"[.!?;:](?=\s)\s+|[。！？；]", r"\s+")))
_TAIL = 0.2  # a welcome cut is looked for in the last fifth of a piece: worth a smaller piece, not half a piece
_NEAR = 0.9  # a piece of 90 % of its goal is good enough, a better one costs another count
_CLUSTER = 32  # characters walked back to keep a letter and its accents together; more is not a letter
_JOINERS = frozenset("\u200d\ufe0e\ufe0f") | frozenset(map(chr, range(0x1F3FB, 0x1F400)))  # ZWJ, variants, skin tones
_CANCELLED = 1e-4  # a mean this much shorter than its parts has no direction but rounding's


@dataclass(frozen=True, slots=True)
class Sized(Generic[T]):
    """Something to send: its tokens, and the inputs of a request it takes (more than one: sent in pieces)."""

    value: T
    tokens: int
    inputs: int = 1


def pack(items: Iterable[Sized[T]], limits: Limits | Callable[[], Limits]) -> Iterator[list[Sized[T]]]:
    """`items`, in order, in requests that keep the limits: each is filled until the next item would not fit.

    Reads no further ahead than the item that did not fit. `limits` may be a function, asked before each item
    and each request, because a service's real limits are learnt while sending: what was waiting under wider
    limits is then divided. An item that alone is over a limit comes alone: it is for the caller to refuse.

    Where no item is larger than a k-th of a limit, there are at most 1 + (tokens / limit + inputs / limit) *
    k / (k - 1) requests. Test steps of 20 to 60 tokens reach `fewest`.
    """
    waiting: list[Sized[T]] = []
    tokens = inputs = 0
    for item in items:
        waiting.append(item)
        tokens += item.tokens
        inputs += item.inputs
        while len(waiting) > 1 and not _fits(tokens, inputs, now := _current(limits)):
            count = _fitting(waiting, now)
            request, waiting = waiting[:count], waiting[count:]
            tokens = sum(one.tokens for one in waiting)
            inputs = sum(one.inputs for one in waiting)
            yield request
    while waiting:
        count = _fitting(waiting, _current(limits))
        request, waiting = waiting[:count], waiting[count:]
        yield request


def fewest(items: Iterable[Sized[T]], limits: Limits) -> int:
    """The number of requests below which no packing of `items` can go. An item over a limit takes one alone."""
    alone = tokens = inputs = 0
    for item in items:
        if _fits(item.tokens, item.inputs, limits):
            tokens += item.tokens
            inputs += item.inputs
        else:
            alone += 1
    return alone + max(-(-tokens // limits.tokens_per_request), -(-inputs // limits.inputs))


def _current(limits: Limits | Callable[[], Limits]) -> Limits:
    return limits if isinstance(limits, Limits) else limits()


def _fits(tokens: int, inputs: int, limits: Limits) -> bool:
    return tokens <= limits.tokens_per_request and inputs <= limits.inputs


def _fitting(items: Sequence[Sized[T]], limits: Limits) -> int:
    """How many of the first items make a request; at least one."""
    tokens = inputs = 0
    for count, item in enumerate(items):
        tokens += item.tokens
        inputs += item.inputs
        if count and not _fits(tokens, inputs, limits):
            return count
    return len(items)


def pieces(text: str, limit: int, count: Callable[[str], int]) -> list[str]:
    """`text` in pieces of at most `limit` tokens each by `count`; joined they are the text, to the character.

    A cut is made after a line, else a sentence, else a blank, else anywhere but inside a letter with its
    accents. Pieces are of about equal size. Each is counted before it is returned; only a single character
    that alone is over the limit is returned as it is. Counts about five times the text in all, 5 MB or not.
    """
    total = count(text)
    if total <= limit:
        return [text]
    goal = min(limit, math.ceil(total / math.ceil(total / limit) / _NEAR))
    found = []
    start = 0
    per_token = len(text) / total
    while start < len(text):
        size, tokens = _longest(text, start, goal, count, round(goal * per_token))
        per_token = size / max(tokens, 1)
        if start + size < len(text):
            size = _welcome(text, start, size, goal, count)
        found.append(text[start : start + size])
        start += size
    return found


def prefixed_pieces(text: str, prefix: str, limit: int, count: Callable[[str], int]) -> list[str]:
    """`pieces` of a text to which a model wants `prefix` put: each piece has it, and is within the limit with it."""
    room = max(1, limit - count(prefix)) if prefix else limit
    return [prefix + piece for piece in pieces(text, room, count)]


def in_parts(
    texts: Sequence[str], prefix: str, limit: int, count: Callable[[Sequence[str]], list[int]]
) -> list[tuple[list[str], list[int]]]:
    """Each of `texts` as it is sent: its parts, `prefix` before each, and their tokens by `count`.

    One part, but for a text that is over `limit` tokens with its prefix.
    """
    whole = [prefix + text for text in texts]
    found = []
    for text, sent, tokens in zip(texts, whole, count(whole), strict=True):
        parts, sizes = [sent], [tokens]
        if tokens > limit:
            parts = prefixed_pieces(text, prefix, limit, lambda part: count([part])[0])
            sizes = count(parts)
        found.append((parts, sizes))
    return found


def _longest(text: str, start: int, goal: int, count: Callable[[str], int], guess: int) -> tuple[int, int]:
    """(characters from `start` that are just within `goal` tokens, their tokens), at least one character."""
    low, low_tokens = 0, 0
    high = len(text) - start + 1  # the fewest known to be too many
    while True:
        size = min(max(guess, low + 1), high - 1)
        tokens = count(text[start : start + size])
        if tokens <= goal or size == 1:
            low, low_tokens = size, tokens
        else:
            high = size
        if high - low <= 1 or low_tokens >= _NEAR * goal:
            return low, low_tokens
        # The next guess is where the goal lies if the text goes on as it did, but always well inside the two
        # bounds, so that a text that changes its kind half-way still comes to an end.
        aim = round(size * 0.97 * goal / max(tokens, 1))
        guess = min(max(aim, low + (high - low) // 8), high - (high - low) // 8) if low else min(aim, size // 2 + 1)
        guess = min(guess, 2 * low) if low else guess


def _welcome(text: str, start: int, size: int, goal: int, count: Callable[[str], int]) -> int:
    """`size` or somewhat less, where a reader would cut; less characters may be more tokens, so it is counted."""
    earliest = start + size - int(size * _TAIL)
    for cut in _CUTS:
        ends = [found.end() for found in cut.finditer(text, earliest, start + size)]
        if ends and count(text[start : ends[-1]]) <= goal:
            return ends[-1] - start
    for back in range(min(_CLUSTER, size)):
        end = start + size - back
        if not _inside_letter(text, end) and (not back or count(text[start:end]) <= goal):
            return end - start
    return size


def _inside_letter(text: str, at: int) -> bool:
    """Whether a cut before `text[at]` would part a letter from its accents, or an emoji."""
    after = text[at]
    return text[at - 1] == "\u200d" or after in _JOINERS or unicodedata.category(after) in ("Mn", "Me", "Mc")


def average(vectors: ArrayLike, weights: Sequence[int]) -> NDArray[np.float32]:
    """The unit vector (d,) of a text sent in pieces: the mean of their vectors (n, d), weighted by their tokens.

    Pieces that point in opposite directions cancel out, and what is left has no meaning: then it is the first's.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    shares = np.asarray(weights, dtype=np.float64)
    mean = shares @ rows
    if np.linalg.norm(mean) <= _CANCELLED * shares.sum():
        mean = rows[0]
    return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)
