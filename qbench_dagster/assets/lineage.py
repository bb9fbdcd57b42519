"""Column schema and column lineage, in Dagster's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dagster as dg

# Published columns that are not the staged column of the same name: (asset, column).
MADE_OF = {
    "id": ("normalized_testdocs", "case_id"),
    "test_case_id": ("normalized_testdocs", "case_id"),
    "embedding": ("doc_embeddings", "embedding"),
}
PUBLISHED_BY_US = ("ingested_at", "updated_at")


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
    """`columns` are (name, PostgreSQL type), as the database has them."""
    return dg.TableSchema(
        columns=[dg.TableColumn(name, type=kind, description=DESCRIPTIONS.get(name)) for name, kind in columns]
    )


def published_lineage(columns: Sequence[tuple[str, str]]) -> dg.TableColumnLineage:
    """Where each column of qbench.test_documents comes from."""
    return _lineage(
        {name: [MADE_OF.get(name, ("normalized_testdocs", name))] for name, _ in columns if name not in PUBLISHED_BY_US}
    )


def staged_lineage(columns: Sequence[tuple[str, str]]) -> dg.TableColumnLineage:
    """Where each column of staging.test_documents comes from: the row as it was landed."""
    return _lineage({name: [("sqlite_cases", "id" if name == "case_id" else "raw")] for name, _ in columns})


def embedding_lineage() -> dg.TableColumnLineage:
    """Where the columns of an embeddings table come from."""
    return _lineage({name: [("normalized_testdocs", "text_hash")] for name in ("text_hash", "embedding")})


def _lineage(made_of: Mapping[str, Sequence[tuple[str, str]]]) -> dg.TableColumnLineage:
    return dg.TableColumnLineage(
        {
            column: [dg.TableColumnDep(asset_key=dg.AssetKey([asset]), column_name=source) for asset, source in sources]
            for column, sources in made_of.items()
        }
    )
