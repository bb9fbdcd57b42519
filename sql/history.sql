-- The history of what is published: what each sync changed, and undoing one. pg_temp.due is publish.sql's.

-- name: record_sync
-- The entry of a run, made by the first of its transactions that changes something; numbers stay without gaps.
WITH counted AS (
    SELECT count(*) FILTER (WHERE before_hash IS NULL) AS added,
           count(*) FILTER (WHERE before_hash IS NOT NULL AND after_hash IS NOT NULL) AS changed,
           count(*) FILTER (WHERE after_hash IS NULL) AS removed
    FROM pg_temp.due
), grown AS (
    UPDATE store.sync_runs r
    SET added = r.added + c.added, changed = r.changed + c.changed, removed = r.removed + c.removed, finished_at = NULL,
        partitions = array_remove(partitions, :'key') || :'key'::text
    FROM counted c WHERE r.run_id = :'run_id'
    RETURNING r.id
), made AS (
    INSERT INTO store.sync_runs (kind, run_id, by, partitions, added, changed, removed)
    SELECT 'sync', :'run_id', :'by', ARRAY[:'key'::text], added, changed, removed FROM counted
    WHERE NOT EXISTS (SELECT FROM grown)
    RETURNING id
)
SELECT id FROM grown UNION ALL SELECT id FROM made;

-- name: record_rollback
INSERT INTO store.sync_runs (kind, by, finished_at, partitions, added, changed, removed, undoes)
SELECT 'rollback', :'by', clock_timestamp(), r.partitions,
       count(*) FILTER (WHERE u.before_hash IS NULL),
       count(*) FILTER (WHERE u.before_hash IS NOT NULL AND u.after_hash IS NOT NULL),
       count(*) FILTER (WHERE u.after_hash IS NULL), r.id
FROM store.sync_runs r CROSS JOIN pg_temp.due u WHERE r.id = :'sync_id'
GROUP BY r.id
RETURNING id;

-- name: log_changes
-- A step that is tried again changes a case twice in one run: what was before stays what it was.
INSERT INTO store.change_log (sync_id, test_case_id, before_hash, after_hash)
SELECT :'sync_id', case_id, before_hash, after_hash FROM pg_temp.due
ON CONFLICT (sync_id, test_case_id) DO UPDATE SET after_hash = excluded.after_hash;

-- name: keep_replaced
-- What is about to be replaced or removed. A hash names what the source had: should someone have written to the store
-- since, what was published last is kept.
INSERT INTO store.case_versions (test_case_id, doc_hash, content)
SELECT v.test_case_id, v.doc_hash, v.content
FROM store.current_versions v JOIN pg_temp.due u ON u.case_id = v.test_case_id
WHERE u.before_hash IS NOT NULL
ON CONFLICT (test_case_id, doc_hash) DO UPDATE SET content = excluded.content, saved_at = now();

-- name: finish_run
UPDATE store.sync_runs SET finished_at = clock_timestamp() WHERE run_id = :'run_id' AND finished_at IS NULL;

-- name: overdue
-- By its end: a run may take longer than the history is kept. One without an end was killed, or goes on: no run takes a
-- week. A rollback whose holds are in effect stays: undoing it lifts them.
SELECT array_agg(id) FROM store.sync_runs r
WHERE purged_at IS NULL
  AND coalesce(finished_at, started_at + interval '7 days') < now() - make_interval(days => :'days')
  AND NOT EXISTS (SELECT FROM store.held_cases h WHERE h.sync_id = r.id);

-- name: purge_changes
WITH gone AS (DELETE FROM store.change_log WHERE sync_id = ANY (:'ids') RETURNING 1),
     marked AS (UPDATE store.sync_runs SET purged_at = now() WHERE id = ANY (:'ids'))
SELECT count(*) FROM gone;

-- name: purge_versions
-- Those that no sync refers to any more. By date too: one that is kept again at this moment is of a sync not seen yet.
WITH gone AS (
    DELETE FROM store.case_versions v
    USING (SELECT o.test_case_id, o.doc_hash FROM store.case_versions o
           WHERE o.saved_at < now() - make_interval(days => :'days')
             AND NOT EXISTS (SELECT FROM store.change_log c
                             WHERE c.test_case_id = o.test_case_id AND c.before_hash = o.doc_hash)
             AND NOT EXISTS (SELECT FROM store.change_log c
                             WHERE c.test_case_id = o.test_case_id AND c.after_hash = o.doc_hash)
           FOR UPDATE OF o SKIP LOCKED) g  -- whoever publishes locks them in another order
    WHERE (v.test_case_id, v.doc_hash) = (g.test_case_id, g.doc_hash)
    RETURNING 1)
SELECT count(*) FROM gone;

-- name: syncs
-- Newest first; of one case, those that changed it and how.
SELECT r.id, r.kind, r.run_id, r.by, r.started_at, r.finished_at, r.partitions, r.added, r.changed, r.removed, r.undoes,
       (SELECT max(u.id) FROM store.sync_runs u WHERE u.undoes = r.id) AS undone_by, r.purged_at,
       CASE WHEN c.sync_id IS NULL THEN NULL WHEN c.before_hash IS NULL THEN 'added'
            WHEN c.after_hash IS NULL THEN 'removed' ELSE 'changed' END AS did
FROM store.sync_runs r
LEFT JOIN store.change_log c ON c.sync_id = r.id AND c.test_case_id = :'case_id'::bigint
WHERE (:'case_id'::bigint IS NULL OR c.sync_id IS NOT NULL)
  AND (:'sync_id'::bigint IS NULL OR r.id = :'sync_id'::bigint)
ORDER BY r.id DESC LIMIT :'at_most';

-- name: holds
-- What is held, by the rollback that holds it.
SELECT sync_id, count(*) AS cases, count(*) FILTER (WHERE NOT published) AS kept_out,
       count(*) FILTER (WHERE published AND staged_hash IS NULL) AS brought_back, min(since) AS since
FROM store.holds WHERE :'case_id'::bigint IS NULL OR test_case_id = :'case_id'::bigint
GROUP BY sync_id ORDER BY sync_id DESC;

-- name: changes
-- What a sync did to cases, ascending: each as it was before and after, null where that is kept no more (or it was not).
SELECT c.test_case_id AS case_id, c.before_hash IS NOT NULL AS was_published, c.after_hash IS NOT NULL AS is_published,
       b.content AS before, coalesce(a.content, l.content) AS after
FROM (SELECT * FROM store.change_log
      WHERE sync_id = :'sync_id' AND (:'case_id'::bigint IS NULL OR test_case_id = :'case_id'::bigint)
        AND before_hash IS DISTINCT FROM after_hash
      ORDER BY test_case_id LIMIT :'at_most') c
LEFT JOIN store.case_versions b ON b.test_case_id = c.test_case_id AND b.doc_hash = c.before_hash
LEFT JOIN store.case_versions a ON a.test_case_id = c.test_case_id AND a.doc_hash = c.after_hash
LEFT JOIN store.current_versions l ON l.test_case_id = c.test_case_id AND l.doc_hash = c.after_hash
ORDER BY c.test_case_id;

-- name: select_undone
-- Cases that are not as they were before the sync.
INSERT INTO pg_temp.due (case_id, before_hash, after_hash)
SELECT c.test_case_id, t.doc_hash, c.before_hash
FROM store.change_log c LEFT JOIN store.test_documents t ON t.test_case_id = c.test_case_id
WHERE c.sync_id = :'sync_id' AND t.doc_hash IS DISTINCT FROM c.before_hash;

-- name: count_undone
SELECT count(*) FILTER (WHERE u.before_hash IS NULL) AS come_back,
       count(*) FILTER (WHERE u.before_hash IS NOT NULL AND u.after_hash IS NOT NULL) AS change_back,
       count(*) FILTER (WHERE u.after_hash IS NULL) AS leave,
       count(*) FILTER (WHERE u.before_hash IS DISTINCT FROM c.after_hash) AS changed_since,
       count(*) FILTER (WHERE u.after_hash IS NOT NULL AND v.test_case_id IS NULL) AS lost
FROM pg_temp.due u
JOIN store.change_log c ON c.sync_id = :'sync_id' AND c.test_case_id = u.case_id
LEFT JOIN store.case_versions v ON v.test_case_id = u.case_id AND v.doc_hash = u.after_hash;

-- name: undone_examples
SELECT u.case_id, CASE WHEN u.after_hash IS NULL THEN 'leaves' WHEN u.before_hash IS NULL THEN 'comes back'
                       ELSE 'changes back' END AS what,
       coalesce(v.content #>> '{document,title}', t.title) AS title
FROM pg_temp.due u
LEFT JOIN store.case_versions v ON v.test_case_id = u.case_id AND v.doc_hash = u.after_hash
LEFT JOIN store.test_documents t ON t.test_case_id = u.case_id
ORDER BY u.case_id LIMIT 10;

-- name: changed_since
-- Cases that were changed again, each with the last sync that did; null: someone else wrote to the store.
SELECT u.case_id, max(l.sync_id) AS sync_id
FROM pg_temp.due u
JOIN store.change_log c ON c.sync_id = :'sync_id' AND c.test_case_id = u.case_id
LEFT JOIN store.change_log l ON l.sync_id > :'sync_id' AND l.test_case_id = u.case_id
WHERE u.before_hash IS DISTINCT FROM c.after_hash
GROUP BY u.case_id ORDER BY u.case_id LIMIT 20;

-- name: taken_uids
-- Uids that a restored case needs and another case has, or will have.
WITH restored AS (
    SELECT u.case_id, v.content #>> '{document,uid}' AS uid
    FROM pg_temp.due u JOIN store.case_versions v ON v.test_case_id = u.case_id AND v.doc_hash = u.after_hash
)
SELECT r.case_id, r.uid, o.case_id AS held_by
FROM restored r
JOIN (SELECT case_id, uid FROM restored
      UNION ALL
      SELECT t.test_case_id, t.uid FROM store.test_documents t
      WHERE NOT EXISTS (SELECT FROM pg_temp.due u WHERE u.case_id = t.test_case_id)) o
  ON o.uid = r.uid AND o.case_id <> r.case_id
ORDER BY r.case_id LIMIT 20;

-- name: missing_texts
-- Texts of the restored cases that have no vector in a space.
WITH restored AS (
    SELECT v.content
    FROM pg_temp.due u JOIN store.case_versions v ON v.test_case_id = u.case_id AND v.doc_hash = u.after_hash
), docs AS (
    SELECT DISTINCT (content #>> '{document,text_hash}')::bytea AS text_hash FROM restored
), steps AS (
    SELECT DISTINCT (s ->> 'text_hash')::bytea AS text_hash FROM restored, jsonb_array_elements(content -> 'steps') AS s
)
SELECT (SELECT count(*) FROM docs d
        WHERE NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = d.text_hash))
     + (SELECT count(*) FROM steps s
        WHERE NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = s.text_hash));

-- name: spaces
SELECT name FROM store.spaces WHERE recipe = :'recipe' ORDER BY name;

-- name: delete_undone
DELETE FROM store.test_documents WHERE test_case_id IN (SELECT case_id FROM pg_temp.due);

-- name: restore_documents
INSERT INTO store.test_documents
SELECT r.*
FROM pg_temp.due u
JOIN store.case_versions v ON v.test_case_id = u.case_id AND v.doc_hash = u.after_hash
CROSS JOIN LATERAL jsonb_populate_record(
    NULL::store.test_documents, (v.content -> 'document') || jsonb_build_object('updated_at', now())) AS r
ORDER BY u.case_id;

-- name: restore_steps
INSERT INTO store.test_steps
SELECT r.*
FROM pg_temp.due u
JOIN store.case_versions v ON v.test_case_id = u.case_id AND v.doc_hash = u.after_hash
CROSS JOIN LATERAL jsonb_populate_recordset(NULL::store.test_steps, v.content -> 'steps') AS r;

-- name: restore_preconditions
INSERT INTO store.test_preconditions
SELECT r.*
FROM pg_temp.due u
JOIN store.case_versions v ON v.test_case_id = u.case_id AND v.doc_hash = u.after_hash
CROSS JOIN LATERAL jsonb_populate_recordset(NULL::store.test_preconditions, v.content -> 'preconditions') AS r;

-- name: restore_related_issues
INSERT INTO store.test_related_issues
SELECT r.*
FROM pg_temp.due u
JOIN store.case_versions v ON v.test_case_id = u.case_id AND v.doc_hash = u.after_hash
CROSS JOIN LATERAL jsonb_populate_recordset(NULL::store.test_related_issues, v.content -> 'related_issues') AS r;

-- name: bounds_undone
SELECT min(case_id) AS lower, max(case_id) + 1 AS upper FROM pg_temp.due;

-- name: drop_holds
-- What a hold keeps out is published: a rollback is undone, and each of its holds keeps out what it had taken away.
DELETE FROM store.held_cases h USING pg_temp.due u
WHERE u.case_id = h.test_case_id AND u.after_hash IS NOT DISTINCT FROM h.staged_hash;

-- name: count_held
SELECT count(*) FROM store.held_cases WHERE sync_id = :'sync_id';

-- name: release_holds
-- What is published stays; what is staged is due from now on.
DELETE FROM store.held_cases WHERE sync_id = :'sync_id';

-- name: hold_undone
-- What was undone is what is staged: the next run would do it again. What is staged beyond that is newer, and is due.
INSERT INTO store.held_cases AS h (test_case_id, staged_hash, sync_id)
SELECT u.case_id, u.before_hash, :'rollback_id'
FROM pg_temp.due u LEFT JOIN staging.test_documents s ON s.case_id = u.case_id
WHERE s.doc_hash IS NOT DISTINCT FROM u.before_hash
ON CONFLICT (test_case_id) DO UPDATE
SET staged_hash = excluded.staged_hash, sync_id = excluded.sync_id, since = excluded.since;
