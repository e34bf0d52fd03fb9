-- Who may answer a question that has approvers: groups, each with the number of its members who must agree. An answer to it is a
-- vote. A person is a login. Only a role that may speak for others names another person, and the groups of that person.

-- To speak for others is to make links for them: the group outbox_spokesman, and the owner.
CREATE OR REPLACE FUNCTION outbox.may_speak() RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN has_function_privilege(
        outbox.session_role()::name, 'outbox.approval_link(text, text, text, timestamptz, uuid, text[])', 'EXECUTE');
END
$$;
COMMENT ON FUNCTION outbox.may_speak() IS 'Returns whether the role of the session may speak for other people.';

-- The person that a session acts as: the one that is named, else the session's actor, if it may speak for others. Anybody else
-- is their login, and gets null if another is named.
CREATE OR REPLACE FUNCTION outbox.spoken_for(named text) RETURNS text
LANGUAGE sql
AS $$
    SELECT CASE WHEN outbox.may_speak() THEN coalesce(outbox.actor_named(named), outbox.actor())
                WHEN coalesce(named, session_user) = session_user THEN session_user END;
$$;
COMMENT ON FUNCTION outbox.spoken_for(text) IS 'Internal: returns the person that a session acts as; null: it may not.';

-- The login and the roles that it is in. Not by pg_has_role: a superuser is in all, and who has made a role is in it.
CREATE OR REPLACE FUNCTION outbox.roles_of(login text) RETURNS text[]
LANGUAGE sql
AS $$
    WITH RECURSIVE known AS (
        SELECT r.oid FROM pg_roles AS r WHERE r.rolname = login AND r.rolcanlogin
        UNION
        SELECT m.roleid FROM known JOIN pg_auth_members AS m ON m.member = known.oid
        CROSS JOIN LATERAL (SELECT to_jsonb(m) AS options) AS o  -- Postgres 15 has none of these columns
        WHERE coalesce((o.options ->> 'inherit_option')::boolean, true) OR coalesce((o.options ->> 'set_option')::boolean, true)
    )
    SELECT coalesce(array_agg(r.rolname::text), '{}') FROM known JOIN pg_roles AS r ON r.oid = known.oid;
$$;
COMMENT ON FUNCTION outbox.roles_of(text) IS 'Internal: returns a login and the roles that it is in.';

-- Those of the approvers that a person counts for: `named` are the person's groups, or null for those of the database.
CREATE OR REPLACE FUNCTION outbox.groups_of(person text, named text[], approvers jsonb) RETURNS text[]
LANGUAGE sql
AS $$
    SELECT coalesce(array_agg(g.name ORDER BY g.name), '{}') FROM jsonb_object_keys(approvers) AS g (name)
    WHERE g.name = ANY (coalesce(named, outbox.roles_of(person)));
$$;
COMMENT ON FUNCTION outbox.groups_of(text, text[], jsonb) IS 'Internal: returns the approvers that a person counts for.';

CREATE OR REPLACE FUNCTION outbox.vote_refused(asked outbox.approvals, person text, why text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'pipeline "%", entity "%": % may not answer "%": %', asked.pipeline, asked.entity_id, person, asked.question, why
        USING ERRCODE = 'OB022',
              DETAIL = jsonb_build_object('pipeline', asked.pipeline, 'entity_id', asked.entity_id, 'question', asked.id,
                                          'person', person, 'approvers', asked.approvers)::text,
              HINT = 'Its approvers: ' || (SELECT string_agg(format('%s of %s', g.value, g.key), ', ' ORDER BY g.key)
                                           FROM jsonb_each_text(asked.approvers) AS g);
END
$$;
COMMENT ON FUNCTION outbox.vote_refused(outbox.approvals, text, text) IS 'Internal: refuses a vote.';

CREATE OR REPLACE FUNCTION outbox.voter(asked outbox.approvals, named text, groups text[]) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    person text := outbox.spoken_for(named);
BEGIN
    IF person IS NULL THEN
        PERFORM outbox.vote_refused(asked, named, format('%s may not speak for others (group outbox_spokesman)', session_user));
    ELSIF groups IS NOT NULL AND NOT outbox.may_speak() THEN
        PERFORM outbox.vote_refused(asked, person, format('%s may not say which groups they are in (group outbox_spokesman)', session_user));
    END IF;
    RETURN person;
END
$$;
COMMENT ON FUNCTION outbox.voter(outbox.approvals, text, text[]) IS 'Internal: returns the person who votes.';

-- Whether the votes for an option are enough. A person counts once: for one of the groups that they are in. So each selection of
-- groups must have as many voters as it needs (Hall's theorem). A vote on other data than `seen` doesn't count.
CREATE OR REPLACE FUNCTION outbox.quorum_reached(question uuid, approvers jsonb, decision text, seen text) RETURNS boolean
LANGUAGE sql
AS $$
    WITH needed AS (
        SELECT g.key AS name, g.value::bigint AS least, 1 << (row_number() OVER (ORDER BY g.key) - 1)::integer AS bit
        FROM jsonb_each_text(approvers) AS g
    ), voters AS (
        SELECT (SELECT bit_or(n.bit) FROM needed AS n WHERE n.name = ANY (v.groups)) AS bits
        FROM outbox.approval_votes AS v
        WHERE v.approval_id = question AND v.option = decision AND v.shown = seen
    )
    SELECT NOT EXISTS (
        SELECT FROM generate_series(1, (1 << (SELECT count(*) FROM needed)::integer) - 1) AS s (bits)
        WHERE (SELECT count(*) FROM voters AS v WHERE v.bits & s.bits <> 0)
            < (SELECT sum(n.least) FROM needed AS n WHERE n.bit & s.bits <> 0));
$$;
COMMENT ON FUNCTION outbox.quorum_reached(uuid, jsonb, text, text) IS 'Internal: tells whether the votes for an option are enough.';

-- Counts a vote, and returns whether it decides the question. The caller has locked the workflow, so votes come one after the
-- other. A new vote of a person takes the place of their earlier one, and of one that was cast for them.
CREATE OR REPLACE FUNCTION outbox.vote_counts(
    asked outbox.approvals, decision text, person text, groups text[], reason text, seen text
) RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    askers text[] := array_remove(ARRAY[asked.asked_by, asked.asked_login], NULL);
    short  text[];   -- the groups that need more votes for this option
    voter  record;   -- the person who counts
    now    timestamptz;
BEGIN
    IF person = ANY (askers) THEN
        PERFORM outbox.vote_refused(asked, person, 'who asks doesn''t answer');
    END IF;
    DELETE FROM outbox.approval_votes AS v
    WHERE v.approval_id = asked.id AND (v.cast_by = vote_counts.person OR v.person = vote_counts.person);
    SELECT array_agg(g.key) INTO short FROM jsonb_each_text(asked.approvers) AS g
    WHERE g.value::bigint > (SELECT count(*) FROM outbox.approval_votes AS v
                             WHERE v.approval_id = asked.id AND v.option = decision AND v.shown = seen AND g.key = ANY (v.groups));
    -- The person, or else one who has delegated to them, rather where a vote is needed. Who ends a delegation waits for the votes
    -- that are under way: none counts by it afterwards.
    PERFORM FROM outbox.delegations AS d WHERE d.to_person = vote_counts.person FOR SHARE;
    now := clock_timestamp();
    SELECT c.person, c.groups INTO voter
    FROM (
        SELECT vote_counts.person, outbox.groups_of(vote_counts.person, vote_counts.groups, asked.approvers) AS groups, 1 AS n
        UNION ALL
        SELECT d.from_person, outbox.groups_of(d.from_person, d.groups, asked.approvers), 2
        FROM outbox.delegations AS d
        WHERE d.to_person = vote_counts.person AND d.until > now AND d.from_person <> ALL (askers)
    ) AS c
    WHERE c.groups <> '{}'
      -- A vote on other data doesn't count, and is no obstacle.
      AND NOT EXISTS (SELECT FROM outbox.approval_votes AS v
                      WHERE v.approval_id = asked.id AND v.person = c.person AND v.shown = seen)
    ORDER BY coalesce(c.groups && short, false) DESC, c.n, c.person
    LIMIT 1;
    IF NOT FOUND THEN
        PERFORM outbox.vote_refused(asked, person, 'they are in none of the groups that may, and no approver who has yet to vote has delegated to them');
    END IF;
    DELETE FROM outbox.approval_votes AS v WHERE v.approval_id = asked.id AND v.person = voter.person;
    INSERT INTO outbox.approval_votes (approval_id, person, cast_by, login, option, groups, shown, reason, voted_at)
    VALUES (asked.id, voter.person, vote_counts.person, session_user, decision, voter.groups, seen, vote_counts.reason, now);
    UPDATE outbox.approvals AS a
    SET votes = (SELECT count(*) FROM outbox.approval_votes AS v WHERE v.approval_id = asked.id)
    WHERE a.id = asked.id;
    RETURN coalesce(decision = ANY (asked.alone), false)
        OR outbox.quorum_reached(asked.id, asked.approvers, decision, seen);
END
$$;
COMMENT ON FUNCTION outbox.vote_counts(outbox.approvals, text, text, text[], text, text) IS
    'Internal: counts a vote, and returns whether it decides the question.';

-- Lets another person vote in one's place, until an end.
CREATE OR REPLACE FUNCTION outbox.delegate(
    to_person text, until timestamptz, from_person text DEFAULT NULL, groups text[] DEFAULT NULL, reason text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    person text := outbox.delegator(delegate.from_person, delegate.groups);
BEGIN
    IF coalesce(delegate.to_person, '') IN ('', person) OR outbox.actor_named(delegate.to_person) IS NULL THEN
        RAISE EXCEPTION 'a delegation is to another person' USING ERRCODE = '22023';
    ELSIF delegate.until IS NULL OR delegate.until <= clock_timestamp() OR delegate.until = 'infinity' THEN
        RAISE EXCEPTION 'a delegation has an end, which is later than now' USING ERRCODE = '22023';
    END IF;
    INSERT INTO outbox.delegations AS d (from_person, to_person, until, groups, reason)
    VALUES (person, delegate.to_person, delegate.until, delegate.groups, delegate.reason)
    ON CONFLICT ON CONSTRAINT delegations_pkey DO UPDATE
    SET until = excluded.until, groups = excluded.groups, reason = excluded.reason, since = excluded.since, login = excluded.login;
END
$$;
COMMENT ON FUNCTION outbox.delegate(text, timestamptz, text, text[], text) IS
    'Lets another person vote in your place until an end. A role that may speak for others names the person who delegates.';

-- Votes that were cast stay.
CREATE OR REPLACE FUNCTION outbox.delegation_end(to_person text, from_person text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM outbox.delegations AS d
    WHERE d.to_person = delegation_end.to_person AND d.from_person = outbox.delegator(delegation_end.from_person, NULL);
    IF NOT FOUND THEN
        PERFORM outbox.commit_waits();
        RETURN false;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION outbox.delegation_end(text, text) IS 'Ends a delegation before its time; returns whether there was one.';

CREATE OR REPLACE FUNCTION outbox.delegator(named text, groups text[]) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    person text := outbox.spoken_for(named);
BEGIN
    IF person IS NULL OR groups IS NOT NULL AND NOT outbox.may_speak() THEN
        RAISE EXCEPTION '% may not speak for others', session_user
            USING ERRCODE = 'insufficient_privilege', HINT = 'The group outbox_spokesman may.';
    END IF;
    RETURN person;
END
$$;
COMMENT ON FUNCTION outbox.delegator(text, text[]) IS 'Internal: returns the person whose delegation it is.';
REVOKE EXECUTE ON FUNCTION outbox.spoken_for(text), outbox.roles_of(text), outbox.groups_of(text, text[], jsonb),
    outbox.vote_refused(outbox.approvals, text, text), outbox.voter(outbox.approvals, text, text[]),
    outbox.quorum_reached(uuid, jsonb, text, text),
    outbox.vote_counts(outbox.approvals, text, text, text[], text, text),
    outbox.delegate(text, timestamptz, text, text[], text), outbox.delegation_end(text, text),
    outbox.delegator(text, text[]) FROM PUBLIC;
