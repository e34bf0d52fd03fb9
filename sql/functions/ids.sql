-- What column defaults call: ids, and who acts. It needs no table, so it is applied before the structure.

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

CREATE OR REPLACE FUNCTION outbox.actor() RETURNS text
LANGUAGE sql STABLE
RETURN coalesce(
    nullif(current_setting('outbox.actor', true), ''),
    nullif(current_setting('role', true), 'none'),
    session_user::text);
COMMENT ON FUNCTION outbox.actor() IS
    'Returns who acts: the setting outbox.actor of the transaction, else the role that the session has set, else its login.';
