# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The worker's side of shared memory: regions, the hit path of ``Group.get``, and ``ByteView``.

Thin: the protocol is in reader.h. This module adds what Python needs: the free list of pins (guarded by the GIL), the
lifetime of views, and forks.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport EAGAIN, ENOMEM, EPROTO, ESTALE, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close as posix_close

import os

from mpgroupcache.errors import ArenaError

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object)
    char *PyUnicode_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL
    bint PyUnicode_Check(object)
    bint PyBytes_Check(object)
    bint PyBytes_CheckExact(object)
    unsigned long PyThread_get_thread_ident()

cdef extern from "<fcntl.h>" nogil:
    int O_CLOEXEC, O_NOFOLLOW, O_RDONLY, O_RDWR
    int posix_open "open"(const char *path, int flags)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    void *MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK

cdef extern from "reader.h" nogil:
    enum: MGC_MISS, MGC_HIT, MGC_DETACHED, MGC_PINS, MGC_COPY_PIN, MGC_COUNTERS, MGC_MAX_KEY, MGC_SEGMENT_LIVE
    enum: MGC_LAYOUT_VERSION, MGC_MAX_GROUPS, MGC_PAGE, MGC_MAIN, MGC_HOT
    size_t MGC_CONTROL_SIZE, MGC_REGION_SIZE
    uint64_t MGC_CONTROL_MAGIC

    ctypedef struct mgc_counters:
        pass
    struct mgc_region:
        uint32_t generation
        mgc_counters counters[1]
    struct mgc_list_stats:
        uint64_t bytes
        uint64_t items
        uint64_t evictions
    struct mgc_arena_header:
        uint64_t budget
        uint64_t committed
        uint64_t limbo_bytes
        mgc_list_stats lists[2]
    struct mgc_control_header:
        uint64_t magic
        uint32_t version
        uint32_t state
    struct mgc_map:
        const uint8_t *base
        uint32_t arena
    struct mgc_hit:
        const uint8_t *value
        uint64_t length
    int mgc_get(const mgc_map *, mgc_region *, uint32_t, const uint8_t *, size_t, mgc_hit *)
    void mgc_unpin(mgc_region *, uint32_t)
    ctypedef uint64_t atomic64 "_Atomic uint64_t"
    void mgc_count(atomic64 *, uint64_t)
    int mgc_map_attach(mgc_map *, const void *, uint64_t)
    int mgc_region_claim(int, const mgc_control_header *, int, mgc_region **)
    void mgc_region_copy_pins(mgc_region *, const mgc_region *)
    void mgc_region_adopt(mgc_region *)
    void mgc_region_unmap(mgc_region *)
    void mgc_sum_counters(const void *, uint32_t, uint64_t *)

cdef extern from *:
    """
    static uint64_t mgc_shared_add(void *counter, uint64_t n) {
        return atomic_fetch_add_explicit((_Atomic uint64_t *)counter, n, memory_order_relaxed);
    }
    """
    uint64_t mgc_shared_add(void *, uint64_t) nogil


PINS = MGC_PINS
COUNTERS = MGC_COUNTERS
MAX_GROUPS = MGC_MAX_GROUPS
LAYOUT_VERSION = MGC_LAYOUT_VERSION
CONTROL_SIZE = MGC_CONTROL_SIZE


# ---- Forks ----------------------------------------------------------------------------------------------------------

# The number of this process in its line of forks: readers remember the one they were made in. The page is wiped in every
# child, also of a fork that ran no hooks (a C library's): there it reads 0, which no reader ever has.
cdef uint64_t *process_epoch = <uint64_t *> mmap(NULL, MGC_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
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

    cdef const uint8_t *base
    cdef readonly size_t size

    def __cinit__(self, int fd, size_t size):
        cdef void *base = NULL
        if size:
            base = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0)
            if base == MAP_FAILED:
                raise OSError(errno, os.strerror(errno))
        self.base = <const uint8_t *> base
        self.size = size

    def __dealloc__(self):
        if self.base != NULL:
            munmap(<void *> self.base, self.size)

    def view(self):
        """A ``ByteView`` of the whole file, which must never change or shrink."""
        return make_view(self, self.base, self.size)


@cython.no_gc  # refers to mappings alone: never a cycle, and views need all of it until they are gone
@cython.final
cdef class Reader:
    """This process's place in one instance: the control segment, a region of its own, and the arenas it attached.

    Guarantees: a region is written by one process only. The lock that keeps it is held by the mapping, so it ends with
    the process or with the last view, not before.

    A fork runs ``before_fork``, then ``after_fork_in_parent`` or, behind ``renew_epoch``, ``after_fork_in_child``: all in
    the thread that forks. Several threads may be between these hooks at a time.
    """

    cdef Mapping control
    cdef list arenas                 # of Mapping: views refer to the reader alone
    cdef mgc_region *region          # NULL: none was free, or let go of
    cdef readonly int number         # of the region; -1: none
    cdef uint64_t lookup_epoch       # of the process that may look up through this reader
    cdef uint64_t pin_epoch          # of the process whose pins are in `region`; differs in a child that inherited views
    cdef uint32_t forks              # threads between the hooks: no pin is cleared then, and gets copy
    cdef mgc_region *child_region    # claimed for the child of ...
    cdef int child_number
    cdef unsigned long fork_thread   # ... this thread
    cdef uint32_t free_count, deferred_count
    cdef uint16_t free_pins[1024]    # a stack; pin 0 is never in it
    cdef uint16_t deferred[1024]     # unpinned between the hooks
    cdef int control_fd              # to open the segment again at a fork, when its name may be another's
    cdef uint64_t inode, device
    cdef object __weakref__

    def __cinit__(self, str path not None):
        cdef struct_stat status
        self.number = self.child_number = self.control_fd = -1
        self.arenas = []
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
        self.number = self._claim(-1, &self.region)
        self.lookup_epoch = self.pin_epoch = process_epoch[0]
        if self.region != NULL:
            madvise(self.region, MGC_REGION_SIZE, MADV_DONTFORK)
        cdef int pin
        for pin in range(MGC_PINS - 1, 0, -1):  # low pins on top: scans read up to the highest ever used
            self.free_pins[self.free_count] = pin
            self.free_count += 1

    # Plain C: it runs at interpreter exit too, when there are no modules left, and within an assignment.
    def __dealloc__(self):
        if self.pin_epoch == process_epoch[0]:  # else the parent's, and not mapped here
            if self.region != NULL:
                mgc_region_unmap(self.region)
            if self.child_region != NULL:
                mgc_region_unmap(self.child_region)
        if self._owns_descriptor():
            posix_close(self.control_fd)

    cdef bint _owns_descriptor(self) noexcept:
        # A daemon may have closed it, and its number may be another file's by now.
        cdef struct_stat status
        return (self.control_fd >= 0 and fstat(self.control_fd, &status) == 0 and status.st_ino == self.inode
                and status.st_dev == self.device)

    cdef int _claim(self, int above, mgc_region **region) noexcept:
        """Claim a region; -1 where none is free. The GIL is not let go of: see ``mgc_region_claim()``."""
        cdef int number = -1
        if self._owns_descriptor():
            number = mgc_region_claim(self.control_fd, <const mgc_control_header *> self.control.base, above, region)
        return max(number, -1)

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

    cdef inline void give_pin(self, uint32_t pin) noexcept:
        if self.forks:  # also in the child, where other hooks may run before ours
            self.deferred[self.deferred_count] = pin
            self.deferred_count += 1
            return
        if self.pin_epoch != process_epoch[0] or self.region == NULL:
            return  # a fork that could not keep it: the pin is the parent's
        mgc_unpin(self.region, pin)
        self.free_pins[self.free_count] = pin
        self.free_count += 1

    def before_fork(self) -> None:
        """Claim a region for the child and copy the live pins into it. Until ``after_fork_*`` no pin is cleared."""
        if self.pin_epoch != process_epoch[0] or self.region == NULL:
            return
        self.forks += 1
        # Of two threads that fork at a time one has the region. The other's child cannot keep its views: it says so.
        if self.forks > 1 or self.free_count == MGC_PINS - 1:
            return
        # Higher than ours: scans ascend, so one that passed ours before the copy has seen the originals.
        self.child_number = self._claim(self.number, &self.child_region)
        self.fork_thread = PyThread_get_thread_ident()
        if self.child_region != NULL:
            mgc_region_copy_pins(self.child_region, self.region)

    def after_fork_in_parent(self) -> None:
        """Let go of the child's region, and clear the pins that were given back meanwhile."""
        if not self.forks:
            return
        if self.child_region != NULL and self.fork_thread == PyThread_get_thread_ident():
            mgc_region_unmap(self.child_region)  # the child's mapping keeps the lock; if the fork failed, it is free
            self.child_region = NULL
        self.forks -= 1
        if not self.forks:
            self._clear_deferred()

    def after_fork_in_child(self) -> None:
        """Take over the copied pins. Views whose pin could not be copied are unusable from now on.

        ``renew_epoch`` comes first. The parent's region is not even mapped here.
        """
        if self.child_region != NULL and self.fork_thread != PyThread_get_thread_ident():
            mgc_region_unmap(self.child_region)  # made for the child of another thread's fork
            self.child_region = NULL
        self.region, self.child_region = self.child_region, NULL
        self.number = self.child_number if self.region != NULL else -1
        self.forks = 0
        if self.region != NULL:
            madvise(self.region, MGC_REGION_SIZE, MADV_DONTFORK)
            mgc_region_adopt(self.region)
            self.pin_epoch = process_epoch[0]
        self._clear_deferred()

    cdef void _clear_deferred(self) noexcept:
        cdef uint32_t i, count = self.deferred_count
        self.deferred_count = 0
        for i in range(count):
            self.give_pin(self.deferred[i])


# ---- Views ----------------------------------------------------------------------------------------------------------

cdef inline ByteView make_view(object owner, const uint8_t *data, Py_ssize_t length):
    cdef ByteView view = ByteView.__new__(ByteView)
    view.owner = owner
    view.data = data
    view.length = length
    return view


@cython.no_gc  # refers to a reader, a mapping, bytes or another view: never a cycle
@cython.freelist(64)
@cython.final
cdef class ByteView:
    """An immutable view of a cached value (Go: ``ByteView``).

    It shows the bytes where they lie: in the arena, which keeps them unchanged for as long as this view, a slice or a
    ``memoryview`` of it lives. ``ByteView(value)`` makes one of ``bytes`` (kept), ``str`` (as UTF-8) or any
    bytes-like object (copied). Equal to equal bytes, text and views, and therefore not hashable.
    """

    cdef object owner           # Reader (with a pin), Mapping, bytes, or for a slice the view it is of; None: let go of
    cdef const uint8_t *data
    cdef Py_ssize_t length
    cdef Py_ssize_t holds       # memoryviews and slices of this view
    cdef uint32_t pin           # 0: none
    cdef bint released

    def __init__(self, value=b""):
        cdef Py_buffer buffer
        if self.owner is not None or self.released:
            raise TypeError("ByteView is immutable: __init__() cannot run again")
        if isinstance(value, str):
            value = value.encode()
        elif not PyBytes_CheckExact(value):
            PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE)
            try:
                value = PyBytes_FromStringAndSize(<const char *> buffer.buf, buffer.len)
            finally:
                PyBuffer_Release(&buffer)
        self.owner = value
        self.data = <const uint8_t *> PyBytes_AS_STRING(value)
        self.length = PyBytes_GET_SIZE(value)

    def __dealloc__(self):
        self.let_go()

    cdef inline void let_go(self) noexcept:
        """Give up the value: with the last of view, slices and memoryviews."""
        if self.pin:
            (<Reader> self.owner).give_pin(self.pin)
            self.pin = 0
        elif type(self.owner) is ByteView:
            (<ByteView> self.owner).drop_hold()
        self.owner = None

    cdef inline void drop_hold(self) noexcept:
        self.holds -= 1
        if self.released and self.holds == 0:
            self.let_go()

    cdef int check(self) except -1:
        """Whether the value may be read. Other code may run, and release the view, in every conversion of an argument:
        methods check after the last of them."""
        cdef ByteView root = self
        if self.released:
            raise ValueError("the ByteView was released; slice it or copy it with bytes() before release()")
        if type(self.owner) is ByteView:
            root = <ByteView> self.owner
        if root.pin and (<Reader> root.owner).pin_epoch != process_epoch[0]:
            raise ValueError("the ByteView came through a fork that could not keep it; get() it again in the child")
        return 0

    def release(self) -> None:
        """Give up the value now. Use after this is a ``ValueError``; slices and memoryviews stay good."""
        if not self.released:
            self.released = True
            if self.holds == 0:
                self.let_go()

    def __enter__(self):
        self.check()
        return self

    def __exit__(self, *exc_info):
        self.release()

    def __len__(self):
        self.check()
        return self.length

    def __getitem__(self, index):
        cdef Py_ssize_t start, stop, step, at
        cdef ByteView part
        if isinstance(index, slice):
            start, stop, step = index.indices(self.length)
            self.check()
            if step != 1:
                raise ValueError(f"ByteView slices have step 1, got {step}; use bytes(view)[{start}:{stop}:{step}]")
            part = make_view(self if type(self.owner) is not ByteView else self.owner, self.data + start,
                             max(stop - start, 0))
            (<ByteView> part.owner).holds += 1
            return part
        at = index
        self.check()
        if at < 0:
            at += self.length
        if not 0 <= at < self.length:
            raise IndexError(f"index {index} is out of the range of a ByteView of {self.length} bytes")
        return self.data[at]

    def __bytes__(self):
        self.check()
        if PyBytes_CheckExact(self.owner) and PyBytes_GET_SIZE(self.owner) == self.length:
            return self.owner
        return PyBytes_FromStringAndSize(<const char *> self.data, self.length)

    def __str__(self):
        self.check()
        return PyUnicode_DecodeUTF8(<const char *> self.data, self.length, NULL)

    def __repr__(self):
        if self.released:
            return "<mpgroupcache.ByteView released>"
        self.check()
        shown = PyBytes_FromStringAndSize(<const char *> self.data, self.length if self.length <= 16 else 12)
        return f"<mpgroupcache.ByteView({shown!r}" + (")>" if self.length <= 16 else f"...{self.length} B)>")

    def __eq__(self, other):
        cdef Py_buffer buffer
        cdef Py_ssize_t length
        cdef const char *text
        cdef bint equal
        if isinstance(other, str):
            self.check()
            try:
                text = PyUnicode_AsUTF8AndSize(other, &length)
            except UnicodeEncodeError:
                return False
            return length == self.length and memcmp(text, self.data, length) == 0
        try:
            PyObject_GetBuffer(other, &buffer, PyBUF_SIMPLE)
        except (TypeError, BufferError):
            self.check()
            return NotImplemented
        try:
            self.check()
            equal = buffer.len == self.length and memcmp(buffer.buf, self.data, self.length) == 0
        finally:
            PyBuffer_Release(&buffer)
        return equal

    __hash__ = None

    def __reduce__(self):
        return ByteView, (bytes(self),)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.check()
        if flags & PyBUF_WRITABLE == PyBUF_WRITABLE:
            raise BufferError("a ByteView is read-only: the value is shared by all workers")
        PyBuffer_FillInfo(buffer, self, <void *> self.data, self.length, 1, flags)
        self.holds += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.drop_hold()

    def copy_to(self, buffer) -> int:
        """Copy into a writable buffer as much as fits, and return the number of bytes (Go: ``Copy``)."""
        return self.read_at(buffer, 0)

    def read_at(self, buffer, Py_ssize_t offset) -> int:
        """Copy from ``offset`` into a writable buffer as much as fits, and return the number of bytes (Go: ``ReadAt``).

        At or past the end that is 0, where Go returns ``io.EOF``. ``ValueError`` for a negative offset.
        """
        cdef Py_buffer target
        cdef Py_ssize_t count = 0
        if offset < 0:
            raise ValueError(f"offset: got {offset}, expected 0 or more")
        PyObject_GetBuffer(buffer, &target, PyBUF_WRITABLE)
        try:
            self.check()
            if offset < self.length:
                count = min(target.len, self.length - offset)
                memcpy(target.buf, self.data + offset, count)
        finally:
            PyBuffer_Release(&target)
        return count

    def write_to(self, file) -> int:
        """Write the whole value to a binary file object, and return the number of bytes (Go: ``WriteTo``)."""
        cdef Py_ssize_t done = 0
        with memoryview(self) as view:
            while done < len(view):
                written = file.write(view[done:])
                if written is None:
                    raise BlockingIOError(f"write_to: a non-blocking file took {done} of {len(view)} bytes")
                done += written
        return done

    def reader(self):
        """A seekable binary file object over the value (Go: ``Reader``). It keeps the value until it is closed."""
        from mpgroupcache.viewio import ViewReader

        return ViewReader(self[:])

    def chunks(self, Py_ssize_t size=65536):
        """An iterator of ``bytes`` of at most ``size``, which keeps the value until it is exhausted or closed.

        It is what a WSGI application returns: servers want ``bytes`` and call ``close()`` when the client is gone.
        """
        from mpgroupcache.viewio import iter_chunks

        return iter_chunks(self[:], size)


# ---- The hit path of Group ------------------------------------------------------------------------------------------

cdef class GroupCore:
    """What of ``Group`` is native: ``get`` up to the hit.

    The subclass gives ``_load(key, ctx, timeout)``, which is called on every miss, before the group is attached, in a
    child that has not attached yet, and for keys of a wrong type, for which it raises.
    """

    cdef Reader reader
    cdef mgc_map map
    cdef bint mapped                       # there is an arena to look in
    cdef uint32_t group
    cdef str arena_path                    # names an incarnation, and is never used for another
    cdef uint64_t pending[MGC_COUNTERS]    # counts before there is a region ...
    cdef uint64_t pending_epoch            # ... of this process

    def attach(self, Reader reader not None, uint32_t group, str arena_path):
        """Look up through ``reader`` from now on; ``arena_path`` is None for a group without a cache.

        Raises ``ArenaError`` for a segment that is retired, of another group, or of another version, and ``OSError``
        where there is none; then the group stays attached as it was.
        """
        cdef Mapping mapping
        cdef mgc_map arena_map
        cdef int error, i
        if group >= MGC_MAX_GROUPS:
            raise ArenaError(f"group id {group}: expected less than {MGC_MAX_GROUPS}")
        if reader is self.reader and self.mapped and arena_path == self.arena_path and group == self.group:
            return  # a new link to the same instance
        if arena_path is not None:
            fd = open_file(arena_path, O_RDONLY)
            try:
                mapping = Mapping(fd, os.fstat(fd).st_size)
            finally:
                posix_close(fd)
            error = mgc_map_attach(&arena_map, mapping.base, mapping.size)
            if error or arena_map.arena != group:
                raise ArenaError(f"arena {arena_path}: " + (
                    "it is retired" if error == -ESTALE else "another layout; workers and coordinator must be of one "
                    "version of mpgroupcache" if error else f"of group {arena_map.arena}, expected {group}"))
            reader.arenas.append(mapping)
        # An assignment drops what was there before it stores what is new. `old` puts off the end of the former reader,
        # if this is its end, until nobody can meet it here.
        old = self.reader
        self.mapped = False
        self.reader = reader
        self.group = group
        self.arena_path = arena_path
        if arena_path is not None:
            self.map = arena_map
            self.mapped = True
        self._own_pending()
        if reader.region != NULL and reader.lookup_epoch == process_epoch[0]:
            for i in range(MGC_COUNTERS):
                if self.pending[i]:
                    mgc_count(<atomic64 *> &reader.region.counters[group] + i, self.pending[i])
                    self.pending[i] = 0

    cpdef detach(self):
        """Forget the arena: every ``get`` is a miss until the next ``attach``."""
        old = self.reader  # as in attach()
        self.mapped = False
        self.reader = None

    cdef void _own_pending(self) noexcept:
        # What a parent counted before the fork is the parent's to deliver.
        if self.pending_epoch != process_epoch[0]:
            memset(self.pending, 0, sizeof(self.pending))
            self.pending_epoch = process_epoch[0]

    @property
    def attached(self) -> bool:
        """Whether lookups of this process reach the coordinator's arena (or there is none to reach)."""
        return self.reader is not None and self.reader.lookup_epoch == process_epoch[0]

    @property
    def readable(self) -> bool:
        """Whether this process could see a value that is in the arena."""
        return self.attached and self.mapped and self.reader.region != NULL

    def count(self, uint32_t counter, uint64_t n=1):
        """Add to one of this process's counters, in the order of ``struct mgc_counters``."""
        if counter >= MGC_COUNTERS:
            raise IndexError(f"counter {counter}: expected less than {MGC_COUNTERS}")
        self._own_pending()
        if self.attached and self.reader.region != NULL:
            mgc_count(<atomic64 *> &self.reader.region.counters[self.group] + counter, n)
        else:
            self.pending[counter] += n

    def counters(self):
        """The group's counts: the host's where attached, and this process's that have no region yet."""
        self._own_pending()
        sums = self.reader.counters(self.group) if self.attached else (0,) * MGC_COUNTERS
        return tuple([n + self.pending[i] for i, n in enumerate(sums)])

    def list_stats(self, int which):
        """(bytes, items, evictions) of the main (0) or hot (1) list; zeros where there is no arena."""
        if not self.attached or not self.mapped:
            return 0, 0, 0
        cdef const mgc_list_stats *stats = &(<const mgc_arena_header *> self.map.base).lists[which & 1]
        return stats.bytes, stats.items, stats.evictions

    def lookup(self, key):
        """The value of ``key`` in shared memory, or None."""
        return self._lookup(key)

    cdef inline object _lookup(self, key):
        cdef const uint8_t *data
        cdef Py_ssize_t length
        cdef uint32_t pin
        cdef int outcome
        cdef mgc_hit hit
        cdef ByteView view
        cdef bytes copied
        if not self.mapped or self.reader.lookup_epoch != process_epoch[0] or self.reader.region == NULL:
            return None
        if PyUnicode_Check(key):
            if PyUnicode_IS_COMPACT_ASCII(key):
                data = <const uint8_t *> PyUnicode_DATA(key)
                length = PyUnicode_GET_LENGTH(key)
            else:
                try:
                    data = <const uint8_t *> PyUnicode_AsUTF8AndSize(key, &length)
                except UnicodeEncodeError:
                    return None
        elif PyBytes_Check(key):
            data = <const uint8_t *> PyBytes_AS_STRING(key)
            length = PyBytes_GET_SIZE(key)
        else:
            return None
        if length > MGC_MAX_KEY:
            return None
        # No pin is free, or a fork is under way: copy the value under the pin that is kept for that. From here to where
        # the pin is taken, or given back, the GIL is held and no other Python code runs, the collector's included: so
        # nobody can put another reader in the place of this one either.
        pin = MGC_COPY_PIN
        if self.reader.free_count and not self.reader.forks:
            pin = self.reader.free_pins[self.reader.free_count - 1]
        outcome = mgc_get(&self.map, self.reader.region, pin, data, length, &hit)
        if outcome != MGC_HIT:
            if outcome == MGC_DETACHED:
                self.detach()
            return None
        if pin == MGC_COPY_PIN:
            try:
                copied = PyBytes_FromStringAndSize(<const char *> hit.value, hit.length)
            finally:
                mgc_unpin(self.reader.region, MGC_COPY_PIN)
            return ByteView(copied)
        view = ByteView.__new__(ByteView)  # where there is no memory for it, the pin is still in the stack
        self.reader.free_count -= 1
        view.owner = self.reader
        view.data = hit.value
        view.length = hit.length
        view.pin = pin
        return view

    def get(self, key, dest=None, *, ctx=None, timeout=None):
        """Return the value of ``key``, loading it if no cache of the ring has it (Go: ``Group.Get``).

        ``key``: ``str`` or ``bytes`` of at most 64 KiB. ``dest``: a ``Sink`` to fill; then None is returned. ``ctx`` is
        handed to the loader when this thread runs it. ``timeout`` in seconds bounds the waiting for another caller's
        load, not a load that this thread runs.

        Raises ``DeadlineExceeded``; the loader's own exception when this thread ran it; ``LoadError`` when another
        caller's load failed; ``LoadCycleError``; ``ValueError`` and ``TypeError`` for keys that cannot be.
        """
        if dest is None:
            view = self._lookup(key)
            return view if view is not None else self._load(key, ctx, timeout)
        fill = getattr(dest, "_fill", None)
        if fill is None:
            raise TypeError(f"dest: got {type(dest).__name__}, expected a mpgroupcache.Sink, or None for a ByteView")
        view = self._lookup(key)
        fill(view if view is not None else self._load(key, ctx, timeout))
        return None


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
