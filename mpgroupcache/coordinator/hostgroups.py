"""The coordinator's groups: their rows in the control segment, their arenas, and putting values there."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import Struct, field

from mpgroupcache.ages import AGELESS, FOREVER, Ages, Lived, Told, copied_for, fresh_for, stale_for
from mpgroupcache.counters import Counter
from mpgroupcache.errors import ArenaError
from mpgroupcache.ipc.messages import Declare
from mpgroupcache.limits import MAX_SECONDS
from mpgroupcache.product import Product
from mpgroupcache.shm._control import Control
from mpgroupcache.shm._writer import Arena, arena_size
from mpgroupcache.shm.ownership import ARENA_MODE, Segment, clear_arenas, left_arenas
from mpgroupcache.shm.segment import DIRECTORY, ROOM_TO_BEGIN, arena_name, room
from mpgroupcache.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpgroupcache.net.promotion import Promotion

logger = logging.getLogger(__name__)

COPY_STEP = 4 << 20  # bytes copied before other requests get their turn: about a millisecond
RECLAIM_STEP = 512  # dead entries at a time: some 100 us
MEMORY_RETRY = 30.0  # s until an arena that ran out of shared memory tries to grow again
RESERVE_SHARE, MAX_RESERVE = 16, 64 << 20  # of shared memory: a container's 64 MiB, and regions of 1000 workers
MAX_TOLD = 16  # different warnings on one group's declarations; workers may say anything, for as long as they like
SCRIPTS = ("__main__", "__mp_main__")  # what a module is called that is run as a script, and in its spawned children


class Life(NamedTuple):
    """For how long from now on a value is fresh, and when it is dead, in ns; None: for ever."""

    fresh: int | None = None
    dead: int | None = None

    @property
    def seconds(self) -> tuple[float | None, float | None]:
        """The same, as it travels."""
        return None if self.fresh is None else self.fresh / 1e9, None if self.dead is None else self.dead / 1e9


ENDLESS: Final = Life()


class HostGroup(Struct, eq=False):
    """A group as the host knows it, until the coordinator ends. Flights' keys are pairs of it and a key."""

    id: int
    name: str
    cache_bytes: int
    load_timeout: float | None
    picks: bool  # its workers pick peers themselves
    module: str = ""  # where the first getter that was named is written, and ...
    getter: str = ""  # ... its name
    ages: Ages = AGELESS  # of the last declaration
    loads: bool = True  # its last declaration had a getter
    declared: bool = True  # else a dead coordinator knew of it
    arena: Arena | None = None
    segment: Segment | None = None
    incarnation: int = 0
    told: set[str] = field(default_factory=set)  # what was said of later declarations
    warned_of_memory: bool = False
    retry_memory_at: float = 0.0
    promotion: Promotion | None = None  # made for the first value of a peer
    clears: int = 0  # that were done
    last_version: int = 0  # that it gave to a value, where there is no arena

    def new_version(self) -> int:
        """A number for a value, which no other one of this group has had."""
        if self.arena is not None:
            return self.arena.new_version()
        self.last_version = self.last_version + 1 if self.last_version else _random(8) >> 2
        return self.last_version

    @property
    def items(self) -> int:
        """How many entries it has."""
        return 0 if self.arena is None else sum(self.arena.list_stats(which)[1] for which in (0, 1))

    def life(self, value: Lived) -> Life | None:
        """How long a value lives that is put now; None: it is not to be kept."""
        fresh = fresh_for(self.ages, value)
        if fresh == FOREVER:
            return ENDLESS
        if fresh == 0:
            return None
        if self.ages.jitter:
            fresh *= 1 - self.ages.jitter * random.random()
        return Life(_ns(fresh), _ns(fresh + stale_for(self.ages, value)))

    def copy_life(self, fresh: float | None, dead: float | None) -> Life | None:
        """How long a copy lives of a value that lives for so many seconds with its owner; None: for ever, there."""
        fresh, dead = copied_for(self.ages, fresh, dead)
        if fresh == FOREVER:
            return ENDLESS
        return Life(_ns(fresh), _ns(dead)) if dead > 0 else None

    def owned_life(self, said: Told | None, *, absent: bool = False) -> Life | None:
        """How long a copy lives of which its owner says that; who knows no ages: from now on, as if it were ours."""
        if absent and not self.ages.negative_ttl:
            return None
        if said is not None and said.says_ages:
            return self.copy_life(said.fresh, said.dead)
        whole = self.life(Product(b"", absent=absent))
        return None if whole is None else self.copy_life(*whole.seconds)

    def put(
        self,
        key: bytes,
        value: bytes,
        life: Life | None,
        *,
        version: int = 0,
        absent: bool = False,
        copy: int | None = None,
    ) -> bool:
        """Cache a value, if it fits."""
        if self.arena is not None and life is not None:
            fresh, dead = life
            if self.arena.put(key, value, version=version, fresh=fresh, dead=dead, absent=absent, copy=copy):
                return True
        self.drop(key)
        return False

    def drop(self, key: bytes) -> None:
        """A later value is not kept: what is there, such as a stale one, goes all the same."""
        if self.arena is not None:
            self.arena.remove(key)

    def admits(self, entry_bytes: int, minute_qps: float | None) -> bool:
        """Whether the hot cache takes an entry that a peer owns: if it is asked for often enough."""
        if self.arena is None:
            return False
        from mpgroupcache.net.promotion import Promotion, fill  # most coordinators have no peers, and do without

        if self.promotion is None:
            self.promotion = Promotion()
        main_bytes, hot_bytes = (self.arena.list_stats(which)[0] for which in (0, 1))
        return self.promotion.admits(minute_qps, entry_bytes, fill(main_bytes, hot_bytes, self.arena.budget))

    def promote(
        self, key: bytes, value: bytes, minute_qps: float | None, life: Life | None, *, version: int, owners: int = 0
    ) -> None:
        """Put a value that a peer owns into the hot cache, if that takes it. ``owners``: its version there; 0: none."""
        if life is not None and self.admits(len(key) + len(value), minute_qps):
            assert self.arena is not None
            fresh, dead = life
            if self.arena.put(key, value, hot=True, version=version, fresh=fresh, dead=dead, copy=owners):
                return
        self.drop(key)

    async def put_from(
        self,
        key: bytes,
        fd: int,
        size: int,
        life: Life,
        may_publish: Callable[[], bool],
        *,
        version: int = 0,
        owners: int | None = None,
    ) -> bool:
        """Cache the contents of a sealed memfd, in steps between which the coordinator serves others.

        ``owners``: as in ``promote``, of a value that a peer owns; None: it is ours. ``may_publish`` is asked at the
        end, in the step in which it is published: a change may have overtaken it.
        """
        if self.arena is None:
            return False
        hot = owners is not None
        reservation = self.arena.reserve(
            key, size, hot=hot, version=version, fresh=life.fresh, dead=life.dead, copy=owners
        )
        if reservation is None:
            return False
        try:
            done = 0
            while done < size:
                with memoryview(reservation) as room:
                    count = os.preadv(fd, [room[done : done + COPY_STEP]], done)
                if count == 0:
                    raise EOFError(f"memfd: got {done} bytes, expected {size}")
                done += count
                if done < size:
                    await asyncio.sleep(0)
            if may_publish():
                return reservation.publish()
            reservation.abandon()
        except BaseException:
            reservation.abandon()
            raise
        return False

    def close(self, keep: bool = False) -> None:
        """Tell attached workers to let go, and remove the arena; or keep it for the next coordinator."""
        if self.arena is not None and self.segment is not None:
            if not keep:
                self.arena.retire()
            self.arena.close()
            if not keep:
                self.segment.unlink()
            self.segment.close()
            self.arena = self.segment = None


class Groups:
    """All groups of an instance, by name and by id."""

    def __init__(
        self,
        instance: str,
        control: Control,
        max_bytes: int | None,
        reserve: int | None,
        max_value_share: float,
        checksums: bool,
        gid: int | None,
    ) -> None:
        self._instance = instance
        self._control = control
        self._max_bytes = max_bytes
        if reserve is None:
            whole = room()
            reserve = 0 if whole is None else min(whole.size // RESERVE_SHARE, MAX_RESERVE)
        self._reserve = reserve
        self._max_value_share = max_value_share
        self._checksums = checksums
        self._gid = gid
        self._by_name: dict[str, HostGroup] = {}
        self._by_id: dict[int, HostGroup] = {}
        self.short_of_arenas = False
        """Whether a group has none because there was no room in shared memory."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._by_id.values())

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._by_id)

    @property
    def committed(self) -> int:
        """Bytes of memory that their arenas hold."""
        return sum(group.arena.committed for group in self if group.arena is not None)

    def get(self, group: int) -> HostGroup | None:
        return self._by_id.get(group)

    def named(self, name: str) -> HostGroup | None:
        return self._by_name.get(name)

    def declare(self, said: Declare) -> HostGroup:
        """The group of that name, as its first declaration has it. Raises ``ArenaError`` for the 257th group."""
        group = self._by_name.get(said.name)
        if group is not None and group.declared:
            self._compare(group, said)
            self._set_ages(group, said)
            return group
        if group is None:
            number = self._control.add_group(said.name, said.cache_bytes)
            group = HostGroup(number, said.name, said.cache_bytes, said.load_timeout, said.picks)
            self._by_name[said.name] = self._by_id[number] = group
            if budget := self._affordable(said.name, said.cache_bytes):
                self._make_arena(group, budget)
        else:
            self._declare_again(group, said)
        group.module, group.getter = said.module, said.getter
        self._set_ages(group, said)
        logger.info(
            "group %r: declared with %s, loaded by %s",
            group.name,
            "no cache" if group.arena is None else f"a cache of {format_size(group.arena.budget)}",
            f"{said.module}.{said.getter}" if said.getter else "what has no name",
        )
        return group

    def _set_ages(self, group: HostGroup, said: Declare) -> None:
        """The last declaration's ages hold, for what is stored from then on: a coordinator outlives a deploy."""
        group.loads = said.loads
        if group.ages != said.ages:
            group.ages = said.ages
            self._control.set_ages(group.id, *msgspec.structs.astuple(said.ages))

    def _declare_again(self, group: HostGroup, said: Declare) -> None:
        """The first declaration of a group that a dead coordinator knew of; its arena is of use if its budget is."""
        group.load_timeout, group.picks, group.declared = said.load_timeout, said.picks, True
        if group.cache_bytes != said.cache_bytes and group.arena is not None:
            was, now = format_size(group.cache_bytes), format_size(said.cache_bytes)
            logger.warning("group %r: cache_bytes was %s and is %s; its cache begins anew", group.name, was, now)
            group.close()
        group.cache_bytes = said.cache_bytes
        if group.arena is None and (budget := self._affordable(group.name, said.cache_bytes)):
            self._make_arena(group, budget)

    def _compare(self, group: HostGroup, said: Declare) -> None:
        """Warn where a later declaration differs from the first: once, though each worker says the same."""
        if not group.getter:
            group.module, group.getter = said.module, said.getter
        stays = "and stays in force until the coordinator restarts"
        differences = []
        if group.cache_bytes != said.cache_bytes:
            got, first = format_size(said.cache_bytes), format_size(group.cache_bytes)
            differences.append(f"got cache_bytes of {got}, the first declaration said {first} {stays}")
        if group.picks != said.picks:
            got, first = ("with", "without") if said.picks else ("without", "with")
            differences.append(f"got a declaration {got} peers of its own, the first one was {first} {stays}")
        if not _may_be_one(group, said):
            differences.append(
                f"got a declaration with the getter {said.module}.{said.getter}, the first one was with "
                f"{group.module}.{group.getter}: if they load different things, each application gets the other's "
                "values; give one of them another group's name, or a coordinator of its own (another --socket)"
            )
        for text in differences:
            if text not in group.told and len(group.told) < MAX_TOLD:
                group.told.add(text)
                logger.warning("group %r: %s", group.name, text)

    # ---- What a dead coordinator has left

    def take_over(self) -> None:
        """Go on with its groups and arenas, as far as they are of use; the rest is retired and removed."""
        for number, (name, cache_bytes) in enumerate(self._control.groups()):
            if name is None or name in self._by_name:
                continue  # its number is spent
            group = HostGroup(number, name, cache_bytes, None, picks=False, declared=False)
            group.ages = Ages(*self._control.ages(number))
            self._by_name[name] = self._by_id[number] = group
            for left in left_arenas(self._instance, number):
                if group.arena is None:
                    self._take_over_arena(group, left)
        kept = {group.segment.name for group in self if group.segment is not None}
        clear_arenas(self._instance, kept)

    def _take_over_arena(self, group: HostGroup, name: str) -> None:
        segment = None
        try:
            segment = Segment.attach(name)
            segment.share(self._gid, ARENA_MODE)
            arena = Arena(
                self._control,
                segment.buffer,
                segment.fd,
                group=group.id,
                checksums=self._checksums,
                reserve=self._reserve,
                adopt=True,
            )
        except (ArenaError, OSError, ValueError) as error:
            logger.warning("group %r: %s; its cache begins anew", group.name, error)
            if segment is not None:
                segment.close()
            return
        arena.max_entry = int(arena.budget * self._max_value_share)
        group.arena, group.segment, group.incarnation = arena, segment, arena.incarnation
        if self._max_bytes is not None and self._budgets() > self._max_bytes:
            logger.warning("group %r: --max-bytes leaves no room for its arena; its cache begins anew", group.name)
            group.close()
            return
        entries, dropped = arena.taken_over
        logger.info("group %r: took over %d entries, dropped %d that were damaged", group.name, entries, dropped)

    def _budgets(self) -> int:
        return sum(group.arena.budget for group in self if group.arena is not None)

    def _affordable(self, name: str, cache_bytes: int) -> int:
        """The budget that --max-bytes and shared memory leave for a new group, with a warning where that is less."""
        budget = cache_bytes
        if self._max_bytes is not None:
            left = self._max_bytes - self._budgets()
            if budget > left:
                budget = max(left, 0)
                logger.warning(
                    "group %r: got cache_bytes of %s, --max-bytes leaves %s; raise it or lower the groups' cache_bytes",
                    name,
                    format_size(cache_bytes),
                    format_size(budget),
                )
        memory = room()
        if memory is not None and budget > memory.free - self._reserve:
            logger.warning(
                "group %r: cache_bytes of %s, but %s has %s free, and --reserve leaves %s; its arena will stop growing "
                "there. Enlarge it (docker run --shm-size) or lower cache_bytes",
                name,
                format_size(budget),
                DIRECTORY,
                format_size(memory.free),
                format_size(self._reserve),
            )
        return budget

    def _make_arena(self, group: HostGroup, budget: int) -> None:
        incarnation = _random(4)  # so that no worker takes a new arena for one it has mapped
        try:
            segment = Segment(arena_name(self._instance, group.id, incarnation), arena_size(budget))
        except (ArenaError, OSError) as error:
            logger.error("group %r is served without a cache: %s", group.name, error)
            return
        try:
            segment.share(self._gid, ARENA_MODE)
            group.arena = Arena(
                self._control,
                segment.buffer,
                segment.fd,
                group=group.id,
                incarnation=incarnation,
                budget=budget,
                max_entry=int(budget * self._max_value_share),
                seed=_random(8),
                checksums=self._checksums,
                reserve=self._reserve,
            )
        except (ArenaError, OSError) as error:
            logger.error("group %r is served without a cache until there is room: %s", group.name, error)
            self.short_of_arenas |= not self.has_room  # else room would not help
            segment.unlink()
            segment.close()
            return
        group.segment, group.incarnation = segment, incarnation

    @property
    def has_room(self) -> bool:
        """Whether arenas could be made, and grow."""
        memory = room()
        return memory is None or memory.free >= self._reserve + ROOM_TO_BEGIN

    def tend(self, now: float) -> None:
        """What has to be done from time to time: blocks whose views have gone, and memory that ran out."""
        for group in self:
            if group.arena is None:
                continue
            if group.arena.limbo_bytes:
                group.arena.sweep()
            if not group.arena.short_of_memory:
                continue
            if not group.warned_of_memory:
                group.warned_of_memory = True
                logger.warning(
                    "group %r: no more shared memory in %s, of which --reserve leaves %s free; its arena stays at %s "
                    "of the %s that it was given. Enlarge it (docker run --shm-size) or lower cache_bytes",
                    group.name,
                    DIRECTORY,
                    format_size(self._reserve),
                    format_size(group.arena.committed),
                    format_size(group.arena.budget),
                )
                group.retry_memory_at = now + MEMORY_RETRY
            elif now >= group.retry_memory_at:
                group.arena.retry_memory()
                group.retry_memory_at = now + MEMORY_RETRY

    def reclaim(self) -> bool:
        """Give back some of what is dead, of each group; whether there is more. No call takes long."""
        more = False
        for group in self:
            if group.arena is not None:
                expired, is_more = group.arena.reclaim(RECLAIM_STEP)
                more |= is_more
                if expired:
                    self._control.count(group.id, Counter.EXPIRED, expired)
        return more

    def close(self, keep: bool = False) -> None:
        """Remove all arenas, or keep them for the next coordinator."""
        for group in self:
            group.close(keep)


def _may_be_one(group: HostGroup, said: Declare) -> bool:
    """Whether both getters may be one. A script's module has a name of its own where others import it."""
    if not group.getter or not said.getter:
        return True
    same_module = group.module == said.module or group.module in SCRIPTS or said.module in SCRIPTS
    return same_module and group.getter == said.getter


def _ns(seconds: float) -> int:
    """Workers may say any number, and no value is to end the coordinator's step: what is so long is for ever."""
    return int(min(seconds, 10 * MAX_SECONDS) * 1e9)


def _random(size: int) -> int:
    """A number of ``size`` bytes that nobody guesses."""
    return int.from_bytes(os.urandom(size), "little")
