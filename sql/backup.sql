-- What a backup records, and what tells that a restored database is the one that was backed up.

-- name: snapshot
SELECT pg_export_snapshot();

-- name: fix_text
-- Rows are hashed as text: it may not depend on the session.
SELECT set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO, YMD', true),
       set_config('IntervalStyle', 'postgres', true), set_config('extra_float_digits', '1', true),
       set_config('bytea_output', 'hex', true);

-- name: rooms
-- Dagster's own schema is not one of them: its runs are of the machine that made them.
SELECT nspname AS schema, pg_get_userbyid(nspowner)::text AS owner FROM pg_namespace
WHERE nspname IN ('landing', 'staging', 'store', 'qbench') OR starts_with(nspname, 'space_')
ORDER BY 1;

-- name: tables
-- `send` makes the bytes of a vector. As text, 3,072 dimensions take nine times as long to hash.
SELECT n.nspname AS schema, c.relname AS table, c.oid::bigint AS oid, greatest(c.reltuples, 0)::bigint AS about_rows,
       (SELECT t.typname || '_send' FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = c.oid AND a.attname = 'embedding' AND t.typname IN ('halfvec', 'vector')
          AND (SELECT array_agg(b.attname::text ORDER BY b.attname) FROM pg_attribute b
               WHERE b.attrelid = c.oid AND b.attnum > 0 AND NOT b.attisdropped)
              = '{created_at,embedding,pieces,provenance,text_hash}') AS send
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname = ANY (:'schemas')
ORDER BY 1, 2;

-- name: hash_rows
-- The sum of the rows' SHA-256, in two lanes of 64 bits: the same in whatever order they are read.
SELECT count(*) AS rows,
       coalesce(sum(('x' || left(h, 16))::bit(64)::bigint), 0) || ' '
           || coalesce(sum(('x' || substr(h, 17, 16))::bit(64)::bigint), 0) AS hash
FROM (SELECT encode(sha256(convert_to(hashed_row::text, 'UTF8')), 'hex') AS h FROM :"schema".:"table" AS hashed_row) hashed;

-- name: hash_vectors
SELECT count(*) AS rows,
       coalesce(sum(('x' || left(h, 16))::bit(64)::bigint), 0) || ' '
           || coalesce(sum(('x' || substr(h, 17, 16))::bit(64)::bigint), 0) AS hash
FROM (SELECT encode(sha256(:"send"(embedding)
                           || convert_to(ROW(text_hash, provenance, created_at, pieces)::text, 'UTF8')), 'hex') AS h
      FROM :"schema".:"table") hashed;

-- name: copied
-- What pg_dump and pg_restore are at. A role sees its own sessions.
SELECT p.relid::bigint AS oid, p.tuples_processed AS rows
FROM pg_stat_progress_copy p JOIN pg_stat_activity a USING (pid) WHERE a.application_name = :'name';

-- name: may_create
SELECT has_database_privilege(current_database(), 'CREATE');

-- name: create_in
-- Where CREATE EXTENSION puts it; quoted, for a name of any kind.
SELECT set_config('search_path', quote_ident(:'schema'), false);

-- name: has_documents
SELECT to_regclass('store.test_documents') IS NOT NULL;

-- name: published
SELECT count(*) FROM store.test_documents;

-- name: reader_exists
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'qbench_reader');

-- name: create_reader
CREATE ROLE qbench_reader NOLOGIN;

-- name: roles
SELECT rolname::text FROM pg_roles;

-- name: builds
SELECT space, kind, strategy, m, ef_construction, lists, shortened, index_name, ef_search, rerank, rows
FROM store.index_builds WHERE index_name IS NOT NULL ORDER BY space, kind;

-- name: vacuum
-- Statistics do not come with a dump; the search by words goes by them, and which vectors are missing by the map of
-- all-visible pages.
VACUUM (ANALYZE) :"schema".:"table";

-- name: drop_room
DROP SCHEMA IF EXISTS :"schema" CASCADE;
