"""Defines the command that shows the web page on this machine."""

from __future__ import annotations

from contextlib import closing
from ipaddress import ip_address

import click

from .. import settings
from ..errors import SettingsError
from . import application, page
from .connection import dsn_of
from .options import app_option, user_name


@click.command("ui")
@click.option("--host", metavar="HOST", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", metavar="PORT", type=click.IntRange(0, 65535),
    help=f"The port to listen on; 0 takes any that is free. Default: {page.PORT}, or any if that is taken.",
)  # fmt: skip
@click.option("--operate", is_flag=True, help="Let who looks decide, retry, move, cancel and pause, too.")
@click.option(
    "--as",
    "name",
    metavar="NAME",
    default=user_name,
    help="Who that is; kept with all they do. Default: your user name.",
)
@click.option("--insecure", is_flag=True, help="Allow a --host that others reach. The page doesn't ask who they are.")
@app_option
@click.pass_obj
def ui_command(
    found: settings.Settings, host: str, port: int | None, operate: bool, name: str, insecure: bool, app: str | None
) -> None:
    """Show the web page: what is where, and what waits for you.

    It is for you on this machine, and only shows. With --operate, it also has buttons. Ctrl-C ends it. To show it to
    others, mount outbox.ui.dashboard in an application that knows who they are.
    """
    try:
        import uvicorn

        from ..ui.app import alone
        from ..ui.person import RIGHTS, Person
    except ModuleNotFoundError as error:
        raise SettingsError(f"the page needs {error.name}: pip install 'outbox-engine[ui]'") from None
    if not insecure and not _is_near(host):
        raise click.UsageError(
            f"--host {host}: others would reach this page, and it doesn't ask who they are. Mount it in an application "
            "that does, with outbox.ui.dashboard(…, identify=…), or say --insecure"
        )
    pipelines = application.load(app or found.app) if app or found.app else []
    person = Person(name, RIGHTS if operate else {"look"})
    with dsn_of(found) as dsn, closing(page.listening(host, port)) as opened:
        shown_page = alone(dsn, person, pipelines, anywhere=insecure)
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"http://{shown}:{opened.getsockname()[1]}/")
        config = uvicorn.Config(
            shown_page, log_level="warning", lifespan="off", proxy_headers=False, server_header=False,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[opened])


def _is_near(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
