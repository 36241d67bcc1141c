-- After each `postback migrate`, as postback_owner or a superuser, and in one transaction, or the processes that run have no
-- rights for a moment:  psql -d postback --single-transaction -v ON_ERROR_STOP=1 -f grants.sql

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, postback_worker, postback_console;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO postback_worker, postback_console;
-- Of alembic_version and compatibility that is all that they need: `postback migrate` alone writes them.

-- The worker writes the ledger. A notification and a payment's past are never deleted; payments are, by
-- `postback payments rebuild`, where nothing speaks of one any more. The audit trail only grows.
GRANT INSERT, UPDATE ON notifications, repeats, expectations, browser_returns TO postback_worker;
GRANT DELETE ON repeats, browser_returns TO postback_worker;  -- [retention]
GRANT INSERT, UPDATE, DELETE ON payments, resolutions TO postback_worker;
GRANT INSERT, UPDATE ON replays, replay_items, reconciliations, findings TO postback_worker;
GRANT INSERT ON idempotency_keys, audit TO postback_worker;
-- Either of the two looks after the alarms.
GRANT INSERT, UPDATE, DELETE ON alarms, alarm_messages, alarm_watch TO postback_worker, postback_console;

-- The console reads, asks for replays, settles what needs attention, ends sessions, and takes settlement files. A file
-- makes notifications and payments, and a preview of a replay is the replay itself, rolled back. It registers nothing,
-- purges nothing and deletes no notification.
GRANT INSERT, UPDATE ON replays, replay_items, reconciliations, findings TO postback_console;
-- Hashes of operators' own passwords, and their second factors, are the console's alone.
REVOKE SELECT ON operator_passwords, second_factors FROM postback_worker;
GRANT INSERT, UPDATE ON operator_passwords, second_factors TO postback_console;
GRANT INSERT ON idempotency_keys, audit, repeats TO postback_console;
GRANT INSERT, DELETE ON resolutions, ended_sessions TO postback_console;
GRANT INSERT, UPDATE ON notifications TO postback_console;
GRANT INSERT, UPDATE, DELETE ON payments TO postback_console;
