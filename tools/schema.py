"""Prints sql/schema.sql: a dump of what the migrations make on Postgres 18, for people to read. See `make schema`."""

from __future__ import annotations

import re
import subprocess
import sys

from kit.servers import PostgresServer
from outbox.database import migrations

HEADER = """\
-- GENERATED from sql/migrations by `make schema`: what they amount to, for people to read. A test compares it.
"""

# What differs between two dumps of the same schema, or says nothing about it.
NOISE = re.compile(r"^(--.*|SET .*|SELECT pg_catalog\.set_config.*|\\(un)?restrict .*)\n", re.MULTILINE)


def dump(server: PostgresServer) -> str:
    """Return the schema that the migrations make in an empty database of a running server."""
    with server.admin() as admin:
        admin.execute("CREATE DATABASE for_schema_sql")
    migrations.apply(server.dsn("for_schema_sql"))
    options = ("--schema-only", "--no-owner", "--no-privileges", "--schema=outbox")
    command = [str(server.bin / "pg_dump"), *options, server.dsn("for_schema_sql")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # The bodies of functions have comments too, indented or between dollar quotes; they stay.
    parts = re.split(r"(\$\w*\$.*?\$\w*\$)", text, flags=re.DOTALL)
    parts[::2] = [NOISE.sub("", part) for part in parts[::2]]
    return HEADER + re.sub(r"\n{3,}", "\n\n", "".join(parts)).rstrip() + "\n"


if __name__ == "__main__":
    made = PostgresServer("18")
    try:
        sys.stdout.write(dump(made.start()))
    finally:
        made.remove()
