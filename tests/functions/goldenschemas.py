"""Types, and their schemas as they were when they were written down.

An interpreter that has msgspec says with ``import goldenschemas; goldenschemas.main()`` which are others there.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union

import msgspec
from msgspec.inspect import type_info

from mpgroupcache.functions.schemas import text_of

GOLDEN = Path(__file__).parent / "goldenschemas.txt"

T = TypeVar("T")
UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = "red"
    CRIMSON = RED
    BLUE = "blue"


class Number(enum.IntEnum):
    TWO = 2
    ONE = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Point:
    """Not of the schema."""

    x: int
    y: int = 7
    label: Optional[str] = None  # noqa: UP045


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point3:
    z: float
    made: datetime.datetime
    parts: tuple[int, ...] = ()


@dataclasses.dataclass
class Node:
    children: list[Node]
    point: Point
    again: Point | None = None


class Pair(NamedTuple):
    a: int
    b: str = "b"


class Row(TypedDict, total=False):
    name: str
    age: int


class Record(msgspec.Struct):
    a: int
    b: list[int] = msgspec.field(default_factory=list)


class Renamed(msgspec.Struct, rename="camel", tag="r", array_like=True, frozen=True):
    first_name: str
    last_name: str = ""


class Omitting(msgspec.Struct, omit_defaults=True):
    a: int = 1
    b: str = "b"


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    owner: str


class Box(msgspec.Struct, Generic[T]):
    content: T


TYPES: dict[str, Any] = {
    "None": None,
    "bool": bool,
    "float": float,
    "moments": tuple[datetime.datetime, datetime.date, datetime.time, datetime.timedelta],
    "numbers": tuple[decimal.Decimal, uuid.UUID, int],
    "optional": Optional[int],  # noqa: UP045
    "none first": None | int,
    "union": Union[str, int, float, None],  # noqa: UP007
    "literal": Literal["b", "a", 2, None],
    "new": UserId,
    "annotated": Annotated[int, msgspec.Meta(ge=0, description="for people")],
    "mapping": Mapping[str, Sequence[int]],
    "any": dict[str, Any],
    "object": dict[str, object],
    "sets": tuple[set[int], frozenset[str]],
    "Color": Color,
    "Number": Number,
    "Access": Access,
    "Point": Point,
    "Point3": Point3,
    "Node": Node,
    "Pair": Pair,
    "Row": Row,
    "Record": Record,
    "Renamed": Renamed,
    "Omitting": Omitting,
    "Cat or Dog": Cat | Dog,
    "Dog or Cat": Dog | Cat,
    "boxes": tuple[Box[int], Box[str], Box[int]],
}


def schema_of(name: str) -> str:
    return text_of(type_info(TYPES[name])).decode()


def read() -> dict[str, str]:
    return dict(line.split("  ", 1) for line in GOLDEN.read_text().splitlines())


def main() -> None:
    """Say where this interpreter differs, and how many types it has looked at."""
    golden = read()
    for name, schema in golden.items():
        if (got := schema_of(name)) != schema:
            print(f"{name}: {got}, expected {schema}")
    print(f"{len(golden)} types")
