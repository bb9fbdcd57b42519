"""The commands of `qbench`: arguments in, adapters and jobs called, exit codes out.

0: done. 1: it ran, and something failed or a check did. 2: it could not start (settings, files, database).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from qbench_dagster.settings import Settings, SettingsError, load_settings

app = typer.Typer(
    name="qbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="TestRail test cases and their embeddings, in one PostgreSQL with pgvector.\n\n"
    "Start with `qbench sample demo.db --cases 2000`, then `qbench run --export demo.db`, "
    'then `qbench search "user cannot log in"`. Settings come from the environment; see the README.',
)
out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
ExportOption = Annotated[
    Path | None,
    typer.Option("--export", help="The TestRail SQLite export. Default: QBENCH_EXPORT.", show_default=False),
]

MaxUsd = Annotated[
    float | None,
    typer.Option("--max-usd", help="What each space may cost in all. Default: QBENCH_MAX_USD.", show_default=False),
]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what is wrong outside our code into one message and exit code 2."""
    import psycopg  # noqa: PLC0415

    from qbench_dagster.adapters.embedded import EmbeddedServerError  # noqa: PLC0415
    from qbench_dagster.adapters.embedders import EmbeddingError  # noqa: PLC0415
    from qbench_dagster.adapters.postgres import DatabaseError  # noqa: PLC0415
    from qbench_dagster.adapters.testrail_export import ExportError  # noqa: PLC0415
    from qbench_dagster.core.queries import QueryLogError  # noqa: PLC0415

    try:
        yield
    except (SettingsError, DatabaseError, EmbeddedServerError, EmbeddingError, ExportError, QueryLogError) as error:
        _fail(str(error))
    except psycopg.Error as error:
        _fail(f"PostgreSQL says: {error.diag.message_primary or type(error).__name__}. See its log, and try again.")
    except Exception as error:
        if told := _of_dagsters_storage(error):
            _fail(f"{told} What was done by then is kept. See the log of PostgreSQL, and try again.")
        raise


def _of_dagsters_storage(error: BaseException | None) -> str | None:
    """What PostgreSQL, or the way there, did to Dagster, which keeps its runs in it; None for any other error.

    A run cannot go on without, and Dagster lets the driver's error through, at times in place of its own.
    """
    alchemy = sys.modules.get("sqlalchemy.exc")  # importing it takes 0.2 s, and whoever raised it has
    while error is not None:
        if alchemy is not None and isinstance(error, alchemy.DBAPIError):
            said = str(error.orig).strip().partition("\n")[0]
            return f"Dagster cannot reach its storage in PostgreSQL: {said.rstrip('.')}."
        error = error.__cause__ or error.__context__
    return None


def _fail(message: str, code: int = 2) -> NoReturn:
    err.print("[bold red]error:[/] ", end="")
    err.print(message, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


@app.command()
def run(
    export: ExportOption = None,
    allow_deletes: Annotated[
        bool, typer.Option(help="Let more cases disappear than QBENCH_MAX_DELETE_SHARE allows, this once.")
    ] = False,
    max_usd: MaxUsd = None,
    as_json: Json = False,
) -> None:
    """Bring an export (or TestRail itself) into PostgreSQL: plan partitions, materialise every asset, check, report."""
    with clear_errors():
        settings = load_settings(export=export, max_usd=max_usd)
        from qbench_dagster.adapters.testrail_export import TestRailExport  # noqa: PLC0415
        from qbench_dagster.wiring import mirror_path, testrail  # noqa: PLC0415

        if settings.export is not None:
            TestRailExport(settings.export).__exit__(None, None, None)  # before anything is started for it
            os.environ["QBENCH_EXPORT"] = str(settings.export.absolute())
        elif settings.testrail_url is not None:
            testrail(settings).__exit__()
        else:
            _fail("No export is set. Pass --export PATH, or set QBENCH_EXPORT, or QBENCH_TESTRAIL_URL.")
        if max_usd is not None:
            os.environ["QBENCH_MAX_USD"] = str(max_usd)
        from qbench_dagster.adapters.space import active_space, lacks_vectors  # noqa: PLC0415
        from qbench_dagster.cli.run import execute, pull_testrail  # noqa: PLC0415 (Dagster takes a second to import)
        from qbench_dagster.cli.show import show_run  # noqa: PLC0415
        from qbench_dagster.wiring import check_settings, embedding_space  # noqa: PLC0415

        check_settings(settings)
        space = embedding_space(settings)
        with _instance(settings) as instance, ExitStack() as stack:
            pulled = None
            if settings.export is None:
                pulled = pull_testrail(instance, err, full=False)
                if pulled.failures:
                    _fail("; ".join(pulled.failures), 1)
            source = stack.enter_context(TestRailExport(settings.export or mirror_path(settings)))

            def lacking() -> bool:
                with _database(settings) as database:
                    return lacks_vectors(database, space)

            summary = execute(
                settings, instance, source, err, allow_deletes=allow_deletes, lacking=lacking, pulled=pulled
            )
        with _database(settings) as database:
            active = active_space(database)
        if active is not None and active.name != space.name:
            summary.warnings.append(
                f"reads are still on {active.name}; this run also filled {space.name}. To move them: "
                f"qbench cutover {space.name}"
            )
    if as_json:
        _print_json(summary.as_json())
    else:
        show_run(out, summary)
    if summary.failures:
        for failure in summary.failures:
            err.print("[bold red]failed:[/] ", end="")
            err.print(failure, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


@app.command()
def plan(export: ExportOption = None, max_usd: MaxUsd = None, as_json: Json = False) -> None:
    """What embedding is going to take, before anything is spent: texts, reusable vectors, dollars, disk, time.

    The export is brought as far as staging, which costs nothing.
    """
    with clear_errors():
        settings = load_settings(export=export, max_usd=max_usd)
        from qbench_dagster.adapters.testrail_export import TestRailExport  # noqa: PLC0415
        from qbench_dagster.cli.run import make_plan  # noqa: PLC0415
        from qbench_dagster.cli.show import show_plan  # noqa: PLC0415
        from qbench_dagster.wiring import source_path  # noqa: PLC0415

        if max_usd is not None:
            os.environ["QBENCH_MAX_USD"] = str(max_usd)
        with ExitStack() as stack:
            source = None
            if settings.export is not None:
                os.environ["QBENCH_EXPORT"] = str(settings.export.absolute())
            if (path := source_path(settings)) is not None:
                source = stack.enter_context(TestRailExport(path))
            summary, planned = make_plan(settings, stack.enter_context(_instance(settings)), source, err)
    if planned is None:
        _fail("; ".join(summary.failures), 1)
    if as_json:
        _print_json(planned)
    else:
        show_plan(out, planned)


@app.command()
def status(as_json: Json = False) -> None:
    """How the database stands: cases, rejects, spaces, indexes, size."""
    with clear_errors(), _database(load_settings()) as database:
        from qbench_dagster.adapters.reading import status as read_status  # noqa: PLC0415
        from qbench_dagster.cli.show import show_status  # noqa: PLC0415

        found = {"database": database.shown_url, **read_status(database)}
    if as_json:
        _print_json(found)
    else:
        show_status(out, found)


@app.command()
def parity(
    force: Annotated[bool, typer.Option("--force", help="Evaluate again even if nothing was written since.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Show the verdicts of before; evaluate nothing.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the report.")] = False,
    as_json: Json = False,
) -> None:
    """Evaluate the invariants now, and write the report. Exit code 1 if one does not hold."""
    if schema:
        from qbench_dagster.adapters.report import schema as report_schema  # noqa: PLC0415

        _print_json(report_schema())
        return
    with clear_errors():
        settings = load_settings()
        from qbench_dagster.cli.parity import show_history, show_parity  # noqa: PLC0415

        if history:
            from qbench_dagster.adapters.report_history import history as read_history  # noqa: PLC0415

            with _database(settings) as database, database.connection("parity history") as connection:
                entries = read_history(connection)
            _print_json({"history": entries}) if as_json else show_history(out, entries)
            return
        from qbench_dagster.cli.run import evaluate_parity  # noqa: PLC0415

        with _instance(settings) as instance:
            summary, report = evaluate_parity(instance, err, force=force)
    if report is None:
        _fail("; ".join(summary.failures), 1)
    if as_json:
        _print_json({**report, "html": summary.report})
    else:
        show_parity(out, report, summary.report)
    if not report["passed"]:
        raise typer.Exit(1)


@contextmanager
def _database(settings: Settings) -> Iterator[Any]:
    from qbench_dagster.adapters.postgres import Database  # noqa: PLC0415
    from qbench_dagster.wiring import database_url  # noqa: PLC0415

    with Database(database_url(settings), statement_timeout_s=settings.statement_timeout_s) as database:
        yield database


@contextmanager
def _instance(settings: Settings) -> Iterator[Any]:
    from qbench_dagster.dagster_home import prepare_dagster_home  # noqa: PLC0415

    with _database(settings):  # what is wrong with it is told here, before Dagster makes a run of it
        prepare_dagster_home(settings)
    import dagster as dg  # noqa: PLC0415

    with dg.DagsterInstance.get() as instance:
        yield instance
