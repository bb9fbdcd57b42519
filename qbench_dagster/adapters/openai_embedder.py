"""The embedder that asks OpenAI, or a server that speaks its API: one request at a time for each calling thread.

A request is paced, tried again, checked and accounted for here. Which texts are sent, and what is remembered of the
money, is for the caller; what an error means is `openai_client.py`, when a request may go `gate.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import openai
import tenacity
from numpy.typing import NDArray

from qbench_dagster.adapters.embedders import AtRisk, EmbeddingError
from qbench_dagster.adapters.gate import Gate
from qbench_dagster.adapters.openai_client import (
    KEPT,
    TRANSPORT_ERRORS,
    FailedError,
    Failure,
    OpenAIClient,
    report_attempt,
    trying_again,
)
from qbench_dagster.core.answers import AnswerError, DimensionError, read_answer
from qbench_dagster.core.packing import Sized, pack
from qbench_dagster.core.requests import Answer, Limits

UNUSABLE_ATTEMPTS = 3
"""A server that answers 200 with nonsense may bill each time: asked again twice, not eight times."""


@dataclass(slots=True)
class _Sending:
    """A request on its way through its attempts."""

    texts: list[str]
    tokens: int
    tokens_at_risk: int = 0
    told: int = 0
    """Of these, what the caller has been told of."""
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

    def request(self, texts: Sequence[str], at_risk: AtRisk | None = None) -> Answer:
        """One request, tried until it is answered or given up. See `Embedder.request`."""
        sendable = _sendable(texts)
        sending = _Sending(sendable, sum(self._count(sendable)))

        def before_another(state: tenacity.RetryCallState) -> None:
            report_attempt(state)
            if at_risk is not None and sending.tokens_at_risk > sending.told:
                lately, sending.told = sending.tokens_at_risk - sending.told, sending.tokens_at_risk
                at_risk(lately)

        retrying = trying_again(  # where the service asks for a longer wait, the gate stays closed until then
            stop=lambda state: state.attempt_number >= self._attempts or sending.unusable >= UNUSABLE_ATTEMPTS,
            sleep=self._gate.pause,
            before_sleep=before_another,
        )
        try:
            vectors, tokens = retrying(self._attempt, sending)
        except FailedError as failed:
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
        """Send once: vectors and tokens billed. Raises FailedError, whose tokens at risk are added up already."""
        body = self._exchange(sending)
        try:
            vectors, tokens = read_answer(body, len(sending.texts), self.dimensions)
        except AnswerError as error:
            sending.tokens_at_risk += sending.tokens
            sending.unusable += 1
            text = f"{self._client.url} answered {self.model!r} with something unusable: {error}."
            raise FailedError(Failure(EmbeddingError(text), retry=True, maybe_billed=True)) from None
        except DimensionError as error:
            sending.tokens_at_risk += sending.tokens
            text = (
                f"{self.model!r} at {self._client.url} answered with {error}, the space has {self.dimensions}. "
                f"Set QBENCH_DIMENSIONS to {error.found}, or QBENCH_MODEL to a model of {self.dimensions}. {KEPT}"
            )
            raise FailedError(Failure(EmbeddingError(text), maybe_billed=True)) from None
        return vectors, sending.tokens if tokens is None else tokens

    def _exchange(self, sending: _Sending) -> bytes:
        """The body of a 200, after waiting for a turn. Raises FailedError."""
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
        raise FailedError(failure)


def _sendable(texts: Sequence[str]) -> list[str]:
    """As they are sent: the API refuses an empty string, and UTF-8 half a surrogate pair (a terminal's query)."""
    return [text.encode("utf-8", "replace").decode() if text.strip() else " " for text in texts]


def _given_up(failure: Failure, sending: _Sending, attempts: int) -> EmbeddingError:
    """What the caller gets."""
    text = str(failure.error)
    if failure.retry:
        text = f"{text} Given up after {attempts} attempts. {KEPT}"
    return type(failure.error)(text, tokens_at_risk=sending.tokens_at_risk)
