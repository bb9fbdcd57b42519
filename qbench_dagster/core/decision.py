"""What a parity report's verdict means for whoever decides: one sentence, and what to do about a check that fails.

When a check fails is `parity.py`. Values only; docs/parity-report.md says the same at more length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BLOCKERS = {
    "source_is_published_or_rejected": "cases are missing or out of date",
    "no_word_lost": "words of test steps were lost",
    "published_rows_are_what_was_staged": "published rows were changed",
    "vectors_complete_and_sound": "vectors are missing or unsound",
    "vectors_are_those_of_their_texts": "vectors do not belong to their texts",
    "recall_reaches_target": "the index misses too many results",
    "filtered_search_is_complete": "filtered searches come back short",
    "old_store_is_covered": "the old store holds cases that are missing here",
    "search_reaches_old_store": "searches miss what the old store finds",
    "reader_has_least_privilege": "the reader's rights are wrong",
}
"""What a failing check means, as the rest of the sentence "Not yet: …"."""

REMEDIES = {
    "source_is_published_or_rejected": "Each case below says which asset to materialise; qbench run materialises "
    "them all. A case published but gone from the source leaves with the next run.",
    "no_word_lost": "Normalisation dropped the words listed. Nothing a run repairs: keep the old system for these "
    "cases, and report them with their ids.",
    "published_rows_are_what_was_staged": "Someone wrote to store.*. Run each row's remedy, which has the case "
    "published again, then qbench run; and find out who holds the right to write there.",
    "vectors_complete_and_sound": "Materialise doc_embeddings, step_embeddings and pg_tables. Unsound vectors first "
    "have to go: delete their rows from the space by text_hash, and they are embedded again.",
    "vectors_are_those_of_their_texts": "Delete the listed rows from the space by text_hash and run again: they are "
    "embedded anew. If they came from the old store, its vectors were already wrong there.",
    "recall_reaches_target": "Materialise hnsw_index with QBENCH_INDEX=auto and QBENCH_EF_SEARCH unset: it measures "
    "what reaches the target. With fixed settings raise QBENCH_EF_SEARCH or QBENCH_RERANK.",
    "filtered_search_is_complete": "Materialise pg_tables and hnsw_index, so that functions and index are of one "
    "version. If it stays, QBENCH_INDEX=exact is complete by construction.",
    "old_store_is_covered": "Land the listed cases: they are in the source and in the old store, but not published. "
    "qbench run does it; rejected ones say why.",
    "search_reaches_old_store": "Read the searches below side by side. If what is only there is gone from the source "
    "or was an old text, lower QBENCH_MIN_OVERLAP knowingly; if not, see recall and the vectors first.",
    "reader_has_least_privilege": "Run the remedy of each row as a superuser.",
}


def decision(report: Mapping[str, Any]) -> str:
    """The verdict of a report in its JSON form, as one sentence that can be acted on."""
    findings = report.get("findings") or []
    if not findings:
        return "Not yet: nothing was checked."
    failed = [finding for finding in findings if not finding["passed"]]
    if not failed:
        return "An application can be switched over."
    known = [name for name in BLOCKERS if any(finding["name"] == name for finding in failed)]
    told = [BLOCKERS[name] for name in known[:2]]
    told = told or [f"“{failed[0]['title']}” does not hold"]
    if rest := len(failed) - len(told):
        told.append(f"{rest} more {'check fails' if rest == 1 else 'checks fail'}")
    return f"Not yet: {_listed(told)}."


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
