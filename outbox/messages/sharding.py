"""Which of several databases a workflow lives in, for those who outgrow one."""

from __future__ import annotations

import zlib

from ..errors import InvalidInput
from ..texts import shown


def shard(entity_id: str, of: int) -> int:
    """Return the number, from 0 to `of` - 1, of the database that an entity belongs to.

    The same for ever and on every machine: CRC-32 of its UTF-8, modulo `of`. `outbox relay --to … --shard 2/4` hands on
    those of number 2.
    """
    if isinstance(of, bool) or not isinstance(of, int) or of < 1:
        raise InvalidInput("of", f"{shown(of)} is not a number of databases")
    return zlib.crc32(entity_id.encode("utf-8", "replace")) % of
