"""/v1/batches: a batch's states and how it ends. It moves on when it is polled or told to, never by the clock.

What a batch's file must hold and what its output looks like is `batch_lines.py`.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qbench_dagster_tests.openai_server.batch_lines import (
    BatchRules,
    InvalidBatchError,
    Line,
    aborted_line,
    answered_line,
    failed_line,
    read_lines,
)
from qbench_dagster_tests.openai_server.embeddings import Rules
from qbench_dagster_tests.openai_server.faults import EMBEDDINGS, VECTOR_FAULTS
from qbench_dagster_tests.openai_server.files import Files, page_of
from qbench_dagster_tests.openai_server.ledger import Ledger
from qbench_dagster_tests.openai_server.replies import RefusalError, Reply, bad_request, json_reply, not_found

OUTCOMES = ("completed", "partly", "failed", "expired", "cancelled")
FINAL = ("completed", "failed", "expired", "cancelled")
DAY = 86_400


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """How a batch ends.

    "completed"; "partly": completed, but only `share` of its lines succeeded and the others failed with one of
    `status_codes`, in the error file or (`failures_in="output"`) among the answers; "expired" and "cancelled" (by
    somebody else): `share` of the lines were done; "failed": refused as a whole with `code`, at `line`.
    `damage` is one of VECTOR_FAULTS, done to the first line of the output.
    """

    kind: str = "completed"
    share: float = 0.5
    status_codes: tuple[int, ...] = (400, 429, 500)
    failures_in: str = "errors"
    code: str = "invalid_json_line"
    message: str = "This line is not parseable as valid JSON."
    line: int | None = 1
    damage: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in OUTCOMES:
            raise ValueError(f"no batch ends as {self.kind!r}: use one of {', '.join(OUTCOMES)}")
        if self.damage not in {None, *VECTOR_FAULTS}:
            raise ValueError(f"there is no damage {self.damage!r}: use one of {', '.join(VECTOR_FAULTS)}")


@dataclass
class _Batch:
    shown: dict[str, Any]
    """What a GET answers."""
    outcome: BatchOutcome
    number: int
    polls: int = 0
    lines: list[Line] = field(default_factory=list)


class Batches:
    """The batches of one server. Thread-safe."""

    def __init__(self, files: Files, rules: Rules, batch_rules: BatchRules, ledger: Ledger, polls: int) -> None:
        self._files = files
        self._rules = rules
        self._batch_rules = batch_rules
        self._ledger = ledger
        self._polls = polls
        self._lock = threading.RLock()
        self._outcomes: deque[BatchOutcome] = deque()
        self._batches: dict[str, _Batch] = {}
        self._numbers = itertools.count(1)

    def queue(self, *outcomes: BatchOutcome | str) -> None:
        """How the next created batches end."""
        with self._lock:
            self._outcomes += [BatchOutcome(named) if isinstance(named, str) else named for named in outcomes]

    def create(self, body: Mapping[str, Any]) -> Reply:
        """POST /v1/batches."""
        if body.get("endpoint") != EMBEDDINGS:
            raise bad_request(f"Invalid value: '{body.get('endpoint')}'.", param="endpoint", code="invalid_value")
        if body.get("completion_window") != "24h":
            raise bad_request("Invalid value: expected '24h'.", param="completion_window", code="invalid_value")
        _check_metadata(body.get("metadata"))
        source = str(body.get("input_file_id"))
        if self._files.purpose_of(source) != "batch":
            raise bad_request(f"File '{source}' has an invalid purpose for a batch.", param="input_file_id")
        with self._lock:
            number = next(self._numbers)
            name = f"batch_{number:08d}"
            now = int(time.time())
            shown: dict[str, Any] = {
                "id": name,
                "object": "batch",
                "endpoint": EMBEDDINGS,
                "errors": None,
                "input_file_id": source,
                "completion_window": "24h",
                "status": "validating",
                "output_file_id": None,
                "error_file_id": None,
                "created_at": now,
                "expires_at": now + DAY,
                **{f"{state}_at": None for state in ("in_progress", "finalizing", "cancelling", *FINAL)},
                "request_counts": {"total": 0, "completed": 0, "failed": 0},
                "metadata": body.get("metadata"),
            }
            outcome = self._outcomes.popleft() if self._outcomes else BatchOutcome()
            self._batches[name] = _Batch(shown, outcome, number)
            return json_reply(shown)

    def poll(self, name: str) -> Reply:
        """GET /v1/batches/{id}: what it is now, after it moved on where this poll is the one that moves it."""
        with self._lock:
            batch = self._found(name)
            batch.polls += 1
            if self._polls and batch.polls % self._polls == 0:
                self._advance(batch)
            return json_reply(batch.shown)

    def page(self, query: Mapping[str, Any]) -> Reply:
        """GET /v1/batches: newest first; moves nothing."""
        with self._lock:
            return page_of([batch.shown for batch in self._batches.values()][::-1], query, most=100)

    def cancel(self, name: str) -> Reply:
        """POST /v1/batches/{id}/cancel."""
        with self._lock:
            batch = self._found(name)
            status = batch.shown["status"]
            if status in FINAL:
                raise RefusalError(409, f"Cannot cancel a batch with status '{status}'.", reason="conflict")
            if status != "cancelling":
                batch.outcome = BatchOutcome("cancelled", share=batch.outcome.share)
                self._enter(batch, "cancelling")
            return json_reply(batch.shown)

    def advance_all(self, steps: int) -> None:
        """Move every batch on."""
        with self._lock:
            for batch in self._batches.values():
                for _ in range(steps):
                    self._advance(batch)

    def _found(self, name: str) -> _Batch:
        if name not in self._batches:
            raise not_found("Batch", name)
        return self._batches[name]

    def _enter(self, batch: _Batch, status: str) -> None:
        batch.shown["status"] = status
        batch.shown[f"{status}_at"] = int(time.time())

    def _advance(self, batch: _Batch) -> None:
        match batch.shown["status"], batch.outcome.kind:
            case "validating", _:
                self._validate(batch)
            case "in_progress", "cancelled":
                self._enter(batch, "cancelling")
            case "in_progress", _:
                self._enter(batch, "finalizing")
            case "cancelling", _:
                self._finish(batch, "cancelled")
            case "finalizing", "expired":
                self._finish(batch, "expired")
            case "finalizing", _:
                self._finish(batch, "completed")

    def _validate(self, batch: _Batch) -> None:
        outcome = batch.outcome
        try:
            if outcome.kind == "failed":
                raise InvalidBatchError(outcome.code, outcome.message, outcome.line)
            lines = read_lines(self._files.path_of(batch.shown["input_file_id"]), self._batch_rules)
            self._check_queue(lines)
        except RefusalError as gone:  # the input was deleted meanwhile
            errors = InvalidBatchError("invalid_input_file", str(gone), None).errors
        except InvalidBatchError as invalid:
            errors = invalid.errors
        else:
            batch.lines = lines
            batch.shown["request_counts"] = {"total": len(lines), "completed": 0, "failed": 0}
            batch.shown["model"] = lines[0].body["model"]
            self._enter(batch, "in_progress")
            return
        batch.shown["errors"] = {"object": "list", "data": errors}
        self._enter(batch, "failed")

    def _check_queue(self, lines: list[Line]) -> None:
        most = self._batch_rules.max_enqueued_tokens
        if most is None:
            return
        running = [batch.lines for batch in self._batches.values() if batch.shown["status"] not in FINAL]
        texts = (text for some in (lines, *running) for line in some for text in line.texts())
        if sum(map(self._rules.count_tokens, texts)) > most:
            raise InvalidBatchError(
                "token_limit_exceeded",
                f"Enqueued token limit reached for {lines[0].body['model']}. Limit: {most:,} enqueued tokens. Please "
                "try again once some in_progress batches have been completed.",
                None,
            )

    def _finish(self, batch: _Batch, status: str) -> None:
        outcome = batch.outcome
        draw = random.Random(batch.number)
        lines = list(batch.lines)
        draw.shuffle(lines)  # OpenAI promises no order
        whole = outcome.kind == "completed"
        done = len(lines) if whole else min(int(len(lines) * outcome.share), max(0, len(lines) - 1))
        work = _Work(self._rules, self._ledger, batch.number)
        answered = work.answered(lines[:done], outcome.damage)
        failed: Iterator[bytes]
        if status == "completed":
            failed = (failed_line(batch.number, line, draw.choice(outcome.status_codes)) for line in lines[done:])
        else:
            failed = (aborted_line(batch.number, line, f"batch_{status}") for line in lines[done:])
        output, errors = [answered], [failed]
        if outcome.failures_in == "output":
            output, errors = [answered, failed], []
        shown = batch.shown
        shown["output_file_id"] = self._write(f"{shown['id']}_output.jsonl", *output)
        shown["error_file_id"] = self._write(f"{shown['id']}_error.jsonl", *errors, work.refused)
        completed = done - len(work.refused)
        shown["request_counts"] = {"total": len(lines), "completed": completed, "failed": len(lines) - completed}
        shown["usage"] = {
            "input_tokens": work.tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": work.tokens,
        }
        self._enter(batch, status)

    def _write(self, name: str, *lines: Iterable[bytes]) -> str | None:
        """Without a line there is no file, at OpenAI's too."""
        chunks = itertools.chain.from_iterable(lines)
        first = next(chunks, None)
        return None if first is None else self._files.write(name, itertools.chain([first], chunks))


class _Work:
    """The lines of a batch being done, one at a time."""

    def __init__(self, rules: Rules, ledger: Ledger, number: int) -> None:
        self._rules = rules
        self._ledger = ledger
        self._number = number
        self.refused: list[bytes] = []
        """Error lines of requests that /v1/embeddings refuses."""
        self.tokens = 0

    def answered(self, lines: Sequence[Line], damage: str | None) -> Iterator[bytes]:
        """Output of the lines that can be answered; the first is damaged."""
        for line in lines:
            try:
                asked = self._rules.check(line.body)
            except RefusalError as refusal:
                self.refused.append(failed_line(self._number, line, refusal.status, refusal.error))
                continue
            yield answered_line(self._number, line, asked.body(damage))
            damage = None
            self._ledger.bill_batch(asked.texts, asked.tokens)
            self.tokens += asked.tokens


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or len(metadata) > 16:
        raise bad_request("Invalid 'metadata': expected an object with at most 16 properties.", param="metadata")
    for name, value in metadata.items():
        if len(name) > 64 or not isinstance(value, str) or len(value) > 512:
            raise bad_request(
                f"Invalid 'metadata.{name[:64]}': expected a string with maximum length 512.", param="metadata"
            )
