-- The store room: complete cases of staging, set-based, one transaction a partition.

-- name: lift_holds
-- What a rollback put back is left as it is until the source changes again.
DELETE FROM store.held_cases h
WHERE h.test_case_id >= :'lower' AND h.test_case_id < :'upper'
  AND h.staged_hash IS DISTINCT FROM (
      SELECT s.doc_hash FROM staging.test_documents s WHERE s.case_id = h.test_case_id);

-- name: create_due
-- What is about to change, by the hash of what is published now (null: nothing) and of what will be.
CREATE TEMPORARY TABLE due (case_id bigint PRIMARY KEY, before_hash bytea, after_hash bytea) ON COMMIT DROP;

-- name: select_gone
-- Cases that staging no longer holds: removed from the source, or rejected since.
INSERT INTO pg_temp.due (case_id, before_hash)
SELECT t.test_case_id, t.doc_hash
FROM store.test_documents t
WHERE t.test_case_id >= :'lower' AND t.test_case_id < :'upper'
  AND NOT EXISTS (SELECT FROM staging.test_documents s WHERE s.case_id = t.test_case_id)
  AND NOT EXISTS (SELECT FROM store.held_cases h WHERE h.test_case_id = t.test_case_id);

-- name: removals
-- Of each range with a case to take away: how many are published, how many of them would go, and a few of those.
SELECT r.key, d.published, cardinality(g.ids) AS gone, g.ids[:5] AS examples
FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper)
CROSS JOIN LATERAL (
    SELECT count(*) AS published FROM store.test_documents
    WHERE test_case_id >= r.lower AND test_case_id < r.upper) d
CROSS JOIN LATERAL (
    SELECT array_agg(t.test_case_id ORDER BY t.test_case_id) AS ids
    FROM store.test_documents t
    WHERE t.test_case_id >= r.lower AND t.test_case_id < r.upper
      AND NOT EXISTS (SELECT FROM staging.test_documents s WHERE s.case_id = t.test_case_id)
      AND NOT EXISTS (SELECT FROM store.holds h WHERE h.test_case_id = t.test_case_id)) g
WHERE g.ids IS NOT NULL
ORDER BY r.lower;

-- name: select_due
-- Changed since it was published, and complete: the document and every step have their vector.
INSERT INTO pg_temp.due (case_id, before_hash, after_hash)
SELECT s.case_id, t.doc_hash, s.doc_hash
FROM staging.test_documents s
LEFT JOIN store.test_documents t ON t.test_case_id = s.case_id
WHERE s.case_id >= :'lower' AND s.case_id < :'upper'
  AND t.doc_hash IS DISTINCT FROM s.doc_hash
  AND NOT EXISTS (SELECT FROM store.held_cases h WHERE h.test_case_id = s.case_id)
  AND EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = s.text_hash)
  AND NOT EXISTS (
      SELECT FROM staging.test_steps p
      WHERE p.case_id = s.case_id
        AND NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = p.text_hash));

-- name: analyze_due
ANALYZE pg_temp.due;

-- name: delete_gone
-- Steps and whatever else belongs to a case go with it.
DELETE FROM store.test_documents WHERE test_case_id IN (SELECT case_id FROM pg_temp.due WHERE after_hash IS NULL);

-- name: upsert_documents
INSERT INTO store.test_documents AS t (
    test_case_id, doc_hash, text_hash, uid, jira_key, title, description, summary, test_type, priority, platforms,
    tags, folder_structure, suite_id, section_id, project_id, source, is_automated, refs, custom_fields,
    source_created_at, source_updated_at)
SELECT case_id, doc_hash, text_hash, uid, jira_key, title, description, summary, test_type, priority, platforms,
    tags, folder_structure, suite_id, section_id, project_id, source, is_automated, refs, custom_fields,
    source_created_at, source_updated_at
FROM staging.test_documents s JOIN pg_temp.due USING (case_id)
ORDER BY case_id
ON CONFLICT (test_case_id) DO UPDATE SET
    doc_hash = excluded.doc_hash, text_hash = excluded.text_hash, uid = excluded.uid,
    jira_key = excluded.jira_key, title = excluded.title, description = excluded.description,
    summary = excluded.summary, test_type = excluded.test_type, priority = excluded.priority,
    platforms = excluded.platforms, tags = excluded.tags, folder_structure = excluded.folder_structure,
    suite_id = excluded.suite_id, section_id = excluded.section_id, project_id = excluded.project_id,
    source = excluded.source, is_automated = excluded.is_automated, refs = excluded.refs,
    custom_fields = excluded.custom_fields, source_created_at = excluded.source_created_at,
    source_updated_at = excluded.source_updated_at, updated_at = now();

-- name: delete_steps
DELETE FROM store.test_steps WHERE test_case_id IN (SELECT case_id FROM pg_temp.due);

-- name: delete_preconditions
DELETE FROM store.test_preconditions WHERE test_case_id IN (SELECT case_id FROM pg_temp.due);

-- name: delete_related_issues
DELETE FROM store.test_related_issues WHERE test_case_id IN (SELECT case_id FROM pg_temp.due);

-- name: insert_steps
INSERT INTO store.test_steps (test_case_id, step_index, action, expected, data, text_hash)
SELECT s.case_id, s.step_index, s.action, s.expected, s.data, s.text_hash
FROM staging.test_steps s JOIN pg_temp.due USING (case_id)
ORDER BY s.case_id, s.step_index;

-- name: insert_preconditions
INSERT INTO store.test_preconditions (test_case_id, order_index, condition)
SELECT s.case_id, p.ordinality - 1, p.condition
FROM staging.test_documents s JOIN pg_temp.due USING (case_id)
CROSS JOIN LATERAL unnest(s.preconditions) WITH ORDINALITY AS p (condition, ordinality)
ORDER BY s.case_id, p.ordinality;

-- name: insert_related_issues
INSERT INTO store.test_related_issues (test_case_id, order_index, issue_key, issue_type)
SELECT s.case_id, i.ordinality - 1, i.key, i.type
FROM staging.test_documents s JOIN pg_temp.due USING (case_id)
CROSS JOIN LATERAL unnest(s.issue_keys, s.issue_types) WITH ORDINALITY AS i (key, type, ordinality)
ORDER BY s.case_id, i.ordinality;

-- name: delete_words
DELETE FROM store.test_words WHERE test_case_id IN (SELECT case_id FROM pg_temp.due);

-- name: insert_words
-- Of the cases just published, and of those whose words are missing or of an older recipe. The preconditions are in
-- the description, word for word.
INSERT INTO store.test_words (test_case_id, words, recipe)
SELECT d.test_case_id,
       setweight(store.words_of(concat_ws(' ', d.title, d.jira_key, 'C' || d.test_case_id, d.uid, d.refs, (
           SELECT string_agg(i.issue_key, ' ' ORDER BY i.order_index)
           FROM store.test_related_issues i WHERE i.test_case_id = d.test_case_id))), 'A')
    || setweight(store.words_of(concat_ws(' ', d.folder_structure, array_to_string(d.tags, ' '), d.summary,
                                          d.description)), 'B')
    || setweight(store.words_of((
           SELECT string_agg(concat_ws(' ', s.action, array_to_string(s.expected, ' '), s.data), ' ' ORDER BY s.step_index)
           FROM store.test_steps s WHERE s.test_case_id = d.test_case_id)), 'D'),
       store.words_recipe()
FROM store.test_documents d
WHERE d.test_case_id >= :'lower' AND d.test_case_id < :'upper'
  AND NOT EXISTS (
      SELECT FROM store.test_words w WHERE w.test_case_id = d.test_case_id AND w.recipe = store.words_recipe())
ON CONFLICT (test_case_id) DO UPDATE SET words = excluded.words, recipe = excluded.recipe;

-- name: due_ranges
-- Ranges with a case to publish, complete or not, or to take away, one that is not to be held any more, or one whose
-- words are missing or of an older recipe.
SELECT r.key FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper)
WHERE EXISTS (
    SELECT FROM staging.test_documents s LEFT JOIN store.test_documents t ON t.test_case_id = s.case_id
    WHERE s.case_id >= r.lower AND s.case_id < r.upper AND t.doc_hash IS DISTINCT FROM s.doc_hash
      AND NOT EXISTS (SELECT FROM store.held_cases h WHERE h.test_case_id = s.case_id))
OR EXISTS (
    SELECT FROM store.test_documents t LEFT JOIN staging.test_documents s ON s.case_id = t.test_case_id
    WHERE t.test_case_id >= r.lower AND t.test_case_id < r.upper AND s.case_id IS NULL
      AND NOT EXISTS (SELECT FROM store.held_cases h WHERE h.test_case_id = t.test_case_id))
OR EXISTS (
    SELECT FROM store.held_cases h LEFT JOIN staging.test_documents s ON s.case_id = h.test_case_id
    WHERE h.test_case_id >= r.lower AND h.test_case_id < r.upper AND s.doc_hash IS DISTINCT FROM h.staged_hash)
OR EXISTS (
    SELECT FROM store.test_documents t
    LEFT JOIN store.test_words w ON w.test_case_id = t.test_case_id AND w.recipe = store.words_recipe()
    WHERE t.test_case_id >= r.lower AND t.test_case_id < r.upper AND w.test_case_id IS NULL);

-- name: partition_counts
-- A case that a rollback keeps out counts as rejected. One that it brought back is published beside what the source has.
SELECT r.key, c.landed + j.kept_aside AS source_cases, d.published, x.rejected + j.kept_aside + h.kept_out AS rejected,
       i.incomplete, p.steps, h.held, h.brought_back
FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper)
CROSS JOIN LATERAL (
    SELECT count(*) AS landed FROM landing.cases
    WHERE id >= r.lower AND id < r.upper AND removed_at IS NULL) c
CROSS JOIN LATERAL (
    -- Rows without a usable id are accounted for in the first range, the one that begins at 1.
    SELECT count(*) AS kept_aside FROM landing.rejected_rows
    WHERE CASE WHEN case_id IS NULL THEN r.lower = 1 ELSE case_id >= r.lower AND case_id < r.upper END) j
CROSS JOIN LATERAL (
    SELECT count(*) AS published FROM store.test_documents
    WHERE test_case_id >= r.lower AND test_case_id < r.upper) d
CROSS JOIN LATERAL (
    SELECT count(*) AS rejected FROM staging.rejects WHERE case_id >= r.lower AND case_id < r.upper) x
CROSS JOIN LATERAL (
    SELECT count(*) AS steps FROM store.test_steps
    WHERE test_case_id >= r.lower AND test_case_id < r.upper) p
CROSS JOIN LATERAL (
    SELECT count(*) AS held, count(*) FILTER (WHERE NOT published) AS kept_out,
           count(*) FILTER (WHERE published AND staged_hash IS NULL) AS brought_back
    FROM store.holds WHERE test_case_id >= r.lower AND test_case_id < r.upper) h
CROSS JOIN LATERAL (
    SELECT count(*) AS incomplete
    FROM staging.test_documents s LEFT JOIN store.test_documents t ON t.test_case_id = s.case_id
    WHERE s.case_id >= r.lower AND s.case_id < r.upper AND t.doc_hash IS DISTINCT FROM s.doc_hash
      AND NOT EXISTS (SELECT FROM store.held_cases h
                      WHERE h.test_case_id = s.case_id AND h.staged_hash = s.doc_hash)) i
ORDER BY r.lower;

-- name: incomplete_cases
SELECT s.case_id
FROM staging.test_documents s LEFT JOIN store.test_documents t ON t.test_case_id = s.case_id
WHERE s.case_id >= :'lower' AND s.case_id < :'upper' AND t.doc_hash IS DISTINCT FROM s.doc_hash
  AND NOT EXISTS (SELECT FROM store.held_cases h WHERE h.test_case_id = s.case_id AND h.staged_hash = s.doc_hash)
ORDER BY s.case_id LIMIT 10;

-- name: analyze_documents
ANALYZE store.test_documents, store.test_steps, store.test_preconditions, store.test_related_issues, store.test_words;

-- name: column_types
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = to_regclass(:'relation') AND attnum > 0 AND NOT attisdropped
ORDER BY attnum;

-- name: drop_views
DROP VIEW IF EXISTS qbench.test_documents, qbench.test_steps;

-- name: readers
-- Who holds a lock on the views, the longest first.
SELECT DISTINCT a.pid, a.usename, a.application_name, a.state, round(extract(epoch FROM now() - a.xact_start))::bigint AS seconds
FROM pg_locks l
JOIN pg_class c ON c.oid = l.relation AND c.relnamespace = to_regnamespace('qbench')
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY seconds DESC NULLS LAST LIMIT 3;
