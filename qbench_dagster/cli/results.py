"""How search results look: two lines a hit, the words of the query marked, and the steps that match below.

On a terminal a line ends where the terminal does; into a pipe or a file goes all of it, and nothing but text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

MARK = "bold yellow"
INDENT = " " * 12
FOLDER = 60
"""Characters of a folder's path; its end tells more than its beginning."""


def show_cases(
    console: Console,
    results: Sequence[Mapping[str, Any]],
    matched: Mapping[int, Sequence[Mapping[str, Any]]],
    query: str,
) -> None:
    """Test cases, best first; `matched` are the steps to show, by case id."""
    words = _words(query)
    for rank, row in enumerate(results, 1):
        _print(console, _head(console, rank, row.get("similarity"), row["title"], words))
        facts = [f"C{row['test_case_id']}", row["priority"], row["test_type"], _found(row), _folder(row)]
        _print(console, Text(INDENT + "  ".join(_line(fact) for fact in facts if fact), style="dim"))
        for step in matched.get(row["test_case_id"], ()):
            _print(console, _marked(f"{INDENT}step {step['step_index']}: {_step(step)}", words))
    _nothing(console, results)


def show_steps(console: Console, results: Sequence[Mapping[str, Any]], query: str) -> None:
    """Distinct steps, best first, each with the case that holds it."""
    words = _words(query)
    for rank, row in enumerate(results, 1):
        _print(console, _head(console, rank, row["similarity"], row["action"] or "(no action)", words))
        more = f"  (+{row['cases'] - 1:,} more cases)" if row["cases"] > 1 else ""
        where = f"{INDENT}C{row['test_case_id']} step {row['step_index']}: {_line(row['title'])}{more}"
        _print(console, Text(where, style="dim"))
        if row["expected"]:
            _print(console, _marked(f"{INDENT}expected: {'; '.join(map(_line, row['expected']))}", words))
    _nothing(console, results)


def _nothing(console: Console, results: Sequence[object]) -> None:
    if not results:
        console.print("nothing matches")


def _print(console: Console, text: Text) -> None:
    if console.is_terminal:
        console.print(text, no_wrap=True, overflow="ellipsis")
    else:
        console.print(text, soft_wrap=True)


def _head(console: Console, rank: int, similarity: float | None, title: str, words: re.Pattern[str] | None) -> Text:
    text = Text(f"{rank:>3}. ")
    text.append("     " if similarity is None else f"{similarity:.3f}", style="bold")
    if console.is_terminal and similarity is not None:
        text.append(" " + _bar(similarity), style="green")
    text.append("  ")
    text.append_text(_marked(_line(title), words, "bold"))
    return text


def _bar(share: float) -> str:
    """Five characters, in eighths."""
    eighths = round(min(max(share, 0), 1) * 40)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).strip().ljust(5)


def _found(row: Mapping[str, Any]) -> str:
    """What brought the case here, where it is not similarity alone."""
    if "matched" in row:
        what = "is its key" if row["matched"] == "jira_key" else f"refers to it ({row['matched']})"
        return f"{row['reference']} {what}"
    ranks = {"words": row.get("text_rank"), "vector": row.get("vector_rank")}
    return ", ".join(f"{name} #{rank}" for name, rank in ranks.items() if rank)


def _folder(row: Mapping[str, Any]) -> str:
    path = row["folder_structure"] or ""
    return path if len(path) <= FOLDER else "…" + path[-FOLDER:]


def _step(step: Mapping[str, Any]) -> str:
    return " → ".join(filter(None, (_line(step["action"]), "; ".join(map(_line, step["expected"])))))


def _line(text: str) -> str:
    """One line, and nothing that a terminal would take for a command."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


def _words(query: str) -> re.Pattern[str] | None:
    """Finds the words of a query; those of a script without spaces anywhere."""
    words = list(dict.fromkeys(word for word in re.split(r"[\W_]+", query[:10_000]) if word))[:64]
    parts = [re.escape(word) if word[0] >= "\u2e80" else rf"(?<![^\W_]){re.escape(word)}(?![^\W_])" for word in words]
    return re.compile("|".join(parts), re.IGNORECASE) if parts else None


def _marked(text: str, words: re.Pattern[str] | None, style: str = "") -> Text:
    marked = Text(text, style=style)
    if words is not None:
        marked.highlight_regex(words, MARK)
    return marked
