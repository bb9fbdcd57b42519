-- What was taken of old vector stores, and every point that was not, with the reason.

CREATE TABLE store.reuse_passes (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    space       text NOT NULL REFERENCES store.spaces ON DELETE CASCADE,
    source      text NOT NULL,                -- the provenance of its vectors: qdrant, faiss
    description text NOT NULL,                -- where it is, without secrets
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    counts      jsonb NOT NULL
);
CREATE INDEX ON store.reuse_passes (space, source);
COMMENT ON TABLE store.reuse_passes IS 'One row a finished pass over an old vector store.';

CREATE TABLE store.source_points (
    space     text NOT NULL REFERENCES store.spaces ON DELETE CASCADE,
    source    text NOT NULL,
    kind      text NOT NULL CHECK (kind IN ('doc', 'step')),
    point_id  text NOT NULL,
    case_id   bigint,                         -- null where the payload names none
    text_hash bytea,                          -- null where the payload holds no text
    reason    text NOT NULL,
    seen_at   timestamptz NOT NULL
);
CREATE INDEX ON store.source_points (space, source, reason);
COMMENT ON TABLE store.source_points IS
'The points of old vector stores whose vectors were not taken, as of the last finished pass over each store.';
