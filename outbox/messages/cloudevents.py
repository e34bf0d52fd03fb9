"""Describes a message as a CloudEvent, for any target. How its attributes are written is the target's own."""

from __future__ import annotations

import json
from typing import Any

from .target import Outgoing


def attributes(message: Outgoing, source: str) -> dict[str, str]:
    """Returns the attributes of CloudEvents 1.0, with `subject` only if the message has a key."""
    found = {
        "specversion": "1.0",
        "id": message.message_id,
        "source": source,
        "type": message.topic,
        "time": message.created_at.isoformat(),
        "sequence": f"{message.id:020}",
    }
    return found if message.key is None else {**found, "subject": message.key}


def own_headers(message: Outgoing) -> dict[str, Any]:
    """Returns the headers that a message was given. Raises ValueError if they are none.

    A target must not let them pass for its own attributes, as they might forge an id.
    """
    try:
        headers = json.loads(message.headers) if message.headers else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its headers can't be read: {error}") from None
    if not isinstance(headers, dict):
        raise ValueError("its headers are not an object")
    return headers
