"""Runs the person who is asked what has become of calls: looks into the bank's book, and answers what it says."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import psycopg

from . import bank
from .clients import KEYS, VOICE, Client, failed, run

PAUSE = 0.2
"""Seconds between two looks at what is asked, on average."""

ASKED = """
    SELECT a.id, a.entity_id, a.data ->> 'idempotency_key' FROM outbox.approvals AS a
    WHERE a.pipeline = 'chaos' AND a.ended_at IS NULL AND a.effect IS NOT NULL
    ORDER BY random() LIMIT 50
"""
ANSWER = "SELECT outbox.decide('chaos', %s, %s, question => %s, about => %s::jsonb)"


class Person(Client):
    """Answers one question after the other."""

    async def step(self) -> None:
        conn = await self.connection()
        for question, entity, key in await (await conn.execute(ASKED)).fetchall():
            await self.call("answer", entity, None, self.answering_about(key, entity, question))

    def answering_about(self, key: str, entity: str, question: Any) -> Any:
        async def do(conn: psycopg.AsyncConnection[Any]) -> str:
            decision, about = self.knows(key)
            try:
                await conn.execute(ANSWER, (entity, decision, question, about))
            except psycopg.DatabaseError as error:
                raise failed(error) from None
            return VOICE

        return do

    def knows(self, key: str) -> tuple[str, str | None]:
        """Returns an honest answer, and the result that is put beside it. One without is asked for again."""
        if self.random.random() < 0.1:
            return "repeat", None  # without a look into the book
        if not bank.look(key, "view"):
            return "no", None
        return "yes", None if self.random.random() < 0.1 else json.dumps({"result": bank.receipt(key)})


if __name__ == "__main__":
    with open(sys.argv[1], "a", encoding="utf-8") as file:
        asyncio.run(run([Person(KEYS, os.environ["OUTBOX_DSN"], PAUSE, file)]))
