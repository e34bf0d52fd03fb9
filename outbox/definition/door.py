"""Says what the database checks of the data that other programs write: required fields, and the JSON types of fields.

It is read from pydantic's core schema, because that is what validates. It refuses nothing that validation accepts: an
integer may be written as a string, an alias stands for a name, and what a validator of the user's own sees first may be
anything. What is not listed here may be anything, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
Types = frozenset[str] | None
"""Names of JSON types, as `jsonb_typeof` returns them. None: any."""

_SCALAR = frozenset({"number", "string", "boolean"})
_BY_TYPE: dict[str, frozenset[str]] = {
    **dict.fromkeys(("int", "float", "decimal", "bool", "date", "time", "datetime", "timedelta"), _SCALAR),
    **dict.fromkeys(("bytes", "uuid", "url", "multi-host-url", "json"), frozenset({"string"})),
    **dict.fromkeys(("list", "tuple", "set", "frozenset"), frozenset({"array"})),
    **dict.fromkeys(("dict", "typed-dict", "model-fields", "dataclass-args"), frozenset({"object"})),
    "none": frozenset({"null"}),
}
_INNER = {
    "default": "schema",
    "function-after": "schema",
    "lax-or-strict": "lax_schema",
    "json-or-python": "json_schema",
}
"""What accepts the same as a schema inside it, and where that is."""
_WRAPPERS = {*_INNER, "nullable", "function-before", "function-wrap", "definitions"}


def door(core: Schema) -> dict[str, Any]:
    """Returns what `outbox.data_check` reads of a type's core schema: the JSON types of the data, and its fields."""
    refs: dict[str, Schema] = {}
    types = _types(core, refs, numbers=False)
    return {"types": None if types is None else sorted(types), "fields": [*_fields(core, refs)] if types else []}


def _fields(core: Schema, refs: dict[str, Schema]) -> Iterator[dict[str, Any]]:
    """Yields the fields of the data, if it is a model, a dataclass or a TypedDict, by the names that are accepted."""
    numbers = False
    while core["type"] not in ("model-fields", "typed-dict", "dataclass-args"):
        if core["type"] == "definition-ref":
            core = refs[core["schema_ref"]]
        elif core["type"] in ("definitions", "model", "dataclass", "function-after") and not core.get("root_model"):
            numbers = numbers or bool((core.get("config") or {}).get("coerce_numbers_to_str"))
            core = core["schema"]
        else:
            return
    numbers = numbers or bool((core.get("config") or {}).get("coerce_numbers_to_str"))
    fields = core["fields"]
    of = [(each["name"], each) for each in fields] if isinstance(fields, list) else list(fields.items())
    accepted = [(*_names(name, field), field) for name, field in of if field.get("init", True)]
    for names, direct, field in accepted:
        shared = sum(1 for others, _, _ in accepted for name in others if name in names) > len(names)
        types = None if shared or not direct else _types(field["schema"], refs, numbers=numbers)
        required = field.get("required", core.get("total", True)) and not _has_default(field["schema"])
        yield {"names": names, "types": None if types is None else sorted(types), "required": required}


def _names(name: str, field: Schema) -> tuple[list[str], bool]:
    """Returns the keys under which a field's value may be, and whether it is the value of the key itself."""
    alias = field.get("validation_alias")
    if alias is None or isinstance(alias, str):
        return list(dict.fromkeys([name, alias or name])), True
    paths = [alias] if isinstance(alias[0], str) else alias
    return list(dict.fromkeys([name, *(str(path[0]) for path in paths)])), all(len(path) == 1 for path in paths)


def _has_default(core: Schema) -> bool:
    while core["type"] in _WRAPPERS:
        if core["type"] == "default":
            return True
        core = core[_INNER.get(core["type"], "schema")]
    return False


def _types(core: Schema, refs: dict[str, Schema], *, numbers: bool, within: frozenset[str] = frozenset()) -> Types:
    """Returns the JSON types that a schema accepts. `numbers`: strings are also made of numbers."""

    def of(inner: Schema) -> Types:
        return _types(inner, refs, numbers=numbers, within=within)

    kind = core["type"]
    if kind == "definitions":
        refs.update((each["ref"], each) for each in core["definitions"])
        return of(core["schema"])
    if kind == "definition-ref":
        ref = core["schema_ref"]
        if ref in within:
            return None
        return _types(refs[ref], refs, numbers=numbers, within=within | {ref})
    if kind == "str":
        return (
            frozenset({"string", "number"}) if numbers or core.get("coerce_numbers_to_str") else frozenset({"string"})
        )
    if kind == "nullable":
        inner = of(core["schema"])
        return None if inner is None else inner | {"null"}
    if kind in ("model", "dataclass"):
        return None if core.get("custom_init") else of(core["schema"])
    if kind == "union":
        return _either(of(each[0] if isinstance(each, tuple) else each) for each in core["choices"])
    if kind == "tagged-union":
        return _either(of(each) for each in core["choices"].values())
    if kind == "literal":
        return _either(_of_value(value) for value in core["expected"])
    if kind in _INNER:
        return None if core.get("on_error", "raise") != "raise" else of(core[_INNER[kind]])
    return _BY_TYPE.get(kind)


def _either(several: Iterator[Types]) -> Types:
    found: frozenset[str] = frozenset()
    for types in several:
        if types is None:
            return None
        found |= types
    return found


def _of_value(value: object) -> Types:
    if value is None:
        return frozenset({"null"})
    if type(value) is str:
        return frozenset({"string"})
    return frozenset({"number", "boolean"}) if type(value) in (int, bool) else None
