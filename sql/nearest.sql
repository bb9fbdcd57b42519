-- The nearest texts and cases to a query vector under filters, for the functions of `qbench`. Independent of the space
-- they search, which is an argument.
--   psql -f nearest.sql
--
-- Complete under any filter: min(k, matching) rows come back, never fewer.

-- Loads pgvector, so that its settings below are known ones and need no superuser.
SELECT '[1]'::halfvec;

-- One definition of every filter. The planner inlines it and folds the nulls away, so that indexes on the columns are
-- used; a sub-query in it would keep it from that, and so phrases are not here.
CREATE OR REPLACE FUNCTION store.matches(d store.test_documents, f store.filter)
RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ((f).priority IS NULL OR (d).priority = ANY ((f).priority))
       AND ((f).tags IS NULL OR (d).tags OPERATOR(pg_catalog.&&) (f).tags)
       AND ((f).platforms IS NULL OR (d).platforms OPERATOR(pg_catalog.&&) (f).platforms)
       AND ((f).test_type IS NULL OR (d).test_type = ANY ((f).test_type))
       AND ((f).folder IS NULL OR starts_with((d).folder_structure, (f).folder))
       AND ((f).project IS NULL OR (d).project_id = ANY ((f).project))
       AND ((f).suite IS NULL OR (d).suite_id = ANY ((f).suite))
       AND ((f).updated_since IS NULL OR (d).source_updated_at >= (f).updated_since)
$$;

-- What is wrong with a query, said once for all functions. `given` is null where there is no query vector.
CREATE OR REPLACE FUNCTION store.check_query(
    space text, given vector, query_model text, k integer, min_similarity double precision
) RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    s CONSTANT store.spaces := (SELECT one FROM store.spaces one WHERE one.name = space);
    remedy CONSTANT text := format('Embed the query with %s in %s dimensions (view qbench.active_space tells), '
                                   'or move reads: qbench cutover SPACE.', s.model, s.dimensions);
BEGIN
    IF query_model <> s.model THEN
        RAISE EXCEPTION 'the query vector was made by %, the active space % by %', query_model, space, s.model
            USING ERRCODE = 'data_exception', HINT = remedy;
    ELSIF vector_dims(given) <> s.dimensions THEN
        RAISE EXCEPTION 'the query vector has % dimensions, the active space has % (%, made by %)',
            vector_dims(given), s.dimensions, space, s.model
            USING ERRCODE = 'data_exception', HINT = remedy;
    ELSIF vector_norm(given) = 0 THEN
        RAISE EXCEPTION 'the query vector is zero: it has no direction to search in' USING ERRCODE = 'data_exception';
    ELSIF k IS NULL OR k NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'k is %, it has to be from 1 to 1000', coalesce(k::text, 'null') USING ERRCODE = 'data_exception';
    ELSIF min_similarity NOT BETWEEN -1 AND 1 THEN  -- NaN is above all numbers
        RAISE EXCEPTION 'min_similarity is %, a cosine is from -1 to 1', min_similarity USING ERRCODE = 'data_exception';
    END IF;
END
$$;

-- How many rows the planner expects of a query: 0.2 ms, however many they are. EXPLAIN is refused in a stable function,
-- which may call a volatile one.
CREATE OR REPLACE FUNCTION store.expected_rows(query text, wanted store.filter) RETURNS double precision
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT JSON) ' || query INTO plan USING wanted;
    RETURN plan #>> '{0,Plan,Plan Rows}';
END
$$;

-- The k texts of a kind (doc, step) nearest to a query, of those that a published case matching `wanted` holds.
-- store.index_builds says how they are indexed; without an index all that match are compared exactly.
--
-- With one, its first texts are candidates: as many as recall needs (`depth`) where there is no filter, compared exactly,
-- and then taken in that order as long as a case holds them: looking that up takes 5 µs, comparing 1 to 8.
-- Under a filter that a share s of the texts match, only what matches is compared. It has fewer candidates of its own to
-- be found among: of a million, recall@10 0.99 takes 500 of all, 200 where half match, 45 of 5 %, which is depth * s ^ 0.8.
-- So depth * s ^ -0.2 texts are visited, and at least as many as should hold 4 k that match. If around the query fewer do,
-- twice as many are. Where the index (22 µs a text) would take longer than comparing all that match, those are
-- compared: up to 16,000 of a million at a depth of 500.
CREATE OR REPLACE FUNCTION store.nearest_texts(space text, kind text, query vector, k integer, wanted store.filter)
RETURNS TABLE (text_hash bytea, distance double precision)
LANGUAGE plpgsql STABLE ROWS 20
SET hnsw.ef_search = 40
SET hnsw.iterative_scan = relaxed_order
SET hnsw.max_scan_tuples = 2147483647
SET ivfflat.probes = 1
SET ivfflat.iterative_scan = relaxed_order
AS $$
#variable_conflict use_column
DECLARE
    s CONSTANT store.spaces := (SELECT one FROM store.spaces one WHERE one.name = space);
    build CONSTANT store.index_builds := (
        SELECT one FROM store.index_builds one WHERE (one.space, one.kind) = (s.name, nearest_texts.kind));
    vectors CONSTANT text := format('%I.%I v', s.name, kind || '_embeddings');
    -- As of the last ANALYZE or VACUUM; an index that rows were added to since it was built keeps the number of then.
    -- reltuples is -1 of a table that nobody has analyzed yet.
    texts CONSTANT double precision := greatest(1, build.rows, (
        SELECT c.reltuples FROM pg_class c WHERE c.oid = to_regclass(format('%I.%I', s.name, kind || '_embeddings'))));
    holder CONSTANT text := CASE kind WHEN 'doc' THEN 'd.text_hash' ELSE 'h.text_hash' END;
    holders CONSTANT text := CASE kind WHEN 'doc' THEN 'store.test_documents d'
        ELSE 'store.test_steps h JOIN store.test_documents d USING (test_case_id)' END
        || CASE WHEN wanted IS NULL THEN ' WHERE true' ELSE ' WHERE store.matches(d, $1)' END  -- null: all fields of it
        || CASE WHEN (wanted).phrases IS NULL THEN '' ELSE ' AND EXISTS (SELECT FROM store.test_words w
            WHERE w.test_case_id = d.test_case_id AND w.words @@ ($1).phrases)' END;
    candidates CONSTANT text := format('SELECT v.text_hash, v.embedding FROM %1$s ORDER BY %2$s LIMIT $4', vectors,
        CASE build.strategy
            WHEN 'binary' THEN
                format('binary_quantize(v.embedding)::bit(%1$s) <~> binary_quantize($2)::bit(%1$s)', s.dimensions)
            WHEN 'subvector' THEN
                format('subvector(v.embedding, 1, %1$s)::halfvec(%1$s) <=> subvector($2, 1, %1$s)::halfvec(%1$s)',
                       build.shortened)
            ELSE format('v.embedding::halfvec(%1$s) <=> $2::halfvec(%1$s)', s.dimensions) END);
    -- Adding 0 keeps the planner from answering the exact ranking from an approximate index.
    distance CONSTANT text := format('(v.embedding <=> $2::%I) + 0', s.vector_type);
    ranked CONSTANT text := 'SELECT v.text_hash, ' || distance || ' AS distance FROM ' || vectors
        || ' WHERE %s ORDER BY distance, v.text_hash LIMIT $3';
    depth CONSTANT double precision := greatest(build.rerank, 4 * k);
    exact_limit CONSTANT double precision := (4 * depth * sqrt(texts)) ^ (2.0 / 3);
    repeats double precision := 1;  -- rows of cases or steps for each of the texts
    matching double precision := texts;
    visits integer := depth;
    own double precision;  -- candidates that match
    hashes bytea[];
    distances double precision[];
BEGIN
    IF coalesce(build.strategy, 'exact') = 'exact' THEN
        RETURN QUERY EXECUTE format(ranked, format('EXISTS (SELECT FROM %s AND %s = v.text_hash)', holders, holder))
            USING wanted, query, k;
        RETURN;
    END IF;
    IF NOT (wanted IS NULL) THEN
        repeats := greatest(1, store.expected_rows(format('SELECT FROM store.%I', CASE kind WHEN 'doc' THEN 'test_documents'
            ELSE 'test_steps' END), wanted) / greatest(1, texts));
        matching := greatest(1, store.expected_rows('SELECT FROM ' || holders, wanted) / repeats);
        IF matching <= exact_limit THEN
            EXECUTE format('SELECT ARRAY(SELECT %s FROM %s LIMIT $2)', holder, holders)
                INTO hashes USING wanted, ceil(exact_limit * repeats) + 1;
            matching := greatest(1, cardinality(hashes) / repeats);
        END IF;
        visits := least(greatest(1.1 * depth * (texts / matching) ^ 0.2, 4 * k * texts / matching), 1000000);
    END IF;
    IF hashes IS NULL OR matching > exact_limit THEN
        PERFORM set_config(
            CASE build.strategy WHEN 'ivfflat' THEN 'ivfflat.probes' ELSE 'hnsw.ef_search' END, build.ef_search::text, true);
        LOOP
            EXECUTE format(CASE WHEN wanted IS NULL THEN
                    'SELECT array_agg(f.text_hash), array_agg(f.distance), count(*) FROM (
                        SELECT r.text_hash, r.distance
                        FROM (SELECT v.text_hash, %1$s AS distance FROM (%2$s) v ORDER BY distance, v.text_hash) r
                        WHERE (SELECT true FROM %3$s AND %4$s = r.text_hash LIMIT 1)
                        ORDER BY r.distance, r.text_hash LIMIT $3) f'
                ELSE
                    'SELECT (array_agg(f.text_hash ORDER BY f.distance, f.text_hash))[:$3],
                            (array_agg(f.distance ORDER BY f.distance, f.text_hash))[:$3], count(*) FROM (
                        SELECT v.text_hash, %1$s AS distance FROM (%2$s) v
                        WHERE (SELECT true FROM %3$s AND %4$s = v.text_hash LIMIT 1)) f'
                END, distance, candidates, holders, holder)
                INTO hashes, distances, own USING wanted, query, k, visits;
            IF (wanted IS NULL AND own = k) OR (own >= 3 * k AND visits >= depth * (visits / nullif(own, 0)) ^ 0.2) THEN
                RETURN QUERY SELECT * FROM unnest(hashes, distances);
                RETURN;
            END IF;
            visits := 2 * visits;
            EXIT WHEN 8 * visits > 3 * matching;
        END LOOP;
        EXECUTE format('SELECT ARRAY(SELECT %s FROM %s)', holder, holders) INTO hashes USING wanted;
    END IF;
    RETURN QUERY EXECUTE format(ranked, 'v.text_hash = ANY ($1)') USING hashes, query, k;
END
$$;

-- The k cases nearest to a query, except one: in the order of similarity, then of the id.
CREATE OR REPLACE FUNCTION store.nearest_cases(
    space text, query vector, k integer, wanted store.filter, min_similarity double precision, other_than bigint DEFAULT NULL
) RETURNS TABLE (test_case_id bigint, similarity double precision)
LANGUAGE sql STABLE ROWS 20 AS $$
    SELECT d.test_case_id, 1 - n.distance
    FROM store.nearest_texts(space, 'doc', query, k + num_nonnulls(other_than), wanted) n
    JOIN store.test_documents d USING (text_hash)
    WHERE store.matches(d, wanted) AND d.test_case_id IS DISTINCT FROM other_than
      AND ((wanted).phrases IS NULL OR EXISTS (
          SELECT FROM store.test_words w WHERE w.test_case_id = d.test_case_id AND w.words @@ (wanted).phrases))
      AND (min_similarity IS NULL OR 1 - n.distance >= min_similarity)
    ORDER BY n.distance, d.test_case_id LIMIT k
$$;

