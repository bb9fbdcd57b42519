-- Questions to one embedding space.

-- name: register
INSERT INTO store.spaces (name, model, dimensions, vector_type, recipe, embedder, text_prefix, query_prefix)
VALUES (:'name', :'model', :'dimensions', :'vector_type', :'recipe', :'embedder', :'text_prefix', :'query_prefix')
ON CONFLICT (name) DO NOTHING;

-- name: describe
SELECT name, model, dimensions, vector_type, recipe, embedder, text_prefix, query_prefix, active, face_hash
FROM store.spaces WHERE name = :'name';

-- name: active
SELECT name, model, dimensions, vector_type, embedder, text_prefix, query_prefix, recipe FROM store.spaces WHERE active;

-- name: set_query_prefix
UPDATE store.spaces SET query_prefix = :'query_prefix' WHERE name = :'name';

-- name: due_docs
SELECT r.key, count(d.case_id) AS rows, count(*) FILTER (WHERE d.case_id IS NOT NULL AND e.text_hash IS NULL) AS missing
FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper)
LEFT JOIN staging.test_documents d ON d.case_id >= r.lower AND d.case_id < r.upper
LEFT JOIN :"space".doc_embeddings e ON e.text_hash = d.text_hash
GROUP BY r.key;

-- name: due_steps
SELECT r.key, count(s.case_id) AS rows, count(*) FILTER (WHERE s.case_id IS NOT NULL AND e.text_hash IS NULL) AS missing
FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper)
LEFT JOIN staging.test_steps s ON s.case_id >= r.lower AND s.case_id < r.upper
LEFT JOIN :"space".step_embeddings e ON e.text_hash = s.text_hash
GROUP BY r.key;

-- name: lacks_vectors
SELECT EXISTS (
    SELECT FROM staging.test_documents d
    WHERE NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = d.text_hash))
OR EXISTS (
    SELECT FROM staging.test_steps s
    WHERE NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = s.text_hash));

-- name: missing_docs
-- Each text once, under the first case that has it, in the order of cases: whoever stops half way has whole cases.
-- Texts that wait in a batch are left out: they are paid for.
SELECT m.key, d.text_hash, d.title, d.description
FROM (
    SELECT DISTINCT ON (t.text_hash) t.text_hash, t.case_id, r.key
    FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper)
    JOIN staging.test_documents t ON t.case_id >= r.lower AND t.case_id < r.upper
    WHERE NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = t.text_hash)
      AND NOT EXISTS (SELECT FROM store.batch_texts b WHERE b.space = :'space' AND b.text_hash = t.text_hash)
    ORDER BY t.text_hash, t.case_id) m
JOIN staging.test_documents d USING (case_id)
ORDER BY m.case_id;

-- name: missing_steps
SELECT m.key, s.text_hash, s.action, s.expected
FROM (
    SELECT DISTINCT ON (t.text_hash) t.text_hash, t.case_id, t.step_index, r.key
    FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper)
    JOIN staging.test_steps t ON t.case_id >= r.lower AND t.case_id < r.upper
    WHERE NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = t.text_hash)
      AND NOT EXISTS (SELECT FROM store.batch_texts b WHERE b.space = :'space' AND b.text_hash = t.text_hash)
    ORDER BY t.text_hash, t.case_id, t.step_index) m
JOIN staging.test_steps s USING (case_id, step_index)
ORDER BY m.case_id, m.step_index;

-- name: share_docs
-- A step may say what a case says: its vector is there, and nobody pays for the text a second time.
INSERT INTO :"space".doc_embeddings (text_hash, embedding, provenance, pieces)
SELECT e.text_hash, e.embedding, e.provenance, e.pieces
FROM (
    SELECT DISTINCT d.text_hash FROM staging.test_documents d
    WHERE NOT EXISTS (SELECT FROM :"space".doc_embeddings o WHERE o.text_hash = d.text_hash)) m
JOIN :"space".step_embeddings e USING (text_hash);

-- name: share_steps
INSERT INTO :"space".step_embeddings (text_hash, embedding, provenance, pieces)
SELECT e.text_hash, e.embedding, e.provenance, e.pieces
FROM (
    SELECT DISTINCT s.text_hash FROM staging.test_steps s
    WHERE NOT EXISTS (SELECT FROM :"space".step_embeddings o WHERE o.text_hash = s.text_hash)) m
JOIN :"space".doc_embeddings e USING (text_hash);

-- name: wanted_docs
SELECT r.key, count(d.case_id) AS rows, count(DISTINCT d.text_hash) AS texts
FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper)
LEFT JOIN staging.test_documents d ON d.case_id >= r.lower AND d.case_id < r.upper
GROUP BY r.key;

-- name: wanted_steps
SELECT r.key, count(s.case_id) AS rows, count(DISTINCT s.text_hash) AS texts
FROM unnest(:'keys'::text[], :'lowers'::bigint[], :'uppers'::bigint[]) AS r (key, lower, upper)
LEFT JOIN staging.test_steps s ON s.case_id >= r.lower AND s.case_id < r.upper
GROUP BY r.key;

-- name: copy_docs
COPY :"space".doc_embeddings (text_hash, embedding, provenance, pieces) FROM STDIN (FORMAT BINARY);

-- name: copy_steps
COPY :"space".step_embeddings (text_hash, embedding, provenance, pieces) FROM STDIN (FORMAT BINARY);

-- name: deactivate_others
UPDATE store.spaces SET active = false WHERE active AND name <> :'name';

-- name: activate
UPDATE store.spaces SET active = true, face_hash = :'face_hash' WHERE name = :'name';
