# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Arenas, as the coordinator has them. Thin: the rules are in writer.h.

Times are in ns, relative to now; None: for ever. This code assumes that one thread at a time calls it, with the GIL held.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITABLE, PyBUF_WRITE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mpgroupcache.shm._control cimport Control
from mpgroupcache.shm._corewriter cimport (
    MGC_ABSENT, MGC_AGED, MGC_ALIGNED, MGC_COPY, MGC_EVER, MGC_HOT, MGC_LONGEST, MGC_MAX_ARENA, MGC_MAX_GROUPS,
    mgc_adopted, mgc_arena, mgc_arena_abandon, mgc_arena_adopt, mgc_arena_check, mgc_arena_clear, mgc_arena_close,
    mgc_arena_find, mgc_arena_find_kept, mgc_arena_format, mgc_arena_minute_qps, mgc_arena_next_death,
    mgc_arena_options, mgc_arena_publish, mgc_arena_put_off, mgc_arena_reclaim, mgc_arena_remove, mgc_arena_reserve,
    mgc_arena_retire, mgc_arena_revive, mgc_arena_serve, mgc_arena_size, mgc_arena_sweep, mgc_arena_touch, mgc_found,
    mgc_list_stats, mgc_new_version, mgc_reservation, mgc_traits,
)

import os

from mpgroupcache.errors import ArenaError
from mpgroupcache.shm._control import UNADOPTED


def arena_size(uint64_t budget) -> int:
    """The size of the sparse file for an arena of this budget, in bytes. ``ArenaError`` for a budget that is too large."""
    cdef uint64_t size = mgc_arena_size(budget)
    if size == 0:
        raise ArenaError(f"cache_bytes: got {budget}, expected at most some 100 GiB: with its index the arena would pass "
                         f"{MGC_MAX_ARENA >> 40} TiB of address range; split the group")
    return size


cdef int64_t as_ns(time) except? -2:
    """A time that is given, as the core takes it."""
    return MGC_EVER if time is None or time >= MGC_LONGEST else max(time, -MGC_LONGEST)


cdef (int64_t, int64_t) ages_of(fresh, dead) except *:
    """Of the two that are given to a value, where one is None, it is the other: without ``stale`` it dies when it is not fresh."""
    return as_ns(dead if fresh is None else fresh), as_ns(fresh if dead is None else dead)


@cython.freelist(8)
@cython.no_gc  # refers to a memoryview of memory
@cython.final
cdef class Found:
    """What an arena has of a key."""

    cdef readonly object value   # a memoryview, good until the next call on the arena; of what is absent, the text
    cdef readonly uint64_t version
    cdef int64_t fresh_ns, dead_ns
    cdef uint32_t flags
    cdef readonly bint refresh_due

    @property
    def fresh(self):
        """How long it is fresh; less than 0: since when it is not, or 0; None: for ever."""
        return None if self.fresh_ns == MGC_EVER else self.fresh_ns

    @property
    def dead(self):
        """How long it is not dead yet; less than 0: since when it is, or 0; None: for ever."""
        return None if self.dead_ns == MGC_EVER else self.dead_ns

    @property
    def absent(self) -> bool:
        """There is no such value; this is the text of its ``NotFound``."""
        return self.flags & MGC_ABSENT != 0

    @property
    def copy(self) -> bool:
        """Another host owns the key."""
        return self.flags & MGC_COPY != 0

    @property
    def aligned(self) -> bool:
        """The value begins at a multiple of a cache line."""
        return self.flags & MGC_ALIGNED != 0


cdef Found as_found(const mgc_found *got):
    cdef Found found = Found.__new__(Found)
    found.value = PyMemoryView_FromMemory(<char *> got.value, got.length, PyBUF_READ)
    found.version, found.flags, found.refresh_due = got.version, got.flags, got.refresh_due
    found.fresh_ns, found.dead_ns = got.fresh, got.dead
    return found


cdef void report_line(void *context, const char *line) noexcept:
    (<list> context).append((<bytes> line).decode())


@cython.no_gc  # refers to its control segment and a buffer: never a cycle
@cython.final
cdef class Arena:
    """One group's arena: the index, the entries, the main and hot LRU lists (Go: a ``Group``'s two ``cache``s).

    ``adopt``: the segment is a dead coordinator's, to go on with; budget, seed and incarnation are those that it has.
    ``checksums``: of values, too, so that adoption drops those that are damaged. ``reserve``: bytes of its file system
    that it leaves free when it grows.
    """

    cdef mgc_arena arena
    cdef Control control
    cdef Py_buffer memory
    cdef bint held               # the buffer
    cdef bint open
    cdef bint retired
    cdef Py_ssize_t exports      # memoryviews of reservations: they write to the memory
    cdef mgc_adopted adopted

    def __cinit__(self, Control control not None, memory, int fd, *, uint32_t group, uint32_t incarnation=0,
                  uint64_t budget=0, uint64_t max_entry=UINT64_MAX, uint64_t seed=0, bint checksums=False,
                  uint64_t reserve=0, bint adopt=False):
        cdef mgc_arena_options options
        control.check_open()
        PyObject_GetBuffer(memory, &self.memory, PyBUF_WRITABLE)
        self.held = True
        self.control = control
        if adopt:
            self.adopt(fd, group, checksums, reserve)
            return
        if <uint64_t> self.memory.len < arena_size(budget) or group >= MGC_MAX_GROUPS:
            raise ValueError(f"arena of {budget} bytes: got a segment of {self.memory.len} bytes for group {group}, "
                             f"expected {arena_size(budget)} bytes and a group below {MGC_MAX_GROUPS}")
        options.arena, options.incarnation = group, incarnation
        options.budget, options.max_entry, options.seed = budget, max_entry, seed
        options.checksums, options.reserve = checksums, reserve
        memcpy(options.boot_id, <const char *> control.boot_id, 16)
        cdef int error = mgc_arena_format(&self.arena, <uint8_t *> self.memory.buf, fd, control.control, &options)
        if error:
            raise ArenaError(f"no shared memory for an arena of {budget} bytes: {os.strerror(-error)}; "
                             "enlarge /dev/shm (docker run --shm-size) or lower cache_bytes")
        self.open = True
        control.arenas += 1

    cdef int adopt(self, int fd, uint32_t group, bint checksums, uint64_t reserve) except -1:
        cdef mgc_arena_options options
        if group >= MGC_MAX_GROUPS:
            raise ValueError(f"arena: got group {group}, expected one below {MGC_MAX_GROUPS}")
        options.arena, options.max_entry, options.checksums, options.reserve = group, UINT64_MAX, checksums, reserve
        memcpy(options.boot_id, <const char *> self.control.boot_id, 16)
        cdef int error = mgc_arena_adopt(&self.arena, <uint8_t *> self.memory.buf, self.memory.len, fd,
                                         self.control.control, &options, &self.adopted)
        if error:
            raise ArenaError(f"the arena of group {group} cannot be taken over: {UNADOPTED[error]}")
        self.open = True
        self.control.arenas += 1
        return 0

    def __dealloc__(self):
        self.close()

    cpdef int close(self) except -1:
        """Let go of the memory; the segment stays as it is. ``BufferError`` while a reservation is being filled."""
        if self.exports:
            raise BufferError(f"close: {self.exports} memoryviews of reservations are left; release them first")
        if self.open:
            self.open = False
            mgc_arena_close(&self.arena)
            self.control.arenas -= 1
        if self.held:
            self.held = False
            PyBuffer_Release(&self.memory)
        return 0

    cdef int check_open(self) except -1:
        if not self.open:
            raise ValueError("the arena is closed")
        return 0

    def retire(self) -> None:
        """Tell attached workers to let go: their next get is a miss. Nothing can be put into the arena any more."""
        self.check_open()
        self.retired = True
        mgc_arena_retire(&self.arena)

    def reserve(self, bytes key not None, uint64_t size, bint hot=False, *, uint64_t version=0, fresh=None, dead=None,
                bint absent=False, copy=None, bint aligned=False):
        """Make room for a value of ``size`` bytes and return a ``Reservation``; None when it cannot be cached now."""
        return self._reserve(key, size, hot, version, fresh, dead, absent, copy, aligned)

    cdef Reservation _reserve(self, bytes key, uint64_t size, bint hot, uint64_t version, fresh, dead, bint absent, copy,
                              bint aligned):
        cdef Reservation reservation = Reservation.__new__(Reservation)
        cdef mgc_traits traits
        self.check_open()
        traits.flags, traits.version, traits.owners_version = MGC_HOT if hot else 0, version, 0
        if absent:
            traits.flags |= MGC_ABSENT
        if copy is not None:
            traits.flags |= MGC_COPY
            traits.owners_version = copy
        if aligned:
            traits.flags |= MGC_ALIGNED
        traits.fresh, traits.dead = ages_of(fresh, dead)
        if traits.fresh != MGC_EVER or traits.dead != MGC_EVER:
            traits.flags |= MGC_AGED
        if self.retired or mgc_arena_reserve(&self.arena, <const uint8_t *> <const char *> key, len(key), size, &traits,
                                             &reservation.reserved):
            return None
        reservation.arena = self
        return reservation

    def put(self, bytes key not None, value, bint hot=False, *, uint64_t version=0, fresh=None, dead=None, bint absent=False,
            copy=None, bint aligned=False) -> bool:
        """Cache a value (bytes-like), in place of the key's old one. False when it cannot be cached now."""
        cdef Py_buffer source
        cdef Reservation reservation
        PyObject_GetBuffer(value, &source, 0)
        try:
            reservation = self._reserve(key, source.len, hot, version, fresh, dead, absent, copy, aligned)
            if reservation is None:
                return False
            memcpy(reservation.reserved.value, source.buf, source.len)
        finally:
            PyBuffer_Release(&source)
        return reservation.publish()

    def new_version(self) -> int:
        """A number for a value, for ``put`` and ``reserve``: never another's, not even after this coordinator."""
        self.check_open()
        return mgc_new_version(&self.arena)

    def find(self, bytes key not None):
        """What is cached of a key and not dead, as ``Found``, or None. A find is a touch."""
        cdef mgc_found found
        self.check_open()
        if not mgc_arena_find(&self.arena, <const uint8_t *> <const char *> key, len(key), &found):
            return None
        return as_found(&found)

    def find_kept(self, bytes key not None):
        """The same for what is dead and kept in case that its load fails, too; and no touch."""
        cdef mgc_found found
        self.check_open()
        if not mgc_arena_find_kept(&self.arena, <const uint8_t *> <const char *> key, len(key), &found):
            return None
        return as_found(&found)

    def serve(self, bytes key not None):
        """For a peer's request: ``find``, and the key's rate (to 3 %). A request that is served is counted as one."""
        cdef mgc_found found
        cdef double minute_qps
        self.check_open()
        if not mgc_arena_serve(&self.arena, <const uint8_t *> <const char *> key, len(key), &found, &minute_qps):
            return None
        return as_found(&found), minute_qps

    def minute_qps(self, bytes key not None) -> float:
        """Requests per second for a key, of workers and peers, in the last minute; 0.0 where it is not cached."""
        self.check_open()
        return mgc_arena_minute_qps(&self.arena, <const uint8_t *> <const char *> key, len(key))

    def remove(self, bytes key not None, uint64_t version=0) -> bool:
        """Drop a key's entry (Go: ``lru.Cache.Remove``), if it has that version. Whether it was a live value."""
        self.check_open()
        return mgc_arena_remove(&self.arena, <const uint8_t *> <const char *> key, len(key), version)

    def touch(self, bytes key not None, fresh, dead) -> bool:
        """Give what is cached of a key, and not dead, other ages. False: nothing is, or it had no room and is gone."""
        cdef int64_t fresh_ns, dead_ns
        self.check_open()
        fresh_ns, dead_ns = ages_of(fresh, dead)
        return mgc_arena_touch(&self.arena, <const uint8_t *> <const char *> key, len(key), fresh_ns, dead_ns)

    def put_off(self, bytes key not None, pause) -> bool:
        """Have nobody asked for a refresh for a time: one is under way, or has failed. Whether the key is there."""
        self.check_open()
        return mgc_arena_put_off(&self.arena, <const uint8_t *> <const char *> key, len(key), as_ns(pause))

    def revive(self, bytes key not None, pause) -> bool:
        """A load has failed: ``put_off``, and what is dead and kept is stale again until it is not kept any more."""
        self.check_open()
        return mgc_arena_revive(&self.arena, <const uint8_t *> <const char *> key, len(key), as_ns(pause))

    def clear(self) -> None:
        """Have all that is cached dead, at once; ``reclaim`` gives memory back. What is being filled is dropped."""
        self.check_open()
        mgc_arena_clear(&self.arena)

    def reclaim(self, uint64_t most) -> tuple:
        """Give back what is dead and not kept, in at most so many steps.

        Returns how many entries had expired, here and where new ones needed room, since the last call; and whether more
        is to be done now.
        """
        cdef bint more
        self.check_open()
        expired = mgc_arena_reclaim(&self.arena, most, &more)
        return expired, more

    @property
    def next_death(self):
        """In how many ns ``reclaim`` has something to do, at the least; None: nothing will die."""
        self.check_open()
        cdef int64_t left = mgc_arena_next_death(&self.arena)
        return None if left == MGC_EVER else left

    def sweep(self) -> None:
        """Free blocks whose views have gone."""
        self.check_open()
        mgc_arena_sweep(&self.arena)

    def check(self) -> list:
        """Every inconsistency as a line: [] for a sound arena. For tests and post-mortems; reads all of it."""
        self.check_open()
        lines = []
        mgc_arena_check(&self.arena, report_line, <void *> lines)
        return lines

    @property
    def budget(self) -> int:
        """Bytes of keys and values."""
        self.check_open()
        return self.arena.budget

    @property
    def max_entry(self) -> int:
        """The largest key plus value, in bytes."""
        self.check_open()
        return self.arena.max_entry

    @max_entry.setter
    def max_entry(self, uint64_t most):
        self.check_open()
        self.arena.max_entry = min(most, self.arena.max_entry)

    @property
    def incarnation(self) -> int:
        """The number that tells this segment from earlier ones of the group."""
        self.check_open()
        return self.arena.header.incarnation

    @property
    def taken_over(self) -> tuple:
        """(entries, dropped ones) of the dead coordinator's; dropped were those that were damaged."""
        return self.adopted.entries, self.adopted.dropped

    @property
    def committed(self) -> int:
        """Bytes of memory that the segment holds."""
        self.check_open()
        return self.arena.header.committed

    @property
    def limbo_bytes(self) -> int:
        """Bytes of blocks that are unpublished, but were pinned when last looked at."""
        self.check_open()
        return self.arena.header.limbo_bytes

    @property
    def short_of_memory(self) -> bool:
        """Whether shared memory ran out: the arena hardly grows, and evicts instead, until ``retry_memory``."""
        self.check_open()
        return self.arena.commit_limit != UINT64_MAX

    def retry_memory(self) -> None:
        """Try to commit memory again when it is next needed."""
        self.check_open()
        self.arena.commit_limit = UINT64_MAX

    def list_stats(self, int which):
        """(bytes, items, evictions) of the main (0) or hot (1) list."""
        self.check_open()
        cdef mgc_list_stats *stats = &self.arena.header.lists[which & 1]
        return stats.bytes, stats.items, stats.evictions


@cython.no_gc  # refers to its arena: never a cycle, and one that is part of another's is abandoned all the same
@cython.final
cdef class Reservation:
    """Room for one value: fill it through the buffer protocol, then ``publish``; dropped, it is abandoned."""

    cdef Arena arena             # None: published or abandoned
    cdef mgc_reservation reserved
    cdef Py_ssize_t exports
    cdef bint abandoned          # as soon as the last memoryview is gone

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.arena is None or self.abandoned or not self.arena.open:
            raise BufferError("the reservation was published or abandoned")
        PyBuffer_FillInfo(buffer, self, self.reserved.value, self.reserved.length, 0, flags)
        self.exports += 1
        self.arena.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1
        self.arena.exports -= 1
        if self.abandoned and not self.exports:
            self.give_back()

    cdef void give_back(self) noexcept:
        cdef Arena arena = self.arena
        self.arena = None
        if arena is not None and arena.open:
            mgc_arena_abandon(&arena.arena, &self.reserved)

    def publish(self) -> bool:
        """Let readers see the entry. ``BufferError`` while a memoryview of the value could still write to it.

        False, and the room is given back, when the reservation was abandoned, or the arena cleared, retired or closed.
        """
        cdef Arena arena = self.arena
        if self.exports:
            raise BufferError(f"publish: {self.exports} memoryviews of the value are left; release them first")
        if arena is None or arena.retired or not arena.open:
            self.give_back()
            return False
        self.arena = None
        return mgc_arena_publish(&arena.arena, &self.reserved)

    def abandon(self) -> None:
        """Give the room back: now, or when the last memoryview that could still write to it is gone."""
        self.abandoned = True
        if not self.exports:
            self.give_back()

    def __dealloc__(self):
        self.give_back()
