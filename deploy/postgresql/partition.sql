-- For a large history, once, as postback_owner:  psql -d postback -v ON_ERROR_STOP=1 -f partition.sql, then grants.sql.
-- Notifications and repeats are kept by the month of their arrival from then on; what is there stays where it is, as the
-- first part. README.md says what that is good for, and what it costs. It is one transaction: workers wait meanwhile,
-- senders notice nothing. A second call only adds months.

BEGIN;
SET LOCAL lock_timeout = '60s';
-- That of `postback migrate`: the two never meet.
SELECT pg_advisory_xact_lock(5076782273300);

-- A unique key of a table in parts must hold what the parts are made by, and so would tell duplicates apart within a month
-- only. The keys of all months stand here together, for ever.
CREATE TABLE IF NOT EXISTS notification_keys (
    provider varchar(32) COLLATE "C" NOT NULL,
    facility varchar(64) COLLATE "C" NOT NULL,
    dedupe_key varchar(200) COLLATE "C" NOT NULL,
    CONSTRAINT pk_notification_keys PRIMARY KEY (provider, facility, dedupe_key)
);

-- Whoever inserts a notification claims its key first. When it is taken, nothing is inserted, as with ON CONFLICT DO
-- NOTHING; while another transaction is about to take it, this one waits. It is the only writer of the keys.
CREATE OR REPLACE FUNCTION postback_claim_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO public.notification_keys VALUES (NEW.provider, NEW.facility, NEW.dedupe_key) ON CONFLICT DO NOTHING;
        RETURN CASE WHEN FOUND THEN NEW END;
    ELSIF TG_OP = 'UPDATE' THEN
        UPDATE public.notification_keys
        SET provider = NEW.provider, facility = NEW.facility, dedupe_key = NEW.dedupe_key
        WHERE (provider, facility, dedupe_key) = (OLD.provider, OLD.facility, OLD.dedupe_key);
        RETURN NEW;
    END IF;
    DELETE FROM public.notification_keys
    WHERE (provider, facility, dedupe_key) = (OLD.provider, OLD.facility, OLD.dedupe_key);
    RETURN NULL;
END $$;

-- Where the ids of what arrives from `moment` (UTC) on begin: an id begins with its milliseconds since 1970.
CREATE OR REPLACE FUNCTION postback_first_id(moment timestamp) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT left(hex, 8) || '-' || right(hex, 4)
    FROM (SELECT lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') AS hex) AS milliseconds
$$;

-- Makes the parts of this month and the next ones that are not there, and gives how many it made. What arrives in a month
-- without a part goes to the part "other", where it is found as well, and moves when its month is made: nothing depends
-- on this call. It gives up when it has to wait for a reader, such as a dump.
CREATE OR REPLACE FUNCTION postback_add_months(ahead int DEFAULT 12) RETURNS int
LANGUAGE plpgsql SET lock_timeout = '3s' AS $$
DECLARE
    whole text;
    month timestamp;
    part text;
    first_id text;
    end_id text;
    made int := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(5076782273300);
    FOREACH whole IN ARRAY ARRAY['notifications', 'repeats'] LOOP
        FOR number IN 0..ahead LOOP
            month := date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => number);
            part := format('%s_%s', whole, to_char(month, 'YYYY_MM'));
            CONTINUE WHEN to_regclass(part) IS NOT NULL OR EXISTS (
                SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                WHERE inhparent = whole::regclass AND relname LIKE whole || '\_before\_%'
                    AND relname > format('%s_before_%s', whole, to_char(month, 'YYYY_MM')));
            first_id := postback_first_id(month);
            end_id := postback_first_id(month + interval '1 month');
            -- The whole before its parts, in the order in which everybody locks.
            EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', whole);
            EXECUTE format('CREATE UNLOGGED TABLE moving AS SELECT * FROM %I WHERE id >= %L AND id < %L',
                whole || '_other', first_id, end_id);
            EXECUTE format('DELETE FROM %I WHERE id >= %L AND id < %L', whole || '_other', first_id, end_id);
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', part, whole, first_id, end_id);
            IF whole = 'notifications' THEN
                EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I UNIQUE (provider, facility, dedupe_key)', part, 'uq_' || part);
            END IF;
            EXECUTE format('INSERT INTO %I SELECT * FROM moving', whole);
            DROP TABLE moving;
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END $$;

DO $$
DECLARE
    whole text;
    cut timestamp := date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month';
    before text;
    of_table record;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'notifications'::regclass) = 'p' THEN
        RETURN;
    END IF;
    LOCK TABLE notifications, repeats IN ACCESS EXCLUSIVE MODE;
    INSERT INTO notification_keys SELECT provider, facility, dedupe_key FROM notifications;
    FOREACH whole IN ARRAY ARRAY['notifications', 'repeats'] LOOP
        before := format('%s_before_%s', whole, to_char(cut, 'YYYY_MM'));
        EXECUTE format('ALTER TABLE %I RENAME TO %I', whole, before);
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING STORAGE) PARTITION BY RANGE (id)', whole, before);
        -- The indexes of the whole have the names that migrations know. The unique key stays one of each part.
        FOR of_table IN
            SELECT relname AS name, pg_get_indexdef(indexrelid) AS definition, indisprimary, indisunique
            FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = before::regclass
        LOOP
            EXECUTE format('ALTER INDEX %I RENAME TO %I', of_table.name, replace(of_table.name, whole, before));
            IF of_table.indisprimary THEN
                EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I PRIMARY KEY (id)', whole, of_table.name);
            ELSIF NOT of_table.indisunique THEN
                EXECUTE replace(of_table.definition, before, whole);
            END IF;
        END LOOP;
        EXECUTE format('CREATE TABLE %I PARTITION OF %I DEFAULT', whole || '_other', whole);
        -- From a clock that was ahead.
        EXECUTE format('WITH early AS (DELETE FROM %I WHERE id >= %L RETURNING *) INSERT INTO %I SELECT * FROM early',
            before, postback_first_id(cut), whole);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (MINVALUE) TO (%L)', whole, before,
            postback_first_id(cut));
    END LOOP;
    ALTER TABLE notifications_other ADD CONSTRAINT uq_notifications_other UNIQUE (provider, facility, dedupe_key);
    CREATE TRIGGER claim_key BEFORE INSERT ON notifications FOR EACH ROW EXECUTE FUNCTION postback_claim_key();
    CREATE TRIGGER change_key BEFORE UPDATE OF provider, facility, dedupe_key ON notifications FOR EACH ROW
        WHEN ((OLD.provider, OLD.facility, OLD.dedupe_key) IS DISTINCT FROM (NEW.provider, NEW.facility, NEW.dedupe_key))
        EXECUTE FUNCTION postback_claim_key();
    CREATE TRIGGER give_key_back AFTER DELETE ON notifications FOR EACH ROW EXECUTE FUNCTION postback_claim_key();
END $$;

SELECT postback_add_months() AS months;
COMMIT;
-- Of the whole nobody does it by himself.
ANALYZE notifications, repeats, notification_keys;
