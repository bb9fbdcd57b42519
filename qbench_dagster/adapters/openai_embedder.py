"""The embedder that asks OpenAI, or a server that speaks its API: one request at a time for each calling thread.

A request is paced, tried again, checked and accounted for here. Which texts are sent, and what is remembered of the
money, is for the caller; what an error means is `openai_client.py`, when a request may go `gate.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import openai
import tenacity
from numpy.typing import NDArray

from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.gate import Gate
from qbench_dagster.adapters.openai_client import KEPT, TRANSPORT_ERRORS, Failure, OpenAIClient
from qbench_dagster.core.answers import AnswerError, DimensionError, read_answer
from qbench_dagster.core.packing import Sized, pack
from qbench_dagster.core.requests import Answer, Limits

log = logging.getLogger(__name__)

LONGEST_BACKOFF_S = 60.0
UNUSABLE_ATTEMPTS = 3
"""A server that answers 200 with nonsense may bill each time: asked again twice, not eight times."""

_backoff = tenacity.wait_random_exponential(multiplier=1, max=LONGEST_BACKOFF_S)
"""Full jitter: anything up to 1, 2, 4 … 60 s."""


class _FailedError(Exception):
    """An attempt that failed. Never leaves this module."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure.error))
        self.failure = failure


@dataclass(slots=True)
class _Sending:
    """A request on its way through its attempts."""

    texts: list[str]
    tokens: int
    tokens_at_risk: int = 0
    unusable: int = 0


class OpenAIEmbedder:
    """See `Embedder`. Thread-safe; `close` it at the end."""

    provenance = "openai"

    def __init__(
        self,
        *,
        model: str,
        dimensions: int,
        api_key: str,
        base_url: str | None,
        limits: Limits,
        concurrency: int,
        timeout_s: float,
        send_dimensions: bool,
        count_tokens: Callable[[Sequence[str]], list[int]],
        paid: bool,
        attempts: int = 8,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """Nothing is sent yet. `clock` and `sleep` simulate time in tests.

        Raises EmbeddingError for a key or URL that cannot work.
        """
        self.model = model
        self.dimensions = dimensions
        self.limits = limits
        self.concurrency = concurrency
        self.paid = paid
        self._count = count_tokens
        self._attempts = attempts
        self._asked_dimensions = dimensions if send_dimensions else openai.omit
        self._client = OpenAIClient(api_key=api_key, base_url=base_url, timeout_s=timeout_s)
        self._gate = Gate(clock, sleep)

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self.model!r}, {self.dimensions}, {self._client.url!r})"

    @property
    def token_ceiling(self) -> int | None:
        """Tokens of the largest request the account's bucket can hold, once an answer has told; None: not known."""
        return self._gate.ceiling

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as it would be sent."""
        return self._count(_sendable(texts))

    def request(self, texts: Sequence[str]) -> Answer:
        """One request, tried until it is answered or given up. See `Embedder.request`."""
        sendable = _sendable(texts)
        sending = _Sending(sendable, sum(self._count(sendable)))
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, _FailedError) and error.failure.retry),
            stop=lambda state: state.attempt_number >= self._attempts or sending.unusable >= UNUSABLE_ATTEMPTS,
            wait=_backoff,  # where the service asks for longer, the gate stays closed until then
            sleep=self._gate.pause,
            before_sleep=_report,
            reraise=True,
        )
        try:
            vectors, tokens = retrying(self._attempt, sending)
        except _FailedError as failed:
            raise _given_up(failed.failure, sending, retrying.statistics["attempt_number"]) from None
        except EmbeddingError as error:  # stopped while waiting, or larger than the account's bucket
            error.tokens_at_risk = sending.tokens_at_risk
            raise
        return Answer(vectors, tokens, sending.tokens_at_risk)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of a few texts, in as many requests as the limits ask for. See `Embedder.embed`."""
        sized = (Sized(text, tokens) for text, tokens in zip(texts, self.count_tokens(texts), strict=True))
        found = [self.request([one.value for one in request]).vectors for request in pack(sized, self.limits)]
        return np.concatenate(found) if found else np.empty((0, self.dimensions), dtype=np.float32)

    def stop(self) -> None:
        """Requests that wait for their turn or for another attempt end with an EmbeddingError, now and from now on."""
        self._gate.stop()

    def close(self) -> None:
        """Stop, and close the connections."""
        self.stop()
        self._client.close()

    def _attempt(self, sending: _Sending) -> tuple[NDArray[np.float32], int]:
        """Send once: vectors and tokens billed. Raises _FailedError, whose tokens at risk are added up already."""
        body = self._exchange(sending)
        try:
            vectors, tokens = read_answer(body, len(sending.texts), self.dimensions)
        except AnswerError as error:
            sending.tokens_at_risk += sending.tokens
            sending.unusable += 1
            text = f"{self._client.url} answered {self.model!r} with something unusable: {error}."
            raise _FailedError(Failure(EmbeddingError(text), retry=True, maybe_billed=True)) from None
        except DimensionError as error:
            sending.tokens_at_risk += sending.tokens
            text = (
                f"{self.model!r} at {self._client.url} answered with {error}, the space has {self.dimensions}. "
                f"Set QBENCH_DIMENSIONS to {error.found}, or QBENCH_MODEL to a model of {self.dimensions}. {KEPT}"
            )
            raise _FailedError(Failure(EmbeddingError(text), maybe_billed=True)) from None
        return vectors, sending.tokens if tokens is None else tokens

    def _exchange(self, sending: _Sending) -> bytes:
        """The body of a 200, after waiting for a turn. Raises _FailedError."""
        turn = self._gate.enter(sending.tokens)
        failure: Failure | None = None
        answered: dict[str, str] = {}
        closed_s = 0.0
        try:
            raw = self._client.api.embeddings.with_raw_response.create(
                model=self.model,
                input=sending.texts,
                dimensions=self._asked_dimensions,
                encoding_format="base64",
            )
            answered = {name.lower(): value for name, value in raw.headers.items()}
            return raw.content
        except TRANSPORT_ERRORS as error:
            failure = self._client.failure(error, self.model)
            answered, closed_s = dict(failure.headers), failure.retry_after_s or 0.0
        finally:
            # Also on Ctrl-C in this thread: a turn that is never given back would stop all others for ever.
            self._gate.leave(
                turn,
                answered,
                served=failure is None and bool(answered),
                refused=failure is not None and failure.rate_limited,
                closed_s=closed_s,
            )
        if failure.maybe_billed:
            sending.tokens_at_risk += sending.tokens
        if failure.account_limit is not None:
            self._gate.refused_as_too_large(sending.tokens, failure.account_limit)
        raise _FailedError(failure)


def _sendable(texts: Sequence[str]) -> list[str]:
    """As they are sent: the API refuses an empty string, and UTF-8 half a surrogate pair (a terminal's query)."""
    return [text.encode("utf-8", "replace").decode() if text.strip() else " " for text in texts]


def _report(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0.0
    log.info("Attempt %d failed, another in %.1f s or later: %s", state.attempt_number, wait, error)


def _given_up(failure: Failure, sending: _Sending, attempts: int) -> EmbeddingError:
    """What the caller gets."""
    text = str(failure.error)
    if failure.retry:
        text = f"{text} Given up after {attempts} attempts. {KEPT}"
    return type(failure.error)(text, tokens_at_risk=sending.tokens_at_risk)
