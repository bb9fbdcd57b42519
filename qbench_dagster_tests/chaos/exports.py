"""The exports that syncs go between, and what can happen to the file of one. Nothing of the pipeline.

State n is made of state n - 1 by edits that a day of work makes: texts, steps, additions, removals, moves, a rename.
A walk goes up and down the states, so that every sync has as much to do as another, and `updated_on` steps back.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from qbench_dagster.adapters.sample_writer import write_sample

PAGE = 4096
EDITED, STEPPED, ADDED, REMOVED, MOVED = 8, 4, 4, 4, 4

# Killed while it writes: the pages it changed are in the file, what they were before in the journal beside it.
DYING_WRITER = """
import os, sqlite3, sys
export = sqlite3.connect(sys.argv[1], isolation_level=None)
export.execute("PRAGMA cache_size = 2")
export.execute("BEGIN IMMEDIATE")
export.execute("UPDATE cases SET title = title || ' half of an export', updated_on = 1")
os._exit(1)
"""


def write_states(folder: Path, states: int, cases: int, seed: int, export: Path | None) -> list[Path]:
    """Write `states` exports into `folder`, each an edit of the one before; returns their paths.

    The first is a copy of `export`, or a sample of so many cases.
    """
    paths = [folder / f"state{number}.db" for number in range(states)]
    if export is None:
        write_sample(paths[0], cases, seed, lambda *_: None, force=True)
    else:
        shutil.copyfile(export, paths[0])
    for number in range(1, states):
        shutil.copyfile(paths[number - 1], paths[number])
        with closing(sqlite3.connect(paths[number])) as edited, edited:
            _edit(edited, random.Random(seed * 1000 + number), number)
    return paths


def walk(states: int) -> Iterator[int]:
    """Up and down the states for ever, from 0: 0 1 2 1 0 1 …"""
    if states < 2:
        raise ValueError("a sync goes from one state to another: two are needed")
    while True:
        yield from range(states - 1)
        yield from range(states - 1, 0, -1)


def _edit(export: sqlite3.Connection, draw: random.Random, number: int) -> None:
    ids = [row[0] for row in export.execute("SELECT id FROM cases ORDER BY id")]
    picked = iter(draw.sample(ids, EDITED + STEPPED + ADDED + REMOVED + MOVED))
    for position in range(EDITED):  # a third each: touched later, touched by a clock that went back, not touched
        export.execute(
            "UPDATE cases SET title = title || ?, updated_on = updated_on + ? WHERE id = ?",
            (f" (as of revision {number})", (86_400, -86_400, 0)[position % 3], next(picked)),
        )
    for position in range(STEPPED):
        steps = [{"content": f"Open view {n} of revision {number}, part {position}", "expected": "Nothing is lost"}
                 for n in range(1, 4)]  # fmt: skip
        export.execute(
            "UPDATE cases SET steps_separated = ?, updated_on = updated_on + 3600 WHERE id = ?",
            (json.dumps(steps), next(picked)),
        )
    columns = [row[1] for row in export.execute("PRAGMA table_info(cases)")]
    others = ", ".join(name for name in columns if name not in ("id", "title"))
    for position in range(ADDED):
        export.execute(
            f"INSERT INTO cases (id, title, {others}) SELECT ?, ?, {others} FROM cases WHERE id = ?",
            (ids[-1] + 1 + position, f"Addition {position} of revision {number}", next(picked)),
        )
    for _ in range(REMOVED):
        export.execute("DELETE FROM cases WHERE id = ?", (next(picked),))
    sections = [row[0] for row in export.execute("SELECT id FROM sections ORDER BY id")]
    for _ in range(MOVED):
        export.execute("UPDATE cases SET section_id = ? WHERE id = ?", (draw.choice(sections), next(picked)))
    renamed = export.execute("SELECT section_id FROM cases ORDER BY id LIMIT 1 OFFSET ?", (number,)).fetchone()[0]
    export.execute("UPDATE sections SET name = name || ? WHERE id = ?", (f" r{number}", renamed))


def place(state: Path, export: Path) -> None:
    """Put a state where runs look for the export, as who does it well: beside it, then renamed."""
    for left in ("-journal", "-wal", "-shm"):
        export.with_name(export.name + left).unlink(missing_ok=True)
    fresh = export.with_name("fresh.db")
    shutil.copyfile(state, fresh)
    fresh.replace(export)


def corrupt(export: Path, draw: random.Random) -> None:
    """Overwrite the heads of a third of the pages: SQLite notices as soon as it reads one of them.

    What a page says of itself goes, not what is in it: without checksums nobody can tell a wrong text from a right one.
    """
    with export.open("r+b") as file:
        pages = range(1, export.stat().st_size // PAGE)
        for page in draw.sample(pages, max(1, len(pages) // 3)):
            file.seek(page * PAGE)
            file.write(b"\xff" * 12)


def truncate(export: Path, share: float) -> None:
    """Keep this share of the file, cut off at any byte."""
    with export.open("r+b") as file:
        file.truncate(int(export.stat().st_size * share))


def lose_cases(export: Path, share: float) -> None:
    """A valid file that lacks the last of its cases: an export that ended early, and said nothing."""
    with closing(sqlite3.connect(export)) as connection, connection:
        connection.execute(
            "DELETE FROM cases WHERE id IN (SELECT id FROM cases ORDER BY id DESC "
            "LIMIT (SELECT CAST(count(*) * ? AS INTEGER) FROM cases))",
            (share,),
        )


def write_half(export: Path) -> None:
    """Let a writer be killed in the middle of its transaction."""
    subprocess.run([sys.executable, "-c", DYING_WRITER, str(export)], check=False)


def overwrite(export: Path, state: Path, share: float) -> None:
    """The beginning of a copy over the file in use, as `cp` would: this share of it, the rest is still the old one."""
    content = state.read_bytes()
    with export.open("r+b") as file:
        file.write(content[: int(len(content) * share) // PAGE * PAGE])
