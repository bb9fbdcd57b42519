"""Column schema and column lineage, in Dagster's terms."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

# Published column -> (asset, columns) it is made of.
SOURCES: dict[str, list[tuple[str, Sequence[str]]]] = {
    "id": [("sqlite_cases", ["id"])],
    "test_case_id": [("sqlite_cases", ["id"])],
    "uid": [("sqlite_cases", ["id"])],
    "title": [("sqlite_cases", ["title"])],
    "description": [("sqlite_cases", ["preconditions"])],
    "summary": [("sqlite_cases", ["comment"])],
    "jira_key": [("sqlite_cases", ["custom_fields", "jiras", "refs", "refs_custom"])],
    "test_type": [("sqlite_cases", ["type_id"])],
    "priority": [("sqlite_cases", ["priority_id"])],
    "platforms": [("sqlite_cases", ["custom_fields"])],
    "tags": [("sqlite_cases", ["custom_fields"])],
    "folder_structure": [("sqlite_cases", ["section_id"])],
    "suite_id": [("sqlite_cases", ["suite_id"])],
    "section_id": [("sqlite_cases", ["section_id"])],
    "project_id": [("sqlite_cases", ["project_id"])],
    "is_automated": [("sqlite_cases", ["is_automated"])],
    "refs": [("sqlite_cases", ["refs"])],
    "custom_fields": [("sqlite_cases", ["custom_fields"])],
    "source_created_at": [("sqlite_cases", ["created_on"])],
    "source_updated_at": [("sqlite_cases", ["updated_on"])],
    "embedding": [("doc_embeddings", ["embedding"])],
}


def column_schema(columns: Sequence[tuple[str, str]]) -> dg.TableSchema:
    """`columns` are (name, PostgreSQL type), as the database has them."""
    return dg.TableSchema(columns=[dg.TableColumn(name, type=kind) for name, kind in columns])


def column_lineage() -> dg.TableColumnLineage:
    """Where each column of qbench.test_documents comes from."""
    return dg.TableColumnLineage(
        {
            column: [
                dg.TableColumnDep(asset_key=dg.AssetKey([asset]), column_name=source)
                for asset, sources in made_of
                for source in sources
            ]
            for column, made_of in SOURCES.items()
        }
    )
