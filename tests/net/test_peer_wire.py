"""The peers' wire: literal bytes, what is refused and how that is answered, and that everything comes back."""

from __future__ import annotations

import re
import string

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from peerkeys import ODD_KEYS

from mpgroupcache.errors import LoadError, ProtocolError
from mpgroupcache.keys import MAX_KEY_BYTES
from mpgroupcache.limits import MAX_TEXT
from mpgroupcache.net import peerwire
from mpgroupcache.net.groupcachepb_pb2 import GetResponse

BASE = peerwire.DEFAULT_BASE_PATH
TEXT_HEADERS = ((b"Content-Type", b"text/plain; charset=utf-8"), (b"X-Content-Type-Options", b"nosniff"))

# ---- Request targets


@pytest.mark.parametrize(
    ("group", "key", "target"),
    [
        ("thumbs", b"cat.jpg", b"/_groupcache/thumbs/cat.jpg"),
        ("thumbs", b"", b"/_groupcache/thumbs/"),
        ("", b"", b"/_groupcache//"),
        ("a b", b"a b+c", b"/_groupcache/a%20b/a%20b%2Bc"),
        ("g", b"a//b/../c%2F", b"/_groupcache/g/a%2F%2Fb%2F..%2Fc%252F"),
        ("g", b".", b"/_groupcache/g/%2E"),
        ("..", b"..", b"/_groupcache/%2E%2E/%2E%2E"),
        ("g", b"...", b"/_groupcache/g/..."),
        ("g", b"?&#=;:@!$'()*,[]", b"/_groupcache/g/%3F%26%23%3D%3B%3A%40%21%24%27%28%29%2A%2C%5B%5D"),
        ("g", b"-._~", b"/_groupcache/g/-._~"),
        (b"\xff", b"\x00\xff", b"/_groupcache/%FF/%00%FF"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", b"k", b"/_groupcache/caf%C3%A9/k"),
    ],
)
def test_targets(group: str | bytes, key: bytes, target: bytes) -> None:
    assert peerwire.request_target(BASE, group, key) == target
    assert peerwire.parse_target(BASE, target) == (group.encode() if isinstance(group, str) else group, key)


@given(group=st.binary(max_size=20).map(lambda name: name.replace(b"/", b"")), key=st.binary(max_size=50))
def test_every_target_comes_back_and_holds_nothing_to_rewrite(group: bytes, key: bytes) -> None:
    target = peerwire.request_target("/a/", group, key)
    assert peerwire.parse_target("/a/", target) == (group, key)
    assert not set(target.decode()) - set(string.ascii_letters + string.digits + "-._~%/")
    assert target.count(b"/") == 3
    assert not {b".", b".."} & set(target.split(b"/"))


@given(target=st.binary(max_size=30), below=st.booleans())
def test_any_bytes_are_read_or_refused(target: bytes, below: bool) -> None:
    refused: peerwire.ErrorResponse | None = None
    try:
        peerwire.parse_target(BASE, BASE.encode() + target if below else target)
    except peerwire.RequestError as error:
        refused = error.response
    assert refused in (None, peerwire.BAD_REQUEST, peerwire.NOT_FOUND, peerwire.MALFORMED)


@pytest.mark.parametrize("key", ODD_KEYS.values(), ids=list(ODD_KEYS))
def test_odd_keys_come_back(key: bytes) -> None:
    target = peerwire.request_target(BASE, "g", key)
    assert peerwire.parse_target(BASE, target) == (b"g", key)
    assert len(target) <= peerwire.MAX_TARGET_BYTES


@pytest.mark.parametrize(
    ("target", "request_"),
    [
        (b"/_groupcache/g+h/a+b", (b"g h", b"a b")),  # as Go's client writes a space
        (b"/_groupcache/g%2Bh/a%2Bb%20c", (b"g+h", b"a+b c")),
        (b"/_groupcache/g/%2b%2f", (b"g", b"+/")),
        (b"/_groupcache/g/a?b=c", (b"g", b"a")),
        (b"/_groupcache/g/a#b", (b"g", b"a#b")),
        (b"/_groupcache/g%2Fh/k", (b"g", b"h/k")),  # unescaped, then split
        (b"/%5Fgroupcache/g/k", (b"g", b"k")),
        (b"/_groupcache/g/../h/k", (b"g", b"../h/k")),
        (b"/_groupcache//g/k", (b"", b"g/k")),
        (b"http://host:80/_groupcache/g/k", (b"g", b"k")),
    ],
)
def test_targets_of_others(target: bytes, request_: tuple[bytes, bytes]) -> None:
    assert peerwire.parse_target(BASE, target) == request_


def test_a_plus_in_the_base_path_is_a_plus() -> None:
    assert peerwire.parse_target("/a+b/", b"/a+b/g/k+l") == (b"g", b"k l")
    assert peerwire.parse_target("/a+b/", b"/a%2Bb/g/k") == (b"g", b"k")


@pytest.mark.parametrize(
    ("target", "response", "message"),
    [
        (b"/_groupcache/g", peerwire.BAD_REQUEST, "path: got b'/_groupcache/g', expected /_groupcache/GROUP/KEY"),
        (b"/_groupcache", peerwire.NOT_FOUND, "path: got b'/_groupcache', expected one below /_groupcache/"),
        (b"*", peerwire.NOT_FOUND, "path: got b'*', expected one below /_groupcache/"),
        (b"", peerwire.MALFORMED, "target: got b'', expected a path, or a URL"),
        (b"/_groupcache/g/%4", peerwire.MALFORMED, "expected two hexadecimal digits after each %"),
        (b"/_groupcache/g/a\nb", peerwire.MALFORMED, "expected no spaces and control characters"),
        (b"x" * 100, peerwire.MALFORMED, f"target: got {b'x' * 100!r}, expected a path"),
        (b"x" * 101, peerwire.MALFORMED, f"target: got {b'x' * 100!r}...101, expected a path"),
    ],
)
def test_targets_that_are_refused(target: bytes, response: peerwire.ErrorResponse, message: str) -> None:
    with pytest.raises(peerwire.RequestError) as caught:
        peerwire.parse_target(BASE, target)
    assert message in str(caught.value)
    assert caught.value.response == response


def test_keys_over_the_limit() -> None:
    with pytest.raises(ValueError, match="key: got 65537 bytes, expected at most 65536; hash long keys first"):
        peerwire.request_target(BASE, "g", b"k" * (MAX_KEY_BYTES + 1))
    for length, text in [
        (MAX_KEY_BYTES + 1, b"key: got 65537 bytes, expected at most 65536\n"),
        (1 << 20, b"target: got 1048591 bytes, expected at most 201472\n"),
    ]:
        with pytest.raises(peerwire.RequestError) as caught:
            peerwire.parse_target(BASE, b"/_groupcache/g/" + b"k" * length)
        assert str(caught.value) == text.decode().strip()
        assert caught.value.response == peerwire.ErrorResponse(414, text, TEXT_HEADERS)
    most = b"/_groupcache/g/k?".ljust(peerwire.MAX_TARGET_BYTES, b"q")
    assert peerwire.parse_target(BASE, most) == (b"g", b"k")
    with pytest.raises(peerwire.RequestError, match="target: got 201473 bytes, expected at most 201472"):
        peerwire.parse_target(BASE, most + b"q")


def test_a_group_with_a_slash_is_not_asked_for() -> None:
    text = "group: got 'a/b/c', expected a name without a slash; peers would read the group b'a'$"
    with pytest.raises(ValueError, match=text):
        peerwire.request_target(BASE, "a/b/c", b"k")


def test_a_path_that_a_server_has_unescaped() -> None:
    target = peerwire.escape_path(b"/_groupcache/a b/\xff%/+.?")
    assert target == b"/_groupcache/a%20b/%FF%25/%2B.%3F"
    assert peerwire.parse_target(BASE, target) == (b"a b", b"\xff%/+.?")


def test_where_a_target_leads() -> None:
    assert peerwire.locate("/x/", b"/x/caf%C3%A9/k%FF") == ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", b"k\xff")
    with pytest.raises(peerwire.RequestError, match=r"^group: got b'\\xff', expected UTF-8$") as caught:
        peerwire.locate(BASE, b"/_groupcache/%FF/k")
    assert caught.value.response == peerwire.no_such_group(b"\xff")
    with pytest.raises(peerwire.RequestError) as caught:
        peerwire.locate(BASE, b"/elsewhere/g/k")
    assert caught.value.response == peerwire.NOT_FOUND


@pytest.mark.parametrize("path", ["/", "/_groupcache/", "/a/b.c/~d-/", "/.../"])
def test_base_paths(path: str) -> None:
    assert peerwire.check_base_path(path) == path
    assert peerwire.parse_target(path, peerwire.request_target(path, "g", b"k")) == (b"g", b"k")


@pytest.mark.parametrize("path", ["", "a/", "/a", "//", "/a//", "/./", "/a/../", "/a b/", "/a+b/", "/a?/", "/%41/"])
def test_base_paths_that_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="base path: got .*, expected one that begins and ends with a slash"):
        peerwire.check_base_path(path)


# ---- Values


@pytest.mark.parametrize(
    ("value", "rate", "wire_bytes"),
    [
        (b"V:hello", None, "0a07563a68656c6c6f"),
        (b"", None, "0a00"),
        (b"v", 1.5, "0a0176" + "11000000000000f83f"),
        (b"", 0.0, "0a00" + "110000000000000000"),
    ],
)
def test_responses(value: bytes, rate: float | None, wire_bytes: str) -> None:
    before, behind = peerwire.response_head(len(value), rate)
    assert (before + value + behind).hex() == wire_bytes
    assert peerwire.decode_response(bytes.fromhex(wire_bytes)) == (value, rate)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, (1 << 21) - 1, 1 << 21])
@pytest.mark.parametrize("rate", [None, 0.0, 1e300])
def test_responses_are_what_protobuf_makes(size: int, rate: float | None) -> None:
    value = b"x" * size
    before, behind = peerwire.response_head(size, rate)
    assert before + value + behind == GetResponse(value=value, minute_qps=rate).SerializeToString()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, (1 << 21) - 1, 1 << 21])
@pytest.mark.parametrize("rate", [None, 0.0, 1.5])
def test_usual_responses_are_read_without_protobuf(size: int, rate: float | None) -> None:
    value = bytes(size)
    before, behind = peerwire.response_head(size, rate)
    assert peerwire._read_usual(before + value + behind) == (value, rate)


@pytest.mark.parametrize(
    "body", ["", "0a", "0a80", "0a0176ff", "120176", "0a0176190000000000000000", "0a81808080800076"]
)
def test_other_responses_are_left_to_protobuf(body: str) -> None:
    assert peerwire._read_usual(bytes.fromhex(body)) is None


def test_a_value_beyond_protobuf() -> None:
    before, behind = peerwire.response_head((1 << 31) - 16, 1.0)
    assert (before.hex(), len(behind)) == ("0af0ffffff07", 9)
    with pytest.raises(ValueError, match="value: got 2147483647 bytes, expected less than 2 GiB"):
        peerwire.response_head((1 << 31) - 1)
    with pytest.raises(ValueError, match="value: got 2147483633 bytes, expected less than 2 GiB"):
        peerwire.response_head((1 << 31) - 15, 1.0)


@pytest.mark.parametrize(
    ("body", "response"),
    [
        ("", (b"", None)),  # Go reads it so, too
        ("0a01610a0162", (b"b", None)),
        ("11000000000000f83f0a0176", (b"v", 1.5)),
        ("0a01761a036e6577", (b"v", None)),  # a field of later days
        ("0a017619000000000000f83f", (b"v", None)),  # and one where the rate is wont to be
        ("0a0176110000000000", None),  # a rate that is cut off
        ("0a810076", (b"v", None)),  # a length with more bytes than it needs
        ("0a818080800076", (b"v", None)),
        ("0a818080807076", None),  # a length of 30 GB
        ("0a017611000000000000f87f", (b"v", None)),  # not a number
        ("0a017611000000000000f07f", (b"v", None)),  # infinity
        ("0a017611000000000000f0bf", (b"v", None)),  # -1
    ],
)
def test_responses_of_others(body: str, response: tuple[bytes, float | None] | None) -> None:
    if response is not None:
        assert peerwire.decode_response(bytes.fromhex(body)) == response
    else:
        with pytest.raises(ProtocolError):
            peerwire.decode_response(bytes.fromhex(body))


PIECES = st.sampled_from([b"\x0a", b"\x00", b"\x01v", b"\x80", b"\x81", b"\x11", bytes(8), b"\xff" * 4])


@given(st.lists(PIECES, max_size=9))
def test_responses_are_read_as_protobuf_reads_them(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    try:
        message = GetResponse.FromString(body)
    except DecodeError:
        with pytest.raises(ProtocolError):
            peerwire.decode_response(body)
    else:
        assert peerwire.decode_response(body).value == message.value


@pytest.mark.parametrize("body", [b"<html>", b"\x0a\x05abc", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"])
def test_bodies_that_are_no_responses(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="response: got b.*, expected a groupcachepb.GetResponse; is there a gr"):
        peerwire.decode_response(body)


# ---- Errors


def test_error_responses() -> None:
    assert peerwire.ErrorResponse(400, b"bad request\n", TEXT_HEADERS) == peerwire.BAD_REQUEST
    assert peerwire.ErrorResponse(404, b"404 page not found\n", TEXT_HEADERS) == peerwire.NOT_FOUND
    assert peerwire.no_such_group(b"n\xff") == peerwire.ErrorResponse(404, b"no such group: n\xff\n", TEXT_HEADERS)
    assert peerwire.error_response(500, "lone \udcff") == peerwire.ErrorResponse(500, b"lone \\udcff\n", TEXT_HEADERS)
    assert (peerwire.MALFORMED.body, peerwire.MALFORMED.closes) == (b"400 Bad Request", True)
    assert (peerwire.WRONG_SECRET.status, peerwire.ASKED_ITSELF.status) == (403, 421)


@pytest.mark.parametrize(
    ("type_name", "message"),
    [
        ("ValueError", "boom"),
        ("ValueError", ""),
        ("app.B\N{LATIN SMALL LETTER O WITH DIAERESIS}se", "two\nlines\n"),
        ("a b\r\nX: y", "\x00"),
        ("a/b", "x" * MAX_TEXT),
    ],
)
def test_a_loader_s_error_comes_back(type_name: str, message: str) -> None:
    response = peerwire.load_failed(type_name, message)
    assert (response.status, response.headers[:2]) == (500, TEXT_HEADERS)
    assert response.body == message.encode() + b"\n"
    assert all(value.isascii() and value.decode().isprintable() for _, value in response.headers)
    error = peerwire.loader_error(500, [(name.lower(), value) for name, value in response.headers], response.body)
    assert isinstance(error, LoadError)
    assert (error.type_name, error.message) == (type_name, message)


def test_a_loader_s_words_are_made_to_fit() -> None:
    response = peerwire.load_failed("\udcff" * 1000, "\N{CAT}" * 9000)
    assert len(response.body) <= peerwire.MAX_ERROR_BYTES
    error = peerwire.loader_error(500, response.headers, response.body)
    assert isinstance(error, LoadError)
    assert (len(error.type_name), len(error.message), error.message[-4:]) == (200, 8000, "\N{CAT}...")


def test_a_loader_s_words_that_are_no_text() -> None:
    assert (peerwire.LOAD_ERROR, b"a%2Fb") in peerwire.load_failed("a/b", "").headers
    for value in (b"%FF", b"\xff"):
        error = peerwire.loader_error(500, [(peerwire.LOAD_ERROR, value)], b"\xff\n")
        assert isinstance(error, LoadError)
        assert (error.type_name, error.message) == ("\N{REPLACEMENT CHARACTER}",) * 2


@pytest.mark.parametrize(
    ("text", "dead", "headers"),
    [
        ("no such plate", None, ((b"Mpgroupcache-Absent", b"true"),)),
        ("two\nlines\n", 5.0, ((b"Mpgroupcache-Absent", b"true"), (b"Mpgroupcache-Dead", b"5000"))),
        ("", 0.0, ((b"Mpgroupcache-Absent", b"true"), (b"Mpgroupcache-Dead", b"0"))),
        ("late", -1.0, ((b"Mpgroupcache-Absent", b"true"), (b"Mpgroupcache-Dead", b"0"))),
    ],
)
def test_an_absence_comes_back(text: str, dead: float | None, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    response = peerwire.no_such_value(text, dead)
    assert response == peerwire.ErrorResponse(404, text.encode() + b"\n", (*TEXT_HEADERS, *headers))
    assert peerwire.absence(404, [(name.lower(), value) for name, value in response.headers], response.body) == text


def test_an_absence_s_words_are_made_to_fit() -> None:
    response = peerwire.no_such_value("\N{CAT}" * 9000, None)
    assert len(response.body) <= peerwire.MAX_ERROR_BYTES
    text = peerwire.absence(404, response.headers, response.body)
    assert text is not None
    assert (len(text), text[-4:]) == (8000, "\N{CAT}...")


def test_an_unknown_group_is_no_absence() -> None:
    absent = peerwire.no_such_value("", None)
    for response in (peerwire.no_such_group(b"g"), peerwire.NOT_FOUND):
        assert peerwire.absence(404, response.headers, response.body) is None
    assert peerwire.absence(200, absent.headers, absent.body) is None
    assert peerwire.loader_error(404, absent.headers, absent.body) is None


def test_other_errors_are_the_peer_s() -> None:
    headers = peerwire.load_failed("ValueError", "boom").headers
    assert peerwire.loader_error(500, TEXT_HEADERS, b"boom\n") is None  # Go's: it cannot say
    assert peerwire.loader_error(502, headers, b"boom\n") is None
    assert peerwire.loader_error(301, [], b"") is None


# ---- Abilities

RATE, TIMEOUT = peerwire.Ability.RATE, peerwire.Ability.TIMEOUT


def test_abilities() -> None:
    assert peerwire.encode_abilities([TIMEOUT, RATE]) == b"rate, timeout"
    assert peerwire.encode_abilities([]) == b""
    value = peerwire.encode_abilities(peerwire.Ability)
    assert peerwire.read_abilities(200, [(b"mpgroupcache-abilities", value)]) == set(peerwire.Ability)
    assert all(re.fullmatch(r"[a-z0-9-]+", word) for word in peerwire.Ability)


@pytest.mark.parametrize(
    ("value", "abilities"),
    [
        (b"", set()),
        (b"rate", {RATE}),
        (b" RATE ,\ttimeout", {RATE, TIMEOUT}),
        (b"rate,rate,,rate", {RATE}),
        (b"fly, rate, swim;far, timeout2, time out", {RATE}),
        (b"rates", set()),
        (b"rate;q=1", set()),
        (b"\x00\xff, rate", {RATE}),
        (b"x" * 1018 + b", rate", {RATE}),
        (b"x" * 1019 + b", rate", set()),  # behind the last of what is read
        (b"x" * 1020 + b",rate-and-more", set()),
        (b"x" * 1019 + b",ratelimited", set()),  # what is left of it is a word
        (b"rate, " + b"x" * 100_000 + b", timeout", {RATE}),
        (b"x" * 1100 + b", rate, timeout", set()),
        (b"," * 100_000, set()),
    ],
)
def test_abilities_that_are_known_count(value: bytes, abilities: set[peerwire.Ability]) -> None:
    for status in (200, 405, 503):
        assert peerwire.read_abilities(status, [(b"Date", b"rate"), (peerwire.ABILITIES, value)]) == abilities


@given(st.binary(max_size=60), st.integers(100, 599))
def test_any_bytes_are_abilities_or_none(value: bytes, status: int) -> None:
    assert peerwire.read_abilities(status, [(peerwire.ABILITIES, value)]) <= set(peerwire.Ability)


def test_abilities_in_two_headers() -> None:
    assert peerwire.read_abilities(200, [(peerwire.ABILITIES, b"rate"), (peerwire.ABILITIES, b"timeout")]) == {
        RATE,
        TIMEOUT,
    }


@pytest.mark.parametrize("status", [200, 301, 400, 404, 500])
def test_who_says_nothing_can_do_nothing(status: int) -> None:
    assert peerwire.read_abilities(status, TEXT_HEADERS) == set()


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_is_in_between_says_nothing_of_a_peer(status: int) -> None:
    assert peerwire.read_abilities(status, TEXT_HEADERS) is None


def test_abilities_for_people() -> None:
    for abilities, text in ((None, "unknown"), ([], "none"), ([TIMEOUT, RATE], "rate, timeout")):
        assert peerwire.describe_abilities(None if abilities is None else frozenset(abilities)) == text


# ---- Headers


@pytest.mark.parametrize(
    ("seconds", "value"), [(1.5, b"1500"), (0.0001, b"1"), (0, b"1"), (-1, b"1"), (1.0001, b"1001"), (1e300, b"9" * 12)]
)
def test_timeouts(seconds: float, value: bytes) -> None:
    assert peerwire.encode_timeout(seconds) == value
    assert peerwire.decode_timeout(value) == int(value) / 1000


@pytest.mark.parametrize("value", [b"", b"1.5", b"-1", b" 1", b"1\n", b"1_0", b"\xd9\xa1", b"1" * 13])
def test_timeouts_that_are_refused(value: bytes) -> None:
    with pytest.raises(peerwire.RequestError, match="Mpgroupcache-Timeout: got b.*, expected milliseconds") as caught:
        peerwire.decode_timeout(value)
    assert caught.value.response.status == 400


def test_secrets() -> None:
    secret = peerwire.encode_secret("s3cret!")
    peerwire.check_secret(secret, b"s3cret!")
    for got, what in [(None, "no header"), (b"", "another one"), (b"s3cret", "another one"), (b"\xff", "another one")]:
        with pytest.raises(peerwire.RequestError, match=f"Mpgroupcache-Secret: got {what}, expected") as caught:
            peerwire.check_secret(secret, got)
        assert caught.value.response == peerwire.WRONG_SECRET


@pytest.mark.parametrize("secret", ["", "two words", "line\n", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "x" * 1025])
def test_secrets_that_are_refused_are_not_told(secret: str) -> None:
    text = (
        r"secret: got \d+ characters, expected 1 to 1024 of printable ASCII without spaces; has a file's newline come"
    )
    with pytest.raises(ValueError, match=text) as caught:
        peerwire.encode_secret(secret)
    assert not secret or secret not in str(caught.value)
