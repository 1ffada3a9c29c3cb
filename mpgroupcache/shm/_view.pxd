"""What the hit path sees of a view."""

cimport cython
from libc.stdint cimport uint8_t, uint32_t

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

    cdef void let_go(self) noexcept
    cdef void drop_hold(self) noexcept
    cdef int check(self) except -1

cdef ByteView pinned_view(Reader reader, uint32_t pin, const uint8_t *data, Py_ssize_t length)
