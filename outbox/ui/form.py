"""Makes a form for an edit from a model's JSON schema, and data from what the form sends.

A field that is left as it is keeps the stored value, whatever its type. Numbers stay numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import documents
from ..errors import InvalidInput
from ..operations.look import Row
from . import stored

MOST = 100_000
"""Characters of a document that can be edited in a browser."""

_PREFIX = "field."


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a form. `kind` is text, number, integer, boolean, choice, json, or whole for the whole document.

    `text` is what it has at first.
    """

    name: str
    title: str
    kind: str
    text: str
    choices: tuple[str, ...] = ()
    note: str = ""

    @property
    def input(self) -> str:
        """The name that the form sends."""
        return _PREFIX + self.name


def fields(schema: Any, data: Any) -> list[Field]:
    """Returns the fields of data that has a schema of an object; else one for the whole document."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or not isinstance(data, dict):
        return [Field("edit", "Data", "whole", stored.text(data)[0])]
    names = [*properties, *(name for name in data if name not in properties)]
    return [_field(name, properties.get(name, {}), schema, data.get(name)) for name in names]


def edited(found: list[Field], data: Any, sent: Mapping[str, str]) -> Any:
    """Returns the data as it was edited; None if nothing was. Raises InvalidInput, which names the field."""
    changed = {}
    for field in found:
        text = sent.get(field.input)
        if text is not None and text != _lines(field.text):
            if field.kind == "whole":
                return _json(text, field.name)
            changed[field.name] = _value(field, text)
    return {**data, **changed} if changed else None


def _lines(text: str) -> str:
    """Returns a text with the line breaks that come back from a browser: it doesn't keep CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _field(name: str, schema: Any, root: Row, value: Any) -> Field:
    schema, null = _resolved(schema, root)
    title = str(schema.get("title") or name)
    note = str(schema.get("description") or "")
    kind = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean"}.get(
        schema.get("type", ""), "json"
    )
    choices = schema.get("enum")
    if isinstance(choices, list) and all(isinstance(each, str) for each in choices) and not null:
        return Field(name, title, "choice", str(value), tuple(choices), note)
    fits = {"text": str, "integer": int, "number": int | float, "boolean": bool}.get(kind)
    if null or fits is None or not isinstance(value, fits) or (kind != "boolean" and isinstance(value, bool)):
        return Field(name, title, "json", stored.text(value)[0], note=note)  # among them null
    return Field(name, title, kind, value if isinstance(value, str) else stored.scalar(value), note=note)


def _resolved(schema: Any, root: Row) -> tuple[Row, bool]:
    """Returns the schema that a reference leads to, and whether null is allowed as well."""
    for _ in range(8):
        if not isinstance(schema, dict):
            return {}, False
        ref = schema.get("$ref")
        if not isinstance(ref, str) or not ref.startswith("#/$defs/"):
            break
        schema = root.get("$defs", {}).get(ref.removeprefix("#/$defs/"), {})
    return schema, "anyOf" in schema or "oneOf" in schema or "allOf" in schema


def _value(field: Field, text: str) -> Any:
    if field.kind in ("text", "choice"):
        return text
    value = _json(text, field.name)
    fits = {"integer": int, "number": int | float, "boolean": bool}.get(field.kind)
    if fits is not None and (not isinstance(value, fits) or (field.kind != "boolean" and isinstance(value, bool))):
        raise InvalidInput(field.name, f"must be {'an' if field.kind == 'integer' else 'a'} {field.kind}")
    return value


def _json(text: str, name: str) -> Any:
    try:
        return documents.decoder(name)(text)
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidInput(name, f"is not JSON: {error}") from None
