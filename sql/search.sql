-- Search over the active space, as functions that any language can call.
--   psql -v space=space_lexical_3072 -v vector_type=halfvec -v vector_schema=public -f search.sql
--
-- Complete under any filter: min(k, matching) rows come back, never fewer. Where at most 2,000 documents match a
-- filter they are compared exactly (about 1.2 ms per 1,000); otherwise the HNSW index is scanned until enough
-- candidates match, and should the scan give up first (hnsw.max_scan_tuples), the search falls back to exact.

-- Loads pgvector, so that its settings below are known ones and need no superuser.
SELECT '[1]'::halfvec;

-- A query looks its function up and calls it later, with no lock in between: where it was dropped in the meantime, the
-- reader gets "cache lookup failed for function". So one of the same signature is replaced in place, and another one (an
-- older version's, or of the other vector type) steps aside into `store`: it answers whoever found it, with the space it
-- was made for, and is dropped the next time.
DO $$
DECLARE
    existing oid;
    vectors oid := (SELECT atttypid FROM pg_attribute
                    WHERE attrelid = 'qbench.test_documents'::regclass AND attname = 'embedding');
BEGIN
    FOR existing IN
        SELECT oid FROM pg_proc WHERE pronamespace = 'store'::regnamespace AND proname LIKE 'retired\_search\_%'
    LOOP
        EXECUTE format('DROP FUNCTION %s', existing::regprocedure);
    END LOOP;
    FOR existing IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = 'qbench'::regnamespace AND proname IN ('search_documents', 'search_steps')
          AND NOT (pronargs = 9 AND proargtypes[0] = vectors)
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
DROP FUNCTION IF EXISTS store.check_query(:"vector_type", integer, integer);

-- One definition of every filter. The planner inlines it, so that indexes on the columns are used.
CREATE OR REPLACE FUNCTION store.matches(
    d_priority text, d_tags text[], d_platforms text[], d_test_type text, d_folder text, d_project bigint,
    with_priority text[], with_tags text[], with_platforms text[], with_test_type text[], in_folder text,
    in_project bigint[]
) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (with_priority IS NULL OR d_priority = ANY (with_priority))
       AND (with_tags IS NULL OR d_tags && with_tags)
       AND (with_platforms IS NULL OR d_platforms && with_platforms)
       AND (with_test_type IS NULL OR d_test_type = ANY (with_test_type))
       AND (in_folder IS NULL OR starts_with(d_folder, in_folder))
       AND (in_project IS NULL OR d_project = ANY (in_project))
$$;

-- What is wrong with a query, said once for both functions.
CREATE OR REPLACE FUNCTION store.check_query(
    given :"vector_type", k integer, query_model text, space text, model text, dimensions integer
) RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    remedy CONSTANT text := format('Embed the query with %s in %s dimensions (view qbench.active_space tells), '
                                   'or move reads: qbench cutover SPACE.', model, dimensions);
BEGIN
    IF given IS NULL THEN
        RAISE EXCEPTION 'the query vector is null' USING ERRCODE = 'null_value_not_allowed';
    ELSIF query_model <> model THEN
        RAISE EXCEPTION 'the query vector was made by %, the active space % by %', query_model, space, model
            USING ERRCODE = 'data_exception', HINT = remedy;
    ELSIF vector_dims(given) <> dimensions THEN
        RAISE EXCEPTION 'the query vector has % dimensions, the active space has % (%, made by %)',
            vector_dims(given), dimensions, space, model
            USING ERRCODE = 'data_exception', HINT = remedy;
    ELSIF vector_norm(given::vector) = 0 THEN
        RAISE EXCEPTION 'the query vector is zero: it has no direction to search in' USING ERRCODE = 'data_exception';
    ELSIF k IS NULL OR k NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'k is %, it has to be from 1 to 1000', coalesce(k::text, 'null') USING ERRCODE = 'data_exception';
    END IF;
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
    query_model text DEFAULT NULL
) RETURNS TABLE (
    test_case_id bigint, similarity double precision, uid text, jira_key text, title text, description text,
    priority text, test_type text, platforms text[], tags text[], folder_structure text, project_id bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = store, :"space", :"vector_schema", pg_temp
SET plan_cache_mode = force_custom_plan
SET hnsw.iterative_scan = relaxed_order
SET hnsw.ef_search = 100
AS $$
#variable_conflict use_column
DECLARE
    exact_limit CONSTANT integer := 2000;
    space record;
    query_bits varbit;
    candidates integer;
    nearest bytea[];
    filtered boolean := num_nonnulls(with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project) > 0;
    exact boolean;
BEGIN
    -- The space this function was made for, the second of its search_path. Not the active one: a query that began
    -- before a cut-over may call the function from after it, and would see the other space as active.
    SELECT s.* INTO space FROM spaces s WHERE s.name = (current_schemas(false))[2];
    PERFORM check_query(query_vector, k, query_model, space.name, space.model, space.dimensions);
    exact := space.strategy = 'none';
    IF NOT exact AND filtered THEN
        SELECT count(*) <= exact_limit INTO exact FROM (
            SELECT FROM test_documents d
            WHERE matches(d.priority, d.tags, d.platforms, d.test_type, d.folder_structure, d.project_id,
                          with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project)
            LIMIT exact_limit + 1) m;
    END IF;
    IF NOT exact THEN
        candidates := greatest(space.ef_search, 4 * k);
        PERFORM set_config('hnsw.ef_search', space.ef_search::text, true);
        IF space.strategy = 'binary' THEN
            query_bits := binary_quantize(query_vector);
            nearest := ARRAY(
                SELECT v.text_hash FROM doc_vectors v
                WHERE EXISTS (
                    SELECT FROM test_documents d WHERE d.text_hash = v.text_hash
                    AND matches(d.priority, d.tags, d.platforms, d.test_type, d.folder_structure, d.project_id,
                                with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project))
                ORDER BY v.bits <~> query_bits LIMIT candidates);
        ELSE
            nearest := ARRAY(
                SELECT v.text_hash FROM doc_vectors v
                WHERE EXISTS (
                    SELECT FROM test_documents d WHERE d.text_hash = v.text_hash
                    AND matches(d.priority, d.tags, d.platforms, d.test_type, d.folder_structure, d.project_id,
                                with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project))
                ORDER BY v.half <=> query_vector::halfvec LIMIT candidates);
        END IF;
        exact := cardinality(nearest) < k;
    END IF;
    -- Adding 0 keeps the planner from answering the exact ranking from an approximate index.
    IF exact THEN
        RETURN QUERY
        SELECT d.test_case_id, 1 - r.distance, d.uid, d.jira_key, d.title, d.description, d.priority, d.test_type,
               d.platforms, d.tags, d.folder_structure, d.project_id
        FROM test_documents d
        JOIN doc_embeddings e USING (text_hash)
        CROSS JOIN LATERAL (SELECT (e.embedding <=> query_vector) + 0 AS distance) r
        WHERE matches(d.priority, d.tags, d.platforms, d.test_type, d.folder_structure, d.project_id,
                      with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project)
        ORDER BY r.distance, d.test_case_id LIMIT k;
    ELSE
        RETURN QUERY
        SELECT d.test_case_id, 1 - r.distance, d.uid, d.jira_key, d.title, d.description, d.priority, d.test_type,
               d.platforms, d.tags, d.folder_structure, d.project_id
        FROM (SELECT e.text_hash, (e.embedding <=> query_vector) + 0 AS distance
              FROM doc_embeddings e WHERE e.text_hash = ANY (nearest)
              ORDER BY distance LIMIT k) r
        JOIN test_documents d USING (text_hash)
        WHERE matches(d.priority, d.tags, d.platforms, d.test_type, d.folder_structure, d.project_id,
                      with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project)
        ORDER BY r.distance, d.test_case_id LIMIT k;
    END IF;
END
$$;
COMMENT ON FUNCTION qbench.search_documents IS
'The k test cases nearest to a query vector. Tags and platforms match any of those given; in_folder is a prefix.
query_model: the model that made the vector; one other than the active space''s is an error. Without it, a vector of another
model with the same number of dimensions cannot be told from a right one, and finds nonsense: pass it.';

CREATE OR REPLACE FUNCTION qbench.search_steps(
    query_vector :"vector_type",
    k integer DEFAULT 10,
    with_priority text[] DEFAULT NULL,
    with_tags text[] DEFAULT NULL,
    with_platforms text[] DEFAULT NULL,
    with_test_type text[] DEFAULT NULL,
    in_folder text DEFAULT NULL,
    in_project bigint[] DEFAULT NULL,
    query_model text DEFAULT NULL
) RETURNS TABLE (
    test_case_id bigint, step_index integer, similarity double precision, action text, expected text[], data text,
    title text, cases bigint, test_case_ids bigint[]
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = store, :"space", :"vector_schema", pg_temp
SET plan_cache_mode = force_custom_plan
SET hnsw.iterative_scan = relaxed_order
SET hnsw.ef_search = 100
AS $$
#variable_conflict use_column
DECLARE
    exact_limit CONSTANT integer := 2000;
    space record;
    query_bits varbit;
    candidates integer;
    nearest bytea[];
    filtered boolean := num_nonnulls(with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project) > 0;
    exact boolean;
BEGIN
    -- The space this function was made for, the second of its search_path. Not the active one: a query that began
    -- before a cut-over may call the function from after it, and would see the other space as active.
    SELECT s.* INTO space FROM spaces s WHERE s.name = (current_schemas(false))[2];
    PERFORM check_query(query_vector, k, query_model, space.name, space.model, space.dimensions);
    exact := space.strategy = 'none';
    IF NOT exact AND filtered THEN
        SELECT count(*) <= exact_limit INTO exact FROM (
            SELECT FROM test_documents d JOIN test_steps s USING (test_case_id)
            WHERE matches(d.priority, d.tags, d.platforms, d.test_type, d.folder_structure, d.project_id,
                          with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project)
            LIMIT exact_limit + 1) m;
    END IF;
    IF NOT exact THEN
        candidates := greatest(space.ef_search, 4 * k);
        PERFORM set_config('hnsw.ef_search', space.ef_search::text, true);
        IF space.strategy = 'binary' THEN
            query_bits := binary_quantize(query_vector);
            nearest := ARRAY(
                SELECT v.text_hash FROM step_vectors v
                WHERE EXISTS (
                    SELECT FROM test_steps s JOIN test_documents d USING (test_case_id) WHERE s.text_hash = v.text_hash
                    AND matches(d.priority, d.tags, d.platforms, d.test_type, d.folder_structure, d.project_id,
                                with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project))
                ORDER BY v.bits <~> query_bits LIMIT candidates);
        ELSE
            nearest := ARRAY(
                SELECT v.text_hash FROM step_vectors v
                WHERE EXISTS (
                    SELECT FROM test_steps s JOIN test_documents d USING (test_case_id) WHERE s.text_hash = v.text_hash
                    AND matches(d.priority, d.tags, d.platforms, d.test_type, d.folder_structure, d.project_id,
                                with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project))
                ORDER BY v.half <=> query_vector::halfvec LIMIT candidates);
        END IF;
        exact := cardinality(nearest) < k;
    END IF;
    IF exact THEN
        nearest := ARRAY(
            SELECT e.text_hash FROM step_embeddings e
            WHERE e.text_hash IN (
                SELECT s.text_hash FROM test_documents d JOIN test_steps s USING (test_case_id)
                WHERE matches(d.priority, d.tags, d.platforms, d.test_type, d.folder_structure, d.project_id,
                              with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project))
            ORDER BY (e.embedding <=> query_vector) + 0, e.text_hash LIMIT k);
    END IF;
    RETURN QUERY
    SELECT first.test_case_id, first.step_index, 1 - r.distance, first.action, first.expected, first.data, first.title,
           cardinality(holders.ids)::bigint, holders.ids[1:100]
    FROM (SELECT e.text_hash, (e.embedding <=> query_vector) + 0 AS distance
          FROM step_embeddings e WHERE e.text_hash = ANY (nearest)
          ORDER BY distance, e.text_hash LIMIT k) r
    CROSS JOIN LATERAL (
        SELECT ARRAY(
            SELECT DISTINCT s.test_case_id FROM test_steps s JOIN test_documents d USING (test_case_id)
            WHERE s.text_hash = r.text_hash
              AND matches(d.priority, d.tags, d.platforms, d.test_type, d.folder_structure, d.project_id,
                          with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project)
            ORDER BY s.test_case_id) AS ids) holders
    CROSS JOIN LATERAL (
        SELECT s.test_case_id, s.step_index, s.action, s.expected, s.data, d.title
        FROM test_steps s JOIN test_documents d USING (test_case_id)
        WHERE s.test_case_id = holders.ids[1] AND s.text_hash = r.text_hash
        ORDER BY s.step_index LIMIT 1) first
    ORDER BY r.distance, r.text_hash;
END
$$;
COMMENT ON FUNCTION qbench.search_steps IS
'The k distinct steps nearest to a query vector: each with the first case that holds it, how many do, and up to 100 ids.
query_model: the model that made the vector; one other than the active space''s is an error. Without it, a vector of another
model with the same number of dimensions cannot be told from a right one, and finds nonsense: pass it.';
