"""OpenAI's batch files: the lines of an input, how many fit into a batch, and what the lines of a result say.

Bytes and numbers only: nothing is sent, read from disk or stored from here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar
from uuid import UUID

from qbench_dagster.core.answers import AnswerError
from qbench_dagster.core.packing import Sized, pack
from qbench_dagster.core.refusals import QUOTA_CODES, named_limit
from qbench_dagster.core.requests import Limits

URL: Literal["/v1/embeddings"] = "/v1/embeddings"
WINDOW: Literal["24h"] = "24h"
MARK = "qbench_batch"
"""Name in a remote batch's metadata of our own id for it: by this it is found again."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
QUEUE_FULL = "token_limit_exceeded"
"""The account has too many tokens in unfinished batches: later, or less at once, they are taken."""
FIRST_PAUSE_S = 300.0
LONGEST_PAUSE_S = 6 * 3600.0

_AGAIN_CODES = {"batch_expired", "batch_cancelled", "request_timeout"}
_OTHER_LINE_ENDS = "\x85\u2028\u2029"  # JSON leaves them as they are, and some readers of lines end one there
_SHOWN = 200  # characters of what a service says


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batch holds. 50,000 inputs and lines are OpenAI's limits; of its 200 MB a margin is left.

    A line holds 256 texts: answered with 16 KB each (3,072 numbers in base64) it is 4 MB, and that much is in memory.
    """

    inputs: int = 50_000
    lines: int = 50_000
    file_bytes: int = 190_000_000
    line_inputs: int = 256


class InParts(Protocol):
    """A text to send: nearly always one part, more if it is over the model's limit; `sizes` are their tokens."""

    @property
    def parts(self) -> Sequence[str]: ...
    @property
    def sizes(self) -> Sequence[int]: ...


T = TypeVar("T", bound=InParts)


@dataclass(slots=True)
class Filling:
    """A batch that is being filled."""

    lines: int = 0
    inputs: int = 0
    file_bytes: int = 0
    tokens: int = 0

    def takes(self, inputs: int, file_bytes: int, tokens: int, limits: BatchLimits, most_tokens: float) -> bool:
        """Whether another line fits."""
        return (
            self.lines < limits.lines
            and self.inputs + inputs <= limits.inputs
            and self.file_bytes + file_bytes <= limits.file_bytes
            and self.tokens + tokens <= most_tokens
        )

    def add(self, inputs: int, file_bytes: int, tokens: int) -> None:
        """Count a line in."""
        self.lines += 1
        self.inputs += inputs
        self.file_bytes += file_bytes
        self.tokens += tokens


def lines_of(texts: Iterable[T], limits: Limits, batch: BatchLimits) -> Iterator[list[tuple[T, int]]]:
    """The texts' parts as (text, number of the part), a line each list, within the limits of one request.

    All parts of a text are in one line, unless they are more than a line holds: then they have lines of their own.
    """
    line_limits = Limits(min(limits.inputs, batch.line_inputs), limits.tokens_per_input, limits.tokens_per_request)
    for packed in pack((Sized(text, sum(text.sizes), len(text.parts)) for text in texts), line_limits):
        whole = [
            Sized((item.value, part), size) for item in packed for part, size in enumerate(item.value.sizes)
        ]  # fmt: skip
        for line in pack(whole, line_limits):
            yield [one.value for one in line]


def request_line(custom_id: str, model: str, inputs: Sequence[str], dimensions: int | None) -> bytes:
    """A line of an input file, with its line end. `dimensions` None: the model's own."""
    # The API refuses an empty string.
    sendable = [text if text.strip() else " " for text in inputs]
    body: dict[str, Any] = {"model": model, "input": sendable, "encoding_format": "base64"}
    if dimensions is not None:
        body["dimensions"] = dimensions
    request = {"custom_id": custom_id, "method": "POST", "url": URL, "body": body}
    written = json.dumps(request, ensure_ascii=False, separators=(",", ":"))
    for end in _OTHER_LINE_ENDS:
        written = written.replace(end, f"\\u{ord(end):04x}")
    return written.encode("utf-8", "replace") + b"\n"


def custom_id(batch: UUID, line: int) -> str:
    """The name of a line: no two of one batch are the same, and it says which batch it is of."""
    return f"{batch}-{line}"


def line_number(name: str, batch: UUID) -> int | None:
    """Inverse of `custom_id`; None for what is no line of `batch`."""
    prefix, _, number = name.rpartition("-")
    return int(number) if prefix == str(batch) and re.fullmatch("[0-9]{1,9}", number) else None


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream, without line ends and blank lines. Only \\n ends one: JSON may hold U+2028."""
    held: list[bytes] = []
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            whole = b"".join([*held, line]).strip()
            held.clear()
            if whole:
                yield whole
        held.append(rest)
    if last := b"".join(held).strip():
        yield last


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one line: `answered` with a body, to be sent `again`, or `refused`; `told` says why."""

    name: str
    outcome: Literal["answered", "again", "refused"]
    body: Any = None
    told: str = ""


def read_result(line: bytes) -> Result:
    """A line of an output or error file. Raises AnswerError for one that cannot be attributed to a request."""
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        raise AnswerError(f"a line is no JSON but {line[:60].decode('utf-8', 'replace')!r}") from None
    name = given.get("custom_id") if isinstance(given, dict) else None
    if not isinstance(name, str):
        raise AnswerError("a line has no custom_id")
    response, error = given.get("response"), given.get("error")
    if not isinstance(response, dict):
        code, told = _error(error)
        return Result(name, "again" if code in _AGAIN_CODES else "refused", told=told)
    status, body = response.get("status_code"), response.get("body")
    if status == 200:
        return Result(name, "answered", body)
    code, told = _error(body.get("error") if isinstance(body, dict) else None)
    # Without credit it fails as 429 too, and would for ever.
    again = type(status) is int and (status in (408, 409, 429) or status >= 500) and code not in QUOTA_CODES
    return Result(name, "again" if again else "refused", told=f"status {str(status)[:20]}: {told}")


def _error(error: Any) -> tuple[str | None, str]:
    """(code, what to show) of an error object."""
    if not isinstance(error, dict):
        return None, "no reason given"
    code = next((str(error[name]) for name in ("code", "type") if error.get(name)), None)
    message = " ".join(str(error.get("message") or "").split())[:_SHOWN]
    return code, f"{code}: {message}" if code and message else message or code or "no reason given"


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """A batch as the service describes it. `errors` are (code, text) of a batch refused as a whole."""

    id: str
    status: str
    mark: str | None
    created_at: float
    output_file: str | None
    error_file: str | None
    done: int
    failed: int
    total: int
    errors: tuple[tuple[str, str], ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in ENDED


def read_batch(given: Any) -> RemoteBatch:
    """A batch object. Raises AnswerError where it is none."""
    if not isinstance(given, dict) or not isinstance(given.get("id"), str) or not isinstance(given.get("status"), str):
        raise AnswerError("no batch object")
    counts, metadata = _mapping(given.get("request_counts")), _mapping(given.get("metadata"))
    listed = _mapping(given.get("errors")).get("data")
    errors = [error for error in listed if isinstance(error, dict)] if isinstance(listed, list) else []
    created = given.get("created_at")
    mark = metadata.get(MARK)
    return RemoteBatch(
        id=given["id"],
        status=given["status"],
        mark=mark if isinstance(mark, str) else None,
        created_at=float(created) if isinstance(created, int | float) else 0.0,
        output_file=given.get("output_file_id") or None,
        error_file=given.get("error_file_id") or None,
        done=_count(counts.get("completed")),
        failed=_count(counts.get("failed")),
        total=_count(counts.get("total")),
        errors=tuple((str(error.get("code")), _described(error)) for error in errors),
    )


def _mapping(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, dict) else {}


def _count(given: Any) -> int:
    return given if type(given) is int else 0


def _described(error: Mapping[str, Any]) -> str:
    line = f"line {error['line']}: " if error.get("line") is not None else ""
    return line + _error(error)[1]


def queue_ceiling(errors: Sequence[tuple[str, str]], tokens: int, queued: int) -> int | None:
    """Tokens that may wait in batches at once, after a batch of `tokens` was refused with `queued` waiting in all.

    None if it was refused for something else. The limit is taken from the message where that names one that explains
    the refusal, and at most half of what was refused is tried next.
    """
    told = [text for code, text in errors if code == QUEUE_FULL]
    if not told:
        return None
    limit = named_limit(told[0])
    if 0 < limit < queued:
        return limit
    return max(1, tokens // 2)


def pause_s(runs: int) -> float:
    """Seconds before the same ended batches are seen to again, after so many runs that did not take them in.

    What killed the first run (a deploy, the memory) is over soon. What fails them all costs a run now and then.
    """
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(runs - 1, 30)) if runs > 0 else 0.0
