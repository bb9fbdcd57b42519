-- What `qbench status` and `qbench search` ask.

-- name: totals
SELECT
    (SELECT count(*) FROM landing.cases WHERE removed_at IS NULL)
        + (SELECT count(*) FROM landing.rejected_rows) AS source_cases,
    (SELECT count(*) FROM landing.cases WHERE removed_at IS NOT NULL) AS tombstones,
    (SELECT count(*) FROM store.test_documents) AS published,
    (SELECT count(*) FROM store.rejects) AS rejected,
    (SELECT count(*) FROM store.holds) AS held,
    (SELECT count(*) FROM store.holds WHERE published AND staged_hash IS NULL) AS brought_back,
    (SELECT count(*) FROM store.test_steps) AS steps,
    (SELECT count(*) FROM store.test_preconditions) AS preconditions,
    (SELECT count(*) FROM store.test_related_issues) AS related_issues,
    (SELECT max(updated_at) FROM store.test_documents) AS last_published_at;

-- name: rejects_by_reason
SELECT reason, count(*) AS cases, min(detail) AS example
FROM store.rejects GROUP BY reason ORDER BY reason;

-- name: spaces
SELECT s.name, s.model, s.dimensions, s.vector_type, s.active,
       coalesce(jsonb_object_agg(b.kind, jsonb_build_object(
           'strategy', b.strategy, 'ef_search', b.ef_search, 'rerank', b.rerank,
           'rows', b.rows, 'bytes', b.bytes, 'built_at', b.built_at, 'seconds', b.seconds,
           'recall', b.recall -> 'measured')) FILTER (WHERE b.kind IS NOT NULL), '{}') AS indexes
FROM store.spaces s LEFT JOIN store.index_builds b ON b.space = s.name
GROUP BY s.name ORDER BY s.name;

-- name: database_bytes
SELECT pg_database_size(current_database());

-- name: search_documents
SELECT * FROM qbench.search_documents(
    :'query'::vector, k => :'k', with_priority => :'priority'::text[], with_tags => :'tags'::text[],
    with_platforms => :'platforms'::text[], with_test_type => :'test_type'::text[], in_folder => :'folder'::text,
    in_project => :'project'::bigint[], with_suite => :'suite'::bigint[], updated_since => :'updated_since'::timestamptz,
    min_similarity => :'min_similarity', query_model => :'model'::text);

-- name: search_steps
SELECT * FROM qbench.search_steps(
    :'query'::vector, k => :'k', with_priority => :'priority'::text[], with_tags => :'tags'::text[],
    with_platforms => :'platforms'::text[], with_test_type => :'test_type'::text[], in_folder => :'folder'::text,
    in_project => :'project'::bigint[], with_suite => :'suite'::bigint[], updated_since => :'updated_since'::timestamptz,
    min_similarity => :'min_similarity', query_model => :'model'::text);

-- name: similar_documents
SELECT * FROM qbench.similar_documents(
    :'case_id'::bigint, k => :'k', with_priority => :'priority'::text[], with_tags => :'tags'::text[],
    with_platforms => :'platforms'::text[], with_test_type => :'test_type'::text[], in_folder => :'folder'::text,
    in_project => :'project'::bigint[], with_suite => :'suite'::bigint[], updated_since => :'updated_since'::timestamptz,
    min_similarity => :'min_similarity');

-- name: find_by_jira_key
SELECT * FROM qbench.find_by_jira_key(
    :'key'::text, k => :'k', with_priority => :'priority'::text[], with_tags => :'tags'::text[],
    with_platforms => :'platforms'::text[], with_test_type => :'test_type'::text[], in_folder => :'folder'::text,
    in_project => :'project'::bigint[], with_suite => :'suite'::bigint[], updated_since => :'updated_since'::timestamptz);

-- name: search_hybrid
SELECT * FROM qbench.search_hybrid(
    :'text'::text, :'query'::vector, k => :'k', with_priority => :'priority'::text[], with_tags => :'tags'::text[],
    with_platforms => :'platforms'::text[], with_test_type => :'test_type'::text[], in_folder => :'folder'::text,
    in_project => :'project'::bigint[], with_suite => :'suite'::bigint[], updated_since => :'updated_since'::timestamptz,
    min_similarity => :'min_similarity', vector_weight => :'vector_weight', text_weight => :'text_weight',
    query_model => :'model'::text);

-- name: matched_steps
-- Of each case the step nearest to the query, and the one that holds most of its words.
SELECT s.test_case_id, s.step_index, s.action, s.expected
FROM unnest(:'case_ids'::bigint[]) AS c (id)
CROSS JOIN (
    SELECT string_agg('(' || w.word::text || ')', ' | ')::tsquery AS any_word FROM store.query_words(:'text') w) q
CROSS JOIN LATERAL (
    (SELECT t.test_case_id, t.step_index, t.action, t.expected FROM qbench.test_steps t WHERE t.test_case_id = c.id
     ORDER BY (t.embedding <=> :'query'::vector) + 0, t.step_index LIMIT (:'query'::vector IS NOT NULL)::integer)
    UNION
    (SELECT t.test_case_id, t.step_index, t.action, t.expected FROM qbench.test_steps t
     CROSS JOIN LATERAL (
         SELECT store.words_of(concat_ws(' ', t.action, array_to_string(t.expected, ' '), t.data)) AS words OFFSET 0) w
     WHERE t.test_case_id = c.id AND w.words @@ q.any_word
     ORDER BY ts_rank(w.words, q.any_word) DESC, t.step_index LIMIT 1)) s
ORDER BY s.test_case_id, s.step_index;
