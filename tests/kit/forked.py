"""Starts the programs of tests as forks of a process that has imported Outbox, in place of interpreters that import it.

The import takes most of the processor time of a command, and the suite starts many hundreds of them. What is started is a process like
any other: a child of the test's, with its own pid, arguments, environment and streams, and its interpreter ends as
usual. `OUTBOX_TEST_EXEC=1` starts interpreters instead, and so does everything that a fork can't give: another option
of the interpreter than `-m`, or a variable that counts only while it starts.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import json
import os
import platform
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, reload
from pathlib import Path
from typing import Any

from outbox.database import killpoints

IMPORTED = (
    *(f"outbox.commands.{name}" for name in ("change", "deploy", "look", "relay", "submit", "waits", "worker")),
    *("outbox.cli", "outbox.messages.rabbitmq.publisher", "outbox.messages.consumer"),
)
"""What is imported once: modules of the engine and of its dependencies, none of the tests'. See also `imports`."""

AT_START = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC", "TZ", "SSL", "GLIBC")
"""How the names of variables begin that count while an interpreter starts and imports."""

GIVEN = {"env", "cwd", "stdin", "stdout", "stderr", "text", "start_new_session"}
"""The options of `subprocess.Popen` that a fork can have."""

TESTS = Path(__file__).parents[1]

CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
"""The number of Linux' system call `clone` on this machine."""

CLONE_PARENT = 0x8000

_LARGEST = 1 << 20


class Popen(subprocess.Popen[bytes]):
    """A process of `python -m MODULE ARGUMENT ...`, forked where that is the same."""

    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        env = options.get("env") or os.environ
        self._forked = set(options) <= GIVEN and _alike(arguments, env)
        self._session = bool(options.get("start_new_session"))
        super().__init__([sys.executable, *arguments], **options)

    # As subprocess calls it in Python 3.11 to 3.14.
    def _execute_child(self, args: Any, executable: Any, preexec: Any, close: Any, keep: Any, cwd: Any, env: Any, startup: Any,
                       flags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int, errread: int,
                       errwrite: int, *more: Any) -> None:  # fmt: skip
        pipes = p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
        if not self._forked:
            super()._execute_child(
                args, executable, preexec, close, keep, cwd, env, startup, flags, shell, *pipes, *more
            )  # type: ignore[misc]
            return
        program = {
            "arguments": [os.fspath(each) for each in args[2:]],
            "cwd": os.fspath(cwd or os.getcwd()),
            "env": dict(env or os.environ),
            "session": self._session,
        }
        streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        try:
            self.pid = _server().fork(program, streams)
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class _Program(Popen):
    """Any program, forked if it is one of this interpreter."""

    def __init__(self, arguments: Any, **options: Any) -> None:
        if isinstance(arguments, list) and arguments[0] == sys.executable:
            super().__init__(arguments[1:], **options)
        else:
            self._forked = False
            super(Popen, self).__init__(arguments, **options)


@contextmanager
def programs() -> Iterator[None]:
    """Has all programs of this interpreter forked that this process starts by `subprocess`, where that is the same.

    Not for pytest, which refuses to rewrite a module that a fork has imported.
    """
    popen = subprocess.Popen
    subprocess.Popen = _Program  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = popen  # type: ignore[misc]


def imports(*names: str) -> None:
    """Imports modules once for all programs that are forked from now on: libraries that several of them would import."""
    if _alike(["-m"], os.environ):
        _server().imports(names)


def _alike(arguments: Sequence[str], env: Mapping[str, str]) -> bool:
    """Returns whether a fork is the same as an interpreter that starts."""
    if CLONE is None or sys.platform != "linux" or env.get("OUTBOX_TEST_EXEC") or arguments[0] != "-m":
        return False
    names = {name for name in {*env, *os.environ} if name.startswith(AT_START)} - {"PYTHONPATH"}
    return all(env.get(name) == os.environ.get(name) for name in names)


class _Server:
    """The process that forks, as its client sees it."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(other.fileno())],
                cwd=TESTS.parent,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
            )
        self._one = threading.Lock()

    def fork(self, program: Mapping[str, Any], streams: Sequence[int]) -> int:
        """Returns the pid of a new child of this process, which runs the program."""
        return int(self._asked(program, streams))

    def imports(self, names: Sequence[str]) -> None:
        """Has it import these modules, for all that it forks from now on."""
        self._asked({"imports": names}, [])

    def _asked(self, message: Mapping[str, Any], streams: Sequence[int]) -> bytes:
        with self._one:
            socket.send_fds(self._socket, [json.dumps(message).encode()], streams)
            answer = self._socket.recv(_LARGEST)
        if not answer:
            raise RuntimeError(f"the process that forks programs has ended with {self.process.wait()}")
        return answer

    def end(self) -> None:
        self._socket.close()
        self.process.wait()


_servers: dict[int, _Server] = {}
_starting = threading.Lock()


def _server() -> _Server:
    """Returns the server of this process: a fork of it has another one."""
    with _starting:
        if os.getpid() not in _servers:
            _servers[os.getpid()] = server = _Server()
            atexit.register(server.end)
        return _servers[os.getpid()]


def serve(asked: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Forks once for each message; returns the program and its three streams in each fork, which answers with its pid."""
    while True:
        message, streams, _, _ = socket.recv_fds(asked, _LARGEST, 3)
        if not message:
            os._exit(0)
        program = json.loads(message)
        if "imports" in program:
            for name in program["imports"]:
                import_module(name)
            gc.freeze()
            asked.send(b"imported")
            continue
        if fork_sibling() == 0:
            if program["session"]:
                os.setsid()  # as of a program that was started, nobody sees it before
            asked.send(str(os.getpid()).encode())
            asked.close()
            return program, streams
        for stream in streams:
            os.close(stream)


def fork_sibling() -> int:
    """Does what `os.fork` does, but the child's parent is that of this process."""
    python, libc = ctypes.pythonapi, ctypes.PyDLL(None)
    assert CLONE is not None
    python.PyOS_BeforeFork()
    pid: int = libc.syscall(*map(ctypes.c_long, (CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)))
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError("clone")
    return pid


def become(program: dict[str, Any], streams: list[int]) -> None:
    """Makes this process what an interpreter is when it begins with a program."""
    for own, given in enumerate(streams):
        os.dup2(given, own)
    for given in streams:
        os.close(given)
    os.chdir(program["cwd"])
    os.environ.clear()
    os.environ.update(program["env"])
    tempfile.tempdir = None
    reload(killpoints)  # it has read the environment
    sys.path[:0] = [program["cwd"], *filter(None, program["env"].get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = program["arguments"]
    sys.stdin = sys.__stdin__ = _text(sys.stdin, io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.stdout = sys.__stdout__ = _text(sys.stdout, io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
    sys.stderr = sys.__stderr__ = _text(sys.stderr, io.BufferedWriter(io.FileIO(2, "w", closefd=False)))


def _text(like: Any, stream: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, like.encoding, like.errors, line_buffering=like.line_buffering)


if __name__ == "__main__":
    for name in IMPORTED:
        import_module(name)
    gc.freeze()
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
