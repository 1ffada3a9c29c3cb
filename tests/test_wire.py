"""The IPC frame: its bytes, its limits, and what it makes of bad input."""

from __future__ import annotations

import math
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpgroupcache.errors import CoordinatorError, LoadCycleError, LoadError, ProtocolError
from mpgroupcache.ipc import wire
from mpgroupcache.keys import MAX_KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TOKEN = bytes(range(16))

# (message, request id, the frame's header, its payload)
GOLDEN: list[tuple[wire.Message, int, bytes, bytes]] = [
    (wire.Hello("call", 77, TOKEN), 1, b"mg\1\x01\0\0\0\1\0\0\0\x19", b"\x93\xa4call\x4d\xc4\x10" + TOKEN),
    (wire.Hello("service", 77, TOKEN), 1, b"mg\1\x01\0\0\0\1\0\0\0\x1c", b"\x93\xa7service\x4d\xc4\x10" + TOKEN),
    (
        wire.Declare("fé", 1 << 20, None, False),
        2,
        b"mg\1\x02\0\0\0\2\0\0\0\x0c",
        b"\x94\xa3f\xc3\xa9\xce\x00\x10\x00\x00\xc0\xc2",
    ),
    (
        wire.Declare("f", 0, 1.5, True),
        2,
        b"mg\1\x02\0\0\0\2\0\0\0\x0e",
        b"\x94\xa1f\x00\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\xc3",
    ),
    (
        wire.Ask(3, b"k", (), False, True),
        0xFFFFFFFF,
        b"mg\1\x03\xff\xff\xff\xff\0\0\0\x08",
        b"\x95\x03\xc4\x01k\x90\xc2\xc3",
    ),
    (
        wire.Ask(3, b"\xff", (7, 300), True, False),
        4,
        b"mg\1\x03\0\0\0\4\0\0\0\x0c",
        b"\x95\x03\xc4\x01\xff\x92\x07\xcd\x01\x2c\xc3\xc2",
    ),
    (wire.Cancel(), 4, b"mg\1\x04\0\0\0\4\0\0\0\1", b"\x90"),
    (wire.Store(7, b"v"), 0, b"mg\1\x05\0\0\0\0\0\0\0\5", b"\x92\x07\xc4\x01v"),
    (wire.Store(7, 65537), 0, b"mg\1\x05\0\0\0\0\0\0\0\7", b"\x92\x07\xce\x00\x01\x00\x01"),
    (wire.Fetched(7, b"v", None), 0, b"mg\1\x09\0\0\0\0\0\0\0\6", b"\x93\x07\xc4\x01v\xc0"),
    (
        wire.Fetched(7, 65537, 1.5),
        0,
        b"mg\1\x09\0\0\0\0\0\0\0\x10",
        b"\x93\x07\xce\x00\x01\x00\x01\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00",
    ),
    (wire.Served(3), 0, b"mg\1\x0a\0\0\0\0\0\0\0\2", b"\x91\x03"),
    (wire.Fail(7, "E", "m"), 0, b"mg\1\x06\0\0\0\0\0\0\0\6", b"\x93\x07\xa1E\xa1m"),
    (wire.Return(7), 0, b"mg\1\x07\0\0\0\0\0\0\0\2", b"\x91\x07"),
    (
        wire.SetPeers("http://a", ("http://a", "http://b"), "/", 50, "crc32", ("hash_fn",)),
        1,
        b"mg\1\x08\0\0\0\1\0\0\0\x2f",
        b"\x96\xa8http://a\x92\xa8http://a\xa8http://b\xa1/\x32\xa5crc32\x91\xa7hash_fn",
    ),
    (wire.PeersSet(), 1, b"mg\1\x18\0\0\0\1\0\0\0\1", b"\x90"),
    (wire.Welcome("i", "c", 9), 1, b"mg\1\x11\0\0\0\1\0\0\0\6", b"\x93\xa1i\xa1c\x09"),
    (wire.Declared(3, "s", 64, 1), 2, b"mg\1\x12\0\0\0\2\0\0\0\6", b"\x94\x03\xa1s\x40\x01"),
    (wire.Declared(3, None, 0, 1), 2, b"mg\1\x12\0\0\0\2\0\0\0\5", b"\x94\x03\xc0\x00\x01"),
    (wire.Value(b"", wire.Origin.CACHE), 4, b"mg\1\x13\0\0\0\4\0\0\0\4", b"\x92\xc4\x00\x01"),
    (wire.Value(65537, wire.Origin.PEER), 4, b"mg\1\x13\0\0\0\4\0\0\0\7", b"\x92\xce\x00\x01\x00\x01\x03"),
    (wire.Hit(), 4, b"mg\1\x14\0\0\0\4\0\0\0\1", b"\x90"),
    (wire.Lease(7), 4, b"mg\1\x15\0\0\0\4\0\0\0\2", b"\x91\x07"),
    (wire.Failed(wire.FailureCode.REFUSED, "", "m"), 4, b"mg\1\x16\0\0\0\4\0\0\0\5", b"\x93\x03\xa0\xa1m"),
    (
        wire.Load(7, "g", b"k", wire.NO_CONTEXT),
        0,
        b"mg\1\x17\0\0\0\0\0\0\0\x0a",
        b"\x94\x07\xa1g\xc4\x01k\xc4\x01\xc0",
    ),
    (wire.Ping(), 5, b"mg\1\x21\0\0\0\5\0\0\0\1", b"\x90"),
    (wire.Pong(), 5, b"mg\1\x22\0\0\0\5\0\0\0\1", b"\x90"),
]


def decode(*chunks: bytes | memoryview) -> list[wire.Frame]:
    decoder = wire.Decoder()
    frames: list[wire.Frame] = []
    for chunk in chunks:
        decoder.feed(chunk)
        frames += decoder
    return frames


def one_by_one(data: bytes) -> Iterable[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def frame(number: int, payload: bytes, *, magic: bytes = b"mg", version: int = 1, length: int | None = None) -> bytes:
    """A frame as somebody else would send it."""
    return struct.pack(">2sBBII", magic, version, number, 9, len(payload) if length is None else length) + payload


def refused(data: bytes) -> str:
    """Assert that ``data`` is refused whole and byte by byte, and return why."""
    with pytest.raises(ProtocolError) as whole:
        decode(data)
    with pytest.raises(ProtocolError) as split:
        decode(*one_by_one(data))
    assert str(whole.value) == str(split.value)
    return str(whole.value)


@pytest.mark.parametrize(("message", "request_id", "header", "payload"), GOLDEN, ids=lambda v: type(v).__name__)
def test_golden(message: wire.Message, request_id: int, header: bytes, payload: bytes) -> None:
    data = header + payload
    expected = [(request_id, message)]
    assert wire.encode(message, request_id) == data
    assert decode(data) == expected
    assert decode(memoryview(data)) == expected
    assert decode(*one_by_one(data)) == expected
    # Trailing data is the next frame's, whole or not.
    assert decode(data + data) == expected * 2
    decoder = wire.Decoder()
    decoder.feed(data + header)
    assert list(decoder) == expected
    assert decoder.pending == 12
    decoder.feed(payload)
    assert list(decoder) == expected
    assert decoder.pending == 0
    assert not decoder._data  # an idle connection's decoder holds nothing


def test_every_message_has_golden_bytes() -> None:
    assert {type(message) for message, *_ in GOLDEN} == set(wire.MESSAGES.values())
    assert set(wire.MESSAGES) == set(wire.MessageType)


def test_messages_of_the_same_fields_differ() -> None:
    assert len({wire.Cancel(), wire.Hit(), wire.Ping(), wire.Pong()}) == 4
    assert len({wire.Lease(1), wire.Return(1), wire.Return(1)}) == 2


def test_a_decoded_failure_code_is_one() -> None:
    [(_, message)] = decode(frame(wire.MessageType.FAILED, msgpack.packb((1, "E", "m"))))
    assert isinstance(message, wire.Failed)
    assert type(message.code) is wire.FailureCode


@pytest.mark.parametrize("message", [message for message, *_ in GOLDEN], ids=repr)
def test_descriptors_come_with_values_that_are_not_inline(message: wire.Message) -> None:
    large = isinstance(message, wire.Store | wire.Value) and message.value == wire.INLINE_BYTES + 1
    assert message.passes_descriptor == large


def test_errors_behind_failure_codes() -> None:
    load = wire.Failed(wire.FailureCode.LOAD_ERROR, "app.BadImage", "no pixels").exception()
    assert isinstance(load, LoadError)
    assert (load.type_name, load.message) == ("app.BadImage", "no pixels")
    cycle = wire.Failed(wire.FailureCode.LOAD_CYCLE, "", "a, b").exception()
    refusal = wire.Failed(wire.FailureCode.REFUSED, "", "no group 7").exception()
    assert (type(cycle), str(cycle)) == (LoadCycleError, "a, b")
    assert (type(refusal), str(refusal)) == (CoordinatorError, "no group 7")


def test_repr_cuts_values() -> None:
    assert repr(wire.Return(7)) == "Return(lease=7)"
    assert repr(wire.Value(b"x" * 4096, wire.Origin.FLIGHT)) == (
        "Value(value=b'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'...4096, origin=<Origin.FLIGHT: 2>)"
    )
    assert repr(wire.Decoder()) == "<Decoder: 0 bytes pending>"


# Limits


def test_the_largest_messages_fit() -> None:
    ids = tuple(range((1 << 63) - wire.MAX_HELD, 1 << 63))
    largest: list[wire.Message] = [
        wire.Ask((1 << 63) - 1, b"k" * MAX_KEY_BYTES, ids, True, False),
        wire.Store((1 << 63) - 1, b"v" * wire.INLINE_BYTES),
        wire.Value(b"v" * wire.INLINE_BYTES, wire.Origin.CACHE),
        wire.Failed(wire.FailureCode.LOAD_ERROR, "\U0001f600" * wire.MAX_TYPE_NAME, "\U0001f600" * wire.MAX_TEXT),
    ]
    for message in largest:
        data = wire.encode(message)
        assert len(data) <= 12 + wire.MAX_PAYLOAD
        assert decode(data) == [(0, message)]


@pytest.mark.parametrize(
    "build", [partial(wire.Fail, 1), partial(wire.Failed, wire.FailureCode.LOAD_ERROR)], ids=["Fail", "Failed"]
)
def test_over_long_and_unencodable_texts_are_made_fit(build: Callable[[str, str], wire.Fail | wire.Failed]) -> None:
    message = build("E" * 201, "\udcff" * 8001)
    assert message.type_name == "E" * 197 + "..."
    assert message.message == ("\\udcff" * 8000)[:7997] + "..."
    assert decode(wire.encode(message)) == [(0, message)]
    assert build("E" * 200, "ü" * 8000).message == "ü" * 8000


@pytest.mark.parametrize("size", [0, 1, wire.INLINE_BYTES, -1])
def test_a_value_has_one_way_to_travel(size: int) -> None:
    refused(frame(wire.MessageType.VALUE, msgpack.packb((size, 1))))
    refused(frame(wire.MessageType.VALUE, msgpack.packb((bytes(wire.INLINE_BYTES + 1), 1))))


# Bad input


def test_bad_headers() -> None:
    assert (
        refused(frame(0x21, b"\x90", magic=b"GE")) == "magic: got b'GE', expected b'mg'; is this socket mpgroupcache's?"
    )
    assert refused(frame(0x21, b"\x90", version=2)) == (
        "version: got 2, expected 1; restart the workers or the coordinator"
    )
    assert refused(frame(0x7F, b"\x90")).startswith("message type: got 0x7f, expected one of 0x01 HELLO, 0x02 DECLARE,")


@pytest.mark.parametrize("length", [wire.MAX_PAYLOAD + 1, (1 << 32) - 1])
def test_length_is_judged_before_the_payload_is_there(length: int) -> None:
    reason = refused(frame(wire.MessageType.ASK, b"", length=length))
    assert reason == f"Ask: got a payload of {length} bytes, expected at most {wire.MAX_PAYLOAD}"
    decoder = wire.Decoder()
    decoder.feed(frame(wire.MessageType.ASK, b"", length=wire.MAX_PAYLOAD))
    assert list(decoder) == []


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "truncated"),
        (b"\x91", "truncated"),
        (b"\x91\x07\x07", "trailing characters"),
        (b"\xc1", "invalid opcode"),
        (b"\x91" * 100_000, "Expected `int`, got `array` - at `lease`"),
        (b"\xdd\xff\xff\xff\xff", "truncated"),
        (b"\x91\x81\x01\x01", "Expected `int`, got `object` - at `lease`"),
        (b"\x91\xd6\xff\x00\x00\x00\x00", "Expected `int`, got `ext` - at `lease`"),
        (b"\x91\xc7\x00\x05", "Expected `int`, got `ext` - at `lease`"),
        (b"\x07", "Expected `array`, got `int`"),
        (b"\x80", "Expected `array`, got `object`"),
        (b"\x90", "Expected `array` of at least length 1, got 0"),
        (b"\x92\x07\x07", "Expected `array` of at most length 1, got 2"),
        (b"\x91\xc0", "Expected `int`, got `None` - at `lease`"),
    ],
    ids=lambda v: v[:8] if isinstance(v, bytes) else "",
)
def test_payloads_of_the_wrong_shape(payload: bytes, why: str) -> None:
    reason = refused(frame(wire.MessageType.LEASE, payload))
    assert reason.startswith("Lease: ")
    assert why in reason


def test_text_that_is_not_utf8() -> None:
    assert "utf-8" in refused(frame(wire.MessageType.FAIL, b"\x93\x01\xa1\xff\xa0")).lower()


WRONG: dict[wire.MessageType, list[tuple[str, list[Any]]]] = {
    wire.MessageType.HELLO: [
        ("role", ["admin", b"call", None, 1]),
        ("pid", [0, -1, 1 << 31, "1"]),
        ("worker", [TOKEN[1:], TOKEN + b"x", "sixteen letters!", None]),
    ],
    wire.MessageType.DECLARE: [
        ("name", ["", "n" * 256, b"n", None]),
        ("cache_bytes", [-1, 1 << 63, 1.5, None, True]),
        ("load_timeout", [0.0, -1.0, 2e9, math.nan, math.inf, True, "1"]),
        ("picks", [0, 1, None]),
    ],
    wire.MessageType.ASK: [
        ("group", [-1, None, b"g"]),
        ("key", ["k", None, 1, bytes(MAX_KEY_BYTES + 1)]),
        ("held", [None, 1, b"", (0,), (None,), (True,), ((),), (1,) * (wire.MAX_HELD + 1)]),
        ("copy", [0, 1, None]),
        ("here", [0, 1, None]),
    ],
    wire.MessageType.STORE: [
        ("lease", [0, None, (1 << 64) - 1]),
        ("value", ["v", False, None, wire.INLINE_BYTES, bytes(wire.INLINE_BYTES + 1)]),
    ],
    wire.MessageType.FETCHED: [
        ("lease", [0, None]),
        ("value", ["v", None]),
        ("minute_qps", [-1.0, 2e12, math.nan, math.inf, True]),
    ],
    wire.MessageType.SERVED: [("group", [-1, None])],
    wire.MessageType.FAIL: [
        ("lease", [0, None]),
        ("type_name", ["E" * 201, b"E", None]),
        ("message", ["m" * 8001, b"m", None]),
    ],
    wire.MessageType.WELCOME: [("instance", ["", None]), ("control", ["", b"c"]), ("pid", [0])],
    wire.MessageType.DECLARED: [
        ("group", [-1]),
        ("segment", ["", b"s", 0]),
        ("cache_bytes", [-1]),
        ("arena", [-1, None]),
    ],
    wire.MessageType.VALUE: [("value", ["v", True, None, 65536]), ("origin", [0, 4, None, True])],
    wire.MessageType.SET_PEERS: [
        ("self_url", ["", b"u", "u" * 2001]),
        ("peers", [None, ("",), (b"u",), ("u",) * (wire.MAX_PEERS + 1)]),
        ("base_path", [""]),
        ("replicas", [0, 10_001]),
        ("hash", [""]),
        ("hooks", [None, ("context",), (1,)]),
    ],
    wire.MessageType.LOAD: [
        ("lease", [0]),
        ("group", ["", b"g"]),
        ("key", ["k", None]),
        ("ctx", ["", b"", None, bytes(wire.MAX_CONTEXT + 1)]),
    ],
    wire.MessageType.FAILED: [
        ("code", [0, 4, None, "1", True, 1.5]),
        ("type_name", [b"", None]),
        ("message", [b"", None]),
    ],
}


@pytest.mark.parametrize("number", WRONG, ids=lambda number: number.name)
def test_wrong_fields(number: wire.MessageType) -> None:
    kind = wire.MESSAGES[number]
    right = next(msgpack.unpackb(payload, use_list=False) for message, _, _, payload in GOLDEN if type(message) is kind)
    assert [name for name, _ in WRONG[number]] == list(kind.__struct_fields__)
    for at, (name, values) in enumerate(WRONG[number]):
        for value in values:
            reason = refused(frame(number, msgpack.packb((*right[:at], value, *right[at + 1 :]))))
            assert reason.startswith(f"{kind.__name__}: ")
            assert f"`{name}" in reason
    size = len(right)
    assert refused(frame(number, msgpack.packb(right[:-1]))).endswith(f"at least length {size}, got {size - 1}")
    assert refused(frame(number, msgpack.packb((*right, 0)))).endswith(f"at most length {size}, got {size + 1}")


def test_frames_before_a_bad_one_count_and_none_after() -> None:
    good = wire.encode(wire.Ping(), 1)
    decoder = wire.Decoder()
    decoder.feed(good + frame(0x21, b"\xc1") + good)
    assert next(iter(decoder)) == (1, wire.Ping())
    for _ in range(2):
        with pytest.raises(ProtocolError, match="invalid opcode"):
            next(iter(decoder))
        decoder.feed(good)


def test_the_buffer_of_a_memoryview_may_be_reused() -> None:
    data = wire.encode(wire.Return(7))
    buffer = bytearray(data[:8])
    decoder = wire.Decoder()
    decoder.feed(memoryview(buffer))
    buffer[:] = bytes(8)
    decoder.feed(memoryview(data)[8:])
    assert list(decoder) == [(0, wire.Return(7))]


# Properties

names = st.text(min_size=1, max_size=60)
texts = st.text(max_size=wire.MAX_TYPE_NAME)
sizes = st.integers(0, (1 << 63) - 1)
ids = st.integers(1, (1 << 63) - 1)
pids = st.integers(1, (1 << 31) - 1)
keys = st.binary(max_size=300)
values = st.binary(max_size=300) | st.integers(wire.INLINE_BYTES + 1, (1 << 63) - 1)
messages: st.SearchStrategy[wire.Message] = st.one_of(
    st.builds(wire.Hello, st.sampled_from(["call", "service"]), pids, st.binary(min_size=16, max_size=16)),
    st.builds(wire.Declare, names, sizes, st.none() | st.floats(0, 1e9, exclude_min=True), st.booleans()),
    st.builds(wire.Ask, sizes, keys, st.lists(ids, max_size=5).map(tuple), st.booleans(), st.booleans()),
    st.builds(wire.Store, ids, values),
    st.builds(wire.Fetched, ids, values, st.none() | st.floats(0, 1e12)),
    st.builds(wire.Served, sizes),
    st.builds(wire.Fail, ids, texts, texts),
    st.builds(wire.Welcome, names, names, pids),
    st.builds(wire.Declared, sizes, st.none() | names, sizes, sizes),
    st.builds(wire.Value, values, st.sampled_from(wire.Origin)),
    st.builds(wire.Load, ids, names, keys, st.binary(min_size=1, max_size=300)),
    st.builds(
        wire.SetPeers,
        names,
        st.lists(names, max_size=3).map(tuple),
        names,
        st.integers(1, 10_000),
        names,
        st.lists(st.sampled_from(["hash_fn", "transport"]), max_size=2).map(tuple),
    ),
    st.builds(wire.Failed, st.sampled_from(wire.FailureCode), texts, texts),
    st.sampled_from([wire.Cancel(), wire.Hit(), wire.Ping(), wire.Pong(), wire.Return(1), wire.Lease(1)]),
)
frames = st.lists(st.tuples(st.integers(0, (1 << 32) - 1), messages), max_size=4)


@given(frames, st.data())
def test_round_trip_in_any_split(frames: list[wire.Frame], data: st.DataObject) -> None:
    stream = b"".join(wire.encode(message, request_id) for request_id, message in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*chunks) == frames


def survive(data: bytes) -> None:
    """Assert that ``data`` is refused properly, or means something that can be said again."""
    try:
        frames = decode(data)
    except ProtocolError:
        return
    assert decode(*(wire.encode(message, request_id) for request_id, message in frames)) == frames


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    survive(data)


@given(st.sampled_from(wire.MessageType), st.binary(max_size=100))
def test_random_payloads_raise_nothing_else(number: wire.MessageType, payload: bytes) -> None:
    survive(frame(number, payload))


plain = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | keys | texts
trees = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain, inner, max_size=2))


@given(st.sampled_from(wire.MessageType), st.lists(trees, max_size=5))
def test_random_fields_raise_nothing_else(number: wire.MessageType, fields: list[Any]) -> None:
    survive(frame(number, msgpack.packb(fields)))


@given(messages, st.data())
def test_damaged_frames_raise_nothing_else(message: wire.Message, data: st.DataObject) -> None:
    damaged = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    survive(bytes(damaged))
