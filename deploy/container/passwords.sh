#!/bin/sh
# Of PostgreSQL's own first start, after roles.sql: gives each role its password.
set -eu
for role in owner worker console; do
    psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --quiet \
        -v role="postback_$role" -v password="$(cat "${SECRETS:-/run/secrets}/database_password_$role")" <<'SQL'
ALTER ROLE :"role" PASSWORD :'password';
SQL
done
