"""Logins in each group, of a cluster that has none before and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from kit.proxy import Proxy
from kit.roles import GROUPS, As, dsn_as, forget_groups
from outbox.database import migrations

Conn = psycopg.Connection[Any]


@pytest.fixture
def admin(admin_dsn: str) -> Iterator[Conn]:
    """A superuser's connection. No group and no login is left in the end."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        yield admin
        forget_groups(admin)


@pytest.fixture
def groups(admin: Conn) -> None:
    """The groups, and login_worker in outbox_worker, and so on."""
    migrations.make_roles(admin)
    for name in GROUPS:
        admin.execute(f"CREATE ROLE login_{name} LOGIN IN ROLE outbox_{name}".encode())


@pytest.fixture
def as_(groups: None, dsn: str) -> Iterator[As]:
    """Connect as the login of a group."""
    opened: list[Conn] = []

    def connect(name: str) -> Conn:
        opened.append(psycopg.connect(dsn_as(f"login_{name}", dsn), autocommit=True))
        return opened[-1]

    yield connect
    for conn in opened:
        conn.close()


@pytest.fixture
def silent(dsn: str) -> Iterator[Proxy]:
    """A way to the database that, once a test sets `silent`, lets nothing through and reports no error."""
    proxy = Proxy(int(conninfo_to_dict(dsn)["port"]))
    yield proxy
    proxy.close()
