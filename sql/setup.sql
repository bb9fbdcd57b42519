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

-- name: oldest_transactions
SELECT pid, usename, application_name FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
ORDER BY xact_start LIMIT 3;

-- name: record_schema_version
INSERT INTO store.schema_versions (name, checksum) VALUES (:'name', :'checksum');

-- name: configure_session
-- Of a client that vanished the server lets go, with its locks, after two minutes; by the kernel's own after two hours.
SELECT set_config('application_name', :'application_name', false),
       set_config('statement_timeout', :'statement_timeout', false),
       set_config('lock_timeout', :'lock_timeout', false),
       set_config('idle_in_transaction_session_timeout', '0', false),
       set_config('tcp_keepalives_idle', '60', false),
       set_config('tcp_keepalives_interval', '15', false),
       set_config('tcp_keepalives_count', '4', false),
       set_config('search_path', :'search_path', false);

-- name: try_advisory_lock
SELECT pg_try_advisory_lock(hashtext(:'name'));

-- name: advisory_lock
SELECT pg_advisory_lock(hashtext(:'name'));

-- name: try_lock_exclusive
SELECT pg_try_advisory_xact_lock(hashtext(:'name'));

-- name: lock_exclusive
SELECT pg_advisory_xact_lock(hashtext(:'name'));

-- name: try_lock_shared
SELECT pg_try_advisory_xact_lock_shared(hashtext(:'name'));

-- name: lock_shared
SELECT pg_advisory_xact_lock_shared(hashtext(:'name'));

-- name: advisory_unlock
SELECT pg_advisory_unlock(hashtext(:'name'));

-- name: advisory_lock_holders
-- Other roles' sessions hide when they began.
SELECT a.pid, a.application_name, to_char(coalesce(a.xact_start, a.state_change), 'YYYY-MM-DD HH24:MI:SS') AS since
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.objid::bigint = (hashtext(:'name')::bigint & 4294967295)
ORDER BY since NULLS LAST LIMIT 3;

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

-- name: wait_briefly
-- Who waits for a table or view that is being read makes all later readers wait behind it.
SELECT set_config('lock_timeout', '200ms', true);

-- name: flush_counters
-- What this session wrote is counted now, not up to 10 s later.
SELECT pg_stat_force_next_flush();

-- name: become_owner
-- The role is one of the server, the rooms are of this database: only where sql/roles.sql gave it those.
SELECT set_config('role', o.rolname, :'local')
FROM pg_namespace n JOIN pg_roles o ON o.oid = n.nspowner
WHERE n.nspname = 'store' AND o.rolname = 'qbench_owner' AND pg_has_role(session_user, o.oid, 'MEMBER');

-- name: step_down
RESET ROLE;
