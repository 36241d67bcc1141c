-- As a superuser, in the database that is to be the ledger:  psql -d postback -f roles.sql
-- Again where a database is made anew, as for a restore: roles that are there stay as they are.
-- Then give each role its password with \password, and run `postback migrate` as postback_owner, and grants.sql.
-- `postback serve` has no role: it holds no database handle.

-- postback migrate, and nothing else
DO $$ BEGIN CREATE ROLE postback_owner LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
-- postback work, reconcile, expect, purge and the other commands of an operator
DO $$ BEGIN CREATE ROLE postback_worker LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
-- postback console
DO $$ BEGIN CREATE ROLE postback_console LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO postback_owner;
GRANT USAGE ON SCHEMA public TO postback_worker, postback_console;

DO $$ BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO postback_owner, postback_worker, postback_console', current_database());
END $$;
