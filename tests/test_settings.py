"""Settings come from the command line, else the environment, else pyproject.toml, and never show a password."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from outbox import SettingsError, settings
from outbox.commands import options
from outbox.database.dsn import engine_conninfo, redact

CANARY = "c4n4ry-pw"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*settings._KEYS.values(), "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def project(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(f"[tool.outbox]\n{text}\n")
    inside = folder / "a" / "b"
    inside.mkdir(parents=True)
    return inside


def test_the_nearest_pyproject_is_read_from_below(tmp_path: Path) -> None:
    inside = project(tmp_path, 'dsn = "postgresql:///x"\nlisten-dsn = "postgresql:///y"\nhome = "data"')
    found = settings.load(inside)
    assert (found.dsn, found.listen_dsn, found.home) == (
        "postgresql:///x",
        "postgresql:///y",
        tmp_path / "data",
    )


def test_environment_wins_over_the_file_and_the_command_line_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = project(tmp_path, 'dsn = "postgresql:///file"\napp = "file:app"')
    monkeypatch.setenv("OUTBOX_DSN", "postgresql:///env")
    assert settings.load(inside).dsn == "postgresql:///env"
    found = settings.load(inside, dsn="postgresql:///arg", app=None)
    assert (found.dsn, found.app) == ("postgresql:///arg", "file:app")


def test_database_url_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an application's: whatever is set for Outbox comes first."""
    url = f"postgresql+asyncpg://u:{CANARY}@h/shop"
    assert settings.load(tmp_path).database is None
    monkeypatch.setenv("DATABASE_URL", url)
    assert settings.load(tmp_path).database == ("DATABASE_URL", url)
    assert settings.load(tmp_path).dsn is None
    assert settings.load(tmp_path, bundled=True).database is None
    assert CANARY not in repr(settings.load(tmp_path))
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path))
    assert settings.load(tmp_path).database is None, "a folder for the bundled Postgres is set for Outbox"
    inside = project(tmp_path, 'dsn = "postgresql:///file"')
    assert settings.load(inside).database == ("OUTBOX_DSN", "postgresql:///file")
    assert settings.load(inside, dsn="postgresql:///arg").database == ("OUTBOX_DSN", "postgresql:///arg")
    assert settings.load(inside, bundled=True).database is None


@pytest.mark.parametrize(
    ("text", "words"),
    [("dns = 'x'", "no setting 'dns'"), ("dsn = 5", "dsn must be a string"), ("dsn = ", "Invalid value")],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        settings.load(project(tmp_path, text))
    assert str(tmp_path / "pyproject.toml") in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://user:{CANARY}@host:5432/db",
        f"host=h user=u password={CANARY} dbname=d",
        f"host=h user=u password='{CANARY}' nonsense=1",
        f"postgresql://user:{CANARY}@ho st/%zz",
        f"{CANARY}",
        f"postgresql://user:{CANARY}",
        f"postgresql://user:{CANARY}/{CANARY}@host/db",
        f"postgresql://user:p@{CANARY}/{CANARY}@host/db",
        f"postgresql://user:p@ss:{CANARY}@host/db",
        f"postgresql://user@host/db?password={CANARY}&sslpassword={CANARY}",
        f"amqp://user:{CANARY}@host/vhost",
        f"host=h scram_client_key={CANARY}",
        f"\0{CANARY}",
    ],
)
def test_a_password_is_never_shown(text: str) -> None:
    assert CANARY not in redact(text)
    assert CANARY not in repr(settings.load(dsn=text, listen_dsn=text, amqp_url=text))


def test_a_redacted_dsn_still_tells_where_it_points() -> None:
    shown = redact(f"postgresql://user:{CANARY}@db.example:6432/app")
    assert all(part in shown for part in ("user", "db.example", "6432", "app"))


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has a number only, and no HOME, as in a container that is run with one."""

    def missing(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", missing)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nameless")
def test_a_user_without_a_name_and_a_home_needs_neither(tmp_path: Path) -> None:
    assert settings.load(tmp_path, dsn="postgresql:///x").dsn == "postgresql:///x"
    assert options.user_name() == "uid 4242"


@pytest.mark.usefixtures("nameless")
def test_where_a_home_folder_is_needed_and_there_is_none_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"no home folder. Set HOME, or OUTBOX_HOME"):
        settings.default_home()
    monkeypatch.setenv("OUTBOX_HOME", "~/data")
    with pytest.raises(SettingsError, match="no home folder"):
        settings.load(tmp_path)


def test_settings_of_somebody_else_in_a_folder_above_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say which code runs, and where a password goes: a file in /tmp is no business of what is below."""
    inside = project(tmp_path, 'dsn = "postgresql://evil/x"')
    above = tmp_path / "pyproject.toml"
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        found = real(path, **options)
        return os.stat_result((*found[:4], 4242, *found[5:10])) if path == above else found

    assert settings.load(inside).dsn == "postgresql://evil/x"
    monkeypatch.setattr(Path, "stat", stat)
    assert settings.load(inside).dsn is None
    assert settings.load(tmp_path).dsn == "postgresql://evil/x", "in the folder itself it is as its code is"


@pytest.mark.parametrize("scheme", ["mysql+asyncmy", "mysql", "psql", "jdbc:postgresql"])
def test_another_scheme_is_told_from_a_password_that_is_not_escaped(scheme: str) -> None:
    with pytest.raises(SettingsError, match="its scheme must be postgresql://, not") as refused:
        engine_conninfo(f"{scheme}://u:{CANARY}@h/db", "test")
    assert CANARY not in str(refused.value)
    assert f"not {scheme}://" in str(refused.value)
    with pytest.raises(SettingsError, match="%40 for @"):
        engine_conninfo(f"postgresql://u:{CANARY}/w@h/db", "test")
