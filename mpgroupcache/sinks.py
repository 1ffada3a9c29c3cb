"""Sinks: where a loader puts a value, and where ``Group.get`` puts it for a caller that passes ``dest``.

One class serves both ends, as in Go: a loader writes through ``set_bytes``, ``set_string`` or ``set_proto``, whichever
fits what it has; a caller reads the kind that it asked for. The loader of a ``get`` sees a `LoadSink`, never the
caller's own sink, so that what it does with ``dest`` cannot disturb the caller's buffers.

Guarantees: setting a sink again replaces its value; a ``set_*`` that raises leaves the earlier value in place (but for
`ProtoSink`, whose message is then undefined); reading a sink on which nothing was set is a ``RuntimeError``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, Protocol, TypedDict, TypeVar, cast

from mpgroupcache.ages import UNSET, loaded_ttl_of, stale_of
from mpgroupcache.product import Product
from mpgroupcache.shm._view import ByteView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer, Unpack

    from mpgroupcache.ages import Seconds, Ttl, Unset


class ProtoMessage(Protocol):
    """What sinks need of a protobuf message."""

    def SerializeToString(self) -> bytes: ...

    def ParseFromString(self, serialized: bytes, /) -> object: ...


Message = TypeVar("Message", bound=ProtoMessage)


class Lifetimes(TypedDict, total=False):
    """What a loader may say of how long its value lives. Other sinks take it, and keep nothing of it."""

    ttl: Ttl
    """s for which it is fresh; None: for ever; 0: it is given to those who wait, and not kept. Else the group's."""
    stale: Seconds
    """s for which it is stale then. Else the group's."""


class Sink(ABC):
    """Receives one value (Go: ``Sink``). A sink of one's own implements ``set_bytes``; the rest follows from it.

    A loader may say how long its value lives: ``dest.set_bytes(value, ttl=5, stale=60)``, in seconds or as
    ``timedelta``. A ``ttl`` of None is for ever; one of 0 gives the value to those who wait, and keeps nothing. What is
    left out is the group's. Go has no counterpart.
    """

    __slots__ = ()

    @abstractmethod
    def set_bytes(self, value: Buffer, /, **lives: Unpack[Lifetimes]) -> None:
        """Set the value to the contents of ``value``, any bytes-like object (Go: ``SetBytes``).

        The caller may change it afterwards. Raises ``TypeError`` for another type.
        """

    def set_string(self, value: str, /, **lives: Unpack[Lifetimes]) -> None:
        """Set the value to ``value`` as UTF-8 (Go: ``SetString``).

        Raises ``TypeError`` for another type, ``ValueError`` for a lone surrogate.
        """
        if not isinstance(value, str):
            raise TypeError(
                f"{type(self).__name__}.set_string: got {type(value).__name__}, expected str; use set_bytes for bytes"
            )
        try:
            encoded = value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{type(self).__name__}.set_string: got a lone surrogate at index {error.start} of a "
                f"{len(value)}-character str, expected text that encodes to UTF-8; use set_bytes for what is not text"
            ) from None
        self.set_bytes(encoded, **lives)

    def set_proto(self, message: ProtoMessage, /, **lives: Unpack[Lifetimes]) -> None:
        """Set the value to ``message``, a protobuf message, in its wire format (Go: ``SetProto``).

        The caller may change it afterwards. Raises ``TypeError`` for another type, and what ``SerializeToString``
        raises where a required field is not set.
        """
        if not callable(getattr(message, "SerializeToString", None)):
            raise TypeError(
                f"{type(self).__name__}.set_proto: got {type(message).__name__}, expected a protobuf message; "
                "use set_bytes or set_string for what is serialized already"
            )
        self.set_bytes(message.SerializeToString(), **lives)

    def _fill(self, view: ByteView) -> None:
        """Take the result of a ``get``. Here and not in ``set_bytes`` a sink may keep the view itself."""
        self.set_bytes(view)

    @contextmanager
    def _contents(self, value: Buffer) -> Iterator[memoryview]:
        """Show ``value`` as flat bytes. Not for keeps: a memoryview left behind keeps a bytearray from resizing."""
        try:
            view = memoryview(value)
        except TypeError:
            raise TypeError(
                f"{type(self).__name__}.set_bytes: got {type(value).__name__}, expected a bytes-like object; "
                "use set_string for str, set_proto for a protobuf message"
            ) from None
        # cast() takes neither gaps nor empty arrays of several dimensions.
        with view, view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes()) as flat:
            yield flat

    def _copy(self, value: Buffer) -> bytes:
        if type(value) is bytes:  # immutable: sharing it is as good as a copy
            return value
        with self._contents(value) as contents:
            return bytes(contents)


Value = TypeVar("Value")


class _ValueSink(Sink, Generic[Value]):
    """A sink whose value is read from ``.value``."""

    __slots__ = ("_value",)

    _value: Value  # absent until something is set

    @property
    def value(self) -> Value:
        """What was set last. Raises ``RuntimeError`` where nothing was."""
        try:
            return self._value
        except AttributeError:
            raise _unset(self) from None


class StringSink(_ValueSink[str]):
    """Receives the value as ``str`` (Go: ``StringSink``). Setting a value that is not UTF-8 is a ``ValueError``."""

    __slots__ = ()

    def set_bytes(self, value: Buffer, /, **lives: Unpack[Lifetimes]) -> None:
        with self._contents(value) as contents:
            try:
                self._value = str(contents, "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"StringSink: got {contents.nbytes} bytes that are not UTF-8 ({error.reason} at index "
                    f"{error.start}), expected text; use BytesSink"
                ) from None


class BytesSink(_ValueSink[bytes]):
    """Receives a copy of the value as ``bytes`` (Go: ``AllocatingByteSliceSink``)."""

    __slots__ = ()

    def set_bytes(self, value: Buffer, /, **lives: Unpack[Lifetimes]) -> None:
        self._value = self._copy(value)


class ByteViewSink(_ValueSink[ByteView]):
    """Receives the value as a `ByteView` (Go: ``ByteViewSink``): filled by ``Group.get``, without a copy."""

    __slots__ = ()

    def set_bytes(self, value: Buffer, /, **lives: Unpack[Lifetimes]) -> None:
        self._value = ByteView(self._copy(value))

    def _fill(self, view: ByteView) -> None:
        self._value = view


class TruncatingSink(Sink):
    """Receives the beginning of the value in a buffer of the caller's (Go: ``TruncatingByteSliceSink``).

    Bytes beyond the buffer's length are dropped silently; where the value is shorter, the rest of the buffer keeps what
    it held. Go shrinks the slice instead: here `n` says how much of the buffer is the value.

    Raises ``TypeError`` for a buffer that is read-only or not contiguous.
    """

    __slots__ = ("_buffer", "_n")

    def __init__(self, buffer: Buffer) -> None:
        got = type(buffer).__name__
        try:
            with memoryview(buffer) as view:
                fit = not view.readonly and view.c_contiguous
                if not fit:
                    got = f"a {'read-only' if view.readonly else 'non-contiguous'} {got}"
        except TypeError:
            fit = False
        if not fit:
            raise TypeError(f"TruncatingSink: got {got}, expected a writable contiguous buffer such as a bytearray")
        self._buffer = buffer
        self._n: int | None = None

    @property
    def n(self) -> int:
        """Bytes written: the value's length, at most the buffer's. Raises ``RuntimeError`` where nothing was set."""
        if self._n is None:
            raise _unset(self)
        return self._n

    def set_bytes(self, value: Buffer, /, **lives: Unpack[Lifetimes]) -> None:
        with self._contents(value) as contents, memoryview(self._buffer) as buffer:
            n = min(contents.nbytes, buffer.nbytes)
            if n:  # cast() refuses empty arrays of several dimensions
                with buffer.cast("B") as target:
                    target[:n] = contents[:n]
        self._n = n


class ProtoSink(Sink, Generic[Message]):
    """Receives the value parsed into ``message`` (Go: ``ProtoSink``).

    Setting a value that is not such a message's wire format is a ``ValueError`` and leaves ``message`` undefined.
    """

    __slots__ = ("_is_set", "_message")

    def __init__(self, message: Message) -> None:
        if not callable(getattr(message, "ParseFromString", None)):
            raise TypeError(f"ProtoSink: got {type(message).__name__}, expected a protobuf message to parse into")
        self._message = message
        self._is_set = False

    @property
    def message(self) -> Message:
        """The message that was given, now set. Raises ``RuntimeError`` where nothing was set."""
        if not self._is_set:
            raise _unset(self)
        return self._message

    def set_bytes(self, value: Buffer, /, **lives: Unpack[Lifetimes]) -> None:
        serialized = self._copy(value)
        self._is_set = False
        try:
            self._message.ParseFromString(serialized)
        except Exception as error:  # DecodeError, or what another implementation of protobuf raises
            raise ValueError(
                f"ProtoSink: got {len(serialized)} bytes that do not parse as {type(self._message).__name__} "
                f"({error}), expected its wire format; pass the message type that the loader sets, or a BytesSink"
            ) from error
        self._is_set = True


def put_value(dest: Sink, value: Buffer | str | ProtoMessage, **lives: Unpack[Lifetimes]) -> None:
    """Set a sink to a value of any kind."""
    if isinstance(value, str):
        dest.set_string(value, **lives)
    elif callable(getattr(value, "SerializeToString", None)):
        dest.set_proto(cast("ProtoMessage", value), **lives)
    else:
        dest.set_bytes(cast("Buffer", value), **lives)


def encode_value(value: Buffer | str | ProtoMessage) -> bytes:
    """A value of any kind as bytes. Raises ``TypeError``, and ``ValueError`` for a lone surrogate."""
    if type(value) is bytes:
        return value
    dest = LoadSink()
    put_value(dest, value)
    return dest.take().value


class LoadSink(Sink):
    """What a loader gets as ``dest``: it captures the value's bytes, whatever kind the caller asked for."""

    __slots__ = ("product",)

    def __init__(self) -> None:
        self.product: Product | None = None
        """What was set last; None: nothing was."""

    def set_bytes(self, value: Buffer, /, **lives: Unpack[Lifetimes]) -> None:
        contents = self._copy(value)
        ttl, stale = (None, None) if not lives else _lifetimes(**lives)
        self.product = Product(contents, ttl=ttl, stale=stale)

    def take(self) -> Product:
        """Return what the loader set last. Raises ``RuntimeError`` where it set nothing (Go caches an empty value)."""
        if self.product is None:
            raise RuntimeError(
                "the loader returned and set nothing on its sink, expected a call of dest.set_bytes, dest.set_string "
                'or dest.set_proto; for an empty value call dest.set_bytes(b""), where there is none raise NotFound'
            )
        return self.product


def _lifetimes(ttl: Ttl = UNSET, stale: Seconds | Unset = UNSET) -> tuple[float | None, float | None]:
    """What a loader said, in seconds. Raises ``ValueError`` or ``TypeError``."""
    return loaded_ttl_of(ttl, "dest.set_...(ttl=...)"), stale_of(stale, "dest.set_...(stale=...)")


def _unset(sink: Sink) -> RuntimeError:
    return RuntimeError(
        f"{type(sink).__name__}: read before anything was set, expected a successful get or a set_* call before"
    )
