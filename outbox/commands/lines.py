"""Reads workflows from a stream of JSON lines, `{"entity_id": …, "metadata": {…}}`."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from .. import documents, texts
from ..definition.data import VERSION, version_problem
from ..definition.pipeline import Pipeline
from ..errors import BrokenLine, InvalidInput

KEYS = {"entity_id", "metadata"}
"""The keys that a line may have."""

REPORTED = 20
"""How many broken lines are reported with their reasons. The rest is only counted."""


def bounded(stream: IO[bytes]) -> Iterator[bytes]:
    """Yields the lines of a stream. A line that is too long is cut a byte above the limit, and its rest is skipped."""
    enough = documents.MAX_BYTES + 1
    while line := stream.readline(enough):
        yield line
        torn = len(line) == enough and not line.endswith(b"\n")
        while torn and (rest := stream.readline(65_536)):
            torn = not rest.endswith(b"\n")


@dataclass(slots=True)
class Lines:
    """Converts lines to (entity_id, JSON text), validated by the pipeline's model if there is one.

    A broken line raises BrokenLine. With `skip_bad`, it is counted instead, and `reasons` has the reasons of the first
    ones. `on_bytes` is called with the number of bytes read since its last call.
    """

    pipeline: Pipeline[Any] | None
    skip_bad: bool = False
    on_bytes: Callable[[int], None] = lambda count: None
    read: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def items(self, lines: Iterable[bytes]) -> Iterator[tuple[str, str]]:
        unreported = 0
        for number, line in enumerate(lines, 1):
            unreported += len(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)  # some editors and spreadsheets write one
            if number % 1_000 == 0:
                self.on_bytes(unreported)
                unreported = 0
            if not line.strip():
                continue
            try:
                item = self._item(line)
            except (InvalidInput, ValueError, RecursionError) as error:
                reason = f"line {number}: {texts.clean(str(error), 500)}"
                if not self.skip_bad:
                    raise BrokenLine(f"{reason}. Nothing was submitted; --skip-bad skips broken lines") from None
                self.skipped += 1
                if self.skipped <= REPORTED:
                    self.reasons.append(reason)
                continue
            self.read += 1
            yield item
        self.on_bytes(unreported)

    def _item(self, line: bytes) -> tuple[str, str]:
        if len(line) > documents.MAX_BYTES:
            raise InvalidInput("line", f"is too long; the limit is {documents.MAX_BYTES:,} bytes")
        try:
            record = _decode(line.decode())
        except UnicodeDecodeError:
            raise InvalidInput("line", "is not UTF-8") from None
        except json.JSONDecodeError as error:
            raise InvalidInput("line", f"is not JSON ({error.msg} at character {error.pos + 1})") from None
        if not isinstance(record, dict):
            raise InvalidInput("line", 'is not an object like {"entity_id": "…", "metadata": {…}}')
        if unknown := record.keys() - KEYS:
            raise InvalidInput("line", f"has unknown keys: {', '.join(sorted(map(repr, unknown)))}")
        if "entity_id" not in record:
            raise InvalidInput("entity_id", "is missing")
        entity = texts.check_text(record["entity_id"], "entity_id", documents.MAX_ENTITY_ID)
        metadata = record.get("metadata", {})
        if not isinstance(metadata, dict):
            raise InvalidInput("metadata", f"must be an object, not {type(metadata).__name__}")
        if VERSION in metadata and (problem := version_problem(metadata[VERSION])):
            raise InvalidInput("metadata", f"{VERSION} {problem}")
        if self.pipeline is not None:
            return entity, self.pipeline.dump_readable(metadata)
        return entity, documents.dump_any(metadata, "metadata")


_decode = documents.decoder("line")
