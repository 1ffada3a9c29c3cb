"""Calls as keys, and keys as calls: every spelling, Python's own errors, and what a key alone says."""

from __future__ import annotations

import functools
import inspect
import random
import string
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from mpgroupcache.functions.binding import Calls
from mpgroupcache.functions.encoding import PREFIX, pack
from mpgroupcache.keys import MAX_KEY_BYTES


def user(user_id: int, locale: str = "en", *, db: object = None) -> None: ...


def every(a: object, /, b: object, c: object = 3, *d: object, e: object, f: object = 6, **g: object) -> None: ...


def returned(*args: Any, **kwargs: Any) -> inspect.BoundArguments:
    """What `every` would be given."""
    bound = inspect.signature(every).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound


def error_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """What Python says of a wrong call."""
    try:
        function(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "spelling",
    [
        lambda key: key(7),
        lambda key: key(user_id=7),
        lambda key: key(7, "en"),
        lambda key: key(7, locale="en"),
        lambda key: key(locale="en", user_id=7),
        lambda key: key(7, db=object()),
        lambda key: key(7, db=1, locale="en"),
    ],
)
def test_every_spelling_of_a_call_has_one_key(spelling: Callable[[Any], bytes]) -> None:
    assert spelling(Calls(user, ignore=("db",)).key) == PREFIX + pack([7, "en"])


SCALARS = st.sampled_from([0, 1, True, 1.0, "1", None, b"1", (), (1,), "en"])
NAMES = st.sampled_from([*"abcdefgxy"])


@given(st.lists(SCALARS, max_size=5), st.dictionaries(NAMES, SCALARS, max_size=5), st.randoms())
def test_arguments_are_bound_as_python_binds_them(
    args: list[Any], kwargs: dict[str, Any], chance: random.Random
) -> None:
    calls = Calls(every)
    if wrong := error_of(every, *args, **kwargs):
        assert error_of(calls.key, *args, **kwargs) == wrong
        return
    key = calls.key(*args, **kwargs)
    shuffled = [*kwargs.items()]
    chance.shuffle(shuffled)
    assert calls.key(*args, **dict(shuffled)) == key
    bound = returned(*args, **kwargs)
    assert calls.key(*bound.args, **bound.kwargs) == key
    call = calls.call(key)
    assert call is not None
    assert repr(returned(*call[0], **call[1])) == repr(returned(*bound.args, **dict(sorted(bound.kwargs.items()))))


SOME = st.tuples(st.lists(SCALARS, min_size=2, max_size=5), st.dictionaries(st.sampled_from("fgxy"), SCALARS))


@given(SOME, SOME)
def test_two_calls_have_one_key_if_they_are_one_call(one: Any, other: Any) -> None:
    keys, said = [], []
    for args, kwargs in (one, other):
        keys.append(Calls(every).key(*args, **kwargs, e=5))
        bound = returned(*args, **kwargs, e=5)
        said.append((repr(bound.args), sorted(map(repr, bound.kwargs.items()))))
    assert (keys[0] == keys[1]) == (said[0] == said[1])


def test_variadic_arguments_are_no_others() -> None:
    """As they are where the positional and the keyword ones are put in one row."""

    def some(*args: object, **kwargs: object) -> None: ...

    key = Calls(some).key
    keys = {key(), key("a", 1), key(("a", 1)), key(a=1), key({"a": 1}), key("a", a=1), key(**{"a=1": 1}), key("a=1")}
    assert len(keys) == 8


def test_an_ignored_argument_does_not_count_however_it_is_passed() -> None:
    def get(entity: str, session: object = None, limit: int = 1) -> None: ...

    key = Calls(get, ignore=("session",)).key
    assert key("a", object(), 2) == key("a", session=object(), limit=2) == key("a", limit=2)
    assert key("a") != key("a", None, 2)
    rest = Calls(every, ignore=("d", "g")).key
    assert rest(1, 2, 3, object(), e=5, x=object()) == rest(1, 2, e=5)


def test_a_lone_text_is_the_plain_key() -> None:
    def thumbnail(key: str, *, db: object = None) -> None: ...

    for spelled in (Calls(thumbnail, ignore=["db"]).key("cat.jpg"), Calls(lambda key: key).key(key="cat.jpg")):
        assert spelled == b"cat.jpg"
    assert Calls(thumbnail).key("cat.jpg") == PREFIX + pack(["cat.jpg", None])
    assert Calls(lambda *keys: keys).key("cat.jpg") == PREFIX + pack([Ext(3, pack(["cat.jpg"]))])


def test_a_function_without_arguments_has_one_key() -> None:
    calls = Calls(lambda: None)
    assert calls.key() == PREFIX + pack([])
    assert calls.call(calls.key()) == ([], {})


def test_what_is_too_long_is_hashed() -> None:
    def two(a: object, b: object) -> None: ...

    key = Calls(two).key
    longest = "x" * (MAX_KEY_BYTES - len(key("", "x" * 60_000)) + 60_000)
    assert len(key("", longest)) == MAX_KEY_BYTES
    hashed = [key("", longest + "x"), key("x", longest), key(longest, "x"), key((), longest), key("", longest + "xx")]
    assert len({*hashed}) == len(hashed)
    assert {len(key) for key in hashed} == {36}
    assert Calls(two).call(hashed[0]) is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "user() missing 1 required positional argument: 'user_id'"),
        ((1, 2, 3), "user() takes from 1 to 2 positional arguments but 3 were given"),
    ],
)
def test_a_wrong_call_is_pythons_own_error(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError) as raised:
        Calls(user).key(*args)
    assert str(raised.value) == message


def test_an_argument_without_a_key_is_named() -> None:
    with pytest.raises(TypeError, match=r"user: argument 'db': got object, .*ignore=\('db',\)"):
        Calls(user).key(7, db=object())
    with pytest.raises(TypeError, match="every: argument 'd': got a tuple that holds object, "):
        Calls(every).key(1, 2, 3, object(), e=1)
    with pytest.raises(TypeError, match="every: argument 'g': got a dict that holds object, "):
        Calls(every).key(1, 2, 3, e=1, x=object())


def test_names_of_parameters_meet_no_names_of_ours() -> None:
    calls = Calls(eval("lambda type, _type, _pack=1, __encode=2, *, str, key: None"))
    assert calls.key(1, 2, str="s", key=3) == PREFIX + pack([1, 2, 1, 2, "s", 3])
    assert calls.key(1, 2, 3, 4, str=(), key=5) == PREFIX + pack([1, 2, 3, 4, Ext(3, pack([])), 5])
    assert Calls(eval("lambda str: None")).key("a") == b"a"
    by_function = Calls(lambda function, encode: None, key=lambda a, b: (b, a))
    assert by_function.key(1, 2) == PREFIX + pack([Ext(3, pack([2, 1]))])


def test_defaults_are_those_of_the_declaration() -> None:
    class Twice:
        def __repr__(self) -> str:
            return "not an expression"

    mutable: list[int] = []

    def declared(a: object = mutable, b: object = Twice()) -> None: ...

    calls = Calls(declared, ignore=("b",))
    assert calls.key() == calls.key([])
    mutable.append(1)
    assert calls.key() == calls.key([1])


def test_the_source_can_be_read() -> None:
    assert (
        inspect.getsource(Calls(user, ignore=("db",)).key)
        == """\
def key(user_id, locale=_default_of_locale, *, db=_default_of_db):
    _key = None
    if _type(user_id) in _simple and _type(locale) in _simple:
        try:
            _key = _prefix + _pack((user_id, locale))
        except _refused:
            pass
    if _key is None or _len(_key) > _limit:
        _key = _encode((user_id, locale))
    return _key
"""
    )


def test_what_can_be_called_has_calls() -> None:
    class Loader:
        def __call__(self, key: int) -> None: ...

        def method(self, key: int) -> None: ...

    async def load(key: int) -> None: ...

    for function in (Loader(), Loader().method, load, functools.partial(user, db=None), functools.partial(user, 7)):
        assert Calls(function).key(7).startswith(PREFIX)
    with pytest.raises(TypeError, match="'key'"):
        Calls(Loader()).key()
    with pytest.raises(
        TypeError, match=r"type: got what shows no parameters \(.*\), expected a function of Python code"
    ):
        Calls(type)


# What a key alone says.


@pytest.mark.parametrize(
    "args", [(7,), (1 << 70, "a"), (1, "\ud800"), ([{"a": {1, 2}}], None), ((), b"x"), ("7", "en")]
)
def test_a_call_comes_back_from_its_key(args: tuple[Any, ...]) -> None:
    calls = Calls(user, ignore=("db",))
    assert calls.loads_from_key
    expected = [*args, "en"][:2]
    assert calls.call(calls.key(*args)) == (expected, {"db": None})


def test_ignored_arguments_come_back_as_their_defaults() -> None:
    default = object()

    def get(first: object = default, /, second: int = 2, *rest: int, third: object = default, **more: int) -> None: ...

    calls = Calls(get, ignore=("first", "third", "more"))
    call = calls.call(calls.key(1, 2, 3, 4, third=5, x=6))
    assert call == ([default, 2, 3, 4], {"third": default})
    calls = Calls(get, ignore=("rest",))
    assert calls.call(calls.key("a", 2, 3, third=5, x=6)) == (["a", 2], {"third": 5, "x": 6})


def test_a_call_with_an_ignored_argument_without_a_default_needs_its_caller() -> None:
    calls = Calls(lambda db, user_id: None, ignore=("db",))
    assert not calls.loads_from_key
    assert calls.call(calls.key(object(), 7)) is None


@pytest.mark.parametrize("key", ["{user_id}", lambda user_id, locale, db: user_id])
def test_a_key_of_ones_own_needs_its_caller(key: Any) -> None:
    calls = Calls(user, key=key)
    assert not calls.loads_from_key
    assert calls.call(calls.key(7)) is None


def test_a_plain_key_is_the_argument_of_a_function_of_one() -> None:
    def text(key: str) -> None: ...

    def data(key: bytes, db: object = None) -> None: ...

    assert Calls(text).call(b"cat.jpg") == (["cat.jpg"], {})
    assert Calls(text).call(b"") == ([""], {})
    assert Calls(text).call(b"\x80") == ([b"\x80"], {})
    assert Calls(data, ignore=("db",)).call(b"cat.jpg") == ([b"cat.jpg", None], {})
    assert Calls(data).call(b"cat.jpg") is None
    data.__annotations__["key"] = bytes  # as without the import of the future
    assert Calls(data, ignore=("db",)).call(b"cat.jpg") == ([b"cat.jpg", None], {})
    assert Calls(data, ignore=("db",)).call(Calls(data, ignore=("db",)).key(b"cat.jpg")) == ([b"cat.jpg", None], {})
    assert Calls(user).call(b"cat.jpg") is None
    assert Calls(lambda *keys: None).call(b"cat.jpg") is None


@given(SCALARS | st.text(alphabet=st.characters(exclude_categories=[])) | st.binary())
def test_a_lone_argument_comes_back(value: Any) -> None:
    def load(key: object) -> None: ...

    calls = Calls(load)
    call = calls.call(calls.key(value))
    assert call == ([value], {})
    assert type(call[0][0]) is type(value)


def nested(levels: int) -> bytes:
    body = pack([])
    for _ in range(levels):
        body = pack([Ext(3, body)])
    return PREFIX + pack([Ext(3, body), None])


def test_what_is_not_too_deep_comes_back() -> None:
    calls = Calls(user, ignore=("db",))
    call = calls.call(nested(90))
    assert call is not None
    assert calls.key(*call[0]) == nested(90)


@pytest.mark.parametrize(
    "key",
    [
        PREFIX,
        PREFIX + b"\x91",
        PREFIX + pack([1]) + b"\0",
        PREFIX + pack([]),
        PREFIX + pack([1, 2, 3]),
        PREFIX + pack({"a": 1}),
        PREFIX + b"\x92\x00\xcd\x00\x07",  # 7, but not in its shortest form
        PREFIX + pack([0, [1]]),
        PREFIX + pack([0, {"a": 1}]),
        PREFIX + pack([0, Ext(99, b"")]),
        PREFIX + pack([0, Ext(-1, b"\0\0\0\0")]),
        PREFIX + pack([0, Ext(1, pack([b"\x07"]))]),
        PREFIX + pack([0, Ext(2, pack([b"a"]))]),
        PREFIX + pack([0, Ext(5, pack([2, 1]))]),
        PREFIX + pack([0, Ext(5, pack([1, 1]))]),
        PREFIX + pack([0, Ext(5, pack([Ext(4, pack([]))]))]),
        PREFIX + pack([0, Ext(7, pack(["a"]))]),
        PREFIX + pack([0, Ext(7, pack(["b", 1, "a", 1]))]),
        PREFIX + pack([0, Ext(9, pack([2, b"\x0a", "x"]))]),
        PREFIX + pack([0, Ext(10, pack([1, 0]))]),
        PREFIX + pack([0, Ext(10, pack([2, 4]))]),
        PREFIX + pack([0, Ext(11, pack(["20240101"]))]),
        PREFIX + pack([0, Ext(13, pack(["2024-01-01T00:00:00", 2, None]))]),
        PREFIX + pack([0, Ext(16, pack(["../../etc/passwd"]))]),
        PREFIX + pack([0, Ext(16, pack(["No/Where"]))]),
        PREFIX + pack([0, Ext(18, pack(["a//b"]))]),
        PREFIX + pack([0, Ext(64, pack(["goldenkeys:Color", "RED"]))]),
        nested(200),
        nested(5000),
        PREFIX + b"\x92\x00" + b"\x91" * 60_000 + b"\x00",
    ],
    ids=lambda key: key.hex()[:30],
)
def test_what_is_no_key_of_a_call_is_none(key: bytes) -> None:
    assert Calls(user, ignore=("db",)).call(key) is None


def test_a_lone_text_that_is_not_plain_is_no_key() -> None:
    assert Calls(lambda key: key).call(PREFIX + pack(["cat.jpg"])) is None


def test_variadic_parts_of_a_key_are_of_their_types() -> None:
    whole = [1, 2, 3, Ext(3, pack([4])), 5, 6, Ext(7, pack(["x", 7]))]
    assert Calls(every).call(PREFIX + pack([1, 2, 3, Ext(3, pack([4])), 5, 6, Ext(7, pack(["x", 7]))])) == (
        [1, 2, 3, 4],
        {"e": 5, "f": 6, "x": 7},
    )
    for place, part in ((3, "45"), (3, 4), (3, Ext(4, pack([4]))), (6, 7), (6, Ext(7, pack(["b", 7]))), (6, "")):
        assert Calls(every).call(PREFIX + pack([*whole[:place], part, *whole[place + 1 :]])) is None


@given(st.binary(max_size=60))
def test_a_key_of_anybody_is_of_one_call_or_none(tail: bytes) -> None:
    calls = Calls(user, ignore=("db",))
    for key in (tail, PREFIX + tail, PREFIX + b"\x92" + tail, PREFIX + b"\x92\x00\xc7" + bytes([len(tail)]) + tail):
        call = calls.call(key)
        assert call is None or calls.key(*call[0], **call[1]) == key


@given(st.lists(SCALARS, min_size=2, max_size=2), st.data())
def test_a_key_with_a_byte_changed_is_of_one_call_or_none(args: list[Any], data: st.DataObject) -> None:
    calls = Calls(user, ignore=("db",))
    key = bytearray(calls.key([{"a": (1, 2)}, {3}, *args], None))
    key[data.draw(st.integers(0, len(key) - 1))] = data.draw(st.integers(0, 255))
    call = calls.call(bytes(key))
    assert call is None or calls.key(*call[0], **call[1]) == key


def test_no_key_overflows_the_stack() -> None:
    """Where the application has raised the limit that Python sets itself for that."""
    script = """
import sys
from mpgroupcache.functions.binding import Calls
sys.setrecursionlimit(1_000_000)
calls = Calls(lambda a, b: None)
for nested in (b"\\x91", b"\\x81\\x00", b"\\x92\\x00"):
    print(calls.call(b"\\xff\\x92\\x00" + nested * (60_000 // len(nested)) + b"\\x00"))
print(calls.call(b"\\xff\\x92\\x00" + b"\\x91" * 8_000 + b"\\x00"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n" * 4


# What is wrong at the declaration.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ignore": "db"}, TypeError, r"user: ignore: got 'db', expected a tuple of names, such as \('db',\)"),
        (
            {"ignore": ("dbs",)},
            ValueError,
            r"user: ignore: got 'dbs', expected its parameters' names \(user_id, locale",
        ),
        ({"key": 7}, TypeError, 'user: key: got int, expected a template such as "user:{user_id}", a function'),
        ({"key": b"x"}, TypeError, "user: key: got bytes, expected a template"),
        (
            {"key": lambda user_id: user_id},
            TypeError,
            r"user: key: got a function that cannot be called with \(user_id, locale, db=db\): too many positional",
        ),
        (
            {"key": lambda user_id, locale, db: 1, "ignore": ("db",)},
            TypeError,
            r"cannot be called with \(user_id, locale\): missing a required argument: 'db'",
        ),
    ],
)
def test_what_is_wrong_is_said_at_the_declaration(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Calls(user, **options)


def test_an_async_key_is_refused() -> None:
    async def key(*args: object, **kwargs: object) -> None: ...

    with pytest.raises(TypeError, match="user: key: got an async function, expected one that returns the key at once"):
        Calls(user, key=key)


# A function of the arguments.


def test_a_function_is_given_the_arguments_with_their_defaults() -> None:
    given: list[Any] = []

    def key(*args: object, **kwargs: object) -> str:
        given.append((args, kwargs))
        return "key"

    def load(a: int, /, b: int, c: int = 3, *d: int, e: int = 5, f: int = 6, **g: int) -> None: ...

    assert Calls(load, ignore=("c", "f"), key=key).key(1, b=2, e=50, x=7) == b"key"
    assert Calls(load, key=key).key(1, 2, 3, 4) == b"key"
    assert given == [((1, 2), {"e": 50, "x": 7}), ((1, 2, 3, 4), {"e": 5, "f": 6})]


def test_what_a_function_returns_is_a_lone_argument() -> None:
    def key_of(result: object) -> bytes:
        return Calls(user, key=lambda *args, **kwargs: result).key(7)

    assert key_of("user/7") == b"user/7"
    assert key_of(b"user/7") == PREFIX + pack([b"user/7"])
    assert key_of(7) == PREFIX + pack([7])
    assert key_of(("user", 7)) == PREFIX + pack([Ext(3, pack(["user", 7]))])
    assert len(key_of("x" * 70_000)) == len(key_of(b"x" * 70_000)) == 36
    with pytest.raises(
        TypeError, match="user: what key= returned: got object, expected None, bool, .*, or return what"
    ):
        key_of(object())


def test_a_function_of_c_code_may_be_a_key() -> None:
    assert Calls(lambda text: None, key=str.upper).key("a") == b"A"
    assert Calls(lambda text: None, key=string.capwords).key("a b") == b"A B"
    assert Calls(lambda number: None, key=str).key(7) == b"7"
