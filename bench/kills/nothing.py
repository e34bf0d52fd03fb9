"""Runs the agent without an engine: a restarted process runs it from the beginning."""

from __future__ import annotations

from .agent import END, World, agent, run


async def main(dsn: str, world: World, is_new: bool) -> None:
    await agent(world).run("help")
    world.point(END)


if __name__ == "__main__":
    run(main)
