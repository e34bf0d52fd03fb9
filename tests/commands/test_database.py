"""Which database a command works on: never a bundled one that was not asked for."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest

from apps.plain import app
from kit.commands import Outbox
from kit.pipelines import deployed, status_of
from kit.servers import free_port
from outbox import settings
from outbox.cli import COMMANDS
from outbox.commands import connection

CANARY = "c4n4ry-pw"
ARGUMENTS: Mapping[str, list[str]] = {
    "deploy": ["--app", "apps.plain:app"],
    "drop": ["plain"],
    "worker": ["--app", "apps.plain:app", "--drain"],
    "submit": ["--pipeline", "plain"],
    "show": ["a"],
    "set-status": ["a", "DONE"],
    "cancel": ["a"],
    "erase": ["a", "--yes"],
    "retry": ["--all"],
    "pause": ["plain"],
    "resume": ["plain"],
    "approve": ["a"],
    "reject": ["a"],
    "decide": ["a", "approve"],
    "delegate": ["sarah", "--for", "3d"],
    "signal": ["a", "payment"],
    "relay": ["--drain"],
}


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder without settings, and the default folder of the bundled Postgres, which must stay away."""
    home = tmp_path / "default"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "default_home", lambda: home)
    yield home
    assert not home.exists()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("demo", "dev", "psql")])
def test_without_a_dsn_a_command_is_wrong_usage_and_says_what_to_set(nowhere: Path, name: str) -> None:
    done = Outbox(None)(name, *ARGUMENTS.get(name, []), code=2, input="")
    assert done.out == ""
    assert "no database is given: set OUTBOX_DSN" in done.err
    assert "--bundled" in done.err


def test_several_processes_do_not_each_say_so(nowhere: Path) -> None:
    done = Outbox(None)("worker", "--app", "apps.plain:app", "--processes", "2", code=2)
    assert done.err.count("no database is given") == 1


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: as root, the server's user must be able to enter the folder.
    with tempfile.TemporaryDirectory(prefix="ob", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "home"


def test_bundled_asks_for_it_before_or_after_the_name_whatever_else_is_set(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection.settings, "default_home", lambda: home)
    there = f"postgresql://u:{CANARY}@127.0.0.1:{free_port()}/x"
    for arguments, setting in ((["migrate", "--bundled"], "OUTBOX_DSN"), (["--bundled", "migrate"], "DATABASE_URL")):
        done = Outbox(None)(*arguments, env={setting: there})
        assert done.err == f"outbox: using the bundled Postgres in {home} (its data is kept)\n"
        assert "the schema is up to date" in done.out
    for both in (["--dsn", there, "--bundled", "status"], ["--dsn", there, "status", "--bundled"]):
        assert "--dsn and --bundled exclude each other" in Outbox(None)(*both, code=2).err


def test_database_url_is_used_when_nothing_is_set_for_outbox(
    nowhere: Path, dsn: str, conn: psycopg.Connection[object]
) -> None:
    deployed(conn, app)
    found = psycopg.conninfo.conninfo_to_dict(dsn)
    url = (
        f"postgresql+asyncpg://{found['user']}:x@{found['host']}:{found['port']}/{found['dbname']}"
        "?ssl=prefer&prepared_statement_cache_size=0"
    )
    outbox = Outbox(None)
    assert "plain" in outbox("status", "--json", env={"DATABASE_URL": url}).out
    outbox("submit", "--pipeline", "plain", env={"DATABASE_URL": url}, input='{"entity_id": "a"}')
    outbox("worker", "--app", "apps.plain:app", "--drain", env={"DATABASE_URL": url})
    assert status_of(conn, "a") != "NEW"
    for wrong, said in (
        (
            f"mysql://u:{CANARY}@h/x",
            "DATABASE_URL: can't read the DSN .*: its scheme must be postgresql://, not mysql://",
        ),
        (
            "sqlite:///db.sqlite3",
            "DATABASE_URL: can't read the DSN .*: its scheme must be postgresql://, not sqlite://",
        ),
        (f"postgres://u:{CANARY}@h/x?pgbouncer=true", "DATABASE_URL: the DSN has the parameter pgbouncer"),
    ):
        line = outbox.fails("status", env={"DATABASE_URL": wrong})
        assert CANARY not in line
        assert re.search(said, line), line
    line = outbox.fails("status", env={"OUTBOX_DSN": f"postgres://u:{CANARY}@h/x?schema=shop"})
    assert "the parameter schema" in line
    assert CANARY not in line


def test_help_needs_no_database(nowhere: Path) -> None:
    for name in COMMANDS:
        Outbox(None)(name, "--help", env={"DATABASE_URL": "postgres://h/x?pgbouncer=true"})
