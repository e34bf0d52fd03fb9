"""Defines `manage.py outbox`: the whole command line of Outbox, on the project's database and with its pipelines."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from .... import cli
from ....errors import SettingsError
from ... import project

APP = "outbox.django.discovery:declared"
"""The pipelines of the project, as `--app` names them."""


class Command(BaseCommand):
    """Passes everything on to Outbox's own command line, with its help and its exit codes."""

    help = "Runs a command of Outbox on the project's database and pipelines."
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> None:
        try:
            arguments = _without_djangos_own(argv[2:])
            sys.exit(_run(arguments, f"{argv[0].rpartition('/')[2]} {argv[1]}"))
        finally:
            connections.close_all()

    def print_help(self, prog_name: str, subcommand: str) -> None:
        _run(["--help"], f"{prog_name.rpartition('/')[2]} {subcommand}")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def handle(self, *args: Any, **options: Any) -> None:
        """Is what `call_command("outbox", "status", "--json")` runs."""
        with ExitStack() as stack:
            for redirect, stream, standard in (
                (redirect_stdout, self.stdout, sys.stdout), (redirect_stderr, self.stderr, sys.stderr),
            ):  # fmt: skip
                if stream._out is not standard:
                    stack.enter_context(redirect(stream._out))
            code = _run([*options["arguments"], *args], "manage.py outbox")
        if code:
            raise CommandError(f"outbox {' '.join(options['arguments'][:1])} failed", returncode=code)


def _run(arguments: list[str], name: str) -> int:
    """Runs the command line and returns its exit code."""
    try:
        cli.main.main(arguments, name, obj=_settings())
    except SettingsError as error:
        sys.stderr.write(f"outbox: {error}\n")
        return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _settings() -> dict[str, str | None]:
    connections.close_all()  # a worker may fork
    found = project.load()
    listen = None if found.listen_database is None else project.dsn(found.listen_database)
    return {"dsn": project.dsn(), "listen_dsn": listen, "app": APP}


def _without_djangos_own(arguments: list[str]) -> list[str]:
    """Returns the arguments without --settings and --pythonpath, which manage.py has followed already."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--settings")
    parser.add_argument("--pythonpath")
    return parser.parse_known_args(arguments)[1]
