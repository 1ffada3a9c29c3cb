"""What ``ByteView`` shares with ``bytes``: the same questions have the same answers, over every backing."""

from __future__ import annotations

import ctypes
import operator
import sys
import tracemalloc
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from arenas import Lookup, OpenArena, hold
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mpgroupcache.ipc import memfd
from mpgroupcache.shm._exchange import sealed
from mpgroupcache.shm._view import ByteView

Of = Callable[[bytes], ByteView]


class Both(ctypes.c_uint16):
    """A number that is bytes-like, too, as numpy's are."""

    def __index__(self) -> int:
        return 97


def joined(most: int) -> st.SearchStrategy[bytes]:
    """Bytes that are often in one another, NUL among them."""
    return st.lists(st.sampled_from([b"a", b"b", b"\0", "ü".encode()]), max_size=most).map(b"".join)


values = joined(12)
like_bytes = st.sampled_from(
    [
        bytes,
        bytes,
        bytearray,
        memoryview,
        ByteView,
        lambda value: array("B", value),
        lambda value: memoryview(value)[::2],
    ]
).flatmap(lambda kind: joined(3).map(kind))
numbers = st.sampled_from([-1, 0, 97, 0xC3, 255, 256, 1 << 70, -(1 << 70), True, Both(0x6262)])
wrong = st.sampled_from([None, "", "a", 97.0, [97], (97,), (), object()])
needles = st.one_of(like_bytes, like_bytes, numbers, wrong)
parts = st.one_of(
    like_bytes, st.lists(st.one_of(like_bytes, like_bytes, numbers, wrong), max_size=3).map(tuple), needles
)
extreme = st.sampled_from([sys.maxsize, -sys.maxsize - 1, 1 << 70, -(1 << 70), Both(0), "1", 1.0])
places = st.one_of(st.none(), st.integers(-14, 14), st.integers(-14, 14), extreme)
bounds = st.lists(places, max_size=2)

same = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def answer(question: Callable[..., object], *arguments: Any) -> tuple[type, object]:
    """The type and value of the result, or the type of the error."""
    try:
        result = question(*arguments)
    except Exception as error:
        return type(error), None
    return type(result), result


@pytest.mark.parametrize("method", ["find", "index", "count"])
@given(value=values, needle=needles, bounds=bounds)
@example(value=b"ab", needle=b"", bounds=[2])
@example(value=b"ab", needle=b"", bounds=[3])
@example(value=b"ab", needle=b"", bounds=[2, 1])
@example(value=b"aaa", needle=b"aa", bounds=[])
@same
def test_searches(of: Of, method: str, value: bytes, needle: Any, bounds: list[Any]) -> None:
    assert answer(getattr(of(value), method), needle, *bounds) == answer(getattr(value, method), needle, *bounds)


@pytest.mark.parametrize("method", ["startswith", "endswith"])
@given(value=values, part=parts, bounds=bounds)
@example(value=b"ab", part=b"", bounds=[2])
@example(value=b"ab", part=b"", bounds=[3])
@example(value=b"ab", part=(), bounds=[])
@example(value=b"ab", part=((b"a",),), bounds=[])
@same
def test_beginnings_and_ends(of: Of, method: str, value: bytes, part: Any, bounds: list[Any]) -> None:
    assert answer(getattr(of(value), method), part, *bounds) == answer(getattr(value, method), part, *bounds)


@given(value=values, needle=needles)
@example(value=b"a\0b", needle=b"\0b")
@same
def test_in(of: Of, value: bytes, needle: Any) -> None:
    assert answer(operator.contains, of(value), needle) == answer(operator.contains, value, needle)


@given(
    value=values,
    separator=st.lists(st.sampled_from([":", b"-", "", "--", "ü", None, 1]), max_size=1),
    group=st.lists(st.one_of(st.integers(-14, 14), st.none()), max_size=1),
)
@same
def test_hex(of: Of, value: bytes, separator: list[Any], group: list[Any]) -> None:
    arguments = [*separator, *group]
    assert answer(of(value).hex, *arguments) == answer(value.hex, *arguments)
    if separator and group:
        assert answer(lambda: of(value).hex(sep=separator[0], bytes_per_sep=group[0])) == answer(value.hex, *arguments)


@given(
    value=values,
    cut=st.integers(0, 1),
    encoding=st.sampled_from(
        ["utf-8", "ascii", "latin-1", "utf-16", "cp1252", "idna", "hex", "nonsense", "u\0", None, 1]
    ),
    errors=st.sampled_from(["strict", "ignore", "replace", "nonsense", None]),
)
@same
def test_decode(of: Of, value: bytes, cut: int, encoding: Any, errors: Any) -> None:
    view, value = of(value)[cut:], value[cut:]
    assert answer(view.decode) == answer(value.decode)
    assert answer(view.decode, encoding) == answer(value.decode, encoding)
    assert answer(view.decode, encoding, errors) == answer(value.decode, encoding, errors)
    assert answer(lambda: view.decode(errors="replace")) == answer(lambda: value.decode(errors="replace"))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 31, 32, 33, 255, 256, 257, 5000])
def test_long_needles(of: Of, size: int) -> None:
    needle = b"a" * (size - 1) + b"b"
    value = b"a" * 2 * size + needle + b"a" * size + needle + b"a" * (size - 1)
    view = of(value)
    assert view.find(needle) == value.find(needle)
    assert view.find(needle, 2 * size) == value.find(needle, 2 * size)
    assert view.count(needle) == value.count(needle) == 2
    assert view.count(needle, 0, -size) == value.count(needle, 0, -size) == 1
    assert view.find(needle + b"b") == -1


def test_text_is_equal_and_yet_not_searched_for(of: Of) -> None:
    view = of(b"hello")
    assert view == "hello"
    assert b"hello" in view
    for question in (lambda: "hello" in view, lambda: view.find("hello"), lambda: view.startswith("hello")):  # type: ignore[arg-type, operator]
        with pytest.raises(TypeError, match="str"):
            question()
    with pytest.raises(ValueError, match=r"index: got what is not in the ByteView.*find\(\)"):
        view.index(b"other")


QUESTIONS: list[Callable[[ByteView], object]] = [
    *(lambda view: b"" in view, lambda view: 0 in view, lambda view: view.find(b""), lambda view: view.index(0)),
    *(lambda view: view.count(b""), lambda view: view.startswith(b""), lambda view: view.endswith(())),
    *(
        lambda view: view.decode(),
        lambda view: view.decode("latin-1"),
        lambda view: view.hex(),
        lambda view: view.hex(":"),
    ),
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_released_view_answers_nothing(of: Of, question: Callable[[ByteView], object]) -> None:
    view = of(b"value")
    view.release()
    with pytest.raises(ValueError, match="was released"):
        question(view)


def test_a_view_released_while_arguments_are_converted_says_so(arena: Callable[..., OpenArena]) -> None:
    opened = arena(1 << 20)
    assert opened.arena.put(b"key", b"value")
    lookup = Lookup(*opened.address)

    class Meddler:
        def __init__(self, view: ByteView) -> None:
            self.view = view

        def __index__(self) -> int:
            self.view.release()
            return 0

    for question in (
        lambda view: Meddler(view) in view,
        lambda view: view.find(Meddler(view)),
        lambda view: view.find(b"v", Meddler(view)),
        lambda view: view.count(b"v", 0, Meddler(view)),
        lambda view: view.startswith(b"v", Meddler(view)),
        lambda view: view.endswith((), 0, Meddler(view)),
    ):
        with pytest.raises(ValueError, match="was released"):
            question(hold(lookup, b"key"))
    view = hold(lookup, b"key")
    assert view.hex(":", Meddler(view)) == "76616c7565"  # it holds the value meanwhile
    assert lookup.reader.live_pins == 0


def test_arguments_are_let_go_of(of: Of) -> None:
    needle = bytearray(b"v")
    view = of(b"value")
    view.release()
    for question in (view.find, view.count, view.startswith, view.endswith):
        with pytest.raises(ValueError, match="was released"):
            question(needle)
    needle += b"more"  # a BufferError while anything shows it


def test_nothing_copies_the_value() -> None:
    size = 8 << 20
    view = ByteView(memfd.map(sealed(b"x" * size), size))
    questions: list[tuple[Callable[[], object], int]] = [
        *(
            (lambda: b"y" in view, 0),
            (lambda: 0 in view, 0),
            (lambda: view.find(b"xy"), 0),
            (lambda: view.count(b"x"), 0),
        ),
        *((lambda: view.startswith((b"y", b"xy")), 0), (lambda: view.endswith(b"y", 1), 0)),
        *((view.decode, size), (lambda: view.decode("latin-1"), size), (view.hex, 2 * size)),  # the result
    ]
    tracemalloc.start()
    try:
        for question, result in questions:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            question()
            assert tracemalloc.get_traced_memory()[1] - before < result + size // 4
    finally:
        tracemalloc.stop()
