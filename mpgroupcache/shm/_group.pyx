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
    MGC_ABSENT_HIT, MGC_COPY_PIN, MGC_COUNTERS, MGC_DETACHED, MGC_FOREVER, MGC_HIT, MGC_MAX_GROUPS, MGC_MAX_KEY,
    MGC_STALE_HIT, atomic64, mgc_arena_header, mgc_block, mgc_changes, mgc_count, mgc_counters, mgc_fresh_until, mgc_get,
    mgc_get_kept, mgc_get_many, mgc_hit, mgc_list_stats, mgc_look, mgc_map, mgc_map_attach, mgc_pinned_block, mgc_unpin,
    mgc_version,
)
from mpgroupcache.shm._reader cimport Mapping, Reader, open_file, process_epoch
from mpgroupcache.shm._view cimport ByteView, dead_in, numbered_view, pinned_view, view_of_pin

import logging
import os

from mpgroupcache.errors import ArenaError, NotFound
from mpgroupcache.keys import encode_key

logger = logging.getLogger(__name__)

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object)
    char *PyUnicode_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *)
    void PyErr_Clear()
    bint PyUnicode_Check(object)
    bint PyBytes_Check(object)
    PyObject *PyDict_SetDefault(object, object, object) except NULL

cdef extern from *:
    dict new_dict "__Pyx_PyDict_NewPresized"(Py_ssize_t)  # Cython's, which knows where there is one

cdef enum:
    MANY = 128  # keys that are looked up together, at most: they take 64 B of the stack each

cdef extern from "Python.h":
    ctypedef void (*PyCFunction)()
    ctypedef object (*CallWithKeywords "_PyCFunctionFastWithKeywords")(object, PyObject *const *, Py_ssize_t, PyObject *)
    ctypedef struct PyMethodDef:
        PyCFunction ml_meth
    ctypedef struct PyMethodDescrObject:
        PyMethodDef *d_method
    object PyDescr_NewMethod(type, PyMethodDef *)


cdef inline bint key_of(object key, const uint8_t **data, Py_ssize_t *length) noexcept:
    """Whether this may be a key, and its bytes. ``encode_key`` says what is wrong with others."""
    if PyUnicode_Check(key):
        if PyUnicode_IS_COMPACT_ASCII(key):
            data[0] = <const uint8_t *> PyUnicode_DATA(key)
            length[0] = PyUnicode_GET_LENGTH(key)
        else:
            data[0] = <const uint8_t *> PyUnicode_AsUTF8AndSize(key, length)
            if data[0] == NULL:
                PyErr_Clear()
                return False
    elif PyBytes_Check(key):
        data[0] = <const uint8_t *> PyBytes_AS_STRING(key)
        length[0] = PyBytes_GET_SIZE(key)
    else:
        return False
    return length[0] <= MGC_MAX_KEY


cdef class GroupCore:
    """What of ``Group`` is native: ``get`` up to the hit.

    The subclass gives ``_load(key, ctx, timeout)``, which is called on every miss, before the group is attached, in a
    child that has not attached yet, and for keys of a wrong type, for which it raises; ``_load_many``, which is the rest
    of `get_many` where not all are hits; and ``_stale(key, version)``, which is called at a hit whose refresh is due, and
    asks for it.
    """

    cdef Reader reader
    cdef mgc_map map
    cdef bint mapped                       # there is an arena to look in
    cdef bint met                          # a coordinator
    cdef uint64_t grace                    # ns for which what is no longer fresh is of use where a load fails
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
            error = mgc_map_attach(&arena_map, reader.control.base, mapping.base, mapping.size)
            if error or arena_map.arena != group:
                raise ArenaError(f"arena {arena_path}: " + (
                    "it is retired" if error == -ESTALE else "another layout; workers and coordinator must be of one "
                    "version of mpgroupcache" if error else f"of group {arena_map.arena}, expected {group}"))
            reader.add_arena(mapping)
        # An assignment drops what was there before it stores what is new. `old` puts off the end of the former reader,
        # if this is its end, until nobody can meet it here.
        old = self.reader
        self.mapped = False
        self.met = True
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
        """Forget the arena, or hear of one that is out of reach: every ``get`` is a miss until the next ``attach``."""
        old = self.reader  # as in attach()
        self.mapped = False
        self.met = True
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

    @property
    def cleared(self):
        """The hits and loads that were counted when the group was cleared last; zeros where that cannot be seen."""
        return self.reader.cleared(self.group) if self.attached else (0, 0)

    @property
    def changes(self) -> int:
        """The group's change count; -1 if there was a coordinator and it cannot be seen, 0 if there never was one."""
        if not self.met:
            return 0
        return -1 if self.reader is None or self.reader.retired else mgc_changes(self.reader.control.base, self.group)

    @property
    def stale_if_error(self) -> float:
        """Seconds, counted from where it is no longer fresh, for which `find_kept` finds a value; inf: for ever."""
        return self.grace / 1e9 if self.grace != MGC_FOREVER else float("inf")

    @stale_if_error.setter
    def stale_if_error(self, double seconds):
        self.grace = <uint64_t> (seconds * 1e9) if seconds < 1e9 else MGC_FOREVER

    def list_stats(self, int which):
        """(bytes, items, evictions) of the main (0) or hot (1) list; zeros where there is no arena."""
        if not self.attached or not self.mapped:
            return 0, 0, 0
        cdef const mgc_list_stats *stats = &(<const mgc_arena_header *> self.map.base).lists[which & 1]
        return stats.bytes, stats.items, stats.evictions

    def lookup(self, key):
        """The value of ``key`` in shared memory, fresh or stale; None: none, or it is noted that there is none.

        It asks for no refresh. Hits count, misses do not.
        """
        return self._look(key, True)

    def find(self, key):
        """The value of ``key`` in shared memory, or None: what ``get`` looks at first.

        Raises ``NotFound`` where it is noted that there is none. Where a refresh is due, it is asked for.
        """
        return self._look(key, False)

    def find_kept(self, key):
        """As `lookup`, also what is dead, for ``stale_if_error``: for a load that has failed. It counts nothing."""
        return self._find_kept(key, self.grace, False) if self.grace else None

    def absent_for(self, key):
        """Seconds for which it is noted that there is no value of ``key``, or 0; None: for ever. It counts nothing."""
        note = self._find_kept(key, 1, True)
        return 0.0 if note is None else dead_in(note)

    cdef ByteView _find_kept(self, key, uint64_t grace, bint absent):
        """The value that is there, or has been dead for less than ``grace`` ns; or what is noted of one that is absent."""
        cdef const uint8_t *data
        cdef Py_ssize_t length
        cdef mgc_hit hit
        cdef uint32_t pin
        cdef int outcome
        if not self._can_look() or not key_of(key, &data, &length):
            return None
        pin = self._next_pin()
        outcome = mgc_get_kept(&self.map, self.reader.region, pin, data, length, grace, &hit)
        found = self._found(MGC_HIT if absent and outcome >= MGC_HIT else outcome, key, True, pin, &hit)
        return None if absent and outcome != MGC_ABSENT_HIT else found

    def find_many(self, keys):
        """Find many keys in one pass: ``(found, missing, absent)``, each in the order of ``keys``.

        ``found`` has a view for each key that has a value, ``absent`` the text of its ``NotFound`` for each that has none,
        and ``missing`` lists the others. A key that comes twice is there once; ``str`` and ``bytes`` differ. It counts
        and asks for refreshes as ``find``, and raises for keys as ``get``.
        """
        cdef tuple wanted = tuple(keys)
        cdef dict found = new_dict(len(wanted)), absent = {}
        return found, self._find_all(wanted, found, absent), absent

    def get_many(self, keys, *, return_exceptions=False, ctx=None, timeout=None):
        """Return the values of many keys, in their order, without those that are `NotFound`.

        One look at shared memory, then one message for all that are missing. A getter with a ``get_many`` loads them in
        one call. Where loads failed: `LoadErrors`, when all are done; with ``return_exceptions``, each error is in the
        dict (``NotFound`` too). ``ctx``, ``timeout``: as ``get`` has them. Go has no counterpart.
        """
        cdef tuple wanted = tuple(keys)
        cdef dict found = new_dict(len(wanted)), absent = {}
        missing = self._find_all(wanted, found, absent)
        if not missing and not absent:
            return found
        return self._load_many(wanted, found, missing, absent, return_exceptions, ctx, timeout)

    cdef list _find_all(self, tuple wanted, dict found, dict absent):
        """`find_many`; what is missing is returned."""
        cdef list missing = []
        cdef Py_ssize_t begin = 0
        while begin < len(wanted):
            begin += self._find_some(wanted, begin, found, missing, absent)
        if missing:  # of a key that came twice, the second may have been published meanwhile
            missing = [key for key in dict.fromkeys(missing) if key not in found and key not in absent]
        return missing

    cdef Py_ssize_t _find_some(self, tuple wanted, Py_ssize_t begin, dict found, list missing, dict absent) except -1:
        """`find_many` of some keys, from ``begin`` on; returns of how many."""
        cdef mgc_look looks[MANY]
        cdef mgc_look *look
        cdef Py_ssize_t length, count = min(<Py_ssize_t> MANY, len(wanted) - begin), i, passed = 0
        cdef uint64_t versions[MANY]
        cdef Reader reader = self.reader
        for i in range(count):
            if not key_of(wanted[begin + i], &looks[i].key, &length):
                encode_key(wanted[begin + i])
                raise AssertionError(f"{wanted[begin + i]!r} is a key")
            looks[i].key_length = length
        if not self._can_look():
            missing.extend(wanted[begin:begin + count])
            return count
        if reader.forks or reader.free_count == 0:
            self._find_one(wanted[begin], found, missing, absent)
            return 1
        count = self._look_together(looks, min(count, <Py_ssize_t> reader.free_count))
        try:
            while passed < count:
                # From where its pin is a view's, or given back, it is passed on. Other code may run when a key is hashed.
                key = wanted[begin + passed]
                look = &looks[passed]
                if look.found == MGC_ABSENT_HIT:
                    text = PyBytes_FromStringAndSize(<const char *> look.hit.value, look.hit.length)
                    reader.give_pin(look.pin)
                    passed += 1
                    absent[key] = text.decode(errors="replace")
                elif look.found >= MGC_HIT:
                    versions[passed] = self._stale_version(look.found, look.pin)
                    view = view_of_pin(reader, look.pin, look.hit.value, look.hit.length)
                    passed += 1
                    PyDict_SetDefault(found, key, view)
                else:
                    passed += 1
                    missing.append(key)
        finally:
            for i in range(passed, count):
                if looks[i].found >= MGC_HIT:
                    reader.give_pin(looks[i].pin)
        for i in range(count):
            if looks[i].found == MGC_STALE_HIT:
                self._refresh(wanted[begin + i], versions[i])
        return count

    cdef int _find_one(self, key, dict found, list missing, dict absent) except -1:
        """The same of one for which there is no pin."""
        try:
            view = self._look(key, False)
        except NotFound as error:
            absent[key] = str(error)
            return 0
        if view is None:
            missing.append(key)
        else:
            found.setdefault(key, view)
        return 0

    cdef Py_ssize_t _look_together(self, mgc_look *looks, Py_ssize_t count):
        """Look up as many as there are pins for, and take the pins of those that were found off the stack."""
        cdef Reader reader = self.reader
        cdef Py_ssize_t i
        cdef uint32_t left = reader.free_count - count
        for i in range(count):
            looks[i].pin = reader.free_pins[reader.free_count - 1 - i]
        mgc_get_many(&self.map, reader.region, looks, count)
        for i in range(count - 1, -1, -1):
            if looks[i].found < MGC_HIT:
                reader.free_pins[left] = looks[i].pin
                left += 1
        reader.free_count = left
        if count and looks[0].found == MGC_DETACHED:
            self.detach()
        return count

    cdef inline bint _can_look(self) noexcept:
        return self.mapped and self.reader.lookup_epoch == process_epoch[0] and self.reader.region != NULL

    cdef inline uint32_t _next_pin(self) noexcept:
        # No pin is free, or a fork is under way: copy the value under the pin that is kept for that. From here to where
        # the pin is taken, or given back, the GIL is held and no other Python code runs, the collector's included: so
        # nobody can put another reader in the place of this one either.
        if self.reader.free_count and not self.reader.forks:
            return self.reader.free_pins[self.reader.free_count - 1]
        return MGC_COPY_PIN

    cdef object _look(self, key, bint just_look):
        cdef const uint8_t *data
        cdef Py_ssize_t length
        cdef uint32_t pin
        cdef int outcome
        cdef mgc_hit hit
        if not self._can_look() or not key_of(key, &data, &length):
            return None
        pin = self._next_pin()
        outcome = mgc_get(&self.map, self.reader.region, pin, data, length, &hit)
        return self._found(outcome, key, just_look, pin, &hit)

    cdef object _found(self, int outcome, key, bint just_look, uint32_t pin, const mgc_hit *hit):
        """What was found, as an object; ``just_look``: and nothing else."""
        cdef uint64_t version
        if outcome < MGC_HIT:
            if outcome == MGC_DETACHED:
                self.detach()
            return None
        if outcome == MGC_ABSENT_HIT:
            if just_look:
                mgc_unpin(self.reader.region, pin)
                return None
            raise NotFound(self._copied(pin, hit).decode(errors="replace"))
        version = self._stale_version(outcome, pin)
        view = (pinned_view(self.reader, pin, hit.value, hit.length) if pin != MGC_COPY_PIN
                else self._copy(hit))
        if outcome == MGC_STALE_HIT and not just_look:
            self._refresh(key, version)
        return view

    cdef inline uint64_t _stale_version(self, int outcome, uint32_t pin) noexcept:
        """What ``_stale`` is told; the pin is to be no view's yet."""
        if outcome != MGC_STALE_HIT:
            return 0
        return mgc_version(mgc_pinned_block(self.reader.region, pin, self.map.base))

    cdef ByteView _copy(self, const mgc_hit *hit):
        """A view of what was found under the pin for that, apart from the arena."""
        cdef const mgc_block *block = mgc_pinned_block(self.reader.region, MGC_COPY_PIN, self.map.base)
        cdef uint64_t version = mgc_version(block), fresh_until = mgc_fresh_until(block)
        cdef uint64_t host_until = 0 if fresh_until == MGC_FOREVER else fresh_until - self.map.control.clock_offset
        return numbered_view(self._copied(MGC_COPY_PIN, hit), version, <int64_t> host_until)

    cdef bytes _copied(self, uint32_t pin, const mgc_hit *hit):
        """The bytes of what was found, whose pin is given back."""
        try:
            return PyBytes_FromStringAndSize(<const char *> hit.value, hit.length)
        finally:
            mgc_unpin(self.reader.region, pin)

    cdef _refresh(self, key, uint64_t version):
        # The caller has its value. What goes wrong with a refresh is no business of its own, and would be raised at each hit
        # until the value is dead. What is no `Exception` is: it has nothing to do with the refresh.
        try:
            self._stale(key, version)
        except Exception:
            logger.exception("the refresh of a stale value could not be asked for")

    @cython.binding(False)  # a method descriptor: see get_key()
    def get(self, key, dest=None, *, ctx=None, timeout=None):
        """Return the value of ``key``, loading it if no cache of the ring has it (Go: ``Group.Get``).

        ``key``: ``str`` or ``bytes`` of at most 64 KiB. ``dest``: a ``Sink`` to fill; then None is returned. ``ctx`` is
        handed to the loader when this thread runs it. ``timeout`` in seconds bounds the waiting for another caller's
        load, not a load that this thread runs.

        In a group whose values have ages a stale one is returned at once, while it is loaded anew.

        Raises ``NotFound`` where a loader has said that there is no such value; ``DeadlineExceeded``; the loader's own
        exception when this thread ran it; ``LoadError`` when another caller's load failed; ``LoadCycleError``;
        ``ValueError`` and ``TypeError`` for keys that cannot be.
        """
        if dest is None:
            view = self._look(key, False)
            return view if view is not None else self._load(key, ctx, timeout)
        fill = getattr(dest, "_fill", None)
        if fill is None:
            raise TypeError(f"dest: got {type(dest).__name__}, expected a mpgroupcache.Sink, or None for a ByteView")
        view = self._look(key, False)
        fill(view if view is not None else self._load(key, ctx, timeout))
        return None


# ---- How get() is called --------------------------------------------------------------------------------------------

# A call of a C method costs the interpreter the least if the descriptor's class is the object's very class, which an
# inherited method's is not, and the function takes its arguments as they come. So each class of groups has a descriptor
# of its own, and get(key) alone begins here; every other call goes on to what Cython makes of GroupCore.get.

cdef PyMethodDef full_get = (<PyMethodDescrObject *> GroupCore.__dict__["get"]).d_method[0]
cdef PyMethodDef quick_get = full_get  # of the same name, flags (METH_FASTCALL | METH_KEYWORDS) and documentation
quick_get.ml_meth = <PyCFunction> <void *> get_key


cdef inline object quick_look(GroupCore self, key):
    # As GroupCore._look(), of which a compiler would not make a part of get_key() where others call it, too.
    cdef const uint8_t *data
    cdef Py_ssize_t length
    cdef uint32_t pin
    cdef int outcome
    cdef mgc_hit hit
    if not self._can_look() or not key_of(key, &data, &length):
        return None
    pin = self._next_pin()
    outcome = mgc_get(&self.map, self.reader.region, pin, data, length, &hit)
    if outcome == MGC_HIT and pin != MGC_COPY_PIN:
        return pinned_view(self.reader, pin, hit.value, hit.length)
    return self._found(outcome, key, False, pin, &hit)


cdef object get_key(GroupCore self, PyObject *const *args, Py_ssize_t count, PyObject *names):
    if count != 1 or names != NULL:
        return (<CallWithKeywords> <void *> full_get.ml_meth)(self, args, count, names)
    view = quick_look(self, <object> args[0])
    return view if view is not None else self._load(<object> args[0], None, None)


def with_own_get(type subclass not None):
    """Decorate a subclass of ``GroupCore``, whose instances' ``get`` it becomes."""
    if not issubclass(subclass, GroupCore):
        raise TypeError(f"with_own_get: got {subclass.__name__}, expected a subclass of GroupCore")
    subclass.get = PyDescr_NewMethod(subclass, &quick_get)
    return subclass
