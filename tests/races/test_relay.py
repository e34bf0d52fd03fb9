"""F50, F51, F56: what meets at the log, at a relay's name and at the inbox, in every order of its steps.

Each test is a scene that is set up again for each interleaving, what its actors do (the engine's own functions), and
what must be true in the end. See kit/interleave.py. There is no broker: what a relay would publish, it notes in a list.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import psycopg
import pytest
from psycopg import IsolationLevel

from kit.inbox import forget, made
from kit.interleave import Actor, Explore, Scene
from kit.log import WRITE, fill, sizes
from kit.pipelines import deployed, value
from outbox import Backoff, Delivery, Inbox, Reject, TooOld
from outbox.database.link import Link
from outbox.errors import TakenOver
from outbox.messages import ring
from outbox.messages.delivery import Arrival
from outbox.messages.handling import Handling, Slots
from outbox.messages.log import Log, Window
from outbox.messages.receive import Receiver
from outbox.messages.target import Lease
from outbox.process.service import Service

Conn = psycopg.Connection[Any]
Async = psycopg.AsyncConnection[Any]
Alone = Callable[[Callable[[Async], Awaitable[Any]]], Any]
TICK = "window_end = pg_current_snapshot|'read'"
"""The steps of a relay's tick but for the last, which is `WITH moved`."""


@pytest.fixture
def alone(dsn: str) -> Iterator[Alone]:
    """Have an act done on a connection that is in no scene: before one, or after."""

    async def connect() -> Async:
        return await psycopg.AsyncConnection.connect(dsn, autocommit=True)

    with asyncio.Runner() as runner:
        conn = runner.run(connect())
        yield lambda act: runner.run(act(conn))  # type: ignore[arg-type]
        runner.run(conn.close())


class Relay(Log):
    """A relay's log on whatever connection its act is done; what it publishes is in `told`.

    What takes or moves the cursor is in a transaction, so that others can meet it before its end.
    """

    def __init__(self, name: str = "default") -> None:
        super().__init__("", name, "test", Lease())
        self._beside = cast(Link, _Beside(self))
        self.told: list[str] = []

    async def take(self, conn: Async) -> Window | None:
        self._conn = conn
        return await self.take_over()

    async def begin(self, conn: Async) -> Window | None:
        async with conn.transaction():
            return await self.take(conn)

    async def lead(self, conn: Async) -> None:
        """Take the name over, with the window that is open, and go on with what is new."""
        await self.go_on(conn, await self.begin(conn))
        await self.tick(conn)

    async def leave_on(self, conn: Async) -> None:
        self._conn = conn
        await self.leave()

    async def open(self, conn: Async) -> Window | None:
        self._conn = conn
        return await self.cut()

    async def go_on(self, conn: Async, window: Window | None) -> None:
        self._conn = conn
        if window is not None:
            await self.tell(window)

    async def tick(self, conn: Async) -> None:
        """Cut a window, tell what is in it, and move the cursor behind it."""
        await self.go_on(conn, await self.open(conn))

    async def ticks(self, conn: Async) -> None:
        await self.tick(conn)
        await self.tick(conn)

    async def tell(self, window: Window) -> None:
        """Tell a window's messages one by one, each of them passed by the cursor when it is told."""
        messages = [message async for part in self.read(window) for message in part]
        for message in messages:
            self.told.append(message.topic)
            async with self._connected().transaction():
                await self.advance(message.id, 1, {}, done=message == messages[-1])

    async def _declare(self, window: Window, position: int) -> None:
        await self._execute(b"SELECT 'read'")  # stands for what follows, which is sent past the scheduler's cursors
        await super()._declare(window, position)


class _Beside:
    """Does what a relay does beside its windows on the connection of its act."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def connection(self) -> None: ...

    async def execute(self, statement: bytes, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        return await self._log._execute(statement, params)


def new_log(conn: Conn) -> None:
    """No messages, no relays, and the ids from the first one on."""
    conn.execute("DELETE FROM outbox.messages")
    conn.execute("DELETE FROM outbox.relays")
    conn.execute("SELECT setval('outbox.message_ids', 1, false)")


def holding(*statements: tuple[str, Any]) -> Callable[[Conn], None]:
    """Execute statements in one transaction."""

    def act(conn: Conn) -> None:
        with conn.transaction():
            for statement in statements:
                conn.execute(*statement)

    return act


# A relay and writers.


def test_f50_what_commits_late_is_in_a_later_window(conn: Conn, explore: Explore, alone: Alone) -> None:
    told = set()

    def scene() -> Scene:
        new_log(conn)
        relay = Relay()
        alone(relay.begin)

        def check(outcomes: dict[str, Any]) -> None:
            told.add((*relay.told,))
            alone(relay.tick)
            assert sorted(relay.told) == ["begun first", "begun later", "quick"], "each once"
            assert value(conn, "SELECT relayed FROM outbox.relays") == 3

        long = holding((WRITE, ("begun first", "a")), (WRITE, ("begun later", "a")))
        quick = holding((WRITE, ("quick", "b")))
        return Scene({"relay": Actor(relay.ticks, TICK), "long": long, "quick": Actor(quick, "INSERT")}, check)

    explore(scene)
    late = ("quick", "begun first", "begun later")
    assert told == {late[:n] for n in (0, 1, 3)} | {late[1:], late[1:] + late[:1]} | {
        ("begun first", "quick", "begun later")
    }


def test_f50_messages_of_a_key_come_in_the_order_of_its_commits(conn: Conn, explore: Explore, alone: Alone) -> None:
    """A change of a workflow holds its row until the commit, so the ids of its messages are in that order."""
    deployed(conn)
    told = set()
    change = """WITH changed AS (
        UPDATE outbox.workflow_states SET current_status = CASE current_status WHEN 'RECEIVED' THEN 'ENRICHED' ELSE 'APPROVED' END
        RETURNING entity_id, current_status
    ) INSERT INTO outbox.messages (topic, key) SELECT current_status, entity_id FROM changed"""

    def scene() -> Scene:
        new_log(conn)
        conn.execute("DELETE FROM outbox.workflow_states")
        conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', 'e')")
        relay = Relay()
        alone(relay.begin)

        def check(outcomes: dict[str, Any]) -> None:
            told.add((*relay.told,))
            alone(relay.tick)
            assert relay.told == ["ENRICHED", "APPROVED"], "each once, in their order"

        return Scene(
            {"relay": Actor(relay.ticks, TICK), "one": holding((change, None)), "other": holding((change, None))}, check
        )

    played = explore(scene)
    assert any("other" in each.waited for each in played)
    assert any("one" in each.waited for each in played)
    assert told == {(), ("ENRICHED",), ("ENRICHED", "APPROVED")}


# The ring: rotations, writers and relays.


async def rotate(conn: Async) -> dict[str, str]:
    return await ring.rotate(conn)


async def rotate_twice(conn: Async) -> dict[str, str]:
    """Turn the ring, and empty the child that was written to before."""
    await ring.rotate(conn)
    return await ring.rotate(conn)


def test_a_ring_that_turns_under_a_late_writer_and_a_relay_loses_nothing(
    conn: Conn, explore: Explore, alone: Alone
) -> None:
    """The writer's messages are in the child that is left, or in the next one, or one in each."""
    left = set()

    def scene() -> Scene:
        new_log(conn)
        relay = Relay()
        alone(relay.begin)
        fill(conn, 150_000, 1)
        alone(relay.tick)

        def check(outcomes: dict[str, Any]) -> None:
            left.add((*sizes(conn)[:2], len(relay.told)))
            alone(relay.tick)
            assert relay.told == ["t150000", "first", "second"], "each once, in their order"
            alone(rotate)
            assert sizes(conn)[0] == 0, "what has been passed goes"

        writer = holding((WRITE, ("first", "k")), (WRITE, ("second", "k")))
        relaying = Actor(relay.tick, TICK + "|WITH moved")
        return Scene({"ring": Actor(rotate_twice, "setval|LOCK TABLE"), "writer": writer, "relay": relaying}, check)

    played = explore(scene)
    assert any("ring" in each.waited for each in played)
    old, both, straddling, new = (3, 0, 1), (0, 0, 3), (2, 1, 1), (0, 2, 3)
    assert left >= {old, both, straddling, new}


@pytest.mark.parametrize("hasty", [False, True], ids=["waits", "gives up"])
def test_a_child_is_not_emptied_under_a_writer_or_before_it_is_read(
    conn: Conn, explore: Explore, alone: Alone, hasty: bool
) -> None:
    """The writer has drawn its id before the ring turned. A rotation gives up when it can't have the child at once."""
    ends: set[Any] = set()

    def scene() -> Scene:
        new_log(conn)
        relay = Relay()
        alone(relay.begin)
        fill(conn, 150_000, 1)
        alone(relay.tick)
        conn.execute("SELECT setval('outbox.message_ids', 1000000, false)")

        def check(outcomes: dict[str, Any]) -> None:
            ends.add((*outcomes["ring"], sizes(conn)[0]))
            alone(relay.tick)
            assert relay.told == ["t150000", "drawn"], "each once"
            assert alone(rotate) == {}
            assert sizes(conn) == [0, 0, 0, 0], "what has been passed goes"

        drawn = "INSERT INTO outbox.messages (id, topic) VALUES (150005, 'drawn')"
        rotating = Actor(rotate, "pg_inherits|LOCK TABLE" if hasty else "pg_inherits|LOCK TABLE|TRUNCATE", hasty)
        relaying = Actor(relay.tick, TICK + "|WITH moved")
        return Scene({"relay": relaying, "writer": holding((drawn, None)), "ring": rotating}, check)

    played = explore(scene)
    waited = {name for each in played for name in each.waited}
    assert waited == (set() if hasty else {"writer", "relay", "ring"})
    assert ends == {(0,), (1,), (2,)} | ({("messages_0", 2)} if hasty else set())


@pytest.mark.parametrize("old", [[], ["t150000"]], ids=["turn", "empty and turn"])
def test_two_rotations_at_once_turn_the_ring_once_and_never_back(
    conn: Conn, explore: Explore, alone: Alone, old: list[str]
) -> None:
    ids = set()

    def scene() -> Scene:
        new_log(conn)
        relay = Relay()
        alone(relay.begin)
        fill(conn, 150_000, len(old))
        alone(relay.tick)
        conn.execute("SELECT setval('outbox.message_ids', 1150000)")

        def check(outcomes: dict[str, Any]) -> None:
            assert (outcomes["one"], outcomes["other"]) == ({}, {})
            conn.execute(WRITE, ("after", "k"))
            ((first,), (second,)) = conn.execute("SELECT id FROM outbox.messages ORDER BY id").fetchall()
            assert (first, second) in {(1_150_001, 2_000_000), (2_000_000, 2_000_001)}
            ids.add(first)
            alone(relay.tick)
            assert relay.told == [*old, "beside", "after"]

        rotating = Actor(rotate, "LOCK TABLE|TRUNCATE|advisory|setval")
        beside = Actor(holding((WRITE, ("beside", "k"))), "INSERT")
        return Scene({"one": rotating, "other": rotating, "writer": beside}, check)

    played = explore(scene)
    assert {name for each in played for name in each.waited} == {"one", "other"}
    assert ids == {1_150_001, 2_000_000}


def test_what_has_no_relay_is_emptied_as_a_whole_or_kept_for_a_relay_that_begins(
    conn: Conn, explore: Explore, alone: Alone
) -> None:
    kept = set()

    def scene() -> Scene:
        new_log(conn)
        fill(conn, 150_000, 2)
        conn.execute("SELECT setval('outbox.message_ids', 1000000, false)")
        relay = Relay()

        async def begin(conn: Async) -> bool:
            await relay.begin(conn)
            await relay.go_on(conn, found := await relay.open(conn))
            return found is not None

        async def empty(conn: Async) -> list[str]:
            return await ring.rotate(conn, days=0)

        def check(outcomes: dict[str, Any]) -> None:
            kept.add(outcomes["relay"])
            alone(relay.tick)
            assert relay.told == (["t150000", "t150001"] if outcomes["relay"] else [])

        beginning = Actor(begin, "INTO outbox.relays|WITH moved|" + TICK)
        return Scene({"ring": Actor(empty, "pg_inherits|LOCK TABLE|TRUNCATE"), "relay": beginning}, check)

    played = explore(scene)
    assert any("relay" in each.waited for each in played)
    assert kept == {True, False}


# A relay's name: which relay has it, and which had it.

WATCH = """
CREATE TABLE outbox.moves (n bigint GENERATED ALWAYS AS IDENTITY, pid integer, epoch bigint, passed numeric, position bigint);
CREATE FUNCTION outbox.note_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO outbox.moves (pid, epoch, passed, position)
    VALUES (pg_backend_pid(), NEW.epoch, pg_snapshot_xmax(NEW.window_start)::text::numeric, NEW.position);
    RETURN NULL;
END $$;
CREATE TRIGGER note_move AFTER UPDATE ON outbox.relays FOR EACH ROW EXECUTE FUNCTION outbox.note_move();
"""
WRONG_MOVES = """
SELECT 'the cursor went back' FROM (SELECT (passed, position) < lag((passed, position)) OVER (ORDER BY n) AS back FROM outbox.moves) AS m WHERE back
UNION ALL SELECT 'the epoch went back' FROM (SELECT epoch < lag(epoch) OVER (ORDER BY n) AS back FROM outbox.moves) AS m WHERE back
UNION ALL SELECT 'two moved the cursor in epoch ' || epoch FROM outbox.moves GROUP BY epoch HAVING count(DISTINCT pid) > 1
"""
LATE = "UPDATE outbox.relays SET updated_at = now() - interval '2 hours'"


@pytest.fixture(autouse=True)
def long_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat is late when a scene says so, not when this machine is slow."""
    monkeypatch.setattr("outbox.messages.log.LEASE", 3600.0)


def holds(alone: Alone, relay: Relay) -> bool:
    """Whether a relay, asked now, has its name."""

    async def beat(conn: Async) -> bool:
        relay._conn = conn
        try:
            await relay.beat(None, False)
        except TakenOver:
            return False
        return True

    return bool(relay._epoch and alone(beat))


@pytest.mark.parametrize("frozen", ["before", "anywhere"])
def test_f51_an_old_leader_that_comes_back_moves_nothing_after_the_new_one_has_begun(
    conn: Conn, explore: Explore, alone: Alone, monkeypatch: pytest.MonkeyPatch, frozen: str
) -> None:
    """Frozen before the scene begins, or anywhere in it: then every beat is late at once."""
    if frozen == "anywhere":
        monkeypatch.setattr("outbox.messages.log.LEASE", -3600.0)
    conn.execute(WATCH)
    ends: set[Any] = set()

    def scene() -> Scene:
        new_log(conn)
        old, new, heir = Relay(), Relay(), Relay()
        alone(old.begin)
        fill(conn, 1, 2)
        opened = alone(old.open)
        conn.execute(WRITE, ("t3", "k"))
        conn.execute(LATE)
        conn.execute("TRUNCATE outbox.moves")

        async def go_on(conn: Async) -> str:
            try:
                await old.go_on(conn, opened)
                await old.tick(conn)
                await old.beat(None, False)
            except TakenOver:
                return "fenced"
            return "leads"

        async def take_over(conn: Async) -> str:
            try:
                await new.lead(conn)
            except TakenOver:
                return "stands by"
            return "leads"

        def check(outcomes: dict[str, Any]) -> None:
            assert conn.execute(WRONG_MOVES).fetchall() == []
            leader = new if outcomes["new"] == "leads" else old
            assert [one for one in (old, new) if holds(alone, one)] == [leader]
            ends.add((" ".join(old.told), outcomes["old"], " ".join(new.told), outcomes["new"]))
            conn.execute(LATE)
            conn.execute(WRITE, ("last", "k"))
            alone(heir.lead)
            assert {*old.told, *new.told} == {"t1", "t2", "t3"}
            assert heir.told == ["last"]

        return Scene({"old": Actor(go_on, "epoch|COMMIT"), "new": Actor(take_over, "epoch|COMMIT")}, check)

    played = explore(scene)
    assert {name for each in played for name in each.waited} == {"old", "new"}
    at_once, never = ("t1", "fenced", "t1 t2 t3", "leads"), ("t1 t2 t3", "leads", "", "stands by")
    between = {
        ("t1 t2", "fenced", "t2 t3", "leads"),
        ("t1 t2", "fenced", "t3", "leads"),
        ("t1 t2 t3", "fenced", "t3", "leads"),
        ("t1 t2 t3", "fenced", "", "leads"),
        ("t1 t2 t3", "leads", "", "leads"),  # which had its last word first
    }
    assert ends == ({at_once, never} if frozen == "before" else {at_once, *between})


@pytest.mark.parametrize("found", ["new", "free", "late", "leaving", "restored"])
def test_f51_of_two_takeovers_at_once_exactly_one_has_the_name(
    conn: Conn, explore: Explore, alone: Alone, found: str
) -> None:
    """Of a name that is new, free, or its owner's, whose beat is late or who is just leaving; or of a restored database."""
    winners = set()

    def scene() -> Scene:
        new_log(conn)
        owner, one, other = Relay(), Relay(), Relay()
        if found != "new":
            alone(owner.begin)
        if found in ("free", "restored"):
            alone(owner.leave_on)
        if found == "late":
            conn.execute(LATE)
        if found == "restored":
            conn.execute("UPDATE outbox.relays SET cluster = '1'")
        conn.execute(WRITE, ("t", "k"))

        def check(outcomes: dict[str, Any]) -> None:
            won = [name for name in ("one", "other") if not isinstance(outcomes[name], TakenOver)]
            winners.add((*won,))
            assert len(won) == 1 or (found == "leaving" and not won)
            if won:
                winner, loser = (one, other) if won == ["one"] else (other, one)
                assert [relay for relay in (winner, loser) if holds(alone, relay)] == [winner]
                alone(winner.tick)
                assert winner.told == ["t"]

        # What a restored database needs first is a transaction of its own.
        actors = (
            {"one": one.take, "other": other.take} if found == "restored" else {"one": one.begin, "other": other.begin}
        )
        return Scene(actors | ({"owner": owner.leave_on} if found == "leaving" else {}), check, (TakenOver,))

    played = explore(scene)
    assert {name for each in played for name in each.waited} >= {"one", "other"}
    assert winners == {("one",), ("other",)} | ({()} if found == "leaving" else set())


@pytest.mark.parametrize("beside", ["relay", "writer"])
def test_a_relay_that_finds_the_database_restored_loses_nothing(
    conn: Conn, explore: Explore, alone: Alone, beside: str
) -> None:
    """It stamps the whole log again, beside a writer, or a relay of another name that does the same.

    The one that is thrown out begins again, and repeats what the other's restore has put back.
    """
    kept = set()

    def scene() -> Scene:
        new_log(conn)
        relays = [Relay("a"), Relay("b")]
        for relay in relays:
            alone(relay.begin)
            alone(relay.leave_on)
        conn.execute(WRITE, ("before", "k"))
        conn.execute("UPDATE outbox.messages SET xid = '999999999'")
        conn.execute("UPDATE outbox.relays SET cluster = '1'")

        def lead(relay: Relay) -> Actor:
            async def act(conn: Async) -> str:
                try:
                    await relay.take(conn)
                    await relay.tick(conn)
                except TakenOver:
                    return "thrown out"
                return "leads"

            return Actor(act, "INTO outbox.relays|LOCK TABLE|window_start = '3:3:'|WITH moved")

        def check(outcomes: dict[str, Any]) -> None:
            kept.add((*outcomes.values(), len(relays[0].told)))
            conn.execute(LATE)
            conn.execute(WRITE, ("after", "k"))
            for relay in relays:
                alone(relay.lead)
                assert {*relay.told} == {"before", "after"} | ({"beside"} if beside == "writer" else set())
                assert relay.told == sorted(relay.told, key=["before", "beside", "after"].index), (
                    "repeated, not inverted"
                )

        writer = holding((WRITE, ("beside", "k")))
        return Scene({"a": lead(relays[0]), "b": lead(relays[1]) if beside == "relay" else writer}, check)

    played = explore(scene)
    assert {name for each in played for name in each.waited} == {"a", "b"}
    if beside == "writer":
        assert kept == {("leads", None, 1), ("leads", None, 2)}, (
            "the writer's is told now, or when there is a next tick"
        )
    else:
        assert {ended[:2] for ended in kept} == {("leads", "leads"), ("leads", "thrown out"), ("thrown out", "leads")}


# The inbox: deliveries of one message, and what forgets.

crm = Inbox("crm")
EFFECTS = "CREATE TABLE outbox.witness (message_id uuid)"
EFFECT = "INSERT INTO outbox.witness VALUES (%s)"
PLAIN = "INSERT INTO outbox.inbox (consumer, message_id) VALUES ('crm', %s) ON CONFLICT DO NOTHING"
NO_INBOX = "DELETE FROM outbox.inbox; DELETE FROM outbox.witness; SELECT setval('outbox.inbox_floor', 0)"


@pytest.mark.parametrize("ends", [("commit", "commit"), ("rollback", "commit"), ("commit", "rollback")])
@pytest.mark.parametrize(
    "level", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ], ids=lambda it: it.name
)
def test_f56_of_two_deliveries_at_once_the_first_to_commit_has_the_effect(
    conn: Conn, explore: Explore, level: IsolationLevel, ends: tuple[str, str]
) -> None:
    """The other one waits for it, and is new if it is undone. Above READ COMMITTED it may be told to try again."""
    conn.execute(EFFECTS)
    message = made()
    seen: set[Any] = set()

    def one(conn: Conn) -> bool:
        conn.isolation_level = level
        with conn.transaction(force_rollback=ends[0] == "rollback"):
            conn.execute("SELECT 'its snapshot'")
            if new := crm.accept(conn, message):
                conn.execute(EFFECT, [message])
        return new

    async def other(conn: Async) -> bool:
        await conn.set_isolation_level(level)
        async with conn.transaction(force_rollback=ends[1] == "rollback"):
            await conn.execute("SELECT 'its snapshot'")
            if new := await crm.accept(conn, message):
                await conn.execute(EFFECT, [message])
        return new

    def scene() -> Scene:
        conn.execute(NO_INBOX)

        def check(outcomes: dict[str, Any]) -> None:
            told = outcomes["one"], outcomes["other"]
            seen.add(tuple(new if isinstance(new, bool) else "again" for new in told))
            effects = sum(new is True and end == "commit" for new, end in zip(told, ends, strict=True))
            assert value(conn, "SELECT count(*) FROM outbox.witness") == effects <= 1
            assert crm.accept(conn, message) is (effects == 0)

        steps = "snapshot|INTO outbox.inbox|COMMIT"
        return Scene(
            {"one": Actor(one, steps), "other": Actor(other, steps)}, check, (psycopg.errors.SerializationFailure,)
        )

    played = explore(scene)
    assert {name for each in played for name in each.waited} == {"one", "other"}
    expected = {(True, ends[0] == "rollback"), (ends[1] == "rollback", True)}
    if level > IsolationLevel.READ_COMMITTED:
        again = (True, "again"), ("again", True)
        expected |= {told for told, end in zip(again, ends, strict=True) if end == "commit"}
    assert seen == expected


@pytest.mark.parametrize("was_handled", [False, True], ids=["new", "handled"])
def test_f56_a_message_that_is_being_forgotten_has_one_effect_or_is_refused(
    conn: Conn, explore: Explore, was_handled: bool
) -> None:
    """Deliveries, one of them without Outbox's look before it inserts, and the emptying of the message's week.

    It soon gives up where a delivery is under way; an insert waits while it is under way.
    """
    conn.execute(EFFECTS)
    message = made(60)
    ends: set[Any] = set()

    def accept(conn: Conn) -> str:
        try:
            with conn.transaction():
                if new := crm.accept(conn, message):
                    conn.execute(EFFECT, [message])
        except TooOld:
            return "refused"
        return "new" if new else "duplicate"

    def insert(conn: Conn) -> str:
        try:
            with conn.transaction():
                if new := conn.execute(PLAIN, [message]).rowcount:
                    conn.execute(EFFECT, [message])
        except psycopg.DatabaseError as error:
            return {"OB007": "refused"}[error.sqlstate or ""]
        return "new" if new else "duplicate"

    def forgetting(conn: Conn) -> list[bool]:
        with conn.transaction():
            return [emptied for _, emptied in forget(conn, 30)]

    def scene() -> Scene:
        conn.execute(NO_INBOX)
        if was_handled:
            accept(conn)

        def check(outcomes: dict[str, Any]) -> None:
            ends.update((name, outcomes[name], *outcomes["forgetting"]) for name in ("accept", "insert"))
            effects = value(conn, "SELECT count(*) FROM outbox.witness")
            assert effects == was_handled + [*outcomes.values()].count("new") <= 1
            assert accept(conn) == insert(conn) == "refused"

        steps = "INTO outbox.inbox|COMMIT"
        return Scene(
            {
                "accept": Actor(accept, steps),
                "insert": Actor(insert, steps),
                "forgetting": Actor(forgetting, hasty=True),
            },
            check,
        )

    played = explore(scene)
    waited = {name for each in played for name in each.waited}
    emptied, in_use, nothing = (True,), (False,), ()
    if was_handled:
        possible = [("duplicate", emptied), ("duplicate", in_use), ("refused", emptied), ("refused", in_use)]
        assert waited == {"insert"}
    else:
        possible = [(told, week) for told in ("new", "duplicate") for week in (emptied, in_use, nothing)]
        possible += [("refused", emptied), ("refused", nothing)]
        assert waited == {"accept", "insert"}
    assert ends == {(name, told, *week) for name in ("accept", "insert") for told, week in possible}


class Consumer:
    """What receives deliveries of one message, whose effect is a row, on whatever connection its act is done."""

    def __init__(self, dsn: str, *, is_async: bool, rejects: bool = False) -> None:
        handler = self.handle_async if is_async else self.handle
        self.handling = Handling(crm, "q", handler, Backoff(attempts=3), 60.0, Slots(1), Service("Consumer"))
        self.rejects, self.dsn = rejects, dsn

    def handle(self, delivery: Delivery) -> None:
        delivery.connection.execute(EFFECT, [delivery.message_id])
        if self.rejects:
            raise Reject("not this one")

    async def handle_async(self, delivery: Delivery) -> None:
        await delivery.connection.execute(EFFECT, [delivery.message_id])
        if self.rejects:
            raise Reject("not this one")

    def receive(self, arrival: Arrival) -> Callable[[Any], Any]:
        async def received(conn: Conn | Async) -> bool:
            receiver = Receiver(self.dsn, self.handling)
            place, name = (receiver._link, "_conn") if self.handling.is_async else (receiver, "_sync")
            setattr(place, name, conn)
            receiver._group._members[conn] = ""
            try:
                return await receiver.receive(arrival)
            finally:
                setattr(place, name, None)  # it is not the receiver's to close
                await receiver.close()

        return received if self.handling.is_async else lambda conn: asyncio.run(received(conn))


@pytest.mark.parametrize("first", ["commits", "is rejected"])
@pytest.mark.parametrize("redelivered", [False, True], ids=["twice", "redelivered"])
@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_f56_a_second_delivery_beside_the_handlers_transaction_has_no_second_effect(
    conn: Conn, dsn: str, explore: Explore, alone: Alone, first: str, redelivered: bool, kind: str
) -> None:
    """A sync handler or an async one. What was parked beside it is parked no more when a person has it tried again."""
    conn.execute(EFFECTS)
    message = str(made())
    ends: set[Any] = set()

    def arrival(**options: Any) -> Arrival:
        return Arrival("t", b"{}", {"cloudEvents_id": message}, **options)

    def scene() -> Scene:
        conn.execute(NO_INBOX)
        conn.execute("DELETE FROM outbox.parked_deliveries")
        one = Consumer(dsn, is_async=kind == "loop", rejects=first == "is rejected")
        other = Consumer(dsn, is_async=True)

        def check(outcomes: dict[str, Any]) -> None:
            assert outcomes == {"one": True, "other": True}, "both are acknowledged"
            assert value(conn, "SELECT count(*) FROM outbox.witness") == 1
            assert one.handling.handled + other.handling.handled == 1
            assert one.handling.handled + one.handling.duplicates + one.handling.parked == 1
            parked = conn.execute("SELECT id FROM outbox.parked_deliveries").fetchall()
            ends.add((one.handling.handled, one.handling.duplicates, one.handling.parked))
            for (id_,) in parked:
                alone(other.receive(arrival(parked=id_)))
            assert value(conn, "SELECT count(*) FROM outbox.parked_deliveries") == 0
            assert value(conn, "SELECT count(*) FROM outbox.delivery_attempts") == 0
            assert value(conn, "SELECT count(*) FROM outbox.witness") == 1

        return Scene({"one": one.receive(arrival()), "other": other.receive(arrival(redelivered=redelivered))}, check)

    played = explore(scene)
    assert {name for each in played for name in each.waited} == {"one", "other"}
    assert ends == {(0, 1, 0), (1, 0, 0) if first == "commits" else (0, 0, 1)}
