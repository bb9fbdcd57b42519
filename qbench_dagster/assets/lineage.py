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


DESCRIPTIONS = {
    "id": "The same as test_case_id.",
    "test_case_id": "Id of the case in TestRail.",
    "uid": "Id of the case as text, unique.",
    "jira_key": "The first Jira key among the references.",
    "title": "Title, white space as in TestRail.",
    "description": "Preconditions as plain text; part of what is embedded.",
    "summary": "The comment of the case.",
    "embedding": "Vector of title and description in the active embedding space.",
    "test_type": "Name of the case type.",
    "priority": "Name of the priority.",
    "platforms": "Platforms, from the custom fields.",
    "tags": "Tags, from the custom fields.",
    "folder_structure": "Path of the section from its root, parts joined by /.",
    "suite_id": "Suite in TestRail.",
    "section_id": "Section in TestRail.",
    "project_id": "Project in TestRail.",
    "source": "Where the case comes from.",
    "ingested_at": "When the case was first published.",
    "updated_at": "When the published row last changed.",
    "is_automated": "Whether TestRail marks the case as automated.",
    "refs": "References as TestRail has them.",
    "custom_fields": "All custom fields, as JSON.",
    "source_created_at": "created_on of the case in TestRail.",
    "source_updated_at": "updated_on of the case in TestRail.",
}


def column_schema(columns: Sequence[tuple[str, str]]) -> dg.TableSchema:
    """`columns` are (name, PostgreSQL type) of qbench.test_documents, as the database has them."""
    return dg.TableSchema(
        columns=[dg.TableColumn(name, type=kind, description=DESCRIPTIONS.get(name)) for name, kind in columns]
    )


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
