"""What the database checks of other programs' data: never more than validation does, and what anybody would expect."""

from __future__ import annotations

import dataclasses
import enum
import json
import random
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar
from uuid import UUID

import psycopg
import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    RootModel,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    model_validator,
)
from typing_extensions import TypedDict

from kit.pipelines import Post, deployed, drain, one_stage, value
from kit.waits import Order
from outbox import DataRefused, InvalidInput, Pipeline, Run, WaitForApproval, WaitForSignal, decide, signal
from outbox.client.submit import submit_text
from outbox.database.refusals import raised_as_ours
from outbox.definition.door import door

Conn = psycopg.Connection[Any]
Item = TypeVar("Item")


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


class Inner(BaseModel):
    n: int


class Tree(BaseModel):
    children: list[Tree] = []
    parent: Tree | None = None


class Box(BaseModel, Generic[Item]):
    item: Item


class Loose(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)
    text: str


class Before(BaseModel):
    n: int

    @model_validator(mode="before")
    @classmethod
    def wrap(cls, data: Any) -> Any:
        return data if isinstance(data, dict) else {"n": data}


class After(BaseModel):
    n: int

    @model_validator(mode="after")
    def check(self) -> After:
        return self


class Typed(TypedDict):
    n: int
    text: NotRequired[str]


@dataclasses.dataclass
class Data:
    n: int
    text: str = "x"
    made: int = dataclasses.field(init=False, default=3)


class Aliased(BaseModel):
    by_alias: int = Field(alias="byAlias")
    either: int = Field(validation_alias=AliasChoices("one", "two"))
    deep: int = Field(validation_alias=AliasPath("nested", "deep"))


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


TYPES: list[Any] = [
    int, float, bool, str, bytes, Decimal, datetime, date, time, timedelta, UUID, AnyUrl, Colour, Any, None, Inner, Tree,
    list[int], tuple[int, str], set[int], frozenset[str], dict[str, int], Json[list[int]], Literal["a", 1, None, True],
    int | None, int | list[int], Annotated[int, Field(gt=3)], Annotated[int, BeforeValidator(lambda v: 7)],
    Annotated[int, WrapValidator(lambda v, handler: 7)], Annotated[int, AfterValidator(lambda v: v)], Box[int], Loose,
    Before, After, Typed, Data, Aliased, RootModel[list[int]], RootModel[dict[str, int]], Cat | Dog,
    Annotated[Cat | Dog, Field(discriminator="kind")], Annotated[str, Field(coerce_numbers_to_str=True)],
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, 7, -1, 1.0, 1.5, 1e300, 1700000000, "", "a", "7", "1.5", "true", "blue", "2026-01-02", "12:30",
    "2026-01-02T03:04:05", "P1D", "[1]", "https://a.b", "01997a0c-0000-7000-8000-000000000000", [], [1], ["a"], [1, "a"],
    {}, {"n": 1}, {"n": "1"}, {"n": [1]}, {"item": 1}, {"text": 7}, {"text": "x"}, {"n": 1, "text": 7}, {"kind": "cat"},
    {"byAlias": 1, "one": 1, "nested": {"deep": 1}}, {"by_alias": 1, "two": 1, "nested": {"deep": 1}},
    {"by_alias": [], "byAlias": 1, "either": 2, "deep": 3}, {"children": [{"children": []}], "parent": None},
]  # fmt: skip


def refused(conn: Conn, checks: list[tuple[Any, Any]]) -> list[str | None]:
    """Returns of each door and value which field the database refuses; None if it lets the value pass."""
    conn.execute("""
        CREATE OR REPLACE FUNCTION outbox.field_refused(data jsonb, door jsonb) RETURNS text LANGUAGE plpgsql AS $$
        DECLARE told text;
        BEGIN
            PERFORM outbox.data_check('p', 'e', data, door);
            RETURN NULL;
        EXCEPTION WHEN SQLSTATE 'OB040' THEN
            GET STACKED DIAGNOSTICS told = PG_EXCEPTION_DETAIL;
            RETURN coalesce(told::jsonb ->> 'field', '(all)');
        END $$""")
    asked = "SELECT outbox.field_refused(d, o) FROM unnest(%s::jsonb[], %s::jsonb[]) WITH ORDINALITY AS c (d, o, n) ORDER BY n"
    found = conn.execute(asked, [[json.dumps(v) for _, v in checks], [json.dumps(d) for d, _ in checks]]).fetchall()
    return [field for (field,) in found]


def accepts(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_json(json.dumps(value), by_alias=True, by_name=True)
    except ValidationError:
        return False
    return True


def test_nothing_is_refused_that_validation_accepts(conn: Conn) -> None:
    """Each type as the data itself, as a field, and as a field with a default; each value in each."""
    rng = random.Random(7)
    cases: list[tuple[Any, Any, bool, str]] = []
    for kind in TYPES:
        model: Any = type(
            "Model", (BaseModel,), {"__annotations__": {"f": kind, "g": kind}, "g": None, "__module__": __name__}
        )
        for of in (kind, model):
            adapter: TypeAdapter[Any] = TypeAdapter(of)
            made = {"version": 1, **door(adapter.core_schema)}
            for given in VALUES:
                values = [given] if of is kind else [{"f": given}, {"f": given, "g": rng.choice(VALUES)}, {"g": given}]
                cases += [(made, each, accepts(adapter, each), f"{kind}: {each}") for each in values]
    assert len(cases) > 4_000
    found = refused(conn, [(made, each) for made, each, _, _ in cases])
    assert [told for (_, _, fits, told), field in zip(cases, found, strict=True) if fits and field is not None] == []
    assert sum(field is not None for field in found) > 1_000, "it does refuse"


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [
        (Order, [], "(all)"), (Order, {"total": []}, "total"), (Order, {"total": "7"}, None), (Order, {}, None),
        (Inner, {}, "n"), (Inner, {"n": None}, "n"), (Inner, {"n": 1, "more": []}, None), (Inner, "x", "(all)"),
        (Typed, {"n": 1, "text": 7}, "text"), (Data, {"text": "x"}, "n"), (After, {"n": {}}, "n"), (Before, 7, None),
        (Aliased, {"one": 1, "nested": {}}, "by_alias"), (Aliased, {"byAlias": [], "one": 1, "nested": {}}, "byAlias"),
        (Box[list[int]], {"item": {}}, "item"), (RootModel[list[int]], {}, "(all)"), (Tree, {"parent": []}, "parent"),
        (list[int], {}, "(all)"), (dict[str, Any], [], "(all)"), (Loose, {"text": 7}, None), (Loose, {"text": []}, "text"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(conn: Conn, kind: Any, given: Any, field: str | None) -> None:
    made = {"version": 1, **door(TypeAdapter(kind).core_schema)}
    assert refused(conn, [(made, given)]) == [field]


# In the triggers.


def strict(outcome: Any = None, **options: Any) -> Pipeline[Order]:
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"DONE"}, strict=True, **options)
    pipeline.stage("work", on="NEW", to={"ASKED", "DONE"})(lambda run: outcome)
    pipeline.allow("ASKED", to="DONE")
    return pipeline


INSERT = "INSERT INTO outbox.workflow_states (pipeline, entity_id, {} metadata) VALUES ('orders', 'b', {} %s)"


@pytest.mark.parametrize(
    "write",
    [
        INSERT.format("", ""), INSERT.format("current_status,", "'ASKED',"),
        "UPDATE outbox.workflow_states SET metadata = %s", "SELECT outbox.submit('orders', 'b', %s)",
        "UPDATE outbox.workflow_states SET metadata = %s, current_status = 'DONE', version = version + 1",
    ],
)  # fmt: skip
def test_plain_sql_is_checked_at_the_door(conn: Conn, write: str) -> None:
    pipeline = deployed(conn, strict())
    pipeline.submit(conn, "a", Order(total=3))
    before = conn.execute("SELECT entity_id, metadata FROM outbox.workflow_states").fetchall()
    with pytest.raises(DataRefused) as caught, raised_as_ours():
        conn.execute(write.encode(), ['{"total": {}}'])
    error = caught.value
    assert (error.pipeline, error.field, error.found) == ("orders", "total", "object")
    assert error.expected == ("boolean", "number", "string")
    assert conn.execute("SELECT entity_id, metadata FROM outbox.workflow_states").fetchall() == before
    conn.execute(write.encode(), ['{"total": "7"}'])


def test_data_that_is_no_object_is_refused_as_a_whole(conn: Conn) -> None:
    deployed(conn, strict())
    with pytest.raises(DataRefused, match='"b": the data is array, and must be object') as refusal, raised_as_ours():
        conn.execute("SELECT outbox.submit('orders', 'b', '[]')")
    assert refusal.value.field is None


def test_without_strict_nothing_is_checked(conn: Conn) -> None:
    deployed(conn, one_stage(lambda run: None))
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('p', 'a', '[]')")
    assert value(conn, "SELECT door FROM outbox.pipelines") is None


def test_a_file_without_an_app_is_checked_and_the_pipelines_own_code_is_not_asked_twice(conn: Conn) -> None:
    pipeline = deployed(conn, strict())
    with pytest.raises(DataRefused):
        submit_text("orders", conn, [("a", "{}"), ("b", '{"total": []}')], of_code=False)
    assert submit_text("orders", conn, [("a", "{}")], of_code=False) == 1
    with pytest.raises(InvalidInput, match="total"):
        pipeline.submit(conn, "c", {"total": []})
    conn.execute('UPDATE outbox.pipelines SET door = \'{"version": 1, "types": ["null"], "fields": []}\'')
    pipeline.submit_many(conn, [("d", Order())])
    drain(pipeline, conn.info.dsn)


def test_what_a_worker_writes_is_not_checked_again(conn: Conn, dsn: str) -> None:
    """Its code may be of another release than the deployed one: what it can't read, it puts off until newer code comes."""
    child = deployed(conn, strict())

    def spawn(run: Run[Post]) -> None:
        run.spawn(child, "c", Order(total=3))

    parent = deployed(conn, one_stage(spawn))
    conn.execute('UPDATE outbox.pipelines SET door = \'{"version": 1, "types": ["null"], "fields": []}\'')
    parent.submit(conn, "a", {"content": "x"})
    drain([parent, child], dsn)
    assert value(conn, "SELECT metadata FROM outbox.workflow_states WHERE entity_id = 'c'")["total"] == 3


def test_signals_and_edits_of_others_are_checked(conn: Conn, dsn: str) -> None:
    wait = WaitForSignal("paid", to="DONE", into="total", status="ASKED")
    pipeline = deployed(conn, strict(wait))
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)
    with pytest.raises(DataRefused):
        signal(conn, pipeline, "a", "paid", {"sum": 7})
    assert signal(conn, pipeline, "a", "paid", 7).taken
    pipeline = deployed(conn, strict(WaitForApproval("?", status="ASKED", options={"approve": "DONE"})))
    pipeline.submit(conn, "b", Order())
    drain(pipeline, dsn)
    with pytest.raises(DataRefused), raised_as_ours():
        conn.execute("SELECT outbox.decide('orders', 'b', 'approve', edit => '[]')")
    assert decide(conn, pipeline, "b", "approve", edit={"total": 9}) == "DONE"


def test_data_of_another_version_is_not_checked_by_this_ones(conn: Conn) -> None:
    pipeline = strict(version=2, plain=2)
    pipeline.migrate_data(1, lambda old: {"total": len(old["total"])})
    deployed(conn, pipeline)
    insert = "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('orders', %s, %s)"
    conn.execute(insert, ["old", '{"$version": 1, "total": []}'])
    for wrong in ('{"total": []}', '{"$version": 2, "total": []}'):
        with pytest.raises(DataRefused), raised_as_ours():
            conn.execute(insert, ["new", wrong])
    conn.execute(insert, ["new", '{"total": 7}'])


def test_the_schema_is_there_for_other_languages_and_changes_with_a_deploy(conn: Conn) -> None:
    deployed(conn, strict())
    schema, version = conn.execute("SELECT json_schema, data_version FROM outbox.pipelines").fetchall()[0]
    assert (schema["type"], set(schema["properties"]), version) == ("object", {"total", "payment"}, 1)
    from outbox.definition import deploy

    assert deploy.deploy(conn, strict()) == []
    other: Pipeline[Any] = Pipeline("orders", data=Inner, initial="NEW", final={"DONE"})
    other.stage("work", on="NEW", to={"ASKED", "DONE"})(lambda run: None)
    other.allow("ASKED", to="DONE")
    assert deploy.deploy(conn, other) == ["the data has another JSON schema", "other checks of the data"]
    conn.execute("UPDATE outbox.pipelines SET json_schema = NULL, data_version = NULL")  # as an older release left them
    assert deploy.deploy(conn, other) == [
        "the JSON schema of the data is kept from now on", "the version of the data is kept from now on",
    ]  # fmt: skip
    assert deploy.deploy(conn, other) == []
    assert value(conn, "SELECT json_schema -> 'required' FROM outbox.pipelines") == ["n"]
