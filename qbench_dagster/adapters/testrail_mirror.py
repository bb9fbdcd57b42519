"""The mirror of a TestRail: a SQLite file in the export's schema, and the file beside it that a pull works in.

Readers have the mirror, which a finished pull replaces by rename if anything differs. What the working file holds is
`testrail_work.py`.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from qbench_dagster.adapters.testrail_work import MirrorError, WorkingFile

BUSY_TIMEOUT_S = 5.0
"""Who only looks when the last pull was keeps the file for milliseconds."""


def last_full_pull(path: Path, source: str) -> int | None:
    """When the last finished full pull of `source` was begun, in Unix seconds of ours; None if there is none."""
    work = _working_file(path)
    if not work.exists():
        return None
    uri = f"{work.absolute().as_uri()}?mode=rw"  # a pull that was killed leaves a journal, which mode=ro refuses
    with _told_clearly(path), closing(sqlite3.connect(uri, uri=True, timeout=1)) as db:
        found = dict(db.execute("SELECT name, value FROM state WHERE name IN ('source', 'completed_full')").fetchall())
    return int(found["completed_full"]) if found.get("source") == json.dumps(source) and len(found) == 2 else None


@contextmanager
def opened(path: Path, source: str) -> Iterator[WorkingFile]:
    """The working file of the mirror at `path`, ours alone while the block lasts.

    `source` names what is mirrored (an address and its projects): the working file of another is emptied. Raises
    MirrorError for whatever SQLite or the disk refuses in the block, and if another pull is at work.
    """
    with _told_clearly(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(
            sqlite3.connect(_working_file(path), isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        ) as db:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA synchronous = NORMAL")
            work = WorkingFile(db)
            work.prepare(source)
            for left in path.parent.glob(f".{path.name}.*.partial"):
                left.unlink(missing_ok=True)
            yield work


def _working_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}.pull{path.suffix}")


@contextmanager
def _told_clearly(path: Path) -> Iterator[None]:
    """Turn what SQLite and the disk refuse into MirrorErrors."""
    work = _working_file(path)
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            told = "another pull is at work. Wait until it has ended (in the UI: Runs, job pull_testrail)"
        else:
            told = f"cannot be written ({error}). See to the disk and the rights of its folder, and pull again"
        raise MirrorError(f"{work}: {told}. What was pulled by then is kept.") from None
    except sqlite3.DatabaseError as error:
        raise MirrorError(f"{work}: is damaged ({error}). Delete it: the next pull asks for everything.") from None
    except OSError as error:
        raise MirrorError(f"{path}: cannot be written ({error.strerror}). See to the disk, and pull again.") from None


def publish(work: WorkingFile, path: Path) -> bool:
    """Put the mirror in place if it is not yet what the last finished pull made; whether it was replaced.

    The whole file appears at once. Who has the old one open reads that to the end.
    """
    if path.exists() and not work.get("unpublished"):
        return False
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        work.copy_to(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    work.published()
    return True
