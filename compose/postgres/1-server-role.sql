-- The role by which the Prefect server connects: `prefect_server` owns its database, and has no right beyond it. initdb's
-- superuser `prefect` is for backups, restores and upgrades, over the socket alone.
--
-- Run by the image's entrypoint in a new cluster, by the role `stack` at each run, and by the tools in `backups/` for databases
-- and clusters of before. It changes what is not as it should be, says so by notices, and can be cut off anywhere: an owner is
-- changed in a transaction of its own, while a server that connects as the superuser serves on. The database comes last.
--
-- The server's password is the one that initdb gave the superuser: the role gets its verifier, so it passes through no command.
DO $$
DECLARE
  owner_now CONSTANT pg_catalog.oid := (SELECT oid FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) session_user);
  verifier pg_catalog.text;
  one pg_catalog.record;
  blocked pg_catalog.text;
BEGIN
  -- A superuser runs this, and the database's owner may have set a path that leads to functions of others.
  SET search_path = pg_catalog;
  -- A table that is locked for long, as by a dump, must not keep the server from it meanwhile.
  SET lock_timeout = '500ms';

  IF to_regrole('prefect_server') IS NULL THEN
    CREATE ROLE prefect_server LOGIN;
    RAISE NOTICE 'made the role prefect_server';
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'prefect_server'
             AND (NOT rolcanlogin OR rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)) THEN
    ALTER ROLE prefect_server LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
    RAISE NOTICE 'took rights from the role prefect_server';
  END IF;
  verifier := (SELECT rolpassword FROM pg_authid WHERE oid = owner_now);
  IF verifier IS NOT NULL
     AND verifier IS DISTINCT FROM (SELECT rolpassword FROM pg_authid WHERE rolname = 'prefect_server') THEN
    EXECUTE format('ALTER ROLE prefect_server PASSWORD %L', verifier);
    RAISE NOTICE 'gave the role prefect_server its password';
  END IF;
  COMMIT;

  -- Ten minutes at most.
  FOR attempt IN 1 .. 240 LOOP
    blocked := NULL;
    FOR one IN
      SELECT oid::regclass::text AS name, format('ALTER TABLE %s OWNER TO prefect_server', oid::regclass) AS command
      FROM pg_class
      WHERE relnamespace = 'public'::regnamespace AND relowner = owner_now AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        -- Neither what belongs to an extension nor the sequence of a column, which follows its table.
        AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid
                        AND (deptype = 'e' OR relkind = 'S' AND deptype IN ('a', 'i')))
      UNION ALL
      SELECT oid::regprocedure::text, format('ALTER ROUTINE %s OWNER TO prefect_server', oid::regprocedure)
      FROM pg_proc
      WHERE pronamespace = 'public'::regnamespace AND proowner = owner_now
        AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid AND deptype = 'e')
      UNION ALL
      SELECT oid::regtype::text, format('ALTER TYPE %s OWNER TO prefect_server', oid::regtype)
      FROM pg_type
      WHERE typnamespace = 'public'::regnamespace AND typowner = owner_now
        -- The types of tables, and of arrays and multiranges, follow.
        AND (typtype IN ('d', 'e', 'r')
             OR typtype = 'c' AND (SELECT relkind FROM pg_class WHERE pg_class.oid = typrelid) = 'c')
        AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_type'::regclass AND objid = pg_type.oid AND deptype = 'e')
    LOOP
      BEGIN
        EXECUTE one.command;
        RAISE NOTICE 'gave % to prefect_server', one.name;
      EXCEPTION WHEN lock_not_available THEN
        blocked := one.name;
      END;
      COMMIT;
      EXIT WHEN blocked IS NOT NULL;
    END LOOP;
    EXIT WHEN blocked IS NULL;
    PERFORM pg_sleep(2);
    COMMIT;
  END LOOP;
  IF blocked IS NOT NULL THEN
    RAISE EXCEPTION '% is in use, and cannot be given to the role prefect_server', blocked;
  END IF;
  IF (SELECT datdba FROM pg_database WHERE datname = current_database()) = owner_now THEN
    EXECUTE format('ALTER DATABASE %I OWNER TO prefect_server', current_database());
    RAISE NOTICE 'gave the database % to prefect_server', current_database();
  END IF;
END $$;
