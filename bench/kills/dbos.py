"""Runs the agent in a workflow of DBOS, by Pydantic AI's DBOSDurability. Tools are steps, as its documentation says."""

from __future__ import annotations

from dbos import DBOS, SetWorkflowID
from pydantic_ai.durable_exec.dbos import DBOSDurability

from .agent import END, World, agent, run


async def main(dsn: str, world: World, is_new: bool) -> None:
    DBOS(
        config={
            "name": "kills",
            "system_database_url": dsn.replace("postgresql:", "postgresql+psycopg:"),
            "executor_id": "one",  # a process takes up the workflows of the one before it by this name
            "log_level": "WARNING",
            "run_admin_server": False,
        }
    )
    support = agent(world, DBOSDurability(), kept=DBOS.step())

    @DBOS.workflow(name="support")
    async def handle() -> str:
        result = await support.run("help")
        world.point(END)
        return result.output

    DBOS.launch()
    if is_new:
        with SetWorkflowID("one"):
            await DBOS.start_workflow_async(handle)
    handle_of = await DBOS.retrieve_workflow_async("one")
    await handle_of.get_result()


if __name__ == "__main__":
    run(main)
