"""Reads settings from the command line, then OUTBOX_* in the environment, then [tool.outbox] in pyproject.toml.

DATABASE_URL, which many platforms and applications set, is the last resort for the database.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import SettingsError

_KEYS = {"dsn": "OUTBOX_DSN", "listen_dsn": "OUTBOX_LISTEN_DSN", "amqp_url": "OUTBOX_AMQP_URL", "app": "OUTBOX_APP",
         "home": "OUTBOX_HOME", "link_keys": "OUTBOX_LINK_KEYS"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the database is, and which application to run. The repr leaves out settings that may contain a secret."""

    dsn: str | None = field(default=None, repr=False)
    listen_dsn: str | None = field(default=None, repr=False)
    amqp_url: str | None = field(default=None, repr=False)
    app: str | None = None
    home: Path | None = None
    link_keys: str | None = field(default=None, repr=False)
    database_url: str | None = field(default=None, repr=False)
    bundled: bool = False

    @property
    def database(self) -> tuple[str, str] | None:
        """The DSN to use, after the name of its setting. None means the bundled Postgres, or that nothing is set.

        What is set for Outbox comes before DATABASE_URL, and so does a folder for the bundled Postgres.
        """
        if self.bundled:
            return None
        if self.dsn:
            return "OUTBOX_DSN", self.dsn
        if self.database_url and self.home is None:
            return "DATABASE_URL", self.database_url
        return None


def load(start: Path | None = None, *, bundled: bool = False, **overrides: str | None) -> Settings:
    """Returns the settings that apply in the folder `start` (default: the current one).

    `overrides` are options of the command line; None means not given. Raises SettingsError for an option that is given
    but empty. For an unknown key or a wrong type in pyproject.toml, the error names the file and the key. `bundled`
    asks for the bundled Postgres, whatever else is set.
    """
    found: dict[str, Any] = _from_pyproject(start or Path.cwd())
    found |= {key: value for key, name in _KEYS.items() if (value := os.environ.get(name))}
    for key, value in overrides.items():
        if value == "":  # --dsn "$UNSET" must not fall back to the bundled Postgres
            raise SettingsError(f"{key.replace('_', '-')} is given but empty")
    found |= {key: value for key, value in overrides.items() if value is not None}
    home = found.pop("home", None)
    return Settings(
        home=None if home is None else _expanded(home),
        database_url=os.environ.get("DATABASE_URL") or None,
        bundled=bundled,
        **found,
    )


def default_home() -> Path:
    """Returns the data folder of the bundled Postgres: in the user's data folder, or /var/lib/outbox for root.

    Raises SettingsError if HOME isn't set and the system doesn't list the user, as in some containers.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/outbox")
    return Path(os.environ.get("XDG_DATA_HOME") or _expanded("~/.local/share")) / "outbox"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SettingsError(
            f"{path}: this user has no home folder. Set HOME, or OUTBOX_HOME to a folder, or OUTBOX_DSN to a database"
        ) from None


def _is_trusted(file: Path, start: Path) -> bool:
    """Tells whether a file's settings may be used. They decide which code runs, and where passwords go.

    A file in the folder `start` is trusted as the code in that folder is. A file in a folder above, which may be /tmp,
    must belong to the owner of `start`, to the user of this process, or to root.
    """
    return file.parent == start or file.stat().st_uid in (os.geteuid(), 0, start.stat().st_uid)


def _from_pyproject(start: Path) -> dict[str, Any]:
    start = start.resolve()
    for folder in (start, *start.parents):
        file = folder / "pyproject.toml"
        try:
            if not _is_trusted(file, start):
                continue
            document = tomllib.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file}: {error}") from None
        table = document.get("tool", {}).get("outbox", {})
        if not isinstance(table, dict):
            raise SettingsError(f"{file}: [tool.outbox] must be a table")
        found = {}
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in _KEYS:
                known = ", ".join(known.replace("_", "-") for known in _KEYS)
                raise SettingsError(f"{file}: [tool.outbox] has no setting {key!r}; the settings are {known}")
            if name == "app" and isinstance(value, list) and all(isinstance(each, str) for each in value):
                value = ",".join(value)
            if not isinstance(value, str):
                raise SettingsError(f"{file}: [tool.outbox] {key} must be a string")
            found[name] = str(folder / _expanded(value)) if name == "home" else value
        return found
    return {}
