-- Questions to one embedding space.

-- name: register
INSERT INTO store.spaces (name, model, dimensions, vector_type, recipe)
VALUES (:'name', :'model', :'dimensions', :'vector_type', :'recipe')
ON CONFLICT (name) DO NOTHING;

-- name: describe
SELECT name, model, dimensions, vector_type, recipe, strategy, ef_search, active, face_hash
FROM store.spaces WHERE name = :'name';

-- name: active
SELECT name, model, dimensions, vector_type, recipe, strategy, ef_search
FROM store.spaces WHERE active;

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

-- name: missing_docs
SELECT DISTINCT ON (d.text_hash) d.text_hash, d.title, d.description
FROM staging.test_documents d
WHERE d.case_id >= :'lower' AND d.case_id < :'upper'
  AND NOT EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = d.text_hash)
ORDER BY d.text_hash;

-- name: missing_steps
SELECT DISTINCT ON (s.text_hash) s.text_hash, s.action, s.expected
FROM staging.test_steps s
WHERE s.case_id >= :'lower' AND s.case_id < :'upper'
  AND NOT EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = s.text_hash)
ORDER BY s.text_hash;

-- name: wanted_docs
SELECT count(*) AS rows, count(DISTINCT text_hash) AS texts
FROM staging.test_documents WHERE case_id >= :'lower' AND case_id < :'upper';

-- name: wanted_steps
SELECT count(*) AS rows, count(DISTINCT text_hash) AS texts
FROM staging.test_steps WHERE case_id >= :'lower' AND case_id < :'upper';

-- name: copy_docs
COPY :"space".doc_embeddings (text_hash, embedding, provenance) FROM STDIN (FORMAT BINARY);

-- name: copy_steps
COPY :"space".step_embeddings (text_hash, embedding, provenance) FROM STDIN (FORMAT BINARY);

-- name: deactivate_others
UPDATE store.spaces SET active = false WHERE active AND name <> :'name';

-- name: activate
UPDATE store.spaces SET active = true, face_hash = :'face_hash' WHERE name = :'name';
