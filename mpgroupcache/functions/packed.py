"""Values as MessagePack: of what msgspec decodes as annotated, and of what needs no annotation."""

from __future__ import annotations

import sys
from types import NoneType
from typing import Any, Final

from msgspec import inspect as kinds
from msgspec.msgpack import Decoder, Encoder, Ext

from mpgroupcache.functions import schemas
from mpgroupcache.functions.classes import full_name
from mpgroupcache.functions.formats import Format, Unencodable

# ---- As annotated ---------------------------------------------------------------------------------------------------

_BASES: Final[dict[type, Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: lambda value: bytes.join(b"", (value,)),
}


def _base_of(value: Any) -> Any:
    """What msgspec has no encoding of, as what it is a kind of."""
    for base, convert in _BASES.items():
        if isinstance(value, base):
            return convert(value)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        item = value.item()
        if not isinstance(item, numpy.generic):  # a longdouble's is one
            return item
    raise TypeError(f"a {full_name(type(value))} in it cannot be encoded")


_encode: Final = Encoder(enc_hook=_base_of).encode


def packed_format(annotation: Any, kind: kinds.Type) -> Format:
    """The format of what msgspec calls ``kind``."""
    return Format(
        _encode,
        Decoder(annotation).decode,
        b"msgpack:" + schemas.text_of(kind),
        shareable=schemas.is_immutable(kind),
        zero_copy=schemas.holds_bytes(kind),
        exact=False,
    )


# ---- Without an annotation ------------------------------------------------------------------------------------------

_SCALARS: Final = frozenset({NoneType, bool, int, float, str, bytes})
_BIG_INT: Final = 1  # the code of an extension
_REMEDY: Final = "annotate the return type, or say codec='pickle'"
_EXPECTED: Final = "None, bool, int, float, str, bytes, or lists and dicts of these"

_encode_plain: Final = Encoder().encode


def is_plain(kind: kinds.Type) -> bool:
    """Whether the annotation says no more than none: ``Any``, or a bare ``dict`` or ``list``."""
    if isinstance(kind, kinds.DictType):
        return schemas.is_any(kind.key_type) and schemas.is_any(kind.value_type)
    return schemas.is_any(kind.item_type) if isinstance(kind, kinds.ListType) else schemas.is_any(kind)


def plain_format(kind: kinds.Type) -> Format:
    """The format of None, bool, int, float, str, bytes, and lists and dicts of these, and of no subclass."""
    top: Any = {kinds.DictType: dict, kinds.ListType: list}.get(type(kind), object)

    def encode(value: Any) -> bytes:
        if not isinstance(value, top):
            raise TypeError
        _check(value, "")
        try:
            return _encode_plain(value)
        except OverflowError:
            return _encode_plain(_with_big_ints(value))

    decode = Decoder(Any if top is object else top, ext_hook=_extended).decode
    expected = _EXPECTED if top is object else f"a {top.__name__}, in it {_EXPECTED}"
    return Format(encode, decode, b"plain:" + top.__name__.encode(), expected=expected)


def _check(value: Any, place: str) -> None:
    """Raise what says which part of ``value`` is of no type that comes back without being named."""
    kind = type(value)
    if kind is list:
        if not _SCALARS.issuperset(map(type, value)):
            for index, item in enumerate(value):
                _check(item, f"{place}[{index}]")
    elif kind is dict:
        for key in value:
            if type(key) not in _SCALARS:
                raise Unencodable(f"a key{place and ' at ' + place} is a {full_name(type(key))}; {_REMEDY}")
        if not _SCALARS.issuperset(map(type, value.values())):
            for key, item in value.items():
                _check(item, f"{place}[{key!r:.40}]")
    elif kind not in _SCALARS:
        raise Unencodable((f"the {full_name(kind)} at {place} is none of these; " if place else "") + _REMEDY)


def _with_big_ints(value: Any) -> Any:
    kind = type(value)
    if kind is int and not -(1 << 63) <= value < 1 << 64:
        return Ext(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, signed=True))
    if kind is list:
        return [*map(_with_big_ints, value)]
    if kind is dict:
        return {key: _with_big_ints(item) for key, item in value.items()}
    return value


def _extended(code: int, data: memoryview) -> int:
    if code != _BIG_INT:
        raise ValueError(f"got an extension {code}, expected {_BIG_INT} alone")
    return int.from_bytes(data, signed=True)
