"""The commands that take the database to a folder and bring it back: `backup` and `restore`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from qbench_dagster.cli.app import Json, _database, _fail, _print_json, app, clear_errors, err, out
from qbench_dagster.settings import load_settings

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the backup.")]


@app.command()
def backup(folder: Folder, as_json: Json = False) -> None:
    """Write the database to a new folder: pg_dump of one moment, and a manifest with a hash of each table's rows.

    Runs may go on meanwhile. Without Dagster's own runs and events. It holds all that the database does: keep it as
    safe.
    """
    started = time.monotonic()
    with clear_errors(), _backup_errors(), _database(settings := load_settings()) as database, _bar() as progress:
        from qbench_dagster.adapters.backup import back_up  # noqa: PLC0415

        manifest = back_up(database, folder, settings.shown(), progress)
    done = {
        "folder": str(folder.absolute()),
        "tables": len(manifest.tables),
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "seconds": round(time.monotonic() - started, 1),
    }
    if as_json:
        _print_json(done)
        return
    out.print(
        f"{done['rows']:,} rows of {done['tables']} tables in {done['folder']}, {manifest.bytes / 1e6:,.1f} MB, "
        f"{done['seconds']} s. Back: qbench restore {folder}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


@app.command()
def restore(folder: Folder, as_json: Json = False) -> None:
    """Bring a backup into a database that is empty: DATABASE_URL, or the PostgreSQL of a new QBENCH_HOME.

    Afterwards the rows of each table are compared with what they were. Exit code 1 if one differs.
    """
    started = time.monotonic()
    with clear_errors(), _backup_errors():
        settings = load_settings()
        from qbench_dagster.adapters.restore import read_manifest  # noqa: PLC0415
        from qbench_dagster.adapters.restore import restore as bring_back  # noqa: PLC0415
        from qbench_dagster.wiring import database_url, index_settings  # noqa: PLC0415

        read_manifest(folder)  # before a server is made for it
        with _bar() as progress:
            done = bring_back(database_url(settings), folder, index_settings(settings), progress)
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        _print_json({
            "equal": not done.different, "different": done.different, "notes": done.notes,
            "tables": len(done.manifest.tables), "rows": done.manifest.rows, "seconds": seconds,
            "created_at": done.manifest.created_at,
        })  # fmt: skip
    else:
        of = done.manifest
        told = f"the backup of {of.created_at}: {of.rows:,} rows of {len(of.tables)} tables"
        verdict = "not as they were" if done.different else "each compared and as it was"
        out.print(f"{told}, {verdict}, {seconds} s", highlight=False, markup=False, soft_wrap=True)
        for note in done.notes:
            err.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    if done.different:
        _fail(f"What was restored is not what was backed up: {'; '.join(done.different)}.", 1)


@contextmanager
def _backup_errors() -> Iterator[None]:
    from qbench_dagster.adapters.pg_tools import BackupError  # noqa: PLC0415

    try:
        yield
    except BackupError as error:
        _fail(str(error))


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """One bar, named for the phase."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    bars = Progress(
        TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=err, transient=True,
    )  # fmt: skip
    task = bars.add_task("", total=None)

    def told(phase: str, done: int, total: int) -> None:
        bars.start()  # not before: a display of nothing leaves an empty line
        bars.update(task, description=phase, completed=done, total=total or None)

    try:
        yield told
    finally:
        if bars.live.is_started:
            bars.stop()
