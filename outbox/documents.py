"""Checks the JSON documents that go into the database, before any SQL.

pydantic's serialiser writes values as text, which is fast. The text is then checked only for what Postgres or a later
reader would refuse: NUL, NaN, depth, size. Texts that the engine itself makes, such as errors, are cleaned instead.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal, InvalidOperation
from typing import Any, TypeAlias
from uuid import UUID

import pydantic_core
from pydantic import BaseModel, TypeAdapter, ValidationError

from .errors import InvalidInput
from .texts import check_text, clean, explain, shown

MAX_BYTES = 32 * 2**20
"""The largest document, in bytes of JSON. jsonb's limit is 255 MB; a workflow's data should be far smaller."""

MAX_DEPTH = 150
"""The deepest nesting, in levels. pydantic's JSON parser reads 200 levels; stored data must be readable."""

MAX_ENTITY_ID = 512
"""The longest entity id, in characters: it is in an index. The table has the same bound."""

EntityId: TypeAlias = str | int | UUID
"""What names an entity: a text, or the key of its row in a table, which is stored as text."""


def entity(given: object) -> str:
    """Returns an entity id as text. Raises InvalidInput, which names `entity_id`, if it can't be one."""
    if isinstance(given, UUID):
        given = str(given)
    elif isinstance(given, int) and not isinstance(given, bool):
        if abs(given) >= 10**MAX_ENTITY_ID:  # Python itself refuses to write a longer one
            raise InvalidInput("entity_id", f"has more than {MAX_ENTITY_ID} digits")
        given = str(int(given))
    if not isinstance(given, str):
        raise InvalidInput("entity_id", f"must be a string, an int or a UUID, not {type(given).__name__}")
    return check_text(given, "entity_id", MAX_ENTITY_ID)


def dump(adapter: TypeAdapter[Any], value: Any, field: str, *, most: int = MAX_BYTES) -> str:
    """Returns `value` as JSON text that Postgres can store and from which `adapter` reads the same value.

    Raises InvalidInput, which names `field`, if there is no such text, or it has more than `most` bytes.
    """
    try:
        value = adapter.validate_python(value)
        # round_trip makes it readable again: it leaves out computed fields, and writes Json[…] as the original text.
        written = adapter.dump_json(value, warnings="error", round_trip=True)
    except ValidationError as error:
        raise InvalidInput(field, explain(error)) from None
    except (pydantic_core.PydanticSerializationError, ValueError, RecursionError) as error:
        raise InvalidInput(field, f"can't be written as JSON: {clean(str(error), 300)}") from None
    _check_size(len(written), field, most)
    text = written.decode()
    # pydantic writes NaN and Infinity as null, so the values are searched only if the text has a null.
    if "null" in text and has_nonfinite(adapter.dump_python(value)):
        raise InvalidInput(field, "NaN and Infinity are not JSON")
    check(text, field, most)
    try:
        # By alias and name: Outbox writes the fields by their names, and others may write them by their aliases.
        read = adapter.validate_json(written, by_alias=True, by_name=True)
    except ValidationError as error:
        raise InvalidInput(field, f"its type can't read back what it writes: {explain(error)}") from None
    if (where := _difference(value, read)) is not None:
        place = f" in {clean(where, 200)}" if where else ""
        raise InvalidInput(field, f"its type reads back something else than it was given{place}")
    return text


def dump_any(value: Any, field: str, *, most: int = MAX_BYTES) -> str:
    """Returns a value without a declared type, such as a message's payload, as JSON text that Postgres can store.

    The value consists of plain JSON types, or is a pydantic model. Raises InvalidInput, which names `field`, for
    everything else: the caller chooses how to write dates, bytes, sets and keys that aren't strings as JSON.
    """
    if isinstance(value, BaseModel):
        return dump(TypeAdapter(type(value)), value, field, most=most)
    try:
        text = _encode(value)
        if (key := _no_text(value)) is not None:
            raise InvalidInput(field, f"{shown(key)} is a key, and keys of JSON are strings")
        if not text.isascii():
            text.encode()  # finds lone surrogates
    except InvalidInput:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(field, f"can't be written as JSON: {clean(str(error), 300)}") from None
    return check(text, field, most)


def check(text: str, field: str, most: int = MAX_BYTES) -> str:
    """Returns JSON text unchanged. Raises InvalidInput if Postgres or a later reader would refuse it."""
    if len(text) > most // 4:
        _check_size(len(text) if len(text) > most else len(text.encode()), field, most)
    if "\\u0000" in text and "\0" in _strings(text, field):
        raise InvalidInput(field, "has a NUL character, which Postgres can't store in JSON")
    if "NaN" in text or "Infinity" in text:
        _strings(text, field)
    if len(text) > MAX_DEPTH and text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise InvalidInput(field, f"nested more than {MAX_DEPTH} levels deep")
    return text


class Stored(float):
    """A number of a stored document that is no integer. It remembers how it is written: 1.10 is not 1.1."""

    text: str

    def __new__(cls, text: str) -> Stored:
        made = super().__new__(cls, text)
        made.text = text
        return made

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)


class Unread(str):
    """The text of a document that Python can't read or write. It is not a document that is a string."""

    __slots__ = ()


def read(text: str) -> Any:
    """Returns a stored document, or its text, as Unread, if Python can't read or write the document."""
    try:
        return json.loads(check(text, "document"), parse_float=Stored)
    except ValueError:
        return Unread(text)


def _check_size(size: int, field: str, most: int) -> None:
    if size > most:
        raise InvalidInput(field, f"{size:,} bytes of JSON; the limit is {most:,}. Store it elsewhere, keep a link")


def decoder(field: str) -> Callable[[str], Any]:
    """Returns a function that reads JSON text written by a person, and refuses whatever would not be kept unchanged.

    It refuses NaN, the same key twice in one object, and a number with more digits than a float has. It raises
    InvalidInput, which names `field`, JSONDecodeError for text that isn't JSON, and RecursionError for nesting that is
    too deep.
    """

    def refuse_constant(name: str) -> None:
        raise InvalidInput(field, f"{name} is not JSON")

    def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise InvalidInput(field, "has the same key twice in one object")
        return found

    def exact(text: str) -> float:
        if len(text) > _SURE_DIGITS and not _is_exact(text):
            raise InvalidInput(field, f"has a number that would lose digits: {clean(text, 60)}. Write it as a string")
        return float(text)

    return json.JSONDecoder(parse_constant=refuse_constant, parse_float=exact, object_pairs_hook=refuse_repeated).decode


_SURE_DIGITS = 15
"""How many digits every float keeps."""


def _is_exact(text: str) -> bool:
    """Tells whether a float is exactly the number in the text, or rounds to it."""
    number, value = Decimal(text), float(text)
    try:
        return number == Decimal(repr(value)) or number == Decimal(value).quantize(number, context=Context(prec=1_000))
    except InvalidOperation:
        return False


def _encoder() -> Callable[[Any], str]:
    """Returns a function that writes plain JSON types as text.

    `JSONEncoder.encode` makes Python's C encoder with each call, which takes longer than to write a small payload. Here
    it is made once. It doesn't keep account of what it is in, so a cycle is a RecursionError.
    """
    encoder = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    make = getattr(json.encoder, "c_make_encoder", None)  # CPython's
    try:
        chunks = make(None, encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False)  # type: ignore[misc]
    except TypeError:  # there is none, or it takes something else
        return encoder.encode
    return lambda value: "".join(chunks(value, 0))


_encode = _encoder()


def _strings(text: str, field: str) -> str:
    """Returns all strings of a document, joined, with their escapes resolved. Raises InvalidInput for NaN."""

    def refuse(constant: str) -> None:
        raise InvalidInput(field, f"{constant} is not JSON")

    found: list[str] = []
    stack: list[Any] = [json.loads(text, parse_constant=refuse)]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict):
            found.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return "".join(found)


# A string's characters are taken at once, and not one by one, which takes five times as long.
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]')


def _depth(text: str) -> int:
    """Returns how many levels deep JSON text is nested. Brackets inside strings don't count."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        char = match.group()
        if char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _no_text(value: Any) -> object | None:
    """Returns the first key found in a document that isn't a string, or None if all are."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            for key, inner in item.items():
                if not isinstance(key, str):
                    return _NULL if key is None else key
                if isinstance(inner, dict | list | tuple):
                    stack.append(inner)
        elif isinstance(item, list | tuple):
            stack.extend(item)
    return None


_NULL = "None"
"""How an error names the key None."""


def has_nonfinite(value: Any) -> bool:
    """Returns whether NaN or Infinity is in a value of plain Python types."""
    return _any(value, lambda item: isinstance(item, float) and not math.isfinite(item))


def has_null(value: Any) -> bool:
    """Returns whether None is in a value of plain Python types."""
    return _any(value, lambda item: item is None)


def _any(value: Any, is_it: Callable[[Any], bool]) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if is_it(item):
            return True
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            stack.extend(item)
    return False


def _difference(given: Any, read: Any, where: str = "") -> str | None:
    """Returns the path at which two values differ, such as "customer.token", or "" for the value itself.

    Returns None if they are the same. A list and a tuple are the same where no type distinguishes them, because JSON
    has only one of them. Values that can't be compared, such as a lock in a private attribute, count as the same. Never
    raises.
    """
    try:
        return None if given is read or _equal(given, read) else _within(given, read, where)
    except Exception:  # `==` of a user's class may raise; nesting too deep for Python was refused before
        return where


def _equal(given: Any, read: Any) -> bool:
    return bool(given == read) and _is_like(given, read)


def _is_like(given: Any, read: Any) -> bool:
    """Tells whether two equal values are also alike in type: a model may be equal to an instance of its subclass."""
    return type(given) is type(read) or not isinstance(given, BaseModel)


def _within(given: Any, read: Any, where: str) -> str | None:
    if isinstance(given, datetime) and isinstance(read, datetime) and given.tzinfo and read.tzinfo:
        # In the hour that a clock shows twice, times of two zones never compare equal.
        return None if given.astimezone(UTC) == read.astimezone(UTC) else where
    if isinstance(given, list | tuple) and isinstance(read, list | tuple):
        return _first(enumerate(given), dict(enumerate(read)), where) if len(given) == len(read) else where
    if type(given) is not type(read):
        return where
    if isinstance(given, float):
        return None if given != given and read != read else where
    if isinstance(given, BaseModel):
        parts = [_parts_of_model(each) for each in (given, read)]
        return _first(parts[0].items(), parts[1], where)
    if is_dataclass(given):
        names = [field.name for field in fields(given)]
        return _first(((name, getattr(given, name, None)) for name in names),
                      {name: getattr(read, name, None) for name in names}, where)  # fmt: skip
    if isinstance(given, Mapping):
        return _first(given.items(), read, where) if len(given) == len(read) else where
    if isinstance(given, Set) or getattr(type(given), "__eq__") is not getattr(object, "__eq__"):  # noqa: B009 - for mypy
        return where
    # A user's class without `==`.
    return _first(vars(given).items(), vars(read), where) if hasattr(given, "__dict__") else None


def _parts_of_model(model: BaseModel) -> dict[str, Any]:
    named = {name: vars(model).get(name) for name in type(model).model_fields}
    return {**named, **(model.__pydantic_extra__ or {}), **(model.__pydantic_private__ or {})}


def _first(given: Iterable[tuple[Any, Any]], read: Mapping[Any, Any], where: str) -> str | None:
    for name, value in given:
        path = f"{where}.{name}" if where else str(name)
        if name not in read:
            return path
        if (found := _difference(value, read[name], path)) is not None:
            return found
    return None
