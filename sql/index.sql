-- The approximate indexes of a space: build, watch, verify, swap, ask.
--
-- An index is used by a query that repeats its expression exactly; docs/adr/0017-index-advisor.md lists them.

-- name: existing
SELECT i.relname AS name, x.indisvalid AS valid, pg_relation_size(i.oid) AS bytes, i.oid::bigint AS oid,
       a.amname AS method, coalesce(i.reloptions, '{}') AS options
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_am a ON a.oid = i.relam
WHERE n.nspname = :'space' AND t.relname = :'table' AND a.amname IN ('hnsw', 'ivfflat')
ORDER BY i.relname;

-- name: build_of
SELECT strategy, m, ef_construction, lists, shortened, index_name, ef_search, rerank, rows, bytes, seconds, deleted,
       recall, curve, advice
FROM store.index_builds WHERE space = :'space' AND kind = :'kind';

-- name: count_rows
SELECT count(*) FROM :"space".:"table";

-- name: deleted_rows
-- Rows deleted or replaced so far, whose entries an index goes on holding or was repaired around.
SELECT n_tup_del + n_tup_upd FROM pg_stat_all_tables WHERE schemaname = :'space' AND relname = :'table';

-- name: vacuum
-- Marks pages all-visible, so that "which texts are missing" reads the key's index and not 8 KB a row.
VACUUM (ANALYZE) :"space".:"table";

-- name: orphans
-- Who builds an index of the table without holding our lock: what a killed client left behind.
SELECT p.pid FROM pg_stat_progress_create_index p JOIN pg_stat_activity a USING (pid)
WHERE p.relid = to_regclass(format('%I.%I', :'space'::text, :'table'::text)) AND a.application_name LIKE 'qbench index %'
  AND p.pid <> pg_backend_pid();

-- name: terminate
SELECT pg_terminate_backend(:'pid');

-- name: server
SELECT inet_server_addr() IS NULL OR inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1' AS local,
       current_setting('dynamic_shared_memory_type') AS shared_memory,
       pg_size_bytes(current_setting('maintenance_work_mem')) AS memory,
       current_setting('max_parallel_maintenance_workers')::integer AS workers;

-- name: provide_memory
SELECT set_config('maintenance_work_mem', :'memory', false);

-- name: provide_workers
SELECT set_config('max_parallel_maintenance_workers', :'workers', false);

-- name: reset_memory
RESET maintenance_work_mem;

-- name: reset_workers
RESET max_parallel_maintenance_workers;

-- name: build_binary
CREATE INDEX CONCURRENTLY :"index" ON :"space".:"table"
USING hnsw ((binary_quantize(embedding)::bit(:dimensions)) bit_hamming_ops) WITH (m = :m, ef_construction = :ef_construction);

-- name: build_subvector
CREATE INDEX CONCURRENTLY :"index" ON :"space".:"table"
USING hnsw ((subvector(embedding, 1, :shortened)::halfvec(:shortened)) halfvec_cosine_ops) WITH (m = :m, ef_construction = :ef_construction);

-- name: build_halfvec
CREATE INDEX CONCURRENTLY :"index" ON :"space".:"table"
USING hnsw ((embedding::halfvec(:dimensions)) halfvec_cosine_ops) WITH (m = :m, ef_construction = :ef_construction);

-- name: build_ivfflat
CREATE INDEX CONCURRENTLY :"index" ON :"space".:"table"
USING ivfflat ((embedding::halfvec(:dimensions)) halfvec_cosine_ops) WITH (lists = :lists);

-- name: progress
-- Also whom a build waits for: it begins and ends when no transaction is left that is older.
SELECT p.phase, CASE WHEN p.phase LIKE 'waiting%' THEN p.lockers_done ELSE p.tuples_done END AS done,
       CASE WHEN p.phase LIKE 'waiting%' THEN p.lockers_total ELSE p.tuples_total END AS total,
       a.pid AS waits_for, a.application_name AS waits_for_name, a.state AS waits_for_state
FROM pg_stat_progress_create_index p
LEFT JOIN pg_stat_activity a ON a.pid = p.current_locker_pid AND p.phase LIKE 'waiting%'
WHERE p.pid = :'pid';

-- name: drop_index
DROP INDEX CONCURRENTLY IF EXISTS :"space".:"index";

-- name: readers
-- Transactions with a snapshot in use: what began before the row of index_builds changed may still go by the old one.
-- The snapshot tells them apart, for other roles' sessions hide when they began.
SELECT pid, application_name, backend_xmin::text FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
  AND backend_type = 'client backend';

-- name: record_build
INSERT INTO store.index_builds (space, kind, strategy, m, ef_construction, lists, shortened, index_name, ef_search,
                                rerank, rows, bytes, seconds, deleted, recall, curve, advice)
VALUES (:'space', :'kind', :'strategy', :'m', :'ef_construction', :'lists', :'shortened', :'index_name', :'ef_search',
        :'rerank', :'rows', :'bytes', :'seconds', :'deleted', NULL, :'curve', :'advice')
ON CONFLICT (space, kind) DO UPDATE SET
    strategy = excluded.strategy, m = excluded.m, ef_construction = excluded.ef_construction, lists = excluded.lists,
    shortened = excluded.shortened, index_name = excluded.index_name, ef_search = excluded.ef_search,
    rerank = excluded.rerank, rows = excluded.rows, bytes = excluded.bytes, seconds = excluded.seconds,
    deleted = excluded.deleted, built_at = now(), recall = NULL, curve = excluded.curve, advice = excluded.advice;

-- name: record_search
UPDATE store.index_builds SET ef_search = :'ef_search', rerank = :'rerank', curve = :'curve'
WHERE space = :'space' AND kind = :'kind';

-- name: record_advice
UPDATE store.index_builds SET advice = :'advice' WHERE space = :'space' AND kind = :'kind';

-- name: record_recall
UPDATE store.index_builds SET recall = :'recall' WHERE space = :'space' AND kind = :'kind';

-- name: copy_vectors
COPY (SELECT text_hash, embedding FROM :"space".:"table") TO STDOUT (FORMAT BINARY);

-- name: sample_vectors
-- Random, but the same for the same rows: the smallest hashes of the hashes.
SELECT text_hash, embedding::real[] FROM :"space".:"table" WHERE text_hash = ANY (:'hashes');

-- name: sample_hashes
SELECT text_hash FROM :"space".:"table" ORDER BY sha256(text_hash) LIMIT :'limit';

-- name: create_sample
-- Not temporary: such tables have buffers of their own and take no parallel build.
CREATE UNLOGGED TABLE :"space".:"sample" (LIKE :"space".:"table" INCLUDING STORAGE);

-- name: fill_sample
INSERT INTO :"space".:"sample" SELECT * FROM :"space".:"table"
WHERE text_hash = ANY (ARRAY(SELECT text_hash FROM :"space".:"table" ORDER BY sha256(text_hash) LIMIT :size));

-- name: analyze
ANALYZE :"space".:"table";

-- name: drop_sample
DROP TABLE IF EXISTS :"space".:"sample";

-- name: session_search
SELECT set_config('hnsw.ef_search', :'ef_search', true), set_config('hnsw.iterative_scan', 'relaxed_order', true),
       set_config('ivfflat.probes', :'probes', true), set_config('ivfflat.iterative_scan', 'relaxed_order', true),
       set_config('plan_cache_mode', 'force_custom_plan', true);

-- name: prefer_index
-- Tells an index that cannot be used from one that is not worth its while.
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true);

-- name: nearest_binary
SELECT 1 - (embedding <=> :'query'::halfvec) FROM (
    SELECT text_hash, embedding FROM :"space".:"table"
    ORDER BY binary_quantize(embedding)::bit(:dimensions) <~> binary_quantize(:'query'::halfvec)::bit(:dimensions)
    LIMIT :'candidates') c
ORDER BY embedding <=> :'query'::halfvec, text_hash LIMIT :'k';

-- name: nearest_subvector
SELECT 1 - (embedding <=> :'query'::halfvec) FROM (
    SELECT text_hash, embedding FROM :"space".:"table"
    ORDER BY subvector(embedding, 1, :shortened)::halfvec(:shortened)
         <=> subvector(:'query'::halfvec, 1, :shortened)::halfvec(:shortened)
    LIMIT :'candidates') c
ORDER BY embedding <=> :'query'::halfvec, text_hash LIMIT :'k';

-- name: nearest_halfvec
SELECT 1 - (embedding <=> :'query'::halfvec) FROM (
    SELECT text_hash, embedding FROM :"space".:"table"
    ORDER BY embedding::halfvec(:dimensions) <=> :'query'::halfvec(:dimensions) LIMIT :'candidates') c
ORDER BY embedding <=> :'query'::halfvec, text_hash LIMIT :'k';

-- name: nearest_exact
-- Adding 0 keeps the planner from answering from an approximate index.
SELECT 1 - (embedding <=> :'query'::halfvec) FROM :"space".:"table"
ORDER BY (embedding <=> :'query'::halfvec) + 0, text_hash LIMIT :'k';

-- name: candidates_binary
-- In the order of the index: what each depth of rerank would find is read off one answer.
SELECT 1 - (embedding <=> :'query'::halfvec) FROM :"space".:"table"
ORDER BY binary_quantize(embedding)::bit(:dimensions) <~> binary_quantize(:'query'::halfvec)::bit(:dimensions)
LIMIT :'candidates';

-- name: candidates_subvector
SELECT 1 - (embedding <=> :'query'::halfvec) FROM :"space".:"table"
ORDER BY subvector(embedding, 1, :shortened)::halfvec(:shortened)
     <=> subvector(:'query'::halfvec, 1, :shortened)::halfvec(:shortened)
LIMIT :'candidates';

-- name: candidates_halfvec
SELECT 1 - (embedding <=> :'query'::halfvec) FROM :"space".:"table"
ORDER BY embedding::halfvec(:dimensions) <=> :'query'::halfvec(:dimensions) LIMIT :'candidates';

-- name: explain_binary
EXPLAIN (FORMAT JSON) SELECT text_hash FROM :"space".:"table"
ORDER BY binary_quantize(embedding)::bit(:dimensions) <~> binary_quantize(:'query'::halfvec)::bit(:dimensions) LIMIT 40;

-- name: explain_subvector
EXPLAIN (FORMAT JSON) SELECT text_hash FROM :"space".:"table"
ORDER BY subvector(embedding, 1, :shortened)::halfvec(:shortened)
     <=> subvector(:'query'::halfvec, 1, :shortened)::halfvec(:shortened) LIMIT 40;

-- name: explain_halfvec
EXPLAIN (FORMAT JSON) SELECT text_hash FROM :"space".:"table"
ORDER BY embedding::halfvec(:dimensions) <=> :'query'::halfvec(:dimensions) LIMIT 40;

-- name: explain_search_of_view
-- The query of the application's own SQL.
EXPLAIN (FORMAT JSON) SELECT test_case_id FROM qbench.test_documents
ORDER BY embedding <=> :'query'::halfvec(:dimensions) LIMIT 10;

-- name: call_search_documents
SELECT count(*) FROM qbench.search_documents(:'query'::vector, k => 10);

-- name: call_search_steps
SELECT count(*) FROM qbench.search_steps(:'query'::vector, k => 10);

-- name: scans_of
-- How often this transaction has read the index.
SELECT pg_stat_get_xact_numscans(to_regclass(format('%I.%I', :'space'::text, :'index'::text)));

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

-- name: builds
SELECT kind, strategy, m, ef_construction, lists, shortened, ef_search, rerank, rows, bytes,
       round(seconds::numeric, 1)::float8 AS seconds, built_at::text AS built_at, curve, advice
FROM store.index_builds WHERE space = :'space' ORDER BY kind;
