-- Embedding spaces side by side: which there are, what they hold, where reads were moved.

-- name: find
SELECT name, model, dimensions, vector_type, embedder, text_prefix, query_prefix, recipe, active
FROM store.spaces ORDER BY name;

-- name: last_cutover
SELECT from_space, to_space FROM store.cutovers ORDER BY id DESC LIMIT 1;

-- name: record
INSERT INTO store.cutovers (from_space, to_space, by, report)
VALUES (:'from_space', :'to_space', :'by', :'report'::bigint);

-- name: last_report
SELECT max(id) FROM store.parity_reports WHERE space = :'space';

-- name: indexed_as
SELECT strategy, m, ef_construction, lists, shortened, ef_search, rerank
FROM store.index_builds WHERE space = :'space' AND kind = :'kind';

-- name: listing
SELECT s.name, s.model, s.dimensions, s.vector_type, s.embedder, s.text_prefix, s.query_prefix, s.recipe, s.active,
       s.created_at, z.bytes, z.index_bytes,
       (SELECT count(*) FROM store.batches b
        WHERE b.space = s.name AND b.state IN ('preparing', 'submitted')) AS open_batches,
       coalesce((SELECT jsonb_object_agg(b.kind, b.strategy) FROM store.index_builds b WHERE b.space = s.name), '{}') AS indexes,
       coalesce((SELECT jsonb_object_agg(b.kind, coalesce(b.recall #> '{measured,means}', '{}'))
                 FROM store.index_builds b WHERE b.space = s.name AND b.recall IS NOT NULL), '{}') AS recall
FROM store.spaces s
CROSS JOIN LATERAL (
    SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint AS bytes,
           coalesce(sum(pg_indexes_size(c.oid)), 0)::bigint AS index_bytes
    FROM pg_class c WHERE c.relnamespace = to_regnamespace(quote_ident(s.name)) AND c.relkind = 'r') z
ORDER BY s.name;

-- name: published_rows
SELECT (SELECT count(*) FROM store.test_documents) + (SELECT count(*) FROM store.test_steps);

-- name: bytes_of
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :'space' AND c.relkind = 'r';

-- name: dependents
-- Views elsewhere that read the space: somebody's own, for ours read the active one, and that is never dropped.
SELECT DISTINCT v.oid::regclass::text
FROM pg_depend d
JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_class v ON v.oid = r.ev_class
JOIN pg_class t ON d.refclassid = 'pg_class'::regclass AND t.oid = d.refobjid
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = :'space' AND v.relnamespace <> t.relnamespace
ORDER BY 1;

-- name: drop_schema
DROP SCHEMA :"space" CASCADE;

-- name: forget
DELETE FROM store.spaces WHERE name = :'space';
