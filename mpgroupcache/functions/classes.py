"""Objects of an application's classes, as parts that can be encoded. `encoding` says what tells them apart."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from enum import Enum, Flag
from typing import Any, TypeAlias

from msgspec import Struct

Apart: TypeAlias = Callable[[Any], Iterable[Any]]
"""What takes a value apart: none of its parts may be the value itself."""


class Unkeyable(Exception):
    """Of ``kind`` no key is made; ``str()`` says so in a few words."""

    def __init__(self, kind: type, why: str = "") -> None:
        super().__init__(f"{full_name(kind)}{why}")
        self.kind = kind


def full_name(kind: type) -> str:
    """Return what an error calls it."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def apart(kind: type) -> Apart:
    """Find what takes objects of ``kind`` apart. The first part says which class it is. Raises `Unkeyable`.

    What is returned does not hold ``kind``: a class that is defined again must be able to go.
    """
    numpy: Any = sys.modules.get("numpy")
    if kind.__module__ == "numpy" and issubclass(kind, numpy.generic):
        # Of structured ones the dtype's name does not say the fields; the value of others is no value of Python's.
        if issubclass(kind, (numpy.void, numpy.object_, numpy.longdouble, numpy.clongdouble)):
            raise Unkeyable(kind)
        return lambda value: [f"numpy:{value.dtype.name}", value.item()]
    name = f"{kind.__module__}:{kind.__qualname__}"
    if hasattr(kind, "__mpgroupcache_key__"):
        return lambda value: [name, type(value).__mpgroupcache_key__(value)]
    found = _apart_by_name(kind, name)
    if _named(kind) is not kind:
        raise Unkeyable(kind, ", which is not found under its name")
    return found


def _apart_by_name(kind: Any, name: str) -> Apart:
    if issubclass(kind, Enum):
        if issubclass(kind, Flag):  # many have no name, or one that is made of others
            return lambda value: [name, value.value]
        return lambda value: [name, value.name]
    own = kind.__dict__
    if issubclass(kind, tuple) and "_fields" in own:
        fields = own["_fields"]
        return lambda value: [name, fields, *tuple.__iter__(value)]
    if "__dataclass_fields__" in own:
        fields = tuple(field.name for field in dataclasses.fields(kind) if field.compare)
    elif issubclass(kind, Struct):
        fields = kind.__struct_fields__
    else:
        raise Unkeyable(kind)
    return lambda value: [name, fields, *(getattr(value, field) for field in fields)]


def _named(kind: type) -> Any:
    """What is found where ``kind`` says that it is, as pickle looks for it."""
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found
