"""The IPC frame. Nothing else in the project packs or parses one; sockets are somebody else's business.

A frame, big endian::

    0               2       3       4               8              12
    +-------+-------+-------+-------+---------------+---------------+------------------
    | magic  "mg"   |version| type  |  request id   | payload bytes | payload
    |      2B       |  u8   |  u8   |      u32      |      u32      | msgpack array
    +-------+-------+-------+-------+---------------+---------------+------------------

The payload is the array of the message's fields, in the order of the table: all of them, and nothing behind them. Keys,
values and tokens are msgpack ``bin``, names and texts are ``str``. A request's id is the choice of the side that asks;
its answer repeats it. One-way messages leave it 0, except CANCEL.

Messages (w: worker, c: coordinator; ``*``: one-way; ``?``: may be nil)::

    w>c    HELLO     role, pid, worker               first frame of a connection; worker: the process's random token,
                                                     which links its "call" and its "service" connection
    w>c    DECLARE   name, cache_bytes [B],          announce a group
                     load_timeout? [s]
    w>c    ASK       group, key, held, copy          a get that missed; held: leases its caller holds, outermost first;
                                                     copy: send the value itself, the arena is of no use to the caller
    w>c *  CANCEL                                    the caller of the ASK with this request id gave up
    w>c *  STORE     lease, value?, size [B]         the value of a lease; value nil: it is in the memfd passed along
    w>c *  FAIL      lease, type_name, message       the loader's exception; over-long texts are cut by the encoder
    w>c *  RETURN    lease                           the loader was left without a value or an error
    c>w    WELCOME   instance, control, pid          answers HELLO; control: name of the control segment
    c>w    DECLARED  group, segment?, cache_bytes    answers DECLARE; segment nil: caching is off; cache_bytes: the
                     [B], arena                      budget in force; arena: the arena's incarnation
    c>w    VALUE     value?, size [B], deduped       answers ASK; value nil: it is in the memfd passed along
    c>w    HIT                                       answers ASK: it is in the arena, look again
    c>w    LEASE     lease                           answers ASK: the caller is to load
    c>w    FAILED    code, type_name, message        answers any request
    both   PING                                      are you alive?
    both   PONG                                      answers PING

This code assumes that whoever feeds a decoder also drains it, and closes the connection at the first error.
"""

from __future__ import annotations

import reprlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    TypeAlias,
    TypeVar,
    dataclass_transform,
    get_type_hints,
)

import msgpack

from mpgroupcache.errors import CacheError, CoordinatorError, LoadCycleError, LoadError, ProtocolError
from mpgroupcache.keys import MAX_KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

VERSION: Final = 1  # one version per release of the format: both ends are the same installation
INLINE_BYTES: Final = 64 << 10  # bytes of the largest value in a frame; above, a memfd costs less than the copies
MAX_NAME_BYTES: Final = 255  # UTF-8 bytes; NAME_MAX, since segments are named after instances
MAX_HELD: Final = 1024  # leases one caller may hold; Python's own recursion limit ends nested loaders before that
MAX_TYPE_NAME: Final = 200  # characters of an exception type's name
MAX_TEXT: Final = 8000  # characters of an error's text: a traceback's worth, not a dump
MAX_PAYLOAD: Final = 256 << 10  # bytes; above the largest payload there is (about 73 KiB, an ASK), with room to grow
TOKEN_BYTES: Final = 16  # of a worker's token: random, so that no two processes share one

_MAGIC: Final = b"mg"
_pack: Final = msgpack.Packer().pack  # packb() makes a packer for every call, with a buffer that costs a page fault
_HEADER: Final = struct.Struct(">2sBBII")
_MAX_U32: Final = (1 << 32) - 1
_MAX_INT: Final = (1 << 63) - 1  # what a C long holds on every platform we run on
_MAX_STR_BYTES: Final = 4 * MAX_TEXT  # a character has up to four
_MAX_BIN_BYTES: Final = max(INLINE_BYTES, MAX_KEY_BYTES)
MAX_SECONDS: Final = 1e9  # some 30 years: "no limit" is nil, not a large number


class MessageType(IntEnum):
    HELLO = 0x01
    DECLARE = 0x02
    ASK = 0x03
    CANCEL = 0x04
    STORE = 0x05
    FAIL = 0x06
    RETURN = 0x07
    WELCOME = 0x11
    DECLARED = 0x12
    VALUE = 0x13
    HIT = 0x14
    LEASE = 0x15
    FAILED = 0x16
    PING = 0x21
    PONG = 0x22


class FailureCode(IntEnum):
    """Why a request failed."""

    LOAD_ERROR = 1  # the loader of the flight raised
    LOAD_CYCLE = 2  # a load would have waited for itself
    REFUSED = 3  # the coordinator does not do that: a limit, an unknown group


_CODES: Final = frozenset(FailureCode)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field may hold, for the machine and in words."""

    accepts: Callable[[Any], bool]
    expected: str


def _integer(low: int, high: int = _MAX_INT) -> Rule:
    return Rule(lambda v: type(v) is int and low <= v <= high, f"an integer from {low} to {high}")


def _binary(low: int, high: int) -> Rule:
    return Rule(lambda v: type(v) is bytes and low <= len(v) <= high, f"binary of {low} to {high} bytes")


def _text(high: int) -> Rule:
    return Rule(lambda v: type(v) is str and len(v) <= high, f"text of at most {high} characters")


def _optional(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.accepts(v), f"{rule.expected}, or nil")


def _is_held(v: Any) -> bool:
    if type(v) is not tuple or len(v) > MAX_HELD:
        return False
    for i in v:  # noqa: SIM110 - all() costs three times as much, and every ASK comes by here
        if type(i) is not int or not 0 < i <= _MAX_INT:
            return False
    return True


_NAME = Rule(
    lambda v: type(v) is str and 0 < len(v.encode()) <= MAX_NAME_BYTES, f"text of 1 to {MAX_NAME_BYTES} UTF-8 bytes"
)
_SECONDS = Rule(lambda v: type(v) in (float, int) and 0 < v <= MAX_SECONDS, f"seconds above 0, up to {MAX_SECONDS:g}")
_CODE = Rule(lambda v: type(v) in (int, FailureCode) and v in _CODES, f"one of {sorted(map(int, _CODES))}")

# A field's type tells both what a type checker believes and what the decoder makes true.
Code: TypeAlias = Annotated[FailureCode, _CODE]
Flag: TypeAlias = Annotated[bool, Rule(lambda v: type(v) is bool, "true or false")]
Held: TypeAlias = Annotated[tuple[int, ...], Rule(_is_held, f"an array of at most {MAX_HELD} lease ids")]
Id: TypeAlias = Annotated[int, _integer(0)]
Inline: TypeAlias = Annotated[bytes | None, _optional(_binary(0, INLINE_BYTES))]
Key: TypeAlias = Annotated[bytes, _binary(0, MAX_KEY_BYTES)]
LeaseId: TypeAlias = Annotated[int, _integer(1)]
Name: TypeAlias = Annotated[str, _NAME]
OptionalName: TypeAlias = Annotated[str | None, _optional(_NAME)]
OptionalSeconds: TypeAlias = Annotated[float | None, _optional(_SECONDS)]
Pid: TypeAlias = Annotated[int, _integer(1, (1 << 31) - 1)]
Role: TypeAlias = Annotated[Literal["call", "service"], Rule(lambda v: v in ("call", "service"), "'call' or 'service'")]
Size: TypeAlias = Annotated[int, _integer(0)]
Text: TypeAlias = Annotated[str, _text(MAX_TEXT)]
Token: TypeAlias = Annotated[bytes, _binary(TOKEN_BYTES, TOKEN_BYTES)]
TypeName: TypeAlias = Annotated[str, _text(MAX_TYPE_NAME)]


class Message:
    """Base of all messages: immutable, equal by type and fields."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()

    @property
    def passes_descriptor(self) -> bool:
        """Whether a memfd is passed along with the frame."""
        return isinstance(self, Store | Value) and self.value is None

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={_short(getattr(self, name))}" for name in self.__match_args__)
        return f"{type(self).__name__}({fields})"


_M = TypeVar("_M", bound=Message)


@dataclass_transform(frozen_default=True)
def _message(cls: type[_M]) -> type[_M]:
    return dataclass(frozen=True, slots=True, repr=False)(cls)


@_message
class Hello(Message):
    role: Role
    pid: Pid
    worker: Token


@_message
class Declare(Message):
    name: Name
    cache_bytes: Size
    load_timeout: OptionalSeconds


@_message
class Ask(Message):
    group: Id
    key: Key
    held: Held
    copy: Flag


@_message
class Cancel(Message):
    pass


@_message
class Store(Message):
    lease: LeaseId
    value: Inline
    size: Size

    def __post_init__(self) -> None:
        _check_size(self)


@_message
class Fail(Message):
    lease: LeaseId
    type_name: TypeName
    message: Text

    def __post_init__(self) -> None:
        _cut_texts(self)


@_message
class Return(Message):
    lease: LeaseId


@_message
class Welcome(Message):
    instance: Name
    control: Name
    pid: Pid


@_message
class Declared(Message):
    group: Id
    segment: OptionalName
    cache_bytes: Size
    arena: Id


@_message
class Value(Message):
    value: Inline
    size: Size
    deduped: Flag

    def __post_init__(self) -> None:
        _check_size(self)


@_message
class Hit(Message):
    pass


@_message
class Lease(Message):
    lease: LeaseId


@_message
class Failed(Message):
    code: Code
    type_name: TypeName
    message: Text

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", FailureCode(self.code))  # msgpack knows plain integers only
        _cut_texts(self)

    def exception(self) -> CacheError:
        """Return the error that the caller of the failed request is to see."""
        if self.code is FailureCode.LOAD_ERROR:
            return LoadError(self.type_name, self.message)
        return {FailureCode.LOAD_CYCLE: LoadCycleError, FailureCode.REFUSED: CoordinatorError}[self.code](self.message)


@_message
class Ping(Message):
    pass


@_message
class Pong(Message):
    pass


MESSAGES: Final[Mapping[MessageType, type[Message]]] = {
    MessageType.HELLO: Hello,
    MessageType.DECLARE: Declare,
    MessageType.ASK: Ask,
    MessageType.CANCEL: Cancel,
    MessageType.STORE: Store,
    MessageType.FAIL: Fail,
    MessageType.RETURN: Return,
    MessageType.WELCOME: Welcome,
    MessageType.DECLARED: Declared,
    MessageType.VALUE: Value,
    MessageType.HIT: Hit,
    MessageType.LEASE: Lease,
    MessageType.FAILED: Failed,
    MessageType.PING: Ping,
    MessageType.PONG: Pong,
}

Frame: TypeAlias = tuple[int, Message]
"""A request id and its message."""

_KINDS: Final[Mapping[int, type[Message]]] = {int(number): kind for number, kind in MESSAGES.items()}
_KNOWN: Final = ", ".join(f"{number:#04x} {number.name}" for number in MESSAGES)
_TYPES: Final = {kind: number for number, kind in MESSAGES.items()}


def _rules_of(kind: type[Message]) -> tuple[Rule, ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple(hints[name].__metadata__[0] for name in kind.__match_args__)


def _values_of(kind: type[Message]) -> Callable[[Any], tuple[Any, ...]]:
    """A function from a message to its fields; ``attrgetter`` alone makes a tuple only of two and more."""
    match kind.__match_args__:
        case ():
            return lambda message: ()
        case (name,):
            field = attrgetter(name)
            return lambda message: (field(message),)
        case names:
            return attrgetter(*names)


_VALUES: Final = {kind: _values_of(kind) for kind in _TYPES}
_RULES: Final = {kind: _rules_of(kind) for kind in _TYPES}


def _short(value: object) -> str:
    """``repr``, but keys and values are cut: these texts end in logs."""
    if isinstance(value, bytes | str) and len(value) > 40:
        return f"{value[:40]!r}...{len(value)}"
    return reprlib.repr(value)


def _cut_texts(message: Fail | Failed) -> None:
    """Make a loader's words fit: they may be of any length, and lone surrogates (of file names) have no UTF-8."""
    for name, limit in (("type_name", MAX_TYPE_NAME), ("message", MAX_TEXT)):
        text: str = getattr(message, name)
        fitting = text[: limit + 1].encode(errors="backslashreplace").decode()
        if len(fitting) > limit:
            fitting = fitting[: limit - 3] + "..."
        if fitting != text:
            object.__setattr__(message, name, fitting)


def _check_fields(kind: type[Message], values: tuple[Any, ...]) -> None:
    """Raise ``ValueError`` unless ``values`` are what a message of this kind may hold."""
    rules = _RULES[kind]
    if len(values) != len(rules):
        raise ValueError(f"{kind.__name__}: got {len(values)} fields, expected {len(rules)}")
    for name, rule, value in zip(kind.__match_args__, rules, values):  # noqa: B905 - compared above; strict= is slow
        if not rule.accepts(value):
            got = f"{type(value).__name__} {_short(value)}"
            raise ValueError(f"{kind.__name__}.{name}: got {got}, expected {rule.expected}")


def _check_size(message: Store | Value) -> None:
    """A value has one way to travel: inline with its own size, or in a memfd since it is too large for that."""
    size, value = message.size, message.value
    if size != len(value) if value is not None else size <= INLINE_BYTES:
        expected = f"{len(value)}, as the value" if value is not None else f"more than {INLINE_BYTES} in a memfd"
        raise ValueError(f"{type(message).__name__}.size: got {size}, expected {expected}")


def encode(message: Message, request_id: int = 0) -> bytes:
    """Return the frame of ``message``. Raises ``ValueError`` for what a decoder would not accept."""
    if not 0 <= request_id <= _MAX_U32:
        raise ValueError(f"request id: got {request_id}, expected 0 to {_MAX_U32}")
    kind = type(message)
    values = _VALUES[kind](message)
    _check_fields(kind, values)
    payload: bytes = _pack(values)
    return _HEADER.pack(_MAGIC, VERSION, _TYPES[kind], request_id, len(payload)) + payload


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
        while (frame := self.next_frame()) is not None:
            yield frame

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None until more is fed.

        Raises ``ProtocolError``, and again at each later call: there is no telling where the next frame would begin.
        """
        start = self._at + _HEADER.size
        if start > len(self._data):
            return None
        magic, version, number, request_id, length = _HEADER.unpack_from(self._data, self._at)
        if magic != _MAGIC:
            raise ProtocolError(f"magic: got {magic!r}, expected {_MAGIC!r}; is this socket mpgroupcache's?")
        if version != VERSION:
            raise ProtocolError(f"version: got {version}, expected {VERSION}; restart the workers or the coordinator")
        if (kind := _KINDS.get(number)) is None:
            raise ProtocolError(f"message type: got {number:#04x}, expected one of {_KNOWN}")
        if length > MAX_PAYLOAD:
            raise ProtocolError(f"{kind.__name__}: got a payload of {length} bytes, expected at most {MAX_PAYLOAD}")
        end = start + length
        if end > len(self._data):
            return None
        message = _decode(kind, self._data[start:end])
        if end == len(self._data):
            self._data, self._at = b"", 0
        else:
            self._at = end
        return request_id, message


def _decode(kind: type[Message], payload: bytes | bytearray) -> Message:
    try:
        values = msgpack.unpackb(
            payload,
            use_list=False,
            max_str_len=_MAX_STR_BYTES,
            max_bin_len=_MAX_BIN_BYTES,
            max_array_len=MAX_HELD,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:  # StackError and FormatError say nothing but their names
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        expected = f"a msgpack array of {len(_RULES[kind])} fields"
        raise ProtocolError(f"{kind.__name__}: got {len(payload)} bytes ({reason}), expected {expected}") from error
    if type(values) is not tuple:
        raise ProtocolError(f"{kind.__name__}: got {type(values).__name__}, expected an array of its fields")
    try:
        _check_fields(kind, values)
        return kind(*values)
    except ValueError as error:
        raise ProtocolError(str(error)) from None
