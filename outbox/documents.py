"""JSON documents: what may enter the database, checked before any SQL.

pydantic's serialiser writes values as text, which is fast. The text is searched only for what Postgres or a later
reader would refuse: NUL, NaN, depth, size. Texts that arise inside the engine, such as errors, are cleaned instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Context, Decimal, InvalidOperation
from typing import Any

import pydantic_core
from pydantic import BaseModel, TypeAdapter, ValidationError

from .errors import InvalidInput
from .texts import clean, explain

MAX_BYTES = 32 * 2**20
"""The largest document, in bytes of JSON. jsonb ends at 255 MB; a workflow's data should end far earlier."""

MAX_DEPTH = 150
"""The deepest nesting. The JSON parser of pydantic reads 200 levels; what is stored must be readable."""

MAX_ENTITY_ID = 512
"""The longest id of an entity, in characters: it stands in an index. The table has the same bound."""


def dump(adapter: TypeAdapter[Any], value: Any, field: str) -> str:
    """Returns `value` as JSON text that Postgres stores and `adapter` reads back.

    Raises InvalidInput, which names `field`, if there is none.
    """
    try:
        value = adapter.validate_python(value)
        # So that it can be read back: without computed fields, and Json[…] as the JSON text that it was.
        written = adapter.dump_json(value, warnings="error", round_trip=True)
    except ValidationError as error:
        raise InvalidInput(field, explain(error)) from None
    except (pydantic_core.PydanticSerializationError, ValueError, RecursionError) as error:
        raise InvalidInput(field, f"can't be written as JSON: {clean(str(error), 300)}") from None
    _check_size(len(written), field)
    text = written.decode()
    # NaN and Infinity are written as null, so the values are searched only if the text has a null.
    if "null" in text and _has_nonfinite(adapter.dump_python(value)):
        raise InvalidInput(field, "NaN and Infinity are not JSON")
    return check(text, field)


def dump_any(value: Any, field: str) -> str:
    """Returns a value without a declared type, such as a message's payload, as JSON text that Postgres stores.

    It is made of plain JSON types, or is a pydantic model. Raises InvalidInput, which names `field`, for everything
    else: what dates, bytes and sets become as JSON is the caller's choice.
    """
    if isinstance(value, BaseModel):
        return dump(TypeAdapter(type(value)), value, field)
    try:
        text = _encode(value)
        if not text.isascii():
            text.encode()  # finds lone surrogates
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(field, f"can't be written as JSON: {clean(str(error), 300)}") from None
    return check(text, field)


def check(text: str, field: str) -> str:
    """Returns JSON text as it is. Raises InvalidInput if Postgres or a later reader would refuse it."""
    if len(text) > MAX_BYTES // 4:
        _check_size(len(text) if len(text) > MAX_BYTES else len(text.encode()), field)
    if "\\u0000" in text and "\0" in _strings(text, field):
        raise InvalidInput(field, "has a NUL character, which Postgres can't store in JSON")
    if "NaN" in text or "Infinity" in text:
        _strings(text, field)
    if len(text) > MAX_DEPTH and text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise InvalidInput(field, f"nested more than {MAX_DEPTH} levels deep")
    return text


def _check_size(size: int, field: str) -> None:
    if size > MAX_BYTES:
        raise InvalidInput(
            field, f"{size:,} bytes of JSON; the limit is {MAX_BYTES:,}. Store it elsewhere, keep a link"
        )


def decoder(field: str) -> Callable[[str], Any]:
    """Returns a function that reads JSON text that a person has written, and refuses what would not be kept as it is.

    That is NaN, the same key twice in one object, and a number with more digits than a float has. It raises
    InvalidInput, which names `field`; JSONDecodeError for what isn't JSON, RecursionError for what is too deep.
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
"""Digits that every float keeps."""


def _is_exact(text: str) -> bool:
    """Tells whether a float is the number that the text says, or what the text is a rounding of."""
    number, value = Decimal(text), float(text)
    try:
        return number == Decimal(repr(value)) or number == Decimal(value).quantize(number, context=Context(prec=1_000))
    except InvalidOperation:
        return False


_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


def _strings(text: str, field: str) -> str:
    """Returns all strings of a document, joined, with their escapes resolved. Refuses NaN."""

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


_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')


def _depth(text: str) -> int:
    """Returns how deep JSON text is nested. Brackets inside strings don't count."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        char = match.group()
        if char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _has_nonfinite(value: Any) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, float) and (item != item or item in (float("inf"), float("-inf"))):
            return True
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            stack.extend(item)
    return False
