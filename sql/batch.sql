-- Batches at the service: entered before they are sent, claims on their texts, taken in a line at a time.

-- name: enter
INSERT INTO store.batches (id, space, kind, model, request_id, usd_per_million, texts, lines, tokens)
VALUES (:'id', :'space', :'kind', :'model', :'request_id', :'usd_per_million', :'texts', :'lines', :'tokens');

-- name: copy_claims
COPY store.batch_texts (space, batch, line, place, part, parts, text_hash, key, tokens) FROM STDIN;

-- name: uploaded
UPDATE store.batches SET file_id = :'file_id' WHERE id = :'id';

-- name: submitted
UPDATE store.batches SET state = 'submitted', remote_id = :'remote_id', status = :'status', submitted_at = now()
WHERE id = :'id';

-- name: note_status
UPDATE store.batches SET status = :'status', lines_done = :'lines_done'
WHERE id = :'id' AND (status, lines_done) IS DISTINCT FROM (:'status', :'lines_done');

-- name: note_billed
UPDATE store.batches
SET tokens_billed = tokens_billed + :'tokens', tokens_at_risk = tokens_at_risk + :'tokens_at_risk'
WHERE id = :'id';

-- name: ended
-- Once: what was settled is not settled again.
UPDATE store.batches SET state = :'state', error = :'error', queue_ceiling = :'queue_ceiling', ended_at = now()
WHERE id = :'id' AND state IN ('preparing', 'submitted')
RETURNING request_id, tokens_billed, tokens_at_risk;

-- name: outstanding
-- Whose texts are not all taken in, oldest first.
SELECT id, space, kind, model, state, usd_per_million, texts, lines, tokens, file_id, remote_id,
       extract(epoch FROM created_at)::double precision AS created_at,
       extract(epoch FROM now() - created_at)::double precision AS age_s
FROM store.batches WHERE space = :'space' AND state IN ('preparing', 'submitted')
ORDER BY created_at, id;

-- name: list_batches
SELECT b.id::text AS id, b.space, b.kind, b.model, b.state, b.status, b.remote_id, b.texts, b.lines, b.lines_done,
       b.tokens, b.tokens_billed, r.usd, r.usd_at_risk, b.error, b.created_at::text AS created_at,
       b.submitted_at::text AS submitted_at, b.ended_at::text AS ended_at
FROM store.batches b LEFT JOIN store.embedding_requests r ON r.id = b.request_id
ORDER BY b.created_at DESC, b.id LIMIT :'limit';

-- name: find_batch
SELECT id, space, kind, model, state, usd_per_million, texts, lines, tokens, file_id, remote_id,
       extract(epoch FROM created_at)::double precision AS created_at,
       extract(epoch FROM now() - created_at)::double precision AS age_s
FROM store.batches WHERE id::text = :'id' OR remote_id = :'id';

-- name: queued_tokens
SELECT coalesce(sum(tokens), 0)::bigint FROM store.batches WHERE model = :'model' AND state IN ('preparing', 'submitted');

-- name: queue_ceiling
-- The last refusal counts, for a week: an account's limits grow, and a batch that is refused costs nothing.
SELECT queue_ceiling FROM store.batches
WHERE model = :'model' AND queue_ceiling IS NOT NULL AND ended_at > now() - interval '7 days'
ORDER BY ended_at DESC LIMIT 1;

-- name: lines_left
SELECT DISTINCT line FROM store.batch_texts WHERE batch = :'id' AND vector IS NULL;

-- name: line
SELECT place, part, parts, text_hash, key, tokens FROM store.batch_texts
WHERE batch = :'id' AND line = :'line' ORDER BY place;

-- name: stored_docs
SELECT text_hash FROM :"space".doc_embeddings WHERE text_hash = ANY (:'hashes'::bytea[]);

-- name: stored_steps
SELECT text_hash FROM :"space".step_embeddings WHERE text_hash = ANY (:'hashes'::bytea[]);

-- name: keep_part
UPDATE store.batch_texts SET vector = :'vector' WHERE batch = :'id' AND line = :'line' AND place = :'place';

-- name: whole_texts
-- Texts of a line all of whose parts are answered, in the order of their parts.
SELECT text_hash, key, vector, tokens FROM store.batch_texts t
WHERE batch = :'id' AND text_hash = ANY (:'hashes'::bytea[]) AND parts > 1
  AND NOT EXISTS (SELECT FROM store.batch_texts o
                  WHERE o.batch = t.batch AND o.text_hash = t.text_hash AND o.vector IS NULL)
ORDER BY text_hash, part;

-- name: release_texts
DELETE FROM store.batch_texts WHERE batch = :'id' AND text_hash = ANY (:'hashes'::bytea[]);

-- name: release_batch
DELETE FROM store.batch_texts WHERE batch = :'id' RETURNING text_hash;

-- name: mark_unusable
-- Answers the texts for which it is the second time.
WITH given AS (SELECT DISTINCT unnest(:'hashes'::bytea[]) AS text_hash),
again AS (
    DELETE FROM store.batch_unusable u USING given g
    WHERE u.space = :'space' AND u.text_hash = g.text_hash RETURNING u.text_hash),
first AS (
    INSERT INTO store.batch_unusable (space, text_hash)
    SELECT :'space', g.text_hash FROM given g WHERE g.text_hash NOT IN (SELECT text_hash FROM again))
SELECT text_hash FROM again;

-- name: forgive
DELETE FROM store.batch_unusable WHERE space = :'space' AND text_hash = ANY (:'hashes'::bytea[]);

-- name: waiting_docs
-- Texts of the ranges that wait in a batch, by batch.
SELECT c.batch AS id, count(DISTINCT c.text_hash) AS texts
FROM unnest(:'lowers'::bigint[], :'uppers'::bigint[]) AS r (lower, upper)
JOIN staging.test_documents t ON t.case_id >= r.lower AND t.case_id < r.upper
JOIN store.batch_texts c ON c.space = :'space' AND c.text_hash = t.text_hash
WHERE NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = t.text_hash)
GROUP BY c.batch;

-- name: waiting_steps
SELECT c.batch AS id, count(DISTINCT c.text_hash) AS texts
FROM unnest(:'lowers'::bigint[], :'uppers'::bigint[]) AS r (lower, upper)
JOIN staging.test_steps t ON t.case_id >= r.lower AND t.case_id < r.upper
JOIN store.batch_texts c ON c.space = :'space' AND c.text_hash = t.text_hash
WHERE NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = t.text_hash)
GROUP BY c.batch;

-- name: missing_count_docs
SELECT count(DISTINCT t.text_hash)
FROM unnest(:'lowers'::bigint[], :'uppers'::bigint[]) AS r (lower, upper)
JOIN staging.test_documents t ON t.case_id >= r.lower AND t.case_id < r.upper
WHERE NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = t.text_hash);

-- name: missing_count_steps
SELECT count(DISTINCT t.text_hash)
FROM unnest(:'lowers'::bigint[], :'uppers'::bigint[]) AS r (lower, upper)
JOIN staging.test_steps t ON t.case_id >= r.lower AND t.case_id < r.upper
WHERE NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = t.text_hash);

-- name: keys_in_batches
SELECT DISTINCT key FROM store.batch_texts WHERE batch = ANY (:'ids'::uuid[]);

-- name: in_use
-- Whether somebody holds the lock of those who write vectors of the space.
SELECT EXISTS (
    SELECT FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.objid::bigint = (hashtext(:'name')::bigint & 4294967295));
