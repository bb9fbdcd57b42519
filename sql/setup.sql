-- What has to be known or done before any room exists.

-- name: server
SELECT current_setting('server_version_num')::integer AS version_number,
       current_setting('server_version') AS version,
       current_database() AS database,
       current_user AS role;

-- name: vector_available
SELECT default_version FROM pg_available_extensions WHERE name = 'vector';

-- name: vector_installed
SELECT e.extversion AS version, n.nspname AS schema
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'vector';

-- name: create_vector
CREATE EXTENSION IF NOT EXISTS vector;

-- name: lock_migrations
SELECT pg_advisory_xact_lock(hashtext('qbench migrations'));

-- name: create_schema_versions
CREATE TABLE IF NOT EXISTS store.schema_versions (
    name       text PRIMARY KEY,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: schema_versions_exist
SELECT to_regclass('store.schema_versions') IS NOT NULL;

-- name: schema_versions
SELECT name, checksum FROM store.schema_versions;

-- name: record_schema_version
INSERT INTO store.schema_versions (name, checksum) VALUES (:'name', :'checksum');

-- name: configure_session
SELECT set_config('application_name', :'application_name', false),
       set_config('statement_timeout', :'statement_timeout', false),
       set_config('lock_timeout', :'lock_timeout', false),
       set_config('idle_in_transaction_session_timeout', '0', false),
       set_config('search_path', :'search_path', false);

-- name: try_advisory_lock
SELECT pg_try_advisory_lock(hashtext(:'name'));

-- name: advisory_lock
SELECT pg_advisory_lock(hashtext(:'name'));

-- name: lock_range
-- Two runs over the same case range take turns, stage by stage.
SELECT pg_advisory_xact_lock(hashtext('qbench ' || :'key'));

-- name: advisory_unlock
SELECT pg_advisory_unlock(hashtext(:'name'));

-- name: advisory_lock_holder
SELECT a.pid, a.application_name
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.objid::bigint = (hashtext(:'name')::bigint & 4294967295)
LIMIT 1;

-- name: database_exists
SELECT EXISTS (SELECT FROM pg_database WHERE datname = :'name');

-- name: create_database
CREATE DATABASE :"name";

-- name: relax_commits
-- Dagster commits every event by itself; losing the last half second of its log in a power cut is fine.
ALTER DATABASE :"name" SET synchronous_commit = off;

-- name: schema_exists
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :'name');

-- name: vector_usable
SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = :'schema';

-- name: schema_usable
-- Dagster makes its tables there once.
SELECT has_schema_privilege(:'name', 'CREATE') OR EXISTS (
    SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = :'name' AND c.relname = 'runs');

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS :"name";

-- name: flush_counters
-- What this session wrote is counted now, not up to 10 s later.
SELECT pg_stat_force_next_flush();
