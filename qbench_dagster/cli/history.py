"""The commands about what was changed: `qbench history`, `diff` and `rollback`. What they do is the adapters'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from qbench_dagster.cli.app import Json, _database, _fail, _print_json, app, clear_errors, out
from qbench_dagster.cli.parity import _line
from qbench_dagster.cli.spaces import _who
from qbench_dagster.core.history import CaseChange, RollbackPlan, RollbackRefusedError, Sync, changed_lines, differences
from qbench_dagster.settings import load_settings

CaseOption = Annotated[int | None, typer.Option("--case", metavar="ID", help="Only this case.", show_default=False)]
SyncArgument = Annotated[int, typer.Argument(metavar="SYNC", help="Its number: `qbench history` lists them.")]

_LINES = 20
"""Lines of one field that are shown."""
_LONGEST = 300
"""Characters of one line that are shown; --json has all."""
_COLOURS = {"+": "green", "-": "red"}


@app.command()
def history(
    case_id: CaseOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    purge: Annotated[
        bool, typer.Option("--purge", help="First delete what is older than QBENCH_HISTORY_DAYS, as every run does.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The syncs that changed published cases: who asked, when, which run, what changed; and what rollbacks hold."""
    from qbench_dagster.adapters.history import list_holds, list_syncs, purge_history  # noqa: PLC0415

    with clear_errors(), _database(settings := load_settings()) as database:
        purged = asdict(purge_history(database, settings.history_days)) if purge else None
        syncs = list_syncs(database, case_id=case_id, limit=limit)
        holds = list_holds(database, case_id=case_id)
    if as_json:
        _print_json({"syncs": [asdict(sync) for sync in syncs], "holds": holds, "purged": purged})
        return
    if purged is not None:
        told = f"{purged['syncs']:,} syncs with {purged['changes']:,} changes, {purged['versions']:,} versions"
        _print(f"purged: {told}; older than {settings.history_days} days")
    if not syncs:
        _print("no sync changed that case, or it was purged" if case_id is not None else "no sync was recorded yet")
    for sync in syncs:
        _show_sync(sync)
    for held in holds:
        _print(
            f"sync {held['sync_id']} holds {_cases(held['cases'])} as it put them back, {held['kept_out']:,} of them "
            f"not published and {held['brought_back']:,} beside what the source has, since "
            f"{held['since']:%Y-%m-%d %H:%M} "
            f"(until they change in TestRail, or: qbench rollback {held['sync_id']} --release)"
        )


@app.command()
def diff(
    sync: SyncArgument,
    case_id: CaseOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many cases, by id.")] = 20,
    as_json: Json = False,
) -> None:
    """What a sync changed, case by case and field by field; steps by their number."""
    from qbench_dagster.adapters.history import read_changes  # noqa: PLC0415

    with clear_errors(), _database(load_settings()) as database:
        entry, changes = read_changes(database, sync, case_id=case_id, limit=limit)
    if as_json:
        _print_json({"sync": asdict(entry), "cases": [_as_json(change) for change in changes]})
        return
    _show_sync(entry)
    if not changes:
        _print("  no case" if case_id is None else f"  case {case_id} is not among them")
    for change in changes:
        _show_change(change, whole=case_id is not None)
    if case_id is None and (more := entry.added + entry.changed + entry.removed - len(changes)) > 0:
        _print(f"and {_cases(more)} more: --limit, or --case ID")


@app.command()
def rollback(
    sync: SyncArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without, what it would do is shown.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Lose what was changed again since; undo one that did not finish.")
    ] = False,
    release: Annotated[
        bool, typer.Option("--release", help="Of a rollback: let go of the cases that it holds, and undo nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Undo a sync: its cases, with their vectors, as they were before it, as a new sync in one transaction.

    The next sync does not do at once what was undone: each case stays so until it changes in TestRail, or --release
    lets it go. Exit code 1 and nothing changed where something later depends on it.
    """
    from qbench_dagster.adapters.rollback import plan_rollback, roll_back  # noqa: PLC0415

    if release:
        _release(sync, yes=yes, as_json=as_json)
        return
    made, refused = None, None
    with clear_errors(), _database(load_settings()) as database:
        plan = plan_rollback(database, sync)
        if yes:
            try:
                made = roll_back(database, sync, by=_who(), force=force)
            except RollbackRefusedError as error:  # what holds now, not when the plan was made
                refused = str(error)
    objections = [refused] if refused else [] if yes else plan.objections(force=force)
    if as_json:
        _print_json({**asdict(plan), "objections": objections, "made": made})
    else:
        _show_plan(plan, made)
        if not (yes or objections):
            _print(f"To do it: qbench rollback {sync} --yes{' --force' if force else ''}")
    if objections:
        _fail(" ".join(objections), 1)


def _release(sync: int, *, yes: bool, as_json: bool) -> None:
    from qbench_dagster.adapters.rollback import count_held, release_holds  # noqa: PLC0415

    with clear_errors(), _database(load_settings()) as database:
        cases = release_holds(database, sync) if yes else count_held(database, sync)
    if as_json:
        _print_json({"sync": sync, "cases": cases, "released": yes})
        return
    _print(f"sync {sync} {'held' if yes else 'holds'} {_cases(cases)}; the next sync publishes what the source has")
    if not yes:
        _print(f"To do it: qbench rollback {sync} --release --yes")


def _print(text: str | Text) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def _cases(count: int) -> str:
    return f"{count:,} case{'' if count == 1 else 's'}"


def _show_sync(sync: Sync) -> None:
    what = f"undoes sync {sync.undoes}" if sync.undoes else f"sync, run {(sync.run_id or '')[:8]}"
    notes = [
        f"{sync.did} the case" if sync.did else "",
        f"undone by sync {sync.undone_by}" if sync.undone_by else "",
        "not finished: under way, failed or killed" if sync.finished_at is None else "",
        f"purged {sync.purged_at:%Y-%m-%d}" if sync.purged_at else "",
    ]
    _print(
        Text.assemble(
            (f"{sync.id:>5}", "bold"),
            f"  {sync.started_at:%Y-%m-%d %H:%M:%S}  {what}, by {_line(sync.by)}: {sync.added:,} added, "
            f"{sync.changed:,} changed, {sync.removed:,} removed in {_partitions(sync.partitions)}",
            ("".join(f"; {note}" for note in notes if note), "yellow"),
        )
    )


def _partitions(keys: Sequence[str]) -> str:
    return ", ".join(sorted(keys)) if len(keys) <= 3 else f"{len(keys)} partitions"


def _show_change(change: CaseChange, *, whole: bool) -> None:
    """What differs; of a case that came or went its title, unless `whole`."""
    shown = change.after or change.before
    title = _line(shown["document"]["title"]) if shown else ""
    _print(Text.assemble((f"C{change.case_id}", "bold"), f" {change.what}  {title[:_LONGEST]}"))
    if change.lost:
        _print(f"    kept no more as it was {' and '.join(change.lost)} the sync")
        return
    if change.what != "changed" and not whole:
        return
    for difference in differences(change.before, change.after):
        _print(Text(f"    {_line(difference.what)}"))
        lines = changed_lines(difference)
        for sign, line in lines[:_LINES]:
            _print(Text(f"      {sign} {_shortened(line)}", style=_COLOURS[sign]))
        if more := max(0, len(lines) - _LINES):
            _print(f"      … and {more:,} more lines")


def _shortened(line: str) -> str:
    text = _line(line)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"


def _show_plan(plan: RollbackPlan, made: int | None) -> None:
    _show_sync(plan.sync)
    done = f"sync {made} undid it" if made else "undoing it"
    _print(
        f"{done}: {_cases(plan.leave)} leave, {plan.change_back:,} change back, {plan.come_back:,} come back"
        + (f"; {plan.changed_since:,} of them were changed again since" if plan.changed_since else "")
    )
    for case_id, what, title in plan.examples:
        _print(f"    C{case_id} {what}  {_shortened(title or '')}")
    if (more := plan.cases - len(plan.examples)) > 0:
        _print(f"    and {_cases(more)} more")


def _as_json(change: CaseChange) -> Mapping[str, Any]:
    return {
        "case_id": change.case_id,
        "what": change.what,
        "lost": change.lost,
        "differences": [] if change.lost else [asdict(each) for each in differences(change.before, change.after)],
    }
