-- What `qbench status` and `qbench search` ask.

-- name: totals
SELECT
    (SELECT count(*) FROM landing.cases WHERE removed_at IS NULL)
        + (SELECT count(*) FROM landing.rejected_rows) AS source_cases,
    (SELECT count(*) FROM landing.cases WHERE removed_at IS NOT NULL) AS tombstones,
    (SELECT count(*) FROM store.test_documents) AS published,
    (SELECT count(*) FROM staging.rejects) + (SELECT count(*) FROM landing.rejected_rows) AS rejected,
    (SELECT count(*) FROM store.test_steps) AS steps,
    (SELECT count(*) FROM store.test_preconditions) AS preconditions,
    (SELECT count(*) FROM store.test_related_issues) AS related_issues,
    (SELECT max(updated_at) FROM store.test_documents) AS last_published_at;

-- name: rejects_by_reason
SELECT reason, count(*) AS cases, min(detail) AS example
FROM (SELECT reason, detail FROM staging.rejects UNION ALL SELECT reason, detail FROM landing.rejected_rows) r
GROUP BY reason ORDER BY reason;

-- name: spaces
SELECT s.name, s.model, s.dimensions, s.vector_type, s.strategy, s.ef_search, s.active,
       coalesce(jsonb_object_agg(b.kind, jsonb_build_object(
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
    in_project => :'project'::bigint[], query_model => :'model'::text);

-- name: search_steps
SELECT * FROM qbench.search_steps(
    :'query'::vector, k => :'k', with_priority => :'priority'::text[], with_tags => :'tags'::text[],
    with_platforms => :'platforms'::text[], with_test_type => :'test_type'::text[], in_folder => :'folder'::text,
    in_project => :'project'::bigint[], query_model => :'model'::text);

