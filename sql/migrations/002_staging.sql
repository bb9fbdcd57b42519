-- What each landed case normalises to: a TestDoc with its steps, or a reject with a typed reason.

CREATE SCHEMA staging;

CREATE TABLE staging.test_documents (
    case_id            bigint PRIMARY KEY,
    input_hash         bytea NOT NULL,        -- of the landed row and of the names it refers to
    recipe             integer NOT NULL,      -- version of the normaliser that wrote the row
    doc_hash           bytea NOT NULL,        -- of everything that is published for the case
    text_hash          bytea NOT NULL,        -- SHA-256 of the text that is embedded
    uid                text NOT NULL,
    jira_key           text,
    title              text NOT NULL,
    description        text,
    summary            text,
    test_type          text,
    priority           text,
    platforms          text[] NOT NULL,
    tags               text[] NOT NULL,
    folder_structure   text,
    suite_id           bigint,
    section_id         bigint,
    project_id         bigint,
    source             text NOT NULL,
    is_automated       boolean,
    refs               text,
    custom_fields      jsonb NOT NULL,
    source_created_at  timestamptz,
    source_updated_at  timestamptz,
    preconditions      text[] NOT NULL,
    issue_keys         text[] NOT NULL,
    issue_types        text[] NOT NULL,
    notes              text[] NOT NULL        -- what was odd in the source and how it was handled
);
CREATE INDEX ON staging.test_documents (text_hash);

CREATE TABLE staging.test_steps (
    case_id    bigint NOT NULL,
    step_index integer NOT NULL,              -- from 1
    action     text NOT NULL,
    expected   text[] NOT NULL,
    data       text,
    text_hash  bytea NOT NULL,
    PRIMARY KEY (case_id, step_index)
);
CREATE INDEX ON staging.test_steps (text_hash);

CREATE TABLE staging.rejects (
    case_id     bigint PRIMARY KEY,
    input_hash  bytea NOT NULL,
    recipe      integer NOT NULL,
    reason      text NOT NULL,
    detail      text NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE staging.rejects IS 'Cases that cannot be published, with a typed reason; replayed when the case is materialised again.';
