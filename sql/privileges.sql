-- What the roles of roles.sql may do beyond what they should, and what the pipeline lacks. What the application may do is
-- parity.sql's. Where qbench_owner does not own the rooms, roles.sql was not run here, and nothing is asked.

-- name: excess_of_pipeline
WITH owner AS (
    SELECT o.oid FROM pg_roles o JOIN pg_namespace n ON n.nspowner = o.oid
    WHERE o.rolname = 'qbench_owner' AND n.nspname = 'store'
), rooms AS (
    SELECT n.oid, n.nspname, n.nspowner FROM pg_namespace n CROSS JOIN owner
    WHERE n.nspname IN ('landing', 'staging', 'store', 'qbench') OR n.nspname IN (SELECT name FROM store.spaces)
), roles AS (
    SELECT r.* FROM pg_roles r CROSS JOIN owner WHERE r.rolname IN ('qbench_owner', 'qbench_writer')
)
SELECT 'role ' || r.rolname AS object, a.attribute AS privilege, format('ALTER ROLE %I NO%s;', r.rolname, a.attribute) AS remedy
FROM roles r, LATERAL (VALUES ('LOGIN', r.rolcanlogin), ('SUPERUSER', r.rolsuper), ('CREATEDB', r.rolcreatedb),
                              ('CREATEROLE', r.rolcreaterole), ('BYPASSRLS', r.rolbypassrls),
                              ('REPLICATION', r.rolreplication)) AS a (attribute, held)
WHERE a.held
UNION ALL
SELECT 'role qbench_writer', 'INHERIT of qbench_owner', 'REVOKE qbench_owner FROM qbench_writer; then: qbench roles | psql'
FROM roles r WHERE r.rolname = 'qbench_writer' AND pg_has_role(r.oid, 'qbench_owner', 'USAGE')
UNION ALL
SELECT 'schema ' || n.nspname, 'CREATE of qbench_writer', format('REVOKE CREATE ON SCHEMA %I FROM qbench_writer, PUBLIC;', n.nspname)
FROM rooms n CROSS JOIN roles r
WHERE r.rolname = 'qbench_writer' AND NOT pg_has_role(r.oid, 'qbench_owner', 'USAGE')
  AND has_schema_privilege(r.oid, n.oid, 'CREATE')
UNION ALL
SELECT 'schema ' || n.nspname, 'ownership of ' || pg_get_userbyid(n.nspowner), 'qbench roles | psql'
FROM rooms n CROSS JOIN owner WHERE n.nspowner <> owner.oid
UNION ALL
SELECT n.nspname || '.' || c.relname, 'ownership of ' || pg_get_userbyid(c.relowner), 'qbench roles | psql'
FROM pg_class c JOIN rooms n ON n.oid = c.relnamespace CROSS JOIN owner
WHERE c.relkind IN ('r', 'p', 'v', 'm') AND c.relowner <> owner.oid
ORDER BY 1, 2;

-- name: missing_of_pipeline
SELECT n.nspname || '.' || c.relname AS object, p.privilege || ' for qbench_writer' AS privilege
FROM pg_namespace s
JOIN pg_namespace n ON n.nspname IN ('landing', 'staging', 'store', 'qbench') OR n.nspname IN (SELECT name FROM store.spaces)
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'S'),
     unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (privilege)
WHERE s.nspname = 'store' AND s.nspowner = (SELECT oid FROM pg_roles WHERE rolname = 'qbench_owner')
  AND (c.relkind NOT IN ('v', 'S') OR p.privilege = 'SELECT')
  AND CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = 'qbench_writer')
      THEN NOT (has_schema_privilege('qbench_writer', n.oid, 'USAGE') AND has_table_privilege('qbench_writer', c.oid, p.privilege))
      ELSE true END
ORDER BY 1, 2;
