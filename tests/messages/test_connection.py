"""Connections to a broker are ended at any point of their beginning, without a word from pika."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from outbox.messages.rabbitmq import connection

START = bytes.fromhex("01 0000 0000001c 000a000a 00 09 00000000 00000005 504c41494e 00000005 656e5f5553 ce")
"""connection.start of AMQP 0-9-1: no properties, PLAIN, en_US."""


@pytest.mark.parametrize("answers", [[], [START], [START[:9]]], ids=["silent", "started", "half a frame"])
def test_a_handshake_that_is_given_up_ends_quietly(answers: list[bytes]) -> None:
    said: list[dict[str, Any]] = []

    async def give_up() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        reached, left = asyncio.Event(), asyncio.Event()

        async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(8)
            for answer in answers:
                writer.write(answer)
                if answer == START:
                    await reader.readexactly(1)
            reached.set()
            while await reader.read(1000):
                pass
            left.set()
            writer.close()

        server = await asyncio.start_server(broker, "127.0.0.1", 0)
        url = f"amqp://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        opening = asyncio.create_task(connection.open_connection(connection.parameters(url), lambda _: None))
        await reached.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await asyncio.wait_for(left.wait(), 60)
        server.close()

    asyncio.run(give_up())
    assert said == []
