"""How values of one type are stored: the formats of plain bytes, of texts, of what says its own."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mpgroupcache.functions.classes import full_name
from mpgroupcache.late import importing
from mpgroupcache.shm._view import ByteView
from mpgroupcache.sinks import encode_value

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Format(NamedTuple):
    """How values of one type are stored."""

    encode: Callable[[Any], Buffer]
    """Raises what it likes for a value that cannot be stored."""

    decode: Callable[[Any], Any]
    """Takes a `ByteView`, or bytes."""

    schema: bytes
    """What tells it from each format that would read other values from the same bytes: the same in every process."""

    shareable: bool = False
    """Whether one decoded value can be given to many: nothing in it can be changed."""

    zero_copy: bool = False
    """Whether a decoded value refers to the bytes that it was decoded from."""

    runs_code: bool = False
    """Whether to decode is to run what the bytes name: then they have to be of this host."""

    exact: bool = True
    """Whether what ``encode`` takes comes back as it was."""

    expected: str = ""
    """What errors say is expected. Empty: what the annotation says."""


class Unencodable(TypeError):
    """Says what cannot be stored, and what to do, where the general advice does not do."""


# ---- bytes, str, int: as groups and Go peers have them -------------------------------------------------------------


def _bytes_of(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview, ByteView)):
        return bytes(value)
    raise TypeError


def _utf8_of(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError
    return str.encode(value)


def _text_of(view: Any) -> str:
    return str(view) if type(view) is ByteView else str(view, "utf-8")


def _digits_of(value: Any) -> bytes:
    if isinstance(value, bool):
        raise TypeError("it is a bool")
    return b"%d" % operator.index(value)


BUILT_IN: Final = {
    bytes: Format(_bytes_of, bytes, b"bytes", shareable=True),
    bytearray: Format(_bytes_of, bytearray, b"bytearray"),
    str: Format(_utf8_of, _text_of, b"str", shareable=True),
    # Decimal, as `Group.incr` counts, and of any size: MessagePack has 64 bits.
    int: Format(_digits_of, int, b"int", shareable=True),
}


def _view_of(view: Any) -> ByteView:
    return view if type(view) is ByteView else ByteView(view)


def _shown(value: Any) -> bytes:
    try:
        return encode_value(value)
    except TypeError:
        raise Unencodable("return one of these, or have its annotation choose: leave codec= out") from None


VIEW: Final = Format(_shown, _view_of, b"view", zero_copy=True, expected="bytes, str or a protobuf message")


# ---- What says its own ----------------------------------------------------------------------------------------------


def is_message(kind: object) -> bool:
    """Whether it is a class of protobuf messages."""
    return (
        isinstance(kind, type)
        and hasattr(kind, "DESCRIPTOR")
        and callable(getattr(kind, "SerializeToString", None))
        and callable(getattr(kind, "FromString", None))
    )


def message_format(kind: Any) -> Format:
    """The wire format of protobuf."""
    parse = kind.FromString

    def encode(message: Any) -> bytes:
        if type(message) is not kind:
            raise TypeError
        serialized: bytes = message.SerializeToString()
        return serialized

    return Format(encode, lambda view: parse(bytes(view)), b"protobuf:" + kind.DESCRIPTOR.full_name.encode())


def pickle_format(schema: bytes) -> Format:
    with importing:
        import pickle

    return Format(
        lambda value: pickle.dumps(value, protocol=5),
        pickle.loads,
        b"pickle:" + schema,
        runs_code=True,
        expected="what can be pickled",
    )


def format_of_object(codec: Any) -> Format:
    """The format of a codec of the application's."""
    schema = getattr(codec, "schema", None)
    if schema is None or callable(schema):  # that of the module msgspec.json is a function
        kind = codec if isinstance(codec, type) else type(codec)
        schema = codec.__name__ if isinstance(codec, ModuleType) else full_name(kind)
    if isinstance(schema, str):
        schema = schema.encode()
    if not isinstance(schema, bytes):
        raise TypeError(f"its schema is {full_name(type(schema))}, expected bytes or str")

    def encode(value: Any) -> Buffer:
        encoded = codec.encode(value)
        if not isinstance(encoded, (bytes, bytearray, memoryview)):
            raise TypeError(f"its codec's encode() returned {full_name(type(encoded))}, expected bytes")
        return encoded

    return Format(encode, codec.decode, b"own:" + schema, expected="what its codec encodes")
