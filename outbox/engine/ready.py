"""What a worker requires of its database: the schema is there, and its pipelines as this code has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from ..database import migrations, primary, startup
from ..database.connection_group import ConnectionGroup
from ..database.given import Dsn
from ..database.session import require_pooled
from ..definition import deployed
from ..definition.pipeline import Pipeline
from ..process.service import Service
from .lane import Lanes
from .retention import Retention


class Readiness:
    """Checks what a worker requires of its database before it claims anything."""

    def __init__(
        self,
        pipelines: Sequence[Pipeline[Any]],
        lanes: Lanes,
        retention: Retention,
        dsns: Sequence[Dsn],
        group: ConnectionGroup,
        *,
        pooled: bool = False,
    ) -> None:
        self._pipelines = pipelines
        self._lanes = lanes
        self._retention = retention
        self._dsns, self._group, self._pooled = tuple(dict.fromkeys(dsns)), group, pooled

    async def wait(self, service: Service, *, patient: bool) -> None:
        """Checks schema and pipelines; waits for a server that restarts meanwhile, until a stop.

        `patient`: also for one that is down. SchemaError, NotDeployed or OutboxError if something is missing; psycopg's
        error if the DSN leads nowhere.
        """
        first, *others = self._dsns
        await startup.begin(first, service, self._require, group=self._group, patient=patient)
        for dsn in others:
            await primary.look(dsn)

    def _require(self, conn: psycopg.Connection[Any]) -> None:
        if self._pooled:
            require_pooled(conn)
        migrations.require(conn)
        self._retention.require(conn)
        for pipeline in self._pipelines:
            stages = [name for owner, name in self._lanes if owner == pipeline.name]
            if stages or (pipeline.schedules and not pipeline.stages):
                deployed.require(conn, pipeline, stages)
