"""A relay's settings stand in its row: with others it begins only where nothing is lost by it, and nothing comes twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pytest_postgresql.executors import NoopExecutor

from kit.databases import clone
from kit.pipelines import deployed, value
from kit.servers import DEADLINE, Process
from outbox.database.dsn import address
from outbox.errors import SettingsError
from outbox.messages.handoff import Handoff
from outbox.messages.rabbitmq.publisher import Publisher
from outbox.messages.relay import Relay

Conn = psycopg.Connection[Any]
WRITE = (
    "INSERT INTO outbox.messages (topic, key, payload) "
    "SELECT 'posts.enriched', 'post_' || n, '{}' FROM generate_series(%s::int, %s::int) AS n"
)
SET = "SELECT settings ->> 'shard' FROM outbox.relays WHERE name = %s"


class Homes(dict[int, str]):
    """Other databases, each made with the pipeline posts when it is asked for."""

    def __init__(self, template: NoopExecutor, made: contextlib.ExitStack) -> None:
        self._template, self._made = template, made

    def __missing__(self, number: int) -> str:
        self[number] = dsn = self._made.enter_context(clone(self._template))
        with psycopg.connect(dsn, autocommit=True) as conn:
            deployed(conn)
        return dsn


@pytest.fixture
def homes(template: NoopExecutor) -> Iterator[Homes]:
    with contextlib.ExitStack() as made:
        yield Homes(template, made)


@pytest.fixture
def relay(dsn: str) -> Callable[..., int]:
    """Relay all there is; return how many messages have gone out."""

    def relay(target: Handoff | Publisher, name: str = "default", **options: Any) -> int:
        async def run() -> int:
            made = Relay(dsn, target, name=name, drain=True, **options)
            await asyncio.wait_for(made.run(), DEADLINE)
            return made.relayed

        return asyncio.run(run())

    return relay


Run = Callable[..., int]


def entities(homes: Homes) -> Counter[str]:
    """How many workflows each entity has, in all databases."""
    found: Counter[str] = Counter()
    for dsn in homes.values():
        with psycopg.connect(dsn) as conn:
            found.update(row[0] for row in conn.execute("SELECT entity_id FROM outbox.workflow_states"))
    return found


def once(count: int) -> dict[str, int]:
    return {f"post_{n}": 1 for n in range(1, count + 1)}


def two_of_two(homes: Homes, relay: Run) -> None:
    for n in range(2):
        relay(Handoff(homes[n], "posts", part=(n, 2)), f"to-{n}")


@pytest.mark.parametrize("change", ["target", "pipeline", "topics", "entity_id", "shard"])
def test_a_name_with_messages_left_does_not_begin_with_other_settings(
    conn: Conn, homes: Homes, relay: Run, change: str
) -> None:
    had: dict[str, Any] = {"topics": ["posts.*"], "part": (0, 1)}
    others: dict[str, dict[str, Any]] = {"topics": {"topics": ["*"]}, "entity_id": {"entity_id": "{topic}"},
                                         "shard": {"part": (1, 2)}}  # fmt: skip
    changed = Handoff(
        homes[change == "target"], "other" if change == "pipeline" else "posts", **{**had, **others.get(change, {})}
    )
    relay(Handoff(homes[0], "posts", **had))
    conn.execute(WRITE, (1, 3))
    with pytest.raises(SettingsError, match=rf"'default' has messages left .*{change}: .*, now .*--drain"):
        relay(changed)
    assert relay(Handoff(homes[0], "posts", **had)) == 3, "nothing of it is lost"
    if change not in ("pipeline", "entity_id"):
        assert relay(changed) == 0
        stands = value(conn, "SELECT settings FROM outbox.relays")
        assert stands == changed.settings, "it has drained: the others stand now"


def test_a_person_may_have_what_is_left_go_by_other_settings(conn: Conn, homes: Homes, relay: Run) -> None:
    relay(Handoff(homes[0], "posts"))
    conn.execute(WRITE, (1, 3))
    assert relay(Handoff(homes[1], "posts"), change_settings=True) == 3
    assert relay(Handoff(homes[1], "posts")) == 0, "it is said once"
    assert entities(homes) == once(3)


def test_what_is_parked_is_left(conn: Conn, homes: Homes, relay: Run) -> None:
    """Tried again by other settings it may be no one's, and would be gone."""
    with psycopg.connect(homes[0], autocommit=True) as there:
        there.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', 'post_1')")
    conn.execute(WRITE, (1, 1))
    relay(Handoff(homes[0], "posts", part=(0, 1)))
    assert value(conn, "SELECT count(*) FROM outbox.parked_messages") == 1
    with pytest.raises(SettingsError, match="outbox parked"):
        relay(Handoff(homes[0], "posts", part=(0, 2)))


def test_a_process_with_other_settings_does_not_stand_by(conn: Conn, homes: Homes, dsn: str, relay: Run) -> None:
    """It would take over when the one that runs dies, and deliver the rest elsewhere."""

    async def run() -> None:
        leader = Relay(dsn, Handoff(homes[0], "posts"))
        leading = asyncio.create_task(leader.run())
        while not value(conn, "SELECT owner FROM outbox.relays"):
            await asyncio.sleep(0.01)
        with pytest.raises(SettingsError, match="runs elsewhere with other settings"):
            await Relay(dsn, Handoff(homes[1], "posts")).run()
        leader.stop()
        await leading

    asyncio.run(run())


def test_another_exchange_is_another_target_and_another_address_of_the_broker_is_not(
    conn: Conn, spawn: Callable[..., Process], relay: Run
) -> None:
    nowhere = {"source": "/", "routing_key": "{topic}"}
    relay(Publisher("amqp://127.0.0.1:1/", exchange="x", **nowhere))
    conn.execute(WRITE, (1, 1))
    refused = spawn("relay", "--exchange", "y", "--drain", env={"OUTBOX_AMQP_URL": "amqp://127.0.0.1:1/"})
    assert refused.wait() == 1
    assert "target: exchange x, now exchange y" in refused.text()
    assert Publisher("amqp://127.0.0.1:2/", exchange="x", **nowhere).settings == value(
        conn, "SELECT settings FROM outbox.relays"
    )


def test_a_database_is_the_same_in_whatever_order_its_hosts_are_named() -> None:
    assert address("host=a,b port=1,2 dbname=d password=s") == address("postgresql://b:2,a:1/d") == "d on a:1, b:2"
    assert address("host=a dbname=d") != address("host=a port=6432 dbname=d") != address("host=a dbname=e")


# Another number of databases.


def test_growing_by_new_names_loses_nothing_and_doubles_nothing(conn: Conn, homes: Homes, relay: Run) -> None:
    """The procedure of docs/scaling.md; and each step that is left out is refused, and changes nothing."""
    new = [(Handoff(homes[n], "posts", part=(n, 3)), f"new-{n}") for n in range(3)]
    conn.execute(WRITE, (1, 20))
    two_of_two(homes, relay)
    conn.execute(WRITE, (21, 40))
    with pytest.raises(SettingsError, match=r"'to-0', 'to-1' .*another number of shards.*--from-now"):
        relay(*new[0], from_now=True)
    two_of_two(homes, relay)
    with pytest.raises(SettingsError, match="start it with --from-now"):
        relay(*new[0])
    assert value(conn, "SELECT count(*) FROM outbox.relays") == 2, "a name that was refused keeps no messages"
    for target, name in new:
        relay(target, name, from_now=True)
    conn.execute(WRITE, (41, 60))
    for target, name in new:
        relay(target, name)
    assert entities(homes) == once(60)
    with psycopg.connect(homes[2]) as third:
        assert value(third, "SELECT count(*) FROM outbox.workflow_states") > 0


def test_growing_under_the_same_names_loses_nothing_and_doubles_nothing(conn: Conn, homes: Homes, relay: Run) -> None:
    """The third one is new, and gets what the others of its set have got since they are three: not the whole log."""
    conn.execute(WRITE, (1, 20))
    two_of_two(homes, relay)
    conn.execute(WRITE, (21, 40))
    with pytest.raises(SettingsError, match="'to-0' has messages left"):
        relay(Handoff(homes[0], "posts", part=(0, 3)), "to-0")
    relay(Handoff(homes[0], "posts", part=(0, 2)), "to-0")
    with pytest.raises(SettingsError, match="'to-1'"):
        relay(Handoff(homes[0], "posts", part=(0, 3)), "to-0")
    two_of_two(homes, relay)
    for n in range(2):
        relay(Handoff(homes[n], "posts", part=(n, 3)), f"to-{n}")
    conn.execute(WRITE, (41, 60))
    for n in range(3):
        relay(Handoff(homes[n], "posts", part=(n, 3)), f"to-{n}")
    assert entities(homes) == once(60)


def test_from_one_database_to_two_is_growing_too(conn: Conn, homes: Homes, relay: Run) -> None:
    conn.execute(WRITE, (1, 20))
    relay(Handoff(homes[0], "posts"), "to-all")
    with pytest.raises(SettingsError, match="'to-all'"):
        relay(Handoff(homes[1], "posts", part=(1, 2)), "to-1")
    for n in range(2):
        relay(Handoff(homes[n], "posts", part=(n, 2)), f"to-{n}", from_now=True)
    conn.execute(WRITE, (21, 40))
    for n in range(2):
        relay(Handoff(homes[n], "posts", part=(n, 2)), f"to-{n}")
    assert entities(homes) == once(40)


def test_a_relay_of_the_former_number_does_not_begin_beside_the_new_ones(
    conn: Conn, homes: Homes, dsn: str, relay: Run
) -> None:
    two_of_two(homes, relay)

    async def run() -> None:
        new = Relay(dsn, Handoff(homes[0], "posts", part=(0, 3)), name="new-0", from_now=True)
        leading = asyncio.create_task(new.run())
        while not value(conn, "SELECT owner FROM outbox.relays WHERE name = 'new-0'"):
            await asyncio.sleep(0.01)
        with pytest.raises(SettingsError, match=r"'new-0'.*run the one or the other"):
            await Relay(dsn, Handoff(homes[0], "posts", part=(0, 2)), name="to-0").run()
        new.stop()
        await leading

    asyncio.run(run())


def test_a_further_shard_of_the_same_number_gets_the_whole_log(conn: Conn, homes: Homes, relay: Run) -> None:
    conn.execute(WRITE, (1, 20))
    two_of_two(homes, relay)
    assert entities(homes) == once(20)
    assert value(conn, SET, "to-1") == "1/2"


@pytest.mark.parametrize("before", ["of a release before", "at another address"])
def test_a_row_that_takes_its_settings_late_keeps_its_place(conn: Conn, homes: Homes, relay: Run, before: str) -> None:
    conn.execute(WRITE, (1, 20))
    relay(Handoff(homes[0], "posts", part=(0, 2)), "to-0")
    if before == "of a release before":
        conn.execute("UPDATE outbox.relays SET settings = NULL, settings_since = NULL, nonce = NULL")
    else:
        conn.execute("""UPDATE outbox.relays SET settings = settings || '{"target": "posts on elsewhere:1"}'""")
    two_of_two(homes, relay)
    assert entities(homes) == once(20), "the second one, which begins only now, gets the whole log"


def test_copies_of_all_messages_in_two_databases_are_no_shards(conn: Conn, homes: Homes, relay: Run) -> None:
    conn.execute(WRITE, (1, 5))
    for n in range(2):
        relay(Handoff(homes[n], "posts"), f"copy-{n}")
    assert set(entities(homes).values()) == {2}
