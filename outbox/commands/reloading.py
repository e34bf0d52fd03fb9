"""Runs the code of an application that is being edited: with each edit it is deployed, and the worker starts over.

The code is imported only by processes that end with the next edit: one that deploys, and then a worker. If a deploy
fails or is refused, the previous worker keeps running.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, TypeVar

from watchfiles import PythonFilter, awatch

from ..errors import SettingsError
from ..process.service import Delays, Service, cancel, side_by_side
from ..process.signals import on_signals
from ..texts import printable

log = logging.getLogger("outbox.dev")
deploy_log = logging.getLogger("outbox.deploy")

T = TypeVar("T")

SETTLED = 200
"""Milliseconds for which changes are collected at most: an editor or git writes several files."""

GRACE = 5
"""Seconds that running handlers have to finish when the worker stops: somebody waits for the new code to run."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a worker that has ended unasked is started again. They double, up to the second number."""


class Reloading:
    """Deploys `app` and runs its worker, again whenever a Python file in `folders` changes. `env` is for both.

    `ready` is called once: when it has been tried for the first time.
    """

    def __init__(
        self, app: str, folders: Sequence[Path], env: Mapping[str, str], ready: Callable[[], object]
    ) -> None:  # fmt: skip
        self._app, self._folders, self._env, self._ready = app, folders, env, ready
        self._service = Service("Reloading")
        self._worker = _Worker(app, env)
        self._edited = asyncio.Event()
        self._files: set[str] = set()  # that have changed since the last deploy began

    async def run(self) -> None:
        """Runs until SIGTERM, SIGINT or SIGHUP. Running handlers may finish, unless a second signal comes.

        Raises SettingsError if the files can't be watched.
        """
        await self._service.run(self._main)

    async def _main(self) -> None:
        on_signals(self._service.stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._service.stop)
        try:
            # In this order: watching has begun when the files are read for the first time.
            await self._service.until_stop(side_by_side(self._watch(), self._reload()))
        finally:
            hurrying = asyncio.create_task(self._hurry())
            await self._worker.stop()
            await cancel(hurrying)

    async def _hurry(self) -> None:
        await self._service.stopped(2)
        self._worker.tell()

    async def _watch(self) -> None:
        watching = awatch(
            *self._folders, watch_filter=PythonFilter(), debounce=SETTLED, ignore_permission_denied=True
        )  # fmt: skip
        try:
            async for changes in watching:
                files = sorted(file for _, file in changes)
                log.info("%s changed", ", ".join(map(_shown, files[:3])) + (", …" if files[3:] else ""))
                self._files.update(files)
                self._edited.set()
        except (OSError, RuntimeError) as error:  # such as the system's limit of watched files
            folders = ", ".join(map(str, self._folders))
            raise SettingsError(
                f"can't watch the files in {printable(folders)}: {printable(error)}. Name smaller folders by --watch, "
                "or set WATCHFILES_FORCE_POLLING=1"
            ) from error

    async def _reload(self) -> None:
        said = False
        while True:
            self._edited.clear()
            self._forget_compiled()
            deployed = await self._until_edited(self._deploy())  # a module may hang while it is imported
            if deployed:
                await self._worker.stop()
                await self._worker.start()
            elif deployed is not None:
                now = "the previous worker keeps running" if self._worker.running else "no worker runs"
                log.error("not deployed: %s until the next edit", now)
            if deployed is not None and not said:
                said = True
                self._ready()
            await self._until_edited(self._worker.keep())

    async def _until_edited(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Returns the result of `work`; if an edit comes first, ends it and returns None."""
        working, edited = asyncio.create_task(work), asyncio.create_task(self._edited.wait())
        try:
            await asyncio.wait((working, edited), return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            await cancel(working, edited)

    async def _deploy(self) -> bool:
        """Deploys, and logs what the command says. Returns whether it has deployed."""
        process, pipe = await _start(self._env, "deploy", "--app", self._app, stdout=PIPE, stderr=STDOUT)
        with pipe:
            try:
                said, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()  # what it has compiled is deleted next
        level = logging.ERROR if process.returncode else logging.INFO
        for line in said.decode(errors="replace").splitlines():
            deploy_log.log(level, "%s", line)
        return process.returncode == 0

    def _forget_compiled(self) -> None:
        """Deletes what Python has compiled of the files: it would miss an edit in the same second, of equal size."""
        for file in self._files:
            # It may not be there, the name may be an odd one, and some interpreters keep nothing compiled.
            with suppress(OSError, ValueError, NotImplementedError):
                os.unlink(cache_from_source(file))
        self._files.clear()


class _Worker:
    """The process of a worker."""

    def __init__(self, app: str, env: Mapping[str, str]) -> None:
        self._app, self._env = app, env
        self._process: Process | None = None
        self._pipe: socket.socket | None = None
        self._delays = Delays(FIRST_WAIT, LONGEST_WAIT)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        self._started = time.monotonic()
        if self._pipe is not None:
            self._pipe.close()
        options = ["--grace", str(GRACE), "--log", "short"]
        self._process, self._pipe = await _start(self._env, "worker", "--app", self._app, *options)

    async def keep(self) -> None:
        """Starts it again whenever it has ended. Waits forever if it never was started."""
        if self._process is None:
            await asyncio.Event().wait()
        while self._process is not None:
            code = await self._process.wait()
            if time.monotonic() - self._started > LONGEST_WAIT:
                self._delays.reset()
            delay = self._delays.next()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            log.error("the worker %s; another one starts in %.1f s", how, delay)
            await asyncio.sleep(delay)
            await self.start()

    def tell(self) -> None:
        """Tells it to stop: at once, if it was told before."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def stop(self) -> None:
        """Stops it, and returns when it has ended."""
        if self._process is not None:
            self.tell()
            await self._process.wait()
            self._process = None
            self._delays.reset()


async def _start(env: Mapping[str, str], *arguments: str, **options: Any) -> tuple[Process, socket.socket]:
    """Starts a command of Outbox, which Ctrl-C at the terminal doesn't reach: it is for us, who tell the worker.

    Returns it with our end of its stop pipe: it stops when that closes, however this process ends.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "outbox", *arguments, "--stop-pipe", str(theirs.fileno()), env={**os.environ, **env},
            stdin=DEVNULL, process_group=0, pass_fds=[theirs.fileno()], **options,
        )  # fmt: skip
    return process, ours


def _shown(file: str) -> str:
    here = Path.cwd()
    return printable(Path(file).relative_to(here) if Path(file).is_relative_to(here) else file)
