"""A pull: what is asked of TestRail, in what order, to bring the mirror up to date.

Incremental: of each suite the cases updated since shortly before the last pull began, then one request that tells
whether it has as many as are mirrored; where not, that suite is listed. Full: every suite is listed. How requests are
made is `testrail_api.py`, how what they bring is kept `testrail_work.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qbench_dagster.adapters.testrail_api import (
    KEPT,
    NoAccessError,
    TestRailAPI,
    TestRailError,
    UnknownEntityError,
    plain_url,
)
from qbench_dagster.adapters.testrail_mirror import opened, publish
from qbench_dagster.adapters.testrail_work import Part, WorkingFile
from qbench_dagster.core.testrail import (
    COLUMNS,
    Labels,
    NotTestRailError,
    Row,
    case_row,
    is_deleted,
    lookup_row,
    option_labels,
)

log = logging.getLogger(__name__)

ROUNDS = 2
"""How often a suite of several pages is listed before cases that no page has shown are gone: when one is deleted
meanwhile, those after it move up, and one may slip past the page it would have been on."""
SINGLE_SUITE = 1
_SUITE_MODE = COLUMNS["projects"].index("suite_mode")


@dataclass(slots=True)
class Pulled:
    """What a pull did; `added`, `changed` and `removed` count cases, also of the part before it was interrupted."""

    cases: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    requests: int = 0
    waited_s: float = 0.0
    full: bool = False
    resumed: bool = False
    published: bool = False
    """Whether the mirror was replaced: something differs."""
    version: int = 0
    """Server time, in Unix seconds, at which the pull began that brought the mirror's content."""
    no_access: list[int] = field(default_factory=list)
    """Projects the user may not read; what was mirrored of them before is kept."""

    def counts(self) -> dict[str, Any]:
        """What a person wants to see."""
        return asdict(self)


def source_name(url: str, projects: Collection[int]) -> str:
    """What is mirrored, as the working file notes it."""
    chosen = ", ".join(map(str, sorted(projects)))
    return f"{plain_url(url)} (projects {chosen})" if chosen else plain_url(url)


def pull(
    api: TestRailAPI,
    path: Path,
    *,
    projects: Collection[int] = (),
    full: bool = False,
    overlap_s: int = 3600,
    progress: Callable[[int], None] = lambda _: None,
) -> Pulled:
    """Bring the mirror at `path` up to date; `projects` are those to take, none for all. Told of each page's cases.

    One that was interrupted is gone on with, unless it was incremental and `full` is asked for. The first one of a
    source is full. Raises TestRailError or MirrorError; the mirror is then what it was.
    """
    with opened(path, source_name(api.url, projects)) as work:
        asked, waited = api.traffic.requests, api.traffic.waited_s
        resumed = work.unfinished and (bool(work.get("full")) or not full)
        if not resumed:
            _begin(api, work, projects, full=full, overlap_s=overlap_s)
        _Puller(api, work, progress).pull()
        counts = work.end()
        published = publish(work, path)
        return Pulled(
            cases=work.cases,
            **{name: int(counts[name]) for name in ("added", "changed", "removed")},
            requests=api.traffic.requests - asked,
            waited_s=round(api.traffic.waited_s - waited, 1),
            full=bool(counts["full"]),
            resumed=resumed,
            published=published,
            version=int(work.get("version") or 0),
            no_access=counts["no_access"],
        )


def _begin(api: TestRailAPI, work: WorkingFile, projects: Collection[int], *, full: bool, overlap_s: int) -> None:
    """Ask for the look-up tables, and with them for what there is to pull."""
    last = work.get("completed")
    listing = full or last is None
    visible = _table(api, "projects", "get_projects")
    begun = int(time.time())  # by our clock, as the sensor asks when the last one was
    started = api.served_at or begun  # before any case is asked for: what changes later is of the next pull
    if unknown := sorted(set(projects).difference(visible)):
        raise TestRailError(
            f"{api.url} shows no project {', '.join(map(str, unknown))}. Check QBENCH_TESTRAIL_PROJECTS, and that the "
            "user may read it."
        )
    found = {"projects": {number: row for number, row in visible.items() if not projects or number in projects}}
    found |= {"suites": {}, "templates": {}} if listing else {"suites": {}}
    parts: list[tuple[int, int | None]] = []
    no_access: list[int] = []
    for project, row in found["projects"].items():
        try:
            suites = _table(api, "suites", f"get_suites/{project}", project_id=project)
            if listing:
                found["templates"] |= _table(api, "templates", f"get_templates/{project}")
        except NoAccessError as error:
            log.warning("Project %d is left as it is: %s", project, error)
            no_access.append(project)
            continue
        found["suites"] |= suites
        parts += [(project, suite) for suite in suites]
        if not suites and row[_SUITE_MODE] == SINGLE_SUITE:
            parts.append((project, None))
    if no_access and not parts:
        raise TestRailError(f"{api.url} lets the user read none of {len(no_access)} projects. Give it a role that may.")
    found["priorities"] = _table(api, "priorities", "get_priorities")
    found["case_types"] = _table(api, "case_types", "get_case_types")
    work.begin(
        {table: list(rows.values()) for table, rows in found.items()},
        parts,
        no_access=no_access,
        listing=listing,
        started=started,
        begun=begun,
        since=None if listing else last - overlap_s,
        fields=api.entries("get_case_fields", "case_fields"),
    )


def _table(api: TestRailAPI, table: str, path: str, **own: int) -> dict[int, Row]:
    """Rows of a look-up table by id. Raises TestRailError."""
    try:
        rows = [lookup_row(table, entry, **own) for entry in api.entries(path, table)]
    except NotTestRailError as error:
        raise api.unreadable(path, error) from None
    return {int(str(row[0])): row for row in rows}


class _Puller:
    """Goes through the parts of a pull that was begun, each in steps that begin where what is stored ends."""

    def __init__(self, api: TestRailAPI, work: WorkingFile, progress: Callable[[int], None]) -> None:
        self._api, self._work, self._progress = api, work, progress
        self._since, self._fields = work.get("since"), work.get("fields")
        self._labels: dict[int, Labels] = {}

    def pull(self) -> None:
        """All that is left to do."""
        for part in self._work.parts():
            try:
                self._go_on(part)
            except NoAccessError as error:
                log.warning("Project %d is left as it is: %s", part.project_id, error)
                self._work.lose_access(part.project_id)

    def _go_on(self, part: Part) -> None:
        try:
            if part.next_offset is not None:
                self._pages(part, part.next_offset)
            else:
                self._finish(part)
        except UnknownEntityError as error:
            # 400 also means other things, and a suite that is taken for gone loses its cases.
            if self._is_listed(part):
                raise TestRailError(f"{error} Yet it lists the suite: nothing of it was removed. {KEPT}") from None
            log.warning("Suite %s of project %d is gone: %s", part.suite_id, part.project_id, error)
            self._work.drop_part(part)

    def _is_listed(self, part: Part) -> bool:
        try:
            suites = _table(self._api, "suites", f"get_suites/{part.project_id}", project_id=part.project_id)
        except UnknownEntityError:
            return False
        return part.suite_id is None or part.suite_id in suites

    def _pages(self, part: Part, offset: int) -> None:
        path = _address("get_cases", part)
        if not part.listing:
            path += f"&updated_after={self._since}"
        if part.project_id not in self._labels:
            self._labels[part.project_id] = option_labels(self._fields, part.project_id)
        labels = self._labels[part.project_id]
        for page in self._api.pages(path, "cases", offset):
            cases = [case for case in page.entries if not is_deleted(case)]
            try:
                rows = [case_row(case, part.project_id, part.suite_id, labels) for case in cases]
            except NotTestRailError as error:
                raise self._api.unreadable(path, error) from None
            self._work.save_page(part, rows, page.next_offset)
            self._progress(len(rows))

    def _finish(self, part: Part) -> None:
        if part.listing or part.touched:
            path = _address("get_sections", part)
            self._work.save_sections(part, list(_table(self._api, "sections", path).values()))
        if part.listing:
            again = part.pages > 1 and part.round < ROUNDS and self._work.missing(part) > 0
        else:
            again = not self._is_complete(part)
        if again:
            self._work.begin_again(part)
        else:
            self._work.end_part(part)

    def _is_complete(self, part: Part) -> bool:
        """Whether the suite has as many cases as are mirrored: there is one where the last should be, and none after.

        No answer of the API tells how many there are in all.
        """
        count = self._work.count(part)
        page = self._api.page(_address("get_cases", part), "cases", max(0, count - 1), limit=2)
        return len(page.entries) == (count if page.whole else min(count, 1))


def _address(method: str, part: Part) -> str:
    suite = "" if part.suite_id is None else f"&suite_id={part.suite_id}"
    return f"{method}/{part.project_id}{suite}"
