-- The roles of a database that qbench fills, with the least each needs. For a DBA to read, and to run in that database:
-- before the first run or at any later time. Running it again changes nothing, and waits for nobody.
--   qbench roles | psql "$ADMIN_URL" -v ON_ERROR_STOP=1 --single-transaction
--
--   qbench_owner   owns the schemas, tables, views and functions. Nobody logs in as it.
--   qbench_writer  the pipeline: reads and writes rows. To create, alter or drop it has to say SET ROLE qbench_owner,
--                  which it does for migrations, embedding spaces, indexes, the public face and cut-overs.
--   qbench_reader  the application: reads the schema qbench, and nothing else.
--
-- All three are NOLOGIN. Each program gets a login of its own:
--   CREATE ROLE my_pipeline LOGIN PASSWORD '…' IN ROLE qbench_writer;
--   CREATE ROLE my_application LOGIN PASSWORD '…' IN ROLE qbench_reader;
-- A login that owned the rooms so far owns nothing any more: make it a member as well, or drop it.
--
-- Run it as a superuser; or as the owner of the database and of all that is in the rooms, with CREATEROLE.

SELECT pg_advisory_lock(hashtext('public face'));  -- no cut-over, and no run that makes views, goes on beside this

DO $$
DECLARE
    needed text;
BEGIN
    FOREACH needed IN ARRAY ARRAY['qbench_owner', 'qbench_writer', 'qbench_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = needed) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT', needed);
        END IF;
    END LOOP;
    -- NOINHERIT: being a member lets the pipeline say SET ROLE, and gives it no right before it does. From PostgreSQL 16
    -- on it is the membership that says so.
    IF NOT pg_has_role('qbench_writer', 'qbench_owner', 'MEMBER') THEN
        EXECUTE 'GRANT qbench_owner TO qbench_writer'
             || CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN ' WITH INHERIT FALSE, SET TRUE' ELSE '' END;
    END IF;
    IF NOT pg_has_role(current_user, 'qbench_owner', 'USAGE') THEN  -- no superuser: to hand things over it takes both
        GRANT qbench_owner TO CURRENT_USER;
    END IF;
    IF NOT pg_has_role(current_user, 'qbench_writer', 'USAGE') THEN
        GRANT qbench_writer TO CURRENT_USER;
    END IF;
    EXECUTE format('GRANT CREATE ON DATABASE %I TO qbench_owner', current_database());  -- a schema for each room
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO qbench_writer', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO qbench_reader', current_database());
END
$$;

CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA IF NOT EXISTS store;    -- that it is qbench_owner's tells the pipeline to act as that role
CREATE SCHEMA IF NOT EXISTS dagster;  -- runs and events of Dagster, unless QBENCH_DAGSTER_DATABASE_URL is set

-- What the owner makes later: the pipeline may use it, and nobody else.
ALTER DEFAULT PRIVILEGES FOR ROLE qbench_owner GRANT USAGE ON SCHEMAS TO qbench_writer;
ALTER DEFAULT PRIVILEGES FOR ROLE qbench_owner GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO qbench_writer;
ALTER DEFAULT PRIVILEGES FOR ROLE qbench_owner GRANT SELECT ON SEQUENCES TO qbench_writer;  -- for a backup
ALTER DEFAULT PRIVILEGES FOR ROLE qbench_owner GRANT EXECUTE ON FUNCTIONS TO qbench_writer;

-- What is there: rooms and all in them go to the owner, Dagster's tables to the writer (Dagster changes them itself).
DO $$
DECLARE
    command text;
BEGIN
    PERFORM set_config('lock_timeout', '1s', true);  -- readers queue behind who waits: rather run it again
    FOR command IN
        WITH rooms AS (
            SELECT n.oid, n.nspname, n.nspowner,
                   CASE WHEN n.nspname = 'dagster' THEN 'qbench_writer' ELSE 'qbench_owner' END AS owner
            FROM pg_namespace n
            WHERE n.nspname IN ('landing', 'staging', 'store', 'qbench', 'dagster')
               OR starts_with(n.nspname, 'space_') AND EXISTS (
                   SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'doc_embeddings')
        )
        SELECT format('ALTER SCHEMA %I OWNER TO %I', nspname, owner) FROM rooms WHERE nspowner <> owner::regrole
        UNION ALL
        SELECT format('ALTER %s %s OWNER TO %I',
                      CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'c' THEN 'TYPE'
                                     WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                      format('%I.%I', r.nspname, c.relname), r.owner)
        FROM rooms r JOIN pg_class c ON c.relnamespace = r.oid
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'c', 'S') AND c.relowner <> r.owner::regrole
          AND NOT EXISTS (SELECT FROM pg_depend d  -- a sequence that is a column's follows its table
                          WHERE d.objid = c.oid AND c.relkind = 'S' AND d.deptype IN ('a', 'i'))
        UNION ALL
        SELECT format('ALTER TYPE %I.%I OWNER TO %I', r.nspname, t.typname, r.owner)
        FROM rooms r JOIN pg_type t ON t.typnamespace = r.oid
        WHERE t.typtype IN ('d', 'e') AND t.typowner <> r.owner::regrole
        UNION ALL
        SELECT format('ALTER ROUTINE %s OWNER TO %I', p.oid::regprocedure, r.owner)
        FROM rooms r JOIN pg_proc p ON p.pronamespace = r.oid WHERE p.proowner <> r.owner::regrole
        UNION ALL
        SELECT format(g.command, nspname) FROM rooms, (VALUES
            ('GRANT USAGE ON SCHEMA %I TO qbench_writer'),
            ('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO qbench_writer'),
            ('GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO qbench_writer'),
            ('GRANT EXECUTE ON ALL ROUTINES IN SCHEMA %I TO qbench_writer')) AS g (command)
        WHERE nspname <> 'dagster'
        UNION ALL
        SELECT format('GRANT USAGE ON SCHEMA %s TO qbench_owner, qbench_writer, qbench_reader', e.extnamespace::regnamespace)
        FROM pg_extension e WHERE e.extname = 'vector'
    LOOP
        EXECUTE command;
    END LOOP;
END
$$;

SELECT pg_advisory_unlock(hashtext('public face'));
