"""What peers say to each other over HTTP: Go groupcache's protocol. Nothing else in the project writes or reads it.

How headers say what is left of ages is in ages.py, and how many keys are asked for at once in batches.py.

A request and its answers::

    GET {base_path}{group}/{key} HTTP/1.1           group and key percent-encoded; HEAD: the same without the body

    200  application/x-protobuf                     a GetResponse: value, and maybe minute_qps
    400  text/plain  bad request                    no slash behind the group
    404  text/plain  no such group: NAME
    404  text/plain  the loader's text              it says that there is no such thing; with Mpgroupcache-Absent
    500  text/plain  the error's text               the load failed

Errors are as Go's ``http.Error`` has them: the text and a newline, and the header ``X-Content-Type-Options: nosniff``.

Headers that mpgroupcache adds; Go neither sends nor reads them (``>``: in requests, ``<``: in responses)::

    > <  Mpgroupcache-Instance     16 random bytes in hex, new at each start of a coordinator. A peer that receives its
                                   own asks itself: its --self is wrong. In a response: this peer is not Go's.
    >    Mpgroupcache-Timeout      milliseconds, decimal: how long the asking side still waits
    >    Mpgroupcache-Secret       the ring's shared secret, if it has one: printable ASCII
      <  Mpgroupcache-Load-Error   with 500: it was the loader that failed, asking another host would run it again. Its
                                   value: the exception's type name, percent-encoded. The body is the exception's text.
      <  Mpgroupcache-Absent       with 404: the loader says that there is no such thing, so that no other host has to
                                   ask its own. Its value is of no meaning. The body is the loader's text.
      <  Mpgroupcache-Fresh        with a value: milliseconds, decimal, until it is stale, below 0: since when. Without
                                   it: it never is.
      <  Mpgroupcache-Dead         with a value or an absence: milliseconds, decimal, until it is dead; 0: it is for who
                                   asked, and not to be kept. Without it: it never is.
      <  Mpgroupcache-Version      with a value: its number, decimal, below 2**63 and above 0
      <  Mpgroupcache-Abilities    what this peer can do beyond Go's protocol, words with commas between them: of these
                                   below, and of later ones, so that a word which is not known is passed over. Each
                                   answer has it; without it a peer can do none of that, such as Go's.

What is left of an age is as of the answer: it grows older by the time on its way. An age or version that is none makes
the whole answer one that is not understood: to take it for unsaid would be to keep for ever what is soon to die.

Words of abilities::

    absence       says by Mpgroupcache-Absent which of its 404 are the loader's
    ages          says what is left of a value's ages, and its version, where it has them
    load-error    says which of its 500 are the loader's, by Mpgroupcache-Load-Error
    batch         answers for many keys at once, as batches.py has it
    rate          sends minute_qps with a value, where it knows it
    timeout       heeds Mpgroupcache-Timeout

A GET or HEAD of the base path alone is answered 400 and looks nothing up. With that a peer is asked whether it lives,
and what it can do.

Answers that Go does not have::

    403  the secret is missing or another one
    405  the method is neither GET nor HEAD, whatever the target; with ``Allow: GET, HEAD``. Go takes any for a GET. It
         is no POST as batches.py has it either
    413  such a POST has too long a body
    414  the key, or the whole target, is too long
    421  this request comes from the peer that it is for
    503  nobody here can load now; or the value is too large; or clients have too much of their answers still to read
    504  no value came within Mpgroupcache-Timeout

How bytes become a path. Go's client escapes with ``url.QueryEscape`` (a space is ``+``, a plus ``%2B``), and Go's
server unescapes as a path (``+`` is a plus). So between two Go peers a space arrives as a plus: another key. Here ``+``
and ``%20`` are read as a space, ``%2B`` as a plus; ``%20`` and ``%2B`` are written, which either side reads right.

A target is unescaped first, and then split at the first slash behind the base path, as Go does it. So ``a%2Fb/key`` is
group ``a`` and key ``b/key``, also where its sender meant group ``a/b``: a group whose name has a slash cannot be asked
for, and `request_target` refuses it rather than fetch what belongs to another group. Everything behind that slash is
the key, byte for byte: empty, with slashes, ``//``, ``..`` or whatever. A server that answers such paths with redirects
(Go's ``ServeMux`` does) redirects to another key: never follow one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hmac import compare_digest
from math import ceil
from struct import pack, unpack_from
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, quote_from_bytes, unquote, unquote_to_bytes

from mpgroupcache.errors import LoadError, ProtocolError
from mpgroupcache.keys import MAX_KEY_BYTES
from mpgroupcache.limits import MAX_NAME_BYTES, MAX_TEXT, MAX_TYPE_NAME, usable_rate
from mpgroupcache.net.ages import MAX_MS, age_headers

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_BASE_PATH: Final = "/_groupcache/"  # Go's
# Bytes of a request target: group and key, all escaped, and room for a base path, the absolute form and a query. Go's
# server takes a MiB for the request line and all headers.
MAX_TARGET_BYTES: Final = 3 * (MAX_NAME_BYTES + 1 + MAX_KEY_BYTES) + (4 << 10)
# Bytes of a response that a client takes by default: above any value that fits a usual cache (a quarter of its budget),
# and small enough that a few peers which are not ours, or mad, do not take the host's memory.
MAX_RESPONSE_BYTES: Final = 256 << 20
MAX_VALUE_BYTES: Final = MAX_RESPONSE_BYTES - 64  # of one: what goes around it in a response is less
MAX_ERROR_BYTES: Final = 64 << 10  # of an error's body that a client reads: twice what MAX_TEXT can take
MAX_SECRET_BYTES: Final = 1024  # a header's worth
MAX_ABILITIES_BYTES: Final = 1024  # that are read of a peer's abilities; some fifty

INSTANCE: Final = b"Mpgroupcache-Instance"
TIMEOUT: Final = b"Mpgroupcache-Timeout"
SECRET: Final = b"Mpgroupcache-Secret"
LOAD_ERROR: Final = b"Mpgroupcache-Load-Error"
ABSENT: Final = b"Mpgroupcache-Absent"
ABILITIES: Final = b"Mpgroupcache-Abilities"

METHODS: Final = (b"GET", b"HEAD")
CONTENT_TYPE: Final = b"application/x-protobuf"  # of a value

_MAX_MESSAGE: Final = (1 << 31) - 1  # bytes; what protobuf can read
_BASE_PATH: Final = re.compile(r"/(?:(?!\.{1,2}/)[A-Za-z0-9\-._~]+/)*")
_CONTROL: Final = re.compile(rb"[\x00-\x20\x7f]")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*:(?://[^/]*)?")
# What stands for itself in a path: such a target needs no unescaping, and most are such.
_PLAIN: Final = re.compile(rb"[A-Za-z0-9\-._~/:@!$&'()*,;=]*")
_MILLISECONDS: Final = re.compile(rb"[0-9]{1,12}")
_SECRET: Final = re.compile(rf"[!-~]{{1,{MAX_SECRET_BYTES}}}")
_TEXT: Final = (b"Content-Type", b"text/plain; charset=utf-8")
_DOTS: Final = {b".": "%2E", b"..": "%2E%2E"}  # a client or proxy in between would take them for directories


class Request(NamedTuple):
    """What a peer asks for: any bytes, whether they name a group or not."""

    group: bytes
    key: bytes


class Response(NamedTuple):
    """What a peer answered."""

    value: bytes
    minute_qps: float | None


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An answer that is not a value. The server adds Content-Length and Date, as Go does."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (_TEXT, (b"X-Content-Type-Options", b"nosniff"))
    closes: bool = False
    """Whether the server closes the connection after it."""


class RequestError(ProtocolError):
    """A request that is answered with an error. Only ``response`` is for the peer."""

    def __init__(self, message: str, response: ErrorResponse) -> None:
        super().__init__(message)
        self.response = response


# ---- Request targets


def check_base_path(base_path: str) -> str:
    """Return ``base_path`` as it is. Raises ``ValueError`` for one that would have to be escaped or cleaned."""
    if not _BASE_PATH.fullmatch(base_path):
        raise ValueError(
            f"base path: got {base_path!r}, expected one that begins and ends with a slash and holds letters, digits, "
            f"-, ., _ and ~ in between, such as {DEFAULT_BASE_PATH}"
        )
    return base_path


def request_target(base_path: str, group: str | bytes, key: bytes) -> bytes:
    """Return the request target for a key, which every kind of peer reads as these same bytes.

    ``base_path`` goes in as it is; the path of the peer's URL, if it has one, belongs in front of it. Raises
    ``ValueError`` for a key that is too long, and for a group whose name has a slash.
    """
    name = group.encode() if isinstance(group, str) else group
    if b"/" in name:
        raise ValueError(
            f"group: got {group!r}, expected a name without a slash; peers would read the group {name.split(b'/')[0]!r}"
        )
    if len(key) > MAX_KEY_BYTES:
        raise ValueError(f"key: got {len(key)} bytes, expected at most {MAX_KEY_BYTES}; hash long keys first")
    return f"{base_path}{_escape(name)}/{_escape(key)}".encode()


def _escape(name: bytes) -> str:
    return _DOTS.get(name) or quote_from_bytes(name, safe="")


def escape_path(path: bytes) -> bytes:
    """Return a path that a server has unescaped as a raw request target, which ``parse_target`` reads as that path."""
    return quote_from_bytes(path, safe="/").encode()


def group_target(base_path: str, group: str) -> bytes:
    """Return the request target for a group, for many of its keys at once. Raises ``ValueError`` as `request_target`.

    Whoever reads it as a key's finds none.
    """
    return request_target(base_path, group, b"").removesuffix(b"/")


def parse_target(base_path: str, target: bytes) -> Request:
    """Return what a raw request target asks for.

    Raises ``RequestError`` with what Go's server would answer. A path outside ``base_path`` makes Go's handler panic,
    which closes the connection without a word; here it is what Go's mux answers if nothing is registered for a path.
    """
    if len(target) <= MAX_KEY_BYTES and _PLAIN.fullmatch(target) and target.startswith(base := base_path.encode()):
        group, slash, key = target[len(base) :].partition(b"/")
        if slash:
            return Request(group, key)
    group, slash, key = _path_below(base_path, target).partition(b"/")
    if not slash:
        raise RequestError(f"path: got {_short(target)}, expected {base_path}GROUP/KEY", BAD_REQUEST)
    if len(key) > MAX_KEY_BYTES:
        raise _too_long("key", len(key), MAX_KEY_BYTES)
    return Request(group, key)


def _path_below(base_path: str, target: bytes) -> bytes:
    """Return what of a raw request target is behind the base path, unescaped. Raises ``RequestError``."""
    if len(target) > MAX_TARGET_BYTES:
        raise _too_long("target", len(target), MAX_TARGET_BYTES)
    if _CONTROL.search(target):
        raise _malformed(target, "no spaces and control characters")
    path, _, _ = target.partition(b"?")
    if not path.startswith(b"/") and target != b"*":
        absolute = _ABSOLUTE.match(path)
        if absolute is None:
            raise _malformed(target, "a path, or a URL")
        path = path[absolute.end() :]
    if _BAD_ESCAPE.search(path):
        raise _malformed(target, "two hexadecimal digits after each %")
    base = base_path.encode()
    plain = unquote_to_bytes(path)
    if not plain.startswith(base):
        raise RequestError(f"path: got {_short(target)}, expected one below {base_path}", NOT_FOUND)
    if b"+" in path:  # not in the base path, where a plus is a plus
        plain = unquote_to_bytes(path.replace(b"+", b" "))
    return plain[len(base) :]


def locate(base_path: str, target: bytes) -> tuple[str, bytes]:
    """Return the group's name and the key that a raw request target asks for. Raises ``RequestError``."""
    group, key = parse_target(base_path, target)
    return _name_of(group), key


def locate_group(base_path: str, target: bytes) -> str:
    """Return the group's name of which a raw request target asks for many keys. Raises ``RequestError``."""
    group = _path_below(base_path, target)
    if not group or b"/" in group:
        raise RequestError(f"path: got {_short(target)}, expected {base_path}GROUP", BAD_REQUEST)
    return _name_of(group)


def _name_of(group: bytes) -> str:
    try:
        return group.decode()
    except UnicodeDecodeError:
        raise RequestError(f"group: got {group!r}, expected UTF-8", no_such_group(group)) from None


def _short(target: bytes) -> str:
    return repr(target) if len(target) <= 100 else f"{target[:100]!r}...{len(target)}"


def _malformed(target: bytes, expected: str) -> RequestError:
    return RequestError(f"target: got {_short(target)}, expected {expected}", MALFORMED)


def _too_long(what: str, length: int, limit: int) -> RequestError:
    text = f"{what}: got {length} bytes, expected at most {limit}"
    return RequestError(text, error_response(414, text))


# ---- Values


def response_head(length: int, minute_qps: float | None = None) -> tuple[bytes, bytes]:
    """Return the bytes that go before and behind a value of ``length`` bytes: together they are the ``GetResponse``.

    So a large value need not be copied into a message. Without a rate it is what Go sends, byte for byte.
    """
    before = b"\x0a" + _varint(length)  # field 1, length-delimited
    behind = b"" if minute_qps is None else pack("<Bd", 0x11, minute_qps)  # field 2, 64-bit
    if not 0 <= length <= _MAX_MESSAGE - len(before) - len(behind):
        raise ValueError(f"value: got {length} bytes, expected less than 2 GiB, which is what a protobuf message holds")
    return before, behind


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number & 0x7F)
    return bytes(encoded)


def decode_response(body: bytes) -> Response:
    """Read the body of a 200. No value is an empty one, as in Go. Raises ``ProtocolError`` for what is no response."""
    if (response := _read_usual(body)) is not None:
        return response
    # Megabytes, and some 10 ms, for what neither Go nor mpgroupcache sends.
    from google.protobuf.message import DecodeError

    from mpgroupcache.net.groupcachepb_pb2 import GetResponse

    try:
        message = GetResponse.FromString(body)
    except DecodeError as error:
        expected = "a groupcachepb.GetResponse; is there a groupcache peer at this URL?"
        raise ProtocolError(f"response: got {_short(body)} ({error}), expected {expected}") from None
    rate = message.minute_qps if message.HasField("minute_qps") else None
    return Response(message.value, None if rate is None else usable_rate(rate))


def _read_usual(body: bytes) -> Response | None:
    """What is in a message that is laid out as `response_head` has it; None for any other, good or bad."""
    if not body.startswith(b"\x0a"):
        return None
    length = 0
    for at, byte in enumerate(body[1:6]):
        length |= (byte & 0x7F) << 7 * at
        if byte <= 0x7F:
            break
    else:
        return None
    begin = 2 + at
    match len(body) - begin - length:
        case 0:
            return Response(body[begin:], None)
        case 9 if body[-9] == 0x11:
            return Response(body[begin:-9], usable_rate(unpack_from("<d", body, len(body) - 8)[0]))
    return None


# ---- Errors


def error_response(status: int, text: str | bytes) -> ErrorResponse:
    """Return what Go's ``http.Error`` answers. Lone surrogates of ``text`` are written as escapes."""
    body = text.encode(errors="backslashreplace") if isinstance(text, str) else text
    return ErrorResponse(status, body + b"\n")


def no_such_group(group: bytes) -> ErrorResponse:
    """Return the answer for a group that nobody here declared."""
    return error_response(404, b"no such group: " + group)


def load_failed(type_name: str, message: str) -> ErrorResponse:
    """Return the answer for a loader's error: Go's to a Go client, and the error itself to one of ours."""
    response = error_response(500, cut(message))
    value = quote(type_name[:MAX_TYPE_NAME], safe="", errors="backslashreplace").encode()
    return ErrorResponse(response.status, response.body, (*response.headers, (LOAD_ERROR, value)))


def no_such_value(text: str, dead: float | None) -> ErrorResponse:
    """Return the answer for what its loader says there is not; ``dead``: seconds for which that may be kept."""
    response = error_response(404, cut(text))
    headers = (*response.headers, (ABSENT, b"true"), *age_headers(None, dead, None))
    return ErrorResponse(response.status, response.body, headers)


def absence(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> str | None:
    """Return the loader's text of a response that tells of an absence; None for any other, such as an unknown group."""
    wanted = ABSENT.lower()
    if status != 404 or all(name.lower() != wanted for name, _ in headers):
        return None
    return _read_text(body)


def cut(text: str) -> str:
    """Return as much of an error's text as is told."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


def _read_text(body: bytes) -> str:
    return body.decode(errors="replace").removesuffix("\n")[:MAX_TEXT]


def loader_error(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> LoadError | None:
    """Return the loader's error that a response tells of; None if it was the peer that failed, or cannot say."""
    if status != 500:
        return None
    wanted = LOAD_ERROR.lower()
    value = next((value for name, value in headers if name.lower() == wanted), None)
    if value is None:
        return None
    type_name = unquote(value.decode("ascii", "replace"))[:MAX_TYPE_NAME]
    return LoadError(type_name, _read_text(body))


BAD_REQUEST: Final = error_response(400, "bad request")
NOT_FOUND: Final = error_response(404, "404 page not found")
# What net/http answers before it calls a handler: other headers, and no newline.
MALFORMED: Final = ErrorResponse(400, b"400 Bad Request", (_TEXT, (b"Connection", b"close")), closes=True)
# As Go's http.ServeMux has it, where a pattern names methods.
METHOD_NOT_ALLOWED: Final = ErrorResponse(
    405, b"Method Not Allowed\n", (*BAD_REQUEST.headers, (b"Allow", b", ".join(METHODS)))
)
WRONG_SECRET: Final = error_response(
    403, f"forbidden: the header {SECRET.decode()} is missing or wrong; give all peers of a ring the same secret"
)
ASKED_ITSELF: Final = error_response(
    421, "misdirected request: this peer asked itself; set --self to the URL that is in its list of peers"
)


# ---- Abilities


class Ability(StrEnum):
    """What a peer may be able to do beyond Go's protocol, in its own words."""

    ABSENCE = "absence"
    AGES = "ages"
    BATCH = "batch"
    LOAD_ERROR = "load-error"
    RATE = "rate"
    TIMEOUT = "timeout"


_ABILITIES: Final = {ability.encode(): ability for ability in Ability}
_GATEWAYS: Final = frozenset((502, 503, 504))  # what is in between says so of a peer that it does not reach; Go's never


def encode_abilities(abilities: Iterable[Ability]) -> bytes:
    """Return the header's value."""
    return b", ".join(sorted(ability.encode() for ability in abilities))


def read_abilities(status: int, headers: Iterable[tuple[bytes, bytes]]) -> frozenset[Ability] | None:
    """Return what the peer that answered so can do; None where the answer may not be its own, and does not say."""
    wanted = ABILITIES.lower()
    values = [value for name, value in headers if name.lower() == wanted]
    if not values and status in _GATEWAYS:
        return None
    return _decode_abilities(b",".join(values)[: MAX_ABILITIES_BYTES + 1])


@lru_cache(16)  # each answer of a peer says the same
def _decode_abilities(value: bytes) -> frozenset[Ability]:
    words = value.split(b",")
    if len(value) > MAX_ABILITIES_BYTES:
        del words[-1]  # which may be cut off, and another word then
    return frozenset(ability for word in words if (ability := _ABILITIES.get(word.strip().lower())) is not None)


def describe_abilities(abilities: frozenset[Ability] | None) -> str:
    """What a peer can do, for people."""
    return "unknown" if abilities is None else ", ".join(sorted(abilities)) or "none"


# ---- Values of headers


def encode_timeout(seconds: float) -> bytes:
    """Return the header's value for a caller that waits so long; at least a millisecond, since it does still wait."""
    return b"%d" % min(max(ceil(seconds * 1000), 1), MAX_MS)


def decode_timeout(value: bytes) -> float:
    """Return the seconds. Raises ``RequestError`` for anything but milliseconds in decimal."""
    if not _MILLISECONDS.fullmatch(value):
        text = f"{TIMEOUT.decode()}: got {_short(value)}, expected milliseconds, at most {MAX_MS}"
        raise RequestError(text, error_response(400, text))
    return int(value) / 1000


def encode_secret(secret: str) -> bytes:
    """Return the header's value. Raises ``ValueError`` for a secret that no header can carry, without quoting it."""
    if not _SECRET.fullmatch(secret):
        raise ValueError(
            f"secret: got {len(secret)} characters, expected 1 to {MAX_SECRET_BYTES} of printable ASCII without "
            "spaces; has a file's newline come along?"
        )
    return secret.encode()


def check_secret(expected: bytes, got: bytes | None) -> None:
    """Raise ``RequestError`` unless a request's secret is the expected one; that takes as long whatever was guessed."""
    if got is None or not compare_digest(expected, got):
        what = "no header" if got is None else "another one"
        raise RequestError(f"{SECRET.decode()}: got {what}, expected this ring's secret", WRONG_SECRET)
