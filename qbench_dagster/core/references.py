"""The Jira key and the related issues of a case, from its reference columns and custom fields.

Only references belong here. A reference is kept as written; what it is called at its target is not looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from qbench_dagster.core.markup import plain
from qbench_dagster.core.model import RelatedIssue

_KEY = re.compile(r"[A-Z][A-Z0-9_]+-\d+")
_KEY_INSIDE = re.compile(r"(?<![\w-])[A-Z][A-Z0-9_]+-\d+(?![\w-])")
_NOT_KEYS = re.compile(r"(?:AES|CVE|CWE|DES|EN|FIPS|HTTP|IEC|IEEE|ISO|MD|RFC|SHA|TLS|UCS|UTF|WCAG)-.*")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+|www\.\S+", re.IGNORECASE)
_URL_INSIDE = re.compile(r"https?://[^\s<>\"'\])]+", re.IGNORECASE)
_KEY_IN_URL = re.compile(r"(?:/browse/|/issues/|selectedIssue=|issueKey=)([A-Z][A-Z0-9_]+-\d+)")
_MARKDOWN_LINK = re.compile(r"!?\[[^\]]*\]\(\S+\)")
_NUMBER = re.compile(r"#?\d+")
_SPLIT = re.compile(r"[;\n\t]+|,(?=\s|$|https?://|#?\d+(?:[,;\s]|$)|[A-Z][A-Z0-9_]+-\d)")
_JIRA_FIELD = re.compile(
    r"(?:custom_)?(?:jira|issue)_?(?:keys?|ids?|refs?|issues?|tickets?|links?|urls?|references?)?|.*jira.*"
)
_KEY_FIELDS = ("jira_key", "custom_jira_key", "jira_id", "custom_jira_id", "issue_key", "custom_issue_key")


def references(
    custom_fields: Mapping[str, object], jiras: object, refs: object, refs_custom: object
) -> tuple[str | None, tuple[RelatedIssue, ...]]:
    """The Jira key of a case, and all its references in order, each once."""
    explicit, fields = _fields(custom_fields)
    issues = [issue for text in (*fields, *map(_text, (jiras, refs, refs_custom))) if text for issue in split(text)]
    found = dict.fromkeys(issues)
    if explicit:
        return _explicit_key(explicit), tuple(found)
    columns = [issue for text in map(_text, (jiras, refs, refs_custom)) if text for issue in split(text)]
    candidates = columns + issues
    key = next((key for issue in candidates if (key := _key_of(issue))), None)
    return key, tuple(found)


def _fields(custom_fields: Mapping[str, object]) -> tuple[str, list[str]]:
    """The value of the explicit Jira key field, and the texts of all Jira fields."""
    texts: dict[str, str] = {}
    for name, value in custom_fields.items():
        lowered = name.lower()
        if ("jira" in lowered or "issue" in lowered) and _JIRA_FIELD.fullmatch(lowered) and (text := _text(value)):
            texts[lowered] = text
    explicit = next((texts[name] for name in _KEY_FIELDS if name in texts), "")
    return explicit, list(texts.values())


def _text(value: object) -> str:
    return plain(value) if value is not None else ""


def _explicit_key(text: str) -> str:
    """The first Jira key of an explicit field, else its value as it is."""
    found = next((match[0] for match in _KEY_INSIDE.finditer(text)), None)
    return found or next((m[1] for m in _KEY_IN_URL.finditer(text)), text)


def _key_of(issue: RelatedIssue) -> str | None:
    if issue.kind == "jira":
        return issue.key
    if issue.kind == "url" and (found := _KEY_IN_URL.search(issue.key)):
        return found[1]
    return None


@lru_cache(maxsize=4096)
def split(text: str) -> tuple[RelatedIssue, ...]:
    """The references of one text. A phrase stays whole, followed by the keys and links inside it."""
    result: list[RelatedIssue] = []
    for chunk in _SPLIT.split(text):
        pieces = chunk.split()
        if not pieces:
            continue
        if len(pieces) == 1 or all(kind(_trimmed(piece)) != "reference" for piece in pieces):
            result += [issue for piece in pieces for issue in _pieces(piece)]
        elif "," in chunk and "://" not in chunk:
            result += [issue for part in chunk.split(",") for issue in _phrase(part)]
        else:
            result += _phrase(chunk)
    return tuple(result)


def _pieces(piece: str) -> Iterable[RelatedIssue]:
    parts = [piece] if "://" in piece else piece.split(",")
    for part in parts:
        key = _trimmed(part)
        if key:
            yield RelatedIssue(key, kind(key))


def _phrase(text: str) -> list[RelatedIssue]:
    words = " ".join(text.split())
    if not words:
        return []
    inside = [match[0] for match in _URL_INSIDE.finditer(words)]
    rest = _URL_INSIDE.sub(" ", words)
    inside += [match[0] for match in _KEY_INSIDE.finditer(rest)]
    issues = [RelatedIssue(key, found) for key in inside if (found := kind(key)) != "reference" and key != words]
    return [RelatedIssue(words, kind(words)), *issues]


def _trimmed(text: str) -> str:
    """A reference without the brackets and full stops around it; what is nothing else stays."""
    core = text.rstrip(".,;:").lstrip("([<{\"'").rstrip(">}\"'")
    for opening, closing in ("()", "[]"):
        while core.endswith(closing) and core.count(closing) > core.count(opening):
            core = core[:-1]
    if _MARKDOWN_LINK.fullmatch(text):
        return text
    return core or text


def kind(key: str) -> str:
    """`jira`, `url`, `number` or `reference`."""
    if _KEY.fullmatch(key):
        return "reference" if _NOT_KEYS.fullmatch(key) else "jira"
    if _URL.fullmatch(key) or _MARKDOWN_LINK.fullmatch(key):
        return "url"
    return "number" if _NUMBER.fullmatch(key) else "reference"
