-- The source as it was last seen. Nothing here is interpreted: a row is what the export held.

CREATE SCHEMA landing;

CREATE TABLE landing.cases (
    id           bigint PRIMARY KEY,
    content_hash bytea NOT NULL,              -- SHA-256 of the row's bytes in the export
    raw          jsonb NOT NULL,              -- column -> value; NUL and invalid UTF-8 are U+FFFD
    section_key  text GENERATED ALWAYS AS (raw ->> 'section_id') STORED,
    priority_key text GENERATED ALWAYS AS (raw ->> 'priority_id') STORED,
    type_key     text GENERATED ALWAYS AS (raw ->> 'type_id') STORED,
    landed_at    timestamptz NOT NULL DEFAULT now(),
    removed_at   timestamptz                  -- tombstone: gone from the export since
);
COMMENT ON TABLE landing.cases IS 'One row per case of the export, as it was last seen, with the hash of its content.';
COMMENT ON COLUMN landing.cases.removed_at IS 'Tombstone: when the case was found to be gone from the export.';

-- Source rows that cannot be a row of landing.cases: without a usable id, or too large for one.
CREATE TABLE landing.rejected_rows (
    content_hash bytea NOT NULL,
    occurrence   integer NOT NULL,            -- 0, 1, … among rows of the same content
    case_id      bigint,                      -- null where there is none
    reason       text NOT NULL,
    detail       text NOT NULL,
    raw          jsonb NOT NULL,              -- of a row that is too large the beginning of each text
    landed_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (content_hash, occurrence)
);
COMMENT ON TABLE landing.rejected_rows IS 'Rows of the export without a usable id or too large: they count as source rows and as rejected.';

-- The look-up tables: small, compared whole by the hash of their content.
CREATE TABLE landing.lookup_tables (
    name         text PRIMARY KEY,
    content_hash bytea NOT NULL,
    landed_at    timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE landing.projects   (key text PRIMARY KEY, name text, raw jsonb NOT NULL);
CREATE TABLE landing.suites     (key text PRIMARY KEY, name text, raw jsonb NOT NULL);
CREATE TABLE landing.priorities (key text PRIMARY KEY, name text, raw jsonb NOT NULL);
CREATE TABLE landing.case_types (key text PRIMARY KEY, name text, raw jsonb NOT NULL);
CREATE TABLE landing.templates  (key text PRIMARY KEY, name text, raw jsonb NOT NULL);
CREATE TABLE landing.sections   (key text PRIMARY KEY, name text, raw jsonb NOT NULL,
                                 path text);  -- names from the root, computed when landed
