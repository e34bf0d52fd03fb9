"""Lets agents and editors look, operate and decide, by the Model Context Protocol. See docs/mcp.md."""

from .http import http_app
from .server import mcp_server

__all__ = ["http_app", "mcp_server"]
