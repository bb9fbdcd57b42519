-- Search by vector over the active space, as functions that any language can call. How: nearest.sql. By words: words.sql.
--   psql -v space=space_lexical_3072 -v vector_type=halfvec -v vector_schema=public -f search.sql

-- A query looks its function up and calls it later, with no lock in between: where it was dropped in the meantime, the
-- reader gets "cache lookup failed for function". So one of the same signature is replaced in place, and another one (an
-- older version's, or of the other vector type) steps aside into `store`: it answers whoever found it, with the space it
-- was made for, and is dropped the next time.
DO $$
DECLARE
    filters CONSTANT text := 'text[], text[], text[], text[], text, bigint[], bigint[], timestamptz';
    vectors CONSTANT text := (SELECT atttypid::regtype FROM pg_attribute
                              WHERE attrelid = 'qbench.test_documents'::regclass AND attname = 'embedding');
    replaced CONSTANT oid[] := ARRAY(
        SELECT to_regprocedure(format(f.signature, vectors, filters))::oid
        FROM unnest(ARRAY['qbench.search_documents(%1$s, integer, %2$s, float8, text)',
                          'qbench.search_steps(%1$s, integer, %2$s, float8, text)',
                          'qbench.similar_documents(bigint, integer, %2$s, float8)',
                          'qbench.search_hybrid(text, %1$s, integer, %2$s, float8, float8, float8, text)',
                          'qbench.find_by_jira_key(text, integer, %2$s)']) AS f (signature));
    existing oid;
BEGIN
    FOR existing IN
        SELECT oid FROM pg_proc WHERE pronamespace = 'store'::regnamespace AND proname LIKE 'retired\_%'
    LOOP
        EXECUTE format('DROP FUNCTION %s', existing::regprocedure);
    END LOOP;
    IF FOUND THEN  -- what those of version 3 called
        EXECUTE format('DROP FUNCTION IF EXISTS store.check_query(%s, integer, text, text, text, integer)', vectors);
        DROP FUNCTION IF EXISTS store.matches(
            text, text[], text[], text, text, bigint, text[], text[], text[], text[], text, bigint[]);
    END IF;
    FOR existing IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = 'qbench'::regnamespace AND oid <> ALL (array_remove(replaced, NULL))
          AND proname IN ('search_documents', 'search_steps', 'similar_documents', 'search_hybrid', 'find_by_jira_key')
    LOOP
        IF EXISTS (SELECT FROM pg_depend
                   WHERE refclassid = 'pg_proc'::regclass AND refobjid = existing AND deptype = 'n') THEN
            RAISE EXCEPTION 'other objects depend on function %', existing::regprocedure
                USING ERRCODE = 'dependent_objects_still_exist';
        END IF;
        EXECUTE (SELECT format('ALTER FUNCTION %s RENAME TO retired_%s', oid::regprocedure, proname)
                 FROM pg_proc WHERE oid = existing);
        EXECUTE format('ALTER FUNCTION %s SET SCHEMA store', existing::regprocedure);
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION qbench.search_documents(
    query_vector :"vector_type",
    k integer DEFAULT 10,
    with_priority text[] DEFAULT NULL,
    with_tags text[] DEFAULT NULL,
    with_platforms text[] DEFAULT NULL,
    with_test_type text[] DEFAULT NULL,
    in_folder text DEFAULT NULL,
    in_project bigint[] DEFAULT NULL,
    with_suite bigint[] DEFAULT NULL,
    updated_since timestamptz DEFAULT NULL,
    min_similarity double precision DEFAULT NULL,
    query_model text DEFAULT NULL
) RETURNS TABLE (
    test_case_id bigint, similarity double precision, uid text, jira_key text, title text, description text,
    priority text, test_type text, platforms text[], tags text[], folder_structure text, project_id bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = store, :"space", :"vector_schema", pg_temp
AS $$
#variable_conflict use_column
DECLARE
    -- The space this function was made for, the second of its search_path. Not the active one: a query that began
    -- before a cut-over may call the function from after it, and would see the other space as active.
    space CONSTANT text := (current_schemas(false))[2];
    wanted CONSTANT store.filter := ROW(with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project,
                                        with_suite, updated_since, NULL);
BEGIN
    IF query_vector IS NULL THEN
        RAISE EXCEPTION 'the query vector is null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM check_query(space, query_vector::vector, query_model, k, min_similarity);
    RETURN QUERY
    SELECT d.test_case_id, n.similarity, d.uid, d.jira_key, d.title, d.description, d.priority, d.test_type,
           d.platforms, d.tags, d.folder_structure, d.project_id
    FROM nearest_cases(space, query_vector::vector, k, wanted, min_similarity) n JOIN test_documents d USING (test_case_id)
    ORDER BY n.similarity DESC, d.test_case_id;
END
$$;
COMMENT ON FUNCTION qbench.search_documents IS
'The k test cases nearest to a query vector. Tags and platforms match any of those given; in_folder is a prefix;
updated_since is about source_updated_at; min_similarity is a cosine. Complete under any filter: with few matching cases, or
where the index finds too few, all that match are compared exactly.
query_model: the model that made the vector; one other than the active space''s is an error. Without it, a vector of another
model with the same number of dimensions cannot be told from a right one, and finds nonsense: pass it.';

CREATE OR REPLACE FUNCTION qbench.similar_documents(
    case_id bigint,
    k integer DEFAULT 10,
    with_priority text[] DEFAULT NULL,
    with_tags text[] DEFAULT NULL,
    with_platforms text[] DEFAULT NULL,
    with_test_type text[] DEFAULT NULL,
    in_folder text DEFAULT NULL,
    in_project bigint[] DEFAULT NULL,
    with_suite bigint[] DEFAULT NULL,
    updated_since timestamptz DEFAULT NULL,
    min_similarity double precision DEFAULT NULL
) RETURNS TABLE (
    test_case_id bigint, similarity double precision, uid text, jira_key text, title text, description text,
    priority text, test_type text, platforms text[], tags text[], folder_structure text, project_id bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = store, :"space", :"vector_schema", pg_temp
AS $$
#variable_conflict use_column
DECLARE
    space CONSTANT text := (current_schemas(false))[2];
    wanted CONSTANT store.filter := ROW(with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project,
                                        with_suite, updated_since, NULL);
    query_vector CONSTANT vector := (
        SELECT e.embedding FROM test_documents d JOIN doc_embeddings e USING (text_hash) WHERE d.test_case_id = case_id);
BEGIN
    IF query_vector IS NULL THEN
        RAISE EXCEPTION 'there is no published test case %', coalesce(case_id::text, 'null') USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM check_query(space, query_vector, NULL, k, min_similarity);
    RETURN QUERY
    SELECT d.test_case_id, n.similarity, d.uid, d.jira_key, d.title, d.description, d.priority, d.test_type,
           d.platforms, d.tags, d.folder_structure, d.project_id
    FROM nearest_cases(space, query_vector, k, wanted, min_similarity, case_id) n JOIN test_documents d USING (test_case_id)
    ORDER BY n.similarity DESC, d.test_case_id;
END
$$;
COMMENT ON FUNCTION qbench.similar_documents IS
'The k test cases nearest to one of them, by its stored vector; cases of the very same text come first, at 1. Filters as in
search_documents.';

CREATE OR REPLACE FUNCTION qbench.search_steps(
    query_vector :"vector_type",
    k integer DEFAULT 10,
    with_priority text[] DEFAULT NULL,
    with_tags text[] DEFAULT NULL,
    with_platforms text[] DEFAULT NULL,
    with_test_type text[] DEFAULT NULL,
    in_folder text DEFAULT NULL,
    in_project bigint[] DEFAULT NULL,
    with_suite bigint[] DEFAULT NULL,
    updated_since timestamptz DEFAULT NULL,
    min_similarity double precision DEFAULT NULL,
    query_model text DEFAULT NULL
) RETURNS TABLE (
    test_case_id bigint, step_index integer, similarity double precision, action text, expected text[], data text,
    title text, cases bigint, test_case_ids bigint[]
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = store, :"space", :"vector_schema", pg_temp
AS $$
#variable_conflict use_column
DECLARE
    space CONSTANT text := (current_schemas(false))[2];
    wanted CONSTANT store.filter := ROW(with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project,
                                        with_suite, updated_since, NULL);
BEGIN
    IF query_vector IS NULL THEN
        RAISE EXCEPTION 'the query vector is null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM check_query(space, query_vector::vector, query_model, k, min_similarity);
    RETURN QUERY
    SELECT first.test_case_id, first.step_index, 1 - n.distance, first.action, first.expected, first.data, first.title,
           cardinality(holders.ids)::bigint, holders.ids[1:100]
    FROM nearest_texts(space, 'step', query_vector::vector, k, wanted) n
    CROSS JOIN LATERAL (
        SELECT ARRAY(
            SELECT DISTINCT s.test_case_id FROM test_steps s JOIN test_documents d USING (test_case_id)
            WHERE s.text_hash = n.text_hash AND matches(d, wanted)
            ORDER BY s.test_case_id) AS ids) holders
    CROSS JOIN LATERAL (
        SELECT s.test_case_id, s.step_index, s.action, s.expected, s.data, d.title
        FROM test_steps s JOIN test_documents d USING (test_case_id)
        WHERE s.test_case_id = holders.ids[1] AND s.text_hash = n.text_hash
        ORDER BY s.step_index LIMIT 1) first
    WHERE min_similarity IS NULL OR 1 - n.distance >= min_similarity
    ORDER BY n.distance, n.text_hash;
END
$$;
COMMENT ON FUNCTION qbench.search_steps IS
'The k distinct steps nearest to a query vector: each with the first case that holds it, how many do, and up to 100 ids.
Filters and min_similarity as in search_documents. query_model: without it, a vector of another model with the same number of
dimensions cannot be told from a right one, and finds nonsense: pass it.';
