"""The commands about what runs on this machine: a sample export, the Dagster UI, the embedded PostgreSQL."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from qbench_dagster.cli.app import ExportOption, Json, _fail, _instance, _print_json, app, clear_errors, err, out
from qbench_dagster.settings import load_settings

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@app.command()
def sample(
    path: Annotated[Path, typer.Argument(metavar="OUT.db", help="File to write.")],
    cases: Annotated[int, typer.Option(help="How many test cases.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 729,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write a made-up TestRail export with the difficulties of a real one."""
    from dataclasses import asdict  # noqa: PLC0415

    from rich.progress import Progress  # noqa: PLC0415

    from qbench_dagster.adapters.sample_writer import write_sample  # noqa: PLC0415

    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("writing cases", total=cases)
        try:
            summary = write_sample(
                path, cases, seed, lambda done, _: progress.update(task, completed=done), force=force
            )
        except (ValueError, OSError) as error:
            _fail(str(error))
    if as_json:
        _print_json(asdict(summary))
    else:
        planted = sum(1 for count in summary.difficulties.values() if count)
        out.print(
            f"{path}: {summary.cases:,} cases, {planted} kinds of difficulty planted, {summary.bytes / 1e6:.1f} MB",
            highlight=False,
        )


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of the web server.")] = 3000,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Loopback unless you put a proxy before it.")
    ] = "127.0.0.1",
    export: ExportOption = None,
) -> None:
    """Open the Dagster UI (web server and daemon) on the same data. Stop it with Ctrl-C."""
    with clear_errors():
        settings = load_settings(export=export)
        if settings.export is not None:
            os.environ["QBENCH_EXPORT"] = str(settings.export.absolute())
        with _instance(settings) as instance:
            from qbench_dagster.wiring import source_path  # noqa: PLC0415

            if (path := source_path(settings)) is not None and path.exists():
                from qbench_dagster.adapters.testrail_export import TestRailExport  # noqa: PLC0415
                from qbench_dagster.partitions import register_ranges  # noqa: PLC0415

                with TestRailExport(path) as source:
                    register_ranges(instance, source, settings.partition_cases)
    command = [
        sys.executable,
        "-W",
        "ignore:Function `dev_command`",  # `dg dev`, which it recommends, is another package
        "-m",
        "dagster",
        "dev",
        "-m",
        "qbench_dagster.definitions",
        "-p",
        str(port),
        "-h",
        host,
    ]
    err.print(f"Dagster UI: http://{host}:{port} (Ctrl-C stops it)", highlight=False)
    if host not in LOOPBACK:
        err.print(
            f"[yellow]warning:[/] the UI asks nobody who he is: whoever reaches {host}:{port} can start runs. Listen "
            "on 127.0.0.1, and put a reverse proxy with a login before it (docs/operations.md).",
            highlight=False,
            soft_wrap=True,
        )
    # Dagster takes this process's place: SIGTERM reaches it, and ends its web server and daemon too. A shell
    # starts a background job with SIGINT ignored, and Dagster would then ignore SIGTERM as well.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execv(sys.executable, command)  # noqa: S606


@app.command()
def url(
    dagster: Annotated[bool, typer.Option("--dagster", help="Dagster's own storage instead.")] = False,
    as_json: Json = False,
) -> None:
    """Print the URL of the database, starting the embedded PostgreSQL if it is used: psql "$(qbench url)"."""
    with clear_errors():
        settings = load_settings()
        from qbench_dagster.dagster_home import dagster_url  # noqa: PLC0415
        from qbench_dagster.wiring import database_url  # noqa: PLC0415

        found = dagster_url(settings) if dagster else database_url(settings)
    if as_json:
        _print_json({"url": found})
    else:
        sys.stdout.write(found + "\n")


@app.command()
def stop(as_json: Json = False) -> None:
    """Stop the embedded PostgreSQL of QBENCH_HOME. The next command starts it again."""
    with clear_errors():
        settings = load_settings()
        from qbench_dagster.adapters.embedded import stop_server  # noqa: PLC0415

        stopped = stop_server(settings.home)
    if as_json:
        _print_json({"stopped": stopped})
    else:
        out.print(
            "stopped" if stopped else f"no embedded PostgreSQL is running under {settings.home}",
            highlight=False,
        )
