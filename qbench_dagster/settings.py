"""Every setting of the project, read from the environment and checked once on start.

One class, one table in the README (a test compares the two). Nothing else reads the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(ValueError):
    """A setting is missing or wrong; the text names the variable and what to do."""


class Settings(BaseSettings):
    """Settings of one deployment. Field order is the order of the README's table."""

    # No populate_by_name: it would read $HOME as QBENCH_HOME.
    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    database_url: SecretStr | None = Field(
        None,
        alias="DATABASE_URL",
        description="PostgreSQL to fill (`postgresql://user:password@host:5432/db`). "
        "Unset: an embedded PostgreSQL under `QBENCH_HOME`.",
    )
    home: Path = Field(
        Path(".qbench"),
        alias="QBENCH_HOME",
        description="Folder for the embedded PostgreSQL, Dagster's files and the reports.",
    )
    export: Path | None = Field(
        None, alias="QBENCH_EXPORT", description="The TestRail SQLite export (`testrail_data.db`)."
    )
    embedder: Literal["lexical"] = Field(
        "lexical",
        alias="QBENCH_EMBEDDER",
        description="What turns texts into vectors. `lexical` works offline.",
    )
    dimensions: int = Field(3072, alias="QBENCH_DIMENSIONS", ge=2, le=4000, description="Dimensions of the vectors.")
    vector_type: Literal["halfvec", "vector"] = Field(
        "halfvec",
        alias="QBENCH_VECTOR_TYPE",
        description="`halfvec` (2 bytes a dimension) or `vector` (bit-exact float32, twice the disk).",
    )
    index_strategy: Literal["binary", "halfvec", "none"] = Field(
        "binary",
        alias="QBENCH_INDEX",
        description="`binary` (HNSW on bits, exact rerank), `halfvec` (HNSW on the vectors) or `none` (exact search).",
    )
    hnsw_m: int = Field(16, alias="QBENCH_HNSW_M", ge=2, le=100, description="HNSW: links of a node.")
    hnsw_ef_construction: int = Field(
        128,
        alias="QBENCH_HNSW_EF_CONSTRUCTION",
        ge=4,
        le=1000,
        description="HNSW: candidates while building.",
    )
    ef_search: int = Field(200, alias="QBENCH_EF_SEARCH", ge=1, le=1000, description="HNSW: candidates of a search.")
    target_recall: float = Field(
        0.95,
        alias="QBENCH_TARGET_RECALL",
        gt=0,
        le=1,
        description="recall@10 the index must reach (a blocking check).",
    )
    partition_cases: int = Field(
        5000,
        alias="QBENCH_PARTITION_CASES",
        ge=1,
        description="Cases of a partition, when ranges are planned.",
    )
    max_delete_share: float = Field(
        0.2,
        alias="QBENCH_MAX_DELETE_SHARE",
        ge=0,
        le=1,
        description="A run stops before it removes more than this share of a partition (and at least 50 cases).",
    )
    pg_memory_mb: int | None = Field(
        None,
        alias="QBENCH_PG_MEMORY_MB",
        ge=128,
        description="Memory the embedded PostgreSQL may plan with. Unset: a quarter of the machine's.",
    )
    statement_timeout_s: int = Field(
        60,
        alias="QBENCH_STATEMENT_TIMEOUT_S",
        ge=0,
        description="Limit for a short query. Loads, publishing and index builds are exempt.",
    )
    dagster_database_url: SecretStr | None = Field(
        None,
        alias="QBENCH_DAGSTER_DATABASE_URL",
        description="Where Dagster keeps runs and events. Unset: database `dagster` of the embedded server, "
        "or schema `dagster` of `DATABASE_URL`.",
    )

    @field_validator("database_url", "dagster_database_url")
    @classmethod
    def _is_postgres_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value().split("://")[0].split("+")[0] not in (
            "postgresql",
            "postgres",
        ):
            raise ValueError("must begin with postgresql:// (the value is not shown, it may hold a password)")
        return value

    @property
    def space(self) -> str:
        """Schema of the embedding space these settings name, e.g. `space_lexical_3072`."""
        suffix = "" if self.vector_type == "halfvec" else "_f32"
        return f"space_{self.embedder}_{self.dimensions}{suffix}"

    def shown(self) -> dict[str, str]:
        """Every setting by its variable, fit to be shown: a secret is only said to be set."""
        values = {str(field.alias): getattr(self, name) for name, field in type(self).model_fields.items()}
        return {
            name: "(set)" if isinstance(value, SecretStr) else str(value)
            for name, value in values.items()
            if value is not None
        }

    @property
    def reports(self) -> Path:
        """Folder the parity reports are written to."""
        return self.home.absolute() / "reports"

    @property
    def dagster_home(self) -> Path:
        """Folder Dagster uses as DAGSTER_HOME."""
        return self.home.absolute() / "dagster"


def load_settings(**overrides: Any) -> Settings:
    """Read and check the environment; `overrides` (by field name, None is ignored) win.

    Raises SettingsError with one line for each wrong variable, never showing a secret's value.
    """
    given = {str(Settings.model_fields[name].alias): value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = [
            f"{problem['loc'][0] if problem['loc'] else 'settings'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise SettingsError("Check the environment:\n  " + "\n  ".join(lines)) from None


def dagster_storage_url(database_url: str, *, schema: str | None) -> str:
    """The URL dagster-postgres takes: SQLAlchemy with psycopg2, optionally in a schema of its own.

    SQLAlchemy 2.1 takes a bare `postgresql://` for psycopg 3, with which Dagster's daemons fail with
    "syntax error at or near $1".
    """
    url = "postgresql+psycopg2://" + database_url.split("://", 1)[1]
    if schema is None:
        return url
    base, _, query = url.partition("?")
    parameters = [part for part in query.split("&") if part]
    options = [unquote(part.partition("=")[2]) for part in parameters if part.startswith("options=")]
    kept = [part for part in parameters if not part.startswith("options=")]
    merged = " ".join([*options, f"-csearch_path={schema}"])
    return f"{base}?{'&'.join([*kept, f'options={quote(merged)}'])}"
