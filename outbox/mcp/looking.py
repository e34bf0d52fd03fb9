"""The tools that look: what is where, why it does not move, what is dead, and what is asked."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from ..checks import MAX_DELAY, MAX_NAME
from ..client import approvals, questions, why
from ..client.execute import drive
from ..documents import MAX_ENTITY_ID
from ..errors import NotFound
from ..operations import look
from ..operations.sessions import Conn
from ..texts import MAX_ERROR
from . import results
from .asking import Asking
from .tools import REST, At, Entity, Offset, OfPipeline, OnlyPipeline, looks

EVENTS = 20
"""Events of each kind that show_workflow tells: the latest."""

Limit = Annotated[int, Field(ge=1, le=100, description="How many at most. Fewer if more would be too long to read.")]
Error = Annotated[str | None, Field(max_length=MAX_ERROR, description="Only what died of this error, or of its kind.")]


class Looking:
    """What may be looked at."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def tools(self) -> list[Tool]:
        """Returns the tools."""
        return [
            looks(each)
            for each in (
                self.status, self.list_workflows, self.show_workflow, self.why, self.list_dead_jobs,
                self.list_questions, self.show_question,
            )
        ]  # fmt: skip

    async def status(self, pipeline: OnlyPipeline = None) -> str:
        """Shows how many workflows and jobs are in each status, and what is wrong: what is overdue, effects of which it
        is not known whether they have happened, limits, workers and relays. With a pipeline, only its statuses.
        """
        if pipeline is None:
            return await self._asking.look(look.status, "Call this tool for one pipeline.")
        return await self._asking.look(lambda conn: {"overview": _overview(conn, pipeline)}, "Use list_workflows.")

    async def list_workflows(
        self,
        pipeline: OnlyPipeline = None,
        status: Annotated[str | None, Field(max_length=MAX_NAME, description="Only those in this status.")] = None,
        entity_prefix: Annotated[
            str | None, Field(max_length=MAX_ENTITY_ID, description="Only those whose entity begins with this.")
        ] = None,
        older_than_seconds: Annotated[
            float | None,
            Field(ge=0, le=MAX_DELAY, description="Only those that came to their status longer ago."),
        ] = None,
        waits_for: Annotated[
            str | None,
            Field(
                max_length=MAX_NAME,
                description="Only those that wait for it: approval, signal, 'signal NAME', children, deadline, timer, "
                "worker or change (of the status, by anybody).",
            ),
        ] = None,
        assignee: Annotated[
            str | None, Field(max_length=MAX_NAME, description="Only those that ask this person.")
        ] = None,
        dead: Annotated[bool, Field(description="Only those whose job is dead.")] = False,
        error: Error = None,
        limit: Limit = 20,
        after: Annotated[str | None, Field(description="Goes on after a page: the `after` that it ended with.")] = None,
    ) -> str:
        """Lists or searches workflows, a page at a time, without their data. The filters can be combined. `after` of
        the result leads to the next page, with the same filters; null: this was the last one. `bounded`: the page ended
        early, and there may be more behind `after`.
        """

        def page(conn: Conn, limit: int) -> dict[str, Any]:
            found = look.workflows(
                conn, pipeline, data=False, status=status, entity=entity_prefix, older=older_than_seconds,
                waits_for=waits_for, assignee=assignee, dead=dead, error=error, limit=limit, after=after,
            )  # fmt: skip
            for row in found["workflows"]:
                del row["metadata"]
            return found

        def find(conn: Conn) -> dict[str, Any]:
            found = page(conn, limit)
            fitting = results.rows(found["workflows"])
            return found if fitting >= len(found["workflows"]) else page(conn, fitting)

        return await self._asking.look(find, "show_workflow shows one of them.")

    async def show_workflow(
        self, entity_id: Entity, pipeline: OfPipeline = None, at: At = None, offset: Offset = 0
    ) -> str:
        """Shows a workflow: why it does not move and what to do, its data (`metadata`), its history, its job and its
        last error, what it waits for, questions, effects, signals, messages, parent and children.
        """

        def find(conn: Conn) -> dict[str, Any]:
            return look.show(conn, look.find_one(conn, entity_id, pipeline), EVENTS)

        return await self._asking.look_at(find, at, offset, REST)

    async def why(self, entity_id: Entity, pipeline: OfPipeline = None) -> str:
        """Says in one sentence why a workflow does not move, and what would have it move."""

        def find(conn: Conn) -> dict[str, Any]:
            row = look.find_one(conn, entity_id, pipeline)
            said = drive(conn, why.asked(row["pipeline"], row["entity_id"]))
            return {"pipeline": row["pipeline"], "status": row["current_status"], **asdict(said)}

        return await self._asking.look(find, "show_workflow shows all of it.")

    async def list_dead_jobs(
        self,
        pipeline: OnlyPipeline = None,
        error: Error = None,
        by_kind: Annotated[bool, Field(description="Counts how many died of each kind of error instead.")] = False,
        limit: Limit = 20,
    ) -> str:
        """Lists dead jobs, the latest first, each with its error. They have used up their attempts or were rejected,
        and wait for a person. The kind of an error is its first line without ids and numbers.
        """

        def find(conn: Conn) -> dict[str, Any]:
            if by_kind:
                return {"kinds": look.errors(conn, pipeline, error)}
            found = look.dead(conn, pipeline, limit, error)
            shown = found[: results.rows(found)]
            return {"dead_jobs": shown, "more": found.more + len(found) - len(shown)}

        return await self._asking.look(find, "show_workflow shows one of them.")

    async def list_questions(
        self,
        pipeline: OnlyPipeline = None,
        assignee: Annotated[str | None, Field(max_length=MAX_NAME, description="Only those for this person.")] = None,
        limit: Limit = 10,
        after: Annotated[str | None, Field(description="Goes on after a page: the `after` that it ended with.")] = None,
    ) -> str:
        """Lists the open questions to people, the oldest first, with their options and the data that they are about.
        `after` of the result leads to the next page; null: this was the last one.
        """

        def find(conn: Conn) -> dict[str, Any]:
            asked = {"pipeline": pipeline, "assignee": assignee, "limit": limit + 1}
            steps = questions.open_questions({**asked, "after": approvals.question_id(after, "after")})
            found = [asdict(each) for each in drive(conn, steps)]
            if not found:
                look.approvals(conn, pipeline=pipeline, limit=1)  # says that there is no such pipeline
            shown = found[: min(limit, results.rows(found))]
            return {"questions": shown, "after": shown[-1]["id"] if len(found) > len(shown) else None}

        return await self._asking.look(find, "show_question shows one of them.")

    async def show_question(
        self,
        question: Annotated[str, Field(description="The id of the question, as list_questions has it.")],
        at: At = None,
        offset: Offset = 0,
    ) -> str:
        """Shows a question, open or ended: what is asked, its options and the statuses to which they lead, the data
        that it is about as it is now (`data`, and its hash `shown`), who has asked, who may answer, and who has.
        """
        return await self._asking.look_at(lambda conn: found_question(conn, question), at, offset, REST)


def found_question(conn: Conn, question: str) -> look.Row:
    """Returns a question. Raises NotFound if there is none with this id, and InvalidInput if it is no id."""
    id_ = approvals.question_id(question)
    assert id_ is not None
    found = look.question(conn, id_)
    if found is None:
        raise NotFound(f"there is no question {id_}: list_questions lists those that are open")
    return found


def _overview(conn: Conn, pipeline: str) -> list[look.Row]:
    found = look.overview(conn, pipeline)
    if not found:
        look.errors(conn, pipeline)  # says that there is no such pipeline
    return found
