"""The IPC frame. Nothing else in the project packs or parses one; sockets are somebody else's business.

A frame, big endian::

    0               2       3       4               8              12
    +-------+-------+-------+-------+---------------+---------------+------------------
    | magic  "mg"   |version| type  |  request id   | payload bytes | payload
    |      2B       |  u8   |  u8   |      u32      |      u32      | msgpack array
    +-------+-------+-------+-------+---------------+---------------+------------------

The payload is the array of a message's fields (messages.py). A request's id is the choice of the side that asks; its
answer repeats it. One-way messages leave it 0, except CANCEL.

Magic and version keep their places and values for ever, and so do HELLO and its refusal, by which any two releases find
out whether they have a version of the conversation in common. The version here is the frame's own.

This code assumes that whoever feeds a decoder also drains it, and closes the connection at the first error.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from mpgroupcache.errors import ProtocolError
from mpgroupcache.ipc.messages import MESSAGES, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION: Final = 2  # of the frame, for good; before HELLO told of versions it was 1
MAX_PAYLOAD: Final = 256 << 10  # bytes; above the largest payload there is (about 73 KiB, an ASK), with room to grow

_MAGIC: Final = b"mg"
_START: Final = _MAGIC + bytes([VERSION])  # of every frame that we understand
_HEADER: Final = struct.Struct(">4sII")  # a frame's start and type are one word here: to know it is one look-up
_HEADER_BYTES: Final = _HEADER.size
MAX_REQUEST: Final = 0xFFFFFFFF  # the highest request id
_unpack_header: Final = _HEADER.unpack_from
ID_AT: Final = 4  # where a frame has its request id

Frame: TypeAlias = tuple[int, Message]
"""A request id and its message."""

_KNOWN: Final = ", ".join(f"{number:#04x} {number.name}" for number in MESSAGES)
_WORDS: Final = {kind: _START + bytes([number]) for number, kind in MESSAGES.items()}
_PAYLOADS: Final = {word: msgspec.msgpack.Decoder(kind) for kind, word in _WORDS.items()}
_pack: Final = msgspec.msgpack.Encoder().encode


def encode(message: Message, request_id: int = 0) -> bytes:
    """Return the frame of ``message``."""
    payload = _pack(message)
    return _HEADER.pack(_WORDS[type(message)], request_id, len(payload)) + payload


def read_frame(data: bytes | bytearray, at: int) -> tuple[int, int, Message] | None:
    """Return where the frame that begins at ``at`` ends, its request id and its message; None: it is not whole yet.

    Its header is judged before its payload is there. Raises ``ProtocolError``.
    """
    start = at + _HEADER_BYTES
    if start > len(data):
        return None
    word, request_id, length = _unpack_header(data, at)
    payload = _PAYLOADS.get(word)
    if payload is None or length > MAX_PAYLOAD:
        raise _unreadable(word, length)
    end = start + length
    if end > len(data):
        return None
    try:
        return end, request_id, payload.decode(data[start:end])
    except (msgspec.MsgspecError, ValueError) as error:
        raise _misfit(payload.type, error) from None


class Decoder:
    """Finds the frames in a stream of bytes, however it was split.

    Whole frames that arrive in one ``bytes`` are read from it. Only the last, unfinished one is buffered, and its
    header is judged before its payload is there: a drained decoder never holds more than a header and ``MAX_PAYLOAD``.
    """

    __slots__ = ("_at", "_data")

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""
        self._at = 0  # where in _data the next frame begins

    def __repr__(self) -> str:
        return f"<Decoder: {self.pending} bytes pending>"

    @property
    def pending(self) -> int:
        """How many bytes wait for the rest of their frame. Not 0 at the end of a stream: it was cut off."""
        return len(self._data) - self._at

    def feed(self, data: bytes | memoryview) -> None:
        """Take what was received. A ``memoryview``'s buffer is the caller's again on return."""
        if not self._data:
            self._data = bytes(data)  # of bytes: no copy
            return
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)
        del self._data[: self._at]  # a bytearray gives up its head without moving the rest
        self._at = 0
        self._data += data

    def __iter__(self) -> Iterator[Frame]:
        """Take out the frames that are whole, each as it is reached. Nothing is to be fed before that is over.

        Raises ``ProtocolError``, and again the next time: there is no telling where the next frame would begin.
        """
        while (found := read_frame(self._data, self._at)) is not None:
            self._at, request_id, message = found
            if self._at == len(self._data):
                self._data, self._at = b"", 0
            yield request_id, message


def _unreadable(word: bytes, length: int) -> ProtocolError:
    """Say what is wrong with a header."""
    if not word.startswith(_MAGIC):
        return ProtocolError(f"magic: got {word[:2]!r}, expected {_MAGIC!r}; is this socket mpgroupcache's?")
    if not word.startswith(_START):
        return ProtocolError(
            f"version: got {word[2]}, expected {VERSION}; restart what is older, worker or coordinator"
        )
    if (payload := _PAYLOADS.get(word)) is None:
        return ProtocolError(f"message type: got {word[3]:#04x}, expected one of {_KNOWN}")
    kind = payload.type.__name__
    return ProtocolError(f"{kind}: got a payload of {length} bytes, expected at most {MAX_PAYLOAD}")


def _misfit(kind: type[Message], error: Exception) -> ProtocolError:
    """Say which field does not fit: msgspec knows the fields of an array by their numbers."""
    reason = re.sub(r"`\$\[(\d+)\]", lambda found: f"`{kind.__struct_fields__[int(found[1])]}", str(error))
    return ProtocolError(f"{kind.__name__}: {reason}")
