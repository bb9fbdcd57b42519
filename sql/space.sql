-- One embedding space: a model, its dimensions and the text recipe.
--   psql -v space=space_lexical_3072 -v vector_type=halfvec -v dimensions=3072 -f space.sql
--
-- The key is the SHA-256 of the text, so each distinct text is embedded, stored and indexed once.
-- Rows are immutable. STORAGE MAIN keeps a halfvec(3072) inside its page: measured against TOAST in
-- docs/adr/0004-vector-storage.md.

CREATE SCHEMA IF NOT EXISTS :"space";

CREATE TABLE IF NOT EXISTS :"space".doc_embeddings (
    text_hash  bytea PRIMARY KEY,
    embedding  :"vector_type"(:dimensions) STORAGE MAIN NOT NULL,
    provenance text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    pieces     smallint NOT NULL DEFAULT 1  -- above 1: the text was over the model's limit, this is the average
);

CREATE TABLE IF NOT EXISTS :"space".step_embeddings (
    text_hash  bytea PRIMARY KEY,
    embedding  :"vector_type"(:dimensions) STORAGE MAIN NOT NULL,
    provenance text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    pieces     smallint NOT NULL DEFAULT 1  -- above 1: the text was over the model's limit, this is the average
);

-- The expressions the indexes are built on as columns, for queries by hand: a query must repeat them exactly, as
-- index.sql and nearest.sql do.
CREATE OR REPLACE VIEW :"space".doc_vectors AS
SELECT text_hash, embedding, embedding::halfvec(:dimensions) AS half,
       binary_quantize(embedding)::bit(:dimensions) AS bits
FROM :"space".doc_embeddings;

CREATE OR REPLACE VIEW :"space".step_vectors AS
SELECT text_hash, embedding, embedding::halfvec(:dimensions) AS half,
       binary_quantize(embedding)::bit(:dimensions) AS bits
FROM :"space".step_embeddings;
