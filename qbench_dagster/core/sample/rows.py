"""The rows of a sample from (cases, seed), as streams: look-up tables first, then the cases by id.

Which case gets which words, and how often words come back, is decided here, in the shares measured on
the original. No SQL, no files. The words are `content.py`, the difficulties `planting.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qbench_dagster.core.sample import company, layout
from qbench_dagster.core.sample.content import (
    comment,
    common_title,
    jira_keys,
    own_title,
    preconditions,
    refs,
    steps,
)
from qbench_dagster.core.sample.difficulties import Planted, allocate
from qbench_dagster.core.sample.draft import CaseDraft, Row, joined
from qbench_dagster.core.sample.draw import Draw
from qbench_dagster.core.sample.ids import case_ids, validate
from qbench_dagster.core.sample.planting import SHARED_UPDATED_ON, plant
from qbench_dagster.core.sample.tree import SuiteRow, Tree, section_id
from qbench_dagster.core.sample.vocabulary import fill

FIRST_DAY: Final = 1_420_070_400
RUN: Final = 20
"""Cases are written in runs: so many after each other are in one suite."""
BULK: Final = 50
"""So many cases after each other were touched by one bulk edit or import, at the same second."""
IDENTICAL: Final = 3
"""Cases in a planted group of identical ones, at least."""

# (steps_separated, steps, steps_combined, preconditions): which are there, measured together.
NO_TEXT: Final = (False, False, False, False)
TEXT_SHAPES: Final = (
    ((False, True, True, True), 0.3224),
    ((True, False, True, True), 0.0899),
    ((False, True, True, False), 0.0856),
    ((True, True, True, True), 0.0407),
    ((True, False, False, False), 0.0337),
    ((False, False, True, True), 0.0240),
    ((True, True, True, False), 0.0110),
    ((False, False, True, False), 0.0097),
)
NO_TEXT_SHARE: Final = 0.383
REFS_SHARE: Final = {NO_TEXT: 0.634, (True, False, False, False): 0.175}
"""By shape; elsewhere 0.30."""

# Pools: how many different common texts there are for each case of the sample.
TITLE_POOL, BODY_POOL, SETUP_POOL = 0.05, 0.05, 0.06


def lookup_rows(cases: int, seed: int) -> Iterator[tuple[str, Iterator[Row]]]:
    """Every table but `cases`, with its rows in the order of the columns."""
    validate(cases)
    tree = Tree(cases, seed)
    site = "https://testrail.example/index.php?/"
    yield (
        "projects",
        ((p[0], p[1], None, 0, 0, None, 3, f"{site}projects/overview/{p[0]}") for p in company.PROJECTS),
    )
    yield (
        "suites",
        (
            (s.id, s.project_id, s.name, None, 0, 0, 0, None, f"{site}suites/view/{s.id}")
            for s in [*tree.suites, tree.special]
        ),
    )
    yield (
        "sections",
        ((s.id, s.suite_id, s.name, None, s.parent_id, s.display_order, s.depth) for s in tree.sections()),
    )
    yield "priorities", iter(company.PRIORITIES)
    yield "case_types", iter(company.CASE_TYPES)
    yield "templates", iter(company.TEMPLATES)


def case_rows(cases: int, seed: int) -> Iterator[Row]:
    """The rows of `cases`, ascending by id."""
    return (case.row() for case in _Cases(cases, seed).drafts())


class _Cases:
    """The streams of draws that make the cases; nothing that grows with their number but the tree."""

    def __init__(self, cases: int, seed: int) -> None:
        validate(cases)
        self.cases, self.seed = cases, seed
        self.tree = Tree(cases, seed)
        self.places = allocate(cases, seed)
        names = ("case", "title", "body", "setup", "run", "bulk", "plant")
        self.case, self.title, self.body, self.setup, self.run, self.bulk, self.planting = (
            Draw(seed, name) for name in names
        )
        suites_of = [0] * len(company.AREAS)
        for suite in self.tree.suites:
            suites_of[suite.area] += 1
        self.in_area = [cases * count / len(self.tree.suites) for count in suites_of]

    def drafts(self) -> Iterator[CaseDraft]:
        suite, first_rank = self.tree.suites[0], 0
        edited, bulk_time = False, 0
        for position, case_id in enumerate(case_ids(self.cases, self.seed)):
            if position % RUN == 0:
                run = self.run.at(position // RUN)
                suite = run.pick(self.tree.suites)
                first_rank = run.below(suite.sections)
            if position % BULK == 0:
                bulk = self.bulk.at(position // BULK)
                edited = bulk.chance(0.65)
                bulk_time = self._day(position + BULK) + bulk.below(20_000_000)
            draw = self.case.at(position)
            rank = suite.first_section + (first_rank + draw.skewed(4)) % suite.sections
            created = self._day(position) + draw.below(80_000)
            updated = bulk_time if edited else created + draw.skewed(30_000_000)
            automated: int | None = draw.weighted(((None, 0.67), (0, 0.08), (1, 0.25)))
            case = CaseDraft(
                id=case_id,
                suite_id=suite.id,
                section_id=section_id(rank),
                project_id=suite.project_id,
                title="",
                template_id=draw.weighted(((1, 0.93), (2, 0.03), (3, 0.01), (4, 0.01), (5, 0.015), (6, 0.005))),
                type_id=draw.weighted(company.TYPE_SHARES[automated]),
                priority_id=draw.weighted(company.PRIORITY_SHARES),
                created_on=created,
                updated_on=min(max(updated, created), SHARED_UPDATED_ON - 1),
                is_automated=automated,
            )
            self._write(case, draw, suite, position, self.places.get(position))
            yield case

    def _day(self, position: int) -> int:
        """When the case at this position was written: from 2015 on, evenly."""
        return FIRST_DAY + (SHARED_UPDATED_ON - 60_000_000 - FIRST_DAY) * position // self.cases

    def _write(self, case: CaseDraft, draw: Draw, suite: SuiteRow, position: int, label: Planted | None) -> None:
        area_index = suite.area
        # Keys below zero are common texts, others belong to this case alone.
        shape = NO_TEXT if draw.chance(NO_TEXT_SHARE) else draw.weighted(TEXT_SHAPES)
        common = draw.chance(0.29 if shape == NO_TEXT else 0.57)
        identical: int | None = None
        if label is not None and label.name == "identical_cases":
            identical = label.number % max(1, label.total // IDENTICAL)
            area_index = identical % len(company.AREAS)
            identical += 1_000_000_000
        in_area = self.in_area[area_index]
        offset = -1 - area_index * 1_000_000_000
        title_key = offset - draw.skewed(int(in_area * TITLE_POOL) + 3) if common else position
        body_key = offset - draw.skewed(int(in_area * BODY_POOL) + 3) if draw.chance(0.38) else position
        setup_key = offset - draw.skewed(int(in_area * SETUP_POOL) + 2)
        if identical is None and common and shape != NO_TEXT and draw.chance(0.14):
            identical = title_key
        if identical is not None:
            title_key = body_key = setup_key = identical
            common = True
        area = company.AREAS[area_index]
        title = self.title.at(title_key)
        case.title = common_title(title, area) if common else own_title(title, area)
        if identical is not None:
            shape = title.weighted(TEXT_SHAPES)
        self._texts(case, area_index, shape, body_key, setup_key)
        if draw.chance(REFS_SHARE.get(shape, 0.30)):
            case.refs = refs(draw, area)
        if draw.chance(0.001):
            case.jiras = ", ".join(jira_keys(draw, area, draw.between(1, 2)))
        if draw.chance(0.003):
            case.refs_custom = refs(draw, area)
        if draw.chance(0.064):
            case.comment = comment(draw)
        self._custom_fields(case, draw, area_index)
        if label is not None:
            plant(case, label, self.planting.at(position), area, self.tree.special)

    def _texts(
        self,
        case: CaseDraft,
        area_index: int,
        shape: tuple[bool, bool, bool, bool],
        body_key: int,
        setup_key: int,
    ) -> None:
        area = company.AREAS[area_index]
        separated, free, combined, setup = shape
        case.custom = {"custom_expected": None, "custom_automation_id": None}
        if setup:
            case.preconditions = preconditions(self.setup.at(setup_key), area)
        if shape == NO_TEXT:
            return
        body = self.body.at(body_key)
        if free or not separated:
            written = steps(body, area)
            text = body.weighted(layout.LAYOUTS)(written)
            expected = layout.expected_text(written)
            case.custom["custom_expected"] = expected
            case.steps = text if free else None
            case.combined = joined(case.preconditions, text, expected)
        elif combined:
            case.combined = joined(case.preconditions)
        if separated:
            case.separated = steps(body, area)

    def _custom_fields(self, case: CaseDraft, draw: Draw, area_index: int) -> None:
        area, custom = company.AREAS[area_index], case.custom
        if case.is_automated == 1 or draw.chance(0.09):
            slug = draw.pick(area.topics).lower().replace(" ", "_")
            custom["custom_automation_id"] = fill(draw, f"{slug}_{{screen}}_{{n:1-9999}}")
        if case.is_automated == 1 and draw.chance(0.83):
            folder = area.name.lower().replace(" ", "-")
            custom["custom_type_automation"] = fill(draw, f"/opt/suites/{folder}/{{screen}}/case_{{n:1-900}}.py")
        if draw.chance(0.119):
            custom["custom_automation_id_temp"] = draw.between(1, 120)
        if draw.chance(0.076):
            custom["custom_test_purpose"] = fill(draw, "{Role} must be able to rely on: ") + draw.pick(area.topics)
        if draw.chance(0.018):
            custom["custom_feature_tag"] = draw.pick(("all", "android", "ios", "web", "kiosk"))
        if draw.chance(0.06):
            custom["tags"] = [
                draw.pick(area.topics).lower(),
                draw.pick(("smoke", "nightly", "payment", "p1")),
            ]
        if draw.chance(0.05):
            custom["platforms"] = draw.pick((["iOS", "Android"], ["Web"], "iOS, Android", "Web", ["TV", "Web"]))
        if draw.chance(0.03):
            custom["jira_key"] = jira_keys(draw, area, 1)[0]
