"""What the hit path sees of a view."""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from mpgroupcache.shm._reader cimport Reader

@cython.no_gc
@cython.final
cdef class ByteView:
    cdef object owner           # Reader (with a pin), Mapping, bytes, or for a slice the view it is of; None: let go of
    cdef const uint8_t *data
    cdef Py_ssize_t length
    cdef Py_ssize_t holds       # memoryviews and slices of this view
    cdef uint32_t pin           # 0: none
    cdef bint released
    cdef uint64_t number        # without a pin: the version, 0: none ...
    cdef int64_t fresh_until    # ... and until when it is fresh, on mgc_host_now()'s clock; 0: for ever

    cdef void let_go(self) noexcept
    cdef void drop_hold(self) noexcept
    cdef int check(self) except -1
    cdef ByteView checked_root(self)

cdef extern from *:
    """
    /* A reference to memory in which an object has ended: of this type, and with all fields as they were. */
    static inline PyObject *mgc_revived(PyObject *memory) { return PyObject_Init(memory, Py_TYPE(memory)); }
    """
    object mgc_revived(PyObject *)

cdef ByteView first_view(Reader reader, uint32_t pin)

cdef ByteView numbered_view(object value, uint64_t number, int64_t fresh_until)

cpdef dead_in(ByteView view)

cdef inline object pinned_view(Reader reader, uint32_t pin, const uint8_t *data, Py_ssize_t length):
    """A view that takes ``pin``, the top of ``reader``'s stack, and gives it back at its end."""
    view = view_of_pin(reader, pin, data, length)  # where there is no memory for it, the pin is still in the stack
    reader.free_count -= 1
    return view

cdef inline object view_of_pin(Reader reader, uint32_t pin, const uint8_t *data, Py_ssize_t length):
    """A view of ``pin``, which is to be in no stack, and which it gives back at its end."""
    cdef ByteView view
    if reader.views[pin] == NULL:
        view = first_view(reader, pin)
    else:
        view = mgc_revived(reader.views[pin])
        Py_INCREF(reader)  # which view.owner is
    view.data = data
    view.length = length
    return view
