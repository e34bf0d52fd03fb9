"""Reads posts from a file of JSON lines, CSV or TSV, or from an RSS or Atom feed."""

import csv
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import IO, Protocol

from .pipeline import Post

LONGEST_ID = 400  # characters; the demo prefixes the name of its run, and the engine allows 512
FIELD_LIMIT = 10_000_000  # characters; the csv module's own limit, 131,072, is less than some blog posts


class SourceError(Exception):
    """The posts can't be read. The message names the file and the line, and says what to do."""


class Source(Protocol):
    """Posts, each with an id. Can be iterated more than once."""

    def __iter__(self) -> Iterator[tuple[str, Post]]: ...


@dataclass(frozen=True)
class FileSource:
    """Reads posts line by line, so a file may have any size. Skips records without text."""

    path: Path
    column: str = "content"
    id_column: str | None = None
    limit: int | None = None

    def __iter__(self) -> Iterator[tuple[str, Post]]:
        records = self.records()
        found = (post for line, record in records if (post := self.post(line, record)) is not None)
        return islice(found, self.limit)

    def records(self) -> Iterator[tuple[int, dict[str, object]]]:
        """Yields every record with the number of its line."""
        read = {".jsonl": json_lines, ".ndjson": json_lines, ".json": json_lines, ".csv": rows, ".tsv": rows}
        suffix = self.path.suffix.lower()
        if suffix not in read:
            raise SourceError(f"{self.path}: the name must end in one of {', '.join(read)}")
        line = 0
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                for line, record in read[suffix](file, "\t" if suffix == ".tsv" else ","):
                    yield line, record
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.path}, after line {line}: not UTF-8 ({error.reason})") from error
        except (ValueError, csv.Error) as error:
            raise SourceError(f"{self.path}, {error}") from error

    def post(self, line: int, record: dict[str, object]) -> tuple[str, Post] | None:
        content = self.text(line, record, self.column)
        if not content.strip():
            return None
        id_column = self.id_column or ("id" if "id" in record else None)
        entity = self.text(line, record, id_column).strip() if id_column else ""
        author = str(record.get("author") or "unknown")
        return checked(f"{self.path}, line {line}", entity or f"line-{line}", author, content)

    def text(self, line: int, record: dict[str, object], column: str) -> str:
        if column not in record:
            there = ", ".join(record) or "none"
            raise SourceError(f"{self.path}, line {line}: no column {column!r}; the columns are: {there}")
        value = record[column]
        if isinstance(value, bool | dict | list):
            raise SourceError(f"{self.path}, line {line}: {column!r} is not text: {json.dumps(value):.40}")
        return "" if value is None else str(value)


@dataclass
class FeedSource:
    """Reads the entries of an RSS or Atom feed, from a URL or a file, once."""

    url: str
    limit: int | None = None

    def __iter__(self) -> Iterator[tuple[str, Post]]:
        return iter(self.entries)

    @cached_property
    def entries(self) -> list[tuple[str, Post]]:
        import feedparser

        feed = feedparser.parse(self.fetch())
        if not feed.entries:
            reason = feed.get("bozo_exception") or "it has no entries"
            raise SourceError(f"{self.url}: not a feed with posts ({reason})")
        found = []
        for number, entry in enumerate(feed.entries[: self.limit], start=1):
            bodies = [body.value for body in entry.get("content", [])] or [entry.get("summary", "")]
            content = "\n".join(filter(None, map(plain, [entry.get("title", ""), *bodies])))
            if content:
                entity = entry.get("id") or entry.get("link") or f"entry-{number}"
                author = entry.get("author") or "unknown"
                found.append(checked(f"{self.url}, entry {number}", entity, author, content))
        return found

    def fetch(self) -> bytes:
        import httpx

        try:
            if not self.url.startswith(("http://", "https://")):
                return Path(self.url).read_bytes()
            return httpx.get(self.url, follow_redirects=True, timeout=15).raise_for_status().content
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceError(f"{self.url}: {error}") from error


def bundled(limit: int | None = None) -> Source:
    """Returns the posts written for the demo."""
    return FileSource(Path(str(files(__package__) / "posts.jsonl")), limit=limit)


def json_lines(file: IO[str], _: str) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(record, dict):
            raise ValueError(f"line {number}: not a JSON object: {line.strip():.40}")
        yield number, record


def rows(file: IO[str], delimiter: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Yields the records of CSV or TSV. The first line names the columns. In TSV, a quote is a plain character."""
    csv.field_size_limit(FIELD_LIMIT)
    # Without strict, a quote that is never closed swallows the rest of the file.
    if delimiter == "\t":
        reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
        if row is None:
            return
        if not row:
            continue
        if names is None:
            names = row
        elif len(row) != len(names):
            raise ValueError(f"line {reader.line_num}: {len(row)} fields, but the header names {len(names)}")
        else:
            yield reader.line_num, dict(zip(names, row, strict=True))


def checked(place: str, entity: str, author: str, content: str) -> tuple[str, Post]:
    """Returns the id and the post. Raises SourceError, which names the place, if the database can't store them."""
    if len(entity) > LONGEST_ID:
        raise SourceError(f"{place}: an id of {len(entity)} characters; {LONGEST_ID} is the limit")
    for text in (entity, author, content):
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise SourceError(f"{place}: has a NUL character or a lone surrogate: {ascii(text)[:40]}")
    return entity, Post(author=author, content=content)


def plain(markup: str) -> str:
    """Returns the text of a piece of HTML."""
    return html.unescape(re.sub(r"<[^>]*>", " ", markup)).strip()
