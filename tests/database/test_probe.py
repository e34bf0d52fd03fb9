"""A probe tells a server that hangs from a statement that takes long."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from kit.proxy import Proxy
from kit.servers import DEADLINE
from outbox.database.connection_group import ConnectionGroup
from outbox.database.link import Link
from outbox.database.probe import Probe


def test_a_slow_statement_is_no_server_that_hangs(dsn: str, silent: Proxy) -> None:
    """A probe tells them apart: it is answered beside the one, and not on a line that is dead."""

    async def main() -> None:
        together = ConnectionGroup()
        way = make_conninfo(dsn, host=silent.host, port=silent.port)
        probe, link = Probe(way, together, patience=0.4), Link(way, "test", group=together)
        probing = asyncio.create_task(probe.run())
        assert await link.execute(b"SELECT 1 FROM pg_sleep(1.2)", {}) == [(1,)], "three times its patience"
        waiting = asyncio.create_task(link.execute(b"SELECT pg_sleep(600)", {}))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        silent.silent = True
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(waiting, DEADLINE)
        silent.silent = False
        probing.cancel()
        await asyncio.wait([probing])
        await probe.close()
        await link.close()

    asyncio.run(main())
