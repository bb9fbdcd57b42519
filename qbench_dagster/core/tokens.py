"""How many tokens a text has, told without the tokenizer's tables: an estimate of cl100k_base, from the text alone.

The estimate belongs here, and what it was measured against. The exact count is `adapters/tokenizer.py`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import lru_cache
from itertools import groupby

# cl100k_base cuts a text by rules before it looks anything up, and these are the same rules: over 64,505 real
# texts their parts had exactly the tokens of the texts, and 94 % of the 2,159,265 parts are one token.
_PART = re.compile(
    r"'(?:[sdmt]|ll|ve|re)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s",
    re.IGNORECASE,
)
_SMALL = "a-zß-öø-ÿ"
_HUMP = re.compile(rf"[^\W\d_{_SMALL}]+(?![{_SMALL}])|[^\W\d_{_SMALL}]?[{_SMALL}]+|.", re.DOTALL)
_LATIN = re.compile(r"[A-Za-zÀ-ɏḀ-ỿ]+")

# The commonest words of test cases that are one token each: 63 % of the words of the real texts, and 7 to 13 %
# of those of a text in another language, which is how the two are told apart.
_WORDS = """
    about access account accounts add address admin after all allow already an and android another any app are
    argument arguments array as at attribute available back background be been before border both but button by
    cache can cannot case certificate change channel character check class click client command commands config
    configuration configure conflict connection contains content context copy correct create created current
    data date default delete device devices different directory disabled display do document does download each
    edit element empty enable enabled encoding end enter entries entry error execute execution existing exists
    exit expected failed file files find first folder following for format found from function get github given
    group has hash have header history how id if import in index information input instance instead interface
    into invalid is it item its job key keys last line link list local location login long make manager match
    maximum may member message messages method missing mobile mode more move must name names network new next no
    non not note number of offline offset on one only open operation option options or other out output over
    page pass passed password path please policy port prefix present process program provider public read
    release remove removed rename required resource results returns root run running same search secret section
    security see select selected send server session set settings share shared shell should show sign signature
    signed size so some source space stack standard start state status string success successfully sure symbol
    sync syntax system tab table tablet target test tested tests text than that the then there this time to too
    traffic true try two type unknown unless up update upload url use used user users using valid validate value
    values variable verify version via video view warning was web when which will with without you your zero
"""
_COMMON = frozenset(_WORDS.split())
# Tokens of any other word by its letters, 1 to 13, and for each letter more: the mean over the real texts, and
# over 18 European languages, where a word of the same length is twice as many tokens.
_ENGLISH = (1.0, 1.03, 1.01, 1.1, 1.12, 1.16, 1.2, 1.25, 1.28, 1.33, 1.55, 1.64, 2.0, 0.31)
_FOREIGN = (1.0, 1.0, 1.2, 1.52, 1.82, 2.05, 2.36, 2.59, 2.85, 3.11, 3.36, 3.65, 4.0, 0.35)
_ENGLISH_CAPITALS = (1.0, 1.0, 1.6, 1.67, 1.74, 1.75, 0.45)
_FOREIGN_CAPITALS = (1.0, 1.07, 1.55, 1.9, 2.28, 2.76, 0.5)
_ACCENT = 0.7  # for each letter with an accent,
_RARE_ACCENT = 1.0  # and for those beyond Latin-1: ł, ő, ş
_GLUED = 0.4  # for a sign before a word: `/path` is more often two tokens than `(word` is one
_WITHIN = -0.25  # for each further part of `camelCase`, some of which are one token together
_CLUSTER = re.compile("[bcdfghjklmnpqrstvwxz]{4,}")
_CLUSTERED = 0.5  # for each consonant past the third in a row: no word, but an abbreviation or a blob
_BLOB = 1.4  # `aGVsbG8`, letters in every case: base64, not a word

# Tokens of a character of other scripts, from its code point on.
_SCRIPTS: tuple[tuple[int, float], ...] = (
    (0x00, 0.35), (0x80, 2.0), (0xA0, 1.0), (0x250, 1.5), (0x370, 1.03), (0x400, 2.0), (0x410, 0.55), (0x450, 2.0),
    (0x590, 1.15), (0x600, 0.86), (0x700, 2.0), (0x900, 1.2), (0x980, 1.42), (0xA00, 2.0), (0xB80, 1.55),
    (0xC00, 2.0), (0xE00, 0.97), (0xE80, 2.0), (0x1200, 3.0), (0x1680, 2.0), (0x1780, 1.75), (0x1800, 2.0),
    (0x2000, 1.0), (0x2070, 1.3), (0x2200, 1.7), (0x2500, 1.15), (0x25A0, 1.7), (0x2C00, 2.0), (0x3000, 1.0),
    (0x3100, 2.5), (0x4E00, 1.95), (0xA000, 3.0), (0xAC00, 1.27), (0xD7B0, 3.0), (0xFE00, 1.0), (0xFE10, 2.0),
    (0xFF00, 1.2), (0xFFF0, 2.0), (0x10000, 4.0), (0x1F000, 2.85), (0x20000, 4.0),
)  # fmt: skip
_STARTS = tuple(start for start, _ in _SCRIPTS)
_RATES = tuple(rate for _, rate in _SCRIPTS)
# The commonest ideographs that are one token; the others are two or three.
_IDEOGRAPHS = frozenset(
    "一上下不与个中串为主义之了于交从他付代以件任但位体何作使例供保信修值停像元先入全共关其内再写出分列则"
    "初利到制前力加务动動包化区原参发取变只可右号合同名后向否含告命和問器回因国图在地址型基報場复外多大失"
    "如始子字存安完定容密对将小少展工左已常并序库应度建开式引当录形影待後得必性息您情意成或户所手打找拉持"
    "指按换据排接提支改放效数整文料新方无日时明是時更最有服期未本束条来析果查标格案模次止正此段每比求没法"
    "注消源点無版物特现理生用由画番的目直相省知码示秒称移程空立端符第等签算管类系素索组统编置者而能自至色"
    "行表装要見解言計記読认记设证语误请读象败起超路输过这进述送选通連部配重量金错键開間関间限除集需非面项"
)

_CACHED = 32  # longer parts are blobs, which do not come twice
_VOTE = 3  # a common word speaks as loudly for English as three others against it
_VERDICT = -4


def estimate(text: str) -> int:
    """Tokens of `text` by cl100k_base, estimated: 0 of nothing, else at least 1 and at most its UTF-8 bytes.

    Measured against the tables: all of the 64,505 real texts together 3.2 % over, a request of 2,048 of them
    1.6 to 4.4 % over, one of them alone (1st to 99th percentile) 20 % under to 31 % over. Long texts of user
    interfaces in other languages: Chinese -4 % (traditional) and +13 %, Japanese +4, Korean +6, Russian +16,
    Arabic +2, Hindi -3, Thai -1, Greek -2, German +11, French +19, Finnish -8, Lithuanian -10 %. Base64 -8, code
    +5, JSON +6, URLs +27 %; letters or signs at random up to 24 % under. Some 50,000 texts/s on one core.
    """
    if not text:
        return 0
    english = foreign = 0.0
    votes = 0
    for part in _PART.findall(text):
        as_english, as_foreign, vote = _cached(part) if len(part) <= _CACHED else _cost(part)
        english += as_english
        foreign += as_foreign
        votes += vote
    total = round(foreign if votes <= _VERDICT else english)
    return max(1, min(total, len(text.encode("utf-8", "surrogatepass"))))


def _cost(part: str) -> tuple[float, float, int]:
    """(tokens in an English text, tokens in one of another language, how much it speaks for English)."""
    first = part[0]
    if "0" <= first <= "9":
        return 1.0, 1.0, 0
    if part.isspace():
        # Some 80 spaces are one token, some eight of any other blank. One to four blanks are one, whatever they are.
        spaces = part.count(" ")
        tokens = 1.0 + spaces / 100 + max(0, len(part) - spaces - 4) / 8
        return tokens, tokens, 0
    word = part if first.isalpha() else part[1:]
    if _LATIN.fullmatch(word):
        return _word(word, 0.0 if word is part or first == " " else _GLUED)
    tokens = _signs(part.strip()) if part.isascii() else sum(map(_rate, part.strip()))
    return tokens, tokens, 0


_cached = lru_cache(maxsize=65_536)(_cost)


def _word(word: str, glued: float) -> tuple[float, float, int]:
    english = foreign = glued
    vote = 0
    humps = _HUMP.findall(word)
    for hump in humps:
        size = len(hump)
        joined = _WITHIN if size > 2 and size < len(word) else 0.0
        if hump.lower() in _COMMON:
            english, foreign, vote = english + 1 + joined, foreign + 1 + joined, vote + _VOTE
            continue
        capitals = size > 1 and hump.isupper()
        odd = joined + _oddities(hump)
        english += odd + _by_length(_ENGLISH_CAPITALS if capitals else _ENGLISH, size)
        foreign += odd + _by_length(_FOREIGN_CAPITALS if capitals else _FOREIGN, size)
        vote -= size > 2 and not capitals
    if len(humps) > 2 and len(word) < 3 * len(humps):
        english, foreign = _BLOB * english, _BLOB * foreign
    return max(1.0, english), max(1.0, foreign), vote


def _oddities(hump: str) -> float:
    """Tokens for what is no usual letter of a word: accents, and consonants without a vowel."""
    if hump.isascii():
        return _CLUSTERED * sum(len(run) - 3 for run in _CLUSTER.findall(hump))
    return sum(_RARE_ACCENT if letter > "\xff" else _ACCENT for letter in hump if letter > "\x7f")


def _by_length(table: tuple[float, ...], size: int) -> float:
    """Tokens of a word of `size` letters; the last number of the table is for each letter past its end."""
    known = len(table) - 1
    return table[size - 1] if size <= known else table[-2] + (size - known) * table[-1]


def _signs(part: str) -> float:
    if len(part) <= 3:
        return 1.0
    return min(1.0 + (len(part) - 3) * 0.5, sum(1 + len(list(run)) / 32 for _, run in groupby(part)))


def _rate(character: str) -> float:
    return 1.0 if character in _IDEOGRAPHS else _RATES[bisect_right(_STARTS, ord(character)) - 1]
