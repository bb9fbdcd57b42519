"""What a terminal shows of values that are at hand."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from qbench_dagster.cli.show import show_plan
from qbench_dagster_tests.core.test_plan import PLAN


def test_the_plan_of_the_space_that_is_read_stands_below_the_settings_one() -> None:
    other = replace(PLAN, space="space_te3small_1536", usd=1.5).as_json()
    for also, tables in (([], 1), ([other], 2)):
        console = Console(file=io.StringIO(), record=True, width=120)
        show_plan(console, {**PLAN.as_json(), "also": also})
        shown = console.export_text()
        assert shown.count("to embed") == shown.count("(QBENCH_MAX_USD)") == tables
        assert ("space_te3small_1536, which is read, gets the vectors of new texts too" in shown) is bool(also)
        assert shown.index("$10.00 now") < (shown.find("$1.50 now") if also else len(shown))
