-- What columns are made from: ids, who acts, the kind of an error; and whose settings are believed. It is applied before the
-- structure, so the functions that are called there need no table.

-- A UUIDv7: 48 bits of Unix milliseconds, 12 of their fraction (RFC 9562, 6.2, method 3), then 62 random bits. In SQL, so
-- that Postgres 15 has it too. The random bits come from the session's own generator, which starts from a strong seed: a
-- strong random number is a system call, and was a tenth of a bulk submit. Sessions that have set the same seed still
-- differ by their process, and one that sets it again and again by the time. Ids are unique, not secret: no right may
-- depend on an id that can't be guessed.
CREATE OR REPLACE FUNCTION outbox.uuid7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL RESTRICTED
RETURN (
    overlay(lpad(to_hex((extract(epoch FROM clock_timestamp()) * 4096000)::bigint), 15, '0') PLACING '7' FROM 13 FOR 0)
    || to_hex(hashint8extended((random() * 9007199254740992)::bigint,
                               (random() * 9007199254740992)::bigint # pg_backend_pid())
              & 4611686018427387903 | -9223372036854775808)
)::uuid;
COMMENT ON FUNCTION outbox.uuid7() IS 'Returns a new UUIDv7, as ids of workflows and messages are.';

-- The first 48 bits of a UUIDv7 are Unix milliseconds.
CREATE OR REPLACE FUNCTION outbox.uuid7_time(id uuid) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN to_timestamp((('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint / 1000.0)::float8);
COMMENT ON FUNCTION outbox.uuid7_time(uuid) IS 'Returns when a UUIDv7 was made.';

-- The role that asks: many functions run as the owner in the session of somebody else.
CREATE OR REPLACE FUNCTION outbox.session_role() RETURNS text
LANGUAGE sql STABLE
RETURN coalesce(nullif(current_setting('role', true), 'none'), session_user::text);
COMMENT ON FUNCTION outbox.session_role() IS 'Internal: returns the role that the session has set, else its login.';

-- Anybody can set a setting, so a setting gives no rights: the engine's own are believed only from those who may register a
-- worker, which are workers and the owner. The body is parsed when it is made: no search_path of the session changes what it
-- means.
CREATE OR REPLACE FUNCTION outbox.is_worker() RETURNS boolean
LANGUAGE sql STABLE
RETURN has_table_privilege(outbox.session_role()::name, 'outbox.workers', 'INSERT');
COMMENT ON FUNCTION outbox.is_worker() IS 'Returns whether the role of the session has the rights of a worker.';

CREATE OR REPLACE FUNCTION outbox.told(setting text) RETURNS text
LANGUAGE sql STABLE
RETURN CASE WHEN current_setting(setting, true) <> '' AND outbox.is_worker() THEN current_setting(setting, true) END;
COMMENT ON FUNCTION outbox.told(text) IS 'Internal: what a setting of the engine says; null unless a worker has set it.';

CREATE OR REPLACE FUNCTION outbox.actor_refused(name text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'only the engine acts as "%"', name
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'Name yourself by outbox.actor (or --by), other than "outbox", "worker-..." or "schedule ...".';
END
$$;
COMMENT ON FUNCTION outbox.actor_refused(text) IS 'Internal: refuses a name that is the engine''s.';

CREATE OR REPLACE FUNCTION outbox.actor_named(name text) RETURNS text
LANGUAGE sql STABLE
RETURN CASE WHEN name ~* '^\s*(outbox\s*$|worker-|schedule\s)' AND NOT outbox.is_worker() THEN outbox.actor_refused(name)
            ELSE name END;
COMMENT ON FUNCTION outbox.actor_named(text) IS
    'Internal: returns the name that somebody acts by; refuses those of the engine from anybody else.';

CREATE OR REPLACE FUNCTION outbox.actor() RETURNS text
LANGUAGE sql STABLE
RETURN coalesce(outbox.actor_named(nullif(current_setting('outbox.actor', true), '')), outbox.session_role());
COMMENT ON FUNCTION outbox.actor() IS
    'Returns who acts: the setting outbox.actor of the transaction, else the role that the session has set, else its login.';

-- The first line of an error, in which each word that has a digit, and each e-mail address, is "#": what is left is the same
-- for all errors of one kind. Where only separators stand between two of them (a time, a version), they are one.
CREATE OR REPLACE FUNCTION outbox.error_kind(error text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN left(regexp_replace(regexp_replace(regexp_replace(
    split_part(ltrim(left(error, 2000), E' \t\r\n'), E'\n', 1) COLLATE "C",
    '[^\s"''<>(),;:=]+@[^\s"''<>(),;:=]+', '#', 'g'),
    '[[:alnum:]_-]*[0-9][[:alnum:]_-]*', '#', 'g'),
    '#([.,:/+ ]?#)+', '#', 'g'), 200);
COMMENT ON FUNCTION outbox.error_kind(text) IS 'Returns the kind of an error: its first line without ids and numbers.';
