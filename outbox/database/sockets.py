"""Hangs up on a server. One that hangs doesn't answer a cancellation either."""

from __future__ import annotations

import os
import socket
from typing import Any

import psycopg


def shut(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Shuts a connection's socket: whatever waits for an answer on it fails at once. Raises if it is closed."""
    with socket.socket(fileno=os.dup(conn.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)
