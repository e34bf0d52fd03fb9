"""Maps entities to databases, for applications that outgrow one database."""

from __future__ import annotations

import zlib

from ..documents import EntityId, entity
from ..errors import InvalidInput
from ..texts import shown


def shard(entity_id: EntityId, of: int) -> int:
    """Returns the number, from 0 to `of` - 1, of the database that an entity belongs to.

    It is the CRC-32 of the id in UTF-8, modulo `of`, on every machine and in every release. `outbox relay --to …
    --shard 2/4` delivers the messages of entities with number 2.
    """
    if isinstance(of, bool) or not isinstance(of, int) or of < 1:
        raise InvalidInput("of", f"{shown(of)} is not a number of databases")
    return zlib.crc32((entity_id if isinstance(entity_id, str) else entity(entity_id)).encode("utf-8", "replace")) % of
