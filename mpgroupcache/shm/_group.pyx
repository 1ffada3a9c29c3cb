# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The hit path of ``Group.get``, and the counts of a group. Thin: the protocol is in reader.h."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.errno cimport ESTALE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.fcntl cimport O_RDONLY
from posix.unistd cimport close as posix_close

from mpgroupcache.shm._core cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_SHARED, MGC_COPY_PIN, MGC_COUNTERS, MGC_DETACHED, MGC_HIT, MGC_MAX_GROUPS,
    MGC_MAX_KEY, MGC_PAGE, PROT_READ, PROT_WRITE, atomic64, mgc_arena_header, mgc_count, mgc_counters, mgc_get,
    mgc_hit, mgc_list_stats, mgc_map, mgc_map_attach, mgc_unpin, mmap, munmap,
)
from mpgroupcache.shm._reader cimport Mapping, Reader, open_file, process_epoch
from mpgroupcache.shm._view cimport ByteView, pinned_view

import os

from mpgroupcache.errors import ArenaError

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object)
    char *PyUnicode_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *)
    void PyErr_Clear()
    bint PyUnicode_Check(object)
    bint PyBytes_Check(object)

cdef extern from "Python.h":
    ctypedef void (*PyCFunction)()
    ctypedef object (*CallWithKeywords "_PyCFunctionFastWithKeywords")(object, PyObject *const *, Py_ssize_t, PyObject *)
    ctypedef struct PyMethodDef:
        PyCFunction ml_meth
    ctypedef struct PyMethodDescrObject:
        PyMethodDef *d_method
    object PyDescr_NewMethod(type, PyMethodDef *)

cdef extern from *:
    """
    static uint64_t mgc_shared_add(void *counter, uint64_t n) {
        return atomic_fetch_add_explicit((_Atomic uint64_t *)counter, n, memory_order_relaxed);
    }
    """
    uint64_t mgc_shared_add(void *, uint64_t) nogil


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
        cdef int error
        if group >= MGC_MAX_GROUPS:
            raise ArenaError(f"group id {group}: expected less than {MGC_MAX_GROUPS}")
        if self.looks_in(reader, group, arena_path):
            return  # a new link to the same instance
        if arena_path is not None:
            fd = open_file(arena_path, O_RDONLY)
            try:
                mapping = Mapping(fd, os.fstat(fd).st_size)
            finally:
                posix_close(fd)
            if self.looks_in(reader, group, arena_path):
                return  # another thread was faster: a second mapping would stay as long as the reader
            error = mgc_map_attach(&arena_map, mapping.base, mapping.size)
            if error or arena_map.arena != group:
                raise ArenaError(f"arena {arena_path}: " + (
                    "it is retired" if error == -ESTALE else "another layout; workers and coordinator must be of one "
                    "version of mpgroupcache" if error else f"of group {arena_map.arena}, expected {group}"))
            reader.add_arena(mapping)
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
        self.deliver()

    cpdef deliver(self):
        """Add what was counted without a region to what is counted in it, if there is one now."""
        cdef int i
        self._own_pending()
        if not self.attached or self.reader.region == NULL:
            return
        for i in range(MGC_COUNTERS):
            if self.pending[i]:
                mgc_count(<atomic64 *> &self.reader.region.counters[self.group] + i, self.pending[i])
                self.pending[i] = 0

    cdef bint looks_in(self, Reader reader, uint32_t group, str arena_path):
        return reader is self.reader and self.mapped and arena_path == self.arena_path and group == self.group

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

    @property
    def server_requests(self) -> int:
        """How many of the host's gets came from peers."""
        return self.reader.server_requests(self.group) if self.attached else 0

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
        if not self.mapped or self.reader.lookup_epoch != process_epoch[0] or self.reader.region == NULL:
            return None
        if PyUnicode_Check(key):
            if PyUnicode_IS_COMPACT_ASCII(key):
                data = <const uint8_t *> PyUnicode_DATA(key)
                length = PyUnicode_GET_LENGTH(key)
            else:
                data = <const uint8_t *> PyUnicode_AsUTF8AndSize(key, &length)
                if data == NULL:
                    PyErr_Clear()  # _load() says what is wrong
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
        if outcome == MGC_HIT:
            if pin != MGC_COPY_PIN:
                return pinned_view(self.reader, pin, hit.value, hit.length)
            return self._copied(&hit)
        if outcome == MGC_DETACHED:
            self.detach()
        return None

    cdef object _copied(self, const mgc_hit *hit):
        cdef bytes copied
        try:
            copied = PyBytes_FromStringAndSize(<const char *> hit.value, hit.length)
        finally:
            mgc_unpin(self.reader.region, MGC_COPY_PIN)
        return ByteView(copied)

    @cython.binding(False)  # a method descriptor: see get_key()
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


# ---- How get() is called --------------------------------------------------------------------------------------------

# A call of a C method costs the interpreter the least if the descriptor's class is the object's very class, which an
# inherited method's is not, and the function takes its arguments as they come. So each class of groups has a descriptor
# of its own, and get(key) alone begins here; every other call goes on to what Cython makes of GroupCore.get.

cdef PyMethodDef full_get = (<PyMethodDescrObject *> GroupCore.__dict__["get"]).d_method[0]
cdef PyMethodDef quick_get = full_get  # of the same name, flags (METH_FASTCALL | METH_KEYWORDS) and documentation
quick_get.ml_meth = <PyCFunction> <void *> get_key


cdef object get_key(GroupCore self, PyObject *const *args, Py_ssize_t count, PyObject *names):
    if count != 1 or names != NULL:
        return (<CallWithKeywords> <void *> full_get.ml_meth)(self, args, count, names)
    view = self._lookup(<object> args[0])
    return view if view is not None else self._load(<object> args[0], None, None)


def with_own_get(type subclass not None):
    """Decorate a subclass of ``GroupCore``, whose instances' ``get`` it becomes."""
    if not issubclass(subclass, GroupCore):
        raise TypeError(f"with_own_get: got {subclass.__name__}, expected a subclass of GroupCore")
    subclass.get = PyDescr_NewMethod(subclass, &quick_get)
    return subclass


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
