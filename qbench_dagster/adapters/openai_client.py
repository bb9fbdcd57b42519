"""How to talk to OpenAI, or a server that speaks its API: the client, and what each of its errors means for us.

What is sent is in the modules named for it. Nothing that leaves here as text holds the key or a URL's password.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx2
import openai

from qbench_dagster.adapters.embedders import EmbeddingError, RequestTooLargeError
from qbench_dagster.core.pacing import retry_after

OPENAI_URL = "https://api.openai.com/v1"
KEPT = "What was paid for is kept: run again, and only the rest is sent."
TRANSPORT_ERRORS = (openai.OpenAIError, httpx2.HTTPError)
"""What `OpenAIClient.api` raises for `OpenAIClient.failure` to explain."""

LONGEST_WAIT_S = 3600.0
"""A service that asks for more (a limit of requests a day) is not waited for inside a run."""

_CONNECT_S = 15.0
_SHOWN = 300  # characters of what a server says
_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_TOO_LARGE = {"max_tokens_per_request", "context_length_exceeded", "array_above_max_length", "string_above_max_length"}
_NOT_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.LocalProtocolError,
)
_NAMED_LIMIT = re.compile(r"\blimit:?\s+([\d,]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that brought nothing to use: what it comes to, and whether to try again.

    `maybe_billed`: it may have been processed all the same. `account_limit`: where the account's tokens a minute can
    never hold it, how many they are, 0 if that was not said.
    """

    error: EmbeddingError
    retry: bool = False
    maybe_billed: bool = False
    rate_limited: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    account_limit: int | None = None


class OpenAIClient:
    """The openai package's client, thread-safe, that tries everything once, and knows what its errors mean."""

    def __init__(self, *, api_key: str, base_url: str | None, timeout_s: float) -> None:
        """`base_url` None is OpenAI. Raises EmbeddingError for a key or URL that cannot work; nothing is sent."""
        key = _usable_key(api_key, needed=base_url is None)
        url, login = _split_login(base_url or OPENAI_URL)
        self.url = urlunsplit(urlsplit(url)._replace(query="", fragment=""))
        """Where requests go, fit to be shown."""
        self._timeout_s = timeout_s
        self._secrets = [secret for secret in (key, *(login or ())) if len(secret) > 3]
        self.api = openai.OpenAI(
            api_key=key,
            base_url=url,
            max_retries=0,  # tried again by us alone, so that attempts, pace and money are known
            http_client=openai.DefaultHttpxClient(
                base_url=url,
                auth=login,
                timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
            ),
        )

    def close(self) -> None:
        """Close the connections."""
        self.api.close()

    def failure(self, error: Exception, model: str) -> Failure:
        """What an exception of `api` means for a request for `model`. Anything else is raised again."""
        if isinstance(error, openai.APIStatusError):
            return self._of_status(error, model)
        if isinstance(error, openai.APITimeoutError) and not isinstance(error.__cause__, _NOT_SENT):
            said = f"{self.url} did not answer within {self._timeout_s:g} s (QBENCH_REQUEST_TIMEOUT_S)."
            return Failure(EmbeddingError(said), retry=True, maybe_billed=True)
        if isinstance(error, openai.APIConnectionError | httpx2.HTTPError):
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            why = f"{type(cause).__name__}: {self._shown(str(cause or error))}"
            if isinstance(cause, _NOT_SENT):
                said = f"Cannot reach {self.url} ({why}). Check OPENAI_BASE_URL, the network and the proxy settings."
                return Failure(EmbeddingError(said), retry=True)
            said = f"{self.url} dropped the connection ({why})."
            return Failure(EmbeddingError(said), retry=True, maybe_billed=True)
        raise error

    def _of_status(self, error: openai.APIStatusError, model: str) -> Failure:
        status = error.status_code
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        said = self._shown(_message(error))
        codes = {error.code, error.type}
        wait = retry_after(headers, time.time())
        answered = f"{self.url} answered {status}"
        if codes & _QUOTA:
            text = f"The account has no credit left or has reached its spending limit. {answered}: {said} Add credit. "
            return Failure(EmbeddingError(text + KEPT), headers=headers)
        if status == 413 or codes & _TOO_LARGE or _says_too_large(said):
            found = _NAMED_LIMIT.search(said)
            limit = int(found[1].replace(",", "")) if found else 0
            text = f"The request is too large for the service. {answered}: {said}"
            return Failure(RequestTooLargeError(text), headers=headers, account_limit=limit if status == 429 else None)
        if status in (408, 409, 429) or status >= 500:
            if wait is not None and wait > LONGEST_WAIT_S:
                text = f"{answered} and asks to wait {wait / 3600:.1f} hours: {said} Run again then. {KEPT}"
                return Failure(EmbeddingError(text), headers=headers)
            return Failure(
                EmbeddingError(f"{answered}: {said}"),
                retry=True,
                rate_limited=status == 429,
                headers=headers,
                retry_after_s=wait,
            )
        if status in (401, 403):  # what the server says may repeat the key
            text = f"{answered}: it does not accept the key. Check OPENAI_API_KEY and what its project may use. {KEPT}"
        elif status == 404:
            text = (
                f"{answered}: {said} Check that the model {model!r} exists there and the key may use it "
                f"(QBENCH_MODEL), and that OPENAI_BASE_URL ends as the server expects (mostly /v1). {KEPT}"
            )
        else:
            text = f"{answered} to a request for {model!r}: {said} Check QBENCH_MODEL and QBENCH_DIMENSIONS. {KEPT}"
        return Failure(EmbeddingError(text), headers=headers)

    def _shown(self, text: str) -> str:
        """What a server said, without tags, secrets and length, as one sentence."""
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        text = re.sub(r"\bsk-[\w*-]{4,}", "[secret]", re.sub(r"<[^<>]*>", " ", text))
        text = " ".join(text.split())
        text = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        return text if text.endswith((".", "…", "!")) else text + "."


def _usable_key(api_key: str, *, needed: bool) -> str:
    """The key without white space around it, or a stand-in for a server that needs none."""
    key = api_key.strip()
    if not key and needed:
        raise EmbeddingError("OPENAI_API_KEY is not set: the embedder `openai` needs the key of an account.")
    if not key.isascii() or not key.isprintable() or " " in key:
        # Sent all the same, the HTTP library's error would quote it.
        raise EmbeddingError("OPENAI_API_KEY holds white space or characters that no key has (it is not shown).")
    return key or "unused"


def _split_login(base_url: str) -> tuple[str, tuple[str, str] | None]:
    """The URL without its user and password, and those: left in, they would be in every log line of a request."""
    try:
        parts = urlsplit(base_url.strip())
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        usable = None
    if not usable:
        raise EmbeddingError(
            "OPENAI_BASE_URL is no URL such as https://host/v1 (it is not shown, it may hold a password)."
        )
    host = parts.netloc.rpartition("@")[2]
    login = (unquote(parts.username or ""), unquote(parts.password or "")) if parts.username is not None else None
    return urlunsplit(parts._replace(netloc=host)), login


def _message(error: openai.APIStatusError) -> str:
    if isinstance(error.body, dict) and isinstance(error.body.get("message"), str):
        return str(error.body["message"])
    return str(error.response.text)


def _says_too_large(said: str) -> bool:
    """OpenAI and others name it in words only: an input over the model's, a request over the account's minute."""
    lower = said.lower()
    return "context length" in lower or "request too large" in lower or "max_tokens_per_request" in lower
