"""`qbench`: the jobs of the graph, and reading what they made, from a terminal. No logic of its own."""

from qbench_dagster.cli import backup, batches, history, local, pull, roles, search, spaces  # noqa: F401 (they add their commands to `app`)
from qbench_dagster.cli.app import app

__all__ = ["app"]
