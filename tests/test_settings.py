"""Settings come from the command line, else the environment, else pyproject.toml, and never show a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox import SettingsError, settings
from outbox.database.dsn import redact

CANARY = "c4n4ry-pw"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings._KEYS.values():
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
