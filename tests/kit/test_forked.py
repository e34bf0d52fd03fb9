"""A program that is forked can't be told from one whose interpreter was started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit import forked
from kit.forked import Popen
from kit.servers import DEADLINE

TELLS = """
import atexit, json, os, signal, sys, tempfile, threading, warnings
atexit.register(print, "bye")
threading.Thread(target=lambda: (threading.main_thread().join(), print("from a thread"))).start()
print(json.dumps({
    "argv": sys.argv[1:], "file": os.path.basename(sys.argv[0]), "name": __name__, "folder": os.getcwd(),
    "path": [place for place in sys.path if "tells" in place], "env": os.environ["GIVEN"], "parent": os.getppid(),
    "int": signal.getsignal(signal.SIGINT) is signal.default_int_handler, "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "pipe": signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN, "temp": tempfile.gettempdir(), "read": sys.stdin.read(),
    "files": len(os.listdir("/proc/self/fd")), "encoding": sys.stdout.encoding, "errors": [sys.stdout.errors, sys.stderr.errors],
}))
print("in trouble", file=sys.stderr)
"""


@pytest.fixture(params=["fork", "exec"])
def started(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "exec":
        monkeypatch.setenv("OUTBOX_TEST_EXEC", "1")


def program(folder: Path, text: str) -> tuple[list[str], dict[str, str]]:
    (folder / "tells").mkdir(exist_ok=True)
    (folder / "tells" / "told.py").write_text(text)
    return ["-m", "told"], {**os.environ, "PYTHONPATH": str(folder / "tells"), "GIVEN": "über", "TMPDIR": "/tmp"}


def communicated(arguments: list[str], input: bytes = b"", **options: Any) -> tuple[int, str, str]:
    process = Popen(arguments, **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), **options)
    out, err = process.communicate(input, DEADLINE)
    return process.returncode, out.decode(), err.decode()


def test_it_is_told_the_same(tmp_path: Path) -> None:
    arguments, env = program(tmp_path, TELLS)
    told = communicated([*arguments, "a b", "ü"], "gelesen ü".encode(), env=env, cwd=tmp_path)
    env["OUTBOX_TEST_EXEC"] = "1"
    assert told == communicated([*arguments, "a b", "ü"], "gelesen ü".encode(), env=env, cwd=tmp_path)
    assert f'"parent": {os.getpid()}' in told[1]


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("text", "code", "said"),
    [("raise SystemExit(7)", 7, ""), ("raise SystemExit('why')", 1, "why"), ("1/0", 1, "ZeroDivisionError: division by zero"),
     ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""), ("raise KeyboardInterrupt", -2, "KeyboardInterrupt")],
)  # fmt: skip
def test_it_ends_the_same(tmp_path: Path, text: str, code: int, said: str) -> None:
    arguments, env = program(tmp_path, text)
    ended, _, err = communicated(arguments, env=env)
    assert (ended, err.strip().rpartition("\n")[2]) == (code, said)


@pytest.mark.usefixtures("started")
def test_it_is_a_child_that_takes_signals(tmp_path: Path) -> None:
    arguments, env = program(tmp_path, "import time\nprint(1, flush=True)\ntime.sleep(3600)")
    process = Popen(arguments, env=env, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    with process:
        assert os.getsid(process.pid) == process.pid
        assert process.stdout.readline() == b"1\n"
        assert process.pid in {child.pid for child in psutil.Process().children()}
        process.send_signal(signal.SIGSTOP)
        assert os.waitpid(process.pid, os.WUNTRACED)[1] == 0x137F
        assert process.poll() is None
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_what_other_code_starts_is_forked_if_it_is_a_program_of_this_interpreter(tmp_path: Path) -> None:
    arguments, env = program(tmp_path, "from pathlib import Path\nprint(Path('/proc/self/cmdline').read_text())")
    for within, made_by in ((forked.programs(), "kit.forked"), (nullcontext(), "told")):
        with within:
            told = subprocess.run([sys.executable, *arguments], env=env, stdout=subprocess.PIPE, text=True, check=True)
            said = subprocess.run(["echo", "told"], stdout=subprocess.PIPE, text=True, check=True)
        assert made_by in told.stdout.split("\0")
        assert said.stdout == "told\n"


def test_many_are_started_at_once(tmp_path: Path) -> None:
    arguments, env = program(tmp_path, "import sys; sys.exit(int(sys.argv[1]))")
    codes: dict[int, int] = {}

    def run(number: int) -> None:
        codes[number] = communicated([*arguments, str(number)], env=env)[0]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert codes == {number: number for number in range(20)}


def test_what_is_imported_once_is_imported_in_all_that_is_forked_later(tmp_path: Path) -> None:
    arguments, env = program(tmp_path, "import sys; print('tabnanny' in sys.modules)")
    assert communicated(arguments, env=env)[1] == "False\n"
    forked.imports("tabnanny")
    assert communicated(arguments, env=env)[1] == "True\n"


def test_what_counts_only_while_an_interpreter_starts_starts_one(tmp_path: Path) -> None:
    arguments, env = program(tmp_path, "import sys; print(sys.flags.hash_randomization, sys.stdout.encoding)")
    env |= {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "ascii"}
    assert communicated(arguments, env=env)[1] == "0 ascii\n"
    assert communicated(["-c", "print(__name__)"])[1] == "__main__\n"
