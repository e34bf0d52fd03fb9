"""Finds the classes whose objects a graph's state may contain: those that its schemas name, and those of LangGraph."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator
from typing import Any

from langchain_core import messages
from langchain_core.documents import Document
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, Overwrite, TimeoutPolicy

from ...errors import DefinitionError
from ...texts import shown
from .encoding import is_stored

OF_LANGGRAPH: tuple[type, ...] = (Command, Document, Overwrite, TimeoutPolicy, _DeltaSnapshot)
"""What LangGraph writes itself, besides interrupts and sends."""


def known_to(graph: Pregel[Any, Any, Any, Any], further: Iterable[type] = ()) -> list[type]:
    """Returns the classes that the state of a graph and of its subgraphs may contain.

    Raises DefinitionError if one of `further` is no class that can be stored.
    """
    found: dict[type, None] = dict.fromkeys((*_message_classes(), *OF_LANGGRAPH))
    for cls in further:
        if not (isinstance(cls, type) and is_stored(cls)):
            raise DefinitionError(
                f"types=: {shown(cls)} is neither a pydantic model, a dataclass, an enum nor a named tuple"
            )
    waiting = [*further, *_hints_of(graph)]
    seen: list[Any] = []
    while waiting:
        hint = waiting.pop()
        if any(hint is each for each in seen):
            continue
        seen.append(hint)
        if isinstance(hint, type) and is_stored(hint):
            found[hint] = None
        waiting += _inside(hint)
    return list(found)


def _message_classes() -> Iterator[type]:
    for name in messages.__all__:
        cls = getattr(messages, name)
        if isinstance(cls, type) and issubclass(cls, messages.BaseMessage):
            yield cls


def _hints_of(graph: Pregel[Any, Any, Any, Any]) -> Iterator[Any]:
    for each in with_subgraphs(graph):
        for channel in each.channels.values():
            for name in ("ValueType", "UpdateType"):
                yield getattr(channel, name, None)
        if isinstance(each, CompiledStateGraph):
            yield from each.builder.schemas
            yield from (node.input_schema for node in each.builder.nodes.values())


def with_subgraphs(graph: Pregel[Any, Any, Any, Any]) -> list[Pregel[Any, Any, Any, Any]]:
    """Returns a graph and those in it, as far as they run in this process."""
    return [graph, *(each for _, each in graph.get_subgraphs(recurse=True) if isinstance(each, Pregel))]


def _inside(hint: Any) -> Iterator[Any]:
    """Yields the types that a type is made of."""
    yield from typing.get_args(hint)
    yield typing.get_origin(hint)
    yield getattr(hint, "__value__", None)  # of `type X = …`
    yield getattr(hint, "__bound__", None)  # of a TypeVar
    if isinstance(hint, type) and (is_stored(hint) or typing.is_typeddict(hint) or hasattr(hint, "__annotations__")):
        try:
            yield from typing.get_type_hints(hint).values()
        except Exception:  # names that aren't there at run time: the fields are known by what they contain, or refused
            return
