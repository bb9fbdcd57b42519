-- The approximate indexes of a space: build, watch, describe, ask.

-- name: existing
SELECT i.relname AS name, x.indisvalid AS valid, pg_relation_size(i.oid) AS bytes, i.oid::bigint AS oid
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_am a ON a.oid = i.relam
WHERE n.nspname = :'space' AND t.relname = :'table' AND a.amname IN ('hnsw', 'ivfflat');

-- name: build_of
SELECT strategy, m, ef_construction, ef_search, rows, bytes, seconds, recall
FROM store.index_builds WHERE space = :'space' AND kind = :'kind';

-- name: count_rows
SELECT count(*) FROM :"space".:"table";

-- name: vacuum
-- Marks pages all-visible, so that "which texts are missing" reads the key's index and not 8 KB a row.
VACUUM (ANALYZE) :"space".:"table";

-- name: serial_build
SET max_parallel_maintenance_workers = 0;

-- name: parallel_build
RESET max_parallel_maintenance_workers;

-- name: build_binary
CREATE INDEX :"index" ON :"space".:"table"
USING hnsw ((binary_quantize(embedding)::bit(:dimensions)) bit_hamming_ops) WITH (m = :m, ef_construction = :ef_construction);

-- name: build_halfvec_of_halfvec
CREATE INDEX :"index" ON :"space".:"table"
USING hnsw (embedding halfvec_cosine_ops) WITH (m = :m, ef_construction = :ef_construction);

-- name: build_halfvec_of_vector
CREATE INDEX :"index" ON :"space".:"table"
USING hnsw ((embedding::halfvec(:dimensions)) halfvec_cosine_ops) WITH (m = :m, ef_construction = :ef_construction);

-- name: progress
SELECT p.phase, p.tuples_done, p.tuples_total
FROM pg_stat_progress_create_index p WHERE p.pid = :'pid';

-- name: drop_index
DROP INDEX IF EXISTS :"space".:"index";

-- name: rename_index
ALTER INDEX :"space".:"index" RENAME TO :"new_name";

-- name: record_build
INSERT INTO store.index_builds (space, kind, strategy, m, ef_construction, ef_search, rows, bytes, seconds)
VALUES (:'space', :'kind', :'strategy', :'m', :'ef_construction', :'ef_search', :'rows', :'bytes', :'seconds')
ON CONFLICT (space, kind) DO UPDATE SET
    strategy = excluded.strategy, m = excluded.m, ef_construction = excluded.ef_construction,
    ef_search = excluded.ef_search, rows = excluded.rows, bytes = excluded.bytes, seconds = excluded.seconds,
    built_at = now(), recall = NULL;

-- name: record_recall
UPDATE store.index_builds SET recall = :'recall', ef_search = :'ef_search' WHERE space = :'space' AND kind = :'kind';

-- name: set_strategy
UPDATE store.spaces SET strategy = :'strategy', ef_search = :'ef_search'
WHERE name = :'space' AND (strategy, ef_search) IS DISTINCT FROM (:'strategy', :'ef_search'::integer);

-- name: copy_vectors
COPY (SELECT text_hash, embedding FROM :"space".:"table") TO STDOUT (FORMAT BINARY);

-- name: sample_vectors
-- Random, but the same for the same rows: the smallest hashes of the hashes.
SELECT text_hash, embedding::real[] FROM :"space".:"table" WHERE text_hash = ANY (:'hashes');

-- name: sample_hashes
SELECT text_hash FROM :"space".:"table" ORDER BY sha256(text_hash) LIMIT :'limit';

-- name: session_search
SELECT set_config('hnsw.ef_search', :'ef_search', true), set_config('hnsw.iterative_scan', 'relaxed_order', true);

-- name: nearest_binary
SELECT 1 - (embedding <=> :'query'::halfvec) FROM (
    SELECT text_hash, embedding FROM :"space".:"view"
    ORDER BY bits <~> binary_quantize(:'query'::halfvec)::bit(:dimensions) LIMIT :'candidates') c
ORDER BY embedding <=> :'query'::halfvec, text_hash LIMIT :'k';

-- name: nearest_halfvec
SELECT 1 - (embedding <=> :'query'::halfvec) FROM (
    SELECT text_hash, embedding FROM :"space".:"view"
    ORDER BY half <=> :'query'::halfvec LIMIT :'candidates') c
ORDER BY embedding <=> :'query'::halfvec, text_hash LIMIT :'k';

-- name: nearest_none
SELECT 1 - (embedding <=> :'query'::halfvec) FROM :"space".:"view" ORDER BY (embedding <=> :'query'::halfvec) + 0, text_hash LIMIT :'k';

-- name: write_counters
-- Any write to a table moves its counters (TRUNCATE its file). Unchanged: unchanged rows, for a reset is dated: by
-- the server where a crash or a failover lost the counters, by the database where someone reset them.
SELECT schemaname || '.' || relname AS table, n_tup_ins AS inserted, n_tup_upd AS updated, n_tup_del AS deleted,
       relid::bigint AS oid, pg_relation_filenode(relid)::bigint AS file,
       extract(epoch FROM b.stats_reset)::text AS server_reset, extract(epoch FROM d.stats_reset)::text AS database_reset
FROM pg_stat_all_tables
JOIN pg_stat_bgwriter b ON b.stats_reset IS NOT NULL
JOIN pg_stat_database d ON d.datname = current_database()
WHERE (schemaname IN ('landing', 'staging', :'space') OR schemaname = 'store' AND starts_with(relname, 'test_'))
  AND current_setting('track_counts')::boolean
ORDER BY 1;

-- name: index_bytes_of
SELECT coalesce(sum(pg_relation_size(x.indexrelid)), 0)::bigint
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am a ON a.oid = i.relam
JOIN pg_class t ON t.oid = x.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = :'space' AND t.relname = :'table' AND a.amname = 'hnsw';

-- name: builds
SELECT kind, strategy, rows, bytes, round(seconds::numeric, 1)::float8 AS seconds, built_at::text AS built_at
FROM store.index_builds WHERE space = :'space' ORDER BY kind;
