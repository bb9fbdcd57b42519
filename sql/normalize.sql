-- The staging room: what landed cases normalise to.

-- name: pending_cases
-- A case is due when its row, the names it refers to, or the normaliser changed since it was staged.
SELECT c.id, h.input_hash, c.raw
FROM landing.cases c
LEFT JOIN landing.sections s ON s.key = c.section_key
LEFT JOIN landing.priorities p ON p.key = c.priority_key
LEFT JOIN landing.case_types t ON t.key = c.type_key
CROSS JOIN LATERAL (
    SELECT sha256(c.content_hash || convert_to(concat_ws(E'\x1f', s.path, '', p.name, '', t.name), 'UTF8')) AS input_hash
) h
LEFT JOIN staging.test_documents d ON d.case_id = c.id
LEFT JOIN staging.rejects r ON r.case_id = c.id
WHERE c.id >= :'lower' AND c.id < :'upper' AND c.removed_at IS NULL
  AND (coalesce(d.input_hash, r.input_hash) IS DISTINCT FROM h.input_hash
       OR coalesce(d.recipe, r.recipe) <> :'recipe')
ORDER BY c.id;

-- name: due_ranges
-- The same question for many ranges at once, and whether something that is gone is still staged.
SELECT r.key FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper)
WHERE EXISTS (
    SELECT FROM landing.cases c
    LEFT JOIN landing.sections s ON s.key = c.section_key
    LEFT JOIN landing.priorities p ON p.key = c.priority_key
    LEFT JOIN landing.case_types t ON t.key = c.type_key
    LEFT JOIN staging.test_documents d ON d.case_id = c.id
    LEFT JOIN staging.rejects j ON j.case_id = c.id
    WHERE c.id >= r.lower AND c.id < r.upper
      AND CASE WHEN c.removed_at IS NULL
          THEN coalesce(d.input_hash, j.input_hash) IS DISTINCT FROM
               sha256(c.content_hash || convert_to(concat_ws(E'\x1f', s.path, '', p.name, '', t.name), 'UTF8'))
               OR coalesce(d.recipe, j.recipe) <> :'recipe'
          ELSE d.case_id IS NOT NULL OR j.case_id IS NOT NULL END);

-- name: staged_counts
SELECT r.key,
       (SELECT count(*) FROM landing.cases
        WHERE id >= r.lower AND id < r.upper AND removed_at IS NULL) AS landed,
       (SELECT count(*) FROM staging.test_documents WHERE case_id >= r.lower AND case_id < r.upper) AS documents,
       (SELECT count(*) FROM staging.rejects WHERE case_id >= r.lower AND case_id < r.upper) AS rejects
FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper);

-- name: one_snapshot
-- The names a case gets and the input hash made of them have to be of the same moment.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;

-- name: lookups_version
SELECT sha256(coalesce(string_agg(convert_to(name, 'UTF8') || content_hash, '' ORDER BY name), ''))
FROM landing.lookup_tables WHERE name IN ('sections', 'priorities', 'case_types');

-- name: sections
SELECT key, name, raw ->> 'parent_id' AS parent_key FROM landing.sections;

-- name: priorities
SELECT key, name FROM landing.priorities;

-- name: case_types
SELECT key, name FROM landing.case_types;

-- name: delete_staged
WITH steps AS (
    DELETE FROM staging.test_steps WHERE case_id = ANY (:'ids')
), rejects AS (
    DELETE FROM staging.rejects WHERE case_id = ANY (:'ids')
)
DELETE FROM staging.test_documents WHERE case_id = ANY (:'ids');

-- name: delete_removed
WITH gone AS (
    SELECT id FROM landing.cases WHERE id >= :'lower' AND id < :'upper' AND removed_at IS NOT NULL
), steps AS (
    DELETE FROM staging.test_steps WHERE case_id IN (SELECT id FROM gone) RETURNING 1
), rejects AS (
    DELETE FROM staging.rejects WHERE case_id IN (SELECT id FROM gone) RETURNING 1
), documents AS (
    DELETE FROM staging.test_documents WHERE case_id IN (SELECT id FROM gone) RETURNING 1
)
SELECT (SELECT count(*) FROM steps) + (SELECT count(*) FROM rejects) + (SELECT count(*) FROM documents);

-- name: copy_documents
COPY staging.test_documents (
    case_id, input_hash, recipe, doc_hash, text_hash, uid, jira_key, title, description, summary, test_type,
    priority, platforms, tags, folder_structure, suite_id, section_id, project_id, source, is_automated, refs,
    custom_fields, source_created_at, source_updated_at, preconditions, issue_keys, issue_types, notes
) FROM STDIN (FORMAT BINARY);

-- name: copy_steps
COPY staging.test_steps (case_id, step_index, action, expected, data, text_hash) FROM STDIN (FORMAT BINARY);

-- name: copy_rejects
COPY staging.rejects (case_id, input_hash, recipe, reason, detail) FROM STDIN (FORMAT BINARY);
