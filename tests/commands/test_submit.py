"""`outbox submit`: JSON lines become workflows, all or none; whatever is wrong is named by the number of its line."""

from __future__ import annotations

import json
import os
import pty
import tracemalloc
from pathlib import Path
from typing import Any

import psycopg
import pytest

from apps.cli import posts, tickets
from kit.commands import Outbox
from kit.pipelines import deployed, value
from kit.servers import DEADLINE, wait_for
from outbox import Pipeline
from outbox.commands.lines import Lines, bounded
from outbox.documents import MAX_BYTES

Conn = psycopg.Connection[Any]

ODD_IDS = ["'", '"', ";", "'; DROP TABLE outbox.jobs --", "%s", "%(x)s", "{}", "{0}", "\\", "\\n", "a\nb", "\t", " ", "\U0001f600",
           "\u202eevil", "\x1b[31m", "Foo", "foo", "é", "e\u0301", "NULL", "x" * 512]  # fmt: skip


@pytest.fixture
def there(conn: Conn) -> Conn:
    """A database with a pipeline `plain`, of any metadata, and those of the application."""
    deployed(conn, posts)
    deployed(conn, tickets)
    deployed(conn, Pipeline("plain", initial="NEW"))
    return conn


def lines(*records: Any) -> str:
    return "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)


def entities(conn: Conn) -> list[str]:
    rows = conn.execute("SELECT entity_id FROM outbox.workflow_states ORDER BY entity_id").fetchall()
    return [row[0] for row in rows]


def submit(outbox: Outbox, text: str | bytes, *options: str, **more: Any) -> Any:
    """Submit lines through standard input into `plain`; return what the command says as JSON."""
    return outbox("submit", "--pipeline", "plain", "--json", *options, "-", input=text, **more).json


def counts(submitted: int, existing: int = 0, skipped: int = 0) -> dict[str, int]:
    return {"submitted": submitted, "existing": existing, "skipped": skipped}


def test_a_line_from_standard_input_starts_a_workflow(outbox: Outbox, there: Conn) -> None:
    done = outbox("submit", "--pipeline", "posts", "-", input='{"entity_id": "a", "metadata": {"content": "hi"}}')
    assert done.out == "submitted 1, existing 0, skipped 0\n"
    assert done.err == ""
    assert there.execute("SELECT entity_id, current_status, metadata FROM outbox.workflow_states").fetchall() == [
        ("a", "RECEIVED", {"content": "hi"})
    ]
    assert value(there, "SELECT stage FROM outbox.jobs") == "enrich"
    assert submit(outbox, lines({"entity_id": "b"})) == counts(1), "metadata may be left out"


def test_a_file_is_submitted_and_its_last_line_needs_no_end(outbox: Outbox, there: Conn, tmp_path: Path) -> None:
    file = tmp_path / "posts.jsonl"
    file.write_text('{"entity_id": "a"}\n\n   \n\r\n{"entity_id": "b"}\r\n{"entity_id": "c"}')
    assert outbox("submit", "--pipeline", "plain", "--json", str(file)).json == counts(3)
    assert entities(there) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["", "\n", "\n  \n\t\n"])
def test_nothing_to_submit_is_no_error(outbox: Outbox, there: Conn, text: str) -> None:
    assert submit(outbox, text) == counts(0)


def test_what_is_there_already_counts_as_existing_and_is_left_alone(outbox: Outbox, there: Conn) -> None:
    submit(outbox, lines({"entity_id": "a", "metadata": {"n": 1}}))
    again = lines(
        {"entity_id": "a", "metadata": {"n": 2}}, {"entity_id": "b", "metadata": {"n": 3}}, {"entity_id": "b"}
    )
    assert submit(outbox, again) == counts(1, existing=2)
    assert there.execute("SELECT entity_id, metadata FROM outbox.workflow_states ORDER BY 1").fetchall() == [
        ("a", {"n": 1}),
        ("b", {"n": 3}),
    ]


def test_a_broken_line_is_named_and_nothing_is_submitted(outbox: Outbox, there: Conn) -> None:
    # Far enough down that the lines before it have been sent already.
    text = lines(*({"entity_id": f"e{n}"} for n in range(5_000)), '{"entity_id": "x"', {"entity_id": "y"})
    line = outbox.fails("submit", "--pipeline", "plain", input=text)
    assert "line 5001: " in line
    assert "is not JSON" in line
    assert "Nothing was submitted" in line
    assert "--skip-bad" in line
    assert entities(there) == []
    assert value(there, "SELECT count(*) FROM outbox.jobs") == 0


def test_skip_bad_submits_the_rest_and_reports_each_broken_line(outbox: Outbox, there: Conn) -> None:
    text = lines({"entity_id": "a"}, "{", "", {"entity_id": ""}, {"entity_id": "b"}, "[]")
    done = outbox("submit", "--pipeline", "plain", "--skip-bad", "--json", input=text)
    assert done.json == counts(2, skipped=3)
    assert [line[: len("skipped line 2:")] for line in done.err.splitlines()] == [
        "skipped line 2:",
        "skipped line 4:",
        "skipped line 6:",
    ]
    assert entities(there) == ["a", "b"]


def test_skip_bad_reports_the_first_twenty_and_counts_the_rest(outbox: Outbox, there: Conn) -> None:
    done = outbox(
        "submit", "--pipeline", "plain", "--skip-bad", "--json", input=lines(*["broken"] * 70, {"entity_id": "a"})
    )
    assert done.json == counts(1, skipped=70)
    reported = done.err.splitlines()
    assert len(reported) == 21
    assert reported[-1] == "… and 50 more"


def nested(depth: int) -> str:
    return '{"entity_id": "x", "metadata": {"deep": ' + "[" * depth + "]" * depth + "}}"


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "not JSON": ("{'entity_id': 'x'}", "is not JSON"),
    "torn off": ('{"entity_id": "x", "metadata": {"a"', "is not JSON"),
    "two documents": ('{"entity_id": "x"} {"entity_id": "y"}', "is not JSON"),
    "not UTF-8": (b'{"entity_id": "caf\xe9"}', "is not UTF-8"),
    "UTF-16": ('{"entity_id": "x"}'.encode("utf-16"), "is not UTF-8"),
    "a NUL byte": (b'{"entity_id": "x\0"}', "is not JSON"),
    "a list": ("[]", "is not an object"),
    "a number": ("5", "is not an object"),
    "null": ("null", "is not an object"),
    "no entity_id": ('{"metadata": {}}', "entity_id: is missing"),
    "an unknown key": ('{"entity_id": "x", "meta": {}}', "unknown keys: 'meta'"),
    "the same key twice": ('{"entity_id": "x", "entity_id": "y"}', "the same key twice"),
    "the same key twice, inside": ('{"entity_id": "x", "metadata": {"a": {"b": 1, "b": 2}}}', "the same key twice"),
    "NaN": ('{"entity_id": "x", "metadata": {"a": NaN}}', "NaN is not JSON"),
    "Infinity": ('{"entity_id": "x", "metadata": {"a": -Infinity}}', "-Infinity is not JSON"),
    "a number beyond a float": ('{"entity_id": "x", "metadata": {"a": 1e400}}', "can't be written as JSON"),
    "an integer of 5,000 digits": ('{"entity_id": "x", "metadata": {"a": ' + "9" * 5_000 + "}}", "digits"),
    "digits that a float has not": ('{"entity_id": "x", "metadata": {"a": 12345678901234567.89}}', "would lose digits"),
    "digits far behind the point": (
        '{"entity_id": "x", "metadata": {"a": 123456789012345678901234567890.12345678901234567890}}',
        "would lose digits",
    ),
    "metadata is a list": ('{"entity_id": "x", "metadata": []}', "metadata: must be an object, not list"),
    "metadata is null": ('{"entity_id": "x", "metadata": null}', "metadata: must be an object"),
    "metadata is text": ('{"entity_id": "x", "metadata": "{}"}', "metadata: must be an object, not str"),
    "NUL in metadata": ('{"entity_id": "x", "metadata": {"a": "\\u0000"}}', "metadata: has a NUL character"),
    "NUL in a key": ('{"entity_id": "x", "metadata": {"\\u0000": 1}}', "metadata: has a NUL character"),
    "a lone surrogate": ('{"entity_id": "x", "metadata": {"a": "\\ud800"}}', "metadata: can't be written as JSON"),
    "nested too deep": (nested(151), "metadata: nested more than 150 levels deep"),
    "nested far too deep": (nested(100_000), "recursion"),
    "entity_id is a number": ('{"entity_id": 5}', "entity_id: must be a string, not int"),
    "entity_id is null": ('{"entity_id": null}', "entity_id: must be a string"),
    "entity_id is empty": ('{"entity_id": ""}', "entity_id: is empty"),
    "entity_id is too long": (json.dumps({"entity_id": "x" * 513}), "entity_id: has 513 characters; the limit is 512"),
    "entity_id has NUL": ('{"entity_id": "a\\u0000"}', "entity_id: has a NUL character"),
    "entity_id has a lone surrogate": ('{"entity_id": "\\udfff"}', "entity_id: has a lone surrogate"),
}


@pytest.mark.parametrize(("line", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_a_workflow_is_refused_with_its_line_and_its_field(
    outbox: Outbox, there: Conn, line: str | bytes, words: str
) -> None:
    raw = line.encode() if isinstance(line, str) else line
    text = b'{"entity_id": "before"}\n' + raw + b"\n" + b'{"entity_id": "after"}\n'
    said = outbox.fails("submit", "--pipeline", "plain", input=text)
    assert said.startswith("outbox: line 2: ")
    assert words in said
    assert len(said) < 1_000
    assert entities(there) == []
    assert submit(outbox, text, "--skip-bad")["submitted"] == 2, "the other lines can be had"
    assert entities(there) == ["after", "before"]


def test_a_line_of_megabytes_is_stored_and_one_above_the_limit_is_refused_with_it(
    outbox: Outbox, there: Conn, tmp_path: Path
) -> None:
    file = tmp_path / "large.jsonl"
    file.write_text(lines({"entity_id": "large", "metadata": {"text": "x" * 5_000_000}}))
    assert outbox("submit", "--pipeline", "plain", "--json", str(file)).json == counts(1)
    assert value(there, "SELECT length(metadata ->> 'text') FROM outbox.workflow_states") == 5_000_000
    with file.open("a") as more:
        more.write(lines({"entity_id": "larger", "metadata": {"text": "x" * MAX_BYTES}}, {"entity_id": "last"}))
    said = outbox.fails("submit", "--pipeline", "plain", str(file))
    assert "line 2: " in said
    assert f"the limit is {MAX_BYTES:,}" in said
    done = outbox("submit", "--pipeline", "plain", "--json", "--skip-bad", str(file))
    assert done.json == counts(1, existing=1, skipped=1)
    assert "skipped line 2: " in done.err


def test_a_line_without_end_takes_no_more_memory_than_the_limit() -> None:
    class Endless:
        """Three times the limit, in one line, then a good one."""

        def __init__(self) -> None:
            self.left = 3 * MAX_BYTES

        def readline(self, size: int = -1) -> bytes:
            if self.left <= 0:
                self.left, good = self.left - 1, b'{"entity_id": "last"}\n'
                return good if self.left == -1 else b""
            part = min(self.left, size if size >= 0 else self.left)
            self.left -= part
            return b"x" * part if self.left else b"x" * (part - 1) + b"\n"

    lines = Lines(None, skip_bad=True)
    tracemalloc.start()
    try:
        found = list(lines.items(bounded(Endless())))  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [("last", "{}")]
    assert lines.skipped == 1
    assert "line 1: " in lines.reasons[0]
    assert peak < 1.5 * MAX_BYTES


def test_odd_entity_ids_are_stored_exactly(outbox: Outbox, there: Conn) -> None:
    text = lines(*({"entity_id": entity, "metadata": {"id": entity}} for entity in ODD_IDS))
    assert submit(outbox, text) == counts(len(ODD_IDS))
    rows = there.execute("SELECT entity_id, metadata ->> 'id' FROM outbox.workflow_states").fetchall()
    assert sorted(row[0] for row in rows) == sorted(ODD_IDS)
    assert all(entity == kept for entity, kept in rows)
    assert submit(outbox, text) == counts(0, existing=len(ODD_IDS))


def test_odd_but_valid_metadata_is_stored_as_it_is(outbox: Outbox, there: Conn) -> None:
    odd = {
        "integer": 10**400,
        "text": "\\u0000 \" ' {} %s",
        "": "",
        "NaN": "Infinity",
        "emoji": "\U0001f600",
        "null": None,
    }
    submit(outbox, lines({"entity_id": "a", "metadata": odd}))
    assert json.loads(value(there, "SELECT metadata::text FROM outbox.workflow_states")) == odd


def test_with_the_application_the_model_checks_the_metadata(outbox: Outbox, there: Conn) -> None:
    arguments = ("submit", "--pipeline", "tickets", "--app", "apps.cli:both")
    for broken in ({}, {"subject": 5}, {"subject": "x", "extra\x1b[31m": 1}):
        text = lines({"entity_id": "a", "metadata": {"subject": "help"}}, {"entity_id": "b", "metadata": broken})
        said = outbox.fails(*arguments, input=text)
        assert "line 2: data: " in said
        assert entities(there) == []
        (reason,) = outbox(*arguments, "--skip-bad", input=text).err.splitlines()
        assert reason.startswith("skipped line 2: data: ")
        assert reason.isprintable()
        there.execute("DELETE FROM outbox.workflow_states")
    assert outbox(
        *arguments, "--json", input=lines({"entity_id": "a", "metadata": {"subject": "help"}})
    ).json == counts(1)


def test_the_application_must_have_the_pipeline(outbox: Outbox, there: Conn) -> None:
    said = outbox.fails("submit", "--pipeline", "plain", "--app", "apps.cli:both", input="")
    assert "apps.cli:both has no pipeline 'plain'" in said


@pytest.mark.parametrize("name", ["nowhere", "", "Plain", "'; DROP TABLE outbox.jobs --", "%s"])
def test_an_unknown_pipeline_says_how_to_deploy_it(outbox: Outbox, there: Conn, name: str) -> None:
    said = outbox.fails("submit", "--pipeline", name, input=lines({"entity_id": "a"}))
    assert f'pipeline "{name}" is not deployed here' in said
    assert "outbox deploy" in said


def test_a_missing_file_or_a_folder_is_wrong_usage(outbox: Outbox, there: Conn, tmp_path: Path) -> None:
    for name in (tmp_path / "missing.jsonl", tmp_path, tmp_path / "missing" / "a.jsonl"):
        done = outbox("submit", "--pipeline", "plain", str(name), code=2)
        assert name.name in done.err


def test_a_producer_that_dies_in_the_middle_of_a_line_leaves_nothing(outbox: Outbox, there: Conn) -> None:
    with outbox.process("submit", "--pipeline", "plain", "-") as process:
        done = process.done(lines(*({"entity_id": f"e{n}"} for n in range(2_500))).encode() + b'{"entity_id": "e25')
    assert (done.code, done.out) == (1, "")
    assert "line 2501: " in done.err
    assert entities(there) == []


def test_ctrl_c_in_the_middle_exits_130_and_leaves_nothing(outbox: Outbox, there: Conn) -> None:
    # Not between two statements, where the signal could meet the next one as psycopg sends it.
    busy = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox cli' AND state = 'idle in transaction' "
        "AND query ~ 'INSERT INTO outbox.workflow_states'"
    )
    with outbox.process("submit", "--pipeline", "plain", "-") as process:
        assert process.stdin is not None
        process.stdin.write(lines(*({"entity_id": f"e{n}"} for n in range(2_500))).encode())
        process.stdin.flush()
        wait_for(lambda: value(there, busy), what="the first lines have been sent, and more is waited for")
        process.interrupt()
        assert process.wait(DEADLINE) == 130
        done = process.done()
    assert (done.out, done.err) == ("", "outbox: interrupted\n")
    assert entities(there) == []


def test_a_database_that_goes_away_in_the_middle_leaves_nothing(outbox: Outbox, there: Conn, admin_dsn: str) -> None:
    busy = "SELECT pid FROM pg_stat_activity WHERE application_name = 'outbox cli' AND state = 'idle in transaction'"
    with outbox.process("submit", "--pipeline", "plain", "-") as process:
        assert process.stdin is not None
        process.stdin.write(lines(*({"entity_id": f"e{n}"} for n in range(2_500))).encode())
        process.stdin.flush()
        pid = wait_for(lambda: value(there, busy))
        with psycopg.connect(admin_dsn, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", [pid])
        done = process.done(lines({"entity_id": "last"}).encode())
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert "terminat" in line
    assert entities(there) == []


def test_fifty_thousand_lines_pass(outbox: Outbox, there: Conn, tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text(lines(*({"entity_id": f"e{n}", "metadata": {"n": n}} for n in range(50_000))))
    assert outbox("submit", "--pipeline", "plain", "--json", str(file)).json == counts(50_000)
    assert value(there, "SELECT workflows FROM outbox.overview WHERE pipeline = 'plain'") == 50_000


def test_a_terminal_sees_progress_and_the_result_stays_clean(outbox: Outbox, there: Conn) -> None:
    master, slave = pty.openpty()
    try:
        with outbox.process("submit", "--pipeline", "plain", "--json", "-", stderr=slave) as process:
            assert process.stdin is not None
            process.stdin.write(lines(*({"entity_id": f"e{n}"} for n in range(2_500))).encode())
            process.stdin.flush()
            seen = b""
            while b"submit" not in seen:  # it ends, since the bar is drawn ten times a second
                seen += os.read(master, 65_536)
            done = process.done(b"")
    finally:
        os.close(master)
        os.close(slave)
    assert (done.code, done.json) == (0, counts(2_500))


def test_progress_is_told_in_bytes_up_to_the_last() -> None:
    text = [b'{"entity_id": "a"}\n'] * 2_500
    told: list[int] = []
    read = Lines(None, on_bytes=told.append)
    assert len(list(read.items(text))) == read.read == 2_500
    assert len(told) == 3
    assert sum(told) == sum(map(len, text))


def test_a_byte_order_mark_before_the_first_line_is_no_part_of_it(outbox: Outbox, there: Conn) -> None:
    assert submit(outbox, b"\xef\xbb\xbf" + lines({"entity_id": "a"}).encode()) == counts(1)
    assert entities(there) == ["a"]


@pytest.mark.parametrize("number", ["0.1", "1.10", "0.30000000000000004", "0.1000000000000000055511151231257827", "1e22",
                                    "123456789.123456", "99999999999999999999999", "-1.7976931348623157e308"])  # fmt: skip
def test_numbers_that_keep_their_value_are_taken(number: str) -> None:
    (item,) = Lines(None).items([f'{{"entity_id": "x", "metadata": {{"a": {number}}}}}'.encode()])
    assert json.loads(item[1])["a"] == json.loads(number)
