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

from mpgroupcache.ages import AGELESS, Ages
from mpgroupcache.errors import CoordinatorError, LoadCycleError, LoadError, ProtocolError
from mpgroupcache.ipc import fields, frame, messages
from mpgroupcache.ipc.contexts import NO_CONTEXT
from mpgroupcache.keys import MAX_KEY_BYTES
from mpgroupcache.limits import MAX_PEERS, MAX_RATE, MAX_SECONDS
from mpgroupcache.product import Said

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TOKEN = bytes(range(16))

INF, ZERO, HALF = b"\xcb\x7f\xf0" + bytes(6), b"\xcb" + bytes(8), b"\xcb\x3f\xf8" + bytes(6)  # the last is 1.5
MINUS = b"\xcb\xbf\xf8" + bytes(6)  # -1.5


def change(what: fields.What, *keys: bytes, values: tuple[bytes | int, ...] = (), **more: Any) -> messages.Change:
    fields = {"ttl": None, "stale": None, "version": None, "amount": 0, "initial": None, "deadline": 5}
    return messages.Change(3, what, keys, values, **(fields | more))


# (message, request id, the frame's header, its payload)
GOLDEN: list[tuple[messages.Message, int, bytes, bytes]] = [
    (
        messages.Hello("call", 77, TOKEN, 2, 2, (), 0),
        1,
        b"mg\2\x01\0\0\0\1\0\0\0\x1d",
        b"\x97\xa4call\x4d\xc4\x10" + TOKEN + b"\x02\x02\x90\x00",
    ),
    (
        messages.Hello("service", 77, TOKEN, 2, 300, ("fly",), 1 << 40),
        1,
        b"mg\2\x01\0\0\0\1\0\0\0\x2e",
        b"\x97\xa7service\x4d\xc4\x10" + TOKEN + b"\x02\xcd\x01\x2c\x91\xa3fly\xcf\0\0\1\0\0\0\0\0",
    ),
    (
        messages.Declare("fé", 1 << 20, None, False, "app", "get", True, AGELESS),
        2,
        b"mg\2\x02\0\0\0\2\0\0\0\x4c",
        b"\x98\xa3f\xc3\xa9\xce\x00\x10\x00\x00\xc0\xc2\xa3app\xa3get\xc3\x96" + INF + ZERO + ZERO + INF + ZERO + ZERO,
    ),
    (
        messages.Declare("f", 0, 1.5, True, "", "", False, Ages(60.0, 10.0, math.inf, 5.0, 1.5, 0.5)),
        2,
        b"mg\2\x02\0\0\0\2\0\0\0\x48",
        b"\x98\xa1f\x00" + HALF + b"\xc3\xa0\xa0\xc2"
        b"\x96\xcb\x40\x4e\0\0\0\0\0\0\xcb\x40\x24\0\0\0\0\0\0"
        + INF
        + b"\xcb\x40\x14\0\0\0\0\0\0"
        + HALF
        + b"\xcb\x3f\xe0\0\0\0\0\0\0",
    ),
    (
        messages.Ask(3, b"k", (), False, True, "get"),
        0xFFFFFFFF,
        b"mg\2\x03\xff\xff\xff\xff\0\0\0\x0c",
        b"\x96\x03\xc4\x01k\x90\xc2\xc3\xa3get",
    ),
    (
        messages.Ask(3, b"\xff", (7, 300), True, False, "look"),
        4,
        b"mg\2\x03\0\0\0\4\0\0\0\x11",
        b"\x96\x03\xc4\x01\xff\x92\x07\xcd\x01\x2c\xc3\xc2\xa4look",
    ),
    (
        messages.Ask(3, b"k", (), False, False, "refresh"),
        4,
        b"mg\2\x03\0\0\0\4\0\0\0\x10",
        b"\x96\x03\xc4\x01k\x90\xc2\xc2\xa7refresh",
    ),
    (
        messages.Ask(3, b"k", (), False, False, "renew"),
        4,
        b"mg\2\x03\0\0\0\4\0\0\0\x0e",
        b"\x96\x03\xc4\x01k\x90\xc2\xc2\xa5renew",
    ),
    (
        messages.AskMany(3, (b"k", b""), (7,), True, False, True),
        4,
        b"mg\2\x0d\0\0\0\4\0\0\0\x0d",
        b"\x96\x03\x92\xc4\x01k\xc4\x00\x91\x07\xc3\xc2\xc3",
    ),
    (messages.Cancel(), 4, b"mg\2\x04\0\0\0\4\0\0\0\1", b"\x90"),
    (
        messages.Store(7, b"v", False, None, None, None, False),
        0,
        b"mg\2\x05\0\0\0\0\0\0\0\x0a",
        b"\x97\x07\xc4\x01v\xc2\xc0\xc0\xc0\xc2",
    ),
    (
        messages.Store(7, 65537, False, None, None, None, False),
        9,
        b"mg\2\x05\0\0\0\x09\0\0\0\x0c",
        b"\x97\x07\xce\x00\x01\x00\x01\xc2\xc0\xc0\xc0\xc2",
    ),
    (
        messages.Store(7, b"v", True, None, None, None, False),
        0,
        b"mg\2\x05\0\0\0\0\0\0\0\x0a",
        b"\x97\x07\xc4\x01v\xc3\xc0\xc0\xc0\xc2",
    ),
    (
        messages.Store(7, 65537, True, Said(1.5, 9, True, None, 0.0), None, None, False),
        0,
        b"mg\2\x05\0\0\0\0\0\0\0\x21",
        b"\x97\x07\xce\x00\x01\x00\x01\xc3\x95" + HALF + b"\x09\xc3\xc0" + ZERO + b"\xc0\xc0\xc2",
    ),
    (
        messages.Store(7, b"", False, None, math.inf, 0.0, True),
        0,
        b"mg\2\x05\0\0\0\0\0\0\0\x19",
        b"\x97\x07\xc4\x00\xc2\xc0" + INF + ZERO + b"\xc3",
    ),
    (
        messages.StoreMany(((7, b"v", None, None, False), (8, b"", 1.5, 0.0, True))),
        0,
        b"mg\2\x0e\0\0\0\0\0\0\0\x21",
        b"\x91\x92\x95\x07\xc4\x01v\xc0\xc0\xc2\x95\x08\xc4\x00" + HALF + ZERO + b"\xc3",
    ),
    (messages.Refresh(3, b"k", True), 0, b"mg\2\x0b\0\0\0\0\0\0\0\6", b"\x93\x03\xc4\x01k\xc3"),
    (
        change("remove", b"k", b"l"),
        4,
        b"mg\2\x0c\0\0\0\4\0\0\0\x17",
        b"\x9a\x03\xa6remove\x92\xc4\x01k\xc4\x01l\x90\xc0\xc0\xc0\x00\xc0\x05",
    ),
    (
        change("remove", b"k", version=9),
        4,
        b"mg\2\x0c\0\0\0\4\0\0\0\x14",
        b"\x9a\x03\xa6remove\x91\xc4\x01k\x90\xc0\xc0\x09\x00\xc0\x05",
    ),
    (
        change("set", b"k", b"l", values=(b"1", b""), ttl=1.5, stale=0.0),
        4,
        b"mg\2\x0c\0\0\0\4\0\0\0\x29",
        b"\x9a\x03\xa3set\x92\xc4\x01k\xc4\x01l\x92\xc4\x011\xc4\x00" + HALF + ZERO + b"\xc0\x00\xc0\x05",
    ),
    (
        change("set", b"k", values=(65537,), ttl=math.inf),
        4,
        b"mg\2\x0c\0\0\0\4\0\0\0\x1e",
        b"\x9a\x03\xa3set\x91\xc4\x01k\x91\xce\x00\x01\x00\x01" + INF + b"\xc0\xc0\x00\xc0\x05",
    ),
    (
        change("add", b"k", values=(b"v",)),
        4,
        b"mg\2\x0c\0\0\0\4\0\0\0\x14",
        b"\x9a\x03\xa3add\x91\xc4\x01k\x91\xc4\x01v\xc0\xc0\xc0\x00\xc0\x05",
    ),
    (
        change("touch", b"k", ttl=60.0),
        4,
        b"mg\2\x0c\0\0\0\4\0\0\0\x1b",
        b"\x9a\x03\xa5touch\x91\xc4\x01k\x90\xcb\x40\x4e\0\0\0\0\0\0\xc0\xc0\x00\xc0\x05",
    ),
    (
        change("incr", b"n", amount=-1, initial=300),
        4,
        b"mg\2\x0c\0\0\0\4\0\0\0\x14",
        b"\x9a\x03\xa4incr\x91\xc4\x01n\x90\xc0\xc0\xc0\xff\xcd\x01\x2c\x05",
    ),
    (
        change("incr", b"n", amount=-(1 << 63), initial=(1 << 63) - 1, deadline=(1 << 63) - 1),
        4,
        b"mg\2\x0c\0\0\0\4\0\0\0\x2a",
        b"\x9a\x03\xa4incr\x91\xc4\x01n\x90\xc0\xc0\xc0"
        b"\xd3\x80\0\0\0\0\0\0\0" + b"\xcf\x7f\xff\xff\xff\xff\xff\xff\xff" * 2,
    ),
    (
        change("clear"),
        4,
        b"mg\2\x0c\0\0\0\4\0\0\0\x10",
        b"\x9a\x03\xa5clear\x90\x90\xc0\xc0\xc0\x00\xc0\x05",
    ),
    (messages.Waiting(((7, 1),)), 0, b"mg\2\x0a\0\0\0\0\0\0\0\5", b"\x91\x91\x92\x07\x01"),
    (messages.Served(3), 0, b"mg\2\x09\0\0\0\0\0\0\0\2", b"\x91\x03"),
    (messages.Fail(7, "E", "m"), 0, b"mg\2\x06\0\0\0\0\0\0\0\6", b"\x93\x07\xa1E\xa1m"),
    (messages.Return(7), 0, b"mg\2\x07\0\0\0\0\0\0\0\2", b"\x91\x07"),
    (
        messages.SetPeers("http://a", ("http://a", "http://b"), "/", 50, "crc32", ("hash_fn",)),
        1,
        b"mg\2\x08\0\0\0\1\0\0\0\x2f",
        b"\x96\xa8http://a\x92\xa8http://a\xa8http://b\xa1/\x32\xa5crc32\x91\xa7hash_fn",
    ),
    (messages.PeersSet(), 1, b"mg\2\x18\0\0\0\1\0\0\0\1", b"\x90"),
    (
        messages.Welcome(2, "i", "c", 9, 3, ("fly",)),
        1,
        b"mg\2\x11\0\0\0\1\0\0\0\x0d",
        b"\x96\x02\xa1i\xa1c\x09\x03\x91\xa3fly",
    ),
    (messages.Declared(3, "s", 64, 1), 2, b"mg\2\x12\0\0\0\2\0\0\0\6", b"\x94\x03\xa1s\x40\x01"),
    (messages.Declared(3, None, 0, 1), 2, b"mg\2\x12\0\0\0\2\0\0\0\5", b"\x94\x03\xc0\x00\x01"),
    (
        messages.Value(b"", messages.Origin.CACHE, None, None),
        4,
        b"mg\2\x13\0\0\0\4\0\0\0\6",
        b"\x94\xc4\x00\x01\xc0\xc0",
    ),
    (
        messages.Value(65537, messages.Origin.PEER, 9, -1.5),
        4,
        b"mg\2\x13\0\0\0\4\0\0\0\x11",
        b"\x94\xce\x00\x01\x00\x01\x03\x09" + MINUS,
    ),
    (messages.Hit(), 4, b"mg\2\x14\0\0\0\4\0\0\0\1", b"\x90"),
    (messages.Lease(7, 1), 4, b"mg\2\x15\0\0\0\4\0\0\0\3", b"\x92\x07\x01"),
    (
        messages.Answers(
            ((0, b"v", 9, None), (1, b"", None, -1.5)),
            ((2, 7, 10),),
            (3,),
            ((4, messages.FailureCode.NOT_FOUND, "", "t"),),
        ),
        4,
        b"mg\2\x1a\0\0\0\4\0\0\0\x25",
        b"\x94\x92\x94\x00\xc4\x01v\x09\xc0\x94\x01\xc4\x00\xc0"
        + MINUS
        + b"\x91\x93\x02\x07\x0a\x91\x03\x91\x94\x04\x04\xa0\xa1t",
    ),
    (messages.Changed(3, (), (), True), 4, b"mg\2\x19\0\0\0\4\0\0\0\5", b"\x94\x03\x90\x90\xc3"),
    (
        messages.Changed(
            -7,
            ((0, messages.FailureCode.TOO_LARGE, "t"), (2, messages.FailureCode.NO_ROOM, "")),
            (("http://b", "m"),),
            False,
        ),
        4,
        b"mg\2\x19\0\0\0\4\0\0\0\x1a",
        b"\x94\xf9\x92\x93\x00\x05\xa1t\x93\x02\x06\xa0\x91\x92\xa8http://b\xa1m\xc2",
    ),
    (messages.Failed(messages.FailureCode.REFUSED, "", "m"), 4, b"mg\2\x16\0\0\0\4\0\0\0\5", b"\x93\x03\xa0\xa1m"),
    (
        messages.Load(7, "g", b"k", NO_CONTEXT, True),
        0,
        b"mg\2\x17\0\0\0\0\0\0\0\x0b",
        b"\x95\x07\xa1g\xc4\x01k\xc4\x01\xc0\xc3",
    ),
    (messages.Ping(), 5, b"mg\2\x21\0\0\0\5\0\0\0\1", b"\x90"),
    (messages.Pong(), 5, b"mg\2\x22\0\0\0\5\0\0\0\1", b"\x90"),
]


def decode(*chunks: bytes | memoryview) -> list[frame.Frame]:
    decoder = frame.Decoder()
    frames: list[frame.Frame] = []
    for chunk in chunks:
        decoder.feed(chunk)
        frames += decoder
    return frames


def one_by_one(data: bytes) -> Iterable[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def raw_frame(
    number: int, payload: bytes, *, magic: bytes = b"mg", version: int = frame.VERSION, length: int | None = None
) -> bytes:
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
def test_golden(message: messages.Message, request_id: int, header: bytes, payload: bytes) -> None:
    data = header + payload
    expected = [(request_id, message)]
    assert frame.encode(message, request_id) == data
    assert decode(data) == expected
    assert decode(memoryview(data)) == expected
    assert decode(*one_by_one(data)) == expected
    # Trailing data is the next frame's, whole or not.
    assert decode(data + data) == expected * 2
    decoder = frame.Decoder()
    decoder.feed(data + header)
    assert list(decoder) == expected
    assert decoder.pending == 12
    decoder.feed(payload)
    assert list(decoder) == expected
    assert decoder.pending == 0
    assert not decoder._data  # an idle connection's decoder holds nothing


def test_every_message_has_golden_bytes() -> None:
    assert {type(message) for message, *_ in GOLDEN} == set(messages.MESSAGES.values())
    assert set(messages.MESSAGES) == set(messages.MessageType)


def test_messages_of_the_same_fields_differ() -> None:
    assert len({messages.Cancel(), messages.Hit(), messages.Ping(), messages.Pong()}) == 4
    assert len({messages.Lease(1, 1), messages.Return(1), messages.Return(1)}) == 2


def test_a_decoded_failure_code_is_one() -> None:
    [(_, message)] = decode(raw_frame(messages.MessageType.FAILED, msgpack.packb((1, "E", "m"))))
    assert isinstance(message, messages.Failed)
    assert type(message.code) is messages.FailureCode


@pytest.mark.parametrize("message", [message for message, *_ in GOLDEN], ids=lambda message: type(message).__name__)
def test_descriptors_come_with_values_that_are_not_inline(message: messages.Message) -> None:
    carried = message.values if isinstance(message, messages.Change) else (getattr(message, "value", b""),)
    assert message.passes_descriptor == (carried == (fields.INLINE_BYTES + 1,))


def test_errors_behind_failure_codes() -> None:
    load = messages.Failed(messages.FailureCode.LOAD_ERROR, "app.BadImage", "no pixels").exception()
    assert isinstance(load, LoadError)
    assert (load.type_name, load.message) == ("app.BadImage", "no pixels")
    cycle = messages.Failed(messages.FailureCode.LOAD_CYCLE, "", "a, b").exception()
    refusal = messages.Failed(messages.FailureCode.REFUSED, "", "no group 7").exception()
    assert (type(cycle), str(cycle)) == (LoadCycleError, "a, b")
    assert (type(refusal), str(refusal)) == (CoordinatorError, "no group 7")


def test_repr_cuts_values() -> None:
    assert repr(messages.Return(7)) == "Return(lease=7)"
    assert repr(messages.Value(b"x" * 4096, messages.Origin.FLIGHT, None, None)) == (
        "Value(value=b'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'...4096, origin=<Origin.FLIGHT: 2>, "
        "version=None, fresh=None)"
    )
    assert repr(frame.Decoder()) == "<Decoder: 0 bytes pending>"


# Limits


def test_the_largest_messages_fit() -> None:
    ids = tuple(range((1 << 63) - fields.MAX_HELD, 1 << 63))
    largest: list[messages.Message] = [
        messages.Ask((1 << 63) - 1, b"k" * MAX_KEY_BYTES, ids, True, False, "get"),
        messages.Store((1 << 63) - 1, b"v" * fields.INLINE_BYTES, False, None, None, None, False),
        messages.Value(b"v" * fields.INLINE_BYTES, messages.Origin.CACHE, None, None),
        messages.Failed(
            messages.FailureCode.LOAD_ERROR, "\U0001f600" * messages.MAX_TYPE_NAME, "\U0001f600" * messages.MAX_TEXT
        ),
    ]
    for message in largest:
        data = frame.encode(message)
        assert len(data) <= 12 + frame.MAX_PAYLOAD
        assert decode(data) == [(0, message)]


@pytest.mark.parametrize(
    "build",
    [partial(messages.Fail, 1), partial(messages.Failed, messages.FailureCode.LOAD_ERROR)],
    ids=["Fail", "Failed"],
)
def test_over_long_and_unencodable_texts_are_made_fit(
    build: Callable[[str, str], messages.Fail | messages.Failed],
) -> None:
    message = build("E" * 201, "\udcff" * 8001)
    assert message.type_name == "E" * 197 + "..."
    assert message.message == ("\\udcff" * 8000)[:7997] + "..."
    assert decode(frame.encode(message)) == [(0, message)]
    assert build("E" * 200, "ü" * 8000).message == "ü" * 8000


def test_over_long_names_of_code_are_made_fit() -> None:
    message = messages.Declare("group", 0, None, False, "\udcff" * 9, "f" * 201, True, AGELESS)
    assert (message.module, message.getter) == ("\\udcff" * 9, "f" * 197 + "...")
    assert decode(frame.encode(message)) == [(0, message)]


@pytest.mark.parametrize("size", [0, 1, fields.INLINE_BYTES, -1])
def test_a_value_has_one_way_to_travel(size: int) -> None:
    refused(raw_frame(messages.MessageType.VALUE, msgpack.packb((size, 1, None, None))))
    refused(raw_frame(messages.MessageType.VALUE, msgpack.packb((bytes(fields.INLINE_BYTES + 1), 1, None, None))))


# Bad input


def test_bad_headers() -> None:
    assert (
        refused(raw_frame(0x21, b"\x90", magic=b"GE"))
        == "magic: got b'GE', expected b'mg'; is this socket mpgroupcache's?"
    )
    assert refused(raw_frame(0x21, b"\x90", version=1)) == (
        "version: got 1, expected 2; restart what is older, worker or coordinator"
    )
    assert refused(raw_frame(0x7F, b"\x90")).startswith(
        "message type: got 0x7f, expected one of 0x01 HELLO, 0x02 DECLARE,"
    )


@pytest.mark.parametrize("length", [frame.MAX_PAYLOAD + 1, (1 << 32) - 1])
def test_length_is_judged_before_the_payload_is_there(length: int) -> None:
    reason = refused(raw_frame(messages.MessageType.ASK, b"", length=length))
    assert reason == f"Ask: got a payload of {length} bytes, expected at most {frame.MAX_PAYLOAD}"
    decoder = frame.Decoder()
    decoder.feed(raw_frame(messages.MessageType.ASK, b"", length=frame.MAX_PAYLOAD))
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
    ids=lambda v: v[:8].hex() if isinstance(v, bytes) else "",
)
def test_payloads_of_the_wrong_shape(payload: bytes, why: str) -> None:
    reason = refused(raw_frame(messages.MessageType.RETURN, payload))
    assert reason.startswith("Return: ")
    assert why in reason


def test_text_that_is_not_utf8() -> None:
    assert "utf-8" in refused(raw_frame(messages.MessageType.FAIL, b"\x93\x01\xa1\xff\xa0")).lower()


NO_SECONDS: list[Any] = [-1.0, math.nan, -math.inf, True, "1"]
NO_KEYS: list[Any] = [None, b"k", ("k",), (None,), (bytes(MAX_KEY_BYTES + 1),), (b"k",) * (fields.MAX_KEYS + 1)]

WRONG: dict[messages.MessageType, list[tuple[str, list[Any]]]] = {
    messages.MessageType.HELLO: [
        ("role", ["admin", b"call", None, 1]),
        ("pid", [0, -1, 1 << 31, "1"]),
        ("worker", [TOKEN[1:], TOKEN + b"x", "sixteen letters!", None]),
        ("lowest", [0, -1, fields.MAX_VERSION + 1, "2", None]),
        ("highest", [0, -1, fields.MAX_VERSION + 1, "2", None]),
        (
            "abilities",
            [
                None,
                "fly",
                (b"fly",),
                ("",),
                ("f" * (fields.MAX_ABILITY + 1),),
                ("f",) * (fields.MAX_ABILITIES + 1),
            ],
        ),
        ("clock", [-1, 1 << 63, 1.5, True, None]),
    ],
    messages.MessageType.DECLARE: [
        ("name", ["", "n" * 256, b"n", None]),
        ("cache_bytes", [-1, 1 << 63, 1.5, None, True]),
        ("load_timeout", [0.0, -1.0, 2e9, math.nan, math.inf, True, "1"]),
        ("picks", [0, 1, None]),
        ("module", ["m" * 201, b"m", None]),
        ("getter", ["g" * 201, b"g", None]),
        ("loads", [0, 1, None]),
        (
            "ages",
            [
                None,
                60.0,
                *[(0.0,) * size for size in (*range(6), 7)],
                *[(*(0.0,) * at, value, *(0.0,) * (5 - at)) for at in range(6) for value in (*NO_SECONDS, None)],
                (*(0.0,) * 5, 1.0),
            ],
        ),
    ],
    messages.MessageType.ASK: [
        ("group", [-1, None, b"g"]),
        ("key", ["k", None, 1, bytes(MAX_KEY_BYTES + 1)]),
        ("held", [None, 1, b"", (0,), (None,), (True,), ((),), (1,) * (fields.MAX_HELD + 1)]),
        ("copy", [0, 1, None]),
        ("here", [0, 1, None]),
        ("mode", ["peek", "", b"get", 0, None]),
    ],
    messages.MessageType.ASK_MANY: [
        ("group", [-1, None, b"g"]),
        ("keys", NO_KEYS),
        ("held", [None, (0,), (1,) * (fields.MAX_HELD + 1)]),
        ("copy", [0, 1, None]),
        ("here", [0, 1, None]),
        ("all", [0, 1, None]),
    ],
    messages.MessageType.REFRESH: [
        ("group", [-1, None]),
        ("key", ["k", None, bytes(MAX_KEY_BYTES + 1)]),
        ("picked", [0, 1, None]),
    ],
    messages.MessageType.CHANGE: [
        ("group", [-1, None, b"g"]),
        ("what", ["get", "", b"set", 0, None]),
        ("keys", NO_KEYS),
        (
            "values",
            [
                None,
                b"v",
                ("v",),
                (None,),
                (fields.INLINE_BYTES,),
                (bytes(fields.INLINE_BYTES + 1),),
                (b"",) * (fields.MAX_KEYS + 1),
            ],
        ),
        ("ttl", NO_SECONDS),
        ("stale", NO_SECONDS),
        ("version", [0, -1, 1 << 63, 1.5, True]),
        ("amount", [1 << 63, 1.5, True, "1", None]),
        ("initial", [1 << 63, 1.5, True, "1"]),
        ("deadline", [-1, 1 << 63, 1.5, None]),
    ],
    messages.MessageType.STORE: [
        ("lease", [0, None, (1 << 64) - 1]),
        ("value", ["v", False, None, fields.INLINE_BYTES, bytes(fields.INLINE_BYTES + 1)]),
        ("picked", [0, 1, None]),
        (
            "said",
            [
                1.5,
                (),
                (1.5,),
                *((rate, None, False, None, None) for rate in (-1.0, 2e12, math.nan, math.inf, True)),
                *((None, version, False, None, None) for version in (0, 1 << 63, 1.5)),
                *((None, None, says, None, None) for says in (0, None)),
                *((None, None, True, fresh, None) for fresh in (2e9, -2e9, math.nan, math.inf, True)),
                *((None, None, True, None, dead) for dead in (-1.0, 2e9, math.nan, math.inf, True)),
                (None, None, True, None, None, None),
            ],
        ),
        ("ttl", NO_SECONDS),
        ("stale", NO_SECONDS),
        ("absent", [0, 1, None]),
    ],
    messages.MessageType.STORE_MANY: [
        (
            "stores",
            [
                None,
                (None,),
                ((7, b"v", None, None),),
                ((7, b"v", None, None, False, 0),),
                ((0, b"v", None, None, False),),
                ((7, fields.INLINE_BYTES + 1, None, None, False),),
                ((7, bytes(fields.INLINE_BYTES + 1), None, None, False),),
                *[((7, b"v", value, None, False),) for value in NO_SECONDS],
                *[((7, b"v", None, value, False),) for value in NO_SECONDS],
                ((7, b"v", None, None, 0),),
                ((7, b"", None, None, False),) * (fields.MAX_KEYS + 1),
            ],
        )
    ],
    messages.MessageType.SERVED: [("group", [-1, None])],
    messages.MessageType.FAIL: [
        ("lease", [0, None]),
        ("type_name", ["E" * 201, b"E", None]),
        ("message", ["m" * 8001, b"m", None]),
    ],
    messages.MessageType.WELCOME: [
        ("version", [0, None]),
        ("instance", ["", None]),
        ("control", ["", b"c"]),
        ("pid", [0]),
        ("layout", [-1, None]),
        ("abilities", [None, ("",)]),
    ],
    messages.MessageType.DECLARED: [
        ("group", [-1]),
        ("segment", ["", b"s", 0]),
        ("cache_bytes", [-1]),
        ("arena", [-1, None]),
    ],
    messages.MessageType.VALUE: [
        ("value", ["v", True, None, 65536]),
        ("origin", [0, 4, None, True]),
        ("version", [0, -1, 1 << 63, True]),
        ("fresh", [True, "1", b"", math.nan]),
    ],
    messages.MessageType.LEASE: [("lease", [0, None, 1 << 63]), ("version", [0, -1, 1 << 63, None])],
    messages.MessageType.ANSWERS: [
        (
            "values",
            [
                None,
                ((0, b"v", 9),),
                ((-1, b"v", 9, None),),
                ((0, fields.INLINE_BYTES + 1, 9, None),),
                ((0, b"v", 0, None),),
                ((0, b"v", 9, "1"),),
            ],
        ),
        ("leases", [None, ((2, 7),), ((-1, 7, 10),), ((2, 0, 10),), ((2, 7, 0),), ((2, 7, None),)]),
        ("free", [None, (-1,), (None,)]),
        ("failed", [None, ((4, 4, ""),), ((-1, 4, "", ""),), ((4, 10, "", ""),), ((4, 4, "E" * 201, ""),)]),
    ],
    messages.MessageType.CHANGED: [
        ("result", [1 << 63, 1.5, True, None]),
        ("refused", [None, ((0, 5),), ((-1, 5, ""),), ((0, 10, ""),), ((0, 5, "m" * 8001),), ((0, 5, None),)]),
        ("unreached", [None, (("u",),), (("", "m"),), (("u", b"m"),), (("u" * 2001, "m"),)]),
        ("alone", [0, 1, None]),
    ],
    messages.MessageType.SET_PEERS: [
        ("self_url", ["", b"u", "u" * 2001]),
        ("peers", [None, ("",), (b"u",), ("u",) * (MAX_PEERS + 1)]),
        ("base_path", [""]),
        ("replicas", [0, 10_001]),
        ("hash", [""]),
        ("hooks", [None, ("context",), (1,)]),
    ],
    messages.MessageType.LOAD: [
        ("lease", [0]),
        ("group", ["", b"g"]),
        ("key", ["k", None]),
        ("ctx", ["", b"", None, bytes(fields.MAX_CONTEXT + 1)]),
        ("picks", [0, 1, None]),
    ],
    messages.MessageType.FAILED: [
        ("code", [0, 10, None, "1", True, 1.5]),
        ("type_name", [b"", None]),
        ("message", [b"", None]),
    ],
}


@pytest.mark.parametrize("number", WRONG, ids=lambda number: number.name)
def test_wrong_fields(number: messages.MessageType) -> None:
    kind = messages.MESSAGES[number]
    right = next(msgpack.unpackb(payload, use_list=False) for message, _, _, payload in GOLDEN if type(message) is kind)
    assert [name for name, _ in WRONG[number]] == list(kind.__struct_fields__)
    for at, (name, values) in enumerate(WRONG[number]):
        for value in values:
            reason = refused(raw_frame(number, msgpack.packb((*right[:at], value, *right[at + 1 :]))))
            assert reason.startswith(f"{kind.__name__}: ")
            assert f"`{name}" in reason
    size = len(right)
    assert refused(raw_frame(number, msgpack.packb(right[:-1]))).endswith(f"at least length {size}, got {size - 1}")
    if kind is not messages.Hello:
        assert refused(raw_frame(number, msgpack.packb((*right, 0)))).endswith(f"at most length {size}, got {size + 1}")


IN_FRAMES = "in frames where there are several"


@pytest.mark.parametrize(
    ("what", "keys", "values", "why"),
    [
        ("set", (b"k", b"l"), (b"v",), f"got 1 values for 2 keys, expected 2, {IN_FRAMES}"),
        ("set", (b"k",), (b"v", b"w"), f"got 2 values for 1 keys, expected 1, {IN_FRAMES}"),
        ("set", (b"k",), (), f"got 0 values for 1 keys, expected 1, {IN_FRAMES}"),
        ("set", (b"k", b"l"), (b"v", fields.INLINE_BYTES + 1), f"got 2 values for 2 keys, expected 2, {IN_FRAMES}"),
        ("set", (), (), "got 0 keys"),
        ("add", (b"k", b"l"), (b"v",), f"got 1 values for 2 keys, expected 2, {IN_FRAMES}"),
        ("add", (), (), "got 0 keys"),
        ("remove", (b"k",), (b"v",), f"got 1 values for 1 keys, expected 0, {IN_FRAMES}"),
        ("remove", (), (), "got 0 keys"),
        ("touch", (b"k",), (b"v",), f"got 1 values for 1 keys, expected 0, {IN_FRAMES}"),
        ("touch", (), (), "got 0 keys"),
        ("incr", (b"k",), (b"1",), f"got 1 values for 1 keys, expected 0, {IN_FRAMES}"),
        ("incr", (b"k", b"l"), (), "got 2 keys"),
        ("incr", (), (), "got 0 keys"),
        ("clear", (b"k",), (), "got 1 keys"),
        ("clear", (), (b"v",), f"got 1 values for 0 keys, expected 0, {IN_FRAMES}"),
    ],
)
def test_changes_that_say_nothing_whole(
    what: fields.What, keys: tuple[bytes, ...], values: tuple[bytes | int, ...], why: str
) -> None:
    """Each has the keys and the values that it is made of."""
    payload = msgpack.packb((3, what, keys, values, None, None, None, 0, None, 5))
    assert refused(raw_frame(messages.MessageType.CHANGE, payload)) == f"Change: {what}: {why}"
    with pytest.raises(ValueError, match=f"^{what}: {why}$"):
        change(what, *keys, values=values)


@pytest.mark.parametrize("more", [(None,), (b"", "x", 1.5), ([[]], {"a": ()})])
def test_fields_that_a_later_version_has_appended_to_hello_are_ignored(more: tuple[Any, ...]) -> None:
    hello = messages.Hello("call", 77, TOKEN, 2, 9, (), 0)
    fields = msgpack.unpackb(frame.encode(hello)[12:], use_list=False)
    assert decode(raw_frame(messages.MessageType.HELLO, msgpack.packb((*fields, *more)))) == [(9, hello)]


@pytest.mark.parametrize(
    ("lowest", "highest", "version"),
    [(2, 2, 2), (1, 2, 2), (2, 9, 2), (1, 9, 2), (1, 1, None), (3, 9, None), (3, 2, None), (9, 1, None), (2, 1, None)],
)
def test_the_version_of_a_conversation(lowest: int, highest: int, version: int | None) -> None:
    """The highest that both speak. A range that is none has none in common with anybody."""
    assert messages.Hello("call", 77, TOKEN, lowest, highest, (), 0).version == version


def test_frames_before_a_bad_one_count_and_none_after() -> None:
    good = frame.encode(messages.Ping(), 1)
    decoder = frame.Decoder()
    decoder.feed(good + raw_frame(0x21, b"\xc1") + good)
    assert next(iter(decoder)) == (1, messages.Ping())
    for _ in range(2):
        with pytest.raises(ProtocolError, match="invalid opcode"):
            next(iter(decoder))
        decoder.feed(good)


def test_the_buffer_of_a_memoryview_may_be_reused() -> None:
    data = frame.encode(messages.Return(7))
    buffer = bytearray(data[:8])
    decoder = frame.Decoder()
    decoder.feed(memoryview(buffer))
    buffer[:] = bytes(8)
    decoder.feed(memoryview(data)[8:])
    assert list(decoder) == [(0, messages.Return(7))]


# Properties

names = st.text(min_size=1, max_size=60)
texts = st.text(max_size=messages.MAX_TYPE_NAME)
sizes = st.integers(0, (1 << 63) - 1)
ids = st.integers(1, (1 << 63) - 1)
pids = st.integers(1, (1 << 31) - 1)
versions = st.integers(1, fields.MAX_VERSION)
abilities = st.lists(st.text(min_size=1, max_size=fields.MAX_ABILITY), max_size=3).map(tuple)
keys = st.binary(max_size=300)
values = st.binary(max_size=300) | st.integers(fields.INLINE_BYTES + 1, (1 << 63) - 1)
lifetimes = st.none() | st.floats(0)
lefts = st.none() | st.floats(allow_nan=False)
inline = st.binary(max_size=300)
numbers = st.integers(-(1 << 63), (1 << 63) - 1)
versioned = st.none() | ids
many_keys = st.lists(keys, max_size=3).map(tuple)
codes = st.sampled_from(messages.FailureCode)
said = st.builds(
    Said,
    st.none() | st.floats(0, MAX_RATE),
    versioned,
    st.booleans(),
    st.none() | st.floats(-MAX_SECONDS, MAX_SECONDS),
    st.none() | st.floats(0, MAX_SECONDS),
)
ages = st.builds(Ages, *[st.floats(0)] * 5, st.floats(0, 1, exclude_max=True))


def tuples_of(*fields: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.tuples(*fields), max_size=3).map(tuple)


@st.composite
def changes(draw: st.DrawFn) -> messages.Change:
    what = draw(st.sampled_from(["remove", "set", "add", "touch", "incr", "clear"]))
    most = 0 if what == "clear" else 1 if what == "incr" else 3
    named = tuple(draw(st.lists(keys, min_size=min(most, 1), max_size=most)))
    carried: tuple[bytes | int, ...] = ()
    if what in ("set", "add"):
        carried = tuple(draw(values if len(named) == 1 else inline) for _ in named)
    group, ttl, stale, version = draw(st.tuples(sizes, lifetimes, lifetimes, versioned))
    amount, initial, deadline = draw(st.tuples(numbers, st.none() | numbers, sizes))
    return messages.Change(group, what, named, carried, ttl, stale, version, amount, initial, deadline)


any_message: st.SearchStrategy[messages.Message] = st.one_of(
    st.builds(
        messages.Hello,
        st.sampled_from(["call", "service"]),
        pids,
        st.binary(min_size=16, max_size=16),
        versions,
        versions,
        abilities,
        sizes,
    ),
    st.builds(
        messages.Declare,
        names,
        sizes,
        st.none() | st.floats(0, 1e9, exclude_min=True),
        st.booleans(),
        texts,
        texts,
        st.booleans(),
        ages,
    ),
    st.builds(
        messages.Ask,
        sizes,
        keys,
        st.lists(ids, max_size=5).map(tuple),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["get", "look", "refresh", "renew"]),
    ),
    st.builds(
        messages.AskMany,
        sizes,
        many_keys,
        st.lists(ids, max_size=5).map(tuple),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(
        messages.Store,
        ids,
        values,
        st.booleans(),
        st.none() | said,
        lifetimes,
        lifetimes,
        st.booleans(),
    ),
    st.builds(messages.StoreMany, tuples_of(ids, inline, lifetimes, lifetimes, st.booleans())),
    st.builds(messages.Refresh, sizes, keys, st.booleans()),
    changes(),
    st.builds(messages.Served, sizes),
    st.builds(messages.Waiting, st.lists(st.tuples(ids, sizes), max_size=3).map(tuple)),
    st.builds(messages.Fail, ids, texts, texts),
    st.builds(messages.Welcome, versions, names, names, pids, sizes, abilities),
    st.builds(messages.Declared, sizes, st.none() | names, sizes, sizes),
    st.builds(messages.Value, values, st.sampled_from(messages.Origin), versioned, lefts),
    st.builds(messages.Lease, ids, ids),
    st.builds(
        messages.Answers,
        tuples_of(sizes, inline, versioned, lefts),
        tuples_of(sizes, ids, ids),
        st.lists(sizes, max_size=3).map(tuple),
        tuples_of(sizes, codes, texts, texts),
    ),
    st.builds(messages.Changed, numbers, tuples_of(sizes, codes, texts), tuples_of(names, texts), st.booleans()),
    st.builds(messages.Load, ids, names, keys, st.binary(min_size=1, max_size=300), st.booleans()),
    st.builds(
        messages.SetPeers,
        names,
        st.lists(names, max_size=3).map(tuple),
        names,
        st.integers(1, 10_000),
        names,
        st.lists(st.sampled_from(["hash_fn", "transport"]), max_size=2).map(tuple),
    ),
    st.builds(messages.Failed, codes, texts, texts),
    st.sampled_from([messages.Cancel(), messages.Hit(), messages.Ping(), messages.Pong(), messages.Return(1)]),
)
frames = st.lists(st.tuples(st.integers(0, (1 << 32) - 1), any_message), max_size=4)


@given(frames, st.data())
def test_round_trip_in_any_split(frames: list[frame.Frame], data: st.DataObject) -> None:
    stream = b"".join(frame.encode(message, request_id) for request_id, message in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*chunks) == frames


def survive(data: bytes) -> None:
    """Assert that ``data`` is refused properly, or means something that can be said again."""
    try:
        frames = decode(data)
    except ProtocolError:
        return
    assert decode(*(frame.encode(message, request_id) for request_id, message in frames)) == frames


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    survive(data)


@given(st.sampled_from(messages.MessageType), st.binary(max_size=100))
def test_random_payloads_raise_nothing_else(number: messages.MessageType, payload: bytes) -> None:
    survive(raw_frame(number, payload))


plain = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | keys | texts
trees = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain, inner, max_size=2))


@given(st.sampled_from(messages.MessageType), st.lists(trees, max_size=5))
def test_random_fields_raise_nothing_else(number: messages.MessageType, fields: list[Any]) -> None:
    survive(raw_frame(number, msgpack.packb(fields)))


@given(any_message, st.data())
def test_damaged_frames_raise_nothing_else(message: messages.Message, data: st.DataObject) -> None:
    damaged = bytearray(frame.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    survive(bytes(damaged))
