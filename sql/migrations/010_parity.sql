-- Vectors of logged queries that were paid for: asked for once, whatever is compared with them later.

CREATE TABLE store.query_vectors (
    space      text NOT NULL REFERENCES store.spaces ON DELETE CASCADE,
    text_hash  bytea NOT NULL,                -- of the query with its prefix
    embedding  real[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (space, text_hash)
);
COMMENT ON TABLE store.query_vectors IS 'Vectors of the queries of QBENCH_QUERY_LOG, where a vector costs money.';

ALTER TABLE store.embedding_requests
    DROP CONSTRAINT embedding_requests_kind_check,
    ADD CONSTRAINT embedding_requests_kind_check CHECK (kind IN ('doc', 'step', 'query'));
