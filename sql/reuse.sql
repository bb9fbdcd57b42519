-- Vectors of old stores: what is claimed against what is staged and stored.

-- name: judge_docs
-- Whether the claimed case is staged, and has the claimed text. In the order they were asked.
SELECT d.case_id IS NOT NULL, d.text_hash IS NOT DISTINCT FROM c.text_hash
FROM unnest(:'case_ids'::bigint[], :'hashes'::bytea[]) WITH ORDINALITY AS c (case_id, text_hash, n)
LEFT JOIN staging.test_documents d USING (case_id)
ORDER BY c.n;

-- name: judge_steps
SELECT d.case_id IS NOT NULL,
       EXISTS (SELECT FROM staging.test_steps s WHERE s.case_id = c.case_id AND s.text_hash = c.text_hash)
FROM unnest(:'case_ids'::bigint[], :'hashes'::bytea[]) WITH ORDINALITY AS c (case_id, text_hash, n)
LEFT JOIN staging.test_documents d USING (case_id)
ORDER BY c.n;

-- name: space_exists
SELECT to_regclass(format('%I.%I', :'space'::text, :'table'::text)) IS NOT NULL;

-- name: origins
SELECT text_hash, provenance FROM :"space".:"table" WHERE text_hash = ANY (:'hashes'::bytea[]);

-- name: copy_stored
COPY (SELECT text_hash, embedding FROM :"space".:"table" WHERE text_hash = ANY (:'hashes'::bytea[]))
TO STDOUT (FORMAT BINARY);

-- name: shared
-- Texts that have the same vector as a case's and as a step's (embed.sql: share_docs).
SELECT d.text_hash FROM :"space".doc_embeddings d
JOIN :"space".step_embeddings s ON s.text_hash = d.text_hash AND s.embedding = d.embedding
WHERE d.text_hash = ANY (:'hashes'::bytea[]);

-- name: create_scratch
-- Where a dry run puts what a real one puts into the space. Gone with its transaction.
CREATE TEMPORARY TABLE :"table" (
    text_hash  bytea PRIMARY KEY,
    embedding  :"vector_type"(:dimensions) NOT NULL,
    provenance text NOT NULL,
    pieces     smallint NOT NULL
) ON COMMIT DROP;

-- name: now
SELECT clock_timestamp();

-- name: forget_points
DELETE FROM store.source_points WHERE space = :'space' AND source = :'source';

-- name: copy_points
COPY store.source_points (space, source, kind, point_id, case_id, text_hash, reason, seen_at)
FROM STDIN (FORMAT BINARY);

-- name: record_pass
INSERT INTO store.reuse_passes (space, source, description, started_at, finished_at, counts)
VALUES (:'space', :'source', :'description', :'started_at', clock_timestamp(), :'counts');

-- name: refused
SELECT source, kind, point_id, case_id, encode(text_hash, 'hex') AS text_hash, reason, seen_at
FROM store.source_points
WHERE space = :'space' AND (:'reason'::text IS NULL OR reason = :'reason') AND (:'kind'::text IS NULL OR kind = :'kind')
ORDER BY source, kind, reason, point_id
LIMIT :'limit';

-- name: unread
SELECT source FROM unnest(:'sources'::text[]) AS source
WHERE NOT EXISTS (SELECT FROM store.reuse_passes p WHERE p.space = :'space' AND p.source = source.source);

-- name: late_docs
-- Points that were refused because their case, or its text, was not staged then; now it is, and lacks its vector.
SELECT count(*) FROM store.source_points p
WHERE p.space = :'space' AND p.kind = 'doc' AND p.source = ANY (:'sources') AND p.reason IN ('unknown_case', 'stale_text')
  AND EXISTS (SELECT FROM staging.test_documents d WHERE d.case_id = p.case_id AND d.text_hash = p.text_hash)
  AND NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = p.text_hash);

-- name: late_steps
SELECT count(*) FROM store.source_points p
WHERE p.space = :'space' AND p.kind = 'step' AND p.source = ANY (:'sources') AND p.reason IN ('unknown_case', 'stale_text')
  AND EXISTS (SELECT FROM staging.test_steps s WHERE s.case_id = p.case_id AND s.text_hash = p.text_hash)
  AND NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = p.text_hash);
