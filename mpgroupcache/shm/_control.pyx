# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The control segment, as its writer has it. Thin: the rules are in writer.h.

This code assumes that one thread at a time calls it, with the GIL held.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport ENOMEM, EPROTO, ESTALE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from mpgroupcache.shm._corewriter cimport (
    MGC_CONTROL_SIZE, MGC_COUNTERS, MGC_FOREVER, MGC_GROUP_NAME_BYTES, MGC_LONGEST, MGC_MAX_GROUPS, MGC_RATE_SECOND,
    MGC_TOTALS_OFFSET, atomic64, mgc_add, mgc_control, mgc_control_add_group, mgc_control_adopt, mgc_control_advance,
    mgc_control_attached, mgc_control_changes, mgc_control_close, mgc_control_count_request, mgc_control_drain,
    mgc_control_format, mgc_control_group, mgc_control_groups, mgc_control_note_clear, mgc_control_raise_changes, mgc_control_reap,
    mgc_control_retire, mgc_control_sign, mgc_control_spare_regions, mgc_control_stamp, mgc_group_ages, mgc_group_row,
    mgc_segment_retire, mgc_set_ages,
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


cdef uint64_t in_ns(double seconds) noexcept:
    if not seconds * 1e9 < <double> MGC_LONGEST:
        return MGC_FOREVER
    return <uint64_t> (seconds * 1e9) if seconds > 0 else 0


cdef double in_seconds(uint64_t ns) noexcept:
    return float("inf") if ns == MGC_FOREVER else ns / 1e9


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

    cdef int check_group(self, uint32_t group) except -1:
        self.check_open()
        if group >= MGC_MAX_GROUPS:
            raise IndexError(f"group {group}: expected less than {MGC_MAX_GROUPS}")
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
        self.check_group(group)
        mgc_control_count_request(self.control, group)

    def count(self, uint32_t group, uint32_t counter, uint64_t n=1) -> None:
        """Add to the coordinator's own counters of a group."""
        self.check_group(group)
        if counter >= MGC_COUNTERS:
            raise IndexError(f"counter {counter} of group {group}: expected less than {MGC_COUNTERS}")
        mgc_add(<atomic64 *> (self.control.base + MGC_TOTALS_OFFSET) + group * MGC_COUNTERS + counter, n)

    def raise_changes(self, uint32_t group) -> int:
        """Begin a change of the group's values: raise its change count, and return it. First of all."""
        self.check_group(group)
        return mgc_control_raise_changes(self.control, group)

    def changes(self, uint32_t group) -> int:
        """The group's change count."""
        self.check_group(group)
        return mgc_control_changes(self.control, group)

    def note_clear(self, uint32_t group) -> None:
        """Remember what is counted of a group, which is about to be cleared."""
        self.check_group(group)
        mgc_control_note_clear(self.control, group)

    def set_ages(self, uint32_t group, double ttl, double stale, double stale_if_error, double copy_ttl,
                 double negative_ttl, double jitter) -> None:
        """Note the ages of a group, in seconds. inf: not bounded."""
        cdef mgc_group_ages ages
        self.check_group(group)
        ages.ttl, ages.stale, ages.stale_if_error = in_ns(ttl), in_ns(stale), in_ns(stale_if_error)
        ages.copy_ttl, ages.negative_ttl, ages.jitter = in_ns(copy_ttl), in_ns(negative_ttl), jitter
        mgc_set_ages(self.control, group, &ages)

    def ages(self, uint32_t group) -> tuple:
        """What ``set_ages`` was given last, here or by a dead coordinator, in its order."""
        self.check_group(group)
        cdef const mgc_group_ages *ages = &mgc_control_group(self.control, group).ages
        # Whatever is in the segment is usable: a worker may have written to it.
        jitter = ages.jitter if 0 <= ages.jitter <= 1 else 0.0
        return (in_seconds(ages.ttl), in_seconds(ages.stale), in_seconds(ages.stale_if_error),
                in_seconds(ages.copy_ttl), in_seconds(ages.negative_ttl), jitter)

    def advance(self, double seconds) -> None:
        """Move the instance's clock, by which entries age. For tests."""
        self.check_open()
        mgc_control_advance(self.control, <int64_t> (seconds * 1e9))
