"""What is left of ages, as peers tell it: literal headers, and those that cannot be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpgroupcache.errors import ProtocolError
from mpgroupcache.net.ages import MAX_MS, MAX_VERSION, Ages, encode_ages, read_ages

Headers = list[tuple[bytes, bytes]]


def headers_of(lines: bytes) -> Headers:
    assert not lines or lines.endswith(b"\r\n")
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines.split(b"\r\n")[:-1])]


@pytest.mark.parametrize(
    ("ages", "lines"),
    [
        ((None, None, None), b""),
        ((None, None, 0), b""),  # no entry's
        ((None, None, MAX_VERSION), b"Mpgroupcache-Version: 9223372036854775807\r\n"),
        ((1.5, None, None), b"Mpgroupcache-Fresh: 1500\r\n"),
        ((-0.25, 60.0, 7), b"Mpgroupcache-Version: 7\r\nMpgroupcache-Fresh: -250\r\nMpgroupcache-Dead: 60000\r\n"),
        ((0.0, 0.0, None), b"Mpgroupcache-Fresh: 0\r\nMpgroupcache-Dead: 0\r\n"),
    ],
)
def test_ages_as_they_travel(ages: tuple[float | None, float | None, int | None], lines: bytes) -> None:
    assert encode_ages(*ages) == lines
    assert read_ages([(b"Date", b"now"), *headers_of(lines)]) == (*ages[:2], ages[2] or None)
    assert read_ages([(name.lower(), value) for name, value in headers_of(lines)]) == (*ages[:2], ages[2] or None)


@pytest.mark.parametrize(
    ("fresh", "dead", "lines"),
    [
        (1.9999, 2.9999, b"Mpgroupcache-Fresh: 1999\r\nMpgroupcache-Dead: 2999\r\n"),
        (-0.0001, 0.0001, b"Mpgroupcache-Fresh: -1\r\nMpgroupcache-Dead: 0\r\n"),
        (math.inf, math.inf, b"Mpgroupcache-Fresh: %d\r\nMpgroupcache-Dead: %d\r\n" % (MAX_MS, MAX_MS)),
        (-math.inf, -1.0, b"Mpgroupcache-Fresh: -%d\r\nMpgroupcache-Dead: 0\r\n" % MAX_MS),
    ],
)
def test_no_more_is_said_than_is_left(fresh: float, dead: float, lines: bytes) -> None:
    assert encode_ages(fresh, dead, None) == lines
    read_ages(headers_of(lines))


@pytest.mark.parametrize("value", [b"", b"1.5", b" 1", b"+1", b"1\n", b"1_0", b"--1", b"1, 1", b"\xd9\xa1", b"9" * 13])
@pytest.mark.parametrize("name", [b"Mpgroupcache-Fresh", b"mpgroupcache-dead", b"MPGROUPCACHE-VERSION"])
def test_what_is_no_age_is_not_taken_for_none(name: bytes, value: bytes) -> None:
    if value == b"9" * 13 and name.isupper():
        value = b"%d" % (MAX_VERSION + 1)
    with pytest.raises(ProtocolError, match=rf"(?i){name.decode()}: got b.*, expected a number from .* to \d+"):
        read_ages([(name, value)])


@pytest.mark.parametrize(("name", "value"), [(b"Mpgroupcache-Dead", b"-1"), (b"Mpgroupcache-Version", b"0")])
def test_numbers_that_cannot_be(name: bytes, value: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_ages([(name, value)])


@pytest.mark.parametrize(
    ("said", "ages"),
    [
        (b"Mpgroupcache-Dead: 500\r\n", Ages(0.5, 0.5, None)),
        (b"Mpgroupcache-Fresh: 501\r\nMpgroupcache-Dead: 500\r\n", Ages(0.5, 0.5, None)),
        (b"Mpgroupcache-Fresh: 499\r\nMpgroupcache-Dead: 500\r\n", Ages(0.499, 0.5, None)),
    ],
)
def test_nothing_is_fresh_that_is_dead(said: bytes, ages: Ages) -> None:
    assert read_ages(headers_of(said)) == ages


NAMES = st.sampled_from([b"Mpgroupcache-Fresh", b"Mpgroupcache-Dead", b"Mpgroupcache-Version", b"Date"])
VALUES = st.binary(max_size=20) | st.integers(-(10**20), 10**20).map(lambda number: b"%d" % number)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=5))
def test_any_headers_are_ages_or_refused(headers: Headers) -> None:
    try:
        ages = read_ages(headers)
    except ProtocolError:
        return
    assert ages.fresh is None or abs(ages.fresh) <= MAX_MS / 1000
    assert ages.dead is None or (ages.fresh is not None and ages.fresh <= ages.dead)
    assert ages.version is None or 0 < ages.version <= MAX_VERSION
