"""The imaginary company as TestRail knows it: areas, projects, and the small look-up tables.

Names and ids only; suites and sections, which grow with the number of cases, are in `tree.py`.
Order matters: it decides which words a seed gives. Append, do not insert.
"""

from __future__ import annotations

from typing import Final

from qbench_dagster.core.sample.areas_fans import FANS
from qbench_dagster.core.sample.areas_media import MEDIA
from qbench_dagster.core.sample.areas_office import OFFICE
from qbench_dagster.core.sample.vocabulary import Area

AREAS: Final[tuple[Area, ...]] = FANS + MEDIA + OFFICE

PROJECTS: Final[tuple[tuple[int, str, tuple[int, ...], int], ...]] = (
    (3, "Pocket Fan iOS", (0, 2, 5, 7, 11, 12, 9), 24),
    (4, "Pocket Fan Android", (0, 2, 5, 7, 11, 12, 9), 24),
    (6, "Turnstile Ticketing", (1, 2, 3), 14),
    (10, "Grandstand TV", (6, 8, 7), 9),
    (13, "Boxscore Stats API", (10, 9), 7),
    (21, "Fan Shop", (4, 3), 5),
    (27, "Passport Identity", (0,), 4),
    (30, "Herald Messages", (11,), 3),
    (42, "Press Row Editor", (14,), 3),
    (56, "Roster Data Platform", (16,), 3),
    (94, "Control Room", (13, 15), 2),
    (99, "Accessibility and Languages", (17, 12), 2),
)
"""(id, name, indexes into AREAS, weight: how many of 100 suites)."""

PRIORITIES: Final = (
    (4, "1 - High Priority", "1 - High", 0, 7),
    (6, "2 - Medium Priority", "2 - Medium", 1, 6),
    (7, "3 - Low Priority", "3 - Low", 0, 4),
)
PRIORITY_SHARES: Final = ((6, 0.887), (4, 0.092), (7, 0.021))
UNKNOWN_PRIORITY_IDS: Final = (12, 42)

CASE_TYPES: Final = (
    (4, "Regression", 1),
    (7, "Needs Review", 0),
    (8, "Incomplete", 0),
    (9, "Smoke", 0),
    (10, "Automated", 0),
    (11, "Manual", 0),
    (12, "Integration", 0),
    (13, "Crowd Testing", 0),
    (14, "Dress Rehearsal", 0),
    (15, "Gate Drill", 0),
)
TYPE_SHARES: Final = {
    None: ((4, 0.955), (9, 0.036), (12, 0.005), (7, 0.003), (8, 0.001)),
    0: ((11, 0.99), (4, 0.01)),
    1: ((10, 0.99), (4, 0.01)),
}
"""By is_automated, because the original's types follow it."""
UNKNOWN_TYPE_IDS: Final = (977, 14, 978, 15)
"""Two that case_types does not have, and two whose name no enum knows."""

TEMPLATES: Final = (
    (1, "Test Case", 1),
    (2, "Quick Check", 0),
    (3, "Match Data", 0),
    (4, "Data Services", 0),
    (5, "Browser Automation", 0),
    (6, "Exploratory Session", 0),
)
