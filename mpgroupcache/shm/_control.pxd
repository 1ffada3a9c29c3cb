"""What arenas see of the control segment's writer."""

cimport cython
from libc.stdint cimport uint32_t

from mpgroupcache.shm._corewriter cimport mgc_control

@cython.no_gc
@cython.final
cdef class Control:
    cdef mgc_control *control    # NULL: closed
    cdef Py_buffer memory
    cdef bint held               # the buffer
    cdef Py_ssize_t arenas       # open ones
    cdef double opened           # on the monotonic clock
    cdef readonly bytes boot_id

    cpdef int close(self) except -1
    cdef int check_open(self) except -1
    cdef int check_group(self, uint32_t group) except -1
