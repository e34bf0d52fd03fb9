"""Defines the checkpointer of a graph that runs in a handler.

It has the graph's state in memory, as JSON, and a journal of the operations that have made it. The operations are JSON,
too: what is replayed gives the same state. A value of a channel that is a list is written as what was added to the one
before. So a conversation is stored once, and not again with each of its turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.types import INTERRUPT

from ...errors import HandlerError
from .encoding import Encoding, Json, Unstorable, dumps
from .errors import StateRefused
from .journal import fitting

T = TypeVar("T")

Place = tuple[str, str]
"""A thread and a namespace in it: "" for the graph itself, others for its subgraphs."""


class Keeps(Protocol):
    """What stores the operations."""

    async def append(self, operation: Json, where: str) -> None: ...


@dataclass(slots=True)
class Stored:
    """A checkpoint as JSON: `values` are those of its channels."""

    checkpoint: Json
    metadata: Json
    parent: str | None
    values: dict[str, Json]


@dataclass(slots=True)
class Written:
    """What tasks have written that isn't in a checkpoint yet, by the task and the number of the write."""

    writes: dict[tuple[str, int], tuple[str, str, Json]] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)


class Saver(BaseCheckpointSaver[int]):
    """Keeps checkpoints of a graph for one handler. Sync methods are for threads, such as those of plain nodes."""

    def __init__(self, encoding: Encoding, journal: Keeps) -> None:
        super().__init__()
        self._encoding = encoding
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._refused: StateRefused | None = None
        self._stored: dict[Place, dict[str, Stored]] = {}
        self._written: dict[tuple[str, str, str], Written] = {}

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Stores a checkpoint. Raises StateRefused, which names the channel, if a value can't be stored."""
        thread, ns = _place(config)
        parent = get_checkpoint_id(config)
        before = self._values_of((thread, ns), parent)
        values, kept = {}, []
        for channel, value in checkpoint["channel_values"].items():
            if channel in before and channel not in new_versions:
                kept.append(channel)
            else:
                values[channel] = self._change(before.get(channel), value, f"channel {channel}")
        plain = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        operation = {
            "put": [thread, ns, parent],
            "checkpoint": self._encode(plain, "checkpoint"),
            "metadata": self._encode(get_checkpoint_metadata(config, metadata), "metadata"),
            "values": values,
            "kept": kept,
        }
        self.apply(operation)
        await self._journal.append(operation, f"channel {', '.join(values)}")
        return _config(thread, ns, checkpoint["id"])

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Stores what a task has written. Raises StateRefused, which names its node, if a value can't be stored."""
        thread, ns = _place(config)
        node = _node(task_path)
        trees = []
        for number, (channel, value) in enumerate(writes):
            where = f"{node}channel {channel}" if channel != INTERRUPT else f"{node}interrupt"
            tree = self._encode(value, where)
            self._check(tree, where)
            trees.append([WRITES_IDX_MAP.get(channel, number), channel, tree])
        operation = {"write": [thread, ns, get_checkpoint_id(config)], "task": [task_id, task_path], "values": trees}
        self.apply(operation)
        await self._journal.append(operation, node.removesuffix(", ") or "what a task has written")

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Returns a checkpoint, or the last one."""
        thread, ns = _place(config)
        there = self._stored.get((thread, ns), {})
        id_ = get_checkpoint_id(config) or max(there, default="")
        return self._tuple(thread, ns, id_) if id_ in there else None

    async def alist(
        self, config: RunnableConfig | None, *, filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None, limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:  # fmt: skip
        """Yields checkpoints, the last one first."""
        for found in self._list(config, filter, before, limit):
            yield found

    async def adelete_thread(self, thread_id: str) -> None:
        """Deletes all checkpoints of a thread."""
        operation = {"delete": thread_id}
        self.apply(operation)
        await self._journal.append(operation, f"thread {thread_id}")

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Stores a checkpoint. See `aput`."""
        return self._from_thread(self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Stores what a task has written. See `aput_writes`."""
        self._from_thread(self.aput_writes(config, writes, task_id, task_path))

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Returns a checkpoint, or the last one."""
        return self._from_thread(self.aget_tuple(config))

    def list(
        self, config: RunnableConfig | None, *, filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None, limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:  # fmt: skip
        """Yields checkpoints, the last one first."""

        async def listed() -> Iterable[CheckpointTuple]:
            return tuple(self._list(config, filter, before, limit))

        yield from self._from_thread(listed())

    def delete_thread(self, thread_id: str) -> None:
        """Deletes all checkpoints of a thread."""
        self._from_thread(self.adelete_thread(thread_id))

    def apply(self, operation: Json) -> None:
        """Changes the state in memory as an operation says."""
        if "put" in operation:
            thread, ns, parent = operation["put"]
            before = self._values_of((thread, ns), parent)
            values = {channel: _changed(before.get(channel), change) for channel, change in operation["values"].items()}
            values.update((channel, before[channel]) for channel in operation["kept"])
            checkpoint = operation["checkpoint"]
            stored = Stored(checkpoint, operation["metadata"], parent, values)
            self._stored.setdefault((thread, ns), {})[checkpoint["id"]] = stored
        elif "write" in operation:
            thread, ns, id_ = operation["write"]
            task, path = operation["task"]
            self._write(self._written.setdefault((thread, ns, id_), Written()), task, path, operation["values"])
        else:
            thread = operation["delete"]
            self._stored = {place: stored for place, stored in self._stored.items() if place[0] != thread}
            self._written = {at: written for at, written in self._written.items() if at[0] != thread}

    def answered(self) -> set[str]:
        """Returns the ids of interrupts that were answered, though a graph above them may not say so yet."""
        return {id_ for written in self._written.values() for id_ in written.answered}

    def snapshot(self, thread: str, *, whole: bool) -> str:
        """Returns the operations, as JSON text, that make the state of a thread, with the last checkpoints only.

        With `whole`, also with all those before: channels that are stored as changes need them.
        """
        operations = []
        alive: set[str] = set()
        for (of, ns), stored in sorted(self._stored.items()):  # a graph before its subgraphs
            if of != thread or not (whole or _is_alive(ns, alive)):
                continue
            last = max(stored)
            for id_ in sorted(stored) if whole else [last]:
                written = self._written.get((thread, ns, id_), Written())
                operations += [_as_put(thread, ns, stored[id_]), *_as_writes(thread, ns, id_, written)]
                alive |= {task for task, _ in written.writes}
        return fitting(dumps(operations), "the state of the graph")

    def _write(self, written: Written, task: str, path: str, trees: Iterable[Json]) -> None:
        for number, channel, tree in trees:
            at = task, number
            if channel == INTERRUPT and at in written.writes:
                written.answered |= self._ids(written.writes[at][2]) - self._ids(tree)
            if number < 0 or at not in written.writes:  # only what says how the task is may change
                written.writes[at] = path, channel, tree

    def _ids(self, interrupts: Json) -> set[str]:
        found = self._encoding.decode(interrupts)
        return {each.id for each in found} if isinstance(found, Sequence) else {found.id}

    def _values_of(self, place: Place, id_: str | None) -> dict[str, Json]:
        stored = self._stored.get(place, {}).get(id_ or "")
        return {} if stored is None else stored.values

    def _tuple(self, thread: str, ns: str, id_: str) -> CheckpointTuple:
        stored, decode = self._stored[thread, ns][id_], self._encoding.decode
        values = {channel: decode(tree) for channel, tree in stored.values.items()}
        written = self._written.get((thread, ns, id_), Written())
        return CheckpointTuple(
            _config(thread, ns, id_),
            cast("Checkpoint", {**decode(stored.checkpoint), "channel_values": values}),
            decode(stored.metadata),
            None if stored.parent is None else _config(thread, ns, stored.parent),
            [(task, channel, decode(tree)) for task, _, channel, tree in _in_order(written)],
        )

    def _list(
        self, config: RunnableConfig | None, filter: dict[str, Any] | None, before: RunnableConfig | None,
        limit: int | None,
    ) -> Iterator[CheckpointTuple]:  # fmt: skip
        given = {} if config is None else config["configurable"]
        until = None if before is None else get_checkpoint_id(before)
        left = limit
        for (thread, ns), stored in self._stored.items():
            if thread != given.get("thread_id", thread) or ns != given.get("checkpoint_ns", ns):
                continue
            for id_ in sorted(stored, reverse=True):
                if id_ != (given.get("checkpoint_id") or id_) or (until is not None and id_ >= until):
                    continue
                metadata = self._encoding.decode(stored[id_].metadata)
                if any(metadata.get(key) != value for key, value in (filter or {}).items()):
                    continue
                if left is not None:
                    if left <= 0:
                        return
                    left -= 1
                yield self._tuple(thread, ns, id_)

    def _change(self, before: Json, value: Any, where: str) -> Json:
        tree = self._encode(value, where)
        same = _same(before, tree)
        self._check(tree[same:] if same else tree, where)
        return {"same": same, "add": tree[same:]} if same else {"all": tree}

    def _encode(self, value: Any, where: str) -> Json:
        try:
            return self._encoding.encode(value)
        except Unstorable as error:
            raise self._refuse(where, error) from error

    def _check(self, tree: Json, where: str) -> None:
        try:
            self._encoding.check(tree)
        except Unstorable as error:
            raise self._refuse(where, error) from error

    def _refuse(self, where: str, error: Unstorable) -> StateRefused:
        """Returns the first refusal: the node's own, which its channel repeats."""
        self._refused = self._refused or StateRefused(where, str(error))
        return self._refused

    def _from_thread(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            inside = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            inside = False
        if inside:
            coroutine.close()
            raise HandlerError("a graph can't be run by invoke() in the event loop: await its ainvoke() there")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _same(before: Json, tree: Json) -> int:
    """Returns how many members at the beginning of a list are those of the list before."""
    if not isinstance(before, list) or not isinstance(tree, list):
        return 0
    pairs = enumerate(zip(before, tree, strict=False))
    # Python takes 1, 1.0 and True for the same; their texts differ.
    other = (n for n, (old, new) in pairs if old != new or dumps(old) != dumps(new))
    return next(other, min(len(before), len(tree)))


def _changed(before: Json, change: Json) -> Json:
    return [*before[: change["same"]], *change["add"]] if "same" in change else change["all"]


def _in_order(written: Written) -> Iterator[tuple[str, str, str, Json]]:
    """Yields task, path, channel and value in the order in which the graph applies them."""
    for (task, _), (path, channel, tree) in sorted(
        written.writes.items(), key=lambda each: writes_sort_key(each[1][0], *each[0])
    ):
        yield task, path, channel, tree


def _as_put(thread: str, ns: str, stored: Stored) -> Json:
    # What is different each time comes last: the parts of the blob before it are those of the turn before.
    return {
        "values": {channel: {"all": tree} for channel, tree in stored.values.items()}, "kept": [],
        "put": [thread, ns, stored.parent], "metadata": stored.metadata, "checkpoint": stored.checkpoint,
    }  # fmt: skip


def _as_writes(thread: str, ns: str, id_: str, written: Written) -> Iterator[Json]:
    tasks = dict.fromkeys((task, path) for (task, _), (path, _, _) in written.writes.items())
    for task, path in tasks:
        mine = sorted((number, each) for (of, number), each in written.writes.items() if of == task)
        trees = [[number, channel, tree] for number, (_, channel, tree) in mine]
        yield {"write": [thread, ns, id_], "task": [task, path], "values": trees}


def _is_alive(ns: str, tasks: set[str]) -> bool:
    """Returns whether a subgraph belongs to tasks that haven't ended, or to no task and so to its graph."""
    parts = [part.partition(":")[2] for part in ns.split("|")]
    return all(not task or task in tasks for task in parts)


def _node(path: str) -> str:
    """Returns the name of a task's node with a comma, from its path such as `~__pregel_pull, write`."""
    name = path.rpartition(", ")[2]
    return f"node {name}, " if path.startswith("~__pregel_pull") else ""


def _place(config: RunnableConfig) -> Place:
    given = config["configurable"]
    return str(given["thread_id"]), given.get("checkpoint_ns", "")


def _config(thread: str, ns: str, id_: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": id_}}
