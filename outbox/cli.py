"""Defines the command line. Results go to standard output, logs and errors to standard error.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from dataclasses import replace
from typing import Any

import click
import psycopg

from . import settings
from .database.connection_group import READ_ONLY
from .errors import OutboxError
from .texts import printable

COMMANDS = {
    "dev": "outbox.commands.dev:dev",
    "migrate": "outbox.commands.deploy:migrate",
    "deploy": "outbox.commands.deploy:deploy_command",
    "drop": "outbox.commands.deploy:drop_command",
    "worker": "outbox.commands.worker:worker",
    "submit": "outbox.commands.submit:submit",
    "status": "outbox.commands.look:status",
    "list": "outbox.commands.look:list_command",
    "show": "outbox.commands.look:show",
    "set-status": "outbox.commands.change:set_status",
    "cancel": "outbox.commands.change:cancel",
    "erase": "outbox.commands.erase:erase",
    "dead": "outbox.commands.look:dead",
    "retry": "outbox.commands.change:retry",
    "effects": "outbox.commands.look:effects_command",
    "pause": "outbox.commands.change:pause",
    "resume": "outbox.commands.change:resume",
    "approvals": "outbox.commands.waits:approvals_command",
    "approve": "outbox.commands.waits:approve",
    "reject": "outbox.commands.waits:reject",
    "decide": "outbox.commands.waits:decide",
    "delegate": "outbox.commands.delegations:delegate",
    "delegations": "outbox.commands.delegations:delegations_command",
    "signal": "outbox.commands.waits:signal",
    "schedules": "outbox.commands.look:schedules",
    "relay": "outbox.commands.relay:relay",
    "parked": "outbox.commands.relay:parked",
    "doctor": "outbox.commands.look:doctor_command",
    "ui": "outbox.commands.ui:ui_command",
    "mcp": "outbox.commands.mcp:mcp_command",
    "psql": "outbox.commands.dev:psql",
    "demo": "outbox.demo.command:demo",
}
"""The module and function of each command. A module is imported on use; a worker, for example, starts without rich.

The source of `outbox.demo` is in examples/. Only the installed package has it as a module.
"""


HINTS = {
    psycopg.errors.ReadOnlySqlTransaction: READ_ONLY,
    psycopg.errors.InsufficientPrivilege: "`outbox migrate --roles` makes groups with the rights that a role needs, "
    "such as outbox_viewer to look and outbox_operator to decide: GRANT one of them to this role",
}
"""What to do about errors for which Postgres has no hint."""


class Group(click.Group):
    """Prints an error of Outbox or of Postgres in one line, and exits with a code."""

    def invoke(self, ctx: click.Context) -> Any:
        if sys.platform == "win32":
            raise click.UsageError("Outbox runs on Linux and macOS; on Windows, run it in WSL")
        try:
            return super().invoke(ctx)
        except (OutboxError, psycopg.Error) as error:
            click.echo(f"outbox: {explain(error)}", err=True)
            ctx.exit(1)
        except UnicodeEncodeError:
            click.echo("outbox: an argument or a setting is not UTF-8", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("outbox: interrupted", err=True)
            ctx.exit(130)
        except OSError as error:  # an unreadable file, a full disk; an output that is not read needs no words
            if not isinstance(error, BrokenPipeError):
                click.echo(f"outbox: {explain(error)}", err=True)
            _drop_unwritten()
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        if not any(param.name == "bundled" for param in found.params):
            found.params.append(_bundled())
        return found


def _drop_unwritten() -> None:
    """Drops what standard output can't take. Otherwise Python tries again at exit, complains, and exits with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _bundled() -> click.Option:
    """Returns --bundled for a command, where people write it, too. It is in the help of `outbox` only."""

    def choose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            if ctx.parent is not None and ctx.parent.params.get("dsn"):
                raise click.UsageError("--dsn and --bundled exclude each other")
            ctx.obj = replace(ctx.obj, bundled=True)

    return click.Option(["--bundled"], is_flag=True, hidden=True, expose_value=False, callback=choose)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--dsn",
    metavar="DSN",
    help="The Postgres to work on. Default: OUTBOX_DSN (which process lists don't show), else DATABASE_URL.",
)
@click.option(
    "--bundled",
    is_flag=True,
    help="Work on the bundled Postgres, which keeps its data in OUTBOX_HOME. It may also follow the command's name.",
)
@click.version_option(package_name="outbox-engine")
@click.pass_context
def main(ctx: click.Context, dsn: str | None, bundled: bool) -> None:
    """Long-lived pipelines on the Postgres that you already run: change a status, and the next agent runs.

    \b
    First steps, in one terminal, on a Postgres of its own:
      outbox dev --app shop.pipelines:orders     run everything, and start over with each edit
    On your Postgres:
      outbox migrate                             create the schema
      outbox deploy --app shop.pipelines:orders  write the pipeline into the database
      outbox worker --app shop.pipelines:orders  run its stages
      outbox status                              see where everything is

    Settings come from the command line, then OUTBOX_DSN, OUTBOX_LISTEN_DSN, OUTBOX_AMQP_URL, OUTBOX_TO_DSN,
    OUTBOX_APP, OUTBOX_LINK_KEYS, OUTBOX_RELEASE and OUTBOX_HOME, then [tool.outbox] in pyproject.toml. If none of
    them names a database, DATABASE_URL does. Without it, dev, psql and demo use the bundled Postgres, and so does any
    command with --bundled or OUTBOX_HOME.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal can show ✔, or the data
    if dsn and bundled:
        raise click.UsageError("--dsn and --bundled exclude each other")
    given = {**(ctx.obj or {}), **({} if dsn is None else {"dsn": dsn, "listen_dsn": None})}  # by a framework's command
    ctx.obj = settings.load(bundled=bundled, **given)


def explain(error: Exception) -> str:
    """Returns an error in one line, with the database's hint if there is one."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        hint = error.diag.message_hint or next((hint for kind, hint in HINTS.items() if isinstance(error, kind)), "")
        return printable(f"{error.diag.message_primary} ({hint})" if hint else error.diag.message_primary)
    return printable(" ".join(str(error).split()) or type(error).__name__)
