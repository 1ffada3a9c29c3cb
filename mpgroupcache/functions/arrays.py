"""Arrays and scalars of numpy, as .npy files have them: dtype and shape, and at a multiple of 64 bytes the elements.

What is decoded is an array on the bytes themselves, read-only. Nothing here imports numpy: who names its types has.
"""

from __future__ import annotations

import math
import struct
import sys
import typing
from ast import literal_eval
from io import BytesIO
from types import UnionType
from typing import Any, Final

from mpgroupcache.functions.formats import Format, Unencodable

_START: Final = struct.Struct("<8sH")
_MAGIC: Final = b"\x93NUMPY\1\0"
_MAX_KNOWN: Final = 1024

# Its header, dtype, number of elements, where they begin, shape and order.
_Layout: typing.TypeAlias = tuple[bytes, Any, int, int, tuple[int, ...], str]


def is_numpy(kind: Any) -> bool:
    """Whether it is numpy's ``ndarray``, of some dtype or of any, or a class of its scalars."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return False
    return (typing.get_origin(kind) or kind) is numpy.ndarray or _is_scalar(kind, numpy)


def _is_scalar(kind: Any, numpy: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, numpy.generic)


def numpy_format(kind: Any) -> Format:
    numpy: Any = sys.modules["numpy"]
    if _is_scalar(kind, numpy):
        return _scalar_format(kind, numpy)
    kinds = _kinds_of(kind, numpy)

    def encode(value: Any) -> bytes:
        if type(value) is not numpy.ndarray:
            raise Unencodable("expected numpy.ndarray and none of its subclasses; return numpy.asarray(...) of it")
        if kinds and not issubclass(value.dtype.type, kinds):
            raise TypeError(f"its dtype is {value.dtype}")
        return _encode(value, numpy)

    schema = ":".join(["array", *sorted(part.__name__ for part in kinds)]).encode()
    return Format(encode, _decoder(numpy), schema, zero_copy=True)


def _kinds_of(kind: Any, numpy: Any) -> tuple[type, ...]:
    """The classes of scalars that an annotation asks for, as in ``NDArray[float64 | float32]``; none: it does not."""
    *_, dtype = typing.get_args(kind) or (None,)
    *_, asked = typing.get_args(dtype) or (None,)
    members = typing.get_args(asked) if isinstance(asked, UnionType) or typing.get_origin(asked) is typing.Union else ()
    kinds = tuple(typing.get_origin(member) or member for member in members or (asked,))
    return kinds if all(_is_scalar(member, numpy) for member in kinds) else ()


def _scalar_format(kind: Any, numpy: Any) -> Format:
    decode = _decoder(numpy)

    def encode(value: Any) -> bytes:
        if not isinstance(value, kind):
            raise Unencodable(f"expected a numpy.{kind.__name__}; return one, or annotate what is returned")
        return _encode(numpy.asarray(value), numpy)

    # A copy: one of a structured dtype would be a view.
    return Format(
        encode,
        lambda view: decode(view).copy()[()],
        f"scalar:{kind.__name__}".encode(),
        shareable=not issubclass(numpy.void, kind),
    )


def _encode(array: Any, numpy: Any) -> bytes:
    npy = numpy.lib.format
    if array.dtype.hasobject:
        raise Unencodable(f"its dtype {array.dtype} refers to objects; convert it, or say codec='pickle'")
    header = BytesIO()
    try:
        said = npy.header_data_from_array_1_0(array)
        npy.write_array_header_1_0(header, said)
        written = npy.descr_to_dtype(said["descr"]) == array.dtype
    except ValueError:  # too many fields, or a name that is not Latin-1
        written = False
    if not written:
        raise Unencodable(f"its dtype {array.dtype} cannot be written down; convert it, or say codec='pickle'")
    elements = numpy.ascontiguousarray(array.T if said["fortran_order"] else array).reshape(-1)
    return b"".join((header.getvalue(), elements.view("u1")))


def _decoder(numpy: Any) -> Any:
    known: dict[bytes, _Layout] = {}  # by headers
    frombuffer = numpy.frombuffer
    last = _layout(_encode(numpy.empty(0), numpy), known, numpy)  # most values have the header of the one before

    def decode(view: Any) -> Any:
        nonlocal last
        header, dtype, count, offset, shape, order = last
        if not view.startswith(header):
            last = header, dtype, count, offset, shape, order = _layout(view, known, numpy)
        # Its base is a memoryview: that holds the bytes, even where somebody releases the ByteView.
        array = frombuffer(view, dtype, count, offset)
        return array.reshape(shape) if order == "C" else array.reshape(shape, order=order)

    return decode


def _layout(view: Any, known: dict[bytes, _Layout], numpy: Any) -> _Layout:
    """Read the header. It may be anybody's: what is no array raises something, here or in what follows."""
    magic, length = _START.unpack_from(view)
    if magic != _MAGIC:
        raise ValueError("expected an array as .npy files have it")
    header = bytes(memoryview(view)[: _START.size + length])
    layout = known.get(header)
    if layout is None:
        said = literal_eval(header[_START.size :].decode("latin-1").strip())
        dtype, shape = numpy.lib.format.descr_to_dtype(said["descr"]), tuple(map(int, said["shape"]))
        if len(known) >= _MAX_KNOWN:
            known.clear()
        layout = header, dtype, math.prod(shape), len(header), shape, "F" if said["fortran_order"] else "C"
        known[header] = layout
    return layout
