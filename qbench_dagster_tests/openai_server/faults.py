"""What can be made to go wrong, and for which request. How it looks on the wire: `server.py` and `embeddings.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qbench_dagster_tests.openai_server.replies import (
    ORGANIZATION,
    RefusalError,
    Reply,
    rate_limited,
    unknown_model,
    wrong_key,
)

VECTOR_FAULTS = ("short", "reordered", "swapped-index", "nan", "zero", "wrong-dimension")
"""A 200 with something wrong in it. "reordered" is legal: the indices are true."""

BROKEN_FAULTS = ("hang", "reset", "reset-mid-body")
"""No whole answer. All but "reset" were processed, and billed."""

REFUSAL_FAULTS = ("429", "429-bare", "500", "503", "quota", "bad-key", "no-model")
PAGE_FAULTS = ("not-json", "html-502")
FAULTS = (*REFUSAL_FAULTS, *PAGE_FAULTS, *BROKEN_FAULTS, *VECTOR_FAULTS)

EMBEDDINGS = "/v1/embeddings"
PAGE = b"<html><head><title>%s</title></head><body><center><h1>%s</h1></center><hr>proxy</body></html>"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to go wrong. `seconds`: of a "hang" until it answers after all, of a "429" in its Retry-After."""

    kind: str
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise ValueError(f"there is no fault {self.kind!r}: use one of {', '.join(FAULTS)}")

    def reply(self) -> Reply | None:
        """The page instead of an answer. Raises RefusalError where it is one of OpenAI's own; None: carry on."""
        refusal = _refusal(self)
        if refusal is not None:
            raise refusal
        if self.kind == "not-json":
            return Reply(PAGE % (b"Sign in", b"Sign in to the network"), 200, content_type="text/html")
        if self.kind == "html-502":
            return Reply(PAGE % (b"502 Bad Gateway", b"502 Bad Gateway"), 502, content_type="text/html")
        return None


def _refusal(fault: Fault) -> RefusalError | None:
    reason = f"fault:{fault.kind}"
    wait = 0.02 if fault.seconds is None else fault.seconds
    match fault.kind:
        case "429" | "429-bare":
            refusal = rate_limited("the model", "tokens", 1_000_000, 1_000_000, 1000, wait)
            if fault.kind == "429-bare":
                refusal.retry_after_s = None
        case "500":
            message = "The server had an error while processing your request. Sorry about that!"
            refusal = RefusalError(500, message, kind="server_error")
        case "503":
            message = "The engine is currently overloaded, please try again later"
            refusal = RefusalError(503, message, kind="server_error")
        case "quota":
            refusal = RefusalError(
                429,
                f"You exceeded your current quota ({ORGANIZATION}), please check your plan and billing details. For "
                "more information on this error, read the docs: "
                "https://platform.openai.com/docs/guides/error-codes/api-errors.",
                kind="insufficient_quota",
                code="insufficient_quota",
            )
        case "bad-key":
            refusal = wrong_key("sk-revoked-0000")
        case "no-model":
            refusal = unknown_model("text-embedding-3-large")
        case _:
            return None
    refusal.reason = reason
    return refusal


Predicate = Callable[[int, Mapping[str, Any]], bool]
"""Is given the request's number among those the rule was asked about, from 1, and its JSON body ({} without one)."""


@dataclass
class _Rule:
    fault: Fault
    path: str
    method: str | None
    predicate: Predicate | None
    """None: for the next request, once."""
    asked: int = field(default=0)


class Faults:
    """The faults that wait for their requests. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []

    def add(
        self,
        faults: tuple[Fault | str, ...],
        *,
        path: str,
        method: str | None,
        seconds: float | None,
        predicate: Predicate | None = None,
    ) -> None:
        """Queue faults for requests whose path begins with `path`."""
        rules = []
        for named in faults:
            fault = Fault(named, seconds) if isinstance(named, str) else named
            if fault.kind in VECTOR_FAULTS and path != EMBEDDINGS:
                raise ValueError(f"{fault.kind!r} damages vectors, and {path} answers none; see BatchOutcome.damage")
            rules.append(_Rule(fault, path, method, predicate))
        with self._lock:
            self._rules += rules

    def take(self, method: str, path: str, body: Mapping[str, Any]) -> Fault | None:
        """The fault of this request: of the first rule that fits. It is spent even where the request is refused."""
        with self._lock:
            for position, rule in enumerate(self._rules):
                if not path.startswith(rule.path) or rule.method not in {None, method}:
                    continue
                if rule.predicate is None:
                    del self._rules[position]
                    return rule.fault
                rule.asked += 1
                if rule.predicate(rule.asked, body):
                    return rule.fault
        return None

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._rules.clear()

    def waiting(self) -> int:
        """Rules that are still there."""
        with self._lock:
            return len(self._rules)
