# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The coordinator's side of shared memory: the control segment's writer, and arenas. Thin: the rules are in writer.h.

This code assumes that one thread at a time calls it, with the GIL held.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITABLE, PyBUF_WRITE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport ENOMEM, EPROTO, ESTALE
from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from mpgroupcache.shm._corewriter cimport (
    MGC_CONTROL_SIZE, MGC_COUNTERS, MGC_GROUP_NAME_BYTES, MGC_MAX_ARENA, MGC_MAX_GROUPS, MGC_RATE_SECOND,
    MGC_TOTALS_OFFSET, atomic64, mgc_add, mgc_adopted, mgc_arena, mgc_arena_abandon,
    mgc_arena_adopt, mgc_arena_check, mgc_arena_close, mgc_arena_find, mgc_arena_format, mgc_arena_minute_qps,
    mgc_arena_options, mgc_arena_publish, mgc_arena_remove, mgc_arena_reserve, mgc_arena_retire,
    mgc_arena_serve, mgc_arena_size, mgc_arena_sweep, mgc_control, mgc_control_add_group, mgc_control_adopt,
    mgc_control_attached, mgc_control_close, mgc_control_count_request, mgc_control_drain, mgc_control_format,
    mgc_control_group, mgc_control_groups, mgc_control_reap, mgc_control_retire, mgc_control_sign,
    mgc_control_spare_regions, mgc_control_stamp, mgc_group_row, mgc_list_stats, mgc_reservation, mgc_segment_retire,
)

import os
import time

from mpgroupcache.errors import ArenaError

cdef extern from "<errno.h>":
    enum: EUCLEAN


CONTROL_SIZE = MGC_CONTROL_SIZE
UNADOPTED = {
    -EPROTO: "another layout, of another version of mpgroupcache",
    -ESTALE: "it is of another boot or group, with other --checksums, or was given up",
    -EUCLEAN: "it is damaged",
    -ENOMEM: "out of memory",
}
MAX_GROUPS = MGC_MAX_GROUPS


def arena_size(uint64_t budget) -> int:
    """The size of the sparse file for an arena of this budget, in bytes. ``ArenaError`` for a budget that is too large."""
    cdef uint64_t size = mgc_arena_size(budget)
    if size == 0:
        raise ArenaError(f"cache_bytes: got {budget}, expected at most some 100 GiB: with its index the arena would pass "
                         f"{MGC_MAX_ARENA >> 40} TiB of address range; split the group")
    return size



def retire_segment(str path not None) -> None:
    """Tell the workers that attached a dead instance's segment to let go of it. What is no segment of ours is left alone."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        mgc_segment_retire(fd)
    finally:
        os.close(fd)


def sign_of_life(str path not None):
    """(boot id, CLOCK_BOOTTIME in ns) of the last tick of a control segment's coordinator; None where it is none.

    Of any layout: before the fourth, which brought this, the time is 0.
    """
    cdef uint8_t boot[16]
    cdef uint64_t alive
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for its other end
    try:
        if mgc_control_sign(fd, boot, &alive) != 0:
            return None
    finally:
        os.close(fd)
    return (<const char *> boot)[:16], alive


@cython.no_gc  # refers to a buffer and bytes: never a cycle, and arenas need it whole until they are gone
@cython.final
cdef class Control:
    """The writer of a control segment: ``memory`` is its whole buffer, ``fd`` a locked description of it.

    ``adopt``: it is a dead coordinator's, to go on with. ``ArenaError`` says why that cannot be; a new one is formatted.
    """

    cdef mgc_control *control    # NULL: closed
    cdef Py_buffer memory
    cdef bint held               # the buffer
    cdef Py_ssize_t arenas       # open ones
    cdef double opened           # on the monotonic clock
    cdef readonly bytes boot_id

    def __cinit__(self, memory, int fd, bytes boot_id not None, *, bint adopt=False):
        PyObject_GetBuffer(memory, &self.memory, PyBUF_WRITABLE)
        self.held = True
        if self.memory.len < <Py_ssize_t> MGC_CONTROL_SIZE or len(boot_id) != 16:
            raise ValueError(f"control segment: got {self.memory.len} bytes, expected {MGC_CONTROL_SIZE}")
        self.control = <mgc_control *> calloc(1, sizeof(mgc_control))
        if self.control == NULL:
            raise MemoryError()
        self.boot_id = boot_id
        self.opened = time.monotonic()
        cdef const uint8_t *boot = <const uint8_t *> <const char *> boot_id
        cdef int error
        if adopt:
            error = mgc_control_adopt(self.control, <uint8_t *> self.memory.buf, fd, boot)
            if error:
                raise ArenaError(f"the control segment cannot be taken over: {UNADOPTED[error]}")
            return
        error = mgc_control_format(self.control, <uint8_t *> self.memory.buf, fd, boot)
        if error:
            raise ArenaError(f"no shared memory for the control segment: {os.strerror(-error)}; enlarge /dev/shm")

    def __dealloc__(self):
        self.close()

    cpdef int close(self) except -1:
        """Let go of the memory. ``BufferError`` while arenas are open: they read the pins."""
        if self.arenas:
            raise BufferError(f"close: {self.arenas} arenas are open; close them first")
        if self.control != NULL:
            mgc_control_close(self.control)
            free(self.control)
            self.control = NULL
        if self.held:
            self.held = False
            PyBuffer_Release(&self.memory)
        return 0

    cdef int check_open(self) except -1:
        if self.control == NULL:
            raise ValueError("the control segment is closed")
        return 0

    def retire(self) -> None:
        """Tell attached workers that this instance has ended."""
        self.check_open()
        mgc_control_retire(self.control)

    def stamp(self) -> None:
        """Note the time, for ``sign_of_life``."""
        self.check_open()
        mgc_control_stamp(self.control)

    def add_group(self, str name not None, uint64_t budget) -> int:
        """Add a group's row and return its id. ``ArenaError`` after ``MAX_GROUPS``."""
        self.check_open()
        cdef bytes raw = name.encode()
        cdef int group = mgc_control_add_group(self.control, <const uint8_t *> <const char *> raw, len(raw), budget)
        if group < 0:
            raise ArenaError(f"group {name!r}: expected at most {MGC_MAX_GROUPS} groups, with names of at most "
                             f"{MGC_GROUP_NAME_BYTES} bytes")
        return group

    def groups(self) -> list:
        """(name, budget in bytes) of each group's row, in the order of their ids. A name that is no text is None."""
        self.check_open()
        cdef const mgc_group_row *row
        found = []
        for i in range(mgc_control_groups(self.control)):
            row = mgc_control_group(self.control, i)
            try:
                name = (<const char *> row.name)[:min(row.name_length, MGC_GROUP_NAME_BYTES)].decode()
            except UnicodeDecodeError:
                name = None
            found.append((name, row.budget))
        return found

    @property
    def attached(self) -> int:
        """How many workers had a region at the last ``reap``."""
        self.check_open()
        return mgc_control_attached(self.control)

    def spare_regions(self, uint32_t spare) -> int:
        """Commit regions until ``spare`` are free above all claimed ones, and return how many are.

        A worker takes any free region; one that forks with live views needs one above its own for the child.
        """
        self.check_open()
        return mgc_control_spare_regions(self.control, spare)

    def reap(self) -> int:
        """Free the regions of dead workers, and return their number."""
        self.check_open()
        return mgc_control_reap(self.control)

    def drain(self, now=None) -> int:
        """Bring the workers' touches into the LRU lists and count them in the rates; returns their number.

        Rates are as of the last drain: ``now``, in seconds since the control segment was made (default: what the clock
        says), which does not go back.
        """
        self.check_open()
        cdef uint32_t units = <uint32_t> <uint64_t> ((time.monotonic() - self.opened if now is None else now) * MGC_RATE_SECOND)
        if units > self.control.now:
            self.control.now = units
        return mgc_control_drain(self.control)

    @property
    def touches_lost(self) -> int:
        """Touches that were overwritten before they were drained."""
        self.check_open()
        return self.control.touches_lost

    def count_request(self, uint32_t group) -> None:
        """Count one get of a peer's."""
        self.check_open()
        if group >= MGC_MAX_GROUPS:
            raise IndexError(f"group {group}: expected less than {MGC_MAX_GROUPS}")
        mgc_control_count_request(self.control, group)

    def count(self, uint32_t group, uint32_t counter, uint64_t n=1) -> None:
        """Add to the coordinator's own counters of a group."""
        self.check_open()
        if group >= MGC_MAX_GROUPS or counter >= MGC_COUNTERS:
            raise IndexError(f"counter {counter} of group {group}: expected less than {MGC_COUNTERS} and "
                             f"{MGC_MAX_GROUPS}")
        mgc_add(<atomic64 *> (self.control.base + MGC_TOTALS_OFFSET) + group * MGC_COUNTERS + counter, n)


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

    def reserve(self, bytes key not None, uint64_t size, bint hot=False):
        """Make room for a value of ``size`` bytes and return a ``Reservation``; None when it cannot be cached now."""
        cdef Reservation reservation = Reservation.__new__(Reservation)
        self.check_open()
        if self.retired or mgc_arena_reserve(&self.arena, <const uint8_t *> <const char *> key, len(key), size, hot, &reservation.reserved):
            return None
        reservation.arena = self
        return reservation

    def put(self, bytes key not None, value, bint hot=False) -> bool:
        """Cache a value (bytes-like), in place of the key's old one. False when it cannot be cached now."""
        cdef Py_buffer source
        PyObject_GetBuffer(value, &source, 0)
        cdef Reservation reservation
        try:
            reservation = self.reserve(key, source.len, hot)
            if reservation is None:
                return False
            memcpy(reservation.reserved.value, source.buf, source.len)
        finally:
            PyBuffer_Release(&source)
        return reservation.publish()

    def find(self, bytes key not None):
        """A ``memoryview`` of the value, good until the next call on this arena, or None. A find is a touch."""
        cdef const uint8_t *value
        cdef uint64_t length
        self.check_open()
        if not mgc_arena_find(&self.arena, <const uint8_t *> <const char *> key, len(key), &value, &length):
            return None
        return PyMemoryView_FromMemory(<char *> value, length, PyBUF_READ)

    def serve(self, bytes key not None):
        """For a peer's request: ``find``, and the key's rate (to 3 %). A request that is served is counted as one."""
        cdef const uint8_t *value
        cdef uint64_t length
        cdef double minute_qps
        self.check_open()
        if not mgc_arena_serve(&self.arena, <const uint8_t *> <const char *> key, len(key), &value, &length, &minute_qps):
            return None
        return PyMemoryView_FromMemory(<char *> value, length, PyBUF_READ), minute_qps

    def minute_qps(self, bytes key not None) -> float:
        """Requests per second for a key, of workers and peers, in the last minute; 0.0 where it is not cached."""
        self.check_open()
        return mgc_arena_minute_qps(&self.arena, <const uint8_t *> <const char *> key, len(key))

    def remove(self, bytes key not None) -> bool:
        """Drop a key's entry (Go: ``lru.Cache.Remove``)."""
        self.check_open()
        return mgc_arena_remove(&self.arena, <const uint8_t *> <const char *> key, len(key))

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

        False, and the room is given back, when the reservation was abandoned or the arena retired or closed meanwhile.
        """
        cdef Arena arena = self.arena
        if self.exports:
            raise BufferError(f"publish: {self.exports} memoryviews of the value are left; release them first")
        if arena is None or arena.retired or not arena.open:
            self.give_back()
            return False
        self.arena = None
        mgc_arena_publish(&arena.arena, &self.reserved)
        return True

    def abandon(self) -> None:
        """Give the room back: now, or when the last memoryview that could still write to it is gone."""
        self.abandoned = True
        if not self.exports:
            self.give_back()

    def __dealloc__(self):
        self.give_back()
