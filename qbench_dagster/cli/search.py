"""The command `qbench search`: which of the searches is meant, and what cannot be meant. The searching is SQL's."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from typing import Annotated, Any

import typer

from qbench_dagster.cli.app import Json, _database, _fail, _print_json, app, clear_errors, err, out
from qbench_dagster.settings import Settings, load_settings


@app.command()
def search(
    query: Annotated[
        str | None,
        typer.Argument(help='What to look for; "in quotation marks" what every result has to say.', show_default=False),
    ] = None,
    steps: Annotated[bool, typer.Option("--steps", help="Search steps instead of test cases.")] = False,
    like: Annotated[
        int | None, typer.Option(metavar="CASE_ID", help="Cases like this one.", show_default=False)
    ] = None,
    jira: Annotated[
        str | None, typer.Option(metavar="KEY", help="Cases of this Jira key, and those that refer to it.")
    ] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid/--vector", help="By words and by vector together, or by vector alone.")
    ] = True,
    text_weight: Annotated[float, typer.Option(help="What the ranking by words counts; 0: nothing.")] = 1,
    vector_weight: Annotated[float, typer.Option(help="What the ranking by vector counts; 0: nothing.")] = 1,
    min_similarity: Annotated[
        float | None, typer.Option(help="Only results of at least this cosine.", show_default=False)
    ] = None,
    priority: Annotated[list[str] | None, typer.Option(help="Only this priority (repeat for more).")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only cases with this tag (repeat for any of several).")] = None,
    platform: Annotated[list[str] | None, typer.Option(help="Only this platform (repeat for any of several).")] = None,
    test_type: Annotated[list[str] | None, typer.Option(help="Only this type (repeat for more).")] = None,
    folder: Annotated[str | None, typer.Option(help="Only below this folder: a prefix of its path.")] = None,
    project: Annotated[list[int] | None, typer.Option(help="Only this project id (repeat for more).")] = None,
    suite: Annotated[list[int] | None, typer.Option(help="Only this suite id (repeat for more).")] = None,
    updated_since: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only cases changed in TestRail since: 2025-12-31, or with a time."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many results.")] = 10,
    as_json: Json = False,
) -> None:
    """Find test cases, or steps, by what they say.

    By words and by vector together: a query may be a sentence, an identifier, or both. It is embedded with the model
    of the space that is read, whatever space the settings name.
    """
    text = query.encode(errors="replace").decode() if query is not None else ""  # a terminal may send what is no text
    if wrong := _wrong(
        None if query is None else text, like, jira, only_queries=steps or not hybrid, with_similarity=min_similarity
    ):
        _fail(wrong)
    since = _moment(updated_since)
    with clear_errors(), _database(settings := load_settings()) as database:
        from qbench_dagster.adapters import reading  # noqa: PLC0415
        from qbench_dagster.adapters.space import active_space  # noqa: PLC0415
        from qbench_dagster.cli.results import show_cases, show_steps  # noqa: PLC0415

        space = active_space(database)
        if space is None:
            _fail("Nothing is published yet: run `qbench run --export PATH` first.")
        filters = reading.Filters(priority, tag, platform, test_type, folder, project, suite, since)
        matched: dict[int, list[dict[str, Any]]] = {}
        if jira is not None:
            results = reading.find_by_jira_key(database, jira, k, filters)
        elif like is not None:
            results = reading.similar(database, like, k, filters, min_similarity=min_similarity)
        else:
            by_words = hybrid and not steps
            vector: Any = _embedded(settings, space, text) if vector_weight or not by_words else None
            if by_words:
                results = reading.hybrid(
                    database, text, vector, k, filters, model=space.model, min_similarity=min_similarity,
                    vector_weight=vector_weight, text_weight=text_weight,
                )  # fmt: skip
            else:
                results = reading.search(
                    database, vector, k, filters, steps=steps, model=space.model, min_similarity=min_similarity
                )
            if not steps:
                matched = reading.matched_steps(database, [row["test_case_id"] for row in results], text, vector)
    if as_json:
        told = {} if steps else {"matched_steps": matched}
        results = [{**row, **{name: by_case.get(row["test_case_id"], []) for name, by_case in told.items()}}
                   for row in results]  # fmt: skip
        _print_json({"query": text or None, "like": like, "jira": jira, "space": space.name, "model": space.model,
                     "results": results})  # fmt: skip
    elif steps:
        show_steps(out, results, text)
    else:
        show_cases(out, results, matched, jira or text)


def _wrong(
    query: str | None, like: int | None, jira: str | None, *, only_queries: bool, with_similarity: float | None
) -> str | None:
    """What cannot be meant, and what to say instead."""
    if sum(given is not None for given in (query, like, jira)) != 1:
        return 'Say what to look for in one way: qbench search "cannot log in", or --like CASE_ID, or --jira KEY.'
    if only_queries and query is None:
        return "--steps and --vector are ways to search for a query: give one, without --like and --jira."
    if with_similarity is not None and jira is not None:
        return "--jira finds by the key alone: it has no similarity to compare with --min-similarity."
    if query is not None and not query.strip():
        return 'The query is empty. Say what to look for, for instance: qbench search "cannot log in"'
    return None


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        _fail(f"--updated-since is {text!r}; it has to be a date such as 2025-12-31 or 2025-12-31T14:00+01:00.")


def _embedded(settings: Settings, space: Any, text: str) -> Any:
    """The vector of a query, made by the model of the space that is read."""
    from qbench_dagster.wiring import embedder, embedding_space  # noqa: PLC0415

    if (named := embedding_space(settings).name) != space.name:
        err.print(
            f"answered by {space.name} ({space.model}), which is what the application reads; "
            f"the settings name {named}: see qbench spaces",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    with closing(embedder(settings, space)) as chosen:
        return chosen.embed([(space.query_prefix or "") + text])[0]
