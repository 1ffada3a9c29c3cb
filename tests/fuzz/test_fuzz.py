"""What others send is refused or understood, and nothing else: frames, requests, responses, messages, targets.

``pytest -m long tests/fuzz`` goes on for minutes from a seed of its own; what it finds interesting comes into the
corpus with ``MPGROUPCACHE_FUZZ_SAVE=1``. How segments are damaged is in test_adoption.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
from collections.abc import Callable

import pytest
from fuzzing import CORPUS, Target, corpus_of, fuzz, mutations, save
from google.protobuf.message import DecodeError
from workers import Daemon, Worker, hello, value_of, wait_until

from mpgroupcache.ages import AGELESS
from mpgroupcache.errors import ProtocolError
from mpgroupcache.ipc import frame, messages
from mpgroupcache.net import batches, exchange, handler, outcomes, peerwire, serverconnection, visits
from mpgroupcache.net import requests as request_parser
from mpgroupcache.net.backend import NoSuchGroup, Served, Visitor
from mpgroupcache.net.groupcachepb_pb2 import GetResponse
from mpgroupcache.net.outcomes import Reply
from mpgroupcache.worker.link import connect

ROUNDS = 3000  # of each target
LONG_ROUNDS = 300_000
BASE_PATH = "/_groupcache/"


# ---- Targets


def frames(data: bytes) -> None:
    """Messages that are understood can be said again; how they are cut up does not matter."""

    def decode(*chunks: bytes) -> list[frame.Frame] | str:
        decoder = frame.Decoder()
        found: list[frame.Frame] = []
        try:
            for chunk in chunks:
                decoder.feed(chunk)
                found += decoder
        except ProtocolError as error:
            return str(error)
        return found

    found = decode(data)
    half = len(data) // 2
    assert decode(data[:half], data[half:]) == found
    if not isinstance(found, str):
        assert decode(b"".join(frame.encode(message, number) for number, message in found)) == found


def targets(data: bytes) -> None:
    """A target that is understood is understood again when it is written as ours are."""
    try:
        request = peerwire.parse_target(BASE_PATH, data)
    except peerwire.RequestError as error:
        assert 400 <= error.response.status < 500  # noqa: PT017 - what is refused is answered
        return
    assert len(request.key) <= peerwire.MAX_KEY_BYTES
    if b"/" not in request.group and request.group:
        ours = peerwire.request_target(BASE_PATH, request.group, request.key)
        assert peerwire.parse_target(BASE_PATH, ours) == request
    again = peerwire.escape_path(BASE_PATH.encode() + request.group + b"/" + request.key)
    if len(again) <= peerwire.MAX_TARGET_BYTES:
        assert peerwire.parse_target(BASE_PATH, again) == request


def responses_of(data: bytes) -> None:
    """A response is what protobuf says it is."""
    message = GetResponse()
    try:
        message.ParseFromString(data)
    except DecodeError:
        message = None
    try:
        response = peerwire.decode_response(data)
    except ProtocolError:
        assert message is None
        return
    assert message is not None
    assert response.value == message.value
    if response.minute_qps is not None:
        assert 0 <= response.minute_qps <= message.minute_qps  # an absurd one is cut


def keys_of(data: bytes) -> None:
    """Keys that are understood can be said again, and asked for in one request."""
    try:
        keys = batches.decode_keys(data)
    except peerwire.RequestError as error:
        assert error.response.status == 400  # noqa: PT017 - what is refused is answered
        return
    assert batches.decode_keys(batches.encode_keys(keys)) == keys
    assert [len(part) for part in batches.split(keys)] == [len(keys)]


def answers_of(data: bytes) -> None:
    """Answers for many keys that are understood can be said again, and each is an outcome within its bounds."""
    count = int.from_bytes(data[1:3]) if data[:1] == b"\xdc" else data[0] & 0x0F if data else 1
    try:
        answers = batches.decode_answers(data, count)
    except ProtocolError:
        return
    body = batches.encode_answers([batches.encode_answer(answer) for answer in answers])
    assert len(batches.decode_answers(body, count)) == count
    for outcome in outcomes.outcomes_of("u", Reply(200, [(b"Content-Type", batches.ANSWERS_TYPE)], data), count):
        match outcome:
            case outcomes.Fetched():
                assert outcome.minute_qps is None or 0 <= outcome.minute_qps <= 1e12
                assert outcome.dead is None or (outcome.fresh is not None and outcome.fresh <= outcome.dead)
            case outcomes.Absent(text) | outcomes.OwnerError(_, text):
                assert len(text) <= 8000


class Client:
    """The peers' client without a socket: its transport, and its pool."""

    def __init__(self) -> None:
        self.outcomes = 0
        self.closed = False
        self.connection = exchange.ClientConnection(self, 1 << 16)
        self.connection.connection_made(self)  # type: ignore[arg-type]

    def write(self, data: bytes) -> None: ...
    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def connected(self, connection: exchange.ClientConnection) -> None: ...
    def replied(
        self, connection: exchange.ClientConnection, asked: exchange.Exchange, reply: Reply, free: bool
    ) -> None:
        assert len(reply.body) <= 1 << 16
        self.outcomes += 1

    def broke(self, asked: exchange.Exchange, reason: str, alive: bool) -> None:
        assert reason
        self.outcomes += 1

    def lost(
        self, connection: exchange.ClientConnection, asked: exchange.Exchange | None, error: Exception | None
    ) -> None:
        self.outcomes += asked is not None


def responses(data: bytes) -> None:
    """Whatever comes, a request has one outcome."""
    client = Client()
    client.connection.send(exchange.Exchange(b"/", 0.0, 1.0, None), b"")
    half = len(data) // 2
    for piece in (data[:half], data[half:]):
        if piece and not client.closed:
            client.connection.data_received(piece)
    client.connection.connection_lost(None)
    assert client.outcomes == 1


class Backend:
    """Values of the group "g"; all but "k" are loaded, and so at once."""

    def find(self, group: str, key: bytes) -> Served | None:
        if group != "g":
            raise NoSuchGroup
        return Served(memoryview(b"value"), 1.0, 5.0, 60.0, 7, absent=False) if key == b"k" else None

    def visit(self, group: str, key: bytes, visitor: Visitor) -> None:
        if key.startswith(b"fail"):
            visitor.fail("Error", key.decode("latin-1"))
        else:
            visitor.deliver(Served(key, 0.0, None, None, None, absent=key.startswith(b"absent")))

    def leave(self, visitor: Visitor) -> None:
        raise AssertionError("every visitor was answered at once")


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_extra_info(self, name: str) -> None: ...


ANSWER = re.compile(rb"HTTP/1\.[01] \d{3} [A-Za-z ]+\r\n((?:[!-~]+: [^\r\n]*\r\n)*)\r\n")
LOOP = asyncio.new_event_loop()


def requests(data: bytes) -> None:
    """Whatever comes, what goes back is HTTP, whole, and the same however the requests were cut up."""

    async def serve(*pieces: bytes) -> tuple[bytes, bool]:
        answering = handler.Handler(Backend(), instance=bytes(16))
        answering.heads.renew(0.0)
        connection, transport = serverconnection.ServerConnection(answering, lambda _: None), Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        for piece in pieces:
            if piece and not transport.closed:
                connection.data_received(piece)
                while connection._scheduled:
                    await asyncio.sleep(0)
        connection.connection_lost(None)
        return transport.written, transport.closed

    half = len(data) // 2
    whole = LOOP.run_until_complete(serve(data))
    assert LOOP.run_until_complete(serve(data[:half], data[half:])) == whole
    if re.search(rb"(?i)(^|\n)\s*HEAD ", data):
        return  # answers without bodies are told apart by what was asked alone
    rest = whole[0]
    while rest:
        answer = ANSWER.match(rest)
        assert answer is not None, rest
        length = re.search(rb"Content-Length: (\d+)\r\n", answer[1])
        body = rest[answer.end() :]
        if length is None:
            assert b"Connection: close" in answer[1]
            return
        assert len(body) >= int(length[1])
        rest = body[int(length[1]) :]


TARGETS: dict[str, tuple[Target, set[str]]] = {
    "frames": (frames, {frame.__file__}),
    "targets": (targets, {peerwire.__file__}),
    "protobuf": (responses_of, {peerwire.__file__}),
    "keys": (keys_of, {batches.__file__}),
    "answers": (answers_of, {batches.__file__, outcomes.__file__}),
    "responses": (responses, {exchange.__file__, peerwire.__file__}),
    "requests": (
        requests,
        {module.__file__ for module in (request_parser, handler, serverconnection, visits, peerwire)},
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name: str) -> None:
    target, files = TARGETS[name]
    fuzz(name, target, files, seed=1, rounds=ROUNDS)


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz_for_long(name: str) -> None:
    target, files = TARGETS[name]
    found = fuzz(name, target, files, int.from_bytes(os.urandom(4), "big"), LONG_ROUNDS)
    if os.environ.get("MPGROUPCACHE_FUZZ_SAVE") == "1":
        for data in found:
            save(name, data)


def test_every_corpus_has_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


# ---- The same against a real coordinator


def sockets_of(pid: int) -> int:
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    return count


def test_a_coordinator_outlives_what_is_sent_to_its_sockets(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    daemon = start_coordinator("--listen", f"127.0.0.1:{port}")
    worker = spawn_on(daemon.socket)
    key = "a key that no change names"
    assert worker.get(key) == value_of(key)
    before = sockets_of(daemon.process.pid)
    chance = random.Random(2)
    greeting = frame.encode(hello("call"), 1)
    declare = frame.encode(messages.Declare("group", 8 << 20, None, False, "app", "load", True, AGELESS), 2)
    said = mutations(chance, [greeting + declare + data for data in corpus_of("frames")])
    asked = mutations(chance, corpus_of("requests"))
    for _ in range(300):
        for data, sock in (
            (next(said), connect(daemon.socket)),
            (next(asked), socket.create_connection(("127.0.0.1", port))),
        ):
            with sock:
                sock.settimeout(0.001)  # what it answers is not waited for
                try:
                    sock.sendall(data)
                    sock.recv(1 << 16)
                except OSError:
                    pass
    wait_until(lambda: sockets_of(daemon.process.pid) <= before, "as few sockets as before")
    assert worker.get(key) == value_of(key)
    assert worker.get("another") == value_of("another")
    assert set(worker.loads) == {key, "another"}  # some of what is said clears the group
    assert daemon.process.poll() is None
