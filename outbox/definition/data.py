"""Validates a pipeline's data on its way in and out, and upgrades data that older code stored when it is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError

from .. import documents, texts
from ..checks import check_whole
from ..errors import DefinitionError, HandlerError, InvalidInput, TooNewData
from .door import door

VERSION = "$version"
"""The key that holds the version of a document's type. A document without it has version 1."""

MAX_VERSION = 10_000
"""The highest version of a type. Each version needs an upgrade written by hand, so only a mistake exceeds it."""

ERASED = "$erased"
"""The key of what `outbox erase` leaves of a document. Its value is the time."""

Data = TypeVar("Data")
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


def version_problem(version: Any) -> str | None:
    """Returns what is wrong with the version of a document. None if present or future code can read it."""
    if isinstance(version, bool) or not isinstance(version, int):
        return f"is {texts.shown(version)}, which is no integer"
    if not 1 <= version <= MAX_VERSION:
        return f"is {texts.shown(version)}, which is not from 1 to {MAX_VERSION:,}"
    return None


def is_erased(text: str) -> bool:
    """Returns whether stored JSON text is what is left of data that was erased: a type may accept it as data."""
    if ERASED not in text:
        return False
    document = json.loads(text)
    return isinstance(document, dict) and document.keys() - {VERSION} == {ERASED}


class DataType:
    """The type of a pipeline's data: one that pydantic validates, or any plain JSON object.

    `version` is the version of the type. Data of an older version is read through the upgrades, one version at a time.
    `plain` is the version of data that writers without `$version` send, or None if the pipeline doesn't say. `strict`:
    the database checks what other programs write.
    """

    def __init__(
        self, pipeline: str, data: Any, version: int, plain: int | None = None, strict: bool = False
    ) -> None:  # fmt: skip
        check_whole(version, f"pipeline {pipeline}: version=", MAX_VERSION)
        if plain is not None:
            check_whole(plain, f"pipeline {pipeline}: plain=", version)
        self._stated = plain
        self._pipeline = pipeline
        self._plain = data is None
        self._type = data
        self._version = version
        self._strict = strict
        self._upgrades: dict[int, Upgrade] = {}
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(dict[str, Any] if data is None else data)
        except PydanticUserError as error:
            raise DefinitionError(
                f"pipeline {pipeline}: data={texts.shown(data)} is not a type that pydantic validates: {error}"
            ) from None

    @property
    def version(self) -> int:
        """The version of the type."""
        return self._version

    def json_schema(self) -> dict[str, Any] | None:
        """Returns the JSON schema of what is accepted, by the names of fields. None if the type has none.

        Of what validation accepts, not of what is written: a field with a default may be left out. Data that is written
        fits it, too.
        """
        try:
            schema = self._adapter.json_schema(mode="validation", by_alias=False)
            documents.check(json.dumps(schema, allow_nan=False), "schema")
        except (PydanticUserError, ValueError, TypeError):
            return None
        return schema

    def door(self) -> dict[str, Any] | None:
        """Returns what the database checks of data that other programs write. None if the pipeline isn't strict."""
        return {"version": self._version, **door(self._adapter.core_schema)} if self._strict else None

    @property
    def plain(self) -> int | None:
        """The version of data that writers without `$version` send. None if there is only one version."""
        if self._version == 1:
            return None
        return self._stated or (1 if self._upgrades else self._version)

    def check_plain(self) -> None:
        """Raises DefinitionError if there are upgrades, and the pipeline doesn't say which version unmarked data has.

        Also raises it if there is no upgrade from that one.
        """
        if self._stated is None and self._upgrades:
            raise DefinitionError(
                f"pipeline {self._pipeline}: which version has data that programs write without {VERSION}, as by plain "
                f"SQL? Say it: Pipeline(…, version={self._version}, plain={self._version}) if they know this version, "
                f"plain={self._version - 1} as long as they write the one before"
            )
        for step in range(self.plain or self._version, self._version):
            if step not in self._upgrades:
                raise DefinitionError(
                    f"pipeline {self._pipeline}: plain={self.plain}, and there is no migrate_data({step}, …)"
                )

    def upgrade(self, version: int, function: Upgrade) -> None:
        """Adds an upgrade: a function that takes data of `version` and returns it as data of the next version."""
        if not isinstance(version, int) or not 1 <= version < self._version or version in self._upgrades:
            raise DefinitionError(
                f"pipeline {self._pipeline}: migrate_data({texts.shown(version)}, …) is not for a version before "
                f"{self._version}, or there is one already"
            )
        self._upgrades[version] = function

    def require_field(self, path: Sequence[str], what: str) -> None:
        """Raises DefinitionError if the type is a model that doesn't have the field to which the path leads."""
        if isinstance(self._type, type) and issubclass(self._type, BaseModel) and path:
            known = self._type.model_fields
            if path[0] not in known and self._type.model_config.get("extra") != "allow":
                listed = ", ".join(known) or "none"
                raise DefinitionError(f"{what}: {self._type.__name__} has no field {path[0]!r}; its fields: {listed}")

    def dump(self, data: Any) -> str:
        """Returns validated data as JSON text. Raises InvalidInput if it doesn't fit the type or can't be stored."""
        if isinstance(data, Mapping) and not self._plain:
            data = self._validated(data)
        elif self._plain:
            if not isinstance(data, dict):
                raise InvalidInput("data", f"must be a dict, not {type(data).__name__}")
            if VERSION in data and (problem := version_problem(data[VERSION])):
                raise InvalidInput("data", f"{VERSION} {problem}")
            return self._marked(documents.dump_any(data, "data"))
        return self._marked(documents.dump(self._adapter, data, "data"))

    def dump_readable(self, data: Any) -> str:
        """Returns submitted data as JSON text. Raises InvalidInput also if it can't be read back as its stated version.

        The job of such a workflow would be dead at its first stage.
        """
        text = self.dump(data)
        if not self._plain and VERSION in text:
            try:
                self.load(text)
            except (ValidationError, HandlerError) as error:
                problem = texts.explain(error) if isinstance(error, ValidationError) else str(error)
                raise InvalidInput("data", f"its type can't read back what it writes: {problem}") from None
        return text

    def load(self, text: str) -> Any:
        """Returns data from stored JSON text.

        Raises pydantic's ValidationError if it doesn't fit the type, TooNewData if newer code wrote it, HandlerError if
        there is no upgrade from its version, and any error that an upgrade raises.
        """
        if self._version > 1 or VERSION in text:
            text = self._upgraded(text)
        # By alias and name: Outbox writes the fields by their names, and others may write them by their aliases.
        return self._adapter.validate_json(text, by_alias=True, by_name=True)

    def read_given(self, text: str) -> Any:
        """Returns data from JSON text that fits `json_schema`, such as a program or a model sends it.

        Raises InvalidInput if it doesn't fit.
        """
        try:
            return self._adapter.validate_json(text, by_alias=True, by_name=True)
        except ValidationError as error:
            raise InvalidInput("data", texts.explain(error)) from None

    def _marked(self, text: str) -> str:
        if self._version == 1:
            return text
        if not text.startswith("{"):
            raise InvalidInput("data", "data with a version must be an object")
        return f'{{"{VERSION}":{self._version}{"" if text == "{}" else ","}{text[1:]}'

    def _upgraded(self, text: str) -> str:
        document = json.loads(text)
        if not isinstance(document, dict):
            return text
        version = document.pop(VERSION, 1)
        if problem := version_problem(version):
            raise HandlerError(f"the stored data has no version that any code can read: {VERSION} {problem}")
        if version > self._version:
            raise TooNewData(
                f"the stored data is of version {texts.shown(version)}, and this code knows {self._version}: "
                "a newer worker can read it"
            )
        for step in range(version, self._version):
            if step not in self._upgrades:
                raise HandlerError(
                    f"the stored data is of version {step}, and {self._pipeline} has no migrate_data({step}, …)"
                )
            document = self._upgrades[step](document)
        return documents.dump_any(document, "data")

    def _validated(self, data: Any) -> Any:
        try:
            return self._adapter.validate_python(data)
        except ValidationError as error:
            raise InvalidInput("data", texts.explain(error)) from None


class HasData(Generic[Data]):
    """The part of a pipeline that knows its data. `is_idle`: it has schedules only, and no workflow can start in it."""

    name: str
    final: frozenset[str]
    reaction_of: str | None
    is_idle: bool
    _data: DataType

    def dump(self, data: Any) -> str:
        """Returns validated data as JSON text. Raises InvalidInput if it doesn't fit the type or can't be stored."""
        return self._data.dump(data)

    def dump_readable(self, data: Any) -> str:
        """Returns submitted data as JSON text. Raises InvalidInput also if the type can't read back what it writes."""
        if self.is_idle:
            raise InvalidInput(
                "pipeline", f"{self.name} has schedules only: without initial=, no workflow can start in it"
            )
        return self._data.dump_readable(data)

    def load(self, text: str) -> Data:
        """Returns data from stored JSON text; None if it was erased.

        Raises pydantic's ValidationError if it doesn't fit the type.
        """
        data: Data = cast(Data, None) if is_erased(text) else self._data.load(text)
        return data
