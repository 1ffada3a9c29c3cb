"""What peers say of many keys of one group at once: between us alone, of a peer that said that it can (``batch``).

A request and its answer::

    POST {base_path}{group} HTTP/1.1                group percent-encoded, and no slash behind it
    Content-Type: application/x-mpgroupcache-keys   else it is refused like other methods
    Content-Length: N                               no chunks

    [key, ...]                                      msgpack: 1 to MAX_KEYS of bin, MAX_REQUEST_BYTES together

    200  application/x-mpgroupcache-answers         msgpack: one of these for each key, in the keys' order
    [0, value, minute_qps?, fresh?, dead?, version?]
    [1, text, dead?]                                its loader says that there is no such thing
    [2, type_name, text]                            its loader failed
    [3]                                             it is to be asked for alone, by a GET
    [4, text]                                       this peer cannot load it in time: load it where it is needed

Fields mean what peerwire.py's headers do: ages are milliseconds, ``?`` may be nil. Nothing of it is asked alone twice.
All else is answered as a GET is, for all keys together; and 413 where the body is longer than that. A Go peer that is
sent it all the same, since it has just taken the place of one of ours, answers 400 and loads nothing: Go splits a path
before it looks at anything else, and this one has no key.

What an answer can carry is bounded, so that it costs neither side more than a large value: values of more than
MAX_VALUE_BYTES, and what is over MAX_ANSWER_BYTES together, are to be asked for alone. The owner waits for its loads
no longer than Mpgroupcache-Timeout says, and then answers what it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from mpgroupcache.errors import ProtocolError
from mpgroupcache.keys import MAX_KEY_BYTES
from mpgroupcache.limits import MAX_TYPE_NAME
from mpgroupcache.net.ages import MAX_MS, MAX_VERSION, milliseconds
from mpgroupcache.net.peerwire import RequestError, cut, error_response

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mpgroupcache.net.backend import Served

MAX_KEYS: Final = 256  # of a request: looking them up takes a few milliseconds, in which no other client has its turn
MAX_REQUEST_BYTES: Final = 256 << 10  # of a request's body: as much as a request's target may have
MAX_ANSWER_BYTES: Final = 4 << 20  # of an answer's body
MAX_VALUE_BYTES: Final = 256 << 10  # of a value in it: what is larger takes its time anyway, and is not held for others

METHOD: Final = b"POST"
KEYS_TYPE: Final = b"application/x-mpgroupcache-keys"
ANSWERS_TYPE: Final = b"application/x-mpgroupcache-answers"

_HEAD_BYTES: Final = 5  # of a key or an array at most
_Age: TypeAlias = Annotated[int, Meta(ge=-MAX_MS, le=MAX_MS)]
_Left: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_MS)]


class Value(Struct, array_like=True, tag=0, frozen=True):
    """A value, with what is known of it."""

    value: bytes  # or a view of it, until it is encoded
    minute_qps: float | None
    fresh: _Age | None
    dead: _Left | None
    version: Annotated[int, Meta(ge=1, le=MAX_VERSION)] | None


class Absence(Struct, array_like=True, tag=1, frozen=True):
    """The loader says that there is no such thing."""

    text: str
    dead: _Left | None


class Failure(Struct, array_like=True, tag=2, frozen=True):
    """The loader failed."""

    type_name: str
    text: str


class Alone(Struct, array_like=True, tag=3, frozen=True):
    """The key is to be asked for by a GET."""


class Refusal(Struct, array_like=True, tag=4, frozen=True):
    """The key is to be loaded where it is needed."""

    text: str


Answer: TypeAlias = Value | Absence | Failure | Alone | Refusal

_encoder: Final = msgspec.msgpack.Encoder()
_keys: Final = msgspec.msgpack.Decoder(
    Annotated[list[Annotated[bytes, Meta(max_length=MAX_KEY_BYTES)]], Meta(min_length=1, max_length=MAX_KEYS)]
)
_answers: Final = msgspec.msgpack.Decoder(Annotated[list[Answer], Meta(max_length=MAX_KEYS)])

ALONE: Final = _encoder.encode(Alone())
ROOM: Final = MAX_ANSWER_BYTES - _HEAD_BYTES - MAX_KEYS * len(ALONE)
"""Bytes of an answer for other than these."""


# ---- Requests


def split(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield the keys in as few parts as requests can carry."""
    begin, size = 0, _HEAD_BYTES
    for at, key in enumerate(keys):
        size += len(key) + _HEAD_BYTES
        if at - begin == MAX_KEYS or size > MAX_REQUEST_BYTES:
            yield keys[begin:at]
            begin, size = at, len(key) + 2 * _HEAD_BYTES
    if begin < len(keys):
        yield keys[begin:]


def encode_keys(keys: Sequence[bytes]) -> bytes:
    """Return a request's body."""
    return _encoder.encode(keys)


def decode_keys(body: bytes) -> list[bytes]:
    """Return what a request asks for. Raises ``RequestError``."""
    try:
        keys: list[bytes] = _keys.decode(body)
    except msgspec.DecodeError as error:
        text = f"keys: {error}, expected 1 to {MAX_KEYS} keys, each of at most {MAX_KEY_BYTES} bytes"
        raise RequestError(text, error_response(400, text)) from None
    return keys


# ---- Answers


def answer_of(served: Served) -> Answer:
    """Return what is said of a value or an absence, whatever room there is for it."""
    dead = None if served.dead is None else milliseconds(max(served.dead, 0.0))
    if served.absent:
        return Absence(cut(bytes(served.value).decode(errors="replace")), dead)
    if len(served.value) > MAX_VALUE_BYTES:
        return Alone()
    rate = served.minute_qps if served.minute_qps > 0.0 else None
    fresh = None if served.fresh is None else milliseconds(served.fresh)
    return Value(served.value, rate, fresh, dead, served.version or None)  # type: ignore[arg-type]


def failure(type_name: str, text: str) -> Failure:
    """Return what is said of a loader's error."""
    return Failure(_plain(type_name[:MAX_TYPE_NAME]), _plain(cut(text)))


def refusal(text: str) -> Refusal:
    """Return what is said of a key that this peer cannot load."""
    return Refusal(_plain(cut(text)))


def _plain(text: str) -> str:
    """Return a text that can be sent: lone surrogates as escapes."""
    return text.encode(errors="backslashreplace").decode()


def encode_answer(answer: Answer) -> bytes:
    """Return one key's part of a body; nothing refers to the value's memory after that."""
    return _encoder.encode(answer)


def encode_answers(answers: Sequence[bytes]) -> bytes:
    """Return the body that the parts make."""
    return _encoder.encode([Raw(answer) for answer in answers])


def decode_answers(body: bytes, count: int) -> list[Answer]:
    """Return what an answer says of each of so many keys. Raises ``ProtocolError``."""
    try:
        answers: list[Answer] = _answers.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"answer for {count} keys: {error}") from None
    if len(answers) != count:
        raise ProtocolError(f"answer for {count} keys: got one for {len(answers)}")
    return answers
