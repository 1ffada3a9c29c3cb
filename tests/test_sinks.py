"""Sinks: each kind, through each way of setting it, and what is said where nothing was set."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from mpgroupcache.shm._view import ByteView
from mpgroupcache.sinks import BytesSink, ByteViewSink, LoadSink, ProtoSink, Sink, StringSink, TruncatingSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

TEXT = "chat \N{CAT}"
MESSAGE = StringValue(value=TEXT)
WIRE = MESSAGE.SerializeToString()


class Collector(Sink):
    """A sink as an application writes it."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def set_bytes(self, value: Buffer, /) -> None:
        self.values.append(bytes(value))


def contents(sink: Sink) -> bytes:
    """What ``sink`` received, as bytes."""
    match sink:
        case StringSink():
            return sink.value.encode()
        case BytesSink() | ByteViewSink():
            return bytes(sink.value)
        case LoadSink():
            return sink.take().value
        case Collector():
            return sink.values[-1]
        case _:
            raise AssertionError(f"no contents of a {type(sink).__name__}")


@pytest.fixture(params=[StringSink, BytesSink, ByteViewSink, LoadSink, Collector])
def sink(request: pytest.FixtureRequest) -> Sink:
    make: Callable[[], Sink] = request.param
    return make()


class TestEverySink:
    def test_set_string(self, sink: Sink) -> None:
        sink.set_string(TEXT)
        assert contents(sink) == TEXT.encode()

    def test_set_bytes(self, sink: Sink) -> None:
        sink.set_bytes(TEXT.encode())
        assert contents(sink) == TEXT.encode()

    def test_set_proto(self, sink: Sink) -> None:
        sink.set_proto(MESSAGE)
        assert contents(sink) == WIRE

    def test_filled_from_a_view(self, sink: Sink) -> None:
        sink._fill(ByteView(TEXT))
        assert contents(sink) == TEXT.encode()

    @pytest.mark.parametrize("empty", [b"", bytearray(), array("d"), memoryview(b"abc")[:0]])
    def test_empty_is_a_value(self, sink: Sink, empty: Buffer) -> None:
        sink.set_bytes(empty)
        assert contents(sink) == b""

    def test_the_last_set_counts(self, sink: Sink) -> None:
        sink.set_string("first, and longer")
        sink.set_proto(MESSAGE)
        sink.set_bytes(b"last")
        assert contents(sink) == b"last"

    def test_the_value_is_a_copy(self, sink: Sink) -> None:
        buffer = bytearray(b"mine")
        sink.set_bytes(buffer)
        buffer[:] = b"changed, and longer"  # BufferError if the sink still held on to it
        assert contents(sink) == b"mine"

    @pytest.mark.parametrize("value", [7, b"bytes", None, MESSAGE])
    def test_set_string_of_something_else(self, sink: Sink, value: Any) -> None:
        with pytest.raises(TypeError, match=f"set_string: got {type(value).__name__}, expected str; use set_bytes"):
            sink.set_string(value)

    @pytest.mark.parametrize("value", [7, b"bytes", "text", None, {}])
    def test_set_proto_of_something_else(self, sink: Sink, value: Any) -> None:
        with pytest.raises(TypeError, match=f"set_proto: got {type(value).__name__}, expected a protobuf message; use"):
            sink.set_proto(value)

    def test_a_lone_surrogate(self, sink: Sink) -> None:
        with pytest.raises(
            ValueError, match="set_string: got a lone surrogate at index 3 of a 4-character str.*use set_b"
        ):
            sink.set_string("cat\ud83d")

    def test_a_set_that_fails_keeps_the_earlier_value(self, sink: Sink) -> None:
        sink.set_string("kept")
        with pytest.raises(ValueError, match="surrogate"):
            sink.set_string("\ud800")
        with pytest.raises(TypeError):
            sink.set_bytes(1.5)  # type: ignore[arg-type]
        assert contents(sink) == b"kept"


@pytest.mark.parametrize(
    "value",
    [
        bytearray(b"\1\2\3\4"),
        memoryview(b"\1\2\3\4"),
        memoryview(b"\1-\2-\3-\4-")[::2],  # gaps
        memoryview(b"\4\3\2\1")[::-1],
        memoryview(b"\1\2\3\4").cast("B", (2, 2)),
        memoryview(b"\1\2\3\4").cast("I"),
        array("B", [1, 2, 3, 4]),
        ByteView(b"\1\2\3\4"),
    ],
    ids=["bytearray", "memoryview", "strided", "reversed", "two dimensions", "uint32", "array", "ByteView"],
)
@pytest.mark.parametrize("make", [BytesSink, StringSink, ByteViewSink, LoadSink])
def test_any_bytes_like_object(make: Callable[[], Sink], value: Buffer) -> None:
    sink = make()
    sink.set_bytes(value)
    assert contents(sink) == b"\1\2\3\4"
    buffer = bytearray(4)
    truncating = TruncatingSink(buffer)
    truncating.set_bytes(value)
    assert (bytes(buffer), truncating.n) == (b"\1\2\3\4", 4)


@pytest.mark.parametrize("sink", [StringSink(), BytesSink(), ByteViewSink(), LoadSink(), TruncatingSink(bytearray(4))])
@pytest.mark.parametrize("value", [7, "text", None, [1, 2], MESSAGE])
def test_set_bytes_of_something_else(sink: Sink, value: Any) -> None:
    with pytest.raises(TypeError, match=f"set_bytes: got {type(value).__name__}, expected a bytes-like object; use"):
        sink.set_bytes(value)


@pytest.mark.parametrize("sink", [StringSink(), BytesSink(), ByteViewSink()])
def test_reading_a_sink_on_which_nothing_was_set(sink: StringSink | BytesSink | ByteViewSink) -> None:
    with pytest.raises(RuntimeError, match=f"^{type(sink).__name__}: read before anything was set"):
        _ = sink.value


class TestStringSink:
    def test_value_is_text(self) -> None:
        sink = StringSink()
        sink._fill(ByteView(TEXT))
        assert sink.value == TEXT

    @pytest.mark.parametrize("value", [b"ok \xff", b"ok \xed\xa0\x80", b"ok \xc0\xaf"])
    def test_not_utf8(self, value: bytes) -> None:
        sink = StringSink()
        sink.set_string("kept")
        with pytest.raises(
            ValueError, match=rf"got {len(value)} bytes that are not UTF-8 \(.* at index 3\).*BytesSink"
        ):
            sink._fill(ByteView(value))
        assert sink.value == "kept"


class TestBytesSink:
    def test_value_is_bytes(self) -> None:
        sink = BytesSink()
        sink._fill(ByteView(b"\xff"))
        assert type(sink.value) is bytes
        assert sink.value == b"\xff"

    def test_bytes_are_shared_because_they_cannot_change(self) -> None:
        sink = BytesSink()
        value = bytes(1 << 20)
        sink.set_bytes(value)
        assert sink.value is value


class TestByteViewSink:
    def test_filling_keeps_the_view_itself(self) -> None:
        sink = ByteViewSink()
        view = ByteView(b"where it lies")
        sink._fill(view)
        assert sink.value is view

    def test_setting_makes_a_view(self) -> None:
        sink = ByteViewSink()
        sink.set_bytes(bytearray(b"abc"))
        assert isinstance(sink.value, ByteView)
        assert bytes(sink.value) == b"abc"


class TestTruncatingSink:
    @pytest.mark.parametrize(
        ("value", "expected", "n"),
        [(b"", b"....", 0), (b"ab", b"ab..", 2), (b"abcd", b"abcd", 4), (b"abcdef", b"abcd", 4)],
    )
    def test_lengths(self, value: bytes, expected: bytes, n: int) -> None:
        buffer = bytearray(b"....")
        sink = TruncatingSink(buffer)
        sink._fill(ByteView(value))
        assert (bytes(buffer), sink.n) == (expected, n)

    @given(st.binary(max_size=40), st.integers(0, 40))
    def test_as_go_copies(self, value: bytes, room: int) -> None:
        buffer = bytearray(room)
        sink = TruncatingSink(buffer)
        sink.set_bytes(value)
        assert bytes(buffer[: sink.n]) == value[:room]
        assert not any(buffer[sink.n :])

    def test_text_and_messages(self) -> None:
        buffer = bytearray(64)
        sink = TruncatingSink(buffer)
        sink.set_string(TEXT)
        assert buffer[: sink.n] == TEXT.encode()
        sink.set_proto(MESSAGE)
        assert buffer[: sink.n] == WIRE

    def test_items_wider_than_a_byte(self) -> None:
        buffer = array("I", [0, 0])
        sink = TruncatingSink(buffer)
        sink.set_bytes(b"\1\0\0\0\2")
        assert sink.n == 5
        assert buffer.tobytes() == b"\1\0\0\0\2\0\0\0"

    def test_part_of_a_buffer(self) -> None:
        buffer = bytearray(b"......")
        TruncatingSink(memoryview(buffer)[2:4]).set_bytes(b"abc")
        assert buffer == b"..ab.."

    def test_the_buffer_onto_itself(self) -> None:
        buffer = bytearray(b"abcdef")
        sink = TruncatingSink(memoryview(buffer)[2:])
        sink.set_bytes(buffer)
        assert buffer == b"ababcd"

    def test_the_buffer_stays_free_to_grow(self) -> None:
        buffer = bytearray(2)
        sink = TruncatingSink(buffer)
        buffer.extend(b"..")
        sink.set_bytes(b"abcdef")
        assert (bytes(buffer), sink.n) == (b"abcd", 4)

    @pytest.mark.parametrize(
        ("buffer", "flaw"), [(b"1234", "read-only bytes"), (memoryview(bytearray(4))[::2], "non-contiguous memoryview")]
    )
    def test_unfit_buffers(self, buffer: Buffer, flaw: str) -> None:
        with pytest.raises(TypeError, match=f"got a {flaw}, expected a writable contiguous buffer such as a bytearray"):
            TruncatingSink(buffer)

    def test_not_a_buffer(self) -> None:
        with pytest.raises(TypeError, match="TruncatingSink: got int, expected a writable contiguous buffer"):
            TruncatingSink(4)  # type: ignore[arg-type]

    def test_nothing_set(self) -> None:
        sink = TruncatingSink(bytearray(4))
        with pytest.raises(RuntimeError, match="^TruncatingSink: read before anything was set"):
            _ = sink.n


class TestProtoSink:
    def test_filled(self) -> None:
        message = StringValue()
        sink = ProtoSink(message)
        sink._fill(ByteView(WIRE))
        assert message == MESSAGE
        assert sink.message is message

    def test_set_proto_copies(self) -> None:
        source = StringValue(value="first")
        message = StringValue()
        ProtoSink(message).set_proto(source)
        source.value = "second"
        assert message.value == "first"

    def test_setting_replaces_and_does_not_merge(self) -> None:
        first, second = Struct(), Struct()
        first["a"] = 1
        second["b"] = 2
        message = Struct()
        sink = ProtoSink(message)
        sink.set_proto(first)
        sink.set_proto(second)
        assert dict(message) == {"b": 2}

    def test_an_empty_value_is_an_empty_message(self) -> None:
        message = StringValue(value="old")
        ProtoSink(message).set_bytes(b"")
        assert message == StringValue()

    def test_malformed(self) -> None:
        sink = ProtoSink(StringValue())
        sink.set_proto(MESSAGE)
        with pytest.raises(
            ValueError, match="got 2 bytes that do not parse as StringValue .*pass the message type"
        ) as info:
            sink.set_bytes(b"\xff\xff")
        assert info.value.__cause__ is not None
        with pytest.raises(RuntimeError, match="^ProtoSink: read before anything was set"):
            _ = sink.message

    def test_not_a_message(self) -> None:
        with pytest.raises(TypeError, match="ProtoSink: got dict, expected a protobuf message to parse into"):
            ProtoSink({})  # type: ignore[type-var]

    def test_nothing_set(self) -> None:
        sink = ProtoSink(StringValue())
        with pytest.raises(RuntimeError, match="^ProtoSink: read before anything was set"):
            _ = sink.message


class TestLoadSink:
    def test_a_loader_that_sets_nothing(self) -> None:
        with pytest.raises(
            RuntimeError, match="the loader returned and set nothing on its sink.*for an empty value call"
        ):
            LoadSink().take()

    def test_taken_bytes_are_the_loaders_own(self) -> None:
        sink = LoadSink()
        value = bytes(1 << 20)
        sink.set_bytes(value)
        assert sink.take().value is value


def test_a_sink_needs_set_bytes() -> None:
    class Incomplete(Sink):
        pass

    with pytest.raises(TypeError, match="set_bytes"):
        Incomplete()  # type: ignore[abstract]
