"""Arrays and scalars of numpy: on the stored bytes themselves, and as they were."""

from __future__ import annotations

import contextlib
import gc
import inspect
import io
import struct
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from arenas import Lookup, OpenArena, churn, hold
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mpgroupcache import ByteView
from mpgroupcache.functions.codecs import Codec, codec_of


def codec_for(annotation: Any) -> Codec:
    def load() -> None: ...

    load.__annotations__["return"] = annotation
    load.__qualname__ = "load"
    return codec_of(load)


ARRAY = codec_for(np.ndarray)


def view_of(array: Any) -> ByteView:
    return ByteView(b"<" + bytes(ARRAY.encode(array)) + b">")[1:-1]


def same(one: Any, other: Any) -> bool:
    """All of it, bit for bit, but for how it lies in memory."""
    return bool(
        type(one) is type(other)
        and one.dtype == other.dtype
        and one.shape == other.shape
        and one.tobytes() == other.tobytes()
    )


FIELDS = np.dtype([("a", "<i4"), ("b", "<f8", (2, 2)), ("c", "U3"), ("d", [("x", "M8[s]"), ("y", ">u2")])])

ARRAYS = {
    "floats": np.arange(12.0).reshape(3, 4),
    "Fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "three ways": np.arange(24, dtype="i2").reshape(2, 3, 4).transpose(0, 2, 1),
    "gaps": np.arange(100)[::3],
    "backwards": np.arange(10)[::-1],
    "broadcast": np.broadcast_to(np.float32(1.5), (3, 2)),
    "0-d": np.array(7.5),
    "0-d fields": np.zeros((), FIELDS),
    "empty": np.empty(0),
    "empty ways": np.empty((3, 0, 2), dtype="u1", order="F"),
    "big-endian": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "half": np.array([1.5], dtype="f2"),
    "NaN": np.array([np.nan, -0.0, np.inf]),
    "moments": np.array(["2024-05-01", "NaT"], dtype="M8[ns]"),
    "spans": np.array([1, 2], dtype="m8[D]"),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "no fields": np.zeros(3, []),
    "void": np.zeros(3, "V5"),
    "fields": np.ones((2, 2), FIELDS),
    "aligned": np.ones(2, np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "some fields": np.ones(3, [("a", "i4"), ("b", "f8"), ("c", "i2")])[["a", "c"]],
    "read-only": np.frombuffer(b"abcd", "u1"),
    "many fields": np.zeros(2, [(f"field_{number}", "i4") for number in range(1000)]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_as_it_was(name: str) -> None:
    array = ARRAYS[name]
    encoded, back = ARRAY.checked(array)
    for one in (back, ARRAY.decode(view_of(array)), ARRAY.decode(view_of(array))):
        assert same(one, array)
        assert one.flags.f_contiguous or not array.flags.f_contiguous
        assert one.flags.c_contiguous or not array.flags.c_contiguous
        assert not one.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            one[...] = 0
    assert len(encoded) % 64 == array.nbytes % 64


@given(
    arrays.arrays(
        arrays.scalar_dtypes()
        | arrays.array_dtypes(allow_subarrays=True)
        | arrays.nested_dtypes(max_itemsize=64).filter(lambda dtype: dtype.subdtype is None),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        fill=st.nothing(),
    ),
    st.sampled_from("CF"),
    st.data(),
)
def test_arrays_come_back_as_they_were(array: Any, order: str, data: st.DataObject) -> None:
    assume("\\u" not in ascii(array.dtype).lower())  # no name that is not Latin-1
    array = array.copy(order)
    if array.ndim and data.draw(st.booleans()):
        array = array[data.draw(arrays.basic_indices(array.shape))]
        if type(array) is not np.ndarray:
            return
    assert same(ARRAY.decode(view_of(array)), array)


def test_what_is_stored_is_a_file_of_numpy() -> None:
    array = ARRAYS["fields"]
    assert same(np.load(io.BytesIO(bytes(ARRAY.encode(array)))), array)
    file = io.BytesIO()
    np.save(file, ARRAYS["Fortran"])
    assert file.getvalue() == ARRAY.encode(ARRAYS["Fortran"])


@pytest.mark.parametrize("name", [name for name, array in ARRAYS.items() if array.nbytes])
def test_it_is_the_stored_bytes_themselves(name: str) -> None:
    view = view_of(ARRAYS[name])
    array = ARRAY.decode(view)
    stored = np.frombuffer(view, "u1")
    assert np.shares_memory(array, stored)
    assert array.ctypes.data + array.nbytes == stored.ctypes.data + stored.nbytes
    assert (array.ctypes.data - stored.ctypes.data) % 64 == 0


def test_it_holds_its_pin(arena: Callable[..., OpenArena]) -> None:
    """The value's memory is not used for another one while an array is there, released view or not."""
    opened = arena(1 << 20)
    lookup = Lookup(*opened.address)
    expected = np.arange(10_000.0)
    assert opened.arena.put(b"k", bytes(ARRAY.encode(expected)))
    view = hold(lookup, b"k")
    array = ARRAY.decode(view)
    part = array.reshape(100, 100)[3:, 5]
    view.release()
    del array, view
    opened.arena.remove(b"k")
    churn(opened)
    assert lookup.reader.live_pins == 1
    assert part.tolist() == expected.reshape(100, 100)[3:, 5].tolist()
    del part
    assert lookup.reader.live_pins == 0


def test_nothing_is_left_of_what_was_decoded() -> None:
    view = view_of(np.arange(3))
    array = ARRAY.decode(view)
    gone = weakref.ref(array)
    del array
    gc.collect()
    assert gone() is None
    view.release()


def test_threads_get_what_they_asked_for() -> None:
    """All of them have one note of the header that came last."""
    kinds = [np.full((2, 3), 1, "i2"), np.full(9, 2.0), np.full((1, 1), 3, "u1"), np.full((2, 2), 4, FIELDS["a"])]
    wrong: list[Any] = []

    def decode(array: Any) -> None:
        view = view_of(array)
        wrong.extend(filter(None, (not same(ARRAY.decode(view), array) for _ in range(2000))))

    threads = [threading.Thread(target=decode, args=(array,)) for array in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_no_more_headers_are_known_than_bound() -> None:
    for size in range(3000):
        array = np.zeros(size, "u1")
        assert same(ARRAY.decode(view_of(array)), array)
    assert 0 < len(inspect.getclosurevars(ARRAY.decode).nonlocals["known"]) <= 1024


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (np.ndarray, np.array([object()]), "got numpy.ndarray, expected numpy.ndarray: its dtype object refers to"),
        (np.ndarray, np.array([("a", 1)], "O,i4"), "refers to objects; convert it, or say codec='pickle'"),
        (np.ndarray, np.array(["a"], np.dtypes.StringDType()), "refers to objects; convert it"),
        (np.ndarray, np.zeros(1, [("λ", "i4")]), "cannot be written down; convert it, or say codec='pickle'"),
        (np.ndarray, np.zeros(1, [(f"field_{i}", "i4") for i in range(5000)]), "cannot be written down; convert it"),
        (np.ndarray, np.ma.array([1], mask=[True]), "got numpy.ma.MaskedArray, expected numpy.ndarray: expected"),
        (np.ndarray, np.float64(1), "none of its subclasses; return numpy.asarray(...) of it"),
        (np.ndarray, [1.0], "got list, expected numpy.ndarray: "),
        (npt.NDArray[np.float32], np.zeros(1), "its dtype is float64; return what is annotated"),
        (npt.NDArray[np.integer[Any] | np.float32], np.zeros(1), "its dtype is float64; "),
        (np.float64, 1.0, "got float, expected numpy.float64: expected a numpy.float64; return one, or annotate"),
        (np.float64, np.float32(1), "got numpy.float32, expected numpy.float64: "),
    ],
)
def test_what_would_not_come_back_is_refused(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        codec_for(annotation).checked(value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (np.ndarray, b"array"),
        (npt.NDArray[Any], b"array"),
        (npt.NDArray[np.float64], b"array:float64"),
        (npt.NDArray[np.int8 | np.float64], b"array:float64:int8"),
        (np.ndarray[tuple[int, int], np.dtype[np.uint8]], b"array:uint8"),
        (np.float64, b"scalar:float64"),
    ],
)
def test_the_dtype_is_of_the_schema(annotation: Any, schema: bytes) -> None:
    assert codec_for(annotation).schema == schema


def test_an_array_of_the_annotated_dtype_is_taken() -> None:
    for annotation in (npt.NDArray[np.float64], npt.NDArray[np.floating[Any]], npt.NDArray[np.int8 | np.float64]):
        assert same(codec_for(annotation).checked(np.ones(3))[1], np.ones(3))
    assert ARRAY.zero_copy
    assert not ARRAY.shareable


SCALARS = [np.float32(0.1), np.int64(-7), np.bool_(True), np.complex64(1j), np.str_("a"), np.datetime64("2024", "D")]


@pytest.mark.parametrize("value", [*SCALARS, np.longdouble(1) / 3, np.timedelta64(5, "us"), np.bytes_(b"ab")])
def test_a_scalar_comes_back_as_it_was(value: Any) -> None:
    codec = codec_for(type(value))
    encoded, back = codec.checked(value)
    for one in (back, codec.decode(ByteView(encoded))):
        assert type(one) is type(value)
        assert one.dtype == value.dtype
        assert one == value
    assert codec.shareable
    assert not codec.zero_copy


def test_a_scalar_with_fields_is_a_copy() -> None:
    codec = codec_for(np.void)
    view = ByteView(codec.encode(np.ones((), FIELDS)[()]))
    record = codec.decode(view)
    assert record.dtype == FIELDS
    assert not np.shares_memory(record, np.frombuffer(view, "u1"))
    assert not codec.shareable


@pytest.mark.parametrize(("annotation", "value"), [(int, np.int16(7)), (float, np.float32(0.5)), (bool, np.bool_(1))])
def test_a_scalar_is_taken_for_a_number_of_pythons(annotation: Any, value: Any) -> None:
    for codec, one in ((codec_for(annotation), value), (codec_for(list[annotation]), [value])):
        back = codec.checked(one)[1]
        assert back == one
        assert type(back[0] if isinstance(back, list) else back) is annotation


def header(text: str) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode("latin-1")


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\x93NUMPY\1\0",
        b"\x93NUMPY\2\0\x10\0\0\0" + b" " * 50,
        b"\x93NUMPZ" + bytes(ARRAY.encode(np.arange(9)))[6:],
        header("") + bytes(64),
        header("{}") + bytes(64),
        header("__import__('os')") + bytes(64),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + bytes(8),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (9,), }") + bytes(64),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }") + bytes(60),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (-2, -3), }") + bytes(64),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (1 << 80,), }") + bytes(64),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999,), }") + bytes(64),
        header("[" * 60_000) + bytes(64),
        bytes(ARRAY.encode(np.arange(9)))[:-1],
    ],
    ids=range(15),
)
def test_what_is_no_array_raises(stored: bytes) -> None:
    """What a peer sent may be anything."""
    with pytest.raises((ValueError, TypeError, KeyError, SyntaxError, MemoryError, OverflowError, struct.error)):
        ARRAY.decode(ByteView(stored))


@given(st.binary(max_size=200), st.integers(0, 200))
def test_bytes_of_anybody_are_an_array_or_raise(noise: bytes, place: int) -> None:
    whole = bytearray(ARRAY.encode(ARRAYS["floats"]))
    whole[place : place + len(noise)] = noise
    with contextlib.suppress(Exception):
        assert type(ARRAY.decode(bytes(whole))) is np.ndarray
