"""`qbench batches`: what is out at OpenAI's Batch API, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.markup import escape

from qbench_dagster.cli.app import Json, _database, _fail, _print_json, app, clear_errors, out
from qbench_dagster.settings import load_settings


@app.command()
def batches(
    poll: Annotated[bool, typer.Option("--poll", help="Ask the service now how they stand.")] = False,
    forget: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Give up a batch that the service does not know any more (it is asked): its texts are sent, and "
            "billed, again.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """Batches of texts at the service and how they stand. `qbench run` takes in what has ended."""
    from qbench_dagster.adapters.batch_store import list_batches  # noqa: PLC0415
    from qbench_dagster.adapters.batching import forget as give_up  # noqa: PLC0415
    from qbench_dagster.adapters.embedders import EmbeddingError  # noqa: PLC0415
    from qbench_dagster.wiring import account, batch_service, embedding_space  # noqa: PLC0415

    given_up = None
    with clear_errors(), _database(settings := load_settings()) as database:
        try:
            if forget is not None:
                space = embedding_space(settings)
                given_up = give_up(
                    database, forget, account(settings, space, "qbench batches"),
                    lambda batch: closing(batch_service(settings, replace(space, name=batch.space, model=batch.model))),
                )  # fmt: skip
                if given_up is None:
                    _fail(f"No batch {forget} is out. `qbench batches` lists them.")
            waiting = _poll(database) if poll else None
        except EmbeddingError as error:
            _fail(str(error), 1)
        found = list_batches(database, limit)
    if as_json:
        _print_json({"batches": found, "to_take_in": waiting, "forgotten": str(given_up.id) if given_up else None})
        return
    if given_up is not None:
        out.print(f"batch {given_up.shown} is given up: its {given_up.texts:,} texts are sent again by the next run")
    _show(found)
    if waiting:
        out.print(f"{waiting} to take in: qbench run does, and so does the sensor of `qbench ui`", highlight=False)


def _poll(database: Any) -> int:
    """Ask after every batch; returns how many a run has to see to."""
    from qbench_dagster.adapters.batching import look  # noqa: PLC0415
    from qbench_dagster.resources import EmbedderResource  # noqa: PLC0415

    embedder, ended = EmbedderResource(), 0
    for space in embedder.maintained(database):
        if space.embedder == "openai":
            with embedder.batches(space) as service:
                ended += len(look(database, space, service, within_s=600)[1])
    return ended


def _show(found: Sequence[Mapping[str, Any]]) -> None:
    """Two lines a batch: its id is longer than a column of a table could show."""
    if not found:
        out.print("no batch was sent yet")
    for row in found:
        usd = "" if row["usd"] is None else f", ${row['usd'] + row['usd_at_risk']:,.4f}"
        tokens = row["tokens_billed"] or row["tokens"]
        stands = row["state"].replace("_", " ") + (f", {row['status']} at the service" if row["status"] else "")
        out.print(f"[bold]{row['remote_id'] or row['id']}[/]  {stands}", highlight=False, soft_wrap=True)
        out.print(
            f"    {row['kind']}s of {row['space']}, {row['created_at'][:16]}: {row['lines_done']:,} of "
            f"{row['lines']:,} lines done, {row['texts']:,} texts, {tokens:,} tokens{usd}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        if row["error"]:
            out.print(f"    {escape(row['error'])}", highlight=False, soft_wrap=True)
