"""The lines of a batch: what its input must hold, and what its output and error files look like. No states."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench_dagster_tests.openai_server.faults import EMBEDDINGS

STATUS_ERRORS = {
    400: ("This request could not be processed.", "invalid_request_error", None),
    429: ("Rate limit reached for requests", "requests", "rate_limit_exceeded"),
    500: ("The server had an error while processing your request. Sorry about that!", "server_error", None),
}
ABORTED = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "This request was not executed because the batch was cancelled.",
}


@dataclass(frozen=True)
class BatchRules:
    """What a batch may hold. The numbers are OpenAI's; `max_enqueued_tokens` (of all unfinished batches) by tier."""

    max_lines: int = 50_000
    max_inputs: int = 50_000
    max_bytes: int = 200_000_000
    max_enqueued_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input."""

    custom_id: str
    body: dict[str, Any]

    def texts(self) -> list[str]:
        """Its inputs, as far as they are texts."""
        given = self.body.get("input")
        return [text for text in (given if isinstance(given, list) else [given]) if isinstance(text, str)]


class InvalidBatchError(Exception):
    """The batch fails as a whole; `errors` is what its `errors.data` says."""

    def __init__(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        super().__init__(message)
        self.errors = [{"code": code, "message": message, "line": line, "param": param}]


def read_lines(path: Path, rules: BatchRules) -> list[Line]:
    """All lines of a batch's input. Raises InvalidBatchError at the first that is wrong."""
    lines: list[Line] = []
    names: set[str] = set()
    inputs = 0
    with path.open("rb") as file:
        for number, written in enumerate(file, start=1):
            if number > rules.max_lines:
                raise InvalidBatchError(
                    "too_many_tasks",
                    f"The number of requests in the batch exceeds the maximum of {rules.max_lines}.",
                    None,
                )
            line = _read_line(written, number)
            if line.custom_id in names:
                raise InvalidBatchError(
                    "duplicate_custom_id",
                    f"The custom_id for this request is a duplicate of another request: {line.custom_id}",
                    number,
                    "custom_id",
                )
            if lines and line.body["model"] != lines[0].body["model"]:
                raise InvalidBatchError(
                    "mismatched_model", "The model of this request differs from the first's.", number, "body.model"
                )
            names.add(line.custom_id)
            lines.append(line)
            inputs += len(line.texts())
    if not lines:
        raise InvalidBatchError("empty_file", "The input file is empty.", None)
    if inputs > rules.max_inputs:
        raise InvalidBatchError(
            "too_many_inputs", f"The batch has {inputs} embedding inputs, more than {rules.max_inputs}.", None
        )
    return lines


def _read_line(written: bytes, number: int) -> Line:
    try:
        line = json.loads(written)
    except ValueError:
        raise InvalidBatchError("invalid_json_line", "This line is not parseable as valid JSON.", number) from None
    if not isinstance(line, dict):
        raise InvalidBatchError("invalid_json_line", "This line is not a JSON object.", number)
    if not isinstance(line.get("custom_id"), str) or not line["custom_id"]:
        raise InvalidBatchError(
            "missing_required_parameter", "Missing required parameter: 'custom_id'.", number, "custom_id"
        )
    if line.get("method") != "POST":
        raise InvalidBatchError("invalid_method", f"Invalid method: {line.get('method')}.", number, "method")
    if line.get("url") != EMBEDDINGS:
        raise InvalidBatchError(
            "mismatched_url", f"The URL of this request is not the batch's {EMBEDDINGS}.", number, "url"
        )
    body = line.get("body")
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        raise InvalidBatchError(
            "missing_required_parameter", "Missing required parameter: 'body.model'.", number, "body.model"
        )
    return Line(line["custom_id"], body)


def answered_line(batch: int, line: Line, answer: bytes) -> bytes:
    """A line of the output file; `answer` is a body of /v1/embeddings, put in as it is for its size."""
    head = json.dumps({"id": _identity(batch, line), "custom_id": line.custom_id})[:-1].encode()
    request = json.dumps(_identity(batch, line, "req")).encode()
    return (
        b'%b, "response": {"status_code": 200, "request_id": %b, "body": %b}, "error": null}\n'
        % (head, request, answer)
    )  # fmt: skip


def failed_line(batch: int, line: Line, status: int, error: dict[str, Any] | None = None) -> bytes:
    """A line whose request was answered with an error."""
    if error is None:
        message, kind, code = STATUS_ERRORS[status]
        error = {"message": message, "type": kind, "param": None, "code": code}
    response = {"status_code": status, "request_id": _identity(batch, line, "req"), "body": {"error": error}}
    return _line({"id": _identity(batch, line), "custom_id": line.custom_id, "response": response, "error": None})


def aborted_line(batch: int, line: Line, code: str) -> bytes:
    """A line that was never executed."""
    error = {"code": code, "message": ABORTED[code]}
    return _line({"id": _identity(batch, line), "custom_id": line.custom_id, "response": None, "error": error})


def _identity(batch: int, line: Line, prefix: str = "batch_req") -> str:
    return f"{prefix}_{batch:08d}_{line.custom_id}"


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
