-- The published rows. A case is here with all its steps and vectors, or not at all.

CREATE SCHEMA IF NOT EXISTS store;  -- the versions table of the schema itself may have come first

CREATE TABLE store.test_documents (
    test_case_id      bigint PRIMARY KEY,
    doc_hash          bytea NOT NULL,
    text_hash         bytea NOT NULL,
    uid               text NOT NULL UNIQUE,
    jira_key          text,
    title             text NOT NULL,
    description       text,
    summary           text,
    test_type         text,
    priority          text,
    platforms         text[] NOT NULL,
    tags              text[] NOT NULL,
    folder_structure  text,
    suite_id          bigint,
    section_id        bigint,
    project_id        bigint,
    source            text NOT NULL,
    is_automated      boolean,
    refs              text,
    custom_fields     jsonb NOT NULL,
    source_created_at timestamptz,
    source_updated_at timestamptz,
    ingested_at       timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON store.test_documents (text_hash);
CREATE INDEX ON store.test_documents (project_id);
-- SP-GiST: a text may be longer than the 2,704 bytes a B-tree entry can hold. It answers =, = ANY and starts_with.
-- A hash index does the first two, but each row walks the chain of its value: with four priorities, the fourth
-- 50,000 rows took 3.6 times as long to insert as the first (spgist 1.6, B-tree 1.1 times).
CREATE INDEX ON store.test_documents USING spgist (priority);
CREATE INDEX ON store.test_documents USING spgist (test_type);
CREATE INDEX ON store.test_documents USING spgist (jira_key);
CREATE INDEX ON store.test_documents USING spgist (folder_structure);
-- The normaliser takes no label of more than 500 characters: a GIN entry can hold 2,712 bytes.
CREATE INDEX ON store.test_documents USING gin (tags);
CREATE INDEX ON store.test_documents USING gin (platforms);

CREATE TABLE store.test_steps (
    test_case_id bigint NOT NULL REFERENCES store.test_documents ON DELETE CASCADE,
    step_index   integer NOT NULL CHECK (step_index BETWEEN 1 AND 65535),
    action       text NOT NULL,
    expected     text[] NOT NULL,
    data         text,
    text_hash    bytea NOT NULL,
    PRIMARY KEY (test_case_id, step_index)
);
CREATE INDEX ON store.test_steps (text_hash);

CREATE TABLE store.test_preconditions (
    test_case_id bigint NOT NULL REFERENCES store.test_documents ON DELETE CASCADE,
    order_index  integer NOT NULL CHECK (order_index BETWEEN 0 AND 65535),
    condition    text NOT NULL,
    PRIMARY KEY (test_case_id, order_index)
);

CREATE TABLE store.test_related_issues (
    test_case_id bigint NOT NULL REFERENCES store.test_documents ON DELETE CASCADE,
    order_index  integer NOT NULL CHECK (order_index BETWEEN 0 AND 65535),
    issue_key    text NOT NULL,
    issue_type   text NOT NULL,
    PRIMARY KEY (test_case_id, order_index)
);
-- md5: a reference may be longer than the 2,704 bytes a B-tree entry can hold.
CREATE INDEX ON store.test_related_issues (md5(issue_key));

-- The embedding spaces there are, and how each is searched.
CREATE TABLE store.spaces (
    name        text PRIMARY KEY,             -- also the schema that holds its vectors
    model       text NOT NULL,
    dimensions  integer NOT NULL,
    vector_type text NOT NULL CHECK (vector_type IN ('halfvec', 'vector')),
    recipe      integer NOT NULL,             -- version of the texts that are embedded
    strategy    text NOT NULL DEFAULT 'none' CHECK (strategy IN ('binary', 'halfvec', 'none')),
    ef_search   integer NOT NULL DEFAULT 100,
    active      boolean NOT NULL DEFAULT false,  -- the one the views and functions of qbench read
    face_hash   bytea,                        -- of the SQL that made those views and functions
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX ON store.spaces (active) WHERE active;

-- The indexes as they were last built and measured.
CREATE TABLE store.index_builds (
    space           text NOT NULL REFERENCES store.spaces ON DELETE CASCADE,
    kind            text NOT NULL CHECK (kind IN ('doc', 'step')),
    strategy        text NOT NULL,
    m               integer NOT NULL,
    ef_construction integer NOT NULL,
    ef_search       integer NOT NULL,
    rows            bigint NOT NULL,
    bytes           bigint NOT NULL,
    seconds         double precision NOT NULL,
    built_at        timestamptz NOT NULL DEFAULT now(),
    recall          jsonb,                    -- what was measured, null until it is
    PRIMARY KEY (space, kind)
);

CREATE TABLE store.parity_reports (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    space      text NOT NULL,
    passed     boolean NOT NULL,
    state_hash bytea NOT NULL,                -- of everything the report is about
    report     jsonb NOT NULL
);
