"""What the server answers: a reply, and OpenAI's refusals with their true wording and codes. No decisions here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ORGANIZATION = "org-qbenchtest"
REFERENCE = "Please check the API reference: https://platform.openai.com/docs/api-reference."


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; a body that is a path is streamed from that file."""

    body: bytes | Path
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class RefusalError(Exception):
    """A request that OpenAI answers with an error. `reason` is what the ledger counts it as."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        kind: str = "invalid_request_error",
        param: str | None = None,
        reason: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": kind, "param": param, "code": code}
        self.reason = reason or code or kind
        self.retry_after_s = retry_after_s


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON answer."""
    return Reply(json.dumps(value).encode(), status, headers or {})


def error_reply(refusal: RefusalError, headers: Mapping[str, str]) -> Reply:
    """OpenAI's error body."""
    return json_reply({"error": refusal.error}, refusal.status, headers)


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> RefusalError:
    """A 400."""
    return RefusalError(400, message, param=param, code=code, reason=code or "bad_request")


def not_found(what: str, name: str) -> RefusalError:
    """A 404 of a file, a batch or an address."""
    return RefusalError(404, f"No such {what} object: {name}", param="id", reason="not_found")


def wrong_key(given: str) -> RefusalError:
    """A 401. OpenAI repeats part of the key, which a careful client keeps out of its logs."""
    masked = f"{given[:8]}{'*' * 8}{given[-4:]}"
    return RefusalError(
        401,
        f"Incorrect API key provided: {masked}. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    )


def unknown_model(model: object) -> RefusalError:
    """A 404 of a model."""
    return RefusalError(
        404, f"The model `{model}` does not exist or you do not have access to it.", code="model_not_found"
    )


def too_many_tokens_in_input(tokens: int, most: int) -> RefusalError:
    """A 400 that carries no code: its message is all there is to know it by."""
    return RefusalError(
        400,
        f"This model's maximum context length is {most} tokens, however you requested {tokens} tokens "
        f"({tokens} in your prompt; 0 for the completion). Please reduce your prompt; or completion length.",
        reason="context_length",
    )


def too_many_tokens_in_request(tokens: int, most: int) -> RefusalError:
    """A 400 of all inputs together."""
    name = "max_tokens_per_request"
    return RefusalError(400, f"Requested {tokens} tokens, max {most} tokens per request", kind=name, code=name)


def rate_limited(model: str, unit: str, limit: int, used: int, requested: int, wait_s: float) -> RefusalError:
    """A 429 that a wait cures. `unit` is "tokens" or "requests"."""
    short = {"tokens": "TPM", "requests": "RPM"}[unit]
    return RefusalError(
        429,
        f"Rate limit reached for {model} in organization {ORGANIZATION} on {unit} per min ({short}): "
        f"Limit {limit}, Used {used}, Requested {requested}. Please try again in {duration(wait_s)}. "
        "Visit https://platform.openai.com/account/rate-limits to learn more.",
        kind=unit,
        code="rate_limit_exceeded",
        reason=f"rate_limit_{unit}",
        retry_after_s=wait_s,
    )


def request_too_large(model: str, limit: int, requested: int) -> RefusalError:
    """A 429 that no wait cures."""
    return RefusalError(
        429,
        f"Request too large for {model} in organization {ORGANIZATION} on tokens per min (TPM): "
        f"Limit {limit}, Requested {requested}. The input or output tokens must be reduced in order to run "
        "successfully. Visit https://platform.openai.com/account/rate-limits to learn more.",
        kind="tokens",
        code="rate_limit_exceeded",
        reason="request_too_large",
    )


def duration(seconds: float) -> str:
    """OpenAI's way to write a duration: 6m0s, 1.2s, 20ms."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    written = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if minutes or hours:
        written = f"{minutes}m{written}"
    return f"{hours}h{written}" if hours else written
