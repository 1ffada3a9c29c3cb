"""What becomes of a value that is stored: nothing, if what comes back is equal to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final

from msgspec.msgpack import Encoder

from mpgroupcache.functions.classes import full_name

_encode: Final = Encoder(order="deterministic").encode


_OF_MODELS: Final = ("__pydantic_private__", "__pydantic_extra__")  # beside a model's fields


def difference(value: Any, back: Any, place: str = "") -> str | None:
    """Say where ``back`` is another value than ``value``, if it is: None where both are equal.

    What is not equal to itself (a NaN, an object whose class compares none) is looked at part by part.
    """
    if _are_equal(value, back):
        return None
    kind = type(value)
    where = f" at {place}" if place else ""
    if type(back) is not kind:
        return f"the {full_name(kind)}{where} would come back as {full_name(type(back))}"
    parts, parts_back = _parts(value), _parts(back)
    if parts is None or parts_back is None:
        return None if _have_one_encoding(value, back) else f"the {full_name(kind)}{where} would come back as another"
    if len(parts) != len(parts_back):
        return f"the {full_name(kind)}{where} would come back without some of its parts"
    found = (difference(part, back, place + name) for (name, part), (_, back) in zip(parts, parts_back, strict=True))
    return next(filter(None, found), None)


def _are_equal(value: Any, back: Any) -> bool:
    try:
        return bool(value == back)
    except Exception:  # a class's own ==, or that of a signalling NaN
        return False


def _have_one_encoding(value: Any, back: Any) -> bool:
    try:
        if isinstance(value, (set, frozenset)):  # not the encoder's own order: it puts no NaN in its place
            return sorted(map(_encode, value)) == sorted(map(_encode, back))
        return _encode(value) == _encode(back)
    except Exception:
        return False


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """The parts of a value by their names, in its order; None: it has none."""
    if isinstance(value, dict):
        items = ((f"[{key!r:.40}]", key, item) for key, item in value.items())
        return [pair for name, key, item in items for pair in ((f"{name} (the key)", key), (name, item))]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    kind = type(value)
    names: Iterable[str]
    if hasattr(value, "__struct_fields__"):
        names = value.__struct_fields__
    elif dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    elif hasattr(value, "__dict__"):
        names = (*vars(value), *_OF_MODELS) if hasattr(kind, _OF_MODELS[0]) else vars(value)
    else:
        return None
    return [(f".{name}", getattr(value, name, None)) for name in names]
