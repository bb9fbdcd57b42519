-- Search by words, by words and vector together, and by reference.
--   psql -v space=space_lexical_3072 -v vector_type=halfvec -v vector_schema=public -f words.sql
--
-- A case matches the words of a query if it holds all of them, or any of the rare ones: fewer than 1,000 cases have a
-- rare one, as far as the statistics of store.test_words tell. So "crash in PROJ-123 on login" finds the case that only
-- holds PROJ-123, and a query of common words ranks no more than those that have them all. What says less than half of
-- what the best says is left out: by being second-rate in both rankings it would stand before PROJ-123 when they are
-- fused. Phrases in quotation marks are required in any case.

-- The words and phrases of a query, each with the share of cases that hold it: 0 where it is not among the common ones.
-- What punctuation joins is a phrase too, as in the cases. The first 10,000 characters and 64 words count, and of a word
-- the first 300: a phrase of 10,000 characters without spaces takes seconds.
CREATE OR REPLACE FUNCTION store.query_words(query text)
RETURNS TABLE (word tsquery, required boolean, share double precision)
LANGUAGE plpgsql STABLE ROWS 5
SET client_min_messages = warning  -- or each part without a word is told
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH given AS (SELECT left(query, 10000) AS text),
    parts AS (
        SELECT CASE WHEN length(quoted[1]) > 300  -- to a whole word: a cut one would find nothing
                    THEN coalesce(nullif(regexp_replace(left(quoted[1], 300), '\S*$', ''), ''), left(quoted[1], 300))
                    ELSE quoted[1] END AS part, true AS required
        FROM given, regexp_matches(given.text, '"([^"]*)"', 'g') AS quoted
        UNION ALL
        SELECT left(part, 300), false
        FROM given, regexp_split_to_table(regexp_replace(given.text, '"[^"]*"', ' ', 'g'), '\s+') AS part),
    words AS (
        SELECT phraseto_tsquery('pg_catalog.simple', store.plain_text(part)) AS word, bool_or(required) AS required,
               min(part) AS part
        FROM parts GROUP BY 1 HAVING numnode(phraseto_tsquery('pg_catalog.simple', store.plain_text(min(part)))) > 0
        ORDER BY 2 DESC LIMIT 64),
    common AS MATERIALIZED (
        SELECT c.lexeme, c.share
        FROM pg_stats s, unnest(s.most_common_elems::text::text[], s.most_common_elem_freqs) AS c (lexeme, share)
        WHERE (s.schemaname, s.tablename, s.attname) = ('store', 'test_words', 'words') AND c.lexeme IS NOT NULL)
    SELECT w.word, w.required, (
        SELECT min(coalesce(c.share, 0))
        FROM unnest(tsvector_to_array(store.words_of(w.part))) AS l (lexeme)
        LEFT JOIN common c USING (lexeme))::double precision
    FROM words w;
END
$$;

-- The k cases that match the words of a query best: by the sum of log(rows / rows that have it)² over the words they hold,
-- then by where and how close together they stand. `near` are cases to look at besides: a query of common words
-- matches more than the depth of 300 that are ranked.
CREATE OR REPLACE FUNCTION store.cases_with_words(query text, k integer, wanted store.filter, near bigint[])
RETURNS TABLE (test_case_id bigint)
LANGUAGE plpgsql STABLE ROWS 50 AS $$
DECLARE
    rare_rows CONSTANT integer := 1000;
    total CONSTANT double precision := (
        SELECT greatest(reltuples, 1) FROM pg_class WHERE oid = 'store.test_words'::regclass);
    words tsquery[];
    shares double precision[];
    all_words tsquery;
    any_word tsquery;
BEGIN
    SELECT array_agg(w.word), array_agg(w.share), string_agg('(' || w.word::text || ')', ' & ')::tsquery,
           string_agg('(' || w.word::text || ')', ' | ')::tsquery
    INTO words, shares, all_words, any_word
    FROM store.query_words(query) w WHERE NOT w.required;
    IF words IS NULL AND (wanted).phrases IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($statement$
        WITH words AS (SELECT * FROM unnest($1, $2) WITH ORDINALITY AS w (word, share, n)),
        hits AS MATERIALIZED (
            SELECT r.n, h.test_case_id FROM words r CROSS JOIN LATERAL (
                SELECT d.test_case_id FROM store.test_words w JOIN store.test_documents d USING (test_case_id)
                WHERE w.words @@ r.word AND store.matches(d, $3) %1$s LIMIT $4) h
            WHERE r.share * $5 < $4),
        weights AS MATERIALIZED (
            SELECT w.n, w.word, ln(1 + $5 / greatest(
                w.share * $5, (SELECT count(*) FROM hits h WHERE h.n = w.n), 1)) ^ 2 AS idf
            FROM words w),
        candidates AS (
            (SELECT h.test_case_id FROM hits h JOIN weights USING (n)
             GROUP BY 1 ORDER BY sum(idf) DESC, 1 LIMIT $6)
            UNION
            (SELECT d.test_case_id FROM store.test_words w JOIN store.test_documents d USING (test_case_id)
             WHERE %2$s AND store.matches(d, $3) %1$s LIMIT $6)
            UNION
            (SELECT d.test_case_id FROM store.test_words w JOIN store.test_documents d USING (test_case_id)
             WHERE d.test_case_id = ANY ($9) AND %2$s AND store.matches(d, $3) %1$s))
        SELECT r.test_case_id FROM (
            SELECT c.test_case_id, w.words, s.said, max(s.said) OVER () AS most
            FROM candidates c JOIN store.test_words w USING (test_case_id)
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(g.idf), 0) AS said FROM weights g WHERE w.words @@ g.word) s) r
        WHERE r.said >= r.most / 2
        ORDER BY r.said DESC, ts_rank_cd(r.words, $8, 1) DESC, r.test_case_id LIMIT $10
        $statement$,
        CASE WHEN (wanted).phrases IS NOT NULL THEN 'AND w.words @@ ($3).phrases' END,
        CASE WHEN words IS NULL THEN 'true' ELSE 'w.words @@ $7' END)
    USING words, shares, wanted, rare_rows, total, greatest(k, 300), all_words, coalesce(any_word, (wanted).phrases), near,
          k;
END
$$;

CREATE OR REPLACE FUNCTION qbench.search_hybrid(
    query_text text,
    query_vector :"vector_type" DEFAULT NULL,
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
    vector_weight double precision DEFAULT 1,
    text_weight double precision DEFAULT 1,
    query_model text DEFAULT NULL
) RETURNS TABLE (
    test_case_id bigint, score double precision, similarity double precision, vector_rank integer, text_rank integer,
    uid text, jira_key text, title text, description text,
    priority text, test_type text, platforms text[], tags text[], folder_structure text, project_id bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = store, :"space", :"vector_schema", pg_temp
AS $$
#variable_conflict use_column
DECLARE
    space CONSTANT text := (current_schemas(false))[2];
    wanted CONSTANT store.filter := ROW(
        with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project, with_suite, updated_since,
        (SELECT string_agg('(' || w.word::text || ')', ' & ')::tsquery FROM query_words(query_text) w WHERE w.required));
    depth CONSTANT integer := greatest(2 * k, 50);
    near bigint[] := '{}';
    worded bigint[] := '{}';
BEGIN
    PERFORM check_query(space, query_vector::vector, query_model, k, min_similarity);
    IF query_text IS NULL THEN
        RAISE EXCEPTION 'the query text is null' USING ERRCODE = 'null_value_not_allowed';
    ELSIF query_vector IS NULL AND min_similarity IS NOT NULL THEN
        RAISE EXCEPTION 'min_similarity needs a query vector' USING ERRCODE = 'data_exception';
    ELSIF (vector_weight BETWEEN 0 AND 1e9 AND text_weight BETWEEN 0 AND 1e9) IS NOT TRUE
        OR num_nonnulls(query_vector) * vector_weight + text_weight = 0 THEN
        RAISE EXCEPTION 'the weights are % (vector) and % (text); they have to be 0 or more, and one that counts above 0',
            coalesce(vector_weight::text, 'null'), coalesce(text_weight::text, 'null') USING ERRCODE = 'data_exception';
    END IF;
    IF query_vector IS NOT NULL AND vector_weight > 0 THEN
        near := ARRAY(
            SELECT n.test_case_id FROM nearest_cases(space, query_vector::vector, depth, wanted, min_similarity) n
            ORDER BY n.similarity DESC, n.test_case_id);
    END IF;
    IF text_weight > 0 THEN
        worded := ARRAY(SELECT c.test_case_id FROM cases_with_words(query_text, depth, wanted, near) c);
    END IF;
    RETURN QUERY
    SELECT d.test_case_id, r.score, 1 - (e.embedding <=> query_vector), r.vector_rank, r.text_rank, d.uid, d.jira_key,
           d.title, d.description, d.priority, d.test_type, d.platforms, d.tags, d.folder_structure, d.project_id
    FROM (
        SELECT coalesce(v.id, t.id) AS test_case_id, v.n::integer AS vector_rank, t.n::integer AS text_rank,
               coalesce(vector_weight / (60 + v.n), 0) + coalesce(text_weight / (60 + t.n), 0) AS score
        FROM unnest(near) WITH ORDINALITY AS v (id, n) FULL JOIN unnest(worded) WITH ORDINALITY AS t (id, n) USING (id)) r
    JOIN test_documents d USING (test_case_id) JOIN doc_embeddings e USING (text_hash)
    WHERE min_similarity IS NULL OR 1 - (e.embedding <=> query_vector) >= min_similarity
    ORDER BY r.score DESC, r.text_rank, r.vector_rank LIMIT k;  -- the first by words before the first by vector
END
$$;
COMMENT ON FUNCTION qbench.search_hybrid IS
'The k best test cases by words and by vector: the ranks of both lists fused, score = vector_weight / (60 + vector_rank) +
text_weight / (60 + text_rank). A weight of 0 leaves a list out, and so does a null vector. Words: a case that has all of
them, or one that fewer than 1,000 cases have, and that says at least half of what the best says; "in quotation marks":
required of every result, as a phrase. Other filters, and min_similarity (of every result), as in search_documents.
query_model: without it, a vector of another model with the same number of dimensions cannot be told from a right one, and
finds nonsense: pass it.';

CREATE OR REPLACE FUNCTION qbench.find_by_jira_key(
    key text,
    k integer DEFAULT 10,
    with_priority text[] DEFAULT NULL,
    with_tags text[] DEFAULT NULL,
    with_platforms text[] DEFAULT NULL,
    with_test_type text[] DEFAULT NULL,
    in_folder text DEFAULT NULL,
    in_project bigint[] DEFAULT NULL,
    with_suite bigint[] DEFAULT NULL,
    updated_since timestamptz DEFAULT NULL
) RETURNS TABLE (
    test_case_id bigint, matched text, reference text, uid text, jira_key text, title text, description text,
    priority text, test_type text, platforms text[], tags text[], folder_structure text, project_id bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = store, :"space", :"vector_schema", pg_temp
SET plan_cache_mode = force_custom_plan
SET client_min_messages = warning
AS $$
#variable_conflict use_column
DECLARE
    wanted CONSTANT store.filter := ROW(with_priority, with_tags, with_platforms, with_test_type, in_folder, in_project,
                                        with_suite, updated_since, NULL);
    -- Of a link, the key it leads to.
    wanted_key CONSTANT text := coalesce(
        CASE WHEN key LIKE '%://%' THEN substring(key FROM '(?<![\w-])[A-Za-z][A-Za-z0-9_]+-[0-9]+(?![\w-])') END, btrim(key));
    key_words CONSTANT tsquery := phraseto_tsquery('pg_catalog.simple', plain_text(wanted_key));
    pattern CONSTANT text := '(?i)(?<![\w-])' || regexp_replace(wanted_key, '(\W)', '\\\1', 'g') || '(?![\w-])';
BEGIN
    IF (numnode(key_words) > 0 AND length(wanted_key) <= 200) IS NOT TRUE THEN
        RAISE EXCEPTION 'this is no Jira key: %', coalesce(left(key, 200), 'null') USING ERRCODE = 'data_exception';
    END IF;
    PERFORM check_query((current_schemas(false))[2], NULL, NULL, k, NULL);
    RETURN QUERY
    SELECT d.test_case_id, m.matched, m.reference, d.uid, d.jira_key, d.title, d.description, d.priority, d.test_type,
           d.platforms, d.tags, d.folder_structure, d.project_id
    FROM test_words w JOIN test_documents d USING (test_case_id)
    CROSS JOIN LATERAL (
        SELECT f.matched, f.reference, f.place FROM (
            SELECT 'jira_key', d.jira_key, -1
            UNION ALL
            SELECT i.issue_type, i.issue_key, i.order_index FROM test_related_issues i
            WHERE i.test_case_id = d.test_case_id) AS f (matched, reference, place)
        WHERE f.reference ~ pattern ORDER BY f.place LIMIT 1) m
    WHERE w.words @@ key_words AND matches(d, wanted)
    ORDER BY m.place >= 0, d.test_case_id LIMIT k;
END
$$;
COMMENT ON FUNCTION qbench.find_by_jira_key IS
'The test cases whose jira_key, or else a related issue, is that key or holds it, as a link does; upper or lower case.
matched tells which: jira_key, or the type of the related issue; reference is what stands there. Filters as in
search_documents.';
