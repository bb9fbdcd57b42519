"""The command `qbench pull`: TestRail's mirror brought up to date. How is `adapters/testrail_pull.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from qbench_dagster.cli.app import Json, _fail, _instance, _print_json, app, clear_errors, err, out
from qbench_dagster.settings import load_settings


@app.command()
def pull(
    full: Annotated[bool, typer.Option("--full", help="Ask for every case, not only for what changed.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the mirror of TestRail up to date: what changed since the last pull. `qbench run` does so by itself."""
    with clear_errors():
        settings = load_settings()
        if settings.testrail_url is None:
            _fail("TestRail is not set. Set QBENCH_TESTRAIL_URL, QBENCH_TESTRAIL_USER and QBENCH_TESTRAIL_API_KEY.")
        from qbench_dagster.cli.run import pull_testrail  # noqa: PLC0415 (Dagster takes a second to import)

        with _instance(settings) as instance:
            summary = pull_testrail(instance, err, full=full)
    if summary.failures:
        _fail("; ".join(summary.failures), 1)
    pulled = summary.stages["testrail_mirror"]
    if as_json:
        _print_json(pulled)
        return
    for warning in summary.warnings:
        err.print(f"[yellow]warning:[/] {warning}", highlight=False, soft_wrap=True)
    what = "all cases" if pulled["full"] else "what changed"
    out.print(
        f"{pulled['cases']:,} cases mirrored: {pulled['added']:,} added, {pulled['changed']:,} changed, "
        f"{pulled['removed']:,} gone; asked for {what}, {pulled['requests']:,} requests, {pulled['seconds']:.1f} s",
        highlight=False,
    )
    out.print(f"mirror: {pulled['mirror']}", highlight=False, soft_wrap=True)
