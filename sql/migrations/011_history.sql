-- Each sync as a numbered entry, what it changed, and the published cases it replaced: a rollback restores them.

CREATE TABLE store.sync_runs (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('sync', 'rollback')),
    run_id      text UNIQUE,                  -- of Dagster; null for a rollback
    by          text NOT NULL,                -- who asked for it
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,                  -- null: under way, or its process was killed
    partitions  text[] NOT NULL,
    added       bigint NOT NULL,
    changed     bigint NOT NULL,
    removed     bigint NOT NULL,
    undoes      bigint REFERENCES store.sync_runs,
    purged_at   timestamptz,                  -- since then it can be neither shown case by case nor rolled back
    CHECK ((kind = 'rollback') = (undoes IS NOT NULL))
);
COMMENT ON TABLE store.sync_runs IS 'One row a run that changed published cases, and one a rollback.';

-- No foreign key: it would be looked up for every row of a first load, in a table of a few hundred.
CREATE TABLE store.change_log (
    sync_id      bigint NOT NULL,
    test_case_id bigint NOT NULL,
    before_hash  bytea,                       -- doc_hash; null: the case was not published
    after_hash   bytea,                       -- null: it is not published any more
    PRIMARY KEY (sync_id, test_case_id)
);
COMMENT ON TABLE store.change_log IS 'One row for each case that a sync changed.';

CREATE TABLE store.case_versions (
    test_case_id bigint NOT NULL,
    doc_hash     bytea NOT NULL,
    content      jsonb NOT NULL,              -- as store.current_versions makes it
    saved_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (test_case_id, doc_hash)
);
COMMENT ON TABLE store.case_versions IS 'Published cases as they were when they were replaced or removed, whole.';

CREATE TABLE store.held_cases (
    test_case_id bigint PRIMARY KEY,
    staged_hash  bytea,                       -- null: the source had the case no more, or it was rejected
    sync_id      bigint NOT NULL REFERENCES store.sync_runs,
    since        timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE store.held_cases IS
'Cases that a rollback put back: what is staged under staged_hash is not published again until the source changes.';

-- The published cases, each as one value: its row, and the rows that belong to it.
CREATE VIEW store.current_versions AS
SELECT d.test_case_id, d.doc_hash, jsonb_build_object(
    'document', to_jsonb(d),
    'steps', (SELECT coalesce(jsonb_agg(to_jsonb(s) ORDER BY s.step_index), '[]')
              FROM store.test_steps s WHERE s.test_case_id = d.test_case_id),
    'preconditions', (SELECT coalesce(jsonb_agg(to_jsonb(p) ORDER BY p.order_index), '[]')
                      FROM store.test_preconditions p WHERE p.test_case_id = d.test_case_id),
    'related_issues', (SELECT coalesce(jsonb_agg(to_jsonb(i) ORDER BY i.order_index), '[]')
                       FROM store.test_related_issues i WHERE i.test_case_id = d.test_case_id)) AS content
FROM store.test_documents d;

-- The holds in effect: the source is still as it was when the rollback was made.
CREATE VIEW store.holds AS
SELECT h.test_case_id, h.staged_hash, h.sync_id, h.since, d.test_case_id IS NOT NULL AS published
FROM store.held_cases h
LEFT JOIN staging.test_documents s ON s.case_id = h.test_case_id
LEFT JOIN store.test_documents d ON d.test_case_id = h.test_case_id
WHERE s.doc_hash IS NOT DISTINCT FROM h.staged_hash;

-- Everything of the source that is not published, with its reason.
CREATE VIEW store.rejects AS
SELECT case_id, reason, detail FROM staging.rejects
UNION ALL
SELECT case_id, reason, detail FROM landing.rejected_rows
UNION ALL
SELECT test_case_id, 'rolled_back',
       format('the sync that added it was undone by sync %s; to publish it all the same: qbench rollback %s %srelease',
              sync_id, sync_id, repeat('-', 2))  -- two dashes in a literal would begin a comment for who fills this in
FROM store.holds WHERE NOT published;
