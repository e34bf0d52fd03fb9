"""Makes the groups of docs/roles.md, and logins in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from kit.databases import OWNER

Conn = psycopg.Connection[Any]
As = Callable[..., Conn]

GROUPS = ("submitter", "worker", "viewer", "operator", "relay", "consumer", "spokesman")


def dsn_as(name: str, dsn: str) -> str:
    return dsn.replace(f"{OWNER}@", f"{name}@")


def forget_groups(admin: Conn) -> None:
    """Removes groups and logins from the cluster, with all that they own in this database."""
    found = admin.execute(
        "SELECT rolname FROM pg_roles WHERE rolname ~ '^(outbox|login)_' AND rolname <> %s", [OWNER]
    ).fetchall()
    for (name,) in found:
        admin.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(sql.Identifier(name)))


@contextmanager
def role(admin_dsn: str, name: str) -> Iterator[None]:
    """Has a role without rights, which tests may change to, for a block."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name}; GRANT {name} TO {OWNER}".encode())
        try:
            yield
        finally:
            admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())
