"""What workers and the coordinator say to each other. frame.py makes frames of it.

A message travels as the array of its fields, in the order of the table: all of them, and nothing behind them. Keys,
values and tokens are msgpack ``bin``, names and texts are ``str``. What a field may hold is its annotation (fields.py):
the decoder makes it true, the encoder trusts the project's own code.

Messages (w: worker, c: coordinator; ``*``: one-way; ``?``: may be nil)::

    w>c    HELLO     role, pid, worker, lowest,      first frame of a connection; worker: the process's random token,
                     highest, abilities, clock [ns]  which links its "call" and its "service" connection; lowest,
                                                     highest: versions of the conversation that it speaks; abilities:
                                                     names of what it can do beside, of which unknown ones are ignored;
                                                     clock: its CLOCK_BOOTTIME, by which values age
    w>c    DECLARE   name, cache_bytes [B],          announce a group; picks: its workers pick peers themselves, so the
                     load_timeout? [s], picks,       coordinator is to ask none; module, getter: where its getter is
                     module, getter, loads, ages     written, and its name there; empty: it has none, or nobody knows;
                                                     loads: it has a getter; ages: how long its values live (ages.py)
    w>c    ASK       group, key, held, copy, here,   a get that missed; held: leases its caller holds, outermost first;
                     mode                            copy: send the value itself, the arena is of no use to the caller;
                                                     here: no peer is to be asked for it, or waited for; mode: "get";
                                                     "look": only what is there; "refresh": a load that begins now;
                                                     "renew": the same, if a stale value is there and nobody is at it
    w>c    ASK_MANY  group, keys, held, copy, here,  as many ASKs: the first key's has the next id after this one's,
                     all                             and so on; all: leases for all keys that nobody loads, else for one
    w>c *  CANCEL                                    the caller of the ASK with this request id gave up
    w>c *  STORE     lease, value, picked, said?,    what a lease brought (product.py); value: its bytes, or as an
                     ttl? [s], stale? [s], absent    integer the size [B] of the memfd passed along; picked: by a peer
                                                     that was picked; said: what that says of it
    w>c *  STORE_MANY  stores                        many of them: lease, value, ttl?, stale?, absent of each
    w>c *  REFRESH   group, key, picked              a get had a stale value: somebody is to load it anew; picked: its
                                                     worker has picked a peer for it
    w>c    CHANGE    group, what, keys, values,      what: "remove", "set", "add", "touch", "incr" its keys, or "clear";
                     ttl? [s], stale? [s], version?, values: of "set" and "add", one for each key, and only one where it
                     amount, initial?,               comes in a memfd; version: only where it is that one's; amount,
                     deadline [ns]                   initial: of "incr"; deadline: CLOCK_BOOTTIME at which it is not to
                                                     be begun any more
    w>c *  FAIL      lease, type_name, message       the loader's exception; over-long texts are cut by the encoder
    w>c *  RETURN    lease                           the loader was left without a value or an error
    w>c *  WAITING   loads                           on a service connection, behind a PONG: of each lease of this
                                                     worker, how many more of its own callers wait for it
    w>c *  SERVED    group                           a peer's request reached the worker itself
    w>c    SET_PEERS self, peers, base_path,         the ring as the application names it; hooks: what of it are
                     replicas, hash, hooks           functions, which only a coordinator that imported them has
    c>w    WELCOME   version, instance, control,     answers HELLO; version: the conversation's from here on; control:
                     pid, layout, abilities          name of the control segment; layout: the shared memory's, which a
                                                     worker that has another is not to map, 0: there is none, for
                                                     want of room; abilities: as in HELLO
    c>w    DECLARED  group, segment?, cache_bytes    answers DECLARE; segment nil: caching is off; cache_bytes: the
                     [B], arena                      budget in force; arena: the arena's incarnation
    c>w    VALUE     value, origin, version?,        answers ASK; value: as in STORE; version: its number; fresh: how
                     fresh? [s]                      long it is fresh yet (below 0: stale), nil: for ever
    c>w    HIT                                       answers ASK: it is in the arena, look again
    c>w    LEASE     lease, version                  answers ASK: the caller is to load; version: its value's number
    c>w    ANSWERS   values, leases, free, failed    answers ASK_MANY with what can be said at once, by the keys'
                                                     places: what VALUE, LEASE and FAILED have; free: nobody loads it,
                                                     ask for it alone. All else comes as an answer of its own
    c>w    CHANGED   result, refused, unreached,     answers CHANGE, and a STORE that has a request id, when all see
                     alone                           it; result: for how many keys it was done, of "incr" the new
                                                     number; refused: for which not, by their places, and why the
                                                     first was; unreached: peers that it did not reach, and why; alone:
                                                     there was nothing to change, and there is no other worker
    c>w    FAILED    code, type_name, message        answers any request
    c>w    PEERS_SET                                 answers SET_PEERS
    c>w *  LOAD      lease, group, key, ctx, picks   on a service connection: load for a peer's request, or in the place
                                                     of a stale value; the lease is ended on the call connection; ctx:
                                                     what contexts.py makes; picks: as a get, by a peer that the
                                                     group picks, if it picks one
    both   PING                                      are you alive?
    both   PONG                                      answers PING

A conversation's version is the highest that both sides speak. Where there is none, HELLO is answered by FAILED with the
code REFUSED, and the connection ends. For any two releases to get that far, both keep their form for ever: the numbers
of their types and of that code, and the fields above in their order. HELLO alone may get more of them, behind these;
who does not know them ignores them. What else a version says is kept in tests/ipc/conversations.
"""

from __future__ import annotations

import reprlib
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import msgspec
from msgspec import Meta, Struct

from mpgroupcache.ages import Ages
from mpgroupcache.errors import CacheError, CoordinatorError, LoadCycleError, LoadError, NotFound
from mpgroupcache.ipc.fields import (
    MAX_CODE_NAME,
    MAX_KEYS,
    Abilities,
    Carriage,
    Carried,
    CodeName,
    Held,
    Hooks,
    Id,
    Inline,
    Key,
    Keys,
    LeaseId,
    Left,
    Lifetime,
    Loads,
    Mode,
    Name,
    Number,
    Packed,
    Pid,
    Replicas,
    Role,
    Seconds,
    Size,
    Text,
    Token,
    TypeName,
    Url,
    Urls,
    ValueVersion,
    Version,
    What,
)
from mpgroupcache.limits import MAX_TEXT, MAX_TYPE_NAME
from mpgroupcache.product import Said

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LOWEST_VERSION: Final = 2  # of the conversation, that this release speaks
HIGHEST_VERSION: Final = 2
NO_LAYOUT: Final = 0  # of a shared memory that is not there


class MessageType(IntEnum):
    HELLO = 0x01
    DECLARE = 0x02
    ASK = 0x03
    CANCEL = 0x04
    STORE = 0x05
    FAIL = 0x06
    RETURN = 0x07
    SET_PEERS = 0x08
    SERVED = 0x09
    WAITING = 0x0A
    REFRESH = 0x0B
    CHANGE = 0x0C
    ASK_MANY = 0x0D
    STORE_MANY = 0x0E
    WELCOME = 0x11
    DECLARED = 0x12
    VALUE = 0x13
    HIT = 0x14
    LEASE = 0x15
    FAILED = 0x16
    LOAD = 0x17
    PEERS_SET = 0x18
    CHANGED = 0x19
    ANSWERS = 0x1A
    PING = 0x21
    PONG = 0x22


class FailureCode(IntEnum):
    """Why a request failed."""

    LOAD_ERROR = 1  # the loader of the flight raised
    LOAD_CYCLE = 2  # a load would have waited for itself
    REFUSED = 3  # the coordinator does not do that: a limit, an unknown group
    NOT_FOUND = 4  # there is no such value
    TOO_LARGE = 5  # a value that could never be kept
    NO_ROOM = 6  # a value that cannot be kept now
    NOT_A_NUMBER = 7  # what is there cannot be counted up
    OVERFLOW = 8  # it would be no number of 64 bits
    TOO_LATE = 9  # the change's deadline has passed


class Origin(IntEnum):
    """Where a value comes from: what the worker is to count."""

    CACHE = 1
    FLIGHT = 2  # that another caller had opened
    PEER = 3  # which this caller's flight asked


# gc=False: what a message holds refers to nothing, so the collector need not know of it.
class Message(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of all messages: immutable, equal by type and fields."""

    passes_descriptor: ClassVar[bool] = False
    """Whether a memfd is passed along with the frame."""

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={_short(getattr(self, name))}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({fields})"


class Hello(Message, frozen=True, forbid_unknown_fields=False):
    role: Role
    pid: Pid
    worker: Token
    lowest: Version
    highest: Version
    abilities: Abilities
    clock: Id

    @property
    def version(self) -> int | None:
        """The highest that both speak; None: there is none."""
        version = min(self.highest, HIGHEST_VERSION)
        return version if version >= max(self.lowest, LOWEST_VERSION) else None


class Declare(Message, frozen=True):
    name: Name
    cache_bytes: Size
    load_timeout: Seconds | None
    picks: bool
    module: CodeName
    getter: CodeName
    loads: bool
    ages: Ages

    def __post_init__(self) -> None:
        _cut_texts(self, module=MAX_CODE_NAME, getter=MAX_CODE_NAME)


class Ask(Message, frozen=True):
    group: Id
    key: Key
    held: Held
    copy: bool
    here: bool
    mode: Mode


class AskMany(Message, frozen=True):
    group: Id
    keys: Keys
    held: Held
    copy: bool
    here: bool
    all: bool


class Cancel(Message, frozen=True):
    pass


class Store(Message, frozen=True):
    lease: LeaseId
    value: Carried
    picked: bool
    said: Said | None
    ttl: Lifetime
    stale: Lifetime
    absent: bool

    @property
    def passes_descriptor(self) -> bool:  # type: ignore[override]
        return type(self.value) is int


class Served(Message, frozen=True):
    group: Id


class StoreMany(Message, frozen=True):
    stores: Annotated[tuple[tuple[LeaseId, Inline, Lifetime, Lifetime, bool], ...], Meta(max_length=MAX_KEYS)]


class Refresh(Message, frozen=True):
    group: Id
    key: Key
    picked: bool


class Change(Message, frozen=True):
    absent: ClassVar[bool] = False  # a change puts no absence

    group: Id
    what: What
    keys: Keys
    values: Carriage
    ttl: Lifetime
    stale: Lifetime
    version: ValueVersion | None
    amount: Number
    initial: Number | None
    deadline: Id

    @property
    def passes_descriptor(self) -> bool:  # type: ignore[override]
        return len(self.values) == 1 and type(self.values[0]) is int

    def __post_init__(self) -> None:
        expected = len(self.keys) if self.what in ("set", "add") else 0
        if len(self.values) != expected or (expected > 1 and any(type(value) is int for value in self.values)):
            got = f"{len(self.values)} values for {len(self.keys)} keys"
            raise ValueError(f"{self.what}: got {got}, expected {expected}, in frames where there are several")
        if (self.what == "clear") == bool(self.keys) or (self.what == "incr" and len(self.keys) > 1):
            raise ValueError(f"{self.what}: got {len(self.keys)} keys")


class Answers(Message, frozen=True):
    values: tuple[tuple[Size, Inline, ValueVersion | None, Left], ...]
    leases: tuple[tuple[Size, LeaseId, ValueVersion], ...]
    free: tuple[Size, ...]
    failed: tuple[tuple[Size, FailureCode, TypeName, Text], ...]


class Changed(Message, frozen=True):
    result: Number
    refused: tuple[tuple[Size, FailureCode, Text], ...]
    unreached: tuple[tuple[Url, Text], ...]
    alone: bool


class Fail(Message, frozen=True):
    lease: LeaseId
    type_name: TypeName
    message: Text

    def __post_init__(self) -> None:
        _cut_texts(self, type_name=MAX_TYPE_NAME, message=MAX_TEXT)


class Return(Message, frozen=True):
    lease: LeaseId


class Waiting(Message, frozen=True):
    loads: Loads


class SetPeers(Message, frozen=True):
    self_url: Url
    peers: Urls
    base_path: Url
    replicas: Replicas
    hash: Name
    hooks: Hooks


class PeersSet(Message, frozen=True):
    pass


class Welcome(Message, frozen=True):
    version: Version
    instance: Name
    control: Name
    pid: Pid
    layout: Id
    abilities: Abilities


class Declared(Message, frozen=True):
    group: Id
    segment: Name | None
    cache_bytes: Size
    arena: Id


class Value(Message, frozen=True):
    value: Carried
    origin: Origin
    version: ValueVersion | None
    fresh: Left

    @property
    def passes_descriptor(self) -> bool:  # type: ignore[override]
        return type(self.value) is int


class Hit(Message, frozen=True):
    pass


class Lease(Message, frozen=True):
    lease: LeaseId
    version: ValueVersion


class Failed(Message, frozen=True):
    code: FailureCode
    type_name: TypeName
    message: Text

    def __post_init__(self) -> None:
        _cut_texts(self, type_name=MAX_TYPE_NAME, message=MAX_TEXT)

    def exception(self) -> CacheError:
        """Return the error that the caller of the failed request is to see."""
        if self.code is FailureCode.LOAD_ERROR:
            return LoadError(self.type_name, self.message)
        return _ERRORS.get(self.code, CoordinatorError)(self.message)


_ERRORS: Final = {FailureCode.LOAD_CYCLE: LoadCycleError, FailureCode.NOT_FOUND: NotFound}


class Load(Message, frozen=True):
    lease: LeaseId
    group: Name
    key: Key
    ctx: Packed
    picks: bool


class Ping(Message, frozen=True):
    pass


class Pong(Message, frozen=True):
    pass


MESSAGES: Final[Mapping[MessageType, type[Message]]] = {
    MessageType.HELLO: Hello,
    MessageType.DECLARE: Declare,
    MessageType.ASK: Ask,
    MessageType.CANCEL: Cancel,
    MessageType.STORE: Store,
    MessageType.FAIL: Fail,
    MessageType.RETURN: Return,
    MessageType.WAITING: Waiting,
    MessageType.SET_PEERS: SetPeers,
    MessageType.SERVED: Served,
    MessageType.REFRESH: Refresh,
    MessageType.CHANGE: Change,
    MessageType.ASK_MANY: AskMany,
    MessageType.STORE_MANY: StoreMany,
    MessageType.WELCOME: Welcome,
    MessageType.DECLARED: Declared,
    MessageType.VALUE: Value,
    MessageType.HIT: Hit,
    MessageType.LEASE: Lease,
    MessageType.FAILED: Failed,
    MessageType.LOAD: Load,
    MessageType.PEERS_SET: PeersSet,
    MessageType.CHANGED: Changed,
    MessageType.ANSWERS: Answers,
    MessageType.PING: Ping,
    MessageType.PONG: Pong,
}


def _short(value: object) -> str:
    """``repr``, but keys and values are cut: these texts end in logs."""
    if isinstance(value, bytes | str) and len(value) > 40:
        return f"{value[:40]!r}...{len(value)}"
    return reprlib.repr(value)


def _cut_texts(message: Message, /, **limits: int) -> None:
    """Make an application's words fit: they may be of any length, and lone surrogates (of file names) have no UTF-8."""
    for name, limit in limits.items():
        text: str = getattr(message, name)
        fitting = text[: limit + 1].encode(errors="backslashreplace").decode()
        if len(fitting) > limit:
            fitting = fitting[: limit - 3] + "..."
        if fitting != text:
            msgspec.structs.force_setattr(message, name, fitting)


FREE: Final = Return(1)
"""Stands for the answer to a key of ASK_MANY that nobody loads, and that is to be asked for alone."""


def answers_of(message: Answers) -> Iterator[tuple[int, Message]]:
    """The places of keys, and the answer to each."""
    for place, lease, version in message.leases:
        yield place, Lease(lease, version)
    for place, value, value_version, fresh in message.values:
        yield place, Value(value, Origin.CACHE, value_version, fresh)
    for place in message.free:
        yield place, FREE
    for place, code, type_name, text in message.failed:
        yield place, Failed(code, type_name, text)
