-- How each table of vectors is indexed and searched: chosen and measured for documents and for steps by themselves.

ALTER TABLE store.index_builds
    ALTER COLUMN m DROP NOT NULL,
    ALTER COLUMN ef_construction DROP NOT NULL,
    ADD COLUMN index_name text,                     -- null: exact search
    ADD COLUMN lists integer,                       -- of ivfflat
    ADD COLUMN shortened integer,                   -- dimensions that a subvector index holds
    ADD COLUMN deleted bigint,                      -- rows its table had lost by then, as PostgreSQL counts them
    ADD COLUMN rerank integer NOT NULL DEFAULT 200, -- candidates compared exactly
    ADD COLUMN curve jsonb,                         -- recall and latency by ef_search, of this index
    ADD COLUMN advice jsonb;                        -- what `auto` measured on a sample, and why it chose
UPDATE store.index_builds SET
    strategy = CASE strategy WHEN 'none' THEN 'exact' ELSE strategy END,
    index_name = CASE WHEN strategy <> 'none' THEN kind || '_embeddings_' || strategy END;
ALTER TABLE store.index_builds
    ADD CHECK (strategy IN ('binary', 'subvector', 'ivfflat', 'halfvec', 'exact'));
COMMENT ON COLUMN store.index_builds.ef_search IS 'Candidates of an index scan; of ivfflat the lists it probes.';

-- The search functions of before read these until pg_tables replaces them, which is not in this transaction.
COMMENT ON COLUMN store.spaces.strategy IS 'Not used any more: see store.index_builds.';
COMMENT ON COLUMN store.spaces.ef_search IS 'Not used any more: see store.index_builds.';
