"""Defines the options that several commands have, and the values that they take."""

from __future__ import annotations

import functools
import getpass
import math
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

from .. import documents
from ..checks import MAX_DELAY
from ..errors import InvalidInput
from ..operations import look

Command = TypeVar("Command", bound=Callable[..., Any])


LogOptions = tuple[str, str, Path | None]
"""Where logs go and in which format: the arguments of `logs.set_up`."""


class Number(click.FloatRange):
    """A number in a range. click's own FloatRange accepts NaN, which is neither below nor above any bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not a number", param, ctx)
        return found


class Age(click.types.FloatParamType):
    """A time span as `status` prints it: 90s, 15m, 2h, 3d. Converts to seconds."""

    name = "time"
    _UNITS: ClassVar = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", str(value), re.ASCII)
        if not found or float(found[1]) * self._UNITS[found[2]] > MAX_DELAY:
            self.fail(f"{value!r} is not a time of up to 30 years, such as 90s, 15m, 2h or 3d", param, ctx)
        return float(found[1]) * self._UNITS[found[2]]


class Time(click.DateTime):
    """A time in ISO 8601. Without a zone, it is of the machine's one; without a time of day, the day begins."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            found: datetime = value if isinstance(value, datetime) else datetime.fromisoformat(value)
            return found.astimezone(UTC)
        except (ValueError, OverflowError):  # astimezone: near the years 1 and 9999
            self.fail(f"{value!r} is not a time, such as 2027-01-08 or 2027-01-08T18:00+01:00", param, ctx)


def app_option(command: Command) -> Command:
    """Adds --app. Several are passed on as one text with commas, as OUTBOX_APP has them."""
    return click.option(
        "--app", metavar="MODULE:OBJECT", multiple=True, callback=lambda _, __, given: ",".join(given) or None,
        help="A Pipeline, several, or a module that has some; repeatable. Default: OUTBOX_APP, with commas between "
        "several.",
    )(command)  # fmt: skip


def user_name() -> str:
    """Returns the name of this process's user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # for example, in a container whose user has no name
        return f"uid {os.getuid()}"


by_option = click.option(
    "--by", metavar="NAME", default=user_name, help="Who makes the change; kept with it. Default: your user name."
)
pipeline_option = click.option("--pipeline", metavar="NAME", help="The pipeline, if the entity is in several.")
of_pipeline_option = click.option("--pipeline", metavar="NAME", help="Only this pipeline.")
limit_option = click.option(
    "--limit", metavar="N", type=click.IntRange(1, 10_000_000), default=look.MOST, show_default=True,
    help="How many at most. The last line says how many more there are; with --json, standard error does.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def log_options(command: Command) -> Command:
    """Adds --log, --log-level and --log-config, as the parameter `log_to` with the arguments of `logs.set_up`."""

    @functools.wraps(command)
    def with_log(*args: Any, log_style: str, log_level: str | None, log_config: Path | None, **kwargs: Any) -> Any:
        if log_level and log_config:
            raise click.UsageError("--log-level and --log-config exclude each other: the file says the levels")
        return command(*args, log_to=(log_style, log_level or "info", log_config), **kwargs)

    for option in (
        click.option(
            "--log-config",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Configure logging by this file instead: JSON, or TOML if it ends in .toml, for "
            "logging.config.dictConfig.",
        ),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
            help="Leave out what is less important.  [default: info]",
        ),
        click.option(
            "--log",
            "log_style",
            type=click.Choice(["text", "short", "json"]),
            default="text",
            show_default=True,
            help="Format of the log lines; short is for a terminal.",
        ),
    ):
        with_log = option(with_log)
    return with_log  # type: ignore[return-value]


def from_json(text: str | None, what: str) -> Any:
    """Returns the value of a JSON argument, or None if it wasn't given. If it isn't JSON, raises a usage error that
    names the argument.
    """
    try:
        return None if text is None else documents.decoder(what)(text)
    except InvalidInput as error:
        raise click.UsageError(str(error)) from None
    except RecursionError:
        raise click.UsageError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise click.UsageError(f"{what} is not JSON: {error}") from None
