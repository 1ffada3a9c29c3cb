# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A worker's place in shared memory: the region with its pins, the mappings, and what forks do to them.

Thin: the protocol is in reader.h. This module adds the free list of pins (guarded by the GIL), and forks.
"""

cimport cython
from cpython.mem cimport PyObject_Free
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EBADF, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close as posix_close

from mpgroupcache.shm._core cimport (
    MADV_DOFORK, MADV_DONTFORK, MADV_WIPEONFORK, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, MAP_SHARED, MGC_CONTROL_MAGIC,
    MGC_CONTROL_SIZE, MGC_COUNTERS, MGC_GATE_LOCK, MGC_LAYOUT_VERSION, MGC_MAX_GROUPS, MGC_NO_REGION, MGC_PAGE, MGC_PINS,
    MGC_REGION_STRIDE, MGC_SEGMENT_LIVE, MGC_WRITER_LOCK, PROT_READ, PROT_WRITE, madvise, mgc_cleared, mgc_control_header,
    mgc_counters, mgc_lock, mgc_region, mgc_region_adopt, mgc_region_claim, mgc_region_copy_pins, mgc_region_leave,
    mgc_region_unmap, mgc_regions_held, mgc_server_requests, mgc_sum_counters, mgc_unlock, mmap, munmap,
)

import os

from mpgroupcache.errors import AlreadyRunning, ArenaError

cdef extern from "<fcntl.h>" nogil:
    int O_CLOEXEC, O_NOFOLLOW, O_RDWR
    int posix_open "open"(const char *path, int flags)


PINS = MGC_PINS
COUNTERS = MGC_COUNTERS
MAX_GROUPS = MGC_MAX_GROUPS
LAYOUT_VERSION = MGC_LAYOUT_VERSION
CONTROL_SIZE = MGC_CONTROL_SIZE


# ---- Forks ----------------------------------------------------------------------------------------------------------

# The number of this process in its line of forks: readers remember the one they were made in. The page is wiped in every
# child, also of a fork that ran no hooks (a C library's): there it reads 0, which no reader ever has.
process_epoch = <uint64_t *> mmap(NULL, MGC_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
cdef uint64_t next_epoch = 1

if process_epoch == MAP_FAILED or madvise(process_epoch, MGC_PAGE, MADV_WIPEONFORK) != 0:
    raise OSError(errno, "cannot set up the page that tells a fork: Linux 4.14 or later is needed")
process_epoch[0] = next_epoch


def forked() -> bool:
    """Whether this process is the child of a fork that ran no hooks; ``renew_epoch`` ends that."""
    return process_epoch[0] == 0


def renew_epoch() -> None:
    """Make every inherited reader unusable for lookups: called in a child, before it makes its own."""
    global next_epoch
    next_epoch += 1
    process_epoch[0] = next_epoch


# ---- Mappings -------------------------------------------------------------------------------------------------------

cdef int open_file(str path, int flags) except -1:
    cdef int fd = posix_open(os.fsencode(path), flags | O_CLOEXEC | O_NOFOLLOW)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), path)
    return fd


@cython.final
cdef class Mapping:
    """A file mapped read-only; unmapped with its last reference. No descriptor is kept: daemons close them all."""

    def __cinit__(self, int fd, size_t size):
        cdef void *base = NULL
        if size:
            base = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0)
            if base == MAP_FAILED:
                raise OSError(errno, os.strerror(errno))
        self.base = <const uint8_t *> base
        self.size = size

    def __dealloc__(self):
        # Where a fork did not take it along, what is there now is somebody else's.
        if self.base != NULL and (self.epoch == 0 or self.epoch == process_epoch[0]):
            munmap(<void *> self.base, self.size)

    cdef void set_inherited(self, bint inherited) noexcept:
        """Whether children have it, too; ``epoch`` says whose it is."""
        self.epoch = process_epoch[0]
        madvise(<void *> self.base, self.size, MADV_DOFORK if inherited else MADV_DONTFORK)


cdef class Child:
    """What one fork has made for its child, between its hooks."""


def lock_writer(int fd) -> None:
    """Become the writer of the control segment behind ``fd``, for as long as that open file description lives.

    Raises ``AlreadyRunning`` when another has the lock, ``ArenaError`` where the file cannot be locked.
    """
    cdef int error = mgc_lock(fd, MGC_WRITER_LOCK)
    if error == -EAGAIN:
        raise AlreadyRunning("the control segment is locked by another living coordinator")
    if error:
        raise ArenaError(f"the control segment cannot be locked: {os.strerror(-error)}")


def try_gate(int fd) -> bool:
    """Take the gate's lock of the control segment behind ``fd``, if nobody has it. Raises ``ArenaError``."""
    cdef int error = mgc_lock(fd, MGC_GATE_LOCK)
    if error and error != -EAGAIN:
        raise ArenaError(f"the control segment's gate cannot be locked: {os.strerror(-error)}")
    return error == 0


def leave_gate(int fd) -> None:
    """Give the gate's lock back."""
    mgc_unlock(fd, MGC_GATE_LOCK)


def unlock(int fd) -> None:
    """Give back the gate's lock, and the writer's."""
    mgc_unlock(fd, MGC_WRITER_LOCK)
    mgc_unlock(fd, MGC_GATE_LOCK)


def regions_held(int fd, bint leaving) -> bool:
    """Whether a process has a region of the control segment behind ``fd``; ``leaving``: also one that is about to end.

    Raises ``OSError``. It holds while the caller has the gate's lock and the writer's.
    """
    cdef int held = mgc_regions_held(fd, leaving)
    if held < 0:
        raise OSError(-held, os.strerror(-held))
    return held != 0


# ---- The reader -----------------------------------------------------------------------------------------------------

@cython.no_gc  # refers to mappings alone: never a cycle, and views need all of it until they are gone
@cython.final
cdef class Reader:
    """This process's place in one instance: the control segment, a region of its own, and the arenas it attached.

    Guarantees: a region is written by one process only. The lock that keeps it is held by the mapping, so it ends with
    the process or with the last view, not before.

    A fork runs ``before_fork``, then ``after_fork_in_parent`` or, behind ``renew_epoch``, ``after_fork_in_child``, all with
    one ``who``: the thread, or greenlet, that forks. Several may be between these hooks at a time, and a reader that was
    made there knows nothing of the fork. A hook that a signal handler's exception kept from running is made up for when
    the same ``who`` forks again.
    """

    def __cinit__(self, str path not None):
        cdef struct_stat status
        self.number = self.control_fd = -1
        self.arenas = []
        self.children = {}
        self.path = path
        self.control_fd = open_file(path, O_RDWR)
        if fstat(self.control_fd, &status) != 0:
            raise OSError(errno, os.strerror(errno), path)
        self.inode, self.device = status.st_ino, status.st_dev
        if <uint64_t> status.st_size != MGC_CONTROL_SIZE:
            raise ArenaError(f"control segment {path}: got {status.st_size} bytes, expected {MGC_CONTROL_SIZE}; "
                             "the coordinator is of another version of mpgroupcache")
        self.control = Mapping(self.control_fd, MGC_CONTROL_SIZE)
        cdef const mgc_control_header *header = <const mgc_control_header *> self.control.base
        if header.magic != MGC_CONTROL_MAGIC or header.version != MGC_LAYOUT_VERSION:
            raise ArenaError(f"control segment {path}: got layout {header.version}, expected {MGC_LAYOUT_VERSION}; "
                             "workers and coordinator must be of one version of mpgroupcache")
        if header.state != MGC_SEGMENT_LIVE:
            raise ArenaError(f"control segment {path} is retired: its coordinator has ended")
        self.lookup_epoch = self.pin_epoch = process_epoch[0]
        self.claim()
        cdef int pin
        for pin in range(MGC_PINS - 1, 0, -1):  # low pins on top: scans read up to the highest ever used
            self.free_pins[self.free_count] = pin
            self.free_count += 1

    # Plain C: it runs at interpreter exit too, when there are no modules left, and within an assignment.
    def __dealloc__(self):
        if self.pin_epoch == process_epoch[0]:  # else the parent's, and not mapped here
            if self.region != NULL:
                mgc_region_unmap(self.region)
            self._drop_children()
        if self._owns_descriptor():
            posix_close(self.control_fd)
        cdef PyObject *view
        for view in self.views:  # all of them have ended: a live one refers to its reader
            if view != NULL:
                PyObject_Free(view)

    cdef bint _owns_descriptor(self) noexcept:
        # A daemon may have closed it, and its number may be another file's by now.
        cdef struct_stat status
        return (self.control_fd >= 0 and fstat(self.control_fd, &status) == 0 and status.st_ino == self.inode
                and status.st_dev == self.device)

    cdef int _claim(self, int above, mgc_region **region) noexcept:
        """As ``mgc_region_claim()``, which says why the GIL is not let go of."""
        if not self._owns_descriptor():
            return -EBADF
        return mgc_region_claim(self.control_fd, <const mgc_control_header *> self.control.base, above, region)

    def claim(self) -> bool:
        """Whether this process has a region here; where it has none, one is claimed if that can be had.

        At any time: a fork whose hooks it comes between leaves its child without the region, and without pins in it.
        """
        if self.region == NULL and self.lookup_epoch == process_epoch[0]:
            self.refused = self._claim(-1, &self.region)
            if self.region != NULL:
                madvise(self.region, MGC_REGION_STRIDE, MADV_DONTFORK)
                self.number, self.refused = self.refused, 0
        return self.usable

    @property
    def refusal(self) -> str:
        """Why there is no region."""
        if self.refused == MGC_NO_REGION:
            return "no free region"
        return f"no region ({OSError(-self.refused, os.strerror(-self.refused))})"

    @property
    def generation(self) -> int:
        """The region's count of claims, which tells two owners of one region apart; 0 without a region."""
        return self.region.generation if self.region != NULL else 0

    @property
    def live_pins(self) -> int:
        """Pins that views of this process hold."""
        return MGC_PINS - 1 - self.free_count - self.deferred_count

    @property
    def usable(self) -> bool:
        """Whether this process may look up through this reader."""
        return self.lookup_epoch == process_epoch[0] and self.region != NULL

    def reads(self, str path not None) -> bool:
        """Whether this process can look up through this reader, and ``path`` is its control segment, still in use."""
        try:
            status = os.stat(path)
        except OSError:
            return False
        return (self.usable and not self.retired and status.st_ino == self.inode and status.st_dev == self.device)

    def leave(self) -> None:
        """Say that this process is about to end. What it has pinned stays so until then."""
        if self.region != NULL and self.pin_epoch == process_epoch[0]:
            mgc_region_leave(self.region)

    @property
    def retired(self) -> bool:
        """Whether the coordinator has ended this instance."""
        return (<const mgc_control_header *> self.control.base).state != MGC_SEGMENT_LIVE

    def counters(self, uint32_t group):
        """The host's counts of a group, in the order of ``struct mgc_counters``."""
        cdef uint64_t sums[16]
        if group >= MGC_MAX_GROUPS:
            raise IndexError(f"group id {group}: expected less than {MGC_MAX_GROUPS}")
        mgc_sum_counters(self.control.base, group, sums)
        return tuple([sums[i] for i in range(MGC_COUNTERS)])

    def cleared(self, uint32_t group):
        """The hits and loads of a group that were counted when it was cleared last."""
        cdef uint64_t hits, loads
        if group >= MGC_MAX_GROUPS:
            raise IndexError(f"group id {group}: expected less than {MGC_MAX_GROUPS}")
        mgc_cleared(self.control.base, group, &hits, &loads)
        return hits, loads

    def server_requests(self, uint32_t group) -> int:
        """How many gets of a group came from peers."""
        if group >= MGC_MAX_GROUPS:
            raise IndexError(f"group id {group}: expected less than {MGC_MAX_GROUPS}")
        return mgc_server_requests(self.control.base, group)

    def before_fork(self, who) -> None:
        """Claim a region for the child and copy the live pins into it. Until ``after_fork_*`` no pin is cleared."""
        cdef Child child
        if self.pin_epoch != process_epoch[0] or self.region == NULL:
            return
        self._end_fork(who)
        child = self.children[who] = Child()
        self.forks += 1
        if self.free_count == MGC_PINS - 1:
            return
        # Higher than ours: scans ascend, so one that passed ours before the copy has seen the originals.
        child.number = self._claim(self.number, &child.region)
        if child.region != NULL:
            mgc_region_copy_pins(child.region, self.region)
            self._hand_down(1)

    def after_fork_in_parent(self, who) -> None:
        """Let go of the child's region, and clear the pins that were given back meanwhile."""
        self._end_fork(who)
        if not self.forks:
            self._clear_deferred()

    cdef void _end_fork(self, who):
        cdef Child child = self.children.pop(who, None)
        if child is None:
            return
        self.forks -= 1
        if child.region != NULL:
            mgc_region_unmap(child.region)  # the child's mapping keeps the lock; if the fork failed, it is free
            self._hand_down(-1)

    cdef void _hand_down(self, int change) noexcept:
        """Children have the arenas mapped while one of them has pins there: elsewhere what a ``memoryview`` shows, which
        cannot be refused as a view can, would be other bytes by and by. There it is a fault."""
        cdef Mapping arena
        cdef uint32_t before = self.handed_down
        self.handed_down += change
        if (before == 0) != (self.handed_down == 0):
            for arena in self.arenas:
                arena.set_inherited(self.handed_down != 0)

    cdef void add_arena(self, Mapping arena):
        """Have it mapped for as long as this reader lives."""
        arena.set_inherited(self.handed_down != 0)
        self.arenas.append(arena)

    def after_fork_in_child(self, who) -> None:
        """Take over the copied pins. Views whose pin could not be copied are unusable from now on.

        ``renew_epoch`` comes first. The parent's region is not even mapped here.
        """
        cdef Child child = self.children.pop(who, None)
        cdef Mapping arena
        self._drop_children()  # of other threads' forks
        self.region = NULL if child is None else child.region
        self.number = -1 if self.region == NULL else child.number
        self.forks = 0
        if self.handed_down:  # else they are not mapped here
            for arena in self.arenas:
                if self.region != NULL:
                    arena.set_inherited(False)
                else:
                    munmap(<void *> arena.base, arena.size)
        self.handed_down = 0
        if self.region != NULL:
            madvise(self.region, MGC_REGION_STRIDE, MADV_DONTFORK)
            mgc_region_adopt(self.region)
            self.pin_epoch = process_epoch[0]
        self._clear_deferred()

    cdef void _drop_children(self) noexcept:
        cdef Child child
        for child in self.children.values():
            if child.region != NULL:
                mgc_region_unmap(child.region)
        self.children.clear()

    cdef void _clear_deferred(self) noexcept:
        cdef uint32_t i, count = self.deferred_count
        self.deferred_count = 0
        for i in range(count):
            self.give_pin(self.deferred[i])


# ---- Shared by a process and its children ---------------------------------------------------------------------------

cdef extern from *:
    """
    static uint64_t mgc_shared_add(void *counter, uint64_t n) {
        return atomic_fetch_add_explicit((_Atomic uint64_t *)counter, n, memory_order_relaxed);
    }
    """
    uint64_t mgc_shared_add(void *, uint64_t) nogil


cdef class SharedCounter:
    """A 64-bit counter in a page that children inherit: threads and processes add to it atomically."""

    cdef uint64_t *page

    def __cinit__(self):
        self.page = <uint64_t *> mmap(NULL, MGC_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        if self.page == MAP_FAILED:
            self.page = NULL
            raise MemoryError("no page for a shared counter")

    def __dealloc__(self):
        if self.page != NULL:
            munmap(self.page, MGC_PAGE)

    def add(self, int64_t n) -> None:
        mgc_shared_add(self.page, <uint64_t> n)

    def get(self) -> int:
        return <int64_t> mgc_shared_add(self.page, 0)
