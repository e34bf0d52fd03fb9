"""Defines the command that serves agents and editors by the Model Context Protocol."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import Any

import click

from .. import settings
from ..definition.pipeline import Pipeline
from ..errors import SettingsError
from . import application, logs, page
from .connection import dsn_of
from .options import Number, app_option, log_options, user_name

TOKEN = "OUTBOX_MCP_TOKEN"  # noqa: S105 - the name of a setting
"""The setting with the token. It is no option, because lists of processes show those."""


@click.command("mcp")
@click.option("--operate", is_flag=True, help="Also submit, signal, retry, pause and resume.")
@click.option(
    "--as", "name", metavar="NAME", default=user_name,
    help="Who operates; kept with all that is done. Default: your user name.",
)  # fmt: skip
@click.option(
    "--decide-as", metavar="NAME", help="Also answer questions in this name, but none that it or --as has asked."
)
@click.option(
    "--tool", "tools", metavar="PIPELINE[=NAME]", multiple=True,
    help="Offer a pipeline of --app as a tool, which starts a workflow and returns its result; repeatable.",
)  # fmt: skip
@click.option(
    "--wait", metavar="SECONDS", type=Number(0, 86_400), default=45.0, show_default=True,
    help="How long a call of such a tool waits for the result.",
)  # fmt: skip
@click.option("--http", is_flag=True, help="Serve by streamable HTTP, at /mcp, instead of standard input and output.")
@click.option("--host", metavar="HOST", default="127.0.0.1", show_default=True, help="With --http: where to listen.")
@click.option(
    "--port", metavar="PORT", type=click.IntRange(0, 65535), default=8089, show_default=True,
    help="With --http: the port; 0 takes any that is free.",
)  # fmt: skip
@click.option(
    "--allow-host", "hosts", metavar="NAME", multiple=True,
    help="With --http and a token: a name by which clients call it, beside HOST and this machine's; repeatable.",
)  # fmt: skip
@app_option
@log_options
@click.pass_obj
def mcp_command(
    found: settings.Settings, operate: bool, name: str, decide_as: str | None, tools: tuple[str, ...], wait: float,
    http: bool, host: str, port: int, hosts: tuple[str, ...], app: str | None, log_to: tuple[Any, ...],
) -> None:  # fmt: skip
    """Serve agents and editors by the Model Context Protocol.

    They list, search and show workflows, dead jobs and questions, and ask why something does not move. They change
    nothing without --operate, --decide-as or --tool. It serves one client on standard input and output, or with --http
    many on this machine. Others need a token, OUTBOX_MCP_TOKEN.
    """
    if not http and hosts:
        raise click.UsageError("--allow-host goes with --http")
    try:
        from ..mcp import mcp_server, stdio
    except ModuleNotFoundError as error:
        raise SettingsError(f"this needs {error.name}: pip install 'outbox-engine[mcp]'") from None
    with stdio.unbuffered():
        with stdio.diverted():
            logs.set_up(*log_to)
            pipelines = application.load(app or found.app) if app or found.app else []
        named = _named(tools, pipelines)
        with dsn_of(found) as dsn:
            server = mcp_server(
                dsn, by=name, operate=operate, decide_as=decide_as, pipelines=pipelines, tools=named, wait=wait
            )
            if http:
                _serve(server, host, port, hosts)
            else:
                if sys.stdin.isatty():
                    click.echo("A client talks to this by standard input and output: see docs/mcp.md", err=True)
                stdio.serve(server)


def _serve(server: Any, host: str, port: int, hosts: tuple[str, ...]) -> None:
    """Serves by HTTP until a signal."""
    import uvicorn

    from ..mcp.http import ending, http_app, is_near

    token = os.environ.get(TOKEN) or None
    if token is None and not is_near(host):
        raise click.UsageError(f"--host {host}: others would reach it, and it doesn't know who they are: set {TOKEN}")
    anywhere = host in ("0.0.0.0", "::")  # noqa: S104 - not a name that is called
    app = ending(http_app(server, token=token, hosts=hosts if anywhere else (host, *hosts)))
    with closing(page.listening(host, port)) as opened:
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"http://{shown}:{opened.getsockname()[1]}/mcp")
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="on", proxy_headers=False, server_header=False,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[opened])


def _named(tools: tuple[str, ...], pipelines: list[Pipeline[Any]]) -> dict[str, Pipeline[Any]]:
    """Returns the pipelines that are offered as tools, by the names of the tools."""
    known = {pipeline.name: pipeline for pipeline in pipelines}
    found: dict[str, Pipeline[Any]] = {}
    for each in tools:
        pipeline, _, name = (each, "", each) if each in known else each.rpartition("=")
        if pipeline not in known:
            which = f"; --app has {', '.join(known)}" if known else ": give its module with --app"
            raise SettingsError(f"--tool {each}: there is no pipeline {pipeline or each}{which}")
        if name in found:
            raise SettingsError(f"--tool {each}: two tools have the name {name!r}. Give another: --tool PIPELINE=NAME")
        found[name] = known[pipeline]
    return found
