"""What is stored can be read back as it was given, or it is refused and says where it differs."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import threading
import uuid
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import psycopg
import pydantic
import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
    model_serializer,
)

from kit.pipelines import Post, deployed, one_stage, run_one, value
from outbox import Backoff, InvalidInput, Pipeline, Run, signal
from outbox.documents import dump_any

Conn = psycopg.Connection[Any]
CANARY = "canary-5f2a"
T = TypeVar("T")


class Secret(BaseModel):
    token: SecretStr


class Excluded(BaseModel):
    kept: int = 1
    gone: int = Field(default=0, exclude=True)


class Lossy(BaseModel):
    name: str

    @model_serializer
    def written(self) -> dict[str, str]:
        return {"name": self.name[:1]}


class Rounded(BaseModel):
    price: float

    @field_serializer("price")
    def written(self, price: float) -> float:
        return round(price, 1)


class OneWayBytes(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64")
    raw: bytes


class Hashing(BaseModel):
    hashed: Annotated[str, AfterValidator(lambda text: "hash:" + text)]


class Base(BaseModel):
    n: int = 1


class Sub(Base):
    more: str = "x"


class Holder(BaseModel):
    base: Base
    list_of: list[Base] = []


class Crossed(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    a: int = Field(default=1, alias="b")
    b: int = Field(default=2, alias="c")


class Private(BaseModel):
    n: int = 1
    _seen: int = PrivateAttr(default=0)


@dataclasses.dataclass
class Counted:
    n: int = 1
    made: int = dataclasses.field(default=0, init=False)


class Loose(BaseModel):
    details: dict[str, Any]


def private() -> Private:
    made = Private()
    made._seen = 5
    return made


def counted() -> Counted:
    made = Counted()
    made.made = 7
    return made


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a secret": (Secret, Secret(token=SecretStr(CANARY)), "token"),
    "an excluded field": (Excluded, Excluded(gone=5), "gone"),
    "a lossy serializer": (Lossy, Lossy(name="Anna"), "name"),
    "a rounding serializer": (Rounded, Rounded(price=1.234), "price"),
    "bytes one way": (OneWayBytes, OneWayBytes(raw=b"abcd"), "raw"),
    "a validator that adds": (Hashing, Hashing(hashed="x"), "hashed"),
    "a subclass in a field": (Holder, Holder(base=Sub()), "base"),
    "a subclass in a list": (Holder, Holder(base=Base(), list_of=[Base(), Sub()]), "list_of.1"),
    "a subclass as a whole": (Base, Sub(), ""),
    "an alias that is a field": (Crossed, Crossed(a=1, b=2).model_copy(update={"a": 9}), ""),
    "a private attribute": (Private, private(), "_seen"),
    "a field that isn't in init": (Counted, counted(), "made"),
    "a date in what has no type": (Loose, Loose(details={"on": dt.date(2026, 1, 2)}), "details.on"),
    "a set in what has no type": (Loose, Loose(details={"all": {1}}), "details.all"),
    "a number as a key": (Loose, Loose(details={"m": {1: "a"}}), "details.m"),
    "two keys that become one": (Loose, Loose(details={"m": {1: "a", "1": "b"}}), "details.m"),
    "a secret within a list": (list[Secret], [Secret(token=SecretStr(CANARY))], "0.token"),
}


def pipeline(data: Any) -> Pipeline[Any]:
    return Pipeline("p", data=data, initial="NEW", final={"DONE"})


@pytest.mark.parametrize(("data", "given", "where"), REFUSED.values(), ids=REFUSED)
def test_what_is_read_back_as_something_else_is_refused(data: Any, given: Any, where: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        pipeline(data).dump_readable(given)
    assert where in str(refused.value)
    assert CANARY not in str(refused.value)


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Point(NamedTuple):
    x: int
    y: float


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Box(BaseModel, Generic[T]):
    inside: T


class Tree(BaseModel):
    leaves: list[Tree] = []


class Plain:
    """A class of the user's without `==`."""

    def __init__(self, n: int) -> None:
        self.n = n


class Odd(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    plain: Annotated[Plain, pydantic.BeforeValidator(lambda v: v if isinstance(v, Plain) else Plain(v)),
                     pydantic.PlainSerializer(lambda v: v.n)]  # fmt: skip


class Aliased(BaseModel):
    first: int = Field(alias="First")
    second: int = Field(validation_alias=AliasChoices("zwei", "two"))
    third: int = Field(serialization_alias="Third")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def both(self) -> int:
        return self.first + self.second


class Locked(BaseModel):
    n: int = 1
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    at: dt.datetime
    id: uuid.UUID


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    n: int = 1


class Base64(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    raw: bytes


class Many(BaseModel):
    plain: int | str | bytes
    money: Decimal
    big: int
    float_: float
    naive: dt.datetime
    zoned: dt.datetime
    day: dt.date
    took: dt.timedelta
    raw: bytes
    unique: set[int]
    fixed: tuple[int, str]
    by_colour: dict[Colour, int]
    by_number: dict[int, str]
    point: Point
    url: pydantic.AnyUrl
    none: float | None = None


TWICE = dt.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
ROUND: dict[str, tuple[Any, Any]] = {
    "many types": (
        Many,
        Many(
            plain="1", money=Decimal("1.10"), big=10**40, float_=5e-324, naive=dt.datetime(1, 1, 1), zoned=TWICE,
            day=dt.date(9999, 12, 31), took=dt.timedelta(microseconds=1), raw="ü".encode(), unique={1, 2}, fixed=(1, "a"),
            by_colour={Colour.RED: 1}, by_number={1: "a"}, point=Point(1, 2.5), url=pydantic.AnyUrl("http://x"),
        ),
    ),
    "a discriminated union": (Annotated[Cat | Dog, Field(discriminator="kind")], Dog()),
    "a plain union": (list[Cat | Dog], [Cat(), Dog()]),
    "a generic": (Box[int], Box[int](inside=1)),
    "a recursive model": (Tree, Tree(leaves=[Tree(), Tree(leaves=[Tree()])])),
    "a root model": (RootModel[list[int]], RootModel[list[int]]([1])),
    "a class without ==": (Odd, Odd(plain=Plain(5))),
    "a lock in a private attribute": (Locked, Locked()),
    "aliases": (Aliased, Aliased(First=1, zwei=2, third=3)),
    "a strict model": (Strict, Strict(at=TWICE, id=uuid.UUID(int=5))),
    "extra fields": (Open, Open(n=2, other="x")),  # type: ignore[call-arg]
    "bytes in base64": (Base64, Base64(raw=b"\xff")),
    "a dataclass": (Counted, Counted(n=3)),
    "a private attribute as it begins": (Private, Private(n=2)),
    "an excluded field as it begins": (Excluded, Excluded(kept=2)),
    "a tuple in what has no type": (Loose, Loose(details={"x": (1, (2, 3))})),
    "a whole float in what has no type": (Loose, Loose(details={"x": 1e22, "y": Number.ONE})),
}  # fmt: skip


@pytest.mark.parametrize(("data", "given"), ROUND.values(), ids=ROUND)
def test_what_goes_round_is_accepted(data: Any, given: Any) -> None:
    for version in (1, 2) if isinstance(given, BaseModel) and not isinstance(given, RootModel) else (1,):
        p = Pipeline("p", data=data, initial="NEW", final={"DONE"}, version=version)
        assert json.loads(p.dump_readable(given)) is not None


@pytest.mark.parametrize("document", [{1: "a"}, {1: "a", "1": "b"}, {"a": [{None: 1}]}, {"a": ({True: 1},)}, {1.5: 2}])
def test_a_plain_document_has_strings_for_keys(document: dict[Any, Any]) -> None:
    with pytest.raises(InvalidInput, match="is a key, and keys of JSON are strings"):
        pipeline(None).dump_readable(document)
    with pytest.raises(InvalidInput, match="keys of JSON are strings"):
        dump_any(document, "payload")


def leaking(run: Run[Any]) -> Any:
    return Secret(token=SecretStr(CANARY))


def publishing(run: Run[Any]) -> None:
    run.publish("t", Secret(token=SecretStr(CANARY)))


def spawning(run: Run[Any]) -> None:
    run.spawn(Pipeline("kid", data=Secret, initial="A", final={"B"}), "kid", Secret(token=SecretStr(CANARY)))


@pytest.mark.parametrize("handler", [leaking, publishing, spawning])
def test_a_handler_that_stores_what_is_lost_fails_and_says_where(conn: Conn, dsn: str, handler: Any) -> None:
    run_one(conn, dsn, handler, data=Secret | Post, retry=Backoff(attempts=1))
    error = str(value(conn, "SELECT error || traceback FROM outbox.dead_jobs"))
    assert "reads back something else than it was given in token" in error
    assert CANARY not in error
    assert value(conn, "SELECT count(*) FROM outbox.messages") == 0


def test_a_signal_that_is_lost_is_refused(conn: Conn) -> None:
    p = deployed(conn, one_stage(publishing))
    p.submit(conn, "a", Post())
    with pytest.raises(InvalidInput, match="in token"):
        signal(conn, p, "a", "paid", Secret(token=SecretStr("x")))
