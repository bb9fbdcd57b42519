-- The landing room: rows of the export, compared by content hash.

-- name: known_hashes
SELECT id, content_hash FROM landing.cases
WHERE id >= :'lower' AND id < :'upper' AND removed_at IS NULL;

-- name: known_ids
SELECT c.id FROM unnest(:'lowers'::bigint[], :'uppers'::bigint[]) AS r (lower, upper)
JOIN landing.cases c ON c.id >= r.lower AND c.id < r.upper
WHERE c.removed_at IS NULL
ORDER BY c.id;

-- name: count_held
SELECT (SELECT count(*) FROM landing.cases WHERE id >= :'lower' AND id < :'upper' AND removed_at IS NULL)
     + (SELECT count(*) FROM landing.rejected_rows
        WHERE CASE WHEN case_id IS NULL THEN :'with_idless' ELSE case_id >= :'lower' AND case_id < :'upper' END);

-- name: create_incoming
CREATE TEMPORARY TABLE IF NOT EXISTS incoming (id bigint, content_hash bytea, raw jsonb) ON COMMIT DROP;

-- name: copy_incoming
COPY pg_temp.incoming (id, content_hash, raw) FROM STDIN (FORMAT BINARY);

-- name: upsert_cases
INSERT INTO landing.cases (id, content_hash, raw)
SELECT id, content_hash, raw FROM pg_temp.incoming
ON CONFLICT (id) DO UPDATE
SET content_hash = excluded.content_hash, raw = excluded.raw, landed_at = now(), removed_at = NULL;

-- name: bury_cases
-- A tombstone instead of a DELETE: a case that comes back is recognised, and history keeps the row.
UPDATE landing.cases SET removed_at = now() WHERE id = ANY (:'ids') AND removed_at IS NULL;

-- name: known_rejected_rows
SELECT content_hash, occurrence FROM landing.rejected_rows
WHERE CASE WHEN case_id IS NULL THEN :'with_idless' ELSE case_id >= :'lower' AND case_id < :'upper' END;

-- name: insert_rejected_row
INSERT INTO landing.rejected_rows (content_hash, occurrence, case_id, reason, detail, raw)
VALUES (:'content_hash', :'occurrence', :'case_id', :'reason', :'detail', :'raw')
ON CONFLICT DO NOTHING;

-- name: delete_rejected_row
DELETE FROM landing.rejected_rows WHERE content_hash = :'content_hash' AND occurrence = :'occurrence';

-- name: lookup_hash
SELECT content_hash FROM landing.lookup_tables WHERE name = :'name';

-- name: record_lookup
INSERT INTO landing.lookup_tables (name, content_hash) VALUES (:'name', :'content_hash')
ON CONFLICT (name) DO UPDATE SET content_hash = excluded.content_hash, landed_at = now();

-- name: replace_lookup
-- Look-up tables are small (25,000 sections are the largest): replaced whole, written where they differ.
WITH incoming AS (
    SELECT row ->> 'id' AS key, row ->> 'name' AS name, row AS raw
    FROM jsonb_array_elements(:'rows'::jsonb) AS row
    WHERE row ->> 'id' IS NOT NULL
), gone AS (
    DELETE FROM landing.:"table" AS t WHERE NOT EXISTS (SELECT FROM incoming i WHERE i.key = t.key)
    RETURNING 1
), written AS (
    INSERT INTO landing.:"table" AS t (key, name, raw)
    SELECT DISTINCT ON (key) key, name, raw FROM incoming ORDER BY key
    ON CONFLICT (key) DO UPDATE SET name = excluded.name, raw = excluded.raw
    WHERE (t.name, t.raw) IS DISTINCT FROM (excluded.name, excluded.raw)
    RETURNING 1
)
SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM written);

-- name: replace_sections
-- The same, with the path of each section from its root.
WITH incoming AS (
    SELECT row ->> 'id' AS key, row ->> 'name' AS name, row AS raw, :'paths'::jsonb ->> (row ->> 'id') AS path
    FROM jsonb_array_elements(:'rows'::jsonb) AS row
    WHERE row ->> 'id' IS NOT NULL
), gone AS (
    DELETE FROM landing.sections AS t WHERE NOT EXISTS (SELECT FROM incoming i WHERE i.key = t.key)
    RETURNING 1
), written AS (
    INSERT INTO landing.sections AS t (key, name, raw, path)
    SELECT DISTINCT ON (key) key, name, raw, path FROM incoming ORDER BY key
    ON CONFLICT (key) DO UPDATE SET name = excluded.name, raw = excluded.raw, path = excluded.path
    WHERE (t.name, t.raw, t.path) IS DISTINCT FROM (excluded.name, excluded.raw, excluded.path)
    RETURNING 1
)
SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM written);
