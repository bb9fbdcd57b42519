-- What was sent to OpenAI's Batch API, and which texts wait there.

CREATE TABLE store.batches (
    id              uuid PRIMARY KEY,             -- ours; also in the metadata of the batch at the service
    space           text NOT NULL REFERENCES store.spaces ON DELETE CASCADE,
    kind            text NOT NULL CHECK (kind IN ('doc', 'step')),
    model           text NOT NULL,
    state           text NOT NULL DEFAULT 'preparing'
                    CHECK (state IN ('preparing', 'submitted', 'taken_in', 'failed', 'abandoned')),
    request_id      bigint NOT NULL REFERENCES store.embedding_requests,
    usd_per_million double precision,             -- as reserved: what is settled is settled at this price
    texts           integer NOT NULL,
    lines           integer NOT NULL,
    tokens          bigint NOT NULL,
    tokens_billed   bigint NOT NULL DEFAULT 0,    -- of the lines taken in so far
    tokens_at_risk  bigint NOT NULL DEFAULT 0,    -- of answers that could not be used
    file_id         text,                         -- the input file at the service
    remote_id       text,
    status          text,                         -- as the service last told
    lines_done      integer NOT NULL DEFAULT 0,
    error           text,
    queue_ceiling   bigint,                       -- it was refused because the account's queue holds no more than this
    created_at      timestamptz NOT NULL DEFAULT now(),
    submitted_at    timestamptz,
    ended_at        timestamptz
);
CREATE INDEX ON store.batches (space, state);
COMMENT ON TABLE store.batches IS
'One row a batch. "preparing" without a process that holds the space''s lock: that process was killed.';

-- A row is a claim: the text was sent, and nobody sends it again until the claim is gone.
CREATE TABLE store.batch_texts (
    space     text NOT NULL,
    batch     uuid NOT NULL REFERENCES store.batches ON DELETE CASCADE,
    line      integer NOT NULL,
    place     smallint NOT NULL,                  -- among the inputs of its line, from 0
    part      smallint NOT NULL,                  -- of a text sent in parts, from 0
    parts     smallint NOT NULL,
    text_hash bytea NOT NULL,
    key       text NOT NULL,                      -- the partition it was first found in
    tokens    integer NOT NULL,
    vector    bytea,                              -- of a part that was answered: float32, until all parts are
    PRIMARY KEY (batch, line, place)
);
CREATE INDEX ON store.batch_texts (space, text_hash);

-- Texts that were answered with something unusable once: the second time a person is told.
CREATE TABLE store.batch_unusable (
    space     text NOT NULL REFERENCES store.spaces ON DELETE CASCADE,
    text_hash bytea NOT NULL,
    PRIMARY KEY (space, text_hash)
);
