#!/bin/sh
# Makes what compose.yaml needs beside itself: passwords, keys, addresses with passwords, and the users of the queue. What is
# there already stays. The folder is closed to others on this machine; the files are open, as every container has a user
# of its own and sees only its own.
set -eu
cd "$(dirname "$0")"
umask 022
mkdir -p -m 0700 secrets

made() { # NAME VALUE
    [ -e "secrets/$1" ] || printf '%s\n' "$2" > "secrets/$1"
}
random() { openssl rand -hex 24; }

made seal_key "$(random)"
made api_key "$(random)"
made quickstream_password "$(random)"

for role in accept worker console; do
    made "redis_password_$role" "$(random)"
    made "redis_url_$role" "redis://postback-$role:$(cat "secrets/redis_password_$role")@queue:6379/0"
done
# `postback migrate` has no queue; it only reads the address.
made redis_url_none redis://queue:6379/0
if [ ! -e secrets/users.acl ]; then
    cp ../redis/users.acl secrets/users.acl
    for role in ACCEPT WORKER CONSOLE; do
        password=$(cat "secrets/redis_password_$(printf %s "$role" | tr A-Z a-z)")
        hash=$(printf %s "$password" | openssl dgst -sha256 -r | cut -d' ' -f1)
        sed -i "s/SHA256_OF_${role}_PASSWORD/$hash/" secrets/users.acl
    done
fi

made database_password_admin "$(random)"
for role in owner worker console; do
    made "database_password_$role" "$(random)"
    made "database_url_$role" \
        "postgresql+psycopg://postback_$role:$(cat "secrets/database_password_$role")@ledger/postback"
done
# `postback serve` has no ledger. It reads the address, as all share one configuration, and never opens it.
made database_url_none "sqlite:////var/lib/postback/none.sqlite3"
