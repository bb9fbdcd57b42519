"""`python -m qbench_dagster.cli`."""

from qbench_dagster.cli.app import app

app()
