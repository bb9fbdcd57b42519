"""The queries that searches are compared with: what a query log says, and filters drawn from the data.

Values only: files and vectors are `adapters/queries.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

SHARES = (0.5, 0.05, 0.005)
"""What filters are drawn to match of all cases: a common value, a medium and a rare one, as far as there are such."""
_LISTS = ("priority", "tags", "platforms", "test_type", "project", "suite")


class QueryLogError(ValueError):
    """A query log that cannot be used; the text names the file and the line."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What results have to match, as the search functions take it; a tuple matches any of its values."""

    priority: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    platforms: tuple[str, ...] | None = None
    test_type: tuple[str, ...] | None = None
    folder: str | None = None
    project: tuple[int, ...] | None = None
    suite: tuple[int, ...] | None = None
    updated_since: str | None = None
    """An ISO 8601 date or time."""

    def describe(self) -> str:
        """For people: `priority = High, folder = Web`."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return ", ".join(
            f"{name.replace('_', ' ')} = {' or '.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in given.items()
        )

    def parameters(self) -> dict[str, Any]:
        """By name, lists as lists, as the statements of `compare.sql` bind them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Query:
    """One query as it was logged: words or a vector, how many results, and a filter or None."""

    text: str | None
    vector: tuple[float, ...] | None = None
    k: int = 10
    filter: Filter | None = None
    line: int = 0
    """Where it stands in the log, from 1."""

    @property
    def label(self) -> str:
        """What a person knows it by."""
        return self.text[:200] if self.text is not None else f"vector of line {self.line}"


def parse_log(content: str, name: str) -> list[Query]:
    """The distinct queries of a log: one a line, or JSONL if its first line begins with a brace.

    `name` is the file's, for errors. Raises QueryLogError for a line that is no query and for a log without any.
    """
    lines = [(number, line.strip()) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise QueryLogError(f"{name} holds no query. Give it one a line, or unset QBENCH_QUERY_LOG.")
    as_json = lines[0][1].removeprefix("\ufeff").startswith("{")
    distinct: dict[Query, Query] = {}
    for number, line in lines:
        query = _from_json(line.removeprefix("\ufeff"), f"{name}, line {number}") if as_json else Query(line)
        distinct.setdefault(query, replace(query, line=number))
    return list(distinct.values())


def sample(queries: Sequence[Query], count: int) -> list[Query]:
    """At most `count` of them, in the log's order: a random part, but the same of the same queries."""
    if len(queries) <= count:
        return list(queries)
    chosen = sorted(queries, key=lambda query: hashlib.sha256(repr(replace(query, line=0)).encode()).digest())[:count]
    return sorted(chosen, key=lambda query: query.line)


def draw_filters(values: Iterable[tuple[str, str, int]], cases: int) -> list[Filter]:
    """A common, a medium and a rare filter out of (column, value, cases with it), of different columns if possible.

    The same values give the same filters, in whatever order they come.
    """
    left = sorted((what, value, count) for what, value, count in values if 0 < count < cases)
    drawn: list[Filter] = []
    used: set[str] = set()
    for share in SHARES:
        if not left:
            break

        def distance(item: tuple[str, str, int], wanted: float = share * cases) -> tuple[float, str, str]:
            what, value, count = item
            return abs(math.log(count / wanted)) + (1.0 if what in used else 0.0), what, value

        chosen = min(left, key=distance)
        left.remove(chosen)
        used.add(chosen[0])
        drawn.append(_filter_of(*chosen[:2]))
    return drawn


def _filter_of(what: str, value: str) -> Filter:
    taken: Any = value if what == "folder" else (int(value) if what == "project" else value,)
    return Filter(**{what: taken})


def _from_json(line: str, where: str) -> Query:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QueryLogError(f"{where} is no JSON ({error}). Each line is to be an object like {_EXAMPLE}.") from None
    if not isinstance(given, Mapping):
        raise QueryLogError(f"{where} is no JSON object. Each line is to be one like {_EXAMPLE}.")
    known = {"query", "vector", "k", *(field.name for field in fields(Filter))}
    if unknown := sorted(set(given) - known):
        raise QueryLogError(f"{where} has {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
    text, vector = given.get("query"), given.get("vector")
    if (text is None) == (vector is None):
        raise QueryLogError(f"{where} needs either query or vector.")
    if text is not None and not (_is_text(text) and text.strip()):
        raise QueryLogError(f"{where}: query is to be a text that is not blank, of whole characters and without NUL.")
    k = given.get("k", 10)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= 1000:
        raise QueryLogError(f"{where}: k is to be a whole number from 1 to 1000.")
    chosen = Filter(**{name: _filter_value(name, given[name], where) for name in _filter_names(given)})
    return Query(text, None if vector is None else _numbers(vector, where), k, None if chosen == Filter() else chosen)


_EXAMPLE = '{"query": "cannot log in", "priority": ["High"]}'


def _filter_names(given: Mapping[str, Any]) -> list[str]:
    return [field.name for field in fields(Filter) if given.get(field.name) is not None]


def _filter_value(name: str, value: Any, where: str) -> Any:
    if name == "updated_since":
        try:
            return datetime.fromisoformat(value).isoformat()
        except (TypeError, ValueError):
            raise QueryLogError(f"{where}: updated_since is to be a date like 2026-01-31.") from None
    if name not in _LISTS:
        if not _is_text(value):
            raise QueryLogError(f"{where}: {name} is to be a text.")
        return value
    fits, what = (_is_id, "ids") if name in ("project", "suite") else (_is_text, "texts")
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(map(fits, listed)):
        raise QueryLogError(f"{where}: {name} is to be a list of {what}.")
    return tuple(listed)


def _is_text(value: Any) -> bool:
    """Whether PostgreSQL could take it as a text."""
    return isinstance(value, str) and not any(one == "\0" or 0xD800 <= ord(one) <= 0xDFFF for one in value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _numbers(vector: Any, where: str) -> tuple[float, ...]:
    if (
        not isinstance(vector, list)
        or not vector
        or not all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e6 for one in vector)
    ):
        raise QueryLogError(f"{where}: vector is to be a list of finite numbers, none of a million or more.")
    if not any(vector):
        raise QueryLogError(f"{where}: the vector is zero, it has no direction to search in.")
    return tuple(float(one) for one in vector)
