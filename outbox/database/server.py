"""Starts, queries and stops one bundled Postgres, given its programs and its data folder."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import pq

from ..errors import EmbeddedUnavailable

DATABASE = "outbox"
"""The database created in a new server."""

START_SECONDS = 120
"""Seconds that a server may take to start: a recovery after a crash may take that long."""

_PORT = 5432
"""Only a part of the socket's name: the server listens on no network."""

_SOCKET_FOLDER_LIMIT = 85
"""Most bytes of a socket folder's path. The whole path may have 107 on Linux and 103 on macOS."""

_ATTEMPTS = 8
"""How often a start may fail: backends of a killed server hold its memory until they notice, within seconds."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """The programs of one Postgres version and one data folder."""

    programs: Path
    data: Path
    user: pwd.struct_passwd | None

    def start(self) -> None:
        """Starts the server if it isn't running, and returns when it accepts connections."""
        if not (self.data / "PG_VERSION").exists():
            self._make_data()
        deadline = time.monotonic() + START_SECONDS
        failures = 0
        while (answer := self._ping()) != pq.Ping.OK:
            if answer == pq.Ping.REJECT and time.monotonic() < deadline:
                time.sleep(0.1)  # it is starting or stopping, for a process that was killed
                continue
            if failures == _ATTEMPTS or answer == pq.Ping.REJECT:
                raise EmbeddedUnavailable(f"the bundled Postgres did not start. {self._log()}")
            if not self._start_once():
                failures += 1
                time.sleep(0.5)

    def stop(self) -> None:
        """Stops the server and returns when it has ended. Connections of other programs are cut."""
        folder = self._socket_folder()
        if self._pg_ctl("-m", "fast", "-t", "60", "stop").returncode and self._ping() != pq.Ping.NO_RESPONSE:
            self._pg_ctl("-m", "immediate", "-t", "60", "stop")
        if folder != self.data:
            shutil.rmtree(folder, ignore_errors=True)

    def dsn_with_database(self) -> str:
        """Returns the DSN of the database `outbox`, which is created if it doesn't exist."""
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as conn:
            if conn.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
                conn.execute(f"CREATE DATABASE {DATABASE}".encode())
        return self._dsn(DATABASE)

    def _make_data(self) -> None:
        # Made elsewhere and then moved, so that the leftovers of a killed initdb never pass as data.
        unfinished = self.data.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self.user is not None:
            os.chown(unfinished, self.user.pw_uid, self.user.pw_gid)
        settings = ["-U", "postgres", "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C"]
        done = self._run("initdb", "-D", str(unfinished), *settings)
        if done.returncode:
            raise EmbeddedUnavailable(f"the bundled Postgres could not make its data: {done.stderr.strip()}")
        unfinished.rename(self.data)

    def _forget_stale_pid(self) -> None:
        # After a crash, the pid in the file may belong to another program, or to a zombie that no parent reaps.
        import psutil

        try:
            process = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            if "postgres" in process.name() and process.status() != psutil.STATUS_ZOMBIE:
                return
        except (OSError, ValueError, IndexError, psutil.Error):
            return  # there is no file or no such process: Postgres handles that
        for stale in (self.data / "postmaster.pid", *self.data.glob(".s.PGSQL.*.lock")):
            stale.unlink(missing_ok=True)

    def _start_once(self) -> bool:
        self._forget_stale_pid()
        # Any user who can reach the socket is a superuser. Only the server's own user can enter the data folder.
        folder = self.data
        if len(os.fsencode(folder)) > _SOCKET_FOLDER_LIMIT or set(str(folder)) & {
            ",",
            '"',
        }:  # the setting is a quoted list
            folder = Path(tempfile.mkdtemp(prefix="outbox-", dir="/tmp"))
            if self.user is not None:
                os.chown(folder, self.user.pw_uid, self.user.pw_gid)
        options = {"port": _PORT, "listen_addresses": "", "unix_socket_directories": f'"{folder}"'}
        words = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items())
        log = str(self.data / "log")
        return self._pg_ctl("-l", log, "-t", str(START_SECONDS), "-o", words, "start").returncode == 0

    def _socket_folder(self) -> Path:
        try:
            return Path((self.data / "postmaster.pid").read_text().splitlines()[4])
        except (OSError, IndexError):
            return self.data

    def _dsn(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self._socket_folder()))}&port={_PORT}"

    def _ping(self) -> pq.Ping:
        return pq.Ping(pq.PGconn.ping(self._dsn("postgres").encode()))

    def _log(self) -> str:
        log = self.data / "log"
        return " ".join(log.read_text(errors="replace").splitlines()[-4:]) if log.exists() else "It left no log."

    def _pg_ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("pg_ctl", "-D", str(self.data), "-w", *arguments)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile("w+") as answer:  # a pipe would stay open for as long as the server runs
            done = subprocess.run(
                [str(self.programs / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=answer,
                cwd="/",  # the server's user may not be able to enter the current folder
                env={name: text for name, text in os.environ.items() if not name.startswith("PG")},
                user=self.user.pw_uid if self.user else None,
                group=self.user.pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
                start_new_session=True,  # a Ctrl-C at the terminal is meant for the command, not for its server
                check=False,
            )
            answer.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, "", answer.read())
