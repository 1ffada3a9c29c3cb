"""Expressions, their keys as they were when they were written down, and the classes that the expressions name.

An interpreter that has msgspec says with ``import goldenkeys; goldenkeys.main()`` which keys are others there.
"""

from __future__ import annotations

import dataclasses
import datetime  # noqa: F401
import decimal  # noqa: F401
import enum
import fractions  # noqa: F401
import math  # noqa: F401
import pathlib  # noqa: F401
import typing
import uuid  # noqa: F401
import zoneinfo  # noqa: F401
from collections import namedtuple
from pathlib import Path
from typing import Any

import msgspec

from mpgroupcache.functions.binding import Calls
from mpgroupcache.functions.encoding import encode

GOLDEN = Path(__file__).parent / "golden.txt"


class Color(enum.Enum):
    RED = 1
    CRIMSON = RED


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    ONE = "one"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Mode(enum.IntFlag):
    R = 4


@dataclasses.dataclass
class Point:
    x: int
    y: int
    seen: Any = dataclasses.field(default=None, compare=False)

    class Inner(enum.Enum):
        A = "a"


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: int


@dataclasses.dataclass
class Point3(Point):
    z: int = 0


class Pair(typing.NamedTuple):
    a: int
    b: object = None


Old = namedtuple("Old", "a b")


class Record(msgspec.Struct):
    a: int
    b: list[int]


class Wider(Record):
    c: int = 0


class Own:
    def __init__(self, number: int) -> None:
        self.number = number

    def __mpgroupcache_key__(self) -> object:
        return self.number, self.number + 1


class OwnStill(Own):
    pass


def plain(text: str) -> None: ...


def user(
    user_id: int, locale: str = "en", *rest: object, db: object = None, flag: bool = True, **more: object
) -> None: ...


def values(*values: object) -> bytes:
    return encode(values, map(str, range(len(values))), "values")


NAMES: dict[str, Any] = {
    **globals(),
    "plain": Calls(plain).key,
    "user": Calls(user, ignore=("db",)).key,
    "template": Calls(user, key="user:{user_id}:{locale}").key,
    "function": Calls(user, key=lambda user_id, *_, **__: (user_id,)).key,
}


def key_of(expression: str) -> str:
    key: bytes = eval(expression, NAMES)
    return key.hex()


def read() -> list[tuple[str, str]]:
    """Expressions and keys in hexadecimal digits."""
    lines = [line for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#")]
    return [(expression, key) for expression, _, key in (line.rpartition("  ") for line in lines)]


def main() -> None:
    """Say where this interpreter differs, and how many expressions it has looked at."""
    golden = read()
    for expression, key in golden:
        if (got := key_of(expression)) != key:
            print(f"{expression}: {got}, expected {key}")
    print(f"{len(golden)} expressions")
