"""The tools that operate: start workflows, send signals, retry dead jobs, pause and resume stages.

None of them changes the status of a workflow by hand: that would answer its questions, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from .. import documents
from ..checks import MAX_NAME
from ..client import signals, stages
from ..client.execute import drive
from ..client.submit import Submitted, submit, submit_by_name
from ..definition.pipeline import Pipeline
from ..errors import OutboxError
from ..operations import change, look
from ..operations.sessions import Conn
from .asking import Asking
from .tools import Entity, OfPipeline, Reason, changes

Stage = Annotated[
    str, Field(max_length=MAX_NAME, description='Such as "enrich" or, if several pipelines have it, "posts.enrich".')
]


class Operating:
    """What may be done, in the name `by`."""

    def __init__(self, asking: Asking, by: str, pipelines: Mapping[str, Pipeline[Any]]) -> None:
        self._asking, self._by, self._pipelines = asking, by, pipelines

    def tools(self) -> list[Tool]:
        """Returns the tools."""
        return [
            changes(self.submit_workflow),
            changes(self.send_signal, repeatable=False),
            changes(self.retry_dead_job),
            changes(self.pause_stage),
            changes(self.resume_stage),
        ]

    async def submit_workflow(
        self,
        pipeline: Annotated[str, Field(max_length=MAX_NAME, description="The pipeline that it starts in.")],
        entity_id: Entity,
        data: Annotated[dict[str, Any], Field(description="The data that it starts with.")],
        reason: Reason = None,
    ) -> str:
        """Starts a workflow. If the entity has one in this pipeline, nothing is changed, and `created` is false."""

        def make(conn: Conn) -> dict[str, Any]:
            made = started(conn, self._pipelines.get(pipeline, pipeline), entity_id, data, self._by, reason)
            return {"pipeline": pipeline, "entity_id": made.entity_id, "status": made.status, "created": made.created}

        return await self._asking.change(make)

    async def send_signal(
        self,
        entity_id: Entity,
        name: Annotated[str, Field(max_length=MAX_NAME, description="The name that the workflow waits for.")],
        payload: Annotated[Any, Field(description="Any JSON.")] = None,
        id: Annotated[
            str | None,
            Field(
                max_length=MAX_NAME, description="Your own id of it: a second signal with the same id has no effect."
            ),
        ] = None,
        pipeline: OfPipeline = None,
    ) -> str:
        """Sends a signal to a workflow. One that waits for it moves; otherwise the signal is kept until a wait takes
        it. Pass an `id`, so that the call can be repeated if its answer is lost.
        """

        def make(conn: Conn) -> dict[str, Any]:
            row = look.find_one(conn, entity_id, pipeline)
            sent = signals.signal(conn, row["pipeline"], row["entity_id"], name, payload, id=id, by=self._by)
            return {
                "pipeline": row["pipeline"], "status": sent.status, "created": sent.created, "taken": sent.taken,
                "doubt": sent.doubt,
            }  # fmt: skip

        return await self._asking.change(make)

    async def retry_dead_job(self, entity_id: Entity, pipeline: OfPipeline = None, reason: Reason = None) -> str:
        """Has the dead job of a workflow run again, with all its attempts. First find out why it died."""

        def make(conn: Conn) -> dict[str, Any]:
            row = look.find_one(conn, entity_id, pipeline)
            if not change.retry(conn, row["pipeline"], row["entity_id"], by=self._by, reason=reason):
                raise OutboxError(
                    f"{row['entity_id']} in {row['current_status']} has no dead job: its job is alive, or no stage "
                    "takes this status"
                )
            return {"pipeline": row["pipeline"], "status": row["current_status"], "retried": True}

        return await self._asking.change(make)

    async def pause_stage(self, stage: Stage, reason: Reason = None) -> str:
        """Pauses a stage in all workers: no worker takes its jobs until it is resumed. Running handlers go on."""

        def make(conn: Conn) -> dict[str, Any]:
            of, name = drive(conn, stages.find(stage, None))
            done = stages.pause(conn, name, pipeline=of, by=self._by, reason=reason)
            return {"stage": f"{of}.{name}", "paused": True, "was_paused": not done}

        return await self._asking.change(make)

    async def resume_stage(self, stage: Stage, reason: Reason = None) -> str:
        """Resumes a paused stage: workers take its jobs again within about a second."""

        def make(conn: Conn) -> dict[str, Any]:
            of, name = drive(conn, stages.find(stage, None))
            done = stages.resume(conn, name, pipeline=of, by=self._by, reason=reason)
            return {"stage": f"{of}.{name}", "paused": False, "was_paused": done}

        return await self._asking.change(make)


def started(
    conn: Conn, pipeline: Pipeline[Any] | str, entity_id: str, data: dict[str, Any], by: str, reason: str | None
) -> Submitted:
    """Starts a workflow, or finds the one that the entity has. The model of a pipeline validates the data.

    Of a pipeline that is given by its name only, the database checks it as it does for any program.
    """
    made: Submitted
    if isinstance(pipeline, str):
        made = submit_by_name(pipeline, conn, entity_id, data, by, reason)
    else:
        given = pipeline.data_type().read_given(documents.dump_any(data, "data"))
        made = submit(pipeline, conn, entity_id, given, by, reason)
    return made
