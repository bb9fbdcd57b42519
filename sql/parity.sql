-- The invariants, asked of the whole database.

-- name: unaccounted_cases
-- What is due to be normalised is what normalize.sql calls due. What a rollback holds is accounted for by the hold.
SELECT c.id AS case_id,
       CASE WHEN s.case_id IS NULL AND r.case_id IS NULL THEN 'landed, but not normalised: materialise normalized_testdocs'
            WHEN h.due THEN 'normalised as it was before: materialise normalized_testdocs, and what follows it'
            WHEN d.test_case_id IS NULL THEN 'normalised, but not published: materialise doc_embeddings, step_embeddings and pg_tables'
            ELSE 'published as it was before: materialise doc_embeddings, step_embeddings and pg_tables' END AS wrong
FROM landing.cases c
LEFT JOIN landing.sections n ON n.key = c.section_key
LEFT JOIN landing.priorities p ON p.key = c.priority_key
LEFT JOIN landing.case_types t ON t.key = c.type_key
LEFT JOIN store.test_documents d ON d.test_case_id = c.id
LEFT JOIN staging.rejects r ON r.case_id = c.id
LEFT JOIN staging.test_documents s ON s.case_id = c.id
LEFT JOIN store.holds k ON k.test_case_id = c.id
CROSS JOIN LATERAL (
    SELECT coalesce(s.input_hash, r.input_hash) IS DISTINCT FROM
           sha256(c.content_hash || convert_to(concat_ws(E'\x1f', n.path, '', p.name, '', t.name), 'UTF8'))
           OR coalesce(s.recipe, r.recipe) <> :'recipe' AS due
) h
WHERE c.removed_at IS NULL
  AND (h.due OR (s.case_id IS NOT NULL AND k.test_case_id IS NULL AND d.doc_hash IS DISTINCT FROM s.doc_hash))
UNION ALL
SELECT d.test_case_id, 'published, but not in the source any more'
FROM store.test_documents d
LEFT JOIN landing.cases c ON c.id = d.test_case_id AND c.removed_at IS NULL
WHERE c.id IS NULL AND NOT EXISTS (SELECT FROM store.holds k WHERE k.test_case_id = d.test_case_id)
UNION ALL
SELECT d.test_case_id, 'published and rejected at once'
FROM store.test_documents d JOIN staging.rejects r ON r.case_id = d.test_case_id
WHERE NOT EXISTS (SELECT FROM store.holds k WHERE k.test_case_id = d.test_case_id)
UNION ALL
SELECT s.case_id, 'normalised, but not in the source any more: materialise normalized_testdocs'
FROM staging.test_documents s
LEFT JOIN landing.cases c ON c.id = s.case_id AND c.removed_at IS NULL
WHERE c.id IS NULL AND NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = s.case_id)
UNION ALL
SELECT s.case_id, 'normalised and rejected at once: materialise normalized_testdocs'
FROM staging.test_documents s JOIN staging.rejects r USING (case_id)
WHERE NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = s.case_id)
UNION ALL
SELECT r.case_id, 'rejected, but not in the source any more: materialise normalized_testdocs'
FROM staging.rejects r
LEFT JOIN landing.cases c ON c.id = r.case_id AND c.removed_at IS NULL
WHERE c.id IS NULL
ORDER BY 1;

-- name: changed_since_published
-- Published values against staged ones, of the cases that are published as they are now. For such a case to be
-- published again it is enough to forget the hash of what was published: it stays readable until then.
WITH same AS MATERIALIZED (
    SELECT s.case_id FROM staging.test_documents s
    JOIN store.test_documents t ON t.test_case_id = s.case_id
    WHERE CASE WHEN t.doc_hash = s.doc_hash THEN true END  -- a bare = is estimated to hold for one case, not for all
), different (case_id, what) AS (
    SELECT s.case_id, concat_ws(', ',
        CASE WHEN s.text_hash <> t.text_hash THEN 'text_hash' END,
        CASE WHEN s.uid <> t.uid THEN 'uid' END,
        CASE WHEN s.jira_key IS DISTINCT FROM t.jira_key THEN 'jira_key' END,
        CASE WHEN s.title <> t.title THEN 'title' END,
        CASE WHEN s.description IS DISTINCT FROM t.description THEN 'description' END,
        CASE WHEN s.summary IS DISTINCT FROM t.summary THEN 'summary' END,
        CASE WHEN s.test_type IS DISTINCT FROM t.test_type THEN 'test_type' END,
        CASE WHEN s.priority IS DISTINCT FROM t.priority THEN 'priority' END,
        CASE WHEN s.platforms <> t.platforms THEN 'platforms' END,
        CASE WHEN s.tags <> t.tags THEN 'tags' END,
        CASE WHEN s.folder_structure IS DISTINCT FROM t.folder_structure THEN 'folder_structure' END,
        CASE WHEN s.suite_id IS DISTINCT FROM t.suite_id THEN 'suite_id' END,
        CASE WHEN s.section_id IS DISTINCT FROM t.section_id THEN 'section_id' END,
        CASE WHEN s.project_id IS DISTINCT FROM t.project_id THEN 'project_id' END,
        CASE WHEN s.source <> t.source THEN 'source' END,
        CASE WHEN s.is_automated IS DISTINCT FROM t.is_automated THEN 'is_automated' END,
        CASE WHEN s.refs IS DISTINCT FROM t.refs THEN 'refs' END,
        CASE WHEN s.custom_fields <> t.custom_fields THEN 'custom_fields' END,
        CASE WHEN s.source_created_at IS DISTINCT FROM t.source_created_at THEN 'source_created_at' END,
        CASE WHEN s.source_updated_at IS DISTINCT FROM t.source_updated_at THEN 'source_updated_at' END)
    FROM staging.test_documents s JOIN store.test_documents t ON t.test_case_id = s.case_id
    UNION ALL
    SELECT coalesce(s.case_id, t.test_case_id),
           CASE WHEN t.test_case_id IS NULL THEN 'lacks ' WHEN s.case_id IS NULL THEN 'too many: ' ELSE '' END
           || 'step ' || coalesce(s.step_index, t.step_index)
    FROM staging.test_steps s
    FULL JOIN store.test_steps t ON t.test_case_id = s.case_id AND t.step_index = s.step_index
    WHERE (s.action, s.expected, s.data, s.text_hash) IS DISTINCT FROM (t.action, t.expected, t.data, t.text_hash)
    UNION ALL
    SELECT coalesce(s.case_id, t.test_case_id),
           CASE WHEN t.test_case_id IS NULL THEN 'lacks ' WHEN s.case_id IS NULL THEN 'too many: ' ELSE '' END
           || 'precondition ' || coalesce(s.order_index, t.order_index)
    FROM (SELECT d.case_id, p.ordinality - 1 AS order_index, p.condition FROM staging.test_documents d
          CROSS JOIN LATERAL unnest(d.preconditions) WITH ORDINALITY AS p (condition, ordinality)) s
    FULL JOIN store.test_preconditions t ON t.test_case_id = s.case_id AND t.order_index = s.order_index
    WHERE s.condition IS DISTINCT FROM t.condition
    UNION ALL
    SELECT coalesce(s.case_id, t.test_case_id),
           CASE WHEN t.test_case_id IS NULL THEN 'lacks ' WHEN s.case_id IS NULL THEN 'too many: ' ELSE '' END
           || 'related issue ' || coalesce(s.order_index, t.order_index)
    FROM (SELECT d.case_id, i.ordinality - 1 AS order_index, i.key, i.type FROM staging.test_documents d
          CROSS JOIN LATERAL unnest(d.issue_keys, d.issue_types) WITH ORDINALITY AS i (key, type, ordinality)) s
    FULL JOIN store.test_related_issues t ON t.test_case_id = s.case_id AND t.order_index = s.order_index
    WHERE (s.key, s.type) IS DISTINCT FROM (t.issue_key, t.issue_type)
)
SELECT c.compared, coalesce(d.total, 0) AS total, d.case_id, d.differs,
       format('UPDATE store.test_documents SET doc_hash = %L WHERE test_case_id = %s;', '', d.case_id)
       || ' then: qbench run' AS remedy
FROM (SELECT count(*) AS compared FROM same) c
LEFT JOIN (
    SELECT case_id, array_to_string((array_agg(what ORDER BY what))[:10], ', ') AS differs, count(*) OVER () AS total
    FROM different JOIN same USING (case_id) WHERE what <> ''
    GROUP BY case_id ORDER BY case_id LIMIT 100
) d ON true
ORDER BY d.case_id;

-- name: rejects
SELECT case_id, reason, detail FROM store.rejects ORDER BY reason, case_id LIMIT 1000;

-- name: cases_and_texts
-- What the source says beside what is published for it. What a rollback holds is of an older source.
SELECT c.id,
       jsonb_build_object('preconditions', c.raw -> 'preconditions', 'steps', c.raw -> 'steps',
                          'steps_separated', c.raw -> 'steps_separated', 'steps_combined', c.raw -> 'steps_combined'),
       ARRAY(SELECT p.condition FROM store.test_preconditions p WHERE p.test_case_id = c.id),
       ARRAY(SELECT concat_ws(E'\n', s.action, array_to_string(s.expected, E'\n'), s.data)
             FROM store.test_steps s WHERE s.test_case_id = c.id)
FROM landing.cases c
JOIN store.test_documents d ON d.test_case_id = c.id
WHERE c.removed_at IS NULL
  AND NOT EXISTS (SELECT FROM store.holds k WHERE k.test_case_id = c.id)
  AND c.raw ?| ARRAY['preconditions', 'steps', 'steps_separated', 'steps_combined'];

-- name: completeness
SELECT
    (SELECT count(*) FROM store.test_documents d
     WHERE NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = d.text_hash)) AS documents_without_vector,
    (SELECT count(*) FROM store.test_steps s
     WHERE NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = s.text_hash)) AS steps_without_vector,
    (SELECT count(*) FROM store.test_documents d
     WHERE NOT EXISTS (SELECT FROM store.test_words w
                       WHERE w.test_case_id = d.test_case_id AND w.recipe = store.words_recipe())) AS documents_without_words,
    (SELECT count(*) FROM store.test_steps s
     WHERE NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = s.test_case_id)) AS steps_without_document,
    (SELECT count(*) FROM store.test_preconditions p
     WHERE NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = p.test_case_id)) AS preconditions_without_document,
    (SELECT count(*) FROM store.test_related_issues i
     WHERE NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = i.test_case_id)) AS issues_without_document;

-- name: incomplete_cases
-- The rows that `completeness` counts, one by one.
SELECT d.test_case_id AS case_id, 'its document has no vector' AS wrong FROM store.test_documents d
WHERE NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = d.text_hash)
UNION ALL
SELECT s.test_case_id, 'step ' || s.step_index || ' has no vector' FROM store.test_steps s
WHERE NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = s.text_hash)
UNION ALL
SELECT d.test_case_id, 'a search by words does not see it: materialise pg_tables' FROM store.test_documents d
WHERE NOT EXISTS (SELECT FROM store.test_words w WHERE w.test_case_id = d.test_case_id AND w.recipe = store.words_recipe())
UNION ALL
SELECT o.test_case_id, o.name || ' has no document'
FROM (SELECT test_case_id, 'step ' || step_index AS name FROM store.test_steps
      UNION ALL SELECT test_case_id, 'precondition ' || order_index FROM store.test_preconditions
      UNION ALL SELECT test_case_id, 'related issue ' || order_index FROM store.test_related_issues) o
WHERE NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = o.test_case_id)
ORDER BY 1, 2 LIMIT 100;

-- name: excess_privileges
-- Each with what takes it away: from those it was granted to, or the memberships it comes by. What belongs to an
-- extension is the extension's to grant.
WITH reader AS (
    SELECT r.oid, (SELECT string_agg(m.roleid::regrole::text, ', ' ORDER BY m.roleid) FROM pg_auth_members m
                   WHERE m.member = r.oid) AS roles
    FROM pg_roles r WHERE r.rolname = 'qbench_reader'
), held AS (
    SELECT n.nspname AS object, p.privilege, format('SCHEMA %I', n.nspname) AS named,
           coalesce(n.nspacl, acldefault('n', n.nspowner)) AS acl
    FROM pg_namespace n, unnest(ARRAY['USAGE', 'CREATE']) AS p (privilege)
    WHERE has_schema_privilege('qbench_reader', n.oid, p.privilege)
      AND NOT (p.privilege = 'USAGE' AND n.nspname IN ('qbench', 'pg_catalog', 'information_schema', 'public', :'vector_schema'))
      AND n.nspname NOT LIKE 'pg\_temp%' AND n.nspname NOT LIKE 'pg\_toast%'
      AND NOT EXISTS (SELECT FROM pg_depend e
                      WHERE e.classid = 'pg_namespace'::regclass AND e.objid = n.oid AND e.deptype = 'e')
    UNION ALL
    SELECT n.nspname || '.' || c.relname, p.privilege, format('%I.%I', n.nspname, c.relname),
           coalesce(c.relacl, acldefault('r', c.relowner)) || coalesce(
               (SELECT array_agg(i) FROM pg_attribute a, unnest(a.attacl) i WHERE a.attrelid = c.oid), '{}'::aclitem[])
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
         unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p (privilege)
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
      AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_t%'
      AND (has_table_privilege('qbench_reader', c.oid, p.privilege)
           OR CASE WHEN p.privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')  -- those that columns have too
              THEN has_any_column_privilege('qbench_reader', c.oid, p.privilege) END)
      AND NOT (p.privilege = 'SELECT' AND n.nspname = 'qbench')
      AND NOT EXISTS (SELECT FROM pg_depend e
                      WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
    UNION ALL
    SELECT 'database ' || d.datname, 'CREATE', format('DATABASE %I', d.datname),
           coalesce(d.datacl, acldefault('d', d.datdba))
    FROM pg_database d
    WHERE d.datname = current_database() AND has_database_privilege('qbench_reader', d.oid, 'CREATE')
)
SELECT h.object, h.privilege,
       CASE WHEN g.grantees IS NOT NULL THEN format('REVOKE %s ON %s FROM %s;', h.privilege, h.named, g.grantees)
            WHEN r.roles IS NOT NULL THEN format('REVOKE %s FROM qbench_reader;', r.roles)
            ELSE 'ALTER ROLE qbench_reader NOSUPERUSER;' END AS remedy
FROM held h CROSS JOIN reader r
CROSS JOIN LATERAL (
    SELECT string_agg(DISTINCT CASE WHEN a.grantee = r.oid THEN 'qbench_reader' ELSE 'PUBLIC' END, ', ') AS grantees
    FROM aclexplode(h.acl) a WHERE a.privilege_type = h.privilege AND a.grantee IN (r.oid, 0)
) g
UNION ALL
SELECT 'role qbench_reader', attribute, format('ALTER ROLE qbench_reader NO%s;', attribute)
FROM pg_roles r, LATERAL (VALUES ('SUPERUSER', r.rolsuper), ('CREATEDB', r.rolcreatedb), ('CREATEROLE', r.rolcreaterole),
                                 ('BYPASSRLS', r.rolbypassrls), ('REPLICATION', r.rolreplication)) AS a (attribute, held)
WHERE r.rolname = 'qbench_reader' AND a.held
ORDER BY 1, 2;

-- name: missing_privileges
-- CASE, because asking about a role or schema that does not exist is an error.
SELECT v.name AS object, 'SELECT' AS privilege
FROM (VALUES ('qbench.test_documents'), ('qbench.test_steps'), ('qbench.test_preconditions'),
             ('qbench.test_related_issues'), ('qbench.active_space')) AS v (name)
WHERE CASE WHEN to_regclass(v.name) IS NOT NULL AND EXISTS (SELECT FROM pg_roles WHERE rolname = 'qbench_reader')
      THEN NOT (has_schema_privilege('qbench_reader', 'qbench', 'USAGE')
                AND has_table_privilege('qbench_reader', to_regclass(v.name), 'SELECT'))
      ELSE true END
UNION ALL
SELECT 'qbench.' || f.name, 'EXECUTE'
FROM (VALUES ('search_documents'), ('search_steps'), ('similar_documents'), ('search_hybrid'), ('find_by_jira_key')) AS f (name)
WHERE CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = 'qbench_reader')
      THEN NOT EXISTS (
        SELECT FROM pg_proc p WHERE p.pronamespace = to_regnamespace('qbench') AND p.proname = f.name
        AND has_function_privilege('qbench_reader', p.oid, 'EXECUTE'))
      ELSE true END
UNION ALL
SELECT 'schema ' || :'vector_schema', 'USAGE'
WHERE CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = 'qbench_reader')
      THEN NOT has_schema_privilege('qbench_reader', :'vector_schema', 'USAGE')
      ELSE true END;

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

-- name: search_functions
-- What searches are made of: a report says nothing of others.
SELECT md5(string_agg(pg_get_functiondef(p.oid), '' ORDER BY p.oid::regprocedure::text)) FROM pg_proc p
WHERE p.pronamespace IN ('qbench'::regnamespace, 'store'::regnamespace) AND p.prokind = 'f' AND p.proname NOT LIKE 'retired\_%';

-- name: last_report
SELECT id, created_at, passed, state_hash, report FROM store.parity_reports
WHERE space = :'space' ORDER BY id DESC LIMIT 1;

-- name: insert_report
INSERT INTO store.parity_reports (space, passed, state_hash, report)
VALUES (:'space', :'passed', :'state_hash', :'report') RETURNING id;
