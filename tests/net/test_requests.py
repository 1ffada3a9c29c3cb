"""Bytes as requests, without a connection: what is complete, what is refused, and what need not be parsed again."""

from __future__ import annotations

import pytest
from peerserver import get, many

from mpgroupcache.net import peerwire
from mpgroupcache.net.requests import Request, RequestParser
from mpgroupcache.net.responses import HEAD_TOO_LARGE, NO_HOST, PLAIN, TARGET_TOO_LONG, Manner
from mpgroupcache.net.serverlimits import Limits

TWO = get(b"/a", b"X: 1") + get(b"/b", b"x: 2", b"X: 3", method=b"HEAD")
HEADS: list[Request] = [
    (b"/a", {b"host": b"peer", b"x": b"1"}, PLAIN, None),
    (b"/b", {b"host": b"peer", b"x": b"3"}, PLAIN._replace(head=True), None),
]


@pytest.mark.parametrize("size", [1, 2, 7, 50, len(TWO)])
def test_requests_may_come_in_any_pieces(size: int) -> None:
    parser = RequestParser(Limits())
    found = []
    for at in range(0, len(TWO), size):
        found += parser.parse(TWO[at : at + size])
    assert found == HEADS
    assert parser.head_bytes == 0


@pytest.mark.parametrize(
    ("request_", "manner"),
    [
        (get(b"/"), PLAIN),
        (get(b"/", method=b"HEAD"), Manner(refused=False, head=True, closes=False, old=False)),
        (get(b"/", method=b"DELETE"), Manner(refused=True, head=False, closes=False, old=False)),
        (get(b"/", b"Content-Length: 0", method=b"POST"), Manner(refused=True, head=False, closes=False, old=False)),
        (get(b"/", b"Content-Length: 1", method=b"POST"), Manner(refused=True, head=False, closes=True, old=False)),
        (get(b"/", b"Transfer-Encoding: chunked"), Manner(refused=False, head=False, closes=True, old=False)),
        (get(b"/", b"Connection: close"), Manner(refused=False, head=False, closes=True, old=False)),
        (get(b"/", b"Connection: keep-alive", version=b"1.0"), PLAIN._replace(old=True)),
        (get(b"/", version=b"1.0"), Manner(refused=False, head=False, closes=True, old=True)),
    ],
)
def test_manners(request_: bytes, manner: Manner) -> None:
    parser = RequestParser(Limits())
    [(_, _, got, _)] = parser.parse(request_)  # type: ignore[misc]
    assert got == manner
    assert (got is PLAIN) == (manner == PLAIN)
    assert len(parser.parse(get(b"/next"))) == (not manner.closes)


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"nonsense\r\n", peerwire.MALFORMED),
        (b"GET / HTTP/1.1\r\n\r\n", NO_HOST),
        (get(b"/", *[b"X: y"] * 9), HEAD_TOO_LARGE),
        (get(b"/", b"X: " + b"y" * 1000), HEAD_TOO_LARGE),
        (b"GET /" + b"k" * (peerwire.MAX_TARGET_BYTES + 1000), TARGET_TOO_LONG),
    ],
)
def test_nothing_is_found_behind_what_is_refused(data: bytes, refusal: peerwire.ErrorResponse) -> None:
    parser = RequestParser(Limits(headers=9, header_bytes=1000))
    assert parser.parse(get(b"/a")) == [(b"/a", {b"host": b"peer"}, PLAIN, None)]
    assert parser.parse(data) == [refusal]
    assert parser.parse(get(b"/b")) == []


def test_nothing_is_found_behind_the_end() -> None:
    parser = RequestParser(Limits())
    parser.end()
    assert parser.parse(TWO) == []


def test_what_the_next_request_is_known_by() -> None:
    parser = RequestParser(Limits())
    one = get(b"/a", b"X: 1")
    parser.parse(one)
    assert parser.usual(one) == (b" HTTP/1.1\r\nHost: peer\r\nX: 1\r\n\r\n", {b"host": b"peer", b"x": b"1"})


@pytest.mark.parametrize(
    "data",
    [
        get(b"/a") * 2,
        get(b"/a") + b"GET",
        get(b"/a") + many([b"k"])[: -len(b"\x91\xc4\x01k")],  # a head whose body is to come
        get(b"/a", method=b"HEAD"),
        get(b"/a", method=b"PUT"),
        get(b"/a", b"Connection: keep-alive", version=b"1.0"),
        get(b"/a", b"X: " + b"y" * 2000),
        get(b"/a", b"Connection: close"),
        b"\r\n" + get(b"/a"),
        b"GET  /a HTTP/1.1\r\nHost: peer\r\n\r\n",
        b"GET /a",
        b"nonsense\r\n\r\n",
    ],
)
def test_what_no_next_request_is_known_by(data: bytes) -> None:
    parser = RequestParser(Limits())
    parser.parse(data)
    assert parser.usual(data) is None
