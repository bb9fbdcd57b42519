-- What was asked of embedding services, and what it cost: one row a request, entered before it is sent.

ALTER TABLE store.spaces ADD COLUMN embedder text NOT NULL DEFAULT 'lexical';
ALTER TABLE store.spaces ADD COLUMN text_prefix text NOT NULL DEFAULT '';
ALTER TABLE store.spaces ADD COLUMN query_prefix text NOT NULL DEFAULT '';
COMMENT ON COLUMN store.spaces.text_prefix IS 'Put before each text that is embedded; its hash is of the text without it.';
COMMENT ON COLUMN store.spaces.query_prefix IS 'Put before each query that is embedded.';
COMMENT ON COLUMN store.spaces.embedder IS 'What makes its vectors: lexical, openai or local.';

-- A text over the model's token limit is embedded in pieces, and its vector is their average.
DO $$
DECLARE
    space text;
BEGIN
    FOR space IN SELECT name FROM store.spaces LOOP
        EXECUTE format('ALTER TABLE %I.doc_embeddings ADD COLUMN pieces smallint NOT NULL DEFAULT 1', space);
        EXECUTE format('ALTER TABLE %I.step_embeddings ADD COLUMN pieces smallint NOT NULL DEFAULT 1', space);
    END LOOP;
END
$$;

-- No foreign key: what was spent is remembered when the space is gone.
CREATE TABLE store.embedding_requests (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    space       text NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('doc', 'step')),
    model       text NOT NULL,
    way         text NOT NULL CHECK (way IN ('request', 'batch')),
    run_id      text NOT NULL,
    state       text NOT NULL DEFAULT 'in_flight' CHECK (state IN ('in_flight', 'answered', 'failed', 'lost')),
    texts       integer NOT NULL,
    tokens      bigint NOT NULL,              -- as counted before it was sent; as billed once answered
    usd         double precision,             -- the same in dollars; null where the price is not known
    usd_at_risk double precision NOT NULL DEFAULT 0,  -- of attempts that may have been billed without an answer
    sent_at     timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz
);
CREATE INDEX ON store.embedding_requests (space);
COMMENT ON TABLE store.embedding_requests IS
'One row a request to an embedding service. "lost": its process was killed before the answer was stored.';
