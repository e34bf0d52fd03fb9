"""A server of the Model Context Protocol over stdio, with one tool that writes down its calls: `mcp_tools.py FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("stock")


@server.tool()
def in_stock(item: str) -> int:
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{item}\n")
    return len(item)


if __name__ == "__main__":
    server.run()
