"""Values as keys: no two have one, all but those of an application's classes come back, and the rest is refused."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import gc
import math
import pathlib
import random
import struct
import subprocess
import sys
import types
import typing
import uuid
import weakref
import zoneinfo
from collections.abc import Callable
from datetime import timedelta, timezone
from fractions import Fraction
from typing import Any

import goldenkeys
import msgspec
import pytest
from goldenkeys import Color, Mode, Number, Own, Pair, Point, Word
from hypothesis import given
from hypothesis import strategies as st

from mpgroupcache.functions.encoding import PREFIX, decode, encode, encode_text, lowered, pack
from mpgroupcache.keys import MAX_KEY_BYTES


def key_of(value: object) -> bytes:
    return encode([value], ["value"], "f")


# Of every kind some that are nearly the same.
ZONES = [None, datetime.UTC, timezone(timedelta(0), "GMT"), timezone(timedelta(hours=1)), zoneinfo.ZoneInfo("UTC")]
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 1 << 63, 1 << 64, -(1 << 63) - 1, 0.0, -0.0, 1.0, math.nan, -math.nan, math.inf]),
    st.integers(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.complex_numbers(),
    st.decimals().filter(lambda number: not number.is_snan()),  # which cannot be hashed
    st.fractions(),
    st.booleans(),
)
TEXTS = st.one_of(
    st.sampled_from(["", "1", "a", "\0", "\ud800", "\udcff", "\ud83d\ude00", "\U0001f600", b"", b"1", b"a", b"\0"]),
    st.text(alphabet=st.characters(exclude_categories=[]), max_size=40),
    st.binary(max_size=40),
    st.sampled_from([pathlib.PurePosixPath("a"), pathlib.Path("a"), pathlib.Path("a/\udcff")]),
    st.just(pathlib.PureWindowsPath("a")),
    st.uuids(),
)
MOMENTS = st.one_of(
    st.dates(),
    st.times(timezones=st.sampled_from(ZONES)),
    st.datetimes(timezones=st.sampled_from(ZONES)),
    st.timedeltas(),
    st.sampled_from(ZONES),
    st.builds(
        datetime.datetime.replace,
        st.datetimes(timezones=st.sampled_from(ZONES)),
        fold=st.integers(0, 1),
    ),
)
HASHABLE = st.recursive(
    NUMBERS | TEXTS | MOMENTS,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(HASHABLE, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3)
    ),
    max_leaves=8,
)


NEAR = st.recursive(
    st.sampled_from([0, False, 0.0, -0.0, None, "", "0", "\0", b"", b"0", b"\0"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.lists(inner, max_size=2).map(tuple) | st.dictionaries(st.just(0), inner)
    ),
    max_leaves=3,
)


def spelled(value: Any) -> object:
    """A value and all types in it, so that those are equal that should have one key."""
    kind = type(value)
    if kind is float:
        return "float", struct.pack("d", value)
    if kind is complex:
        return "complex", struct.pack("dd", value.real, value.imag)
    if kind in (tuple, list):
        return kind.__name__, tuple(spelled(item) for item in value)
    if kind in (set, frozenset):
        return kind.__name__, sorted(str(spelled(item)) for item in value)
    if kind is dict:
        return "dict", sorted((str(spelled(key)), str(spelled(item))) for key, item in value.items())
    if kind is datetime.timezone:
        return "timezone", value.utcoffset(None), value.tzname(None)
    if kind in (datetime.datetime, datetime.time):
        return kind.__name__, value.replace(tzinfo=None).isoformat(), value.fold, spelled(value.tzinfo)
    return kind.__name__, repr(value)


@given(st.lists(VALUES, max_size=4))
def test_what_is_encoded_comes_back(values: list[Any]) -> None:
    key = encode(values, map(str, range(len(values))), "f")
    assert key.startswith(PREFIX)
    assert spelled(decode(key)) == spelled(values)


@given(VALUES | NEAR, VALUES | NEAR)
def test_two_values_have_one_key_if_they_are_one_value(one: Any, other: Any) -> None:
    assert (key_of(one) == key_of(other)) == (spelled(one) == spelled(other))


@given(st.lists(NEAR, max_size=3), st.lists(NEAR, max_size=3))
def test_no_key_begins_another(some: list[Any], others: list[Any]) -> None:
    """So what follows a value is never taken for a part of it."""
    encodings = [b"".join(pack(lowered(value)) for value in values) for values in (some, others)]
    assert (encodings[0] == encodings[1]) == (spelled(some) == spelled(others))


@given(st.dictionaries(HASHABLE, VALUES, max_size=8), st.randoms())
def test_the_order_of_dicts_and_sets_is_none(items: dict[Any, Any], chance: random.Random) -> None:
    shuffled = [*items.items()]
    chance.shuffle(shuffled)
    assert key_of(dict(shuffled)) == key_of(items)
    assert key_of({key for key, _ in shuffled}) == key_of({*items})
    assert key_of(frozenset(key for key, _ in shuffled)) == key_of(frozenset(items))


@pytest.mark.parametrize(
    "values",
    [
        [1, 1.0, True, "1", b"1", decimal.Decimal(1), Fraction(1), 1 + 0j, Number.ONE, (1,), [1], {1}, frozenset({1})],
        [0, 0.0, -0.0, False, None, "", b"", (), [], {}, set(), frozenset(), timedelta(0)],
        [math.nan, -math.nan, decimal.Decimal("NaN"), decimal.Decimal("sNaN"), decimal.Decimal("NaN1"), "nan"],
        [decimal.Decimal("1.0"), decimal.Decimal("1.00"), decimal.Decimal("1")],
        ["ab", ("a", "b"), ("ab",), ("a", "b", ""), ["a", "b"], ("a", ("b",))],
        [(1, (2, 3)), ((1, 2), 3), (1, 2, 3), ((1, 2, 3),)],
        [{"a": 1}, {"a": 1.0}, [("a", 1)], ("a", 1), {("a", 1)}],
        [Word.ONE, "one", "ONE", Number.ONE, Color.RED, Mode.R, 4],
        [Pair(1, 2), (1, 2), ("a", "b", 1, 2), goldenkeys.Old(1, 2), Point(1, 2), goldenkeys.Record(1, 2)],
        ["a", pathlib.Path("a"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")],
        [uuid.UUID(int=0), "00000000-0000-0000-0000-000000000000", b"\0" * 16],
        [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1), "2024-01-01"],
        [datetime.datetime(2024, 1, 1, fold=fold, tzinfo=zone) for zone in ZONES for fold in (0, 1)],
    ],
    ids=lambda values: str(values[0]),
)
def test_types_are_told_apart(values: list[Any]) -> None:
    assert len({key_of(value) for value in values}) == len(values)


def test_a_moment_that_is_decoded_has_the_zone_itself() -> None:
    moments = [
        datetime.datetime(2024, 1, 1, tzinfo=zone) for zone in (datetime.UTC, zoneinfo.ZoneInfo("Europe/Berlin"))
    ]
    decoded = decode(key_of(moments))[0]
    assert [moment.tzinfo for moment in decoded] == [moment.tzinfo for moment in moments]
    assert decoded[0].tzinfo is datetime.UTC
    assert decoded[1].tzinfo is moments[1].tzinfo


def test_what_is_not_compared_of_a_dataclass_is_left_out() -> None:
    assert key_of(Point(1, 2, seen=3)) == key_of(Point(1, 2, seen=object()))


def test_what_an_object_says_of_itself_comes_first() -> None:
    assert key_of(Own(1)) == key_of(Own(1))
    assert key_of(Own(1)) != key_of(Own(2))
    assert key_of(goldenkeys.OwnStill(1)) != key_of(Own(1))

    class Local(str):
        __slots__ = ()

        def __mpgroupcache_key__(self) -> str:
            return self.lower()

    assert key_of(Local("A")) == key_of(Local("a")) != key_of("a")


def test_objects_of_an_applications_classes_do_not_come_back() -> None:
    for value in (Color.RED, Point(1, 2), Pair(1), goldenkeys.Record(1, []), Own(1), [{"a": Point(1, 2)}]):
        with pytest.raises(KeyError):
            decode(key_of(value))


def test_numpy_scalars() -> None:
    numpy = pytest.importorskip("numpy")
    assert key_of(numpy.float32(1.5)).endswith(pack(["numpy:float32", 1.5]))
    values = [
        *(
            numpy.dtype(name).type(1)
            for name in ("i1", "i2", "i4", "i8", "u1", "u8", "f2", "f4", "f8", "c8", "c16", "?")
        ),
        numpy.str_("a"),
        numpy.bytes_(b"a"),
        numpy.datetime64("2024-01-01"),
        numpy.datetime64("2024-01-01", "ns"),
        numpy.datetime64("NaT", "ns"),
        numpy.timedelta64(1, "D"),
        numpy.timedelta64(1, "M"),
        1,
        1.0,
        "a",
        b"a",
    ]
    assert len({key_of(value) for value in values}) == len(values)
    assert key_of(numpy.float64(1.5)) == key_of(numpy.array([1.5])[0])
    for refused in (numpy.zeros(1), numpy.longdouble(1), numpy.zeros(1, "i4,f4")[0], numpy.dtype("i4")):
        with pytest.raises(TypeError, match="f: argument 'value': got numpy"):
            key_of(refused)

    class Mine(numpy.float64):  # type: ignore[misc,name-defined]
        pass

    with pytest.raises(TypeError, match="got .*Mine, expected"):
        key_of(Mine(1))


class Text(str):
    __slots__ = ()


class Wrapped(Pair):
    pass


class Undecorated(Point):
    pass


class Evasive:
    def __mpgroupcache_key__(self) -> object:
        return object()


class FixedZone(datetime.tzinfo):
    def utcoffset(self, moment: datetime.datetime | None) -> timedelta:
        return timedelta(0)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (object(), "object"),
        (print, "builtin_function_or_method"),
        (int, "type"),
        (Text("a"), "test_encoding.Text"),
        (Wrapped(1), "test_encoding.Wrapped"),
        (Undecorated(1, 2), "test_encoding.Undecorated"),
        (collections.OrderedDict(), "collections.OrderedDict"),
        (collections.defaultdict(int), "collections.defaultdict"),
        (collections.Counter("a"), "collections.Counter"),
        (types.MappingProxyType({}), "mappingproxy"),
        (collections.deque(), "collections.deque"),
        (bytearray(), "bytearray"),
        (memoryview(b""), "memoryview"),
        (range(3), "range"),
        (iter([]), "list_iterator"),
        ([1, {"a": (object(),)}], "a list that holds object"),
        ({object(): 1}, "a dict that holds object"),
        ({1, object()}, "a set that holds object"),
        (Point(1, object()), "a goldenkeys.Point that holds object"),  # type: ignore[arg-type]
        (datetime.time(1, tzinfo=FixedZone()), "a datetime.time that holds test_encoding.FixedZone"),
        (Evasive(), "a test_encoding.Evasive that holds object"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_key_is_refused(value: Any, got: str) -> None:
    with pytest.raises(TypeError) as raised:
        key_of(value)
    message = str(raised.value)
    assert message.startswith(f"f: argument 'value': got {got}")
    assert "ignore=('value',)" in message
    assert "key=" in message
    assert "__mpgroupcache_key__()" in message


def test_a_class_is_found_under_its_name() -> None:
    """Two that one function makes have one name."""

    def make(factor: int) -> Callable[[int], Any]:
        @dataclasses.dataclass
        class Scaled:
            x: int

            def value(self) -> int:
                return self.x * factor

        return Scaled

    for value in (make(1)(1), typing.NamedTuple("Pair", [("a", int)])(1), enum.Enum("Color", "RED").RED):
        with pytest.raises(TypeError, match="got .*, which is not found under its name, expected"):
            key_of(value)


def test_a_zone_without_a_name_is_refused() -> None:
    with (pathlib.Path(zoneinfo.TZPATH[0]) / "UTC").open("rb") as file:
        nameless = zoneinfo.ZoneInfo.from_file(file)
    with pytest.raises(TypeError, match="got a datetime.datetime that holds zoneinfo.ZoneInfo without a key"):
        key_of(datetime.datetime(2024, 1, 1, tzinfo=nameless))


def test_what_holds_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    deep: tuple[Any, ...] = ()
    for _ in range(10_000):
        deep = (deep,)
    for value in (circle, deep, {"a": circle}):
        with pytest.raises(ValueError, match="f: argument 'value': got a .* that holds itself or goes too deep"):
            key_of(value)


def test_a_class_that_is_gone_is_not_kept() -> None:
    """As one that a notebook defines again."""
    for make in (
        lambda: dataclasses.make_dataclass("Gone", ["x"]),
        lambda: typing.NamedTuple("Gone", [("x", int)]),
        lambda: msgspec.defstruct("Gone", ["x"]),
    ):
        kind: Any = make()
        kind.__module__ = __name__
        globals()["Gone"] = kind
        assert key_of(kind(1)) == key_of(kind(1))
        gone = weakref.ref(kind)
        del globals()["Gone"], kind
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("value", ["x", "\N{EURO SIGN}", b"x"], ids=["ascii", "text", "bytes"])
def test_what_is_too_long_is_hashed(value: Any) -> None:
    width = len(value.encode() if isinstance(value, str) else value)
    most = (MAX_KEY_BYTES - len(key_of(value * 1000)) + width * 1000) // width
    assert MAX_KEY_BYTES - width < len(key_of(value * most)) <= MAX_KEY_BYTES
    hashed = [key_of(value * (most + more)) for more in (1, 2, 100_000)]
    assert len({*hashed}) == len(hashed)
    for key in hashed:
        assert key.startswith(PREFIX)
        assert len(key) < 40
        with pytest.raises(msgspec.ValidationError):
            decode(key)


def test_a_plain_key_that_is_too_long_is_hashed() -> None:
    assert encode_text("x" * MAX_KEY_BYTES) == b"x" * MAX_KEY_BYTES
    keys = {encode_text("x" * (MAX_KEY_BYTES + 1)), encode_text("x" * (MAX_KEY_BYTES + 2)), key_of("x" * MAX_KEY_BYTES)}
    assert len(keys) == 3
    assert all(key.startswith(PREFIX) and len(key) < 40 for key in keys)


@given(st.text())
def test_no_plain_key_is_one_of_values(text: str) -> None:
    assert encode_text(text).decode() == text


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_a_text_that_is_no_utf_8_is_one_of_values(text: str) -> None:
    assert encode_text(text + "\udcff") == key_of(text + "\udcff")


def test_what_few_processes_import_is_imported_when_it_is_met() -> None:
    script = """
import sys
from mpgroupcache.functions.encoding import decode, encode
assert not {"fractions", "zoneinfo", "numpy"} & sys.modules.keys()
print(decode(bytes.fromhex(sys.argv[1])))
import fractions
assert encode([fractions.Fraction(1, 3)], ["value"], "f").hex() == sys.argv[1]
"""
    key = key_of(Fraction(1, 3)).hex()
    done = subprocess.run([sys.executable, "-c", script, key], capture_output=True, text=True, check=True)
    assert done.stdout == "[Fraction(1, 3)]\n"
