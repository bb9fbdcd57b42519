-- Least privilege: qbench_reader reads the schema qbench and nothing else, and writes nothing.
--   psql -v space=space_lexical_3072 -v vector_schema=public -f reader.sql
-- Grant it to the application's login role: GRANT qbench_reader TO my_application;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'qbench_reader') THEN
        CREATE ROLE qbench_reader NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;  -- another database of this server made it in the meantime
END
$$;

REVOKE ALL ON SCHEMA landing, staging, store, :"space" FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA landing, staging, store, :"space", qbench FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA qbench FROM PUBLIC;
REVOKE CREATE ON SCHEMA qbench FROM PUBLIC;

GRANT USAGE ON SCHEMA qbench TO qbench_reader;
-- The type and operators of vectors. Where we do not own that schema this is a warning, and the report tells.
GRANT USAGE ON SCHEMA :"vector_schema" TO qbench_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA qbench TO qbench_reader;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA qbench TO qbench_reader;
