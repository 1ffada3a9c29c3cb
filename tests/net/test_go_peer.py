"""Go groupcache itself: that the ring and the wire are its own, byte for byte, and where it is not to be followed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
from gopeers import Answer, Recorder
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peerkeys import ODD_KEYS, many_keys
from peerserver import Running

from mpgroupcache.net import peerwire
from mpgroupcache.net.consistenthash import Map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gopeers import GoPeer

BASE = peerwire.DEFAULT_BASE_PATH
GROUP = "g"
GROUPS = [GROUP, ".", "..", "a b", "a+b", "%41", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"]
URLS = [
    "http://10.0.0.1:8080",
    "http://10.0.0.2:8080",
    "http://10.0.0.10:8080",
    "https://cache.example.org",
    "http://[::1]:8080",
    "http://host/prefix",
    "http://caf\N{LATIN SMALL LETTER E WITH ACUTE}.example",
]
odd_keys = pytest.mark.parametrize("key", ODD_KEYS.values(), ids=list(ODD_KEYS))


def value_of(key: bytes, group: bytes = b"g") -> bytes:
    """What the Go peer's loader returns."""
    return b"V:%s:%s" % (group, key)


def body_of(value: bytes) -> bytes:
    before, behind = peerwire.response_head(len(value))
    return before + value + behind


def http_ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (
        peerwire.CONTENT_TYPE,
        len(body),
        body,
    )


def own_headers(answer: Answer) -> dict[str, str]:
    """An answer's headers but for those of any HTTP server."""
    of_http = ("Date", "Content-Length", "Transfer-Encoding", "Connection")
    return {name: value for name, value in answer.headers.items() if name not in of_http}


def assert_is(answer: Answer | None, expected: peerwire.ErrorResponse) -> None:
    assert answer is not None
    headers = {name.decode(): value.decode() for name, value in expected.headers}
    headers.pop("Connection", None)  # compared by what the connection does
    assert (answer.status, own_headers(answer), answer.body) == (expected.status, headers, expected.body)


@pytest.fixture(scope="module")
def go_peer(start_go_peer: Callable[..., GoPeer]) -> GoPeer:
    """A Go peer that owns all keys, and serves without Go's mux."""
    return start_go_peer("-groups", ",".join(GROUPS))


@pytest.fixture(scope="module")
def go_client(start_go_peer: Callable[..., GoPeer]) -> GoPeer:
    """A Go peer that caches nothing; each test sets its ring."""
    return start_go_peer("-groups", ",".join(GROUPS), "-cache-bytes", "0")


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A peer that answers each request with the value of its key as `wire` reads it."""

    def answer(target: bytes) -> bytes:
        group, key = peerwire.parse_target(BASE, target)
        return http_ok(body_of(value_of(key, group)))

    recorder = Recorder(answer)
    yield recorder
    recorder.close()


# ---- The ring


@pytest.mark.parametrize("count", [1, 2, len(URLS)])
def test_owners_are_those_of_go(go_client: GoPeer, count: int) -> None:
    keys = many_keys(10_000)
    go_client.set_peers(*URLS[:count])
    ring = Map(50)
    ring.add(*URLS[:count])
    assert go_client.owners(keys) == [ring.get(key) for key in keys]


def test_points_that_fall_together_have_the_owner_that_go_gives_them(start_go_peer: Callable[..., GoPeer]) -> None:
    found: dict[int, str] = {}
    chance = random.Random(32)
    for _ in range(1 << 20):
        peer = f"http://{chance.getrandbits(64):x}"  # not numbers in order, which a CRC keeps apart
        other = found.setdefault(crc32(f"0{peer}".encode()), peer)
        if other != peer:
            break
    else:
        pytest.fail("no two peers with one point")
    go = start_go_peer("-replicas", "1")
    for peers in [(peer, other, "http://third"), (other, "http://third", peer)]:
        go.set_peers(*peers)
        ring = Map(1)
        ring.add(*peers)
        keys = many_keys(1000)
        owners = [ring.get(key) for key in keys]
        assert go.owners(keys) == owners
        assert len({peer, other} & set(owners)) == 1


# ---- What Go's client sends


@odd_keys
def test_what_a_go_client_asks_for_is_read_as_it_was_meant(go_client: GoPeer, recorder: Recorder, key: bytes) -> None:
    go_client.set_peers(recorder.url)
    for group in GROUPS:
        assert go_client.get(group, key) == value_of(key, group.encode())  # which passed through the recorder
        target, _ = recorder.requests.pop()
        assert peerwire.parse_target(BASE, target) == (group.encode(), key)
        assert not recorder.requests


def test_a_go_client_s_request(go_client: GoPeer, recorder: Recorder) -> None:
    go_client.set_peers(recorder.url)
    go_client.get(GROUP, b"key/ +~")
    assert recorder.requests == [
        (
            b"/_groupcache/g/key%2F+%2B~",
            [
                b"Host: " + recorder.url.removeprefix("http://").encode(),
                b"User-Agent: Go-http-client/1.1",
                b"Accept-Encoding: gzip",
            ],
        )
    ]


@pytest.mark.parametrize(
    "body",
    [b"", b"\x0a\x00", b"\x0a\x01v", b"\x0a\x01v" + bytes.fromhex("11000000000000f83f"), b"\x0a\x01v\x1a\x03new"],
    ids=["no value", "empty", "value", "rate", "unknown field"],
)
def test_a_go_client_reads_responses_as_they_are_read_here(go_client: GoPeer, body: bytes) -> None:
    recorder = Recorder(lambda target: http_ok(body))
    try:
        go_client.set_peers(recorder.url)
        assert go_client.get(GROUP, b"key") == peerwire.decode_response(body).value
    finally:
        recorder.close()


def test_a_go_client_reads_past_what_go_does_not_say(
    start_go_peer: Callable[..., GoPeer], shared_server: Running
) -> None:
    go = start_go_peer("-cache-bytes", "0")
    go.set_peers(f"http://127.0.0.1:{shared_server.server.port}")
    for key, value in ((b"aged", b"v"), (b"hello", b"V:hello")):
        assert go.get(GROUP, key) == value
    assert go.loads(GROUP) == {}
    assert go.get(GROUP, b"absent") == value_of(b"absent")  # an error like others, for which it loads
    assert go.loads(GROUP) == {b"absent": 1}


# ---- What Go's server answers


@odd_keys
def test_a_go_server_answers_our_targets_with_our_bytes(go_peer: GoPeer, key: bytes) -> None:
    for group in GROUPS:
        answer = go_peer.exchange(peerwire.request_target(BASE, group, key))
        assert answer is not None
        assert (answer.status, own_headers(answer)) == (200, {"Content-Type": peerwire.CONTENT_TYPE.decode()})
        assert answer.body == body_of(value_of(key, group.encode()))
        assert peerwire.decode_response(answer.body) == (value_of(key, group.encode()), None)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 2044, 2045, 16_383, 16_384, 3 << 20])
def test_a_go_server_s_values_of_all_sizes(go_peer: GoPeer, size: int) -> None:
    answer = go_peer.exchange(peerwire.request_target(BASE, GROUP, b"size:%d:" % size))
    assert answer is not None
    assert answer.body == body_of(b"x" * size)
    # What does not fit Go's buffer is chunked, whoever asks.
    assert ("Transfer-Encoding" in answer.headers) == (len(answer.body) > 2048)


def test_golden_values(go_peer: GoPeer) -> None:
    answer = go_peer.exchange(peerwire.request_target(BASE, GROUP, b"empty:"))
    assert answer is not None
    assert answer.body.hex() == "0a00"
    assert body_of(b"V:hello").hex() == "0a07563a68656c6c6f"


@pytest.mark.parametrize(
    "text", ["", "boom", "a <b> & 'c'", "two\nlines\n", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "x" * 5000]
)
def test_a_go_server_s_answer_to_a_loader_s_error(go_peer: GoPeer, text: str) -> None:
    answer = go_peer.exchange(peerwire.request_target(BASE, GROUP, b"fail:" + text.encode()))
    expected = peerwire.load_failed("ValueError", text)
    assert expected.headers[-1] == (peerwire.LOAD_ERROR, b"ValueError")
    assert_is(answer, peerwire.ErrorResponse(expected.status, expected.body, expected.headers[:-1]))


@pytest.mark.parametrize("group", [b"nobody", b"", b"a c", b"\xff", b"two\nlines", b"<b>", b"x" * 3000, b"g?"])
def test_a_go_server_s_answer_for_an_unknown_group(go_peer: GoPeer, group: bytes) -> None:
    assert_is(go_peer.exchange(peerwire.request_target(BASE, group, b"key")), peerwire.no_such_group(group))


RAW_TARGETS = [
    b"/_groupcache/g",  # no key
    b"/_groupcache/",
    b"/_groupcache/g?/key",
    b"/_groupcache/g/",
    b"/_groupcache/g/k?query",
    b"/_groupcache/g/k#not-a-fragment",
    b"/_groupcache/g%2Fk",  # split after unescaping
    b"/_groupcache/g%2fk/l",
    b"/%5fgroupcache%2Fg%2Fk",
    b"/_groupcache//g/k",
    b"/_groupcache/g//../k/./",
    b"/_groupcache/g/k\xff\x80",
    b"/_groupcache/g/[]{}|\\^`\"<>;,:@&=$!*'()",
    b"/_groupcache/g/%",  # malformed
    b"/_groupcache/g/%4",
    b"/_groupcache/g/%zz",
    b"/_groupcache/g/k\x01",
    b"/_groupcache/g/k\x7f",
    b"_groupcache/g/k",
    b"http://elsewhere/_groupcache/g/k",  # a URL
    b"HTTP://elsewhere:1/_groupcache/g/k?q",
    b"x:/_groupcache/g/k",
    b"x:opaque",
    b"1x:/_groupcache/g/k",
    b"http://elsewhere",
    b"/",  # outside the base path
    b"/_groupcache",
    b"//_groupcache/g/k",
    b"/other/g/k",
    b"/x/../_groupcache/g/k",
]


def assert_answers(go: GoPeer, target: bytes) -> None:
    """Assert that Go answers a target without plus as `wire` has it."""
    answer = go.exchange(target)
    try:
        group, key = peerwire.parse_target(BASE, target)
    except peerwire.RequestError as error:
        if error.response == peerwire.NOT_FOUND:
            assert answer is None  # the handler panicked
        else:
            assert_is(answer, error.response)
    else:
        if group in [name.encode() for name in GROUPS]:
            assert answer is not None
            assert (answer.status, answer.body) == (200, body_of(value_of(key, group)))
        else:
            assert_is(answer, peerwire.no_such_group(group))


@pytest.mark.parametrize("target", RAW_TARGETS, ids=repr)
def test_a_go_server_reads_raw_targets_as_they_are_read_here(go_peer: GoPeer, target: bytes) -> None:
    assert_answers(go_peer, target)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            [b"/_groupcache/", b"g/", b"/", b"%", b"%2F", b"%2f", b"%25", b"%00", b"..", b".", b"?", b"#", b"%F", b"g"]
        )
        | st.binary(min_size=1, max_size=2).filter(lambda data: not set(data) & set(b"+ \n\r")),
        max_size=8,
    )
)
@example(pieces=[b"g/", b"%", b"2", b"5"])
@example(pieces=[b"..", b"/_groupcache/"])
def test_a_go_server_reads_any_target_as_it_is_read_here(go_peer: GoPeer, pieces: list[bytes]) -> None:
    assert_answers(go_peer, b"/_groupcache/" + b"".join(pieces))


def test_a_go_server_takes_any_method(go_peer: GoPeer) -> None:
    target = peerwire.request_target(BASE, GROUP, b"k")
    for method in (b"POST", b"PUT", b"BREW"):
        answer = go_peer.exchange(target, method)
        assert answer is not None
        assert answer.body == body_of(value_of(b"k"))
    head = go_peer.exchange(target, b"HEAD")
    assert head is not None
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(body_of(value_of(b"k")))), b"")


def test_a_go_server_has_a_limit_on_all_headers_and_none_on_keys(go_peer: GoPeer) -> None:
    long = b"k" * (900 << 10)
    answer = go_peer.exchange(BASE.encode() + b"g/" + long)
    assert answer is not None
    assert answer.body == body_of(value_of(long))
    with pytest.raises(peerwire.RequestError, match="got 921615 bytes, expected at most") as caught:
        peerwire.parse_target(BASE, BASE.encode() + b"g/" + long)
    assert caught.value.response.status == 414


# ---- Where Go is not to be followed


def test_between_go_peers_a_space_arrives_as_a_plus(start_go_peer: Callable[..., GoPeer]) -> None:
    owner, asking = start_go_peer(), start_go_peer()
    asking.set_peers(owner.url)
    assert asking.get(GROUP, b"a b") == value_of(b"a+b")
    assert owner.loads(GROUP) == {b"a+b": 1}
    # Of the same two keys each is its own for a client of ours, and a Go client of ours is read right (above).
    for key in (b"a b", b"a+b"):
        answer = owner.exchange(peerwire.request_target(BASE, GROUP, key))
        assert answer is not None
        assert answer.body == body_of(value_of(key))


def test_go_s_mux_redirects_to_other_keys(start_go_peer: Callable[..., GoPeer]) -> None:
    go = start_go_peer("-mux")
    for key, location in {
        b"a//b": "/_groupcache/g/a/b",
        b"a/../b": "/_groupcache/g/b",
        b"..": "/_groupcache/",
        b".": "/_groupcache/g",
        b"/": "/_groupcache/g/",
        b"../g/b": "/_groupcache/g/b",
    }.items():
        answer = go.exchange(peerwire.request_target(BASE, GROUP, key))
        assert answer is not None
        assert (answer.status, answer.headers["Location"]) == (301, location)
        assert peerwire.loader_error(answer.status, [], answer.body) is None
    assert_is(go.exchange(b"/other"), peerwire.NOT_FOUND)
    answer = go.exchange(peerwire.request_target(BASE, GROUP, b"a/b c"))
    assert answer is not None
    assert answer.body == body_of(value_of(b"a/b c"))


def test_a_go_client_loads_locally_what_go_s_mux_redirects(start_go_peer: Callable[..., GoPeer]) -> None:
    owner, asking = start_go_peer("-mux"), start_go_peer()
    asking.set_peers(owner.url)
    assert asking.get(GROUP, b"a//b") == value_of(b"a//b")
    assert (asking.loads(GROUP), owner.loads(GROUP)) == ({b"a//b": 1}, {})
    assert asking.stats(GROUP)["peer_errors"] == 1


def test_go_runs_a_loader_that_failed_at_the_owner_again_where_it_was_asked(
    start_go_peer: Callable[..., GoPeer],
) -> None:
    owner, asking = start_go_peer(), start_go_peer()
    asking.set_peers(owner.url)
    with pytest.raises(LookupError, match="boom"):
        asking.get(GROUP, b"fail:boom")
    assert owner.loads(GROUP) == asking.loads(GROUP) == {b"fail:boom": 1}


def test_go_takes_a_slash_in_a_group_s_name_for_the_one_before_the_key(start_go_peer: Callable[..., GoPeer]) -> None:
    owner, asking = start_go_peer("-groups", "a,a/b"), start_go_peer("-groups", "a,a/b")
    asking.set_peers(owner.url)
    assert asking.get("a/b", b"k") == value_of(b"b/k", b"a")  # another group's value
    with pytest.raises(ValueError, match="expected a name without a slash; peers would read the group"):
        peerwire.request_target(BASE, "a/b", b"k")
