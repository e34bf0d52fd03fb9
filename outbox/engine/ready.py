"""Waits until the database is ready for a worker: the schema is there, and its pipelines as this code has them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.pq import PGconn, Ping

from ..database import migrations
from ..database.link import Link, temporary
from ..database.session import connect, require_pooled
from ..definition import deployed
from ..definition.pipeline import Pipeline
from ..process.service import Service
from .lane import Lanes
from .retention import Retention


class Readiness:
    """What a worker requires of its database before it claims anything."""

    def __init__(
        self,
        pipelines: Sequence[Pipeline[Any]],
        lanes: Lanes,
        retention: Retention,
        link: Link,
        dsn: str,
        *,
        pooled: bool = False,
    ) -> None:
        self._pipelines = pipelines
        self._lanes = lanes
        self._retention = retention
        self._link = link
        self._dsn, self._pooled = dsn, pooled
        self._answered = False

    async def wait(self, service: Service) -> None:
        """Checks schema and pipelines; waits for a server that restarts meanwhile, until a stop.

        SchemaError, NotDeployed or OutboxError if something is missing; psycopg's error if the DSN leads nowhere.
        """
        while not service.stopping:
            try:
                return await asyncio.to_thread(self._require)
            except psycopg.Error as error:
                # A DSN that leads nowhere is the user's to correct, now. One that did lead somewhere is not.
                starting = PGconn.ping(self._dsn.encode()) == Ping.REJECT
                if not (temporary(error) and (self._answered or starting)):
                    raise
                await self._link.pause(error)

    def _require(self) -> None:
        with connect(self._dsn, "check", pooled=True) as conn:
            self._answered = True
            if self._pooled:
                require_pooled(conn)
            migrations.require(conn)
            self._retention.require(conn)
            for pipeline in self._pipelines:
                stages = [name for owner, name in self._lanes if owner == pipeline.name]
                if stages:
                    deployed.require(conn, pipeline, stages)
