"""/v1/files: uploads of batch input, and the output of batches, on disk until the server closes."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from qbench_dagster_tests.openai_server.replies import Reply, bad_request, json_reply, not_found


class Files:
    """The files of one server. Thread-safe. An output of 50,000 vectors is 820 MB, so none is held in memory."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._home = tempfile.TemporaryDirectory(prefix="openai-files-", ignore_cleanup_errors=True)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._files: dict[str, dict[str, Any]] = {}

    def close(self) -> None:
        """Remove the files."""
        self._home.cleanup()

    def upload(self, content_type: str, body: bytes) -> Reply:
        """POST /v1/files."""
        fields = _multipart(content_type, body)
        if "file" not in fields:
            raise bad_request("'file' is a required property")
        purpose = fields.get("purpose", ("", b""))[1].decode("utf-8", "replace")
        if purpose != "batch":
            raise bad_request(f"'{purpose}' is not one of ['batch'] - 'purpose'", param="purpose")
        name, content = fields["file"]
        if len(content) > self._max_bytes:
            raise bad_request("File is too large.")
        return json_reply(self._keep(name, "batch", [content]))

    def write(self, name: str, chunks: Iterable[bytes]) -> str:
        """Keep a batch's output; its id."""
        return str(self._keep(name, "batch_output", chunks)["id"])

    def path_of(self, name: str) -> Path:
        """Where the content lies."""
        self._found(name)
        return self._path(name)

    def purpose_of(self, name: str) -> str:
        """What the file was uploaded for."""
        return str(self._found(name)["purpose"])

    def describe(self, name: str) -> Reply:
        """GET /v1/files/{id}."""
        return json_reply(self._found(name))

    def content(self, name: str) -> Reply:
        """GET /v1/files/{id}/content."""
        return Reply(self.path_of(name), content_type="application/octet-stream")

    def delete(self, name: str) -> Reply:
        """DELETE /v1/files/{id}."""
        with self._lock:
            if self._files.pop(name, None) is None:
                raise not_found("File", name)
        return json_reply({"id": name, "object": "file", "deleted": True})

    def page(self, query: Mapping[str, Any]) -> Reply:
        """GET /v1/files?purpose=&limit=&after=, newest first."""
        with self._lock:
            files = list(self._files.values())[::-1]
        purpose = query.get("purpose", [None])[0]
        return page_of([file for file in files if purpose in {None, file["purpose"]}], query, most=10_000)

    def names(self) -> set[str]:
        """Ids of all files that were not deleted."""
        with self._lock:
            return set(self._files)

    def _keep(self, name: str, purpose: str, chunks: Iterable[bytes]) -> dict[str, Any]:
        identity = f"file-{next(self._numbers):08d}"
        with self._path(identity).open("wb") as file:
            size = sum(file.write(chunk) for chunk in chunks)
        described = {
            "id": identity,
            "object": "file",
            "bytes": size,
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
            "expires_at": None,
            "status_details": None,
        }
        with self._lock:
            self._files[identity] = described
        return described

    def _found(self, name: str) -> dict[str, Any]:
        with self._lock:
            if name not in self._files:
                raise not_found("File", name)
            return self._files[name]

    def _path(self, name: str) -> Path:
        return Path(self._home.name) / name


def page_of(items: list[dict[str, Any]], query: Mapping[str, Any], *, most: int) -> Reply:
    """A page of a list, as `limit` and `after` (the last id of the page before) ask."""
    try:
        limit = int(query.get("limit", ["20" if most < 10_000 else most])[0])
    except ValueError:
        limit = 0
    if not 1 <= limit <= most:
        raise bad_request(f"Invalid 'limit': expected a value between 1 and {most}.", param="limit")
    after = query.get("after", [None])[0]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise bad_request(f"Invalid 'after': there is no {after}.", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return json_reply({"object": "list", "data": page, **ends, "has_more": len(items) > limit})


def _multipart(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """The fields of a multipart/form-data body: (file name, content) by field name."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise bad_request("Expected a multipart/form-data body with a boundary.")
    fields = {}
    for part in (b"\r\n" + body).split(f"\r\n--{boundary}".encode())[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        parsed = HeaderParser().parsestr(head.lstrip(b"\r\n").decode("utf-8", "replace"))
        name = parsed.get_param("name", header="content-disposition")
        fields[str(name)] = (parsed.get_filename("upload"), content)
    return fields
