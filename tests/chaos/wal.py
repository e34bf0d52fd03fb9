"""Reads the write-ahead log as a witness, by Postgres' own logical decoding (pgoutput, protocol 1), as bytes.

https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

import struct
from typing import Any, Literal

import psycopg

from .history import Transaction, Write

SLOT = PUBLICATION = "chaos"
SINCE_1970 = 946_684_800  # Postgres counts from 2000


class Decoder:
    """Collects committed transactions. After a crash, the server repeats some of them: each counts once."""

    def __init__(self, admin_dsn: str) -> None:
        self._dsn = admin_dsn
        self._tables: dict[int, tuple[str, list[tuple[str, bool]]]] = {}
        self._open: tuple[int, int, float] | None = None
        self._writes: list[Write] = []
        self._last = 0
        self.transactions: list[Transaction] = []

    def make_slot(self, *, failover: bool) -> None:
        """Starts the record: from here on, everything is seen, with `failover` also on the standby that is promoted."""
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            publish = f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES WITH (publish_via_partition_root = true)"
            conn.execute(publish.encode())
            # Published deletes need a key, and this table has none: without this, counts could not be folded.
            conn.execute("ALTER TABLE outbox.status_counts REPLICA IDENTITY FULL")
            kind = ", false, false, true" if failover else ""  # Postgres 15 and 16 have no such parameter
            conn.execute(f"SELECT pg_create_logical_replication_slot(%s, 'pgoutput'{kind})".encode(), (SLOT,))

    def read(self, conn: psycopg.Connection[Any]) -> int:
        """Reads the transactions committed since; returns how many."""
        before = len(self.transactions)
        # Peeks first and advances later: what is taken in one step is lost if the server dies while it answers.
        rows = conn.execute(
            "SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes(%s, NULL, 20000, "
            "'proto_version', '1', 'publication_names', %s)",
            (SLOT, PUBLICATION),
            binary=True,
        ).fetchall()
        for _, data in rows:
            self._take(memoryview(data))
        if rows:
            conn.execute("SELECT pg_replication_slot_advance(%s, %s::pg_lsn)", (SLOT, rows[-1][0]))
        return len(self.transactions) - before

    def _take(self, data: memoryview) -> None:
        kind = chr(data[0])
        if kind == "B":
            lsn, at, xid = struct.unpack_from("!QqI", data, 1)
            self._open, self._writes = (xid, lsn, at / 1e6 + SINCE_1970), []
        elif kind == "C":
            assert self._open is not None
            xid, lsn, at = self._open
            if lsn > self._last:
                self._last = lsn
                if self._writes:
                    self.transactions.append(Transaction(xid, lsn, at, tuple(self._writes)))
            self._open = None
        elif kind == "R":
            self._relation(data)
        elif kind in "IUD":
            self._write(kind, data)

    def _relation(self, data: memoryview) -> None:
        (number,) = struct.unpack_from("!I", data, 1)
        _, at = _text(data, 5)
        name, at = _text(data, at)
        (count,) = struct.unpack_from("!H", data, at + 1)
        at += 3
        columns = []
        for _ in range(count):
            is_key = bool(data[at] & 1)
            column, at = _text(data, at + 1)
            columns.append((column, is_key))
            at += 8
        self._tables[number] = name, columns

    def _write(self, kind: str, data: memoryview) -> None:
        (number,) = struct.unpack_from("!I", data, 1)
        name, columns = self._tables[number]
        at, row = 5, {}
        while at < len(data):
            part = chr(data[at])
            row, at = self._row(columns, data, at + 1, part == "K")
        kinds: dict[str, Literal["insert", "update", "delete"]] = {"I": "insert", "U": "update", "D": "delete"}
        self._writes.append(Write(name, kinds[kind], row))

    def _row(
        self, columns: list[tuple[str, bool]], data: memoryview, at: int, key_only: bool
    ) -> tuple[dict[str, str | None], int]:
        (count,) = struct.unpack_from("!H", data, at)
        at += 2
        row: dict[str, str | None] = {}
        for column, is_key in columns[:count]:
            kind = chr(data[at])
            at += 1
            if kind == "t":
                (size,) = struct.unpack_from("!I", data, at)
                row[column] = bytes(data[at + 4 : at + 4 + size]).decode()
                at += 4 + size
            elif kind == "n" and (is_key or not key_only):
                row[column] = None
        return row, at


def _text(data: memoryview, at: int) -> tuple[str, int]:
    end = at
    while data[end]:
        end += 1
    return bytes(data[at:end]).decode(), end + 1
