# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The coordinator's side of shared memory: the control segment's writer, and arenas. Thin: the rules are in writer.h."""

from cpython.buffer cimport PyBUF_READ, PyBUF_WRITABLE, PyBUF_WRITE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import os

from mpgroupcache.errors import ArenaError, AlreadyRunning

cdef extern from "reader.h" nogil:
    enum: MGC_WRITER_LOCK
    int mgc_lock(int fd, uint32_t byte)

cdef extern from "writer.h":
    enum: MGC_TOO_LARGE, MGC_NO_ROOM, MGC_COUNTERS, MGC_MAX_GROUPS, MGC_MAX_KEY, MGC_GROUP_NAME_BYTES
    size_t MGC_CONTROL_SIZE, MGC_TOTALS_OFFSET
    ctypedef struct mgc_counters:
        pass
    struct mgc_list_stats:
        uint64_t bytes
        uint64_t items
        uint64_t evictions
    struct mgc_arena_header:
        uint64_t committed
        uint64_t limbo_bytes
        mgc_list_stats lists[2]
    struct mgc_control:
        uint8_t *base
        uint64_t touches_lost
    struct mgc_arena:
        mgc_arena_header *header
        uint64_t budget
        uint64_t max_entry
        int short_of_memory
    struct mgc_reservation:
        uint8_t *value
        uint64_t length
    struct mgc_arena_options:
        uint32_t arena
        uint32_t incarnation
        uint64_t budget
        uint64_t max_entry
        uint64_t seed
        uint8_t boot_id[16]
    void mgc_segment_retire(int)
    int mgc_control_format(mgc_control *, uint8_t *, int, const uint8_t *)
    void mgc_control_close(mgc_control *)
    void mgc_control_retire(mgc_control *)
    int mgc_control_add_group(mgc_control *, const uint8_t *, size_t, uint64_t)
    uint32_t mgc_control_spare_regions(mgc_control *, uint32_t)
    uint32_t mgc_control_reap(mgc_control *)
    size_t mgc_control_drain(mgc_control *)
    uint64_t mgc_arena_size(uint64_t)
    int mgc_arena_format(mgc_arena *, uint8_t *, int, mgc_control *, const mgc_arena_options *)
    void mgc_arena_retire(mgc_arena *)
    void mgc_arena_close(mgc_arena *)
    int mgc_arena_reserve(mgc_arena *, const uint8_t *, size_t, uint64_t, uint32_t, mgc_reservation *)
    int mgc_arena_publish(mgc_arena *, const mgc_reservation *)
    void mgc_arena_abandon(mgc_arena *, const mgc_reservation *)
    int mgc_arena_find(mgc_arena *, const uint8_t *, size_t, const uint8_t **, uint64_t *)
    int mgc_arena_remove(mgc_arena *, const uint8_t *, size_t)
    void mgc_arena_sweep(mgc_arena *)
    size_t mgc_arena_check(const mgc_arena *, void (*)(void *, const char *) noexcept, void *)
    ctypedef uint64_t atomic64 "_Atomic uint64_t"
    void mgc_add(atomic64 *, uint64_t)


CONTROL_SIZE = MGC_CONTROL_SIZE
MAX_GROUPS = MGC_MAX_GROUPS


def arena_size(uint64_t budget) -> int:
    """The size of the sparse file for an arena of this budget, in bytes."""
    return mgc_arena_size(budget)


def lock_writer(int fd) -> None:
    """Become the coordinator of the control segment behind ``fd``, for as long as that open file description lives.

    Raises ``AlreadyRunning`` when another holds it.
    """
    cdef int error = mgc_lock(fd, MGC_WRITER_LOCK)
    if error:
        raise AlreadyRunning(f"the control segment is locked by a living coordinator ({os.strerror(-error)})")


def retire_segment(str path not None) -> None:
    """Tell the workers that attached a dead instance's segment to let go of it. What is no segment of ours is left alone."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        mgc_segment_retire(fd)
    finally:
        os.close(fd)


cdef class Control:
    """The writer of a control segment: ``memory`` is its whole buffer, ``fd`` a locked description of it."""

    cdef mgc_control *control
    cdef Py_buffer memory
    cdef bint held               # the buffer
    cdef readonly bytes boot_id

    def __cinit__(self, memory, int fd, bytes boot_id not None):
        PyObject_GetBuffer(memory, &self.memory, PyBUF_WRITABLE)
        self.held = True
        if self.memory.len < <Py_ssize_t> MGC_CONTROL_SIZE or len(boot_id) != 16:
            raise ValueError(f"control segment: got {self.memory.len} bytes, expected {MGC_CONTROL_SIZE}")
        self.control = <mgc_control *> calloc(1, sizeof(mgc_control))
        if self.control == NULL:
            raise MemoryError()
        self.boot_id = boot_id
        cdef int error = mgc_control_format(self.control, <uint8_t *> self.memory.buf, fd, <const uint8_t *> <const char *> boot_id)
        if error:
            raise ArenaError(f"no shared memory for the control segment: {os.strerror(-error)}; enlarge /dev/shm")

    def __dealloc__(self):
        self.close()

    cpdef void close(self):
        """Let go of the memory. Arenas are closed before."""
        if self.control != NULL:
            mgc_control_close(self.control)
            free(self.control)
            self.control = NULL
        if self.held:
            self.held = False
            PyBuffer_Release(&self.memory)

    def retire(self) -> None:
        """Tell attached workers that this instance has ended."""
        mgc_control_retire(self.control)

    def add_group(self, str name not None, uint64_t budget) -> int:
        """Add a group's row and return its id. ``ArenaError`` after ``MAX_GROUPS``."""
        cdef bytes raw = name.encode()
        cdef int group = mgc_control_add_group(self.control, <const uint8_t *> <const char *> raw, len(raw), budget)
        if group < 0:
            raise ArenaError(f"group {name!r}: expected at most {MGC_MAX_GROUPS} groups, with names of at most "
                             f"{MGC_GROUP_NAME_BYTES} bytes")
        return group

    def spare_regions(self, uint32_t spare) -> int:
        """Commit regions until ``spare`` are free, and return how many are."""
        return mgc_control_spare_regions(self.control, spare)

    def reap(self) -> int:
        """Free the regions of dead workers, and return their number."""
        return mgc_control_reap(self.control)

    def drain(self) -> int:
        """Bring the workers' touches into the LRU lists, and return their number."""
        return mgc_control_drain(self.control)

    @property
    def touches_lost(self) -> int:
        """Touches that were overwritten before they were drained."""
        return self.control.touches_lost

    def count(self, uint32_t group, uint32_t counter, uint64_t n=1) -> None:
        """Add to the coordinator's own counters of a group."""
        if group >= MGC_MAX_GROUPS or counter >= MGC_COUNTERS:
            raise IndexError((group, counter))
        mgc_add(<atomic64 *> (self.control.base + MGC_TOTALS_OFFSET) + group * MGC_COUNTERS + counter, n)


cdef void report_line(void *context, const char *line) noexcept:
    (<list> context).append((<bytes> line).decode())


cdef class Arena:
    """One group's arena: the index, the entries, the main and hot LRU lists (Go: a ``Group``'s two ``cache``s)."""

    cdef mgc_arena arena
    cdef Control control
    cdef Py_buffer memory
    cdef bint held               # the buffer
    cdef bint open

    def __cinit__(self, Control control not None, memory, int fd, *, uint32_t group, uint32_t incarnation,
                  uint64_t budget, uint64_t max_entry, uint64_t seed):
        cdef mgc_arena_options options
        PyObject_GetBuffer(memory, &self.memory, PyBUF_WRITABLE)
        self.held = True
        if <uint64_t> self.memory.len < mgc_arena_size(budget) or group >= MGC_MAX_GROUPS:
            raise ValueError(f"arena of {budget} bytes: got a segment of {self.memory.len} bytes for group {group}, "
                             f"expected arena_size() and less than {MGC_MAX_GROUPS}")
        options.arena, options.incarnation = group, incarnation
        options.budget, options.max_entry, options.seed = budget, max_entry, seed
        memcpy(options.boot_id, <const char *> control.boot_id, 16)
        self.control = control
        cdef int error = mgc_arena_format(&self.arena, <uint8_t *> self.memory.buf, fd, control.control, &options)
        if error:
            raise ArenaError(f"no shared memory for an arena of {budget} bytes: {os.strerror(-error)}; "
                             "enlarge /dev/shm (docker run --shm-size) or lower cache_bytes")
        self.open = True

    def __dealloc__(self):
        self.close()

    cpdef void close(self):
        """Let go of the memory; the segment stays as it is."""
        if self.open:
            self.open = False
            mgc_arena_close(&self.arena)
        if self.held:
            self.held = False
            PyBuffer_Release(&self.memory)

    cdef int check_open(self) except -1:
        if not self.open:
            raise ValueError("the arena is closed")
        return 0

    def retire(self) -> None:
        """Tell attached workers to let go: their next get is a miss."""
        self.check_open()
        mgc_arena_retire(&self.arena)

    def reserve(self, bytes key not None, uint64_t size, bint hot=False):
        """Make room for a value of ``size`` bytes and return a ``Reservation``; None when it cannot be cached now."""
        cdef Reservation reservation = Reservation.__new__(Reservation)
        self.check_open()
        if mgc_arena_reserve(&self.arena, <const uint8_t *> <const char *> key, len(key), size, hot, &reservation.reserved):
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
        return self.arena.budget

    @property
    def max_entry(self) -> int:
        """The largest key plus value, in bytes."""
        return self.arena.max_entry

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
        """Whether shared memory ran out: the arena stays as it is until ``retry_memory``."""
        return self.arena.short_of_memory != 0

    def retry_memory(self) -> None:
        """Try to commit memory again when it is next needed."""
        self.arena.short_of_memory = 0

    def list_stats(self, int which):
        """(bytes, items, evictions) of the main (0) or hot (1) list."""
        self.check_open()
        cdef mgc_list_stats *stats = &self.arena.header.lists[which & 1]
        return stats.bytes, stats.items, stats.evictions


cdef class Reservation:
    """Room for one value: fill it through the buffer protocol, then ``publish``; dropped, it is abandoned."""

    cdef Arena arena             # None: published or abandoned
    cdef mgc_reservation reserved
    cdef Py_ssize_t exports

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.arena is None:
            raise BufferError("the reservation was published or abandoned")
        PyBuffer_FillInfo(buffer, self, self.reserved.value, self.reserved.length, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1

    def publish(self) -> bool:
        """Let readers see the entry. ``BufferError`` while a memoryview of the value could still write to it."""
        if self.exports:
            raise BufferError(f"publish: {self.exports} memoryviews of the value are left; release them first")
        arena, self.arena = self.arena, None
        if arena is None or not arena.open:
            return False
        return mgc_arena_publish(&(<Arena> arena).arena, &self.reserved) == 0

    def abandon(self) -> None:
        """Give the room back."""
        arena, self.arena = self.arena, None
        if arena is not None and arena.open:
            mgc_arena_abandon(&(<Arena> arena).arena, &self.reserved)

    def __dealloc__(self):
        self.abandon()
