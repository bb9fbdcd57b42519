-- The public face: the schema `qbench`, which is all that qbench_reader sees.
--   psql -v space=space_lexical_3072 -v vector_type=halfvec -f face.sql
--
-- Moving to another space, and back, is running this, search.sql and reader.sql again with its name, in one
-- transaction that also moves store.spaces.active: `qbench cutover` does that.

CREATE SCHEMA IF NOT EXISTS qbench;

-- The cast without a dimension lets a space of other dimensions take this view's place, and the planner
-- still uses the index on halfvec(3072).
CREATE OR REPLACE VIEW qbench.test_documents AS
SELECT d.test_case_id AS id, d.test_case_id, d.uid, d.jira_key, d.title, d.description, d.summary,
       e.embedding:::"vector_type" AS embedding,
       d.test_type, d.priority, d.platforms, d.tags, d.folder_structure,
       d.suite_id, d.section_id, d.project_id,
       d.source, d.ingested_at, d.updated_at,
       d.is_automated, d.refs, d.custom_fields, d.source_created_at, d.source_updated_at
FROM store.test_documents d
JOIN :"space".doc_embeddings e USING (text_hash);

CREATE OR REPLACE VIEW qbench.test_steps AS
SELECT s.test_case_id * 65536 + s.step_index AS id, s.test_case_id AS test_document_id, s.test_case_id,
       s.step_index, s.action, s.expected, s.data,
       e.embedding:::"vector_type" AS embedding
FROM store.test_steps s
JOIN :"space".step_embeddings e USING (text_hash);

CREATE OR REPLACE VIEW qbench.test_preconditions AS
SELECT p.test_case_id * 65536 + p.order_index AS id, p.test_case_id AS test_document_id, p.test_case_id,
       p.condition, p.order_index
FROM store.test_preconditions p;

CREATE OR REPLACE VIEW qbench.test_related_issues AS
SELECT i.test_case_id * 65536 + i.order_index AS id, i.test_case_id AS test_document_id, i.test_case_id,
       i.issue_key, i.issue_type
FROM store.test_related_issues i;

CREATE OR REPLACE VIEW qbench.active_space AS
SELECT s.name, s.model, s.dimensions, s.vector_type, s.query_prefix
FROM store.spaces s WHERE s.active;

COMMENT ON SCHEMA qbench IS 'What the application reads: test cases, their steps, vectors and search functions.';
COMMENT ON VIEW qbench.test_documents IS 'One row per published test case, with its embedding.';
COMMENT ON COLUMN qbench.test_documents.folder_structure IS
'Section names from the root, joined by /. A / inside a name is written \/ and a backslash \\.';
COMMENT ON VIEW qbench.test_steps IS 'One row per step of a published test case, with its embedding. step_index counts from 1.';
COMMENT ON VIEW qbench.test_preconditions IS 'The preconditions of published test cases. order_index counts from 0.';
COMMENT ON VIEW qbench.test_related_issues IS 'References of published test cases: Jira keys, URLs, numbers.';
COMMENT ON VIEW qbench.active_space IS
'One row: the embedding space that views and functions read. Embed queries, query_prefix put before them, with its model and dimensions.';
