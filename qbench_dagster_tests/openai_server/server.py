"""The server itself: which address is answered by what. No sockets: those are `wire.py`.

What an endpoint answers stands in `embeddings.py`, `files.py` and `batches.py`; the control addresses, which only
another process needs, in `control.py`.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from qbench_dagster_tests.openai_server.batch_lines import BatchRules
from qbench_dagster_tests.openai_server.batches import Batches, BatchOutcome
from qbench_dagster_tests.openai_server.embeddings import MODELS, Rules
from qbench_dagster_tests.openai_server.faults import BROKEN_FAULTS, EMBEDDINGS, VECTOR_FAULTS, Fault, Faults, Predicate
from qbench_dagster_tests.openai_server.files import Files
from qbench_dagster_tests.openai_server.ledger import Ledger, Seen
from qbench_dagster_tests.openai_server.limits import RateLimits
from qbench_dagster_tests.openai_server.replies import (
    RefusalError,
    Reply,
    bad_request,
    error_reply,
    not_found,
    wrong_key,
)
from qbench_dagster_tests.openai_server.vectors import count_words
from qbench_dagster_tests.openai_server.wire import Answer, WireServer

KEY = "sk-test-0123456789abcdef"


class OpenAIServer:
    """Listens on 127.0.0.1 while its `with` block lasts. All methods may be called from any thread.

    The limits are OpenAI's unless set. `burst_seconds` is how much of a minute's limit may be used at once,
    `latency_s` the time each request under /v1 takes at least, `batch_polls` how many GETs of a batch move it on by
    one state (0: only `advance_batches` does).
    """

    def __init__(
        self,
        *,
        port: int = 0,
        key: str = KEY,
        models: Mapping[str, int] | None = None,
        max_inputs: int = 2048,
        max_input_tokens: int = 8192,
        max_request_tokens: int = 300_000,
        count_tokens: Callable[[str], int] = count_words,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        burst_seconds: float = 60.0,
        retry_headers: bool = True,
        latency_s: float = 0.0,
        batch_polls: int = 1,
        batch_rules: BatchRules | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.key = key
        self.latency_s = latency_s
        self.retry_headers = retry_headers
        self.ledger = Ledger()
        self.faults = Faults()
        self.rules = Rules(dict(models or MODELS), max_inputs, max_input_tokens, max_request_tokens, count_tokens)
        self.limits = RateLimits(requests_per_minute, tokens_per_minute, burst_seconds, clock)
        batch_rules = batch_rules or BatchRules()
        self.files = Files(batch_rules.max_bytes)
        self.batches = Batches(self.files, self.rules, batch_rules, self.ledger, batch_polls)
        self.closing = threading.Event()
        self._http = WireServer(self, port)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="openai", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and drop every connection, those of hanging requests too."""
        self.closing.set()
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()
        self._http.drop_connections()
        self.files.close()

    @property
    def base_url(self) -> str:
        """What a client takes as its base URL."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    @property
    def billed(self) -> Counter[str]:
        """How many times each text was billed by /v1/embeddings."""
        return self.ledger.billed

    @property
    def billed_by_batch(self) -> Counter[str]:
        """How many times each text was billed by batches."""
        return self.ledger.billed_by_batch

    def fail_next(
        self, *faults: Fault | str, path: str = EMBEDDINGS, method: str | None = None, seconds: float | None = None
    ) -> None:
        """Let the next requests whose path begins with `path` fail, one fault each, in this order."""
        self.faults.add(faults, path=path, method=method, seconds=seconds)

    def fail_when(
        self,
        predicate: Predicate,
        fault: Fault | str,
        *,
        path: str = EMBEDDINGS,
        method: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """Let every request fail for which `predicate(number, JSON body)` holds, until `faults.clear()`."""
        self.faults.add((fault,), path=path, method=method, seconds=seconds, predicate=predicate)

    def batch_next(self, *outcomes: BatchOutcome | str) -> None:
        """How the next created batches end, in this order; "completed" when nothing is queued."""
        self.batches.queue(*outcomes)

    def advance_batches(self, steps: int = 1) -> None:
        """Move every unfinished batch on by `steps` states."""
        self.batches.advance_all(steps)

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes, seen: Seen) -> Answer:
        """What a request under /v1 is answered with, whatever is to happen to it on its way."""
        split = urlsplit(target)
        asked = _json_of(headers, body)
        fault = self.faults.take(method, split.path, asked if isinstance(asked, dict) else {})
        if self.latency_s:
            self.closing.wait(self.latency_s)
        if fault and fault.kind == "reset":
            self.ledger.refuse(seen, "fault:reset")
            return Answer(Reply(b""), fault)
        try:
            if fault and (page := fault.reply()):
                self.ledger.refuse(seen, f"fault:{fault.kind}")
                return Answer(page, None)
            if headers.get("Authorization") != f"Bearer {self.key}":
                raise wrong_key(headers.get("Authorization", "").removeprefix("Bearer "))
            seen.outcome = "ok" if fault is None else f"fault:{fault.kind}"
            reply = self._route(method, split.path, parse_qs(split.query), headers, body, asked, fault, seen)
        except RefusalError as refusal:
            self.ledger.refuse(seen, refusal.reason)
            return Answer(error_reply(refusal, self._headers(split.path, refusal.retry_after_s)), None)
        return Answer(reply, fault if fault and fault.kind in BROKEN_FAULTS else None)

    def _route(
        self,
        method: str,
        path: str,
        query: Mapping[str, list[str]],
        headers: Mapping[str, str],
        body: bytes,
        asked: Any,
        fault: Fault | None,
        seen: Seen,
    ) -> Reply:
        match method, path.strip("/").split("/")[1:]:
            case "POST", ["embeddings"]:
                reply = self._embeddings(_object(asked), fault, seen)
            case "POST", ["files"]:
                reply = self.files.upload(headers.get("Content-Type", ""), body)
            case "GET", ["files"]:
                reply = self.files.page(query)
            case "GET", ["files", name]:
                reply = self.files.describe(name)
            case "GET", ["files", name, "content"]:
                reply = self.files.content(name)
            case "DELETE", ["files", name]:
                reply = self.files.delete(name)
            case "POST", ["batches"]:
                reply = self.batches.create(_object(asked))
            case "GET", ["batches"]:
                reply = self.batches.page(query)
            case "GET", ["batches", name]:
                reply = self.batches.poll(name)
            case "POST", ["batches", name, "cancel"]:
                reply = self.batches.cancel(name)
            case _:
                raise not_found("address", f"{method} {path}")
        return reply

    def _embeddings(self, body: Mapping[str, Any], fault: Fault | None, seen: Seen) -> Reply:
        asked = self.rules.check(body)
        self.limits.take(asked.model, asked.tokens)
        damage = fault.kind if fault and fault.kind in VECTOR_FAULTS else None
        answered = asked.body(damage)
        self.ledger.bill(seen, asked.texts, asked.tokens)
        return Reply(answered, headers=self._headers(EMBEDDINGS))

    def _headers(self, path: str, retry_after_s: float | None = None) -> dict[str, str]:
        headers = self.limits.headers() if path == EMBEDDINGS else {}
        if retry_after_s is not None and self.retry_headers:
            # rounded up: who waits as long as told is let in
            headers["Retry-After"] = str(int(-(-retry_after_s // 1)))
            headers["retry-after-ms"] = str(int(-(-retry_after_s * 1000 // 1)))
        return headers


def _json_of(headers: Mapping[str, str], body: bytes) -> Any:
    """The JSON body; None where there is none."""
    if not body or "json" not in headers.get("Content-Type", ""):
        return None
    try:
        return json.loads(body)
    except ValueError:
        return None


def _object(asked: Any) -> Mapping[str, Any]:
    if not isinstance(asked, dict):
        raise bad_request("We could not parse the JSON body of your request.")
    return asked
