-- What is needed to judge stored vectors: a sample of them, and the texts they were made of.

-- name: copy_references
-- Random, but the same for the same rows: the smallest hashes of the hashes. Found in the key's index alone.
COPY (SELECT text_hash, embedding FROM :"space".:"table"
      WHERE text_hash IN (SELECT text_hash FROM :"space".:"table" ORDER BY sha256(text_hash) LIMIT :limit))
TO STDOUT (FORMAT BINARY);

-- name: fresh_docs
SELECT e.text_hash FROM :"space".doc_embeddings e
WHERE EXISTS (SELECT FROM staging.test_documents d WHERE d.text_hash = e.text_hash)
ORDER BY sha256(e.text_hash) LIMIT :'limit';

-- name: fresh_steps
SELECT e.text_hash FROM :"space".step_embeddings e
WHERE EXISTS (SELECT FROM staging.test_steps s WHERE s.text_hash = e.text_hash)
ORDER BY sha256(e.text_hash) LIMIT :'limit';

-- name: texts_docs
SELECT DISTINCT ON (text_hash) text_hash, case_id, title, description
FROM staging.test_documents WHERE text_hash = ANY (:'hashes') ORDER BY text_hash, case_id;

-- name: texts_steps
SELECT DISTINCT ON (text_hash) text_hash, case_id, action, expected
FROM staging.test_steps WHERE text_hash = ANY (:'hashes') ORDER BY text_hash, case_id, step_index;

-- name: provenances
SELECT text_hash, provenance FROM :"space".:"table" WHERE text_hash = ANY (:'hashes');
