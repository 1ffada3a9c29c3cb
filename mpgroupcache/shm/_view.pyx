# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""``ByteView``: the value of a hit, where it lies."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from mpgroupcache.shm._core cimport (
    MGC_FOREVER, mgc_block, mgc_control_header, mgc_dead_at, mgc_fresh_until, mgc_host_now, mgc_now, mgc_pinned_block, mgc_version,
)
from mpgroupcache.shm._reader cimport Mapping, Reader, process_epoch

cdef extern from "Python.h":
    ctypedef void (*destructor)(PyObject *)
    ctypedef struct PyTypeObject:
        destructor tp_dealloc
    void mgc_decref "Py_DECREF"(PyObject *)
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL
    bint PyBytes_CheckExact(object)
    bint PyObject_CheckBuffer(object)
    bint PyIndex_Check(object)
    Py_ssize_t PyNumber_AsSsize_t(object, PyObject *) except? -1

cdef extern from "<string.h>":
    void *memmem(const void *, size_t, const void *, size_t)


cdef double MOST_LEFT = 1e9  # s, some 30 years: what is fresh for longer is fresh for ever

cdef inline ByteView make_view(object owner, const uint8_t *data, Py_ssize_t length):
    cdef ByteView view = ByteView.__new__(ByteView)
    view.owner = owner
    view.data = data
    view.length = length
    return view


cdef ByteView numbered_view(object value, uint64_t number, int64_t fresh_until):
    """A view of what is not pinned; see the fields."""
    cdef ByteView view = ByteView(value)
    view.number, view.fresh_until = number, fresh_until
    return view


def loaded_view(value, version, fresh):
    """A view of what was not read from the arena: its ``version`` (None: it has none), and for how many seconds it is
    ``fresh`` (None: for ever; less than 0: it is stale since then)."""
    cdef double left = 0 if fresh is None else max(fresh, -MOST_LEFT)
    if fresh is None or left >= MOST_LEFT:
        return numbered_view(value, version or 0, 0)
    return numbered_view(value, version or 0, <int64_t> mgc_host_now() + <int64_t> (left * 1e9))


cpdef dead_in(ByteView view):
    """Seconds until the value is dead, or 0; None: it never is.

    Of what was not read from the arena nobody here knows that: it is taken for dead when it is stale.
    """
    cdef ByteView root = view.checked_root()
    cdef uint64_t dead_at, now
    if not root.pin:
        return None if root.fresh_until == 0 else max(root.ttl, 0.0)
    dead_at = mgc_dead_at(block_of(root))
    now = mgc_now(<const mgc_control_header *> (<Reader> root.owner).control.base)
    return None if dead_at == MGC_FOREVER else max(<int64_t> (dead_at - now), 0) / 1e9


# ---- Searches, as those of bytes ------------------------------------------------------------------------------------

cdef object needle_of(object sub):
    """What is searched for, bytes-like: of a number the byte."""
    if PyObject_CheckBuffer(sub):
        return sub
    if PyIndex_Check(sub):
        return bytes((sub,))
    raise TypeError(f"got {type(sub).__name__}, expected a bytes-like object or the int of a byte; encode() text first")


cdef Py_ssize_t place(object index, Py_ssize_t unless_given, Py_ssize_t length) except -1:
    """An index, counted from the beginning. It may lie beyond the end, and there not even ``b""`` is found."""
    cdef Py_ssize_t at = unless_given if index is None else PyNumber_AsSsize_t(index, NULL)
    return max(at + length, 0) if at < 0 else at


cdef Py_ssize_t next_place(ByteView view, Py_ssize_t at, Py_ssize_t stop, const Py_buffer *needle) noexcept:
    """Where ``needle`` is next in ``[at, stop)``, or -1."""
    cdef const uint8_t *found
    if stop - at < needle.len:
        return -1
    if needle.len == 0:
        return at
    found = <const uint8_t *> memmem(view.data + at, stop - at, needle.buf, needle.len)
    return -1 if found == NULL else found - view.data


cdef Py_ssize_t search(ByteView view, object sub, object start, object end, bint count) except -2:
    """Where ``sub`` is first, or -1; or the number of its places that do not overlap."""
    cdef Py_buffer needle
    cdef Py_ssize_t at = place(start, 0, view.length), stop = min(place(end, view.length, view.length), view.length)
    cdef Py_ssize_t places = 0
    PyObject_GetBuffer(needle_of(sub), &needle, PyBUF_SIMPLE)
    try:
        view.check()
        at = next_place(view, at, stop, &needle)
        if not count:
            return at
        while at >= 0:
            places += 1
            at = next_place(view, at + max(needle.len, 1), stop, &needle)
        return places
    finally:
        PyBuffer_Release(&needle)


cdef bint borders(ByteView view, object parts, object start, object end, bint at_end) except -1:
    """Whether the value begins, or ends, with ``parts``, or with one of a tuple."""
    cdef Py_buffer part
    cdef Py_ssize_t at = place(start, 0, view.length), stop = min(place(end, view.length, view.length), view.length)
    cdef bint found = False
    view.check()  # a tuple may be empty
    for item in parts if isinstance(parts, tuple) else (parts,):
        PyObject_GetBuffer(item, &part, PyBUF_SIMPLE)
        try:
            view.check()
            if part.len <= stop - at:
                found = memcmp(view.data + (stop - part.len if at_end else at), part.buf, part.len) == 0
        finally:
            PyBuffer_Release(&part)
        if found:
            return True
    return False


# ---- Views of hits --------------------------------------------------------------------------------------------------

# The memory of a hit's view is never freed while its reader lives: each pin has one, which is a view whenever the pin is
# taken. And it ends without what Cython generates around __dealloc__ (it keeps the current exception, and the object
# alive meanwhile). Making and ending a view this way takes half the time, a tenth of that of a hit.

cdef ByteView first_view(Reader reader, uint32_t pin):
    """A view in memory that is the pin's from now on."""
    cdef ByteView view = ByteView.__new__(ByteView)
    view.owner = reader
    view.pin = pin
    reader.views[pin] = <PyObject *> view
    return view


cdef const mgc_block *block_of(ByteView view) noexcept:
    """The block of a view that has a pin, which names it. Hits do not store it: few views are asked."""
    cdef Reader reader = <Reader> view.owner
    cdef Mapping arena
    for arena in reader.arenas:
        if arena.base < view.data <= arena.base + arena.size:  # of no bytes, it may be where the arena ends
            return mgc_pinned_block(reader.region, view.pin, arena.base)


cdef void end_view(ByteView view) noexcept:
    """``tp_dealloc``."""
    cdef PyObject *reader
    if view.pin == 0:
        end_other_view(<PyObject *> view)
        return
    reader = <PyObject *> view.owner
    (<Reader> reader).give_pin(view.pin)
    mgc_decref(reader)  # perhaps the last one, and then the memory of all its views is gone


@cython.no_gc  # refers to a reader, a mapping, bytes or another view: never a cycle
@cython.final
cdef class ByteView:
    """An immutable view of a cached value (Go: ``ByteView``).

    It shows the bytes where they lie: in the arena, which keeps them unchanged for as long as this view, a slice or a
    ``memoryview`` of it lives. ``ByteView(value)`` makes one of ``bytes`` (kept), ``str`` (as UTF-8), any
    bytes-like object (copied), or a ``Mapping`` (kept) of a file that must never change or shrink. Equal to equal
    bytes, text and views, and therefore not hashable. ``in``, ``find``, ``index``, ``count``, ``startswith``,
    ``endswith``, ``decode`` and ``hex`` are those of ``bytes``, which take no text; they do not copy the value.
    """

    def __init__(self, value=b""):
        cdef Py_buffer buffer
        if self.owner is not None or self.released:
            raise TypeError("ByteView is immutable: __init__() cannot run again")
        if isinstance(value, str):
            value = str.encode(value)  # a subclass's own may give anything
        elif type(value) is not Mapping and not PyBytes_CheckExact(value):
            PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE)
            try:
                value = PyBytes_FromStringAndSize(<const char *> buffer.buf, buffer.len)
            finally:
                PyBuffer_Release(&buffer)
        self.owner = value
        if type(value) is Mapping:
            self.data, self.length = (<Mapping> value).base, (<Mapping> value).size
            return
        self.data = <const uint8_t *> PyBytes_AS_STRING(value)
        self.length = PyBytes_GET_SIZE(value)

    def __dealloc__(self):
        self.let_go()  # no hit: those end in end_view()

    cdef void let_go(self) noexcept:
        """Give up the value: with the last of view, slices and memoryviews."""
        if self.pin:
            (<Reader> self.owner).views[self.pin] = NULL  # the pin's next view begins while this one still lives
            (<Reader> self.owner).give_pin(self.pin)
            self.pin = 0
        elif type(self.owner) is ByteView:
            (<ByteView> self.owner).drop_hold()
        self.owner = None

    cdef void drop_hold(self) noexcept:
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

    cdef ByteView checked_root(self):
        """The view that has the owner, the pin and the numbers, if the value may be read."""
        self.check()
        return self if type(self.owner) is not ByteView else <ByteView> self.owner

    @property
    def version(self):
        """The number of this value: no other one of its group ever has it (Go: no counterpart). None: it has none.

        A value has one that a coordinator has taken. Where it is a copy of what another host owns, it is that host's.
        """
        cdef ByteView root = self.checked_root()
        cdef uint64_t number = mgc_version(block_of(root)) if root.pin else root.number
        return number if number else None

    @property
    def ttl(self):
        """Seconds until the value is no longer fresh (Go: no counterpart). Negative: it is stale. None: that never is.

        Counted from now; and of a value in the arena it is read there, so that a ``touch`` shows.
        """
        cdef ByteView root = self.checked_root()
        cdef uint64_t fresh_until
        if not root.pin:
            return (root.fresh_until - <int64_t> mgc_host_now()) / 1e9 if root.fresh_until else None
        fresh_until = mgc_fresh_until(block_of(root))
        if fresh_until == MGC_FOREVER:
            return None
        return <int64_t> (fresh_until - mgc_now(<const mgc_control_header *> (<Reader> root.owner).control.base)) / 1e9

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

    def __contains__(self, item):
        # A number first, as in bytes: some, as numpy's, are bytes-like too.
        return search(self, bytes((item,)) if PyIndex_Check(item) else item, None, None, False) >= 0

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

    def find(self, sub, start=None, end=None, /) -> int:
        """Where ``sub``, bytes or the number of a byte, is first, or -1 (``bytes.find``)."""
        return search(self, sub, start, end, False)

    def index(self, sub, start=None, end=None, /) -> int:
        """Where ``sub`` is first, or ``ValueError`` (``bytes.index``)."""
        cdef Py_ssize_t at = search(self, sub, start, end, False)
        if at < 0:
            raise ValueError("index: got what is not in the ByteView, expected what is; find() returns -1 then")
        return at

    def count(self, sub, start=None, end=None, /) -> int:
        """How often ``sub`` is there, without overlaps (``bytes.count``)."""
        return search(self, sub, start, end, True)

    def startswith(self, prefix, start=None, end=None, /) -> bool:
        """Whether the value begins with ``prefix``, or with one of a tuple (``bytes.startswith``)."""
        return borders(self, prefix, start, end, False)

    def endswith(self, suffix, start=None, end=None, /) -> bool:
        """Whether the value ends with ``suffix``, or with one of a tuple (``bytes.endswith``)."""
        return borders(self, suffix, start, end, True)

    def decode(self, encoding="utf-8", errors="strict") -> str:
        """The value as text (``bytes.decode``)."""
        self.check()  # str() would make a TypeError of it
        return str(self, encoding, errors)

    def hex(self, *args, **options) -> str:
        """Two digits for each byte: ``hex([sep[, bytes_per_sep]])`` (``bytes.hex``)."""
        with memoryview(self) as shown:
            return shown.hex(*args, **options)

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
        from mpgroupcache.shm.viewio import ViewReader

        return ViewReader(self[:])

    def chunks(self, Py_ssize_t size=65536):
        """An iterator of ``bytes`` of at most ``size``, which keeps the value until it is exhausted or closed.

        It is what a WSGI application returns: servers want ``bytes`` and call ``close()`` when the client is gone.
        """
        from mpgroupcache.shm.viewio import iter_chunks

        return iter_chunks(self[:], size)


cdef destructor end_other_view = (<PyTypeObject *> ByteView).tp_dealloc
(<PyTypeObject *> ByteView).tp_dealloc = <destructor> end_view
