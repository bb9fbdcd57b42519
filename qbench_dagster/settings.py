"""Every setting of the project, read from the environment and checked once on start.

One class, one table in the README (a test compares the two). Nothing else reads the environment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"


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
    testrail_url: str | None = Field(
        None,
        alias="QBENCH_TESTRAIL_URL",
        description="TestRail itself as the source, in place of an export: its address (`https://acme.testrail.io`),",
    )
    testrail_user: str | None = Field(None, alias="QBENCH_TESTRAIL_USER", description="the user,")
    testrail_api_key: SecretStr | None = Field(
        None, alias="QBENCH_TESTRAIL_API_KEY", description="and the user's API key."
    )
    testrail_projects: str | None = Field(
        None, alias="QBENCH_TESTRAIL_PROJECTS", description="Ids of the projects to take (`1,4`). Unset: all."
    )
    embedder: Literal["lexical", "openai", "local"] = Field(
        "lexical",
        alias="QBENCH_EMBEDDER",
        description="What turns texts into vectors: `lexical` (offline), `openai` (or any server that speaks its API), "
        "`local` (a sentence-transformers model on this machine).",
    )
    model: str | None = Field(
        None,
        alias="QBENCH_MODEL",
        description="The model. Unset: `text-embedding-3-large` for `openai`, "
        "`sentence-transformers/all-MiniLM-L6-v2` for `local`.",
    )
    dimensions: int | None = Field(
        None,
        alias="QBENCH_DIMENSIONS",
        ge=2,
        le=4000,
        description="Dimensions of the vectors. Unset: the model's own (3072 for `lexical`).",
    )
    text_prefix: str = Field(
        "",
        alias="QBENCH_TEXT_PREFIX",
        description="Put before each text that is embedded, where the model was trained with it (E5: `passage: `).",
    )
    query_prefix: str | None = Field(
        None,
        alias="QBENCH_QUERY_PREFIX",
        description="The same for a query (E5: `query: `). Unset: as the space has it; a blank: none.",
    )
    vector_type: Literal["halfvec", "vector"] = Field(
        "halfvec",
        alias="QBENCH_VECTOR_TYPE",
        description="`halfvec` (2 bytes a dimension) or `vector` (bit-exact float32, twice the disk).",
    )
    openai_api_key: SecretStr | None = Field(
        None, alias="OPENAI_API_KEY", description="Key of the embedding service. Needed for `openai`."
    )
    openai_base_url: str | None = Field(
        None,
        alias="OPENAI_BASE_URL",
        description="Another server that speaks OpenAI's API: vLLM, Infinity, Ollama, Azure (`…/openai/v1/`).",
    )
    openai_mode: Literal["requests", "batch"] = Field(
        "requests",
        alias="QBENCH_OPENAI_MODE",
        description="`requests` (now) or `batch` (half the price, within a day; a sensor takes the results in).",
    )
    send_dimensions: bool | None = Field(
        None,
        alias="QBENCH_SEND_DIMENSIONS",
        description="Whether requests carry `dimensions`. Unset: only to models named `text-embedding-3-…`.",
    )
    concurrency: int = Field(
        8, alias="QBENCH_CONCURRENCY", ge=1, le=64, description="Requests in flight to the embedding service."
    )
    request_timeout_s: float = Field(
        120, alias="QBENCH_REQUEST_TIMEOUT_S", gt=0, description="Time-out of one request to the embedding service."
    )
    max_inputs: int = Field(
        2048, alias="QBENCH_MAX_INPUTS", ge=1, description="Texts one request may hold, by the service's limit."
    )
    max_input_tokens: int = Field(
        8192, alias="QBENCH_MAX_INPUT_TOKENS", ge=16, description="Tokens of one text; a longer one goes in pieces."
    )
    max_request_tokens: int = Field(
        300_000, alias="QBENCH_MAX_REQUEST_TOKENS", ge=16, description="Tokens one request may hold."
    )
    max_usd: float | None = Field(
        None,
        alias="QBENCH_MAX_USD",
        ge=0,
        description="What the vectors of one embedding space may cost in all, in dollars; embedding stops before the "
        "request that would exceed it.",
    )
    prices: Path | None = Field(
        None,
        alias="QBENCH_PRICES",
        description='JSON file of prices over the built-in ones: `{"model": {"usd_per_million": 0.13, '
        '"batch_usd_per_million": 0.065}}`.',
    )
    qdrant_url: str | None = Field(
        None, alias="QBENCH_QDRANT_URL", description="Old Qdrant whose vectors are used first: its URL,"
    )
    qdrant_api_key: SecretStr | None = Field(None, alias="QBENCH_QDRANT_API_KEY", description="its API key,")
    qdrant_path: Path | None = Field(
        None, alias="QBENCH_QDRANT_PATH", description="or the folder of one in local mode."
    )
    qdrant_docs: str = Field("test_docs", alias="QBENCH_QDRANT_DOCS", description="Its collection of test cases.")
    qdrant_steps: str = Field("test_steps", alias="QBENCH_QDRANT_STEPS", description="Its collection of steps.")
    qdrant_vector: str | None = Field(
        None, alias="QBENCH_QDRANT_VECTOR", description="Which of several named vectors of its points."
    )
    faiss_docs: Path | None = Field(None, alias="QBENCH_FAISS_DOCS", description="Old FAISS index of test cases,")
    faiss_docs_metadata: Path | None = Field(
        None, alias="QBENCH_FAISS_DOCS_METADATA", description="and its metadata: JSON, JSONL, CSV or Parquet."
    )
    faiss_steps: Path | None = Field(None, alias="QBENCH_FAISS_STEPS", description="Old FAISS index of steps,")
    faiss_steps_metadata: Path | None = Field(
        None, alias="QBENCH_FAISS_STEPS_METADATA", description="and its metadata."
    )
    faiss_allow_pickle: bool = Field(
        False,
        alias="QBENCH_FAISS_ALLOW_PICKLE",
        description="Read metadata that is a pickle. Loading one runs whatever code its writer put there.",
    )
    reuse_model: str | None = Field(
        None,
        alias="QBENCH_REUSE_MODEL",
        description="Model that made the old store's vectors, where its payloads do not say. Unset: those are refused.",
    )
    reuse_quantized: bool = Field(
        False, alias="QBENCH_REUSE_QUANTIZED", description="Also take vectors kept in 8 bits or less a coordinate."
    )
    fresh_sample: int = Field(
        0,
        alias="QBENCH_FRESH_SAMPLE",
        ge=0,
        le=1000,
        description="Stored vectors that the check `vectors_are_plausible` embeds again and compares. With a paid "
        "embedder that costs money.",
    )
    index_strategy: Literal["auto", "binary", "subvector", "ivfflat", "halfvec", "exact"] = Field(
        "auto",
        alias="QBENCH_INDEX",
        description="`binary` (HNSW on bits), `subvector` (HNSW on the first dimensions), `ivfflat` or `halfvec` (HNSW "
        "on the vectors), each with exact rerank; `exact` (no index); `auto` measures them, and takes the cheapest "
        "that will do.",
    )
    hnsw_m: int = Field(16, alias="QBENCH_HNSW_M", ge=2, le=100, description="HNSW: links of a node.")
    hnsw_ef_construction: int = Field(
        256,
        alias="QBENCH_HNSW_EF_CONSTRUCTION",
        ge=4,
        le=1000,
        description="HNSW: candidates while building.",
    )
    subvector_dimensions: int | None = Field(
        None,
        alias="QBENCH_SUBVECTOR_DIMENSIONS",
        ge=1,
        le=4000,
        description="`subvector`: dimensions that are indexed. Unset: a sixth of the vector's.",
    )
    ivfflat_lists: int | None = Field(
        None,
        alias="QBENCH_IVFFLAT_LISTS",
        ge=1,
        le=32768,
        description="`ivfflat`: lists. Unset: rows / 1,000, above a million the square root of rows.",
    )
    ef_search: int | None = Field(
        None,
        alias="QBENCH_EF_SEARCH",
        ge=1,
        le=1000,
        description="Candidates of an index scan (`ivfflat`: probes). Unset: the fewest with which the index reaches "
        "the target, measured.",
    )
    rerank: int | None = Field(
        None,
        alias="QBENCH_RERANK",
        ge=1,
        le=10000,
        description="Candidates compared exactly. Unset: measured.",
    )
    target_recall: float = Field(
        0.95,
        alias="QBENCH_TARGET_RECALL",
        gt=0,
        le=1,
        description="recall@10 the index must reach (a blocking check).",
    )
    target_p95_ms: float = Field(
        15,
        alias="QBENCH_TARGET_P95_MS",
        gt=0,
        description="`auto`: 95th percentile of a search that a cheaper strategy must keep, in milliseconds.",
    )
    advisor_sample: int = Field(
        5000,
        alias="QBENCH_ADVISOR_SAMPLE",
        ge=100,
        description="`auto`: stored vectors on which the strategies are measured.",
    )
    index_memory_mb: int | None = Field(
        None,
        alias="QBENCH_INDEX_MEMORY_MB",
        ge=64,
        description="Memory of an index build (`maintenance_work_mem`). Unset: what the machine of an embedded server "
        "can spare, or the server's own setting.",
    )
    index_workers: int | None = Field(
        None,
        alias="QBENCH_INDEX_WORKERS",
        ge=0,
        le=64,
        description="Parallel workers of an index build, beside its own process. Unset: the embedded server's cores, "
        "less one, or the server's own setting.",
    )
    query_log: Path | None = Field(
        None,
        alias="QBENCH_QUERY_LOG",
        description="Queries the parity report compares searches with: a text file of one a line, or JSONL with "
        "`query` and filters. Unset: they are drawn from the data.",
    )
    parity_queries: int = Field(
        200,
        alias="QBENCH_PARITY_QUERIES",
        ge=10,
        le=10000,
        description="Queries the parity report compares searches with.",
    )
    min_overlap: float = Field(
        0.9,
        alias="QBENCH_MIN_OVERLAP",
        ge=0,
        le=1,
        description="Mean share of the old store's ten nearest that a search must find,",
    )
    min_median_overlap: float = Field(
        0.95,
        alias="QBENCH_MIN_MEDIAN_OVERLAP",
        ge=0,
        le=1,
        description="and its median.",
    )
    ui_url: str = Field(
        "http://127.0.0.1:3000",
        alias="QBENCH_UI_URL",
        description="Where the Dagster UI is; the parity report links to its run.",
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
    sync_interval_s: int = Field(
        300,
        alias="QBENCH_SYNC_INTERVAL_S",
        ge=0,
        description="How often the sensor `export_changes` looks for cases that changed; 0: never.",
    )
    sync_overlap_s: int = Field(
        3600,
        alias="QBENCH_SYNC_OVERLAP_S",
        ge=0,
        description="How far before the last `updated_on` it looks again, for clocks that go back.",
    )
    sync_partitions: int = Field(
        20, alias="QBENCH_SYNC_PARTITIONS", ge=1, description="Partitions of one run it asks for."
    )
    quiet_hours: str | None = Field(
        None, alias="QBENCH_QUIET_HOURS", description="When it asks for none: `22:00-06:00`. Unset: never quiet."
    )
    reconcile_at: str = Field(
        "02:00",
        alias="QBENCH_RECONCILE_AT",
        description="When `nightly_reconcile` compares all cases, whatever their `updated_on`.",
    )
    timezone: str = Field("UTC", alias="QBENCH_TIMEZONE", description="Time zone of these two: `Europe/Berlin`.")
    stale_after_h: int = Field(
        26,
        alias="QBENCH_STALE_AFTER_H",
        ge=2,
        description="Hours without a sync after which `pg_tables` and `parity_report` turn red in the UI.",
    )
    history_days: int = Field(
        90,
        alias="QBENCH_HISTORY_DAYS",
        ge=1,
        description="How long what a sync replaced is kept, and the sync can be rolled back.",
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

    @field_validator("query_prefix")
    @classmethod
    def _blank_is_none(cls, value: str | None) -> str | None:
        # An empty variable is one that is not set, so it takes a blank to say that a space is to lose its prefix.
        return "" if value is not None and not value.strip() else value

    @field_validator("quiet_hours")
    @classmethod
    def _is_span_of_day(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(f"{CLOCK}-{CLOCK}", value):
            raise ValueError("must be two times of day such as 22:00-06:00")
        return value

    @field_validator("reconcile_at")
    @classmethod
    def _is_time_of_day(cls, value: str) -> str:
        if not re.fullmatch(CLOCK, value):
            raise ValueError("must be a time of day such as 02:00")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError):  # a zone that is not found is a KeyError
            raise ValueError("must be a time zone such as Europe/Berlin or UTC") from None
        return value

    @field_validator("testrail_projects")
    @classmethod
    def _are_ids(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", value):
            raise ValueError("must be project ids such as 1,4")
        return value

    @field_validator("openai_base_url", "qdrant_url", "testrail_url", "ui_url")
    @classmethod
    def _is_plain_url(cls, value: str | None) -> str | None:
        if value is not None and (not value.startswith(("http://", "https://")) or {"@", "?"} & set(value)):
            raise ValueError(
                "must be an address such as https://host:port/v1, without user, password or query: a key has a "
                "variable of its own (the value is not shown)"
            )
        return value

    def shown(self) -> dict[str, str]:
        """Every setting by its variable, fit to be shown: a secret is only said to be set."""
        values = {str(field.alias): getattr(self, name) for name, field in type(self).model_fields.items()}
        return {
            name: "(set)" if isinstance(value, SecretStr) else str(value)
            for name, value in values.items()
            if value is not None
        }

    @property
    def old_stores(self) -> list[str]:
        """The old stores whose vectors are used first, by the provenance their vectors get."""
        qdrant, faiss = self.qdrant_url or self.qdrant_path, self.faiss_docs or self.faiss_steps
        return [name for name, place in (("qdrant", qdrant), ("faiss", faiss)) if place]

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
