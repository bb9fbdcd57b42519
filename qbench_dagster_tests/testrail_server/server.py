"""Which address is answered by what, and what goes wrong on demand. The sockets are those of `openai_server.wire`."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, cast

from qbench_dagster_tests.openai_server.faults import Fault
from qbench_dagster_tests.openai_server.ledger import Ledger, Seen
from qbench_dagster_tests.openai_server.limits import Bucket
from qbench_dagster_tests.openai_server.replies import Reply, json_reply
from qbench_dagster_tests.openai_server.wire import Answer, WireServer
from qbench_dagster_tests.testrail_server.data import Entity, TestRailData
from qbench_dagster_tests.testrail_server.refusals import BROKEN, KEY, PAGE, USER, RefusalError, Rule

MOST = 250
FILTERED = ("get_projects", "get_suites", "get_sections", "get_cases")
"""Methods that take any parameter but their id."""
_TARGET = re.compile(r"/index\.php\?/api/v2/(?P<method>\w+)(?:/(?P<id>\d+))?(?P<filters>(?:&\w+=[\w.-]*)*)$")


class TestRailServer:
    """Listens on 127.0.0.1 while its `with` block lasts.

    `paged`: lists in pages of 250, as from TestRail 6.7 on, else whole. `clock`: of the limit. `asked` is told of each
    request before it is answered: a test may change the data, or stop the world. `no_access`: projects that are
    listed and cannot be read.
    """

    __test__ = False

    def __init__(
        self,
        data: TestRailData,
        *,
        paged: bool = True,
        requests_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.data = data
        self.paged = paged
        self.no_access: set[int] = set()
        self.requests: list[str] = []
        """Every address that was asked for, as after /api/v2/."""
        self.asked: Callable[[str], None] = lambda _: None
        self.ledger = Ledger()
        self.closing = threading.Event()
        self._clock = clock
        self._bucket = None if requests_per_minute is None else Bucket("requests", requests_per_minute, 60, clock())
        self._rules: list[Rule] = []
        self._http = WireServer(cast(Any, self), 0)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="testrail", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._http.drop_connections()

    @property
    def url(self) -> str:
        """What is set as QBENCH_TESTRAIL_URL."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def fail(self, method: str, fault: str, *, skip: int = 0, times: int = 1, **headers: str) -> None:
        """Let requests of `method` ("" for all) fail, after `skip` that do not.

        `fault`: a status with TestRail's words for it, "page" (200, a proxy's), or one of BROKEN.
        """
        self._rules.append(Rule(method, skip, fault, times, headers))

    def asked_for(self, method: str) -> list[str]:
        """The addresses of `method` that were asked for."""
        return [path for path in self.requests if path.startswith(method)]

    def answer(self, method: str, target: str, headers: Mapping[str, str], _body: bytes, seen: Seen) -> Answer:
        """What a request is answered with."""
        found = _TARGET.match(target)
        path = target.partition("/api/v2/")[2]
        self.requests.append(path)
        self.asked(path)
        fault = self._fault(found["method"] if found else "")
        try:
            if fault and fault.fault == "reset":
                return Answer(Reply(b""), Fault("reset"))
            if fault and fault.fault not in BROKEN:
                raise fault.refusal()
            if found is None or method != "GET":
                return Answer(Reply((PAGE % ("404", "Not found")).encode(), 404, content_type="text/html"), None)
            self._let_in(headers)
            filters = dict(part.split("=", 1) for part in found["filters"].split("&")[1:])
            reply = json_reply(self._route(found["method"], int(found["id"] or 0), filters, path))
        except RefusalError as refusal:
            self.ledger.refuse(seen, str(refusal.status))
            if refusal.status == 200 or str(refusal).startswith("<"):
                return Answer(Reply(str(refusal).encode(), refusal.status, refusal.headers, "text/html"), None)
            return Answer(json_reply({"error": str(refusal)}, refusal.status, refusal.headers), None)
        return Answer(reply, Fault(fault.fault, 0.3) if fault else None)

    def _let_in(self, headers: Mapping[str, str]) -> None:
        if headers.get("Authorization") != "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode():
            raise RefusalError(401, "Authentication failed: invalid or missing user/password or session cookie.")
        if headers.get("Content-Type") != "application/json":
            raise RefusalError(400, "Content-Type header missing or invalid.")
        if self._bucket is not None:
            self._bucket.refill(self._clock())
            wait = int(-(-self._bucket.wait_for(1) // 1))
            if wait:
                text = f"API Rate Limit Exceeded - {self._bucket.per_minute} per minute maximum allowed. "
                raise RefusalError(429, f"{text}Retry after {wait} seconds.", {"Retry-After": str(wait)})
            self._bucket.level -= 1

    def _fault(self, method: str) -> Rule | None:
        for rule in self._rules:
            if rule.method in ("", method):
                if rule.skip:
                    rule.skip -= 1
                    continue
                rule.times -= 1
                if not rule.times:
                    self._rules.remove(rule)
                return rule
        return None

    def _route(self, method: str, number: int, filters: Mapping[str, str], path: str) -> Any:
        data = self.data
        everywhere: dict[str, Callable[[], Any]] = {
            "get_projects": lambda: self._list("projects", data.projects.values(), filters, path),
            "get_priorities": lambda: list(data.priorities.values()),
            "get_case_types": lambda: list(data.case_types.values()),
            "get_case_fields": lambda: data.case_fields,
        }
        if filters and method not in FILTERED:
            raise RefusalError(400, f"Field :{next(iter(filters))} is not a valid field.")
        if method in everywhere:
            return everywhere[method]()
        if number not in data.projects:
            raise RefusalError(400, "Field :project_id is not a valid or accessible project.")
        if number in self.no_access:
            raise RefusalError(403, "The requested project is not accessible or you have insufficient permissions.")
        if method == "get_templates":
            return list(data.templates.values())
        if method == "get_suites":
            found = [suite for suite in data.suites.values() if suite["project_id"] == number]
        elif method == "get_sections":
            suites = self._suites(number, filters)
            found = [each for each in data.sections.values() if each["suite_id"] in suites]
        elif method == "get_cases":
            suites, since = self._suites(number, filters), int(filters.get("updated_after", -1))
            cases = list(data.cases.values())
            found = [each for each in cases if each["suite_id"] in suites and (each["updated_on"] or 0) > since]
            found.sort(key=lambda case: case["id"])
        else:
            raise RefusalError(404, f"Unknown method '{method}'")
        return self._list(method.removeprefix("get_"), found, filters, path)

    def _suites(self, project: int, filters: Mapping[str, str]) -> set[int]:
        own = {suite["id"] for suite in self.data.suites.values() if suite["project_id"] == project}
        if "suite_id" in filters:
            if int(filters["suite_id"]) not in own:
                raise RefusalError(400, "Field :suite_id is not a valid test suite.")
            return {int(filters["suite_id"])}
        if self.data.projects[project]["suite_mode"] != 1:
            raise RefusalError(400, "Field :suite_id is a required field.")
        return {case["suite_id"] for case in self.data.cases.values() if case["project_id"] == project} | own

    def _list(self, name: str, entities: Iterable[Entity], filters: Mapping[str, str], path: str) -> Any:
        found = list(entities)
        if not self.paged:
            return [_served(name, each) for each in found]
        offset, limit = int(filters.get("offset", 0)), min(MOST, int(filters.get("limit", MOST)))
        bare = re.sub(r"&(limit|offset)=\d+", "", path)

        def link(to: int) -> str | None:
            return f"/api/v2/{bare}&limit={limit}&offset={to}" if 0 <= to < len(found) and to != offset else None

        shown = [_served(name, each) for each in found[offset : offset + limit]]
        links = {"next": link(offset + limit), "prev": link(max(0, offset - limit))}
        return {"offset": offset, "limit": limit, "size": len(shown), "_links": links, name: shown}


def _served(name: str, entity: Entity) -> Entity:
    """A case does not tell its project."""
    return {key: value for key, value in entity.items() if name != "cases" or key != "project_id"}
