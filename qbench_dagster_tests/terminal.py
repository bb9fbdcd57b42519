"""`qbench` as a person or a script runs it: each command in a process of its own, with its output and exit code."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg

from qbench_dagster_tests.chaos.warm import Starter

TIMEOUT_S = 120


@cache
def starter() -> Starter:
    """Forks commands from a process that has imported what they import: two of the three seconds most of them take."""
    with patch.dict(os.environ, COLUMNS="200"):  # rich looks once, when it is imported
        made = Starter().__enter__()
    atexit.register(made.__exit__)
    return made


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """stdout, which has to be one JSON object and nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@dataclass
class Terminal:
    """A shell with its own QBENCH_HOME."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)
    url: str = ""

    def __call__(self, *arguments: str, code: int = 0, cold: bool = False, **settings: str) -> Done:
        """Run `qbench` and check how it ended; `cold`: in a new interpreter, as from a shell."""
        ours = ("QBENCH_", "DAGSTER_", "OPENAI_")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "QBENCH_HOME": str(self.home), "COLUMNS": "200", **self.settings, **settings,
        }  # fmt: skip
        environment.pop("DATABASE_URL", None) if "DATABASE_URL" not in {**self.settings, **settings} else None
        folder = Path(tempfile.mkdtemp(prefix="qbo"))
        try:
            run = starter().start(folder, arguments, environment, cold=cold)
            try:
                ended = starter().wait(run, TIMEOUT_S)
            except TimeoutError:
                run.kill()
                raise
            done = Done(ended, (folder / "out").read_text(), (folder / "err").read_text())
        finally:
            shutil.rmtree(folder)
        assert done.code == code, f"{arguments} ended with {done.code}\n{done.out}\n{done.err}"
        assert "Traceback" not in done.err + done.out, done.err
        return done

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the database whose URL `qbench url` prints."""
        self.url = self.url or self("url").out.strip()
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []
