"""A target of a user's own: appends each message to a file, as a CloudEvent in JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from outbox.messages.cloudevents import attributes
from outbox.messages.target import Outgoing, Parked, Target, Unsent


class Lines(Target):
    def __init__(self) -> None:
        super().__init__("lines of a file")

    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: Mapping[str, bool]) -> Parked:
        parked = {}
        with open(os.environ["LINES"], "a") as file:  # noqa: ASYNC230
            for message in messages:
                if message.topic == "bad":
                    parked[message.id] = Unsent(message, "it is bad")
                else:
                    event = {**attributes(message, "/test"), "data": json.loads(message.payload or "null")}
                    file.write(json.dumps(event) + "\n")
        return parked

    async def close(self) -> None: ...


number = 3
