"""Databases of the tests, each a clone of a template, which belong to the owner of the schema."""

from __future__ import annotations

from collections.abc import Iterator

from kit.servers import PostgresServer
from outbox.database import migrations

OWNER = "outbox_owner"


def serve(server: PostgresServer) -> Iterator[PostgresServer]:
    """Run a server with the owner's role and the templates; it is removed in the end."""
    try:
        server.start()
        with server.admin() as admin:
            admin.execute(f"CREATE ROLE {OWNER} LOGIN")
        make_database(server, "empty_template")
        make_database(server, "template")
        migrations.apply(server.dsn("template", OWNER))
        yield server
    finally:
        server.remove()


def make_database(server: PostgresServer, name: str, template: str = "template1") -> None:
    """Make a database; one that isn't cloned from ours gets an empty schema that the owner owns."""
    with server.admin() as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    if template == "template1":
        with server.admin(name) as admin:
            admin.execute(f"CREATE SCHEMA outbox AUTHORIZATION {OWNER}")
