"""Dagster's home: its folder, its `dagster.yaml`, and where it keeps runs and events."""

from __future__ import annotations

import os
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from qbench_dagster.adapters.embedded import start_server
from qbench_dagster.adapters.postgres import DatabaseError, check_reachable, ensure_database, ensure_schema
from qbench_dagster.settings import Settings, dagster_storage_url

DAGSTER_URL_VARIABLE = "QBENCH_DAGSTER_STORAGE"
"""Set for our own processes; `dagster.yaml` reads it."""


def dagster_url(settings: Settings) -> str:
    """URL of Dagster's storage, as dagster-postgres takes it."""
    if settings.dagster_database_url is not None:
        url = settings.dagster_database_url.get_secret_value()
        try:
            check_reachable(url)  # Dagster itself would try for a while and end with a traceback
        except DatabaseError as error:
            raise DatabaseError(str(error).replace("DATABASE_URL", "QBENCH_DAGSTER_DATABASE_URL")) from None
        return dagster_storage_url(url, schema=None)
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        ensure_schema(url, "dagster")
        return dagster_storage_url(url, schema="dagster")
    server = start_server(settings.home, settings.pg_memory_mb)
    return dagster_storage_url(ensure_database(server, "dagster", relaxed_commits=True), schema=None)


def prepare_dagster_home(settings: Settings) -> Path:
    """Make DAGSTER_HOME under QBENCH_HOME and point this process, and those it starts, at it."""
    home = settings.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    inside = files("qbench_dagster").joinpath("dagster.yaml")
    template = inside if inside.is_file() else Path(__file__).parents[1] / "dagster.yaml"
    with as_file(template) as source:
        shutil.copyfile(source, home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ[DAGSTER_URL_VARIABLE] = dagster_url(settings)
    os.environ["QBENCH_HOME"] = str(settings.home.absolute())
    # One INSERT for the events of a step instead of one each: 22 partitions of five assets in 2.0 s, not 3.0 s.
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "200")
    return home
