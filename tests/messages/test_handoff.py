"""The handoff: messages of one database become workflows in another, each once, whatever dies on the way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pytest_postgresql.executors import NoopExecutor

from kit.commands import Outbox
from kit.databases import OWNER, clone, make_database
from kit.pipelines import Post, deployed, make_posts, value
from kit.servers import DEADLINE, PostgresServer, Process, wait_for
from outbox import InvalidInput, Pipeline, Run, Worker, shard
from outbox.messages.handoff import Handoff
from outbox.messages.relay import Relay

Conn = psycopg.Connection[Any]
Make = Callable[[], str]
Spawn = Callable[..., Process]

WRITE = (
    "INSERT INTO outbox.messages (topic, key, payload) "
    "SELECT 'posts.enriched', 'post_' || n, jsonb_build_object('content', 'number ' || n) "
    "FROM generate_series(%s::int, %s::int) AS n"
)
ENTITIES = "SELECT array_agg(entity_id ORDER BY entity_id) FROM outbox.workflow_states"


@pytest.fixture
def make_other(template: NoopExecutor) -> Iterator[Make]:
    """Make one more migrated database."""
    with contextlib.ExitStack() as made:
        yield lambda: made.enter_context(clone(template))


@pytest.fixture
def other_dsn(make_other: Make) -> str:
    return make_other()


@pytest.fixture
def other(other_dsn: str) -> Iterator[Conn]:
    """A connection to the other database, in which the pipeline posts is deployed."""
    with psycopg.connect(other_dsn, autocommit=True) as conn:
        deployed(conn)
        yield conn


@pytest.fixture
def hand_on(dsn: str, other_dsn: str) -> Callable[..., Relay]:
    """Relay all there is to the other database; return the relay that did."""

    def hand_on(*, strict: bool = False, name: str = "default", to: str = other_dsn, **options: Any) -> Relay:
        async def run() -> Relay:
            options.setdefault("pipeline", "posts")
            relay = Relay(dsn, Handoff(to, strict=strict, **options), name=name, strict=strict, drain=True)
            await asyncio.wait_for(relay.run(), DEADLINE)
            return relay

        return asyncio.run(run())

    return hand_on


HandOn = Callable[..., Relay]


def write(conn: Conn, key: str | None, payload: str | None = '{"content": "a"}', topic: str = "posts.enriched") -> None:
    conn.execute("INSERT INTO outbox.messages (topic, key, payload) VALUES (%s, %s, %s)", (topic, key, payload))


def parked(conn: Conn) -> dict[str, str]:
    return dict(conn.execute("SELECT key, reason FROM outbox.parked_messages ORDER BY id").fetchall())


def test_a_message_becomes_a_workflow_with_its_payload_as_data(conn: Conn, other: Conn, hand_on: HandOn) -> None:
    write(conn, "post_1", '{"content": "hello"}')
    write(conn, None, '{"content": "without a key"}')
    assert hand_on().relayed == 2
    message = value(conn, "SELECT message_id FROM outbox.messages WHERE key IS NULL")
    found = other.execute(
        "SELECT entity_id, current_status, metadata FROM outbox.workflow_states ORDER BY created_at, 1"
    )
    assert sorted(found.fetchall(), key=str) == sorted(
        [
            ("post_1", "RECEIVED", {"content": "hello"}),
            (str(message), "RECEIVED", {"content": "without a key"}),
        ],
        key=str,
    )
    assert value(other, "SELECT count(*) FROM outbox.jobs WHERE stage = 'enrich'") == 2, "and its first job is there"
    assert value(other, "SELECT count(*) FROM outbox.inbox WHERE consumer = 'pipeline posts'") == 2


def test_a_workflow_goes_on_in_the_other_database_and_all_of_it_is_once(
    conn: Conn, dsn: str, other: Conn, other_dsn: str, spawn: Spawn
) -> None:
    """Three stages here, three there, and the relay between them is killed in the middle, again and again."""
    posts = deployed(conn)
    count = 600
    posts.submit_many(conn, [(f"post_{n}", Post(content=f"number {n}")) for n in range(count)])
    asyncio.run(Worker(posts, dsn, drain=True).run())
    options = ("relay", "--to", other_dsn, "--pipeline", "posts", "--topic", "posts.enriched", "--drain")
    for number in (1, 2, 1):
        killed = spawn(*options, env={"OUTBOX_KILL_AT": f"K10:{number}"})
        assert killed.wait() == -9, killed.text()
        conn.execute("UPDATE outbox.relays SET updated_at = now() - interval '1 hour'")  # its lease is over
    last = spawn(*options)
    assert last.wait() == 0, last.text()
    asyncio.run(Worker(make_posts(), other_dsn, drain=True).run())
    for database in (conn, other):
        assert (
            value(database, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'COMPLETED'") == count
        )
        assert value(database, "SELECT count(*) FROM outbox.state_changes") == count * 4
    assert value(other, "SELECT count(*) FROM outbox.inbox") == count
    # What was handed on and not recorded as such came a second time: the relay itself counts parts, not effects.
    assert value(other, "SELECT count(*) FROM outbox.state_changes WHERE from_status IS NULL") == count


def test_sessions_that_are_ended_in_the_other_database_lose_and_double_nothing(
    conn: Conn, other: Conn, other_dsn: str, spawn: Spawn, admin_dsn: str
) -> None:
    process = spawn("relay", "--to", other_dsn, "--pipeline", "posts")
    end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'outbox handoff'"
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        for start in range(0, 2_000, 100):
            conn.execute(WRITE, (start, start + 99))
            wait_for(lambda: value(admin, end), what="a session was there, and is ended")
        wait_for(lambda: value(other, "SELECT count(*) FROM outbox.workflow_states") == 2_000, what="all are there")
    assert process.running
    assert value(other, "SELECT count(*) FROM outbox.inbox") == 2_000
    assert parked(conn) == {}


def test_an_entity_that_is_there_already_is_parked_and_can_be_sent_again(
    conn: Conn, other: Conn, hand_on: HandOn, outbox: Outbox
) -> None:
    make_posts().submit(other, "post_1", Post(content="of another"))
    write(conn, "post_1")
    write(conn, "post_2")
    write(conn, "post_2", '{"content": "a second one"}')
    relay = hand_on()
    assert (relay.relayed, relay.parked) == (1, 2)
    assert all("its entity already has a workflow there" in reason for reason in parked(conn).values())
    assert value(other, "SELECT metadata->>'content' FROM outbox.workflow_states WHERE entity_id = 'post_2'") == "a"
    other.execute("DELETE FROM outbox.workflow_states WHERE entity_id = 'post_1'")
    outbox("parked", "--retry")
    hand_on()
    assert value(other, ENTITIES) == ["post_1", "post_2"]
    assert list(parked(conn)) == ["post_2"]


def test_what_cannot_be_a_workflow_is_parked_and_the_others_go(conn: Conn, other: Conn, hand_on: HandOn) -> None:
    deep = "[" * 100 + "]" * 100
    for key, payload in (("a", "{}"), ("", "{}"), ("x" * 600, "{}"), ("b", deep), ("c", None), ("d", "5")):
        write(conn, key, payload)
    conn.execute(
        "INSERT INTO outbox.messages (message_id, topic, key) VALUES ('0b3b1ab0-4a1e-4c6b-9d1c-8a1b6a1f3c11', 't', 'e')"
    )
    hand_on()
    assert value(other, ENTITIES) == ["a", "b", "c", "d"]
    reasons = parked(conn)
    assert reasons.keys() == {"", "x" * 600, "e"}
    assert "entity_id: is empty" in reasons[""]
    assert "the limit is 512" in reasons["x" * 600]
    assert "version 7" in reasons["e"]


def test_a_value_that_only_the_other_database_refuses_is_found_among_many(
    conn: Conn, other: Conn, hand_on: HandOn
) -> None:
    other.execute(
        "ALTER TABLE outbox.workflow_states ADD CONSTRAINT theirs CHECK (metadata->>'content' <> 'number 77')"
    )
    conn.execute(WRITE, (0, 199))
    relay = hand_on()
    assert (relay.relayed, relay.parked) == (199, 1)
    assert 'violates check constraint "theirs"' in parked(conn)["post_77"]
    assert value(other, "SELECT count(*) FROM outbox.workflow_states") == 199


def test_strict_parks_the_later_messages_of_a_key_behind_a_refused_one(
    conn: Conn, other: Conn, hand_on: HandOn
) -> None:
    other.execute("ALTER TABLE outbox.workflow_states ADD CONSTRAINT theirs CHECK (metadata->>'content' <> 'bad')")
    for key, content in (("a", "1"), ("b", "bad"), ("a", "2"), ("b", "3"), ("c", "4")):
        write(conn, key, f'{{"content": "{content}"}}')
    hand_on(strict=True, entity_id="{message_id}")
    contents = "SELECT array_agg(metadata->>'content' ORDER BY metadata->>'content') FROM outbox.workflow_states"
    assert value(other, contents) == ["1", "2", "4"]
    reasons = [row[0] for row in conn.execute("SELECT reason FROM outbox.parked_messages ORDER BY id")]
    assert len(reasons) == 2
    assert "theirs" in reasons[0]
    assert "behind an earlier parked message of its key 'b'" in reasons[1]


def test_only_topics_that_are_asked_for_are_handed_on(conn: Conn, other: Conn, hand_on: HandOn) -> None:
    for topic in ("posts.enriched", "posts.done", "mail"):
        write(conn, topic, topic=topic)
    hand_on(topics=["posts.*"])
    assert value(other, ENTITIES) == ["posts.done", "posts.enriched"]


def test_messages_wait_for_a_pipeline_that_is_not_deployed_and_status_says_so(
    conn: Conn, other_dsn: str, spawn: Spawn, outbox: Outbox
) -> None:
    write(conn, "post_1")
    process = spawn("relay", "--to", other_dsn, "--pipeline", "posts")
    wait_for(lambda: value(conn, "SELECT trouble FROM outbox.relays"), what="the trouble is known")
    assert "pipeline 'posts' is not deployed there: run outbox deploy" in outbox("status", "--json").out
    with psycopg.connect(other_dsn, autocommit=True) as other:
        deployed(other)
        wait_for(lambda: value(other, ENTITIES) == ["post_1"], what="it is handed on")
    wait_for(lambda: value(conn, "SELECT trouble IS NULL FROM outbox.relays"), what="the trouble is over")
    assert process.running


def test_a_database_without_a_schema_or_that_is_away_is_waited_for(
    conn: Conn, server: PostgresServer, make_other: Make, spawn: Spawn
) -> None:
    other_dsn = make_other()
    name = other_dsn.rpartition("/")[2].partition("?")[0]
    with server.admin() as admin:
        admin.execute(f'DROP DATABASE "{name}"'.encode())
    write(conn, "post_1")
    spawn("relay", "--to", other_dsn, "--pipeline", "posts")
    wait_for(lambda: "does not exist" in str(value(conn, "SELECT trouble FROM outbox.relays")), what="it is said")
    make_database(server, name)
    wait_for(lambda: "outbox.pipelines" in str(value(conn, "SELECT trouble FROM outbox.relays")), what="it is said")
    outbox = Outbox(other_dsn)
    outbox("migrate")
    with psycopg.connect(other_dsn, autocommit=True) as other:
        deployed(other)
        wait_for(lambda: value(other, ENTITIES) == ["post_1"], what="it is handed on")


def test_ids_that_the_inbox_there_may_have_forgotten_are_parked(conn: Conn, other: Conn, hand_on: HandOn) -> None:
    other.execute("SELECT outbox.inbox_forget(30)")
    conn.execute(
        "INSERT INTO outbox.messages (message_id, topic, key) VALUES ('0174b2a0-0000-7000-8000-000000000000', 't', 'old'),"
        " ('ff74b2a0-0000-7000-8000-000000000000', 't', 'new')"
    )
    write(conn, "post_1")
    hand_on()
    assert value(other, ENTITIES) == ["post_1"]
    reasons = parked(conn)
    assert "older than what the inbox there remembers" in reasons["old"]
    assert "its id is in the future" in reasons["new"]


def test_two_relays_of_other_names_hand_the_same_message_on_once(conn: Conn, other: Conn, hand_on: HandOn) -> None:
    conn.execute(WRITE, (0, 99))
    hand_on(name="one")
    hand_on(name="two")
    assert value(other, "SELECT count(*) FROM outbox.workflow_states") == 100
    assert parked(conn) == {}


# Many databases.


def test_workflows_hashed_to_three_databases_hand_on_to_each_other(
    conn: Conn, dsn: str, make_other: Make, hand_on: HandOn
) -> None:
    """N independent databases: each post makes one notification, which lives where its own id says."""
    homes = [dsn, make_other(), make_other()]
    count, seen = 90, []
    notices: Pipeline[Any] = Pipeline("notices", initial="NEW", final={"SENT"})
    notices.stage("send", on="NEW", to="SENT")(lambda run: seen.append(run.entity_id))

    async def enrich(run: Run[Post]) -> None:
        run.publish("notices", {"of": run.entity_id}, key=f"notice_of_{run.entity_id}")

    pipelines = [make_posts(enrich=enrich), notices]
    for home in homes:
        with psycopg.connect(home, autocommit=True) as database:
            for pipeline in pipelines:
                deployed(database, pipeline)
            mine = [f"post_{n}" for n in range(count) if homes[shard(f"post_{n}", 3)] == home]
            pipelines[0].submit_many(database, [(entity, Post()) for entity in mine])
            assert 10 < len(mine) < 50
    for home in homes:
        asyncio.run(Worker(pipelines, home, drain=True).run())
    for source in homes:
        for number, target in enumerate(homes):
            relay_once(source, target, f"to-{number}", (number, 3))
    for home in homes:
        asyncio.run(Worker(pipelines, home, drain=True).run())
    assert sorted(seen) == sorted(f"notice_of_post_{n}" for n in range(count))
    for number, home in enumerate(homes):
        with psycopg.connect(home) as database:
            there = value(
                database, "SELECT array_agg(entity_id) FROM outbox.workflow_states WHERE pipeline = 'notices'"
            )
            assert {shard(entity, 3) for entity in there} == {number}


def relay_once(source: str, target: str, name: str, part: tuple[int, int]) -> None:
    async def run() -> None:
        handoff = Handoff(target, "notices", topics=["notices"], part=part)
        relay = Relay(source, handoff, name=name, drain=True)
        await asyncio.wait_for(relay.run(), DEADLINE)

    asyncio.run(run())


def test_shards_never_change() -> None:
    assert [shard(entity, 4) for entity in ("post_1", "post_2", "ü", "", "漢字")] == [1, 3, 1, 0, 3]
    assert shard("anything", 1) == 0
    for of in (0, -1, 1.5, None, True):
        with pytest.raises(InvalidInput, match="of: "):
            shard("a", of)  # type: ignore[arg-type]


# The command.


def test_options_that_make_no_sense_are_refused(outbox: Outbox, other_dsn: str) -> None:
    for arguments, said in (
        (["--to", other_dsn], "--to and --pipeline go together"),
        (["--pipeline", "posts"], "--to and --pipeline go together"),
        (["--topic", "a"], "--topic and --shard need --to"),
        (["--to", other_dsn, "--pipeline", "posts", "--shard", "4/4"], "is not N/M"),
        (["--to", other_dsn, "--pipeline", "posts", "--shard", "x"], "is not N/M"),
    ):
        assert said in outbox("relay", *arguments, code=2).err
    bad = outbox("relay", "--to", other_dsn, "--pipeline", "posts", "--entity-id", "{nothing}", code=1)
    assert "is not a template of {key}, {topic} and {message_id}" in bad.err


def test_a_password_in_the_target_is_shown_nowhere(conn: Conn, other_dsn: str, spawn: Spawn, outbox: Outbox) -> None:
    deployed(conn)
    write(conn, "post_1")
    secret = "canary-secret"
    wrong = other_dsn.replace(f"{OWNER}@", f"nobody:{secret}@")
    process = spawn("relay", "--pipeline", "posts", env={"OUTBOX_TO_DSN": wrong})
    wait_for(lambda: value(conn, "SELECT trouble FROM outbox.relays"), what="the trouble is known")
    assert secret not in outbox("status", "--json").out + process.text()
    unreadable = outbox("relay", "--to", f"postgresql://u:{secret}/x@host/db", "--pipeline", "posts", code=1)
    assert secret not in unreadable.err


def test_ids_are_the_messages_own(conn: Conn, other: Conn, hand_on: HandOn) -> None:
    write(conn, "post_1")
    hand_on()
    assert isinstance(value(conn, "SELECT message_id FROM outbox.messages"), UUID)
    assert value(conn, "SELECT message_id FROM outbox.messages") == value(other, "SELECT message_id FROM outbox.inbox")
