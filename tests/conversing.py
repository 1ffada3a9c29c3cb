"""Conversations of workers with a coordinator, byte for byte: how one is played, and how one is recorded.

    python tests/conversing.py

records that of the version that is spoken now, with what ``converse`` says. A line is a frame, below its message::

    # Store(lease={lease-1}, value=b'v')
    call > 6d670205 00000000 {length} 92 {lease-1} c40176

First comes the connection, then who speaks: the worker ``>``, the coordinator ``<``; ``.`` is the connection's end.
The bytes are hexadecimal: the frame's start and type, request id, length, and then field by field. ``{...}`` is a
msgpack item that differs from run to run, and is the same where it has the same name; ``{length}`` is that of a payload
with such items. ``+N``: a sealed memfd of N bytes comes along. ``peer ?`` is a peer's GET of a group and a key,
``peer =`` the value that it gets. The coordinator's own pings come when they come: they are answered, and not recorded.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import msgspec
from workers import PATIENCE, Daemon

from mpgroupcache.ages import AGELESS, Ages
from mpgroupcache.ipc import fields, frame, memfd, messages
from mpgroupcache.ipc.messages import (
    Answers,
    Ask,
    AskMany,
    Cancel,
    Change,
    Changed,
    Declare,
    Declared,
    Fail,
    Failed,
    FailureCode,
    Hello,
    Lease,
    Load,
    Message,
    Ping,
    Refresh,
    Return,
    Served,
    SetPeers,
    Store,
    StoreMany,
    Value,
    Waiting,
    Welcome,
)
from mpgroupcache.net.groupcachepb_pb2 import GetResponse
from mpgroupcache.product import Said
from mpgroupcache.shm._exchange import Descriptor
from mpgroupcache.shm._view import ByteView
from mpgroupcache.worker.link import connect

CONVERSATIONS = Path(__file__).parent / "ipc" / "conversations"
HEADER_BYTES = 12
PING, PONG = (bytes.fromhex(f"6d6702{number} 00000000 00000001 90") for number in ("21", "22"))
VALUE = b"value"
LARGE = fields.INLINE_BYTES + 1
TOKEN = bytes(range(16))
CLOCK = "{clock}"


def clock() -> int:
    """What HELLO says of the time."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def memfd_size(message: Message) -> int:
    """How large the memfd is that goes along."""
    match message:
        case Store(value=int(size)) | Change(values=(int(size),)):
            return size
    return 0


def large(size: int) -> bytes:
    """What a memfd of that size holds."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@dataclass
class Line:
    connection: str
    speaker: str
    words: list[str]
    memfd: int = 0

    @classmethod
    def parse(cls, text: str) -> Line | None:
        connection, speaker, *words = text.partition("#")[0].split() or ["", ""]
        size = int(words.pop()) if words and words[-1].startswith("+") else 0
        return cls(connection, speaker, words, size) if connection else None

    def __str__(self) -> str:
        return " ".join([self.connection, self.speaker, *self.words, *([f"+{self.memfd}"] if self.memfd else [])])


def current() -> Path:
    """The file of the version that is spoken now."""
    return CONVERSATIONS / f"v{messages.HIGHEST_VERSION}.txt"


def read(path: Path) -> list[Line]:
    return [line for text in path.read_text().splitlines() if (line := Line.parse(text)) is not None]


class Wire:
    """A worker's connections, and what a peer asks meanwhile."""

    def __init__(self, socket_path: str, port: int) -> None:
        self._path = socket_path
        self._port = port
        self._socks: dict[str, socket.socket] = {}
        self._fds = memfd.Received()
        self._answer: list[bytes] = []
        self._asking: threading.Thread | None = None

    def close(self) -> None:
        for sock in self._socks.values():
            sock.close()
        self._fds.close()

    def _sock(self, name: str) -> socket.socket:
        if name not in self._socks:
            self._socks[name] = connect(self._path)
            self._socks[name].settimeout(PATIENCE)
        return self._socks[name]

    def say(self, name: str, data: bytes, memfd_size: int = 0) -> None:
        if not memfd_size:
            self._sock(name).sendall(data)
            return
        fd = memfd.make(large(memfd_size))
        self._sock(name).sendmsg([data], memfd.passed(fd))
        os.close(fd)

    def hear(self, name: str) -> tuple[bytes, int]:
        """The coordinator's next frame, and the size of the memfd that came with it."""
        while (data := self._receive_frame(name)) == PING:
            self.say(name, PONG)
        size = 0
        if len(self._fds):
            fd = self._fds.claim(Value(LARGE, messages.Origin.CACHE, None, None))
            size = os.fstat(fd).st_size
            assert ByteView(memfd.map(Descriptor(fd), size)) == large(size)
        return data, size

    def _receive_frame(self, name: str) -> bytes:
        header = self._receive(name, HEADER_BYTES)
        return header + self._receive(name, int.from_bytes(header[8:], "big"))

    def _receive(self, name: str, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more, ancillary, _, _ = self._sock(name).recvmsg(count - len(data), memfd.ANCILLARY_BYTES)
            self._fds.add(ancillary)
            assert more, f"{name}: the coordinator closed it"
            data += more
        return data

    def hear_end(self, name: str) -> None:
        assert self._sock(name).recv(1) == b""

    def visit(self, group: str, key: str) -> None:
        """Ask as a peer; ``answer`` waits for the value."""

        def ask() -> None:
            peer = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
            with contextlib.closing(peer):
                peer.request("GET", f"/_groupcache/{group}/{key}")
                self._answer.append(GetResponse.FromString(peer.getresponse().read()).value)

        self._asking = threading.Thread(target=ask)
        self._asking.start()

    def answer(self) -> bytes:
        assert self._asking is not None
        self._asking.join(PATIENCE)
        return self._answer.pop()


def play(lines: list[Line], wire: Wire) -> None:
    """Say what the worker says, and require what the coordinator answers."""
    items = {CLOCK: msgspec.msgpack.encode(clock())}
    for line in lines:
        match line.connection, line.speaker:
            case "peer", "?":
                wire.visit(*line.words)
            case "peer", "=":
                assert wire.answer() == bytes.fromhex(line.words[0])
            case name, ">":
                payload = b"".join(items.get(word) or bytes.fromhex(word) for word in line.words[3:])
                head, length = "".join(line.words[:2]), line.words[2]
                data = bytes.fromhex(head + (f"{len(payload):08x}" if length == "{length}" else length)) + payload
                wire.say(name, data, line.memfd)
            case name, "<":
                got, size = wire.hear(name)
                assert size == line.memfd, f"{line}: got a memfd of {size} bytes"
                require(line, got, items)
            case name, ".":
                wire.hear_end(name)
            case _:
                raise ValueError(f"{line}: expected > or < or .")


def require(line: Line, got: bytes, items: dict[str, bytes]) -> None:
    """Require a frame's bytes, and keep the items that are named in it."""
    rest = got
    for word in line.words:
        if word == "{length}":
            size = 4
        elif word.startswith("{"):
            unpacker = msgpack.Unpacker()
            unpacker.feed(rest)
            unpacker.skip()
            size = unpacker.tell()
            assert items.setdefault(word, rest[:size]) == rest[:size], f"{line}: got {got.hex()}, another {word}"
        else:
            size = len(word) // 2
            assert rest[:size] == bytes.fromhex(word), (
                f"{line}: got {got.hex()}, expected {word} at {len(got) - len(rest)}"
            )
        rest = rest[size:]
    assert not rest, f"{line}: got {got.hex()}, expected its end before {rest.hex()}"


# ---- Recording


class Recorder:
    """Says messages as the library has them now, and writes down what it says and hears."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._names: dict[int, str] = {}  # of leases
        self._versions: dict[int, str] = {}
        self._texts = itertools.count(1)
        self._ages = itertools.count(1)
        self._numbers = itertools.count(1)
        self.written: list[str] = []

    def note(self, text: str) -> None:
        self.written += ["", f"# ---- {text}"]

    def say(self, name: str, message: Message, *, one_way: bool = False, of: int = 0) -> int:
        """Say it under a new request id; under none if it is ``one_way``; ``of``: under an earlier one's."""
        number = of or (0 if one_way else next(self._numbers))
        size = memfd_size(message)
        data = frame.encode(message, number)
        self._wire.say(name, data, size)
        self._write(name, ">", data, message, size)
        return number

    def hear(self, name: str) -> Any:
        data, size = self._wire.hear(name)
        decoder = frame.Decoder()
        decoder.feed(data)
        ((_, message),) = decoder
        self._write(name, "<", data, message, size)
        return message

    def ask(self, name: str, message: Message) -> Any:
        self.say(name, message)
        return self.hear(name)

    def ask_many(self, name: str, message: AskMany) -> Any:
        self.say(name, message)
        for _ in message.keys:
            next(self._numbers)  # is that key's
        return self.hear(name)

    def hear_end(self, name: str) -> None:
        self._wire.hear_end(name)
        self.written.append(str(Line(name, ".", [])))

    def visit(self, group: str, key: str) -> None:
        self._wire.visit(group, key)
        self.written.append(str(Line("peer", "?", [group, key])))

    def answer(self) -> None:
        self.written.append(str(Line("peer", "=", [self._wire.answer().hex()])))

    def _write(self, name: str, speaker: str, data: bytes, message: Message, size: int) -> None:
        fields = {field: self._word(message, field) for field in message.__struct_fields__}
        words = [data[:4].hex(), data[4:8].hex(), data[8:12].hex(), data[12:13].hex(), *fields.values()]
        if any("{" in word for word in fields.values()):
            words[2] = "{length}"
        else:
            assert "".join(words) == data.hex()
        said = [f"{name}={word if '{' in word else repr(getattr(message, name))}" for name, word in fields.items()]
        self.written += [f"# {type(message).__name__}({', '.join(said)})", str(Line(name, speaker, words, size))]

    def _word(self, message: Message, field: str) -> str:
        value = getattr(message, field)
        match message, field:
            case Welcome(), "instance" | "control" | "pid" | "layout" | "abilities":
                return f"{{{field}}}"
            case Declared(), "segment" | "arena" if message.segment is not None:
                return f"{{{field}-{message.group}}}"
            case Failed(), "message" if message.code not in (FailureCode.LOAD_ERROR, FailureCode.NOT_FOUND):
                return self._text()
            case Changed(), "refused":
                return array([array([packed(place), packed(code), self._text()]) for place, code, _ in value])
            case Changed(), "unreached":
                return array([array([packed(peer), self._text()]) for peer, _ in value])
            case Hello(), "clock":
                return CLOCK
            case ((Change() | Lease() | Value()), "version"):
                return self._version(value)
            case Value(), "fresh":
                return self._fresh(value)
            case _, "lease":
                return self._lease(value)
            case ((Ask() | AskMany()), "held"):
                return array([self._lease(lease) for lease in value])
            case StoreMany(), "stores":
                return array([array([self._lease(lease), *map(packed, rest)]) for lease, *rest in value])
            case Answers(), "leases":
                return array(
                    [array([packed(at), self._lease(lease), self._version(number)]) for at, lease, number in value]
                )
            case Answers(), "values":
                return array(
                    [
                        array([packed(at), packed(found), self._version(number), self._fresh(fresh)])
                        for at, found, number, fresh in value
                    ]
                )
        return packed(value)

    def _text(self) -> str:
        """Its wording is nobody's to rely on."""
        return f"{{text-{next(self._texts)}}}"

    def _version(self, number: int | None) -> str:
        if number is None:
            return packed(number)
        return self._versions.setdefault(number, f"{{version-{len(self._versions) + 1}}}")

    def _fresh(self, left: float | None) -> str:
        return packed(left) if left in (None, 0.0) else f"{{fresh-{next(self._ages)}}}"

    def _lease(self, number: int) -> str:
        return self._names.setdefault(number, f"{{lease-{len(self._names) + 1}}}")


def packed(value: Any) -> str:
    """A word of what is the same in every run."""
    return msgspec.msgpack.encode(value).hex()


def array(items: list[str]) -> str:
    """An array of items that are words."""
    return " ".join([bytes([0x90 + len(items)]).hex(), *items])


def ask(key: str, group: int = 0, held: tuple[int, ...] = (), *, copy: bool = False, here: bool = False) -> Ask:
    return Ask(group, key.encode(), held, copy, here, "get")


def hello(role: fields.Role, lowest: int, highest: int) -> Hello:
    return Hello(role, 4242, TOKEN, lowest, highest, (), clock())


def look(key: str) -> Ask:
    return Ask(0, key.encode(), (), False, False, "look")


def change(what: fields.What, *keys: str, values: tuple[bytes | int, ...] = (), group: int = 0, **more: Any) -> Change:
    fields = {"ttl": None, "stale": None, "version": None, "amount": 0, "initial": None, "deadline": (1 << 63) - 1}
    return Change(group, what, tuple(key.encode() for key in keys), values, **(fields | more))


def converse(at: Recorder) -> None:
    """All that a worker says, and what it is answered."""
    version = messages.HIGHEST_VERSION

    at.note("A worker's two connections.")
    at.ask("call", hello("call", version, version))
    at.ask("service", hello("service", version, version))
    at.ask("service", Ping())

    at.note("Groups: one with a cache, one without, one whose workers pick peers themselves, one without a loader.")
    at.ask("call", Declare("group", 8 << 20, None, False, "app", "load", True, AGELESS))
    at.ask("call", Declare("uncached", 0, 90.0, False, "app", "Pages.load", True, AGELESS))
    at.ask("call", Declare("picked", 8 << 20, None, True, "", "", True, AGELESS))

    at.ask("call", Declare("plain", 8 << 20, None, False, "", "", False, Ages(60.0, 10.0, 600.0, 5.0, 1.0, 0.1)))

    at.note("A change where nothing is, and nobody else.")
    at.ask("call", change("remove", "small"))

    at.note("A miss, and a hit.")
    lease = at.ask("call", ask("small")).lease
    at.say("call", Store(lease, VALUE, False, None, None, None, False), one_way=True)
    at.ask("call", ask("small"))

    at.note("A large value, for who has the arena, and for who wants a copy.")
    lease = at.ask("call", ask("large")).lease
    at.say("call", Store(lease, LARGE, False, None, None, None, False), one_way=True)
    at.ask("call", Ping())  # it is copied before the next message is read
    at.ask("call", ask("large"))
    at.ask("call", ask("large", copy=True))

    at.note("Callers who wait for a value, small and large.")
    lease = at.ask("call", ask("shared", 1)).lease
    at.say("call", ask("shared", 1))
    at.say("call", ask("shared", 1, here=True))
    at.say("call", Store(lease, VALUE, False, None, None, None, False), one_way=True)
    at.hear("call")
    at.hear("call")
    lease = at.ask("call", ask("shared and large", 1)).lease
    at.say("call", ask("shared and large", 1))
    at.say("call", Store(lease, LARGE, False, None, None, None, False), one_way=True)
    at.hear("call")

    at.note("One gives up; the loader raises.")
    lease = at.ask("call", ask("raises")).lease
    at.say("call", Cancel(), of=at.say("call", ask("raises")))
    at.say("call", ask("raises"))
    at.say("call", Fail(lease, "app.BadImage", "no pixels"), one_way=True)
    at.hear("call")

    at.note("The loader is left: the next one loads.")
    lease = at.ask("call", ask("left")).lease
    at.say("call", ask("left"))
    at.say("call", Return(lease), one_way=True)
    at.say("call", Store(at.hear("call").lease, VALUE, False, None, None, None, False), one_way=True)

    at.note("A loader that asks for another key, and for its own.")
    outer = at.ask("call", ask("outer")).lease
    inner = at.ask("call", ask("inner", held=(outer,))).lease
    at.ask("call", ask("outer", held=(outer, inner)))
    at.say("call", Return(inner), one_way=True)
    at.say("call", Return(outer), one_way=True)

    at.note("What a peer that the worker picked has sent.")
    lease = at.ask("call", ask("fetched", 2)).lease
    at.say("call", ask("fetched", 2))
    at.say("call", Store(lease, VALUE, True, Said(None, 7, True, 1e6, None), None, None, False), one_way=True)
    at.hear("call")

    at.note("Values change, one at a time and many; one on a condition that does not hold any more.")
    at.ask("call", change("set", "changed", "other", values=(b"1", b"x")))
    version = at.ask("call", ask("changed")).version
    at.ask("call", change("add", "changed", "new", values=(b"3", b"4")))
    at.ask("call", change("set", "changed", values=(b"2",), version=version))
    at.ask("call", change("remove", "changed", version=version))
    at.ask("call", change("incr", "changed", amount=40))
    at.ask("call", look("changed"))
    at.ask("call", change("incr", "counter", amount=1, initial=-7, ttl=1e6))
    at.ask("call", change("touch", "changed", ttl=math.inf))
    at.ask("call", look("changed"))
    at.ask("call", change("remove", "changed", "nowhere"))
    at.ask("call", look("changed"))
    at.ask("call", change("clear"))
    at.ask("call", look("other"))

    at.note("A large one, which is answered when it is there.")
    at.ask("call", change("set", "changed", values=(LARGE,)))
    at.ask("call", look("changed"))

    at.note("Changes that are not made.")
    at.ask("call", change("incr", "nowhere"))
    at.ask("call", change("set", "text", "most", values=(b"x", b"9223372036854775807")))
    at.ask("call", change("incr", "text", amount=1))
    at.ask("call", change("incr", "most", amount=1))
    at.ask("call", change("set", "text", values=(b"y",), group=1))
    at.ask("call", change("remove", "text", group=2))
    at.ask("call", change("clear", deadline=0))

    at.note("A load that a change overtakes is for those who asked before it.")
    lease = at.ask("call", ask("overtaken")).lease
    at.say("call", ask("overtaken"))
    at.ask("call", change("remove", "overtaken"))
    at.say("call", Store(lease, VALUE, False, None, None, None, False), one_way=True)
    at.hear("call")
    at.ask("call", look("overtaken"))

    at.note("A load that begins now, and whose end is waited for; where nothing is stale, there is none to renew.")
    at.ask("call", change("set", "anew", values=(b"old",)))
    lease = at.ask("call", Ask(0, b"anew", (), False, False, "refresh")).lease
    at.ask("call", look("anew"))
    at.ask("call", Store(lease, VALUE, False, None, None, None, False))
    at.ask("call", look("anew"))
    at.ask("call", Ask(0, b"anew", (), False, False, "renew"))

    at.note("A value that is stale at once: who has it says so, and the worker is asked to load it anew.")
    lease = at.ask("call", ask("aged")).lease
    at.say("call", Store(lease, VALUE, False, None, 1e-9, 1e6, False), one_way=True)
    at.ask("call", ask("aged"))
    at.say("call", Refresh(0, b"aged", False), one_way=True)
    load = at.hear("service")
    at.say("call", Store(load.lease, VALUE, False, None, 1e6, 0.0, False), one_way=True)
    at.ask("call", ask("aged"))

    at.note("The same of what a peer has that the worker picked: it is to ask that one.")
    lease = at.ask("call", ask("picked and aged", 2)).lease
    said = Said(1e9, None, True, -1.0, 1e6)
    at.say("call", Store(lease, VALUE, True, said, None, None, False), one_way=True)
    at.ask("call", ask("picked and aged", 2))
    at.say("call", Refresh(2, b"picked and aged", True), one_way=True)
    load = at.hear("service")
    at.say("call", Store(load.lease, VALUE, True, None, None, None, False), one_way=True)

    at.note("The first caller renews a stale value itself; the next one has the old one.")
    at.ask("call", change("set", "renewed", values=(b"old",), ttl=1e-9, stale=1e6))
    lease = at.ask("call", Ask(0, b"renewed", (), False, False, "renew")).lease
    at.ask("call", Ask(0, b"renewed", (), False, False, "renew"))
    at.say("call", Store(lease, VALUE, False, None, None, None, False), one_way=True)

    at.note("There is no such value: those who wait are told, and it is not kept, or for a time.")
    lease = at.ask("call", ask("absent")).lease
    at.say("call", ask("absent"))
    at.say("call", Store(lease, b"no such thing", False, None, None, None, True), one_way=True)
    at.hear("call")
    lease = at.ask("call", ask("absent")).lease
    at.say("call", Store(lease, b"no such thing", False, None, 1e6, None, True), one_way=True)
    at.ask("call", ask("absent"))

    at.note("Many keys: what is there, what is not, what others load; and leases: of all that nobody loads, or of one.")
    at.ask("call", change("set", "there", values=(VALUE,)))
    loaded = at.ask("call", ask("loaded")).lease
    keys = (b"there", b"absent", b"loaded", b"one", b"two")
    first = at.ask_many("call", AskMany(0, keys, (), False, False, False))
    ((_, one, _),) = first.leases
    at.say("call", StoreMany(((one, b"1", None, None, False), (loaded, b"3", 1e6, 0.0, False))), one_way=True)
    at.hear("call")
    both = at.ask_many("call", AskMany(0, (b"one", b"two", b"three"), (), False, False, True))
    stores = tuple((lease, b"", None, None, False) for _, lease, _ in both.leases)
    at.say("call", StoreMany(stores), one_way=True)

    at.note("What peers ask for: of the worker, and of the coordinator, which has it loaded.")
    at.say("call", Served(0), one_way=True)
    at.visit("group", "visited")
    load = at.hear("service")
    assert isinstance(load, Load)
    at.say("service", Waiting(((1, 2),)), one_way=True)  # of a lease that has ended
    at.say("call", Store(load.lease, VALUE, False, None, None, None, False), one_way=True)
    at.answer()

    at.note("A ring, as the application names it.")
    url = "http://127.0.0.1:1"
    at.ask("call", SetPeers(url, (url,), "/_groupcache/", 50, "crc32", ()))

    at.note("What is refused.")
    at.ask("call", ask("k", 200))

    at.note("It is alive, and has said nothing else.")
    at.ask("call", Ping())
    at.ask("service", Ping())

    at.note("Who has no version in common.")
    at.ask("stranger", hello("call", fields.MAX_VERSION, fields.MAX_VERSION))
    at.hear_end("stranger")


@contextlib.contextmanager
def coordinator(socket_path: str) -> Iterator[Wire]:
    """A coordinator that serves peers too, and a worker that says nothing yet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    daemon = Daemon(socket_path, "--listen", f"127.0.0.1:{port}")
    try:
        wire = Wire(daemon.wait_serving().socket, port)
        with contextlib.closing(wire):
            yield wire
    finally:
        daemon.close()


HEAD = """\
# A worker's conversation of version {version} with a coordinator, recorded from a real one by
#     python tests/conversing.py
# which says what the lines mean. Never change it once a release has spoken this version: such workers are there, and
# every later coordinator has to serve them. A version that says something else has a file of its own.
"""


def record(wire: Wire) -> str:
    """What a file is to hold for the version that is spoken now."""
    recorder = Recorder(wire)
    converse(recorder)
    return HEAD.format(version=messages.HIGHEST_VERSION) + "\n".join(recorder.written) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mpg-") as directory, coordinator(f"{directory}/socket") as wire:
        text = record(wire)
    current().write_text(text)
    print(f"recorded {current()}")


if __name__ == "__main__":
    main()
