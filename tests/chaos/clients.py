"""Runs fifty clients with a key each, which log the answers: they submit, decide, delegate, cancel, send signals and retry.

A call whose COMMIT was sent and not answered is unknown. A call that failed before that has provably failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

import psycopg

from outbox import signal as signal_workflow

from .app import GROUP, OPTIONS, SIGNAL, VERSIONS, Data, chaos

KEYS = 50
MESSAGE = "INSERT INTO outbox.messages (topic, key, payload, workflow_id) VALUES (%s, %s, %s, %s)"
REFUSED = {"DONE": "SHIPPED", "REJECTED": "APPROVED", "CANCELLED": "NEW", "REVIEW": "SHIPPED", "CHECKED": "DONE"}
"""Illegal changes, which clients try all the same."""

ANSWERS = {names[status]: names["REJECTED"] for names in VERSIONS.values() for status in ("REVIEW", "CALLED")}
"""The statuses in which workflows wait for others, in each version, with what that version calls a rejection."""

REVIEWS = {names["REVIEW"] for names in VERSIONS.values()}

VOICE = "counted"
"""What a client notes of an answer that does not move its workflow: a vote, or an answer to one of several questions."""

MINE = """
    SELECT w.id, w.entity_id, w.current_status FROM outbox.workflow_states AS w
    WHERE w.pipeline = 'chaos' AND w.entity_id = ANY (%s)
"""
CHANGE = """
    UPDATE outbox.workflow_states SET current_status = %s
    WHERE id = %s AND current_status = %s
"""
ASKED = """
    SELECT a.id, a.asked_by, a.approvers IS NOT NULL FROM outbox.approvals AS a
    WHERE a.workflow_id = %s AND a.ended_at IS NULL ORDER BY random() LIMIT 1
"""
CANCELLED = """
    SELECT EXISTS (SELECT FROM outbox.state_changes AS c JOIN outbox.workflow_states AS w ON w.id = c.workflow_id
                   WHERE w.pipeline = 'chaos' AND w.entity_id = %s AND c.actor = current_setting('outbox.actor'))
"""
DECIDE = "SELECT outbox.decide('chaos', %s, %s, %s, question => %s, groups => %s)"
TO_VOTE = """
    SELECT a.workflow_id, a.entity_id, a.id, a.asked_by FROM outbox.approvals AS a
    WHERE a.pipeline = 'chaos' AND a.ended_at IS NULL AND a.approvers IS NOT NULL
    ORDER BY random() LIMIT 1
"""
DELEGATE = "SELECT outbox.delegate(%s, clock_timestamp() + make_interval(secs => %s), %s, %s)"
END_DELEGATION = "SELECT outbox.delegation_end(%s, %s)"
ON_THE_COMMAND_LINE = 0.03
"""How often a client cancels by a process of its own, which takes a CPU for half a second."""

DEAD = "SELECT d.workflow_id, d.entity_id FROM outbox.dead_jobs AS d WHERE d.entity_id = ANY (%s)"


class Failed(Exception):
    """The call certainly had no effect."""


def failed(error: psycopg.DatabaseError) -> Exception:
    """Returns what is to be raised: Failed if Outbox has refused it."""
    return Failed(str(error)) if (error.sqlstate or "").startswith("OB") else error


class Client:
    """Does what the client of a key does, one call after the other."""

    def __init__(self, key: int, dsn: str, pause: float, log: TextIO) -> None:
        self.key, self.dsn, self.pause, self.log = key, dsn, pause, log
        self.calls = 0
        self.open: list[str] = []
        self.conn: psycopg.AsyncConnection[Any] | None = None
        self.random = random.Random(f"{os.environ.get('CHAOS_SEED', '')}/{key}")

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            await asyncio.sleep(self.random.expovariate(1 / self.pause))
            try:
                await self.step()
            except (psycopg.Error, OSError, TimeoutError):
                await self.drop()
                await asyncio.sleep(0.1)
        await self.drop()

    async def step(self) -> None:
        dice = self.random.random()
        if dice < 0.5 or not self.open:
            await self.submit(f"k{self.key}-{self.calls}")
        elif dice < 0.55:
            await self.submit(self.random.choice(self.open))  # as if the network delivered it twice
        elif dice < 0.82:
            await self.change()
        elif dice < 0.87:
            await self.delegate()
        elif dice < 0.91:
            await self.signal(self.random.choice(self.open))  # what it sends too early is kept
        elif dice < 0.95:
            await self.cancel(self.random.choice(self.open) + self.random.choice(["", "", "/0"]))  # or its child
        else:
            await self.retry()

    async def submit(self, entity: str) -> None:
        async def do(conn: psycopg.AsyncConnection[Any]) -> str:
            submitted = await chaos.submit(conn, entity, Data())
            if submitted.created:
                payload = json.dumps({"entity": entity})
                await conn.execute(MESSAGE, ("chaos.submitted", entity, payload, submitted.id))
            return "created" if submitted.created else "exists"

        await self.call("submit", entity, None, do)
        self.open.append(entity)
        self.open = self.open[-40:]

    async def change(self) -> None:
        """Answers what waits, or takes away what a worker may be working on."""
        conn = await self.connection()
        rows = await (await conn.execute(MINE, (self.open,))).fetchall()
        self.random.shuffle(rows)
        for id_, entity, status in rows:
            if status in REFUSED and self.random.random() < 0.01:
                to = REFUSED[status]
                return await self.call("change", entity, to, self.changing(id_, entity, status, to))
            if (status in ANSWERS or status == "FAMILY") and self.random.random() < 0.2:
                return await self.cancel(entity)
            takes_away = status in ("CHECKED", "APPROVED", "SHIPPED", "PAID")
            if status in REVIEWS and self.random.random() < 0.7:
                option = self.random.choice(list(OPTIONS))
                to = {"approve": "APPROVED", "reject": ANSWERS[status]}[option]
                return await self.call("change", entity, to, self.deciding(id_, entity, option))
            if status in ANSWERS and status not in REVIEWS and self.random.random() < 0.7:
                return await self.signal(entity)
            if status in ANSWERS:
                to = self.random.choice(["APPROVED", ANSWERS[status]])
                return await self.call("change", entity, to, self.changing(id_, entity, status, to))
            if takes_away and self.random.random() < 0.1:
                return await self.call("change", entity, "CANCELLED", self.changing(id_, entity, status, "CANCELLED"))

    async def signal(self, entity: str) -> None:
        async def do(conn: psycopg.AsyncConnection[Any]) -> str:
            await signal_workflow(conn, "chaos", entity, SIGNAL)
            return "sent"

        await self.call("signal", entity, None, do)

    async def cancel(self, entity: str) -> None:
        """Cancels a workflow, whatever it is at, as a person or a program would."""
        if self.random.random() < ON_THE_COMMAND_LINE:
            return await self.cancel_on_the_command_line(entity)

        async def do(conn: psycopg.AsyncConnection[Any]) -> str:
            try:
                if self.random.random() < 0.5:
                    await chaos.cancel(conn, entity)
                else:
                    await conn.execute("SELECT outbox.cancel('chaos', %s)", (entity,))
            except psycopg.DatabaseError as error:
                raise failed(error) from None
            row = await (await conn.execute(CANCELLED, (entity,))).fetchone()
            if not row or not row[0]:
                raise Failed("it was cancelled before")
            return "cancelled"

        await self.call("cancel", entity, "CANCELLED", do)

    async def cancel_on_the_command_line(self, entity: str) -> None:
        """Cancels as `outbox cancel` does. Only what Outbox has refused has provably failed."""
        name, told = self.begin("cancel", entity, "CANCELLED")
        command = ["-m", "outbox", "cancel", entity, "--pipeline", "chaos", "--by", name]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        outcome, said = "unknown", "not answered"
        try:
            async with asyncio.timeout(20):
                said = (await process.communicate())[0].decode()[:200].strip()
            if "is already in" in said or "too late to cancel" in said or "no workflow of entity" in said:
                outcome = "failed"
            elif not process.returncode:
                outcome = "ok"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self.note({**told, "outcome": outcome, "ended": time.time(), "said": said})

    async def delegate(self) -> None:
        """Lets another vote on what any client has started, and has them do so: in time, or too late. Who has asked tries it in both parts."""
        conn = await self.connection()
        row = await (await conn.execute(TO_VOTE)).fetchone()
        if row is None:
            return
        id_, entity, question, asker = row
        ended = self.random.random() < 0.4
        giver, voter = self.name(1), self.name(3 if ended else 2)  # the calls that do it
        by, to = None, voter
        if (asking := self.random.random()) < 0.2:
            by = to = asker
        elif asking < 0.3:
            giver = asker
        length = self.random.choice([0.02, 0.1, 5])

        async def give(conn: psycopg.AsyncConnection[Any]) -> str:
            await conn.execute(DELEGATE, (to, length, giver, [GROUP]))
            return "delegated"

        async def end(conn: psycopg.AsyncConnection[Any]) -> str:
            row = await (await conn.execute(END_DELEGATION, (to, giver))).fetchone()
            if not row or not row[0]:
                raise Failed("there is no delegation")
            return "ended"

        await self.call("delegate", giver, None, give)
        if ended:
            await self.call("end", giver, None, end)
        await asyncio.sleep(self.random.choice([0, 0.1]))
        option = self.random.choice(list(OPTIONS))
        await self.call("change", entity, OPTIONS[option], self.answering(id_, entity, option, question, by, []))

    def changing(self, id_: Any, entity: str, status: str, to: str) -> Any:
        async def do(conn: psycopg.AsyncConnection[Any]) -> str:
            if not (await conn.execute(CHANGE, (to, id_, status))).rowcount:
                raise Failed(f"it is {status} no more")
            await conn.execute(MESSAGE, ("chaos.changed", entity, json.dumps({"entity": entity}), id_))
            return f"{status} to {to}"

        return do

    def deciding(self, id_: Any, entity: str, option: str) -> Any:
        async def do(conn: psycopg.AsyncConnection[Any]) -> str:
            asked = await (await conn.execute(ASKED, (id_,))).fetchone()
            if asked is None:
                raise Failed("nothing is asked any more")
            question, asker, voted = asked
            by = asker if voted and self.random.random() < 0.3 else None  # who asks tries it, too
            return str(await self.answering(id_, entity, option, question, by, [GROUP])(conn))

        return do

    def answering(self, id_: Any, entity: str, option: str, question: Any, by: str | None, groups: list[str]) -> Any:
        async def do(conn: psycopg.AsyncConnection[Any]) -> str:
            try:
                row = await (await conn.execute(DECIDE, (entity, option, by, question, groups))).fetchone()
            except psycopg.DatabaseError as error:
                raise failed(error) from None
            if row and row[0] in REVIEWS:
                return VOICE  # counted, and others are needed
            await conn.execute(MESSAGE, ("chaos.decided", entity, json.dumps({"entity": entity}), id_))
            return f"{option}: {row[0] if row else None}"

        return do

    async def retry(self) -> None:
        conn = await self.connection()
        for id_, entity in await (await conn.execute(DEAD, (self.open,))).fetchall():

            async def do(conn: psycopg.AsyncConnection[Any], id_: Any = id_) -> str:
                async with conn.cursor() as cursor:
                    await cursor.execute("SELECT outbox.retry(%s::uuid[])", ([id_],))
                    row = await cursor.fetchone()
                if not row or not row[0]:
                    raise Failed("not dead any more")
                return "made again"

            await self.call("retry", entity, None, do)

    async def call(self, kind: str, entity: str, to: str | None, do: Any) -> None:
        """Makes a call in a transaction and logs its outcome. `client` is the call's own name, and its actor."""
        name, told = self.begin(kind, entity, to)
        committing, outcome, said = False, "failed", ""
        try:
            async with asyncio.timeout(20):
                conn = await self.connection()
                await conn.execute("BEGIN")
                await conn.execute("SELECT set_config('outbox.actor', %s, true)", (name,))
                said = await do(conn)
                committing = True
                outcome = "unknown"
                await conn.execute("COMMIT")
                outcome = "ok"
        except Failed as refused:
            said = str(refused)
            assert conn is not None
            await conn.execute("ROLLBACK")
        except psycopg.Error as error:
            # At COMMIT, only the server's own answer that it has aborted is proof.
            aborted = error.sqlstate is not None and error.sqlstate[:2] in ("40", "23", "OB")
            outcome = "failed" if aborted or not committing else "unknown"
            said = f"{type(error).__name__} {error.sqlstate}: {error}"[:200]
            raise
        except (OSError, TimeoutError) as error:
            said = repr(error)[:200]
            raise
        finally:
            told["kind"] = "voice" if said == VOICE else kind
            self.note({**told, "outcome": outcome, "ended": time.time(), "said": said})

    def name(self, ahead: int = 0) -> str:
        """Returns what the last call is called, or one that is `ahead` of it."""
        return f"k{self.key}/{self.calls + ahead}"

    def begin(self, kind: str, entity: str, to: str | None) -> tuple[str, dict[str, Any]]:
        """Begins a call: notes what it asks for, and returns its name and the note."""
        self.calls += 1
        told = {"client": self.name(), "kind": kind, "entity": entity, "to_status": to, "began": time.time()}
        self.note({**told, "outcome": "unknown", "ended": None, "said": "begun"})
        return self.name(), told

    def note(self, told: dict[str, Any]) -> None:
        self.log.write(json.dumps(told) + "\n")
        self.log.flush()

    async def connection(self) -> psycopg.AsyncConnection[Any]:
        if self.conn is None or self.conn.closed:
            self.conn = await psycopg.AsyncConnection.connect(
                self.dsn, autocommit=True, connect_timeout=5, prepare_threshold=None
            )
        return self.conn

    async def drop(self) -> None:
        conn, self.conn = self.conn, None
        if conn is not None:
            try:
                await asyncio.wait_for(conn.close(), 2)
            except Exception:
                conn.pgconn.finish()


async def run(clients: Iterable[Client]) -> None:
    """Runs clients until the process is told to end."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await asyncio.gather(*(client.run(stopping) for client in clients))


async def main(log: TextIO, rate: float) -> None:
    """Runs all clients. `rate` is their calls a second, in all."""
    await run(Client(key, os.environ["OUTBOX_DSN"], KEYS / rate, log) for key in range(KEYS))


if __name__ == "__main__":
    with open(sys.argv[1], "a", encoding="utf-8") as file:
        asyncio.run(main(file, float(sys.argv[2])))
