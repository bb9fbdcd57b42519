"""The commands about embedding spaces: which there are, moving reads to another and back, dropping one."""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from qbench_dagster.cli.app import Json, _database, _fail, _instance, _print_json, app, clear_errors, err, out
from qbench_dagster.settings import Settings, SettingsError, load_settings


@app.command()
def spaces(as_json: Json = False) -> None:
    """Embedding spaces side by side: model, vectors, how much of what is published they cover, disk, spend, recall.

    A change of QBENCH_MODEL, QBENCH_DIMENSIONS, QBENCH_VECTOR_TYPE or QBENCH_TEXT_PREFIX is another space, which
    `qbench run` fills beside the one the application reads.
    """
    with clear_errors(), _database(settings := load_settings()) as database:
        from qbench_dagster.adapters.cutover import list_spaces  # noqa: PLC0415
        from qbench_dagster.cli.show import show_spaces  # noqa: PLC0415

        named = _named_by(settings)
        listed = [{**space, "of_settings": space["name"] == named} for space in list_spaces(database)]
    if as_json:
        _print_json({"spaces": listed})
    else:
        show_spaces(out, listed)


@app.command()
def cutover(
    space: Annotated[
        str | None, typer.Argument(metavar="SPACE", help="The space to read from now on.", show_default=False)
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Return to the space before the last cut-over.")] = False,
    as_json: Json = False,
) -> None:
    """Move what the application reads to another embedding space, in one transaction; --back returns.

    Every check of the parity report has to hold for the space first, and its index is built if it is missing: exit
    code 1 and nothing moved otherwise. The way back asks only that all vectors and the index are there: that space
    was proven when it was read. Queries have to be embedded with the new space's model from that moment on (view
    `qbench.active_space`).
    """
    if (space is None) is not back:
        _fail("Name the space to read, or pass --back. `qbench spaces` lists them.")
    with clear_errors():
        settings = load_settings()
        from qbench_dagster.adapters.cutover import ChecksFailedError  # noqa: PLC0415
        from qbench_dagster.adapters.report import write_report  # noqa: PLC0415
        from qbench_dagster.cli.show import show_cutover  # noqa: PLC0415

        page: str | None = None
        try:
            done = _move_back(settings) if space is None else _move(settings, space)
        except ChecksFailedError as failed:
            page = str(write_report(failed.report, settings.reports / failed.report["space"])[0])
            if as_json:
                wrong = [finding for finding in failed.report["findings"] if not finding["passed"]]
                _print_json({"moved": False, "to_space": space, "failed": wrong, "html": page})
            _fail(f"{failed} Report: {page}", 1)
        if done.report is not None:
            page = str(write_report(done.report, settings.reports / done.to_space)[0])
    moved = {
        "moved": done.moved,
        "from_space": done.from_space,
        "to_space": done.to_space,
        "report_id": done.report_id,
        "html": page,
    }
    if as_json:
        _print_json(moved)
    else:
        show_cutover(out, moved)


@app.command()
def purge(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="The space to drop.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Drop an embedding space with its vectors and indexes. What was spent on it stays in the ledger.

    Never the active one. Asks first, and says so if reads could go back to it; without a terminal to ask on, --yes is
    needed. Its vectors would have to be embedded, and paid for, again.
    """
    with clear_errors(), _database(load_settings()) as database:
        from qbench_dagster.adapters.cutover import find_space, list_spaces  # noqa: PLC0415
        from qbench_dagster.adapters.cutover import purge as drop  # noqa: PLC0415
        from qbench_dagster.cli.show import purge_question, show_purged  # noqa: PLC0415

        find_space(database, space)
        (about,) = [row for row in list_spaces(database) if row["name"] == space]
        if not (yes or about["active"]):  # the active one is refused, which needs no question
            question = purge_question(about)
            if as_json or not sys.stdin.isatty():
                _fail(f"{question} Nobody is here to ask: pass --yes if so.")
            if not typer.confirm(question, err=True):
                _fail("Nothing was dropped.")
        purged = drop(database, space)
    if as_json:
        _print_json(purged)
    else:
        show_purged(out, purged)


def _named_by(settings: Settings) -> str | None:
    """Name of the space the settings name; None where they name none, which is no matter for a list."""
    from qbench_dagster.wiring import embedding_space  # noqa: PLC0415

    try:
        return embedding_space(settings).name
    except SettingsError:
        return None


def _who() -> str:
    """Who moves reads, for the record."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user may have no name
        return socket.gethostname()


def _move(settings: Settings, name: str) -> Any:
    from qbench_dagster.adapters.cutover import cut_over, find_space  # noqa: PLC0415
    from qbench_dagster.partitions import registered_ranges  # noqa: PLC0415
    from qbench_dagster.wiring import comparison_settings, index_settings  # noqa: PLC0415

    with _instance(settings) as instance, _database(settings) as database, _bars() as (building, comparing):
        target = find_space(database, name)
        return cut_over(
            database,
            target,
            index_settings(settings),
            list(registered_ranges(instance).values()),
            by=_who(),
            comparison=comparison_settings(settings, target, "qbench cutover"),
            details={"settings": settings.shown(), "run_id": "qbench cutover", "export": str(settings.export)},
            building=building,
            comparing=comparing,
        )


def _move_back(settings: Settings) -> Any:
    from qbench_dagster.adapters.cutover import cut_back  # noqa: PLC0415
    from qbench_dagster.wiring import index_settings  # noqa: PLC0415

    with _database(settings) as database, _bars() as (building, _):
        return cut_back(database, index_settings(settings), by=_who(), building=building)


@contextmanager
def _bars() -> Iterator[tuple[Callable[[str, int, int], None], Callable[[int], None]]]:
    """Progress of building an index, and of comparing cases."""
    from rich.progress import Progress  # noqa: PLC0415

    progress = Progress(console=err, transient=True)
    index = progress.add_task("index", total=None, visible=False)
    cases = progress.add_task("comparing cases", total=None, visible=False)

    def building(phase: str, done: int, rows: int) -> None:
        progress.start()  # not before: a display of nothing leaves an empty line
        progress.update(index, description=f"index of {phase}", completed=done, total=rows or None, visible=True)

    def comparing(done: int) -> None:
        progress.start()
        progress.update(cases, advance=done, visible=True)

    try:
        yield building, comparing
    finally:
        if progress.live.is_started:
            progress.stop()
