"""Runs a real PgBouncer in transaction mode: on loopback, in a temporary folder, in front of one Postgres."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

from kit.servers import DEADLINE, PostgresServer, free_port, wait_for

SETTINGS = """
[databases]
* = host=127.0.0.1 port={postgres}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = transaction
auth_type = trust
auth_file = {users}
default_pool_size = {size}
max_client_conn = 500
server_idle_timeout = 600
server_login_retry = 1
"""

SESSIONS = 5
"""Sessions that a pooler has for each database and user, unless it is told otherwise."""


between: Pooler | None = None
"""With OUTBOX_TEST_POOLER=1, the pooler between the engine and the test process's Postgres in all tests."""


def way(dsn: str) -> dict[str, str]:
    """Returns the options by which a worker or a consumer reaches this database."""
    if between is None or not between.serves(dsn):
        return {"dsn": dsn}
    return {"dsn": between.dsn(dsn), "listen_dsn": dsn}


def way_env(dsn: str) -> dict[str, str]:
    """Returns the same options as environment variables."""
    return {f"OUTBOX_{name.upper()}": value for name, value in way(dsn).items()}


def direct(dsn: str) -> dict[str, str]:
    """Returns the environment of an engine on a server of the test's own, which has no pooler."""
    return {"OUTBOX_DSN": dsn, "OUTBOX_LISTEN_DSN": dsn}


def program() -> Path | None:
    """Returns where PgBouncer is; None if this machine doesn't have it."""
    found = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    return Path(found) if found else None


class Pooler:
    """PgBouncer: each transaction may run in another session, and finds what other clients have set there."""

    def __init__(self, server: PostgresServer, *users: str, size: int = SESSIONS) -> None:
        found = program()
        if found is None:
            raise RuntimeError("PgBouncer is not on this machine; say make test PGBOUNCER=skip")
        self._program = found
        self._postgres, self._users = server.port, users
        self.folder = Path(tempfile.mkdtemp(prefix="pooler", dir="/tmp"))
        self.folder.chmod(0o755)
        self.port = free_port()
        known = self.folder / "users"
        known.write_text("".join(f'"{user}" ""\n' for user in users))
        settings = SETTINGS.format(postgres=server.port, port=self.port, users=known, size=size)
        (self.folder / "ini").write_text(settings)
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> Pooler:
        with (self.folder / "log").open("ab") as log:
            # It refuses to run as root.
            user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
            self._popen = subprocess.Popen(
                [str(self._program), str(self.folder / "ini")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=user,
            )
        wait_for(self._answers, what="PgBouncer answers")
        return self

    def dsn(self, dsn: str) -> str:
        """Returns the DSN of a database of the server, through the pooler."""
        return psycopg.conninfo.make_conninfo(dsn, host="127.0.0.1", port=self.port)

    def serves(self, dsn: str) -> bool:
        """Returns whether this DSN leads to the server behind it, as a user that it lets in."""
        return any(f"//{user}@127.0.0.1:{self._postgres}/" in dsn for user in self._users)

    def remove(self) -> None:
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait(DEADLINE)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._popen is not None
        assert self._popen.poll() is None, (self.folder / "log").read_text()
        try:
            with psycopg.connect(
                f"host=127.0.0.1 port={self.port} dbname=postgres user=outbox_owner", connect_timeout=10
            ):
                return True
        except psycopg.OperationalError:
            return False
