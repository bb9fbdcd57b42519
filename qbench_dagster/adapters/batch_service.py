"""What embedding by batches needs of a service, whoever it is. OpenAI's is `openai_batches.py`."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from typing import IO, Protocol
from uuid import UUID

from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.core.batches import RemoteBatch
from qbench_dagster.core.requests import Limits

log = logging.getLogger(__name__)


class RefusedError(EmbeddingError):
    """The service said no: what was asked for was not done, and asking again would bring the same."""


class UnknownBatchError(RefusedError):
    """The service knows no such batch or file."""


class BatchService(Protocol):
    """The batches of one account for one model. Every method raises EmbeddingError when it is given up."""

    model: str
    dimensions: int
    provenance: str
    """What a vector's row records as its origin."""
    asked_dimensions: int | None
    """What requests carry as `dimensions`; None: nothing."""
    limits: Limits
    """What a line holds."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as the service would bill them or as an estimate."""
        ...

    def upload(self, name: str, content: IO[bytes]) -> str:
        """Upload a batch's input, read from its beginning; returns the file's id."""
        ...

    def create(self, file_id: str, mark: UUID, since: float) -> RemoteBatch:
        """Make a batch of an uploaded file, marked as ours; never a second one of the same mark.

        Raises RefusedError only where it is certain that there is none now.
        """
        ...

    def find(self, mark: UUID, since: float) -> RemoteBatch | None:
        """The batch of this mark, made after `since` (seconds of the epoch); None if there is none."""
        ...

    def poll(self, batch_id: str) -> RemoteBatch:
        """How a batch stands. Raises UnknownBatchError if the service does not know it."""
        ...

    def delete_file(self, file_id: str) -> None:
        """Delete a file; one that is gone already is fine."""
        ...

    def lines(self, file_id: str) -> Generator[bytes, None, None]:
        """The lines of a file, streamed. Raises UnknownBatchError if it is gone."""
        ...


def find_made(service: BatchService, mark: UUID, since: float, file_id: str | None) -> RemoteBatch | None:
    """The batch that a process made of `file_id` and could not note; None if there is none, and will be none."""
    if file_id is None:
        return None
    found = service.find(mark, since)
    if found is None:
        # A request sent just before the process ended may be served only now: without its file it comes to nothing.
        service.delete_file(file_id)
        found = service.find(mark, since)
    return found


def clear_files(service: BatchService, *file_ids: str | None) -> None:
    """Delete files that nobody needs any more: what an account keeps is limited, and they hold the texts.

    One that stays is a line in the log; after it the others are left too, for each would be tried for a minute.
    """
    for file_id in filter(None, file_ids):
        try:
            service.delete_file(file_id)
        except EmbeddingError as error:
            log.warning("file %s stays at the service: %s", file_id, error)
            return
