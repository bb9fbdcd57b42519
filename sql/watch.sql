-- What the sensor of changes asks of the database: whether there is anything, and what the landing room knows.

-- name: is_published
SELECT EXISTS (SELECT FROM store.test_documents);

-- name: is_made
SELECT EXISTS (SELECT FROM store.spaces WHERE name = :'space');

-- name: is_filled
SELECT EXISTS (SELECT FROM :"space".doc_embeddings) OR EXISTS (SELECT FROM :"space".step_embeddings);

-- name: landed_ids
-- Of every row that was seen: rows kept aside count, or a case that is too large would be news for ever.
SELECT id FROM landing.cases WHERE removed_at IS NULL
UNION ALL
SELECT DISTINCT case_id FROM landing.rejected_rows WHERE case_id IS NOT NULL;

-- name: landed_hashes
SELECT id, content_hash FROM landing.cases WHERE removed_at IS NULL
UNION ALL
SELECT coalesce(case_id, 0), content_hash FROM landing.rejected_rows;

-- name: landed_hashes_of
SELECT id, content_hash FROM landing.cases WHERE id = ANY (:'ids') AND removed_at IS NULL
UNION ALL
SELECT case_id, content_hash FROM landing.rejected_rows WHERE case_id = ANY (:'ids');
