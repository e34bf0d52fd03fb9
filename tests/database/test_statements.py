"""Each statement of sql/queries has a header: what it does, and which tables it reads, writes and locks."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

FOLDER = files("outbox.sql").joinpath("queries")
NAME = re.compile(r"^-- name: (\w+)\n((?:--[^\n]*\n)*)", re.MULTILINE)
WRITES = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM|TRUNCATE TABLE)\s+outbox\.(\w+)|setval\('outbox\.(\w+)'")
READS = re.compile(r"(?:FROM|JOIN|USING|,)\s+outbox\.(\w+)\b(?!\()")
LOCKS = re.compile(r"\bFOR (?:NO KEY )?UPDATE\b|\bFOR SHARE\b|\bLOCK TABLE\b|\bTRUNCATE TABLE\b|pg_(?:try_)?advisory")
INDEXES = re.compile(r"CREATE (?:UNIQUE )?INDEX (\w+)|ADD CONSTRAINT (\w+) (?:PRIMARY KEY|UNIQUE)")


def statements() -> list[tuple[str, str, str]]:
    """Return the name, header and body of each statement."""
    found = []
    for file in sorted(FOLDER.iterdir(), key=lambda item: item.name):
        _, *parts = NAME.split(file.read_text(encoding="utf-8"))
        for name, header, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            said = " ".join(line.removeprefix("-- ") for line in header.splitlines())
            found.append((f"{file.name.removesuffix('.sql')}.{name}", said, re.sub(r"--[^\n]*", "", body)))
    return found


def told(header: str, word: str) -> set[str]:
    """Return the names that a header lists after a word: "Reads jobs, workers."."""
    match = re.search(rf"(?:^|\. ){word} ((?:\w+, )*\w+)\.(?:$| )", header)
    return set(match[1].split(", ")) if match else set()


@pytest.mark.parametrize(("name", "header", "body"), [pytest.param(*each, id=each[0]) for each in statements()])
def test_a_statement_says_what_it_does_and_what_it_touches(name: str, header: str, body: str) -> None:
    assert re.match(r"[A-Z][a-z]+s ", header), f"{name} begins with a verb in the third person"
    assert header.endswith("."), name
    called = bool(re.search(r"\boutbox\.\w+\(", body))  # its function reads and writes as well
    written = {table or sequence for table, sequence in WRITES.findall(body)}
    read = set(READS.findall(body)) - written - ({"messages", "relays"} if "LOCK TABLE" in body else set())
    assert told(header, "Writes") == written or (called and told(header, "Writes") >= written), name
    assert told(header, "Reads") == read or (called and told(header, "Reads") >= read), name
    if LOCKS.search(body):
        assert re.search(r"\. Locks \w", header), f"{name} says what it locks"


def test_every_index_that_a_header_names_exists() -> None:
    schema = files("outbox.sql").joinpath("schema.sql").read_text(encoding="utf-8")
    there = {index or key for index, key in INDEXES.findall(schema)}
    named = {index for _, header, _ in statements() for index in told(header, "Uses")}
    assert len(named) > 40
    assert named - there == set()


def test_the_copies_of_the_fence_are_the_same() -> None:
    """The statements that need it lock differently, so it stands in each."""
    fence = re.compile(
        r"WHERE j\.workflow_id = (\w+)\.id\s+AND j\.id = \1\.job AND (j\.owner .*?) AND j\.attempt = \1\.attempt"
    )
    ours = [(name, body) for name, _, body in statements() if name.startswith(("claim.", "commit."))]
    found = {name: match[2] for name, body in ours if (match := fence.search(body))}
    assert set(found) == {
        "claim.jobs_start_if_held", "commit.jobs_finish_if_held", "commit.jobs_fail_if_held", "commit.jobs_give_back",
        "commit.jobs_put_back", "commit.jobs_held",
    }  # fmt: skip
    assert set(found.values()) == {"j.owner IS NOT DISTINCT FROM %(worker)s::integer"}
