"""OpenAI's Batch API from outside: files go up, batches are made, found and asked after, results come back as lines.

No PostgreSQL: what is sent, and what becomes of an answer, is `batching.py`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Sequence
from typing import IO, Any, TypeVar
from uuid import UUID

import httpx2
import openai
import tenacity

from qbench_dagster.adapters.batch_service import RefusedError, UnknownBatchError
from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.openai_client import (
    BACKOFF,
    KEPT,
    TRANSPORT_ERRORS,
    FailedError,
    Failure,
    OpenAIClient,
    trying_again,
)
from qbench_dagster.core.answers import AnswerError
from qbench_dagster.core.batches import MARK, URL, WINDOW, RemoteBatch, read_batch, split_lines
from qbench_dagster.core.requests import Limits

log = logging.getLogger(__name__)

T = TypeVar("T")

PAGE = 100
CHUNK = 256 * 1024
CLOCKS_APART_S = 86_400.0
"""Batches older than ours by more than this are not looked at: our clock and the service's may differ."""


class OpenAIBatches:
    """See `BatchService`; `close` it at the end.

    Every method tries again what deserves it, and raises EmbeddingError when it is given up: RefusedError where the
    service said no, so that nothing was done.
    """

    provenance = "openai_batch"

    def __init__(
        self,
        *,
        model: str,
        dimensions: int,
        api_key: str,
        base_url: str | None,
        limits: Limits,
        timeout_s: float,
        send_dimensions: bool,
        count_tokens: Callable[[Sequence[str]], list[int]],
        attempts: int = 6,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is sent yet. Raises EmbeddingError for a key or URL that cannot work."""
        self.model = model
        self.dimensions = dimensions
        self.asked_dimensions = dimensions if send_dimensions else None
        """What requests carry as `dimensions`; None: nothing."""
        self.limits = limits
        """What a line holds: as much as a request."""
        self._count = count_tokens
        self._attempts = attempts
        self._sleep = sleep
        self._client = OpenAIClient(api_key=api_key, base_url=base_url, timeout_s=timeout_s)

    def __repr__(self) -> str:
        return f"OpenAIBatches({self.model!r}, {self._client.url!r})"

    def __enter__(self) -> OpenAIBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text. See `BatchService.count_tokens`."""
        return self._count(texts)

    def upload(self, name: str, content: IO[bytes]) -> str:
        """Upload a batch's input, read from its beginning; returns the file's id."""

        def send() -> str:
            content.seek(0)
            raw = self._client.api.files.with_raw_response.create(
                file=(name, content, "application/jsonl"), purpose="batch"
            )
            return _identity(raw.content)

        return self._tried(f"upload {name}", send)

    def create(self, file_id: str, mark: UUID, since: float) -> RemoteBatch:
        """Make a batch of an uploaded file, marked as ours; never a second one of the same mark.

        A request whose answer was lost may have been served, so the batch is looked for before it is asked for again.
        Whatever ends it from then on is no RefusedError: nobody knows that there is no batch.
        """
        asked = 0

        def send() -> RemoteBatch:
            nonlocal asked
            asked += 1
            if asked > 1 and (found := self._find(mark, since)):
                return found
            raw = self._client.api.batches.with_raw_response.create(
                input_file_id=file_id, endpoint=URL, completion_window=WINDOW, metadata={MARK: str(mark)}
            )
            return read_batch(json.loads(raw.content))

        try:
            return self._tried("create a batch", send)
        except RefusedError as error:
            if asked == 1:
                raise
            raise EmbeddingError(
                f"{error} Asked for before, the batch may have been made all the same: its texts are not sent again "
                "until the service can be asked for it, which the next run does."
            ) from None

    def find(self, mark: UUID, since: float) -> RemoteBatch | None:
        """The batch of this mark, made after `since` (seconds of the epoch); None if there is none."""
        return self._tried("list batches", lambda: self._find(mark, since))

    def poll(self, batch_id: str) -> RemoteBatch:
        """How a batch stands. Raises UnknownBatchError if the service does not know it."""

        def send() -> RemoteBatch:
            return read_batch(json.loads(self._client.api.batches.with_raw_response.retrieve(batch_id).content))

        return self._tried(f"ask after {batch_id}", send)

    def delete_file(self, file_id: str) -> None:
        """Delete a file; one that is gone already is fine."""
        try:
            self._tried(f"delete {file_id}", lambda: self._client.api.files.with_raw_response.delete(file_id))
        except UnknownBatchError:
            log.info("file %s is gone already", file_id)

    def lines(self, file_id: str) -> Generator[bytes, None, None]:
        """The lines of a file, streamed: an output of 50,000 vectors is 820 MB. After a lost connection it goes on."""
        seen = 0
        attempt = 1
        while True:
            began_at = seen
            try:
                with self._client.api.files.with_streaming_response.content(file_id) as response:
                    for number, line in enumerate(split_lines(response.iter_bytes(CHUNK))):
                        if number >= seen:
                            seen += 1
                            yield line
                return
            except TRANSPORT_ERRORS as error:
                failure = self._failure(error, f"read {file_id}")
                attempt = 1 if seen > began_at else attempt + 1
                if not failure.retry or attempt > self._attempts:
                    raise failure.error from None
                log.info("reading %s stopped after %d lines, again: %s", file_id, seen, failure.error)
                self._sleep(min(60.0, 2.0**attempt))

    def _find(self, mark: UUID, since: float) -> RemoteBatch | None:
        after: str | openai.Omit = openai.omit
        while True:
            raw = self._client.api.batches.with_raw_response.list(limit=PAGE, after=after)
            page = json.loads(raw.content)
            listed = page.get("data") if isinstance(page, dict) else None
            if not isinstance(listed, list):
                raise AnswerError("no list of batches")
            found = [read_batch(each) for each in listed]  # newest first
            for batch in found:
                if batch.mark == str(mark):
                    return batch
            if not found or not page.get("has_more") or found[-1].created_at < since - CLOCKS_APART_S:
                return None
            after = found[-1].id

    def _tried(self, what: str, send: Callable[[], T]) -> T:
        """`send` until it works or is given up."""

        def attempt() -> T:
            try:
                return send()
            except TRANSPORT_ERRORS as error:
                raise FailedError(self._failure(error, what)) from None
            except (AnswerError, ValueError, RecursionError) as error:
                said = f"{self._client.url} did not answer as the Batch API does when asked to {what}: {error}."
                raise FailedError(Failure(EmbeddingError(said), retry=True)) from None

        retrying = trying_again(stop=tenacity.stop_after_attempt(self._attempts), wait=_backoff, sleep=self._sleep)
        try:
            return retrying(attempt)
        except FailedError as failed:
            error = failed.failure.error
            if failed.failure.retry:
                raise EmbeddingError(f"{error} Given up after {self._attempts} attempts. {KEPT}") from None
            raise error if isinstance(error, RefusedError) else RefusedError(str(error)) from None

    def _failure(self, error: Exception, what: str) -> Failure:
        if isinstance(error, openai.NotFoundError):
            return Failure(
                UnknownBatchError(
                    f"{self._client.url} answered 404 when asked to {what}: it knows no such thing. Is OPENAI_API_KEY "
                    "of another project than the one it was made with, or OPENAI_BASE_URL of another server?"
                )
            )
        if isinstance(error, openai.BadRequestError | httpx2.InvalidURL):
            said = str(self._client.failure(error, self.model).error)
            return Failure(EmbeddingError(f"Could not {what}. {said}"))
        return self._client.failure(error, self.model)


def _identity(content: bytes) -> str:
    given: Any = json.loads(content)
    if not isinstance(given, dict) or not isinstance(given.get("id"), str):
        raise AnswerError("no file object")
    return str(given["id"])


def _backoff(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.failure.retry_after_s if isinstance(error, FailedError) else None
    return max(asked or 0.0, BACKOFF(state))
