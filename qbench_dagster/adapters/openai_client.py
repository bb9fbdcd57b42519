"""How to talk to OpenAI, or a server that speaks its API: the client, what its errors mean for us, and trying again.

What is sent is in the modules named for it. Nothing that leaves here as text holds the key or a URL's password.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx2
import openai
import tenacity

from qbench_dagster.adapters.embedders import EmbeddingError, RequestTooLargeError
from qbench_dagster.adapters.secrets import UnusableKeyError, hidden, usable_key
from qbench_dagster.core.pacing import retry_after
from qbench_dagster.core.refusals import QUOTA_CODES, TOO_LARGE_CODES, named_limit, says_too_large

log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
KEPT = "What was paid for is kept: run again, and only the rest is sent."
TRANSPORT_ERRORS = (openai.OpenAIError, httpx2.HTTPError)
"""What `OpenAIClient.api` raises for `OpenAIClient.failure` to explain."""

LONGEST_WAIT_S = 3600.0
"""A service that asks for more (a limit of requests a day) is not waited for inside a run."""

_CONNECT_S = 15.0
_SHOWN = 300  # characters of what a server says
_NOT_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.LocalProtocolError,
)


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


class FailedError(Exception):
    """An attempt that failed. Never leaves the module that attempts."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure.error))
        self.failure = failure


BACKOFF = tenacity.wait_random_exponential(multiplier=1, max=60)
"""Full jitter: anything up to 1, 2, 4 … 60 s."""


def report_attempt(state: tenacity.RetryCallState) -> None:
    """Log that an attempt failed, and when the next one is made."""
    error = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0.0
    # The first two are everyday; from the third on somebody at a terminal wonders why nothing goes on.
    level = logging.INFO if state.attempt_number < 3 else logging.WARNING
    log.log(level, "Attempt %d failed, another in %.1f s or later: %s", state.attempt_number, wait, error)


def trying_again(
    *,
    stop: Callable[[tenacity.RetryCallState], bool],
    sleep: Callable[[float], None],
    wait: Callable[[tenacity.RetryCallState], float] = BACKOFF,
    before_sleep: Callable[[tenacity.RetryCallState], None] = report_attempt,
) -> tenacity.Retrying:
    """Calls again what raised a FailedError that deserves it; the last one comes out."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, FailedError) and error.failure.retry),
        stop=stop,
        wait=wait,
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )


class OpenAIClient:
    """The openai package's client, thread-safe, that tries everything once, and knows what its errors mean."""

    def __init__(self, *, api_key: str, base_url: str | None, timeout_s: float) -> None:
        """`base_url` None is OpenAI. Raises EmbeddingError for a key or URL that cannot work; nothing is sent."""
        key = _usable_key(api_key, needed=base_url is None)
        url, login = _split_login(base_url or OPENAI_URL)
        self.url = urlunsplit(urlsplit(url)._replace(query="", fragment=""))
        """Where requests go, fit to be shown."""
        self._timeout_s = timeout_s
        self._secrets = (key, *(login or ()))
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
        if codes & QUOTA_CODES:
            text = f"The account has no credit left or has reached its spending limit. {answered}: {said} Add credit. "
            return Failure(EmbeddingError(text + KEPT), headers=headers)
        if status == 413 or codes & TOO_LARGE_CODES or says_too_large(said):
            limit = named_limit(said)
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
        text = re.sub(r"<[^<>]*>", " ", hidden(text, self._secrets))
        text = re.sub(r"\bsk-[\w*-]{4,}", "[secret]", text)
        text = " ".join(text.split())
        text = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        return text if text.endswith((".", "…", "!")) else text + "."


def _usable_key(api_key: str, *, needed: bool) -> str:
    """The key without white space around it, or a stand-in for a server that needs none."""
    try:
        key = usable_key("OPENAI_API_KEY", api_key)
    except UnusableKeyError as error:
        raise EmbeddingError(str(error)) from None
    if not key and needed:
        raise EmbeddingError("OPENAI_API_KEY is not set: the embedder `openai` needs the key of an account.")
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
