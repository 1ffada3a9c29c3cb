"""Values of functions: what comes back is what was returned, or it is refused."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import json
import math
import subprocess
import sys
import typing
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpgroupcache
from mpgroupcache import ByteView
from mpgroupcache.functions.codecs import Codec, codec_of
from tests.go import testpb_pb2

T = TypeVar("T")
UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    ONE = "one"


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Mixed(enum.Enum):
    A = 1
    B = "b"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 2


@dataclasses.dataclass
class Point3(Point):
    z: int = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    name: str
    at: datetime.datetime | None = None
    parts: tuple[Point3, ...] = ()


@dataclasses.dataclass(eq=False)
class Incomparable:
    number: float
    total: float = dataclasses.field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.total = self.number * 2


@dataclasses.dataclass
class Counting:
    n: int

    def __post_init__(self) -> None:
        self.n += 1


@dataclasses.dataclass
class Initialized:
    n: int
    start: dataclasses.InitVar[int] = 0


@dataclasses.dataclass
class Node:
    children: list[Node]


@dataclasses.dataclass
class Boxed(Generic[T]):
    content: T


class Pair(NamedTuple):
    a: int
    b: str = "b"


class Row(TypedDict, total=False):
    name: str
    age: int


class Record(msgspec.Struct, array_like=True):
    a: int
    b: list[int]


class Cat(msgspec.Struct, tag=True, frozen=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    owner: str


class Plain(msgspec.Struct):
    a: int


class Text(str):
    __slots__ = ()


class Own:
    pass


NOTHING: Any = object()


def returns(annotation: Any = NOTHING) -> Callable[..., Any]:
    """A function with this annotation."""

    def load() -> None: ...

    load.__annotations__ = {} if annotation is NOTHING else {"return": annotation}
    load.__qualname__ = "load"
    return load


def codec_for(annotation: Any = NOTHING, codec: object = None) -> Codec:
    return codec_of(returns(annotation), codec)


def there_and_back(codec: Codec, value: object) -> Any:
    """What comes back, of each kind of bytes."""
    encoded, back = codec.checked(value)
    assert bytes(encoded) == bytes(codec.encode(value))
    for stored in (bytes(encoded), ByteView(encoded), ByteView(b"<" + bytes(encoded) + b">")[1:-1]):
        again = codec.decode(stored)
        assert spelled(again) == spelled(back)
    return back


def spelled(value: Any) -> object:
    """A value and all types in it."""
    kind = type(value)
    if isinstance(value, dict):
        return kind, [(spelled(key), spelled(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return kind, [spelled(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(str(spelled(item)) for item in value)
    if dataclasses.is_dataclass(value):
        return kind, [spelled(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, msgspec.Struct):
        return kind, [spelled(getattr(value, name)) for name in value.__struct_fields__]
    return kind, repr(value)


# ---- What comes back ------------------------------------------------------------------------------------------------

INTS = st.integers(-(1 << 63), (1 << 64) - 1)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | INTS | st.booleans() | st.none(), inner),
    max_leaves=8,
)
MOMENTS = (st.datetimes(timezones=st.just(datetime.UTC)) | st.datetimes()).map(lambda moment: moment.replace(fold=0))
POINTS = st.builds(Point, INTS, INTS)

ANNOTATED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (NOTHING, PLAIN),
    (Any, PLAIN),
    (object, PLAIN),
    (dict, st.dictionaries(st.text(), PLAIN)),
    (list, st.lists(PLAIN)),
    (bytes, st.binary()),
    (bytearray, st.binary().map(bytearray)),
    (str, st.text()),
    (int, st.integers()),
    (int, st.integers(-(1 << 600), 1 << 600)),
    (UserId, st.integers()),
    (Annotated[str, "for people"], st.text()),
    (bool, st.booleans()),
    (float, st.floats()),
    (None, st.none()),
    (Optional[int], st.none() | INTS),  # noqa: UP045
    (int | str | None, st.none() | INTS | st.text()),
    (bytes | None, st.none() | st.binary()),
    (Literal["a", 1], st.sampled_from(["a", 1])),
    (decimal.Decimal, st.decimals()),
    (uuid.UUID, st.uuids()),
    (datetime.datetime, MOMENTS),
    (datetime.date, st.dates()),
    (datetime.time, st.times().map(lambda time: time.replace(fold=0))),
    (datetime.timedelta, st.timedeltas(min_value=datetime.timedelta(-9999), max_value=datetime.timedelta(9999))),
    (list[int], st.lists(INTS)),
    (tuple[int, str], st.tuples(INTS, st.text())),
    (tuple[float, ...], st.lists(st.floats()).map(tuple)),
    (set[str], st.sets(st.text())),
    (frozenset[uuid.UUID], st.frozensets(st.uuids())),
    (dict[int, list[str]], st.dictionaries(INTS, st.lists(st.text()))),
    (dict[tuple[int, int], Point], st.dictionaries(st.tuples(INTS, INTS), POINTS)),
    (dict[str, Any], st.dictionaries(st.text(), st.lists(INTS | st.floats() | st.text() | st.none()))),
    (Mapping[str, Sequence[int]], st.dictionaries(st.text(), st.lists(INTS))),
    (Color, st.sampled_from(Color)),
    (Number, st.sampled_from(Number)),
    (dict[Word, Access], st.dictionaries(st.sampled_from(Word), st.sampled_from([Access.READ, Access(3), Access(0)]))),
    (Point, POINTS),
    (Point | None, st.none() | POINTS),
    (Point3, st.builds(Point3, INTS, INTS, INTS)),
    (
        Frozen,
        st.builds(Frozen, name=st.text(), at=MOMENTS | st.none(), parts=st.lists(st.builds(Point3, INTS)).map(tuple)),
    ),
    (Incomparable, st.builds(Incomparable, st.floats())),
    (Node, st.recursive(st.just(Node([])), lambda inner: st.lists(inner, max_size=3).map(Node), max_leaves=5)),
    (Boxed[int], st.builds(Boxed, INTS)),
    (Boxed, st.builds(Boxed, st.text() | st.lists(INTS))),
    (Pair, st.builds(Pair, INTS, st.text())),
    (Row, st.fixed_dictionaries({}, optional={"name": st.text(), "age": INTS})),
    (Record, st.builds(Record, INTS, st.lists(INTS))),
    (Cat | Dog | None, st.none() | st.builds(Cat, INTS) | st.builds(Dog, st.text())),
]


@pytest.mark.parametrize(("annotation", "values"), ANNOTATED, ids=[str(index) for index in range(len(ANNOTATED))])
def test_what_is_returned_comes_back(annotation: Any, values: st.SearchStrategy[Any]) -> None:
    codec = codec_for(annotation)

    @given(values)
    def comes_back(value: Any) -> None:
        assert spelled(there_and_back(codec, value)) == spelled(value)

    comes_back()


def test_what_comes_back_is_another_object() -> None:
    """Nobody gets what the function may have kept, and goes on to change."""
    value = {"a": [1]}
    for codec in (codec_for(), codec_for(dict[str, list[int]])):
        _, back = codec.checked(value)
        assert back == value
        assert back is not value
        assert back["a"] is not value["a"]


def test_bytes_text_and_numbers_are_stored_as_groups_have_them() -> None:
    assert codec_for(bytes).encode(b"\xff") == b"\xff"
    assert codec_for(str).encode("é") == "é".encode()
    assert codec_for(int).encode(-70) == b"-70"


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, Number.ONE, 1),
        (str, Word.ONE, "one"),
        (str, Text("a"), "a"),
        (list[str], [Text("a"), Word.ONE], ["a", "one"]),
        (bytes, bytearray(b"x"), b"x"),
        (bytes, memoryview(b"x"), b"x"),
        (bytes, ByteView(b"x"), b"x"),
        (float, 1, 1.0),
        (dict[str, int], collections.Counter("a"), {"a": 1}),
        (dict[str, list[int]], collections.defaultdict(list, a=[1]), {"a": [1]}),
        (tuple[int, str], Pair(1), (1, "b")),
    ],
)
def test_what_is_equal_comes_back_as_annotated(annotation: Any, value: object, expected: object) -> None:
    assert spelled(there_and_back(codec_for(annotation), value)) == spelled(expected)


def test_a_moment_comes_back_in_utc_and_without_a_fold() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=1))
    back = there_and_back(codec_for(datetime.datetime), datetime.datetime(2024, 5, 1, 0, 30, tzinfo=zone))
    assert back.isoformat() == "2024-04-30T23:30:00+00:00"
    assert there_and_back(codec_for(datetime.time), datetime.time(2, 30, fold=1)).fold == 0


# ---- What is refused ------------------------------------------------------------------------------------------------

REMEDY = "return what is annotated, annotate what is returned, or say codec='pickle'"
UNANNOTATED = "expected None, bool, int, float, str, bytes, or lists and dicts of these: "
ANNOTATE = "annotate the return type, or say codec='pickle'"


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int, 1.5, "load: got float, expected int: 'float' object cannot be interpreted as an integer; " + REMEDY),
        (int, True, "load: got bool, expected int: it is a bool; " + REMEDY),
        (int | None, 1 << 64, "load: got int, expected int | None: can't serialize ints < -2**63 or > 2**64 - 1; "),
        (bool, 1, "load: got int, expected bool: Expected `bool`, got `int`; "),
        (str, 7, "load: got int, expected str: " + REMEDY),
        (str, "\ud800", "load: got str, expected str: 'utf-8' codec can't encode character '\\ud800'"),
        (bytes, "x", "load: got str, expected bytes: " + REMEDY),
        (None, 7, "load: got int, expected NoneType: Expected `null`, got `int`; "),
        (list[int], [1, "a"], "load: got list, expected list[int]: Expected `int`, got `str` - at `$[1]`; "),
        (list[int], (1, 2), "load: got tuple, expected list[int]: the tuple would come back as list; "),
        (Sequence[int], (1, 2), "the tuple would come back as list; "),
        (datetime.date, datetime.datetime(2024, 1, 1), "load: got datetime.datetime, expected datetime.date: "),
        (Literal["a"], "b", "Invalid enum value 'b'; "),
        (
            Point,
            Point3(1, 2, 3),
            "load: got test_codecs.Point3, expected test_codecs.Point: the test_codecs.Point3 would come back as "
            "test_codecs.Point; " + REMEDY,
        ),
        (Boxed[Point], Boxed(Point3(1)), "the test_codecs.Point3 at .content would come back as test_codecs.Point; "),
        (dict[str, list[Point]], {"a": [Point(1), Point3(1)]}, "the test_codecs.Point3 at ['a'][1] would come back as"),
        (Boxed[int], Boxed("x"), "Expected `int`, got `str` - at `$.content`; "),
        (Counting, Counting(1), "the int at .n would come back as another; "),
        (Row, {"name": "a", "year": 1}, "load: got dict, expected test_codecs.Row: the dict would come back without"),
        (dict[str, Any], {"a": (1, 2)}, "the tuple at ['a'] would come back as list; "),
        (dict[str, Any], {"a": {"b": datetime.date(2024, 1, 1)}}, "the datetime.date at ['a']['b'] would come back as"),
        (dict[Any, Any] | None, {Point(1, 2).x: Pair(1)}, "the test_codecs.Pair at [1] would come back as list; "),
        (Annotated[int, msgspec.Meta(ge=0)], -1, "Expected `int` >= 0; "),
        (Node, Own(), "a test_codecs.Own in it cannot be encoded; "),
        (NOTHING, (1, 2), "load: got tuple, " + UNANNOTATED + ANNOTATE),
        (Any, Point(1), "load: got test_codecs.Point, " + UNANNOTATED + ANNOTATE),
        (NOTHING, {"a": [1, (2,)]}, UNANNOTATED + "the tuple at ['a'][1] is none of these; " + ANNOTATE),
        (NOTHING, [{(1, 2): 3}], UNANNOTATED + "a key at [0] is a tuple; " + ANNOTATE),
        (NOTHING, Word.ONE, "load: got test_codecs.Word, "),
        (NOTHING, [Text("a")], "the test_codecs.Text at [0] is none of these; "),
        (NOTHING, collections.Counter("a"), "load: got collections.Counter, "),
        (NOTHING, {1 << 70: 1}, "can't serialize ints"),
        (dict, [1], "load: got list, expected a dict, in it None, "),
        (testpb_pb2.TestMessage, testpb_pb2.TestRequest(lower="a"), "expected testpb_pb2.TestMessage: " + REMEDY),
    ],
)
def test_what_would_not_come_back_is_refused(annotation: Any, value: object, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        codec_for(annotation).checked(value)
    assert message in str(raised.value)


def test_a_number_of_more_digits_than_python_writes_is_refused() -> None:
    with pytest.raises(TypeError, match=r"load: got int, expected int: Exceeds the limit \(\d+ digits\)"):
        codec_for(int).checked(10**5000)


def test_what_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for annotation in (NOTHING, list[Any], Boxed):
        with pytest.raises(TypeError, match="load: got list, .*recursion"):
            codec_for(annotation).checked(endless)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Own, "got test_codecs.Own, expected a type whose values can be stored: msgspec decodes no test_codecs.Own; "),
        (list[Own], "msgspec decodes no test_codecs.Own; annotate another one, or say codec='pickle' or codec='view'"),
        (Boxed[Own], "msgspec decodes no test_codecs.Own; "),
        (collections.Counter[str], "got collections.Counter[str], expected a type whose values can be stored: "),
        (Iterator[int], "msgspec decodes no collections.abc.Iterator; "),
        (testpb_pb2.TestMessage | None, "no testpb_pb2.TestMessage (where there is none, raise NotFound); "),
        (str | bytes, "Type unions may not contain more than one str-like type"),
        (Point | Frozen, "Type unions may not contain more than one dataclass or attrs type"),
        (Cat | Plain, "all Struct types must be tagged"),
        (Mixed, "Enums must contain either all str or all int values"),
        (Initialized, "dataclasses with `InitVar` fields are not supported"),
        (typing.Self, "Type 'typing.Self' is not supported"),
        (7, "Type '7' is not supported"),
        ("1 +", "got what cannot be evaluated, expected a type whose values can be stored: Forward reference must be"),
    ],
)
def test_what_could_never_come_back_is_refused_at_the_declaration(annotation: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        codec_for(annotation)
    assert str(raised.value).startswith("load: its return annotation: got ")
    assert message in str(raised.value)


# ---- What annotations mean ------------------------------------------------------------------------------------------


def test_annotations_are_evaluated_where_the_function_was_written() -> None:
    """This module's are texts."""

    def user() -> Point: ...

    assert there_and_back(codec_of(user), Point(1)) == Point(1)


def test_what_can_be_called_has_values() -> None:
    class Loader:
        def __call__(self, key: int) -> Point: ...

        def method(self, key: int) -> Point: ...

    async def load(key: int) -> Point: ...

    @functools.wraps(load)
    def wrapped(*args: Any) -> Any: ...

    for function in (Loader(), Loader().method, Loader.method, load, wrapped, functools.partial(load, 7)):
        assert codec_of(function).schema == codec_for(Point).schema
    assert codec_of(lambda: None).schema == codec_for().schema
    assert asyncio.iscoroutinefunction(load)


def test_a_wrapper_has_the_names_of_what_it_wraps() -> None:
    def load() -> Point: ...

    elsewhere: dict[str, Any] = {}
    exec("def wrapper(*args): ...", elsewhere)
    wrapper = functools.wraps(load)(elsewhere["wrapper"])
    assert codec_of(functools.partial(wrapper, 7)).schema == codec_for(Point).schema


def test_what_a_function_closes_over_may_come_later() -> None:
    def load() -> Point:
        return Point(later)

    assert codec_of(load).schema == codec_for(Point).schema
    later = 1
    assert load() == Point(1)


def test_names_that_a_function_closes_over_are_known() -> None:
    @dataclasses.dataclass
    class Local:
        x: int

    def load() -> Local:
        return Local(1)

    assert there_and_back(codec_of(load), load()) == Local(1)


def test_a_class_is_the_annotation_of_its_own_methods() -> None:
    """It has no name yet when they are declared."""
    codecs = []

    def declared(function: Callable[..., Any]) -> Callable[..., Any]:
        codecs.append(codec_of(function))
        return function

    @dataclasses.dataclass
    class Tree:
        size: int

        @declared
        def grown(self) -> Later | None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(
        TypeError, match=r"grown: its return annotation cannot be resolved: name 'Later' is not defined"
    ):
        codecs[0].checked(None)
    globals()["Later"] = Tree
    try:
        assert codecs[0].checked(Tree(1))[1] == Tree(1)
        assert type(codecs[0]) is Codec  # whose attributes cost no more than others'
    finally:
        del globals()["Later"]


def test_a_class_that_names_what_is_not_there_yet_is_looked_at_again() -> None:
    class Holder(msgspec.Struct):
        held: LaterToo  # type: ignore[name-defined]  # noqa: F821

    codec = codec_of(returns(list[Holder]))
    globals()["LaterToo"] = int
    try:
        assert codec.shareable is False
        assert codec.checked([Holder(1)])[1] == [Holder(1)]
    finally:
        del globals()["LaterToo"]


def test_what_is_never_resolved_says_what_to_do() -> None:
    def load() -> Hidden:  # type: ignore[name-defined]  # noqa: F821
        ...

    codec = codec_of(load)
    for read in (lambda: codec.schema, lambda: codec.decode, lambda: codec.checked(1)):
        with pytest.raises(TypeError, match=r"name 'Hidden' is not defined; name what its module has, .* say codec="):
            read()
    assert codec_of(load, "view").checked(b"x")[1] == b"x"
    assert codec_of(load, "pickle").checked({1, 2})[1] == {1, 2}
    assert not hasattr(codec, "other")


# ---- Codecs by name, and one's own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [codec_for(codec="view"), codec_for(Own, "view"), codec_for(ByteView)])
def test_a_view_is_what_was_stored(codec: Codec) -> None:
    view = ByteView(b"abc")
    assert codec.decode(view) is view
    for value in (b"abc", "abc", bytearray(b"abc"), ByteView(b"abc")):
        encoded, back = codec.checked(value)
        assert type(back) is ByteView
        assert back == encoded == b"abc"
    assert codec.checked(testpb_pb2.TestMessage(name="a"))[0] == testpb_pb2.TestMessage(name="a").SerializeToString()
    assert codec.zero_copy
    with pytest.raises(TypeError, match="load: got dict, expected bytes, str or a protobuf message: return one of"):
        codec.checked({})


def test_a_pickle_is_of_anything_and_only_by_name() -> None:
    codec = codec_for(codec="pickle")
    value = {"a": (Point3(1), {Mixed.A})}
    assert spelled(there_and_back(codec, value)) == spelled(value)
    assert codec.runs_code
    assert not codec_for(Point).runs_code
    with pytest.raises(TypeError, match="load: got function, expected what can be pickled: "):
        codec.checked(lambda: None)


def test_the_schema_of_a_pickle_is_that_of_its_type() -> None:
    schemas = [codec_for(kind, "pickle").schema for kind in (NOTHING, Point, list[Point], Own, Point | Frozen)]
    assert len({*schemas}) == 4 + 1
    assert schemas[1].startswith(b"pickle:")


class Zipped:
    """A codec of an application's."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.schema = f"zipped:{level}"

    def encode(self, value: Any) -> bytes:
        return zlib.compress(json.dumps(value).encode(), self.level)

    def decode(self, view: ByteView) -> Any:
        return json.loads(zlib.decompress(view))


def test_a_codec_of_ones_own() -> None:
    codec = codec_for(Own, Zipped(3))
    assert there_and_back(codec, {"a": [1]}) == {"a": [1]}
    assert codec.schema == b"own:zipped:3"
    assert not codec.shareable
    with pytest.raises(TypeError, match="load: got .*Own, expected what its codec encodes: Object of type Own is not"):
        codec.checked(Own())


def test_a_module_or_a_class_can_be_a_codec() -> None:
    class Texts:
        schema = b"texts"
        encode = staticmethod(str.encode)
        decode = staticmethod(lambda view: str(view, "utf-8"))

    assert there_and_back(codec_for(codec=msgspec.json), [1]) == [1]
    assert codec_for(codec=msgspec.json).schema == b"own:msgspec.json"
    assert codec_for(codec=Texts).schema == b"own:texts"
    Texts.schema = None  # type: ignore[assignment]
    assert codec_for(codec=Texts).schema == codec_for(codec=Texts()).schema
    Texts.encode = staticmethod(json.dumps)  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"load: got list, .*: its codec's encode\(\) returned str, expected bytes"):
        codec_for(codec=Texts).checked([1])


@pytest.mark.parametrize(
    ("codec", "error", "message"),
    [
        (
            "msgpack",
            ValueError,
            "load: codec: got 'msgpack', expected 'view', 'pickle', an object with encode and decode",
        ),
        (
            7,
            TypeError,
            r"load: codec: got int, expected 'view', 'pickle', an object with encode\(value\) and decode\(view",
        ),
        (bytes, TypeError, "load: codec: got type, expected"),
    ],
)
def test_what_is_no_codec_is_refused(codec: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codec_for(int, codec)


def test_a_schema_that_is_none_is_refused() -> None:
    codec = Zipped(1)
    codec.schema = 7  # type: ignore[assignment]
    with pytest.raises(TypeError, match="load: codec: its schema is int, expected bytes or str"):
        codec_for(codec=codec)


# ---- Messages -------------------------------------------------------------------------------------------------------


def test_a_message_is_its_wire_format() -> None:
    codec = codec_for(testpb_pb2.TestMessage)
    message = testpb_pb2.TestMessage(name="a", city="b")
    assert there_and_back(codec, message) == message
    assert codec.encode(message) == message.SerializeToString()
    assert codec.schema == b"protobuf:testpb.TestMessage"
    assert not codec.shareable
    with pytest.raises(TypeError, match=r"load: got testpb_pb2.TestRequest, expected .*lower"):
        codec_for(testpb_pb2.TestRequest).checked(testpb_pb2.TestRequest())


# ---- What else follows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "shareable"),
    [
        (bytes, True),
        (str, True),
        (int, True),
        (float | None, True),
        (Cat, True),
        (tuple[Cat, ...], True),
        (Pair, True),
        (Color, True),
        (bytearray, False),
        (NOTHING, False),
        (list, False),
        (Point, False),
        (Dog, False),
        (Frozen, False),  # of Point3
        (Row, False),
        (ByteView, False),
    ],
)
def test_what_can_be_given_to_many(annotation: Any, shareable: bool) -> None:
    assert codec_for(annotation).shareable is shareable


def test_what_holds_the_stored_bytes_is_known() -> None:
    class Raw(msgspec.Struct):
        raw: msgspec.Raw

    codec = codec_of(returns(Raw))
    view = ByteView(codec.encode(Raw(msgspec.Raw(b"\x01"))))
    raw = codec.decode(view)
    view.release()
    assert bytes(raw.raw) == b"\x01"
    assert codec.zero_copy
    assert codec_for(memoryview).zero_copy
    assert not any(codec_for(annotation).zero_copy for annotation in (NOTHING, bytes, str, Point, dict[str, bytes]))


def test_schemas_tell_codecs_apart() -> None:
    kinds = [NOTHING, dict, list, bytes, bytearray, str, int, float, ByteView, Point, Point3, testpb_pb2.TestMessage]
    schemas = [codec_for(kind).schema for kind in kinds] + [codec_for(codec="pickle").schema]
    assert len({*schemas}) == len(schemas)
    assert codec_for(Any).schema == codec_for(object).schema == codec_for().schema
    assert codec_for(Optional[int]).schema == codec_for(int | None).schema == codec_for(None | int).schema  # noqa: UP045


def test_decoding_is_msgspecs_own() -> None:
    assert type(codec_for(Point).decode.__self__) is msgspec.msgpack.Decoder  # type: ignore[attr-defined]
    assert codec_for(bytes).decode is bytes
    assert codec_for(int).decode is int


def test_nan_is_no_difference() -> None:
    values = [{"a": math.nan}, {math.nan: 1.0}]
    assert spelled(codec_for(dict[str, float]).checked(values[0])[1]) == spelled(values[0])
    assert spelled(codec_for(dict[float, float]).checked(values[1])[1]) == spelled(values[1])
    nans = [decimal.Decimal("sNaN"), decimal.Decimal("NaN")]
    assert spelled(codec_for(list[decimal.Decimal]).checked(nans)[1]) == spelled(nans)


def test_nan_is_no_difference_wherever_a_set_has_it() -> None:
    codec = codec_for(set[float])
    for seed in range(200):  # a NaN has the hash of its object
        value = {float("nan"), float("nan"), *map(float, range(seed % 10))}
        assert len(codec.checked(value)[1]) == len(value)


@pytest.mark.parametrize("annotation", ["bytes", "Point", "dict", "list[int] | None"])
def test_nothing_is_imported_that_was_not_asked_for(annotation: str) -> None:
    script = f"""
import dataclasses, sys
from mpgroupcache.functions.codecs import codec_of
@dataclasses.dataclass
class Point:
    x: int
def load() -> {annotation}: ...
codec_of(load).schema
print([name for name in ("numpy", "pydantic", "google.protobuf", "pickle") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_byteview_of_the_package_is_meant() -> None:
    assert codec_for(mpgroupcache.ByteView).schema == codec_for(codec="view").schema
