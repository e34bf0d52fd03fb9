"""Lets agents and editors look, operate and decide, by the Model Context Protocol. See docs/mcp.md."""

from .errors import OwnQuestion
from .http import http_app
from .server import mcp_server

__all__ = ["OwnQuestion", "http_app", "mcp_server"]
