#!/bin/sh
# Of PostgreSQL's own first start, after roles.sql: gives each role its password, which no command line shows.
set -eu
for role in owner worker console; do
    ROLE="postback_$role" FILE="${SECRETS:-/run/secrets}/database_password_$role" \
        psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --quiet <<'SQL'
\set role `printf %s "$ROLE"`
\set password `cat "$FILE"`
ALTER ROLE :"role" PASSWORD :'password';
SQL
done
