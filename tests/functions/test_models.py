"""Values of pydantic: by TypeAdapter, checked as all others."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Generic, Literal, TypeVar

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from mpgroupcache import ByteView
from mpgroupcache.functions.codecs import Codec, codec_of

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"


class User(BaseModel):
    """Not of the schema."""

    id: int = Field(description="nor is this")
    name: str = "Ann"
    joined: datetime.datetime | None = None
    tags: set[str] = set()
    balance: decimal.Decimal = decimal.Decimal(0)
    color: Color = Color.RED


class Admin(User):
    rights: list[str] = []


class Aliased(BaseModel):
    number: int = Field(alias="theNumber")


class Hiding(BaseModel):
    shown: int
    hidden: int = Field(default=0, exclude=True)
    _private: int = PrivateAttr(default=0)


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    owner: str


class Page(BaseModel, Generic[T]):
    items: list[T]


class Based(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
    data: bytes
    number: float = 0


@dataclasses.dataclass
class Holder:
    user: User
    key: uuid.UUID


def codec_for(annotation: Any) -> Codec:
    def load() -> None: ...

    load.__annotations__["return"] = annotation
    load.__qualname__ = "load"
    return codec_of(load)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
USERS = st.builds(
    User,
    id=st.integers(),
    name=TEXTS,
    joined=st.none() | st.datetimes(),
    tags=st.sets(TEXTS),
    balance=st.decimals(allow_nan=False, allow_infinity=False),
)

ANNOTATED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (User, USERS),
    (User | None, st.none() | USERS),
    (list[User], st.lists(USERS, max_size=3)),
    (dict[str, User], st.dictionaries(TEXTS, USERS, max_size=3)),
    (Admin, st.builds(Admin, id=st.integers(), rights=st.lists(TEXTS))),
    (Aliased, st.integers().map(lambda number: Aliased(theNumber=number))),
    (Cat | Dog, st.builds(Cat, lives=st.integers()) | st.builds(Dog, owner=TEXTS)),
    (Annotated[Cat | Dog, Field(discriminator="kind")], st.builds(Dog, owner=TEXTS)),
    (Page[User], st.lists(USERS, max_size=3).map(lambda users: Page[User](items=users))),
    (Based, st.builds(Based, data=st.binary(), number=st.floats(allow_nan=False))),
    (Holder, st.builds(Holder, USERS, st.uuids())),
]


@pytest.mark.parametrize(("annotation", "values"), ANNOTATED, ids=[str(index) for index in range(len(ANNOTATED))])
def test_what_is_returned_comes_back(annotation: Any, values: st.SearchStrategy[Any]) -> None:
    codec = codec_for(annotation)

    @given(values)
    def comes_back(value: Any) -> None:
        encoded, back = codec.checked(value)
        for one in (back, codec.decode(ByteView(encoded)), codec.decode(bytes(encoded))):
            assert type(one) is type(value)
            assert one == value

    comes_back()
    assert not codec.shareable


def hiding(**values: int) -> Hiding:
    model = Hiding(shown=1, hidden=values.get("hidden", 0))
    model._private = values.get("private", 0)
    return model


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (User, {"id": 1}, "load: got dict, expected test_models.User: the dict would come back as"),
        (User, Admin(id=1), "the test_models.Admin would come back as test_models.User; return what is annotated"),
        (list[User], [User(id=1), Admin(id=1)], "the test_models.Admin at [1] would come back as test_models.User; "),
        (User | None, 7, "load: got int, expected test_models.User | None: "),
        (Hiding, hiding(hidden=1), "load: got test_models.Hiding, expected test_models.Hiding: "),
        (Hiding, hiding(private=1), "load: got test_models.Hiding, expected test_models.Hiding: "),
        (Page[bytes], Page[bytes](items=[b"\xff"]), "invalid utf-8 sequence"),
        (Page[float], Page[float](items=[float("inf")]), "load: got test_models.Page[float], expected "),
    ],
)
def test_what_would_not_come_back_is_refused(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        codec_for(annotation).checked(value)
    assert message in str(raised.value)


def test_what_is_hidden_comes_back_where_it_is_the_default() -> None:
    assert codec_for(Hiding).checked(hiding())[1] == hiding()


def schema_of(**fields: Any) -> bytes:
    return codec_for(pydantic.create_model("Model", **fields)).schema


def test_the_schema_is_of_names_and_types() -> None:
    others = [schema_of(a=int), schema_of(a=str), schema_of(b=int), schema_of(a=int, b=int), schema_of(a=int | None)]
    assert len({*others}) == len(others)
    assert schema_of(a=(int, Field(description="A.", title="A", examples=[7]))) == others[0]
    assert schema_of(a=(int, 1)) == schema_of(a=(int, 2))
    assert schema_of(title=int) != schema_of(title=str)
    assert len({schema_of(**{name: int}) for name in ("title", "description", "default", "$defs", "properties")}) == 5
    told = codec_for(User).schema
    assert told.startswith(b'pydantic:{"')
    assert not any(word in told for word in (b"schema", b"nor is", b"Ann", b"User", b"title"))


def test_a_default_that_is_no_json_is_no_matter() -> None:
    assert schema_of(a=(Any, object())).startswith(b"pydantic:")


def test_a_model_that_names_what_is_not_there_yet_is_looked_at_again() -> None:
    class Linked(BaseModel):
        other: Further | None = None  # type: ignore[name-defined]  # noqa: F821

    codec = codec_for(Linked)
    with pytest.raises(
        TypeError, match="load: its return annotation cannot be resolved: name 'Further' is not defined"
    ):
        codec.checked(None)
    globals()["Further"] = int
    try:
        assert codec.checked(Linked(other=1))[1].other == 1
    finally:
        del globals()["Further"]


def test_what_pydantic_cannot_do_is_refused_at_the_declaration() -> None:
    class Own:
        pass

    class Open(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        own: Own

    with pytest.raises(TypeError, match="load: its return annotation: got .*Open, expected a type whose values can be"):
        codec_for(Open)
