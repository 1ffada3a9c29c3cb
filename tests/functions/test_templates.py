"""Templates of keys: what they make, that they tell apart, and what is wrong with them at once."""

from __future__ import annotations

import datetime
import enum
import uuid
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpgroupcache.functions.binding import Calls
from mpgroupcache.functions.encoding import encode


def user(user_id: Any, locale: Any = "en", *rest: Any, db: Any = None, **more: Any) -> None: ...


def key_of(template: str, *args: Any, **kwargs: Any) -> bytes:
    return Calls(user, key=template).key(*args, **kwargs)


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("user:{user_id}:{locale}", b"user:7:en"),
        ("{user_id}", b"7"),
        ("{user_id}-{user_id}", b"7-7"),
        ("{{{user_id}}}", b"{7}"),
        ("{user_id:04d}/{locale:>3}", b"0007/ en"),
        ("{db.name}/{db.owner.id}/{user_id}", b"main/9/7"),
        ("$text_0 {user_id} \N{EURO SIGN}", "$text_0 7 \N{EURO SIGN}".encode()),
    ],
)
def test_a_template_makes_the_plain_key(template: str, key: bytes) -> None:
    db = SimpleNamespace(name="main", owner=SimpleNamespace(id=9))
    assert key_of(template, 7, db=db) == key_of(template, db=db, user_id=7, locale="en") == key


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (7, "7"),
        (1 << 70, "1180591620717411303424"),
        (1.5, "1.5"),
        (True, "True"),
        (None, "None"),
        (Decimal("1.50"), "1.50"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC), "2024-02-29 00:00:00+00:00"),
        (datetime.timedelta(1), "1 day, 0:00:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("a/b"), "a/b"),
    ],
)
def test_what_has_one_text_is_a_value(value: Any, text: str) -> None:
    assert key_of("of {user_id}", value) == f"of {text}".encode()


class Word(enum.StrEnum):
    ONE = "one"


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value", [object(), b"a", (1,), [1], {}, Word.ONE, Text("a"), print, int], ids=lambda value: type(value).__name__
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"user: key: \{user_id\}: got .*, expected str, int, .* name an attribute"):
        key_of("{user_id}", value)


def test_an_attribute_is_a_value() -> None:
    assert key_of("{user_id.value}", Word.ONE) == b"one"
    with pytest.raises(AttributeError, match="'int' object has no attribute 'id'"):
        key_of("{user_id.id}", 7)


def test_a_format_that_a_value_has_not_is_named() -> None:
    with pytest.raises(ValueError, match=r"user: key: \{user_id\}: got str with the format 'd': Unknown format code"):
        key_of("{user_id:d}", "a")


PARTS = st.text(alphabet=":%/3AF2a", max_size=6)


@given(
    PARTS, PARTS, PARTS, PARTS, st.sampled_from(["{user_id}:{locale}", "{user_id}%{locale}/", "{user_id}3{locale}A"])
)
def test_two_calls_have_one_key_if_their_values_are_the_same(a: str, b: str, c: str, d: str, template: str) -> None:
    assert (key_of(template, a, b) == key_of(template, c, d)) == ((a, b) == (c, d))


def test_only_what_could_be_taken_for_the_text_is_encoded() -> None:
    assert key_of("{user_id}:{locale}", "a:b", "c") == b"a%3Ab:c"
    assert key_of("{user_id}:{locale}", "a", "b:c%") == b"a:b:c%"
    assert key_of("{user_id}%{locale}", "a%", "%") == b"a%25%%"
    assert key_of("{user_id}\N{EURO SIGN}{locale}", "a\N{EURO SIGN}", "") == "a%E2%82%AC\N{EURO SIGN}".encode()
    assert key_of("{user_id}-{locale}", -5, -5) == b"%2D5--5"


def test_every_text_makes_a_key() -> None:
    assert key_of("{user_id}", "\udcff") == encode(["\udcff"], ["text"], "f")
    assert len(key_of("{user_id}", "x" * 70_000)) == 36
    assert key_of("{user_id}", "") == b""


def test_a_function_without_arguments_may_have_a_constant() -> None:
    assert Calls(lambda: None, key="all").key() == b"all"
    assert Calls(lambda: None, key="").key() == b""


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("user:user_id", "which names no parameter, expected such as {user_id}: all calls would have one key"),
        ("", "which names no parameter"),
        ("{id}", "where {id} is no parameter, expected one of: user_id, locale, db"),
        ("{}", "where {} is no parameter"),
        ("{0}", "where {0} is no parameter"),
        ("{user_id }", "where {user_id } is no parameter"),
        ("{rest}", "where {rest} is no parameter"),
        ("{more}", "where {more} is no parameter"),
        ("{user_id!r}", "where {user_id} has a !r, expected a name and a format; say the rest with a function"),
        ("{user_id!s}", "where {user_id} has a !s"),
        ("{user_id[0]}", "where {user_id[0]} is no attribute"),
        ("{[0]}", "where {[0]} is no parameter"),
        ("{user_id.a[0]}", "where {user_id.a[0]} is no attribute, expected such as {user.id}"),
        ("{user_id.}", "where {user_id.} is no attribute"),
        ("{user_id.class}", "where {user_id.class} is no attribute"),
        ("{user_id:{locale}}", "where the format of {user_id} has a field of its own"),
        ("{user_id}{locale}", "where another field follows {user_id} at once, expected text between them"),
        ("{user_id", "which is no template: expected '}' before end of string"),
        ("user_id}", "which is no template: Single '}' encountered"),
        ("\ud800{user_id}", "which is no template: 'utf-8' codec can't encode"),
    ],
)
def test_what_is_wrong_is_said_at_the_declaration(template: str, message: str) -> None:
    with pytest.raises(ValueError, match="user: key: got ") as raised:
        Calls(user, key=template)
    assert message in str(raised.value)


def test_an_ignored_parameter_is_no_field() -> None:
    with pytest.raises(ValueError, match=r"where \{db\} is no parameter, expected one of: user_id, locale"):
        Calls(user, ignore=("db",), key="{user_id}:{db}")
    assert Calls(user, ignore=("db",), key="{user_id}").key(7, db=object()) == b"7"
