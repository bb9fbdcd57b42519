-- The invariants, asked of the whole database.

-- name: unaccounted_cases
SELECT c.id AS case_id,
       CASE WHEN s.case_id IS NULL THEN 'landed, but not normalised: materialise normalized_testdocs'
            ELSE 'normalised, but not published: materialise doc_embeddings, step_embeddings and pg_tables' END AS wrong
FROM landing.cases c
LEFT JOIN store.test_documents d ON d.test_case_id = c.id
LEFT JOIN staging.rejects r ON r.case_id = c.id
LEFT JOIN staging.test_documents s ON s.case_id = c.id
WHERE c.removed_at IS NULL AND d.test_case_id IS NULL AND r.case_id IS NULL
UNION ALL
SELECT d.test_case_id, 'published, but not in the source any more'
FROM store.test_documents d
LEFT JOIN landing.cases c ON c.id = d.test_case_id AND c.removed_at IS NULL
WHERE c.id IS NULL
UNION ALL
SELECT d.test_case_id, 'published and rejected at once'
FROM store.test_documents d JOIN staging.rejects r ON r.case_id = d.test_case_id
ORDER BY 1;

-- name: rejects
SELECT case_id, reason, detail FROM staging.rejects
UNION ALL
SELECT case_id, reason, detail FROM landing.rejected_rows
ORDER BY reason, case_id LIMIT 1000;

-- name: cases_and_texts
-- What the source says beside what is published for it.
SELECT c.id,
       jsonb_build_object('preconditions', c.raw -> 'preconditions', 'steps', c.raw -> 'steps',
                          'steps_separated', c.raw -> 'steps_separated', 'steps_combined', c.raw -> 'steps_combined'),
       ARRAY(SELECT p.condition FROM store.test_preconditions p WHERE p.test_case_id = c.id),
       ARRAY(SELECT concat_ws(E'\n', s.action, array_to_string(s.expected, E'\n'), s.data)
             FROM store.test_steps s WHERE s.test_case_id = c.id)
FROM landing.cases c
JOIN store.test_documents d ON d.test_case_id = c.id
WHERE c.removed_at IS NULL
  AND c.raw ?| ARRAY['preconditions', 'steps', 'steps_separated', 'steps_combined'];

-- name: count_published
SELECT count(*) FROM store.test_documents;

-- name: completeness
SELECT
    (SELECT count(*) FROM store.test_documents d
     WHERE NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = d.text_hash)) AS documents_without_vector,
    (SELECT count(*) FROM store.test_steps s
     WHERE NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = s.text_hash)) AS steps_without_vector,
    (SELECT count(*) FROM store.test_steps s
     WHERE NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = s.test_case_id)) AS steps_without_document,
    (SELECT count(*) FROM store.test_preconditions p
     WHERE NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = p.test_case_id)) AS preconditions_without_document,
    (SELECT count(*) FROM store.test_related_issues i
     WHERE NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = i.test_case_id)) AS issues_without_document;

-- name: incomplete_cases
SELECT d.test_case_id AS case_id, 'its document has no vector' AS wrong FROM store.test_documents d
WHERE NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = d.text_hash)
UNION ALL
SELECT DISTINCT s.test_case_id, 'a step has no vector' FROM store.test_steps s
WHERE NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = s.text_hash)
ORDER BY 1 LIMIT 100;

-- name: excess_privileges
SELECT n.nspname AS object, p.privilege
FROM pg_namespace n, unnest(ARRAY['USAGE', 'CREATE']) AS p (privilege)
WHERE has_schema_privilege('qbench_reader', n.oid, p.privilege)
  AND NOT (p.privilege = 'USAGE' AND n.nspname IN ('qbench', 'pg_catalog', 'information_schema', 'public', :'vector_schema'))
  AND n.nspname NOT LIKE 'pg\_temp%' AND n.nspname NOT LIKE 'pg\_toast%'
UNION ALL
SELECT n.nspname || '.' || c.relname, p.privilege
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
     unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p (privilege)
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_t%'
  AND (has_table_privilege('qbench_reader', c.oid, p.privilege)
       OR CASE WHEN p.privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')  -- those that columns have too
          THEN has_any_column_privilege('qbench_reader', c.oid, p.privilege) END)
  AND NOT (p.privilege = 'SELECT' AND n.nspname = 'qbench')
UNION ALL
SELECT 'database ' || current_database(), 'CREATE'
WHERE has_database_privilege('qbench_reader', current_database(), 'CREATE')
UNION ALL
SELECT 'role qbench_reader', attribute
FROM pg_roles r, LATERAL (VALUES ('SUPERUSER', r.rolsuper), ('CREATEDB', r.rolcreatedb), ('CREATEROLE', r.rolcreaterole),
                                 ('BYPASSRLS', r.rolbypassrls), ('REPLICATION', r.rolreplication)) AS a (attribute, held)
WHERE r.rolname = 'qbench_reader' AND a.held
ORDER BY 1, 2;

-- name: missing_privileges
SELECT w.object, w.privilege
FROM (VALUES ('qbench.test_documents'), ('qbench.test_steps'), ('qbench.test_preconditions'),
             ('qbench.test_related_issues')) AS v (name),
     LATERAL (SELECT v.name AS object, 'SELECT' AS privilege) w
WHERE NOT (to_regclass(v.name) IS NOT NULL AND EXISTS (SELECT FROM pg_roles WHERE rolname = 'qbench_reader')
           AND has_schema_privilege('qbench_reader', 'qbench', 'USAGE')
           AND has_table_privilege('qbench_reader', to_regclass(v.name), 'SELECT'))
UNION ALL
SELECT 'qbench.' || f.name, 'EXECUTE'
FROM (VALUES ('search_documents'), ('search_steps')) AS f (name)
WHERE NOT EXISTS (
    SELECT FROM pg_proc p WHERE p.pronamespace = to_regnamespace('qbench') AND p.proname = f.name
    AND has_function_privilege('qbench_reader', p.oid, 'EXECUTE'));

-- name: reader_exists
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'qbench_reader');

-- name: provenance
SELECT 'doc' AS kind, provenance, count(*) AS vectors FROM :"space".doc_embeddings GROUP BY provenance
UNION ALL
SELECT 'step', provenance, count(*) FROM :"space".step_embeddings GROUP BY provenance
ORDER BY 1, 2;

-- name: sizes
SELECT n.nspname || '.' || c.relname AS relation, c.relkind::text AS kind, pg_total_relation_size(c.oid) AS bytes,
       pg_indexes_size(c.oid) AS index_bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname IN ('landing', 'staging', 'store', :'space')
ORDER BY 1;

-- name: versions
SELECT current_setting('server_version') AS postgresql,
       (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS pgvector;

-- name: last_report
SELECT id, created_at, passed, state_hash, report FROM store.parity_reports
WHERE space = :'space' ORDER BY id DESC LIMIT 1;

-- name: insert_report
INSERT INTO store.parity_reports (space, passed, state_hash, report)
VALUES (:'space', :'passed', :'state_hash', :'report') RETURNING id;
