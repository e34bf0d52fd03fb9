"""Waits until the database is ready for a worker: it has the schema, and the pipelines as this code defines them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.pq import PGconn, Ping

from ..database import migrations
from ..database.link import Link, temporary
from ..database.session import connect
from ..definition import deployed
from ..definition.pipeline import Pipeline
from ..process.service import Service
from .lane import Lanes
from .retention import Retention


class Readiness:
    """Checks what a worker requires of its database before it claims anything."""

    def __init__(
        self, pipelines: Sequence[Pipeline[Any]], lanes: Lanes, retention: Retention, link: Link, dsn: str
    ) -> None:
        self._pipelines = pipelines
        self._lanes = lanes
        self._retention = retention
        self._link = link
        self._dsn = dsn
        self._answered = False

    async def wait(self, service: Service) -> None:
        """Checks the schema and the pipelines; waits, until a stop, for a server that is restarting.

        Raises SchemaError, NotDeployed or OutboxError if something is missing; psycopg's error if the DSN is wrong.
        """
        while not service.stopping:
            try:
                return await asyncio.to_thread(self._require)
            except psycopg.Error as error:
                # A DSN that has never worked is the user's to correct, now. One that has answered is worth waiting for.
                starting = PGconn.ping(self._dsn.encode()) == Ping.REJECT
                if not (temporary(error) and (self._answered or starting)):
                    raise
                await self._link.pause(error)

    def _require(self) -> None:
        with connect(self._dsn, "check", pooled=True) as conn:
            self._answered = True
            migrations.require(conn)
            self._retention.require(conn)
            for pipeline in self._pipelines:
                stages = [name for owner, name in self._lanes if owner == pipeline.name]
                if stages:
                    deployed.require(conn, pipeline, stages)
