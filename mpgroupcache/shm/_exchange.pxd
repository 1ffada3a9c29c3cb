"""What `Hold` sees of a channel's native half."""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef void rouse(object wake) noexcept

@cython.final
cdef class Descriptor:
    cdef int fd

@cython.final
cdef class Reply:
    cdef object answer
    cdef Descriptor descriptor
    cdef object wake

@cython.final
@cython.no_gc_clear
cdef class Request:
    cdef readonly Exchange exchange
    cdef object id
    cdef Reply reply
    cdef bytes undo             # None: it is over; the exchange's, but for its id

    cpdef leave(self)

@cython.no_gc_clear
cdef class Exchange:
    cdef int fd
    cdef uint64_t epoch
    cdef dict pending           # of Reply, by request id
    cdef PyObject *reading      # the hold that reads for all, borrowed
    cdef int watchers           # loops that watch the descriptor
    cdef readonly object broken # the exception that ended it; None: it is in use
    cdef uint8_t *room          # what was read: from `begin` to `end` it waits to be delivered
    cdef size_t size, begin, end
    cdef list descriptors       # that came and wait for their messages, in order
    cdef list backlog           # of (frame, descriptor, sent) that the socket did not take whole
    cdef readonly Py_ssize_t waiting  # bytes in there
    cdef bytes undo             # the frame that takes a request back ...
    cdef int id_at              # ... with its id there
    cdef uint32_t last_id       # of a request

    cdef int put(self, bytes frame, Descriptor descriptor) except? -1
    cdef bytes undo_of(self, uint32_t request_id)
    cpdef object gone(self)
    cdef void close_if_unused(self)
    cdef void stop_reading(self)
    cdef void rouse_reader(self)
    cdef ssize_t transmit(self, bytes frame, size_t at, Descriptor descriptor) noexcept
    cdef int make_room(self) except -1
