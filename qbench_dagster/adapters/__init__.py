"""One module for each outside system (SQLite export, PostgreSQL, embedders). No Dagster in here."""
