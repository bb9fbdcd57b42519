"""The /control addresses: what the server's methods do, for a test or a benchmark in another process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from qbench_dagster_tests.openai_server.batches import BatchOutcome
from qbench_dagster_tests.openai_server.faults import EMBEDDINGS, Fault, Predicate
from qbench_dagster_tests.openai_server.replies import Reply, json_reply

if TYPE_CHECKING:
    from qbench_dagster_tests.openai_server.server import OpenAIServer


def control(server: OpenAIServer, method: str, target: str, body: bytes) -> Reply:
    """Answer a control request; 400 with the reason where it makes no sense.

    GET /control/ledger?texts=1&times=1; POST /control/ledger/clear; POST /control/faults {"next": [kind or {"kind",
    "seconds"}, ...], "path", "method"}, or {"when": {"numbers": [..], "every": n, "containing": text}, "fault": kind},
    or {"clear": true}; POST /control/batches {"next": [kind or the fields of BatchOutcome, ...], "advance": n}.
    """
    split = urlsplit(target)
    query = parse_qs(split.query)
    try:
        asked = json.loads(body or b"{}")
        match method, split.path:
            case "GET", "/control/ledger":
                return json_reply(server.ledger.summary(texts="texts" in query, times="times" in query))
            case "POST", "/control/ledger/clear":
                server.ledger.clear()
            case "POST", "/control/faults":
                _faults(server, asked)
            case "POST", "/control/batches":
                server.batch_next(*(_outcome(given) for given in asked.get("next", [])))
                server.advance_batches(asked.get("advance", 0))
            case _:
                raise ValueError(f"there is no {method} {split.path}")
    except (ValueError, TypeError, KeyError) as wrong:
        return json_reply({"error": str(wrong)}, 400)
    return json_reply({"ok": True})


def _faults(server: OpenAIServer, asked: Mapping[str, Any]) -> None:
    if asked.get("clear"):
        server.faults.clear()
    where = {"path": asked.get("path", EMBEDDINGS), "method": asked.get("method")}
    server.fail_next(*(_fault(given) for given in asked.get("next", [])), **where)
    if "when" in asked:
        server.fail_when(_predicate(**asked["when"]), _fault(asked["fault"]), **where)


def _fault(given: str | dict[str, Any]) -> Fault:
    return Fault(given) if isinstance(given, str) else Fault(**given)


def _outcome(given: str | dict[str, Any]) -> BatchOutcome:
    return BatchOutcome(given) if isinstance(given, str) else BatchOutcome(**given)


def _predicate(numbers: list[int] | None = None, every: int | None = None, containing: str | None = None) -> Predicate:
    """Every condition that is given must hold."""

    def holds(number: int, body: Mapping[str, Any]) -> bool:
        return (
            (numbers is None or number in numbers)
            and (every is None or number % every == 0)
            and (containing is None or containing in json.dumps(body, ensure_ascii=False))
        )

    return holds
