"""The tool that decides: it answers questions in one name, but none that this name or this server has asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from ..checks import MAX_NAME
from ..client import approvals
from ..client.pipelines import PipelineLike, Unchecked
from ..definition.pipeline import Pipeline
from ..errors import OwnQuestion
from ..operations import look
from ..operations.sessions import Conn
from .asking import Asking
from .looking import found_question
from .tools import Reason, changes


class Deciding:
    """What may be decided in the name `decide_as`. `by` is the name in which the same server operates."""

    def __init__(self, asking: Asking, decide_as: str, by: str, pipelines: Mapping[str, Pipeline[Any]]) -> None:
        self._asking, self._decide_as, self._by, self._pipelines = asking, decide_as, by, pipelines

    def tools(self) -> list[Tool]:
        """Returns the tool."""
        return [changes(self.decide)]

    async def decide(
        self,
        question: Annotated[str, Field(description="The id of the question, as list_questions has it.")],
        decision: Annotated[str, Field(max_length=MAX_NAME, description="One of its options.")],
        shown: Annotated[
            str,
            Field(
                max_length=MAX_NAME,
                description="The hash `shown` of the data that you have looked at, as list_questions and show_question "
                "have it. If the data has changed since then, the decision is refused.",
            ),
        ],
        reason: Reason = None,
        edit: Annotated[
            dict[str, Any] | None, Field(description="All of the workflow's new data, if the answer changes it.")
        ] = None,
        about: Annotated[
            Any, Field(description="What replaces the data of a question that has data of its own (`own_data`).")
        ] = None,
    ) -> str:
        """Answers a question with one of its options. The first answer wins. Returns the status that the workflow then
        has: it is the same as before if more votes or other answers are needed.
        """

        def make(conn: Conn) -> dict[str, Any]:
            asked = found_question(conn, question)
            for name in look.askers(conn, asked["id"]) & {self._decide_as, self._by}:
                raise OwnQuestion(name)
            pipeline: PipelineLike = self._pipelines.get(asked["pipeline"]) or Unchecked(asked["pipeline"])
            status = approvals.decide(
                conn, pipeline, asked["entity_id"], decision, by=self._decide_as, reason=reason, edit=edit, about=about,
                shown=shown, question=asked["id"],
            )  # fmt: skip
            return {"pipeline": asked["pipeline"], "entity_id": asked["entity_id"], "status": status}

        return await self._asking.change(make)
