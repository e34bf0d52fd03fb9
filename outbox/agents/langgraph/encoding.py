"""Writes the values of a graph's state as JSON, and reads them back.

What JSON doesn't have is an object with the key "$", which names its type. No name is ever looked up outside of the
classes that are known beforehand, so what stands in the database can't choose what is imported or called.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from langgraph.types import Interrupt, Send
from pydantic import BaseModel, RootModel

from ... import texts
from ...definition.reasons import describe
from ...errors import AgentChanged, DefinitionError
from .errors import NodeError

Json = Any
"""What `json.loads` returns."""

TAG = "$"
"""The key of an object that stands for a value that JSON doesn't have, or for a dict that has this key itself."""

_PLAIN = (bool, int, float, str)


class Unstorable(Exception):
    """A value can't be written, or not be read back as it was. Its caller knows where the value is."""


class Encoding:
    """Writes and reads values. `known` are the classes, besides those of Python, whose objects they may contain."""

    def __init__(self, known: Iterable[type]) -> None:
        self._known: dict[str, type] = {}
        for cls in known:
            if self._known.setdefault(name_of(cls), cls) is not cls:
                raise DefinitionError(f"two classes of the graph's state have the name {name_of(cls)}")

    def encode(self, value: Any) -> Json:
        """Returns a value as JSON. Raises Unstorable, which says which part of it has no form there."""
        try:
            return self._encode(value)
        except RecursionError:
            raise Unstorable("it is nested too deeply, or contains itself") from None

    def decode(self, tree: Json) -> Any:
        """Returns the value that was written. Raises AgentChanged if its class is not there, or is another one now."""
        if isinstance(tree, list):
            return [self.decode(each) for each in tree]
        if not isinstance(tree, dict):
            return tree
        if TAG not in tree:
            return {key: self.decode(each) for key, each in tree.items()}
        tag, content = tree[TAG], tree["value"]
        if tag == "dict":
            return {self.decode(key): self.decode(each) for key, each in content}
        if tag in _READ:
            return _READ[tag](self.decode(content))
        return self._object(tag, content, tree.get("set"))

    def check(self, tree: Json) -> None:
        """Raises Unstorable unless a value comes back as it was written."""
        try:
            same = dumps(self.encode(self.decode(tree))) == dumps(tree)
        except Exception as error:
            raise Unstorable(f"it can't be read back: {describe(error)}") from error
        if not same:
            raise Unstorable("it doesn't come back as it was")

    def _encode(self, value: Any) -> Json:
        cls = type(value)
        if value is None or cls in _PLAIN:
            return value
        if cls is list:
            return [self._encode(each) for each in value]
        if cls is dict:
            if all(type(key) is str for key in value) and TAG not in value:
                return {key: self._encode(each) for key, each in value.items()}
            return {TAG: "dict", "value": [[self._encode(key), self._encode(each)] for key, each in value.items()]}
        if cls in _WRITE:
            tag, write = _WRITE[cls]
            return {TAG: tag, "value": self._encode(write(value))}
        if isinstance(value, ZoneInfo):
            return {TAG: "zone", "value": value.key}
        if isinstance(value, BaseException) and self._known.get(name_of(cls)) is not cls:
            return {TAG: "error", "value": _error(value)}
        return self._written(value)

    def _written(self, value: Any) -> Json:
        cls, name = type(value), name_of(type(value))
        if not is_stored(cls):
            raise Unstorable(
                f"a {name} is no JSON, and neither a pydantic model, a dataclass, an enum nor a named tuple"
            )
        if self._known.get(name) is not cls:
            raise Unstorable(f"no schema of the graph names the class {name}: name it in types=")
        if isinstance(value, BaseModel):
            fields = {field: getattr(value, field) for field in cls.model_fields}
            tree = {TAG: name, "value": self._encode({**fields, **(value.model_extra or {})})}
            given = value.model_fields_set
            return tree if given >= fields.keys() else {**tree, "set": sorted(given)}
        if isinstance(value, Enum):
            return {TAG: name, "value": self._encode(value.value)}
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {TAG: name, "value": self._encode(fields)}
        return {TAG: name, "value": [self._encode(each) for each in value]}

    def _object(self, name: str, content: Json, given: list[str] | None) -> Any:
        cls: Any = self._known.get(name)
        if cls is None:
            raise AgentChanged(f"the stored state has a {name}, which the graph doesn't know any more")
        try:
            return _made(cls, self.decode(content), given)
        except AgentChanged:
            raise
        except Exception as error:
            raise AgentChanged(f"the stored state has a {name} of another form: {describe(error)}") from error


def is_stored(cls: type) -> bool:
    """Returns whether objects of a class can be written, if it is known."""
    named_tuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    return issubclass(cls, BaseModel | Enum) or dataclasses.is_dataclass(cls) or named_tuple


def name_of(cls: type) -> str:
    """Returns the name by which the state names a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def dumps(tree: Json) -> str:
    """Returns JSON text. Objects keep the order of their keys."""
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 doesn't have
        text = json.dumps(tree, separators=(",", ":"))
    return text


def _made(cls: Any, content: Any, given: list[str] | None) -> Any:
    if issubclass(cls, RootModel):
        return cls(content["root"])
    if issubclass(cls, BaseModel):
        model = cls.model_validate(content, by_name=True, by_alias=False)
        if given is not None:
            model.model_fields_set.intersection_update(given)
        return model
    if issubclass(cls, Enum):
        return cls(content)
    if issubclass(cls, tuple):
        return cls(*content)
    own = {field.name: field.init for field in dataclasses.fields(cls)}
    made = cls(**{name: value for name, value in content.items() if own.get(name, True)})
    for name, value in content.items():
        if not own[name]:
            object.__setattr__(made, name, value)
    return made


def _error(error: BaseException) -> list[str]:
    if isinstance(error, NodeError):
        return [error.kind, error.text]
    return [type(error).__qualname__, texts.clean(str(error))]


def _moment(value: datetime | time) -> list[Any]:
    zone = value.tzinfo if isinstance(value.tzinfo, ZoneInfo) else None
    plain = value.replace(tzinfo=None) if zone else value
    return [plain.isoformat(), None if zone is None else zone.key, value.fold]


def _moment_from(cls: Any, content: list[Any]) -> Any:
    text, zone, fold = content
    read = cls.fromisoformat(text).replace(fold=fold)
    return read if zone is None else read.replace(tzinfo=ZoneInfo(zone))


def _unordered(values: Iterable[Any]) -> list[Any]:
    """Returns the members of a set in an order that is the same each time."""
    return sorted(values, key=lambda each: (type(each).__name__, repr(each)))


_TYPES: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    tuple: ("tuple", list, tuple),
    set: ("set", _unordered, set),
    frozenset: ("frozenset", _unordered, frozenset),
    deque: ("deque", lambda it: [list(it), it.maxlen], lambda it: deque(it[0], it[1])),
    bytes: ("bytes", lambda it: base64.b64encode(it).decode(), base64.b64decode),
    bytearray: ("bytearray", lambda it: base64.b64encode(it).decode(), lambda it: bytearray(base64.b64decode(it))),
    datetime: ("datetime", _moment, partial(_moment_from, datetime)),
    time: ("time", _moment, partial(_moment_from, time)),
    date: ("date", date.isoformat, date.fromisoformat),
    timedelta: ("timedelta", lambda it: [it.days, it.seconds, it.microseconds], lambda it: timedelta(*it)),
    Decimal: ("decimal", str, Decimal),
    UUID: ("uuid", str, UUID),
    Interrupt: (
        "interrupt",
        lambda it: [it.value, it.id, it.response_schema],
        lambda it: Interrupt(it[0], it[1], response_schema=it[2]),
    ),
    Send: (
        "send",
        lambda it: [it.node, it.arg, it.timeout],
        lambda it: Send(it[0], it[1], timeout=it[2]),
    ),
}
_WRITE = {cls: (tag, write) for cls, (tag, write, _) in _TYPES.items()}
_READ: dict[str, Callable[[Any], Any]] = {
    **{tag: read for tag, _, read in _TYPES.values()},
    "zone": ZoneInfo,
    "error": lambda it: NodeError(*it),
}
