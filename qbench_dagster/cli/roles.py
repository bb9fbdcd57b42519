"""`qbench roles`: the script that makes the database's roles, for a DBA to read and run."""

from __future__ import annotations

import sys

from qbench_dagster.adapters.sql import read_file
from qbench_dagster.cli.app import Json, _print_json, app


@app.command()
def roles(as_json: Json = False) -> None:
    """Print the SQL that makes qbench_owner, qbench_writer and qbench_reader: qbench roles | psql "$ADMIN_URL"."""
    script = read_file("roles.sql")
    if as_json:
        _print_json({"sql": script})
    else:
        sys.stdout.write(script)
