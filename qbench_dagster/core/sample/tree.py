"""Suites and sections: how many there are for a number of cases, their names, parents and depth.

The tree is a function of the suite's number, so nothing is kept in memory but where each suite starts.
The last suite holds the sections that are wrong on purpose; which cases go there is `difficulties.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from qbench_dagster.core.sample.company import AREAS, PROJECTS
from qbench_dagster.core.sample.draw import Draw
from qbench_dagster.core.sample.vocabulary import fill

CASES_PER_SUITE = 120
MAX_DEPTH = 7
SUITE_KINDS = ("Regression", "Smoke", "Feature", "Executions/Version", "Release", "Legacy", "Acceptance")

MISSING_SECTION_ID: Final = 88_888_888
MISSING_PARENT_ID: Final = 99_999_999
CYCLE_SECTION_IDS: Final = (80_000_001, 80_000_002, 80_000_003)
ORPHAN_SECTION_ID: Final = 80_000_010
SLASH_SECTION_IDS: Final = (80_000_020, 80_000_021)


class SuiteRow(NamedTuple):
    """A row of `suites`, and the area its cases speak of."""

    id: int
    project_id: int
    name: str
    area: int
    sections: int
    first_section: int


class SectionRow(NamedTuple):
    """A row of `sections`."""

    id: int
    suite_id: int
    name: str
    parent_id: int | None
    display_order: int
    depth: int


def section_id(rank: int) -> int:
    """The id of the `rank`-th section: ascending, with gaps."""
    return 900 + 29 * rank + rank * 11 % 29


class Tree:
    """The suites of one sample; sections are made as they are asked for."""

    def __init__(self, cases: int, seed: int) -> None:
        self._draw = Draw(seed, "sections")
        draw = Draw(seed, "suites")
        count = max(len(PROJECTS), cases // CASES_PER_SUITE)
        weights = [(project, float(project[3])) for project in PROJECTS]
        self.suites: list[SuiteRow] = []
        rank, suite_id = 0, 40
        for number in range(count):
            # Each project has a suite, however small the sample is.
            project = PROJECTS[number] if number < len(PROJECTS) else draw.weighted(weights)
            area = draw.pick(project[2])
            name = f"{draw.pick(SUITE_KINDS)} {draw.between(1, 14)}.{draw.below(20)} - {AREAS[area].name}"
            sections = draw.between(8, 50)
            self.suites.append(SuiteRow(suite_id, project[0], name, area, sections, rank))
            rank += sections
            suite_id += 1 + draw.below(20)
        self.special = SuiteRow(suite_id, PROJECTS[2][0], "Imported from the old tracker", 1, 0, rank)

    def sections(self) -> Iterator[SectionRow]:
        """All sections, suite by suite, then the ones that are wrong on purpose."""
        for number, suite in enumerate(self.suites):
            yield from self._sections_of(number, suite)
        s = self.special.id
        a, b, alone = CYCLE_SECTION_IDS
        yield SectionRow(a, s, "Turnstile loop A", b, 1, 1)
        yield SectionRow(b, s, "Turnstile loop B", a, 2, 2)
        yield SectionRow(alone, s, "Its own parent", alone, 3, 0)
        yield SectionRow(ORPHAN_SECTION_ID, s, "Parent was deleted", MISSING_PARENT_ID, 4, 3)
        first, second = SLASH_SECTION_IDS
        yield SectionRow(first, s, "Refunds / Exchanges", None, 5, 0)
        yield SectionRow(second, s, "Card/Voucher/Cash", first, 6, 1)

    def _sections_of(self, number: int, suite: SuiteRow) -> Iterator[SectionRow]:
        draw = self._draw.at(number)
        area = AREAS[suite.area]
        depths: list[int] = []
        for i in range(suite.sections):
            rank = suite.first_section + i
            if number == 0 and i <= MAX_DEPTH:
                parent = i - 1  # one branch of full depth in every sample
            elif i == 0 or draw.chance(0.12):
                parent = -1
            else:
                parent = draw.below(i)
                if depths[parent] > 2 and draw.chance(0.9):
                    parent = draw.below(parent)
                if depths[parent] >= MAX_DEPTH:
                    parent = 0
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
            name = draw.pick(area.topics)
            if draw.chance(0.45):
                name = f"{name} {fill(draw, '{cond}')}"
            parent_id = section_id(suite.first_section + parent) if parent >= 0 else None
            yield SectionRow(section_id(rank), suite.id, name, parent_id, i + 1, depths[i])
