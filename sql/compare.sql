-- Searches against exact search and against old stores, over the same queries.

-- name: search_docs
SELECT test_case_id, similarity FROM qbench.search_documents(
    :'query'::vector, k => :'k', with_priority => :'priority'::text[], with_tags => :'tags'::text[],
    with_platforms => :'platforms'::text[], with_test_type => :'test_type'::text[], in_folder => :'folder'::text,
    in_project => :'project'::bigint[], with_suite => :'suite'::bigint[],
    updated_since => :'updated_since'::timestamptz, query_model => :'model'::text);

-- name: search_steps
SELECT action, expected, similarity FROM qbench.search_steps(
    :'query'::vector, k => :'k', with_priority => :'priority'::text[], with_tags => :'tags'::text[],
    with_platforms => :'platforms'::text[], with_test_type => :'test_type'::text[], in_folder => :'folder'::text,
    in_project => :'project'::bigint[], with_suite => :'suite'::bigint[],
    updated_since => :'updated_since'::timestamptz, query_model => :'model'::text);

-- name: holders_docs
-- Which published cases have some texts.
SELECT text_hash, test_case_id FROM store.test_documents WHERE text_hash = ANY (:'hashes'::bytea[]);

-- name: holders_steps
SELECT DISTINCT text_hash, test_case_id FROM store.test_steps WHERE text_hash = ANY (:'hashes'::bytea[]);

-- name: matching_cases
-- Which of some cases a filter lets through: written apart from the functions' own filter.
SELECT d.test_case_id
FROM store.test_documents d
WHERE d.test_case_id = ANY (:'case_ids'::bigint[])
  AND (:'priority'::text[] IS NULL OR d.priority = ANY (:'priority'::text[]))
  AND (:'tags'::text[] IS NULL OR d.tags && :'tags'::text[])
  AND (:'platforms'::text[] IS NULL OR d.platforms && :'platforms'::text[])
  AND (:'test_type'::text[] IS NULL OR d.test_type = ANY (:'test_type'::text[]))
  AND (:'folder'::text IS NULL OR left(d.folder_structure, length(:'folder'::text)) = :'folder'::text)
  AND (:'project'::bigint[] IS NULL OR d.project_id = ANY (:'project'::bigint[]))
  AND (:'suite'::bigint[] IS NULL OR d.suite_id = ANY (:'suite'::bigint[]))
  AND (:'updated_since'::timestamptz IS NULL OR d.source_updated_at >= :'updated_since'::timestamptz);

-- name: titles_docs
SELECT test_case_id, title FROM store.test_documents WHERE test_case_id = ANY (:'keys'::bigint[]);

-- name: titles_steps
SELECT DISTINCT ON (text_hash) text_hash, left(action, 200)
FROM store.test_steps WHERE text_hash = ANY (:'keys'::bytea[]) ORDER BY text_hash, test_case_id, step_index;

-- name: cosines_docs
SELECT d.test_case_id, 1 - (e.embedding <=> :'query'::vector)
FROM store.test_documents d JOIN :"space".doc_embeddings e USING (text_hash)
WHERE d.test_case_id = ANY (:'keys'::bigint[]);

-- name: cosines_steps
SELECT e.text_hash, 1 - (e.embedding <=> :'query'::vector)
FROM :"space".step_embeddings e WHERE e.text_hash = ANY (:'keys'::bytea[]);

-- name: draw_titles
SELECT title FROM (SELECT DISTINCT title FROM store.test_documents) t ORDER BY md5(title), title LIMIT :'limit';

-- name: draw_vectors_docs
-- A sample, the same of the same rows: a hash is as good as random.
SELECT text_hash, embedding::real[] FROM :"space".doc_embeddings
WHERE text_hash IN (SELECT DISTINCT text_hash FROM store.test_documents ORDER BY text_hash LIMIT :'limit');

-- name: draw_vectors_steps
SELECT text_hash, embedding::real[] FROM :"space".step_embeddings
WHERE text_hash IN (SELECT DISTINCT text_hash FROM store.test_steps ORDER BY text_hash LIMIT :'limit');

-- name: filter_values
-- What can be filtered by, and how many cases have it. Of a folder the uppermost.
SELECT what, value, count(*) AS cases FROM (
    SELECT 'priority' AS what, priority AS value FROM store.test_documents
    UNION ALL SELECT 'test_type', test_type FROM store.test_documents
    UNION ALL SELECT 'project', project_id::text FROM store.test_documents
    UNION ALL SELECT 'folder', split_part(folder_structure, '/', 1) FROM store.test_documents
    UNION ALL SELECT 'tags', t FROM store.test_documents d, unnest(d.tags) t
    UNION ALL SELECT 'platforms', p FROM store.test_documents d, unnest(d.platforms) p
) v WHERE value <> '' GROUP BY what, value;

-- name: known_queries
SELECT text_hash, embedding FROM store.query_vectors WHERE space = :'space' AND text_hash = ANY (:'hashes'::bytea[]);

-- name: keep_query
INSERT INTO store.query_vectors (space, text_hash, embedding) VALUES (:'space', :'text_hash', :'embedding'::real[])
ON CONFLICT DO NOTHING;

-- name: texts_docs
-- Published texts by the hash of their text.
SELECT DISTINCT ON (text_hash) text_hash, test_case_id, title, description
FROM store.test_documents WHERE text_hash = ANY (:'hashes'::bytea[]) ORDER BY text_hash, test_case_id;

-- name: texts_steps
SELECT DISTINCT ON (text_hash) text_hash, test_case_id, action, expected
FROM store.test_steps WHERE text_hash = ANY (:'hashes'::bytea[]) ORDER BY text_hash, test_case_id, step_index;

-- name: sample_docs
SELECT text_hash FROM (SELECT DISTINCT text_hash FROM store.test_documents) t ORDER BY sha256(text_hash) LIMIT :'limit';

-- name: sample_steps
SELECT text_hash FROM (SELECT DISTINCT text_hash FROM store.test_steps) t ORDER BY sha256(text_hash) LIMIT :'limit';

-- name: count_docs
SELECT count(*) FROM store.test_documents;

-- name: count_steps
SELECT count(DISTINCT text_hash) FROM store.test_steps;

-- name: judge
-- What became of the case of each point, and whether it, or a step of it, still has the text that the point has. In the
-- order asked.
SELECT CASE WHEN d.test_case_id IS NOT NULL THEN 'published'
            WHEN r.case_id IS NOT NULL OR x.case_id IS NOT NULL THEN 'rejected'
            WHEN k.test_case_id IS NOT NULL THEN 'rolled back'
            WHEN l.id IS NOT NULL THEN 'not published' ELSE 'gone' END,
       CASE :'kind' WHEN 'doc' THEN coalesce(d.text_hash = c.text_hash, false)
            ELSE EXISTS (SELECT FROM store.test_steps s WHERE s.test_case_id = c.case_id AND s.text_hash = c.text_hash) END
FROM unnest(:'case_ids'::bigint[], :'hashes'::bytea[]) WITH ORDINALITY AS c (case_id, text_hash, n)
LEFT JOIN store.test_documents d ON d.test_case_id = c.case_id
LEFT JOIN landing.cases l ON l.id = c.case_id AND l.removed_at IS NULL
LEFT JOIN staging.rejects r ON r.case_id = l.id
LEFT JOIN store.holds k ON k.test_case_id = l.id
LEFT JOIN LATERAL (SELECT w.case_id FROM landing.rejected_rows w WHERE w.case_id = c.case_id LIMIT 1) x ON true
ORDER BY c.n;
