"""An agent on call. It works on any Outbox through `outbox mcp`: it looks at what is dead, and retries what may pass.

    pip install 'outbox-engine[mcp]' 'pydantic-ai-slim[mcp]'
    export OUTBOX_DSN=postgresql://me@localhost/shop
    python -m examples.on_call_agent.agent

It operates in the name "on-call", which the history keeps. It can't answer questions: those are for people.

`model` stands for a model that costs money. Replace it with your own: `Agent("openai:…", …)`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.models.function import AgentInfo, FunctionModel

PASSING = ("timeout", "connection", "503")
"""Words of errors that pass by themselves."""


async def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Lists the dead jobs, retries those whose error passes, and reports what is left to a person."""
    returned = [part for each in messages for part in each.parts if isinstance(part, ToolReturnPart)]
    if not returned:
        return ModelResponse(parts=[ToolCallPart("list_dead_jobs", {}, "look")])
    jobs = _read(returned[0])["dead_jobs"]
    passing = [job for job in jobs if any(word in job["error"].lower() for word in PASSING)]
    if passing and len(returned) == 1:
        retries = [
            ToolCallPart(
                "retry_dead_job",
                {"entity_id": job["entity_id"], "pipeline": job["pipeline"], "reason": "its error passes by itself"},
                f"retry_{number}",
            )
            for number, job in enumerate(passing)
        ]
        return ModelResponse(parts=retries)
    left = [f"{job['pipeline']} {job['entity_id']}: {job['error']}" for job in jobs if job not in passing]
    return ModelResponse(parts=[TextPart("\n".join([f"{len(passing)} retried, {len(left)} for a person", *left]))])


def _read(part: ToolReturnPart) -> dict[str, Any]:
    content = json.loads(part.content) if isinstance(part.content, str) else part.content
    assert isinstance(content, dict)
    return content


outbox = MCPToolset(
    StdioTransport(sys.executable, ["-m", "outbox", "mcp", "--operate", "--as", "on-call"], env={**os.environ}),
    id="outbox",
    init_timeout=60,  # seconds: on a busy machine, a process takes a while to start
)

agent = Agent(
    FunctionModel(model),
    name="on-call",
    instructions="Find out which jobs are dead and why. Retry those whose error passes by itself. Report the others.",
    toolsets=[outbox],
)


async def main() -> None:
    print((await agent.run("What is dead?")).output)


if __name__ == "__main__":
    asyncio.run(main())
