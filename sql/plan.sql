-- What the plan asks: how much is staged, and how much of it the space has.

-- name: cases
SELECT (SELECT count(*) FROM staging.test_documents) AS cases,
       (SELECT count(*) FROM staging.rejects) + (SELECT count(*) FROM landing.rejected_rows) AS rejected;

-- name: staged_docs
SELECT count(*) AS rows, count(DISTINCT text_hash) AS texts FROM staging.test_documents;

-- name: staged_steps
SELECT count(*) AS rows, count(DISTINCT text_hash) AS texts FROM staging.test_steps;

-- name: texts_docs
-- Every distinct text of a case, and where it stands: in this table of the space, in the other, in a batch.
SELECT t.text_hash, t.title, t.description,
       EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = t.text_hash) AS stored,
       EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = t.text_hash) AS shared,
       EXISTS (SELECT FROM store.batch_texts b WHERE b.space = :'space' AND b.text_hash = t.text_hash) AS in_batch
FROM (SELECT DISTINCT ON (text_hash) text_hash, title, description FROM staging.test_documents ORDER BY text_hash) t;

-- name: texts_steps
SELECT t.text_hash, t.action, t.expected,
       EXISTS (SELECT FROM :"space".step_embeddings e WHERE e.text_hash = t.text_hash) AS stored,
       EXISTS (SELECT FROM :"space".doc_embeddings e WHERE e.text_hash = t.text_hash)
           OR EXISTS (SELECT FROM staging.test_documents d WHERE d.text_hash = t.text_hash) AS shared,
       EXISTS (SELECT FROM store.batch_texts b WHERE b.space = :'space' AND b.text_hash = t.text_hash) AS in_batch
FROM (SELECT DISTINCT ON (text_hash) text_hash, action, expected FROM staging.test_steps ORDER BY text_hash) t;
