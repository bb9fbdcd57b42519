-- The words of each published case, for full-text search; and what the search functions filter by.

-- What a search is restricted to; null matches everything. The functions of `qbench` bundle their parameters into it.
CREATE TYPE store.filter AS (
    priority      text[],
    tags          text[],                     -- any of them, as with platforms
    platforms     text[],
    test_type     text[],
    folder        text,                       -- a prefix
    project       bigint[],
    suite         bigint[],
    updated_since timestamptz,                -- of source_updated_at, which is what TestRail says
    phrases       tsquery                     -- of store.test_words
);
CREATE INDEX ON store.test_documents (suite_id);
CREATE INDEX ON store.test_documents (source_updated_at);

-- A text as PostgreSQL's parser has to see it, so that documents and queries fall into the same words:
-- compatibility forms and accents folded, identifiers apart at their punctuation (PROJ-123 is the phrase "PROJ 123",
-- where the parser would make a negative number of it, and hosts, files, tags and floats of others), and each
-- character of a script without spaces by itself. 4 µs a case; the foreign ones 30.
CREATE FUNCTION store.plain_text(given text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT regexp_replace(
        CASE WHEN octet_length(given) = length(given) THEN given
             ELSE regexp_replace(
                 normalize(regexp_replace(normalize(given, NFKD), '[\u0300-\u036f]', '', 'g'), NFC),
                 -- Thai and Lao, Burmese, Khmer, radicals, kana and Bopomofo, Han
                 '([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])',
                 ' \1 ', 'g') END,
        '[-+_./@<&~]', ' ', 'g')
$$;

-- No stemming and no stop words: test cases are of many languages, and "not" is a word of theirs. The first 30,000
-- characters: three such parts stay below the 1 MB of a tsvector (8 bytes a character at worst).
CREATE FUNCTION store.words_of(given text) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT to_tsvector('pg_catalog.simple', store.plain_text(left(coalesce(given, ''), 30000)))
$$;

-- Goes up with any change to the two functions above or to what is indexed: cases of an older recipe get their words
-- anew when their range is published next.
CREATE FUNCTION store.words_recipe() RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT 1::smallint $$;

CREATE TABLE store.test_words (
    test_case_id bigint PRIMARY KEY REFERENCES store.test_documents ON DELETE CASCADE,
    words        tsvector NOT NULL,           -- A: title, keys and references; B: folder, tags, description; D: steps
    recipe       smallint NOT NULL
);
CREATE INDEX ON store.test_words USING gin (words);
COMMENT ON TABLE store.test_words IS 'The words of each published case by weight: what full-text search reads.';
