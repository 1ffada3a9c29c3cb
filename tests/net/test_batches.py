"""What peers say of many keys at once: literal bytes, what is refused, and what is cut to its bounds."""

from __future__ import annotations

import contextlib
import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peerserver import served

from mpgroupcache.errors import ProtocolError
from mpgroupcache.keys import MAX_KEY_BYTES
from mpgroupcache.net import batches, peerwire
from mpgroupcache.net.batches import Absence, Alone, Answer, Failure, Refusal, Value
from mpgroupcache.net.outcomes import Absent, Fetched, Outcome, OwnerError, Reply, Unreached, outcomes_of

BASE = "/_groupcache/"
ANSWERS: list[tuple[Answer, str]] = [
    (Value(b"V", None, None, None, None), "9600c40156c0c0c0c0"),
    (Value(b"V", 1.5, -250, 60_000, 7), "9600c40156cb3ff8000000000000d1ff06cdea6007"),
    (Absence("none", 5000), "9301a46e6f6e65cd1388"),
    (Absence("", None), "9301a0c0"),
    (Failure("app.Boom", "boom"), "9302a86170702e426f6f6da4626f6f6d"),
    (Alone(), "9103"),
    (Refusal("late"), "9204a46c617465"),
]


# ---- Requests


@pytest.mark.parametrize(
    ("keys", "body"),
    [([b"k"], "91c4016b"), ([b"", b"\xff/"], "92c400c402ff2f"), ([b"k"] * 16, "dc0010" + "c4016b" * 16)],
)
def test_keys_as_they_travel(keys: list[bytes], body: str) -> None:
    assert batches.encode_keys(keys).hex() == body
    assert batches.decode_keys(bytes.fromhex(body)) == keys


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"k",
        b"\x90",  # none
        b"\x91\xa1k",  # a text
        b"\x91\xc4\x02k",  # cut off
        b"\x91\xc4\x01kk",  # and more
        b"\xdd\xff\xff\xff\xff",
        batches.encode_keys([b"k"] * (batches.MAX_KEYS + 1)),
        batches.encode_keys([b"k" * (MAX_KEY_BYTES + 1)]),
    ],
)
def test_keys_that_are_refused(body: bytes) -> None:
    with pytest.raises(
        peerwire.RequestError, match="keys: .*, expected 1 to 256 keys, each of at most 65536 b"
    ) as caught:
        batches.decode_keys(body)
    assert caught.value.response.status == 400


@given(st.lists(st.binary(max_size=3) | st.sampled_from([b"x" * 60_000, b"y" * MAX_KEY_BYTES]), max_size=600))
def test_keys_are_parted_into_what_a_request_takes(keys: list[bytes]) -> None:
    parts = list(batches.split(keys))
    assert [key for part in parts for key in part] == keys
    for part in parts:
        assert 0 < len(part) <= batches.MAX_KEYS
        assert len(batches.encode_keys(part)) <= batches.MAX_REQUEST_BYTES
        assert batches.decode_keys(batches.encode_keys(part)) == part
    for part, following in itertools.pairwise(parts):  # no more of them than that takes
        whole = [*part, following[0]]
        assert len(whole) > batches.MAX_KEYS or len(batches.encode_keys(whole)) > batches.MAX_REQUEST_BYTES - 2000


@pytest.mark.parametrize("group", ["g", "a b", "a+b", ".", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_groups_come_back(group: str) -> None:
    target = peerwire.group_target(BASE, group)
    assert peerwire.locate_group(BASE, target) == group
    with pytest.raises(peerwire.RequestError) as caught:  # for whoever takes it for a key's
        peerwire.parse_target(BASE, target)
    assert caught.value.response == peerwire.BAD_REQUEST


def test_groups_that_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="expected a name without a slash"):
        peerwire.group_target(BASE, "a/b")
    for target, response in {
        b"/_groupcache/": peerwire.BAD_REQUEST,
        b"/_groupcache/g/": peerwire.BAD_REQUEST,
        b"/_groupcache/g/k": peerwire.BAD_REQUEST,
        b"/_groupcache/g%2Fk": peerwire.BAD_REQUEST,
        b"/_groupcache/%FF": peerwire.no_such_group(b"\xff"),
        b"/other": peerwire.NOT_FOUND,
        b"/_groupcache/%zz": peerwire.MALFORMED,
    }.items():
        with pytest.raises(peerwire.RequestError) as caught:
            peerwire.locate_group(BASE, target)
        assert caught.value.response == response


# ---- Answers


@pytest.mark.parametrize(("answer", "body"), ANSWERS)
def test_answers_as_they_travel(answer: Answer, body: str) -> None:
    assert batches.encode_answer(answer).hex() == body
    assert batches.encode_answers([bytes.fromhex(body)]).hex() == "91" + body
    assert batches.decode_answers(bytes.fromhex("91" + body), 1) == [answer]


def test_answers_are_in_the_keys_order() -> None:
    body = batches.encode_answers([bytes.fromhex(part) for _, part in ANSWERS])
    assert batches.decode_answers(body, len(ANSWERS)) == [answer for answer, _ in ANSWERS]


def test_what_is_served_is_answered() -> None:
    for given_served, answer in (
        (served(b"V"), ANSWERS[0][0]),
        (served(b"V", 1.5, -0.2501, 60.0009, 7), Value(b"V", 1.5, -251, 60_000, 7)),
        (served(b"V", math.nan, math.inf, -1.0, 0), Value(b"V", None, 10**12 - 1, 0, None)),
        (served(b"none\xff", 1.0, 5.0, 5.0, 7, absent=True), Absence("none\N{REPLACEMENT CHARACTER}", 5000)),
        (served(bytes(batches.MAX_VALUE_BYTES + 1)), Alone()),
    ):
        assert batches.answer_of(given_served) == answer
    [value] = batches.decode_answers(
        batches.encode_answers([batches.encode_answer(batches.answer_of(served(memoryview(b"V"))))]), 1
    )
    assert value == Value(b"V", None, None, None, None)
    assert isinstance(batches.answer_of(served(bytes(batches.MAX_VALUE_BYTES))), Value)


def test_words_are_made_to_fit() -> None:
    failure = batches.failure("\udcff" * 1000, "\N{CAT}" * 9000)
    [read] = batches.decode_answers(batches.encode_answers([batches.encode_answer(failure)]), 1)
    assert isinstance(read, Failure)
    assert (len(read.text), read.text[-4:], read.type_name[:12]) == (8000, "\N{CAT}...", "\\udcff\\udcff")
    assert batches.refusal("x" * 9000).text.endswith("...")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "90",  # none
        "9291039103",  # too many
        "919105",  # what only a later peer knows
        "9191a103",
        "919203c0c0",
        "9303c0",
        "919600c40156c0c0c0",  # too few fields
        "919600a156c0c0c0c0",  # a text for a value
        "919600c40156c0c0ffc0",  # dead: -1
        "919600c40156c0c0c000",  # version 0
        "919600c40156c0c0c0cf8000000000000000",  # version 2**63
        "919600c40156c0cf000000e8d4a51000c0c0",  # fresh: 10**12
        "9193" + "02" + "a1ff" + "a0",  # no UTF-8
        "919304a46c617465",
        "dd00000001",
        "ddffffffff",
        "dc0101" + "9103" * 257,
        "91" + "91" * 100_000,
        "919700c40156c0c0c0c0" + "91" * 100_000,
    ],
)
def test_bodies_that_are_no_answers(body: str) -> None:
    with pytest.raises(ProtocolError, match="answer for 1 keys: "):
        batches.decode_answers(bytes.fromhex(body), 1)


@given(st.binary(max_size=60))
def test_any_bytes_are_answers_or_refused(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert len(batches.decode_answers(body, 1)) == 1


# ---- What answers mean


def reply_of(body: bytes, status: int = 200, kind: bytes = batches.ANSWERS_TYPE) -> Reply:
    return Reply(status, [(b"content-type", kind)], body)


def test_what_answers_mean() -> None:
    body = batches.encode_answers([bytes.fromhex(part) for _, part in ANSWERS])
    expected: list[Outcome | None] = [
        Fetched(b"V", None, says_ages=True),
        Fetched(b"V", 1.5, -0.25, 60.0, 7, says_ages=True),
        Absent("none", 5.0),
        Absent("", None),
        OwnerError("app.Boom", "boom"),
        None,
        Unreached("http://peer: late"),
    ]
    assert outcomes_of("http://peer", reply_of(body), len(ANSWERS)) == expected


def test_what_a_peer_says_is_made_to_fit() -> None:
    long = "x" * 10_000
    said = [Value(b"V", math.inf, 60_000, 5, None), Absence(long, None), Failure(long, long), Refusal(long)]
    fetched, absent, failed, refused = outcomes_of("u", reply_of(msgspec.msgpack.encode(said)), 4)
    assert fetched == Fetched(b"V", None, 0.005, 0.005, says_ages=True)
    assert absent == Absent(long[:8000], None)
    assert failed == OwnerError(long[:200], long[:8000])
    assert refused == Unreached(f"u: {long[:1000]}")


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (reply_of(b"no such group: g\n", 404), "u: answered 404: no such group: g"),
        (
            reply_of(b"\x0a\x01V", 200, peerwire.CONTENT_TYPE),
            "u: got the content type b'application/x-protobuf', expec",
        ),
        (reply_of(b"\x91\x91\x03", 206), "u: answered 206: "),
        (reply_of(b"\x91\x91"), "u: answer for 1 keys: Input data was truncated"),
    ],
)
def test_replies_that_are_no_answers(reply: Reply, text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        outcomes_of("u", reply, 1)
    assert str(caught.value).startswith(text)
