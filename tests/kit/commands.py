"""Runs the command line: in the test's own process, or as a real process for tests about signals or pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from click import Command
from click.testing import CliRunner

from kit.forked import Popen
from kit.pooler import way_env
from kit.servers import DEADLINE
from outbox.cli import main

SETTINGS = ("OUTBOX_DSN", "OUTBOX_LISTEN_DSN", "OUTBOX_AMQP_URL", "OUTBOX_APP", "OUTBOX_HOME", "OUTBOX_LINK_KEYS",
            "DATABASE_URL", "OUTBOX_RELEASE")  # fmt: skip

# Before click 8.2, it keeps standard error apart only if asked to.
_APART: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}


@dataclass(frozen=True, slots=True)
class Done:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, parsed as one JSON document."""
        return json.loads(self.out)


def invoke(
    command: Command, *arguments: str, input: str | bytes | None = None, env: Mapping[str, str | None] | None = None
) -> Done:
    """Runs a command of click's in this process. An exception that would be a traceback fails the test."""
    result = CliRunner(**_APART).invoke(command, list(arguments), input=input, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{command.name} {' '.join(arguments)} broke") from result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


class Outbox:
    """The command `outbox` on one database. A call runs it in this process and checks its exit code (None: any)."""

    def __init__(self, dsn: str | None) -> None:
        self.dsn = dsn

    def __call__(
        self,
        *arguments: str,
        code: int | None = 0,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        settings: dict[str, str | None] = dict.fromkeys(SETTINGS)
        settings |= {**(way_env(self.dsn) if self.dsn else {}), **(env or {})}
        done = invoke(main, *arguments, input=input, env=settings)
        assert code is None or done.code == code, done
        return done

    def fails(self, *arguments: str, code: int = 1, **options: Any) -> str:
        """Runs a command that must fail with nothing on standard output; returns its one line of error."""
        done = self(*arguments, code=code, **options)
        assert done.out == ""
        (line,) = done.err.splitlines()
        return line

    @contextmanager
    def process(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "outbox"),
        **pipes: Any,
    ) -> Iterator[Process]:
        """Starts the command as a real process, with pipes for all three streams unless told otherwise."""
        with Process([*program, *arguments], self.dsn, env or {}, pipes) as process:
            yield process


class Process(Popen):
    def __init__(
        self, arguments: Sequence[str], dsn: str | None, env: Mapping[str, str], pipes: Mapping[str, Any]
    ) -> None:
        settings = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        settings["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        if dsn is not None:
            settings |= way_env(dsn)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        super().__init__(arguments, env={**settings, **env}, **{**streams, **pipes})

    def done(self, input: bytes | None = None, timeout: float = DEADLINE) -> Done:
        """Writes its input, waits for its end, and returns its output."""
        out, err = self.communicate(input, timeout)
        return Done(self.returncode, (out or b"").decode(), (err or b"").decode())

    def interrupt(self) -> None:
        self.send_signal(signal.SIGINT)

    def __exit__(self, *error: Any) -> None:
        if self.poll() is None:
            self.kill()
        super().__exit__(*error)
