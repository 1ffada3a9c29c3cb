# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A channel's two directions, as far as no bytecode may run in them: see _hold.pyx, and worker/channel.py.

What was read and not delivered, or sent and not taken by the socket, stays here for whoever reads or sends next. So a
signal's handler that raises in between loses no byte, no descriptor and no answer.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from posix.fcntl cimport fcntl
from posix.unistd cimport close as posix_close, read as posix_read, write as posix_write

from mpgroupcache.shm._reader cimport process_epoch

import os

cdef extern from "<sys/mman.h>" nogil:
    int memfd_create(const char *name, unsigned int flags)
    unsigned int MFD_CLOEXEC, MFD_ALLOW_SEALING

cdef extern from "<fcntl.h>" nogil:
    int F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_SEAL, F_DUPFD_CLOEXEC

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct timeval:
        long tv_sec
        long tv_usec
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)
    int SOL_SOCKET, SO_RCVTIMEO, SCM_RIGHTS, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_CMSG_CLOEXEC, MSG_CTRUNC, SHUT_RDWR
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    int shutdown(int fd, int how)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *header)
    unsigned char *CMSG_DATA(cmsghdr *header)
    size_t CMSG_LEN(size_t length)
    size_t CMSG_SPACE(size_t length)

cdef extern from "Python.h":
    int PyGC_Disable()
    int PyGC_Enable()

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int count, int flags)
    int EFD_CLOEXEC, EFD_NONBLOCK

cdef enum:
    FIRST_ROOM = 128 << 10  # bytes; a frame with an inline value fits
    MIN_ROOM = 16 << 10     # bytes that are offered to a read
    MOST_FDS = 16           # that one read may bring

cdef void rouse(object wake) noexcept:
    """Wake whoever waits: a lock's ``release``, or a `Waker`. What was woken before, or is gone, is no matter."""
    if wake is not None:
        try:
            wake()
        except BaseException:
            pass


# ---- Descriptors ----------------------------------------------------------------------------------------------------

@cython.final
cdef class Descriptor:
    """A file descriptor, closed with its last reference."""

    def __cinit__(self, int fd):
        self.fd = fd

    def __dealloc__(self):
        if self.fd >= 0:
            posix_close(self.fd)

    def fileno(self) -> int:
        """Its number. Raises ``ValueError`` once it is closed."""
        if self.fd < 0:
            raise ValueError("the descriptor is closed")
        return self.fd

    def detach(self) -> int:
        """Its number, which is the caller's to close from now on."""
        cdef int fd = self.fd
        self.fd = -1
        return fd

    def close(self) -> None:
        """Close it now."""
        cdef int fd = self.fd
        self.fd = -1
        if fd >= 0:
            posix_close(fd)


def sealed(value not None) -> Descriptor:
    """A memfd that holds ``value``, bytes-like, and that nobody can change any more. Raises ``OSError``."""
    cdef const uint8_t[::1] contents = value
    cdef Py_ssize_t done = 0, size = contents.shape[0]
    cdef ssize_t count
    cdef Descriptor memfd = Descriptor(memfd_create("mpgroupcache-value", MFD_CLOEXEC | MFD_ALLOW_SEALING))
    if memfd.fd < 0:
        raise OSError(errno, os.strerror(errno), "memfd")
    while done < size:
        with nogil:
            count = posix_write(memfd.fd, &contents[done], size - done)
        if count < 0:
            if errno != EINTR:
                raise OSError(errno, os.strerror(errno), "memfd")
            PyErr_CheckSignals()
        else:
            done += count
    if fcntl(memfd.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) != 0:
        raise OSError(errno, os.strerror(errno), "memfd")
    return memfd


# ---- Waking a loop --------------------------------------------------------------------------------------------------

@cython.final
cdef class Bell:
    """Wakes an event loop, which watches it for reading: from any thread, and with no bytecode run for it."""

    cdef Descriptor event
    cdef list rung

    def __cinit__(self):
        self.event = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
        self.rung = []
        if self.event.fd < 0:
            raise OSError(errno, os.strerror(errno), "eventfd")

    def fileno(self) -> int:
        return self.event.fileno()

    def waker(self, item) -> Waker:
        """What rings for ``item``."""
        cdef Waker waker = Waker.__new__(Waker)
        waker.bell, waker.item = self, item
        return waker

    def take(self) -> list:
        """The items that it was rung for since, and silence."""
        cdef uint64_t count
        posix_read(self.event.fd, &count, sizeof(count))
        rung, self.rung = self.rung, []
        return rung



@cython.final
cdef class Waker:
    cdef Bell bell
    cdef object item

    def __call__(self) -> None:
        cdef uint64_t one = 1
        self.bell.rung.append(self.item)
        posix_write(self.bell.event.fd, &one, sizeof(one))


# ---- Requests -------------------------------------------------------------------------------------------------------

@cython.final
cdef class Reply:
    """What waits in a connection for an answer."""


@cython.final
@cython.no_gc_clear
cdef class Request:
    """Something asked of the other side. One that is dropped is undone, by a frame that was made for that."""

    def __dealloc__(self):
        self.leave()

    @property
    def answer(self):
        """The message that came for it; None: none yet."""
        return self.reply.answer

    @property
    def descriptor(self):
        """What came with the answer, or None."""
        return self.reply.descriptor

    @property
    def wake(self):
        return self.reply.wake

    @wake.setter
    def wake(self, wake):
        self.reply.wake = wake

    def settle(self, frame=None, Descriptor descriptor=None) -> None:
        """It is over, with a frame that says how. Of a broken connection the other side knows already."""
        if self.undo is None:
            return
        self.undo = None
        if frame is not None:
            self.exchange.put(frame, descriptor)

    cpdef leave(self):
        """Take the request back."""
        undo, self.undo = self.undo, None
        if self.exchange is None:
            return
        if undo is not None:
            self.exchange.put(undo if self.id is None else self.exchange.undo_of(self.id), None)
        if self.id is not None and self.exchange.pending.pop(self.id, None) is not None:
            self.exchange.rouse_reader()  # perhaps it was this one that had been woken to read


@cython.no_gc_clear
cdef class Exchange:
    """The two directions of one connection, as far as no bytecode may run in them.

    One hold at a time has the right to read. What it has read and not delivered is the next one's to take.
    """

    def __cinit__(self, *args, **kwargs):
        self.fd = -1
        self.epoch = process_epoch[0]
        self.pending = {}
        self.descriptors = []
        self.backlog = []
        self.room = <uint8_t *> PyMem_Malloc(FIRST_ROOM)
        if self.room == NULL:
            raise MemoryError()
        self.size = FIRST_ROOM

    def __dealloc__(self):
        if self.fd >= 0:
            posix_close(self.fd)
        PyMem_Free(self.room)

    def open(self, int fd, bytes undo not None, int id_at) -> None:
        """Use a connected socket, by a descriptor of its own.

        ``undo``: the frame that takes a request back, with its id (32 bits, big endian) at ``id_at``.
        """
        self.undo, self.id_at = undo, id_at
        self.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))

    def fileno(self) -> int:
        return self.fd

    def __len__(self):
        """How many requests wait for their answers."""
        return len(self.pending)

    def take_ids(self, uint32_t count) -> int:
        """The first of so many ids of requests in a row. That many requests are never under way at once: they wrap."""
        cdef uint32_t first = self.last_id + 1
        if first == 0 or first + count < first:  # 0 is that of what is no request
            first = 1
        self.last_id = first + count - 1
        return first

    # Ends

    def fail(self, error not None) -> None:
        """Break the connection: everybody who waits is woken, and meets ``broken``."""
        if self.broken is None:
            self.broken = error
        if self.fd >= 0 and self.epoch == process_epoch[0]:
            shutdown(self.fd, SHUT_RDWR)  # wakes a thread that reads
        for reply in list(self.pending.values()):
            rouse((<Reply> reply).wake)
        self.close_if_unused()

    def abandon(self, error not None) -> None:
        """In a forked child: close the descriptor alone; the connection is the parent's."""
        self.broken = error
        if self.fd >= 0:
            posix_close(self.fd)
            self.fd = -1
        self.descriptors.clear()
        self.backlog.clear()

    cdef bytes undo_of(self, uint32_t request_id):
        cdef bytes frame = PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.undo), PyBytes_GET_SIZE(self.undo))
        cdef uint8_t *at = <uint8_t *> PyBytes_AS_STRING(frame) + self.id_at
        at[0], at[1], at[2], at[3] = request_id >> 24, request_id >> 16 & 0xFF, request_id >> 8 & 0xFF, request_id & 0xFF
        return frame

    cpdef object gone(self):
        """``broken`` as an exception of the caller's own: of a shared one the tracebacks would keep all callers' frames."""
        return type(self.broken)(*self.broken.args)

    cdef void close_if_unused(self):
        # Closed earlier, its number could be another file's while somebody still uses it.
        if self.broken is not None and self.reading == NULL and self.watchers == 0 and self.fd >= 0:
            posix_close(self.fd)
            self.fd = -1
            self.descriptors.clear()
            self.backlog.clear()

    def watch(self) -> int:
        """A loop is about to watch the descriptor, which stays open until ``unwatch``. Raises what ``gone`` returns."""
        if self.broken is not None:
            raise self.gone()
        self.watchers += 1
        return self.fd

    def unwatch(self) -> None:
        self.watchers -= 1
        self.close_if_unused()

    # Out

    cdef ssize_t transmit(self, bytes frame, size_t at, Descriptor descriptor) noexcept:
        """How many bytes the socket took; a negative errno."""
        cdef msghdr message
        cdef iovec part
        cdef uint8_t control[64]
        cdef cmsghdr *header
        cdef ssize_t count
        part.iov_base = PyBytes_AS_STRING(frame) + at
        part.iov_len = PyBytes_GET_SIZE(frame) - at
        if descriptor is None:
            count = send(self.fd, part.iov_base, part.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL)
        else:
            memset(&message, 0, sizeof(message))
            message.msg_iov, message.msg_iovlen = &part, 1
            memset(control, 0, sizeof(control))
            message.msg_control, message.msg_controllen = control, CMSG_SPACE(sizeof(int))
            header = CMSG_FIRSTHDR(&message)
            header.cmsg_level, header.cmsg_type, header.cmsg_len = SOL_SOCKET, SCM_RIGHTS, CMSG_LEN(sizeof(int))
            memcpy(CMSG_DATA(header), &descriptor.fd, sizeof(int))
            count = sendmsg(self.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        return count if count >= 0 else -errno

    def post(self, bytes frame not None, Descriptor descriptor=None) -> int:
        """Send a frame, or what the socket takes of it; the rest goes with ``flush``. Never waits, raises nothing.

        Returns 0, or an errno: the connection is of no use then.
        """
        return self.put(frame, descriptor)

    cdef int put(self, bytes frame, Descriptor descriptor) except? -1:
        cdef ssize_t count = 0
        cdef int collects
        if self.broken is not None or self.fd < 0 or self.epoch != process_epoch[0]:
            return 0
        if not self.backlog:
            count = self.transmit(frame, 0, descriptor)
            if count == PyBytes_GET_SIZE(frame):
                return 0
            if count < 0:
                if count != -EAGAIN:
                    shutdown(self.fd, SHUT_RDWR)  # else nobody would know that this frame is missing
                    return -count
                count = 0
        # Before 3.12 the collector may run where a tuple is made, and drop a request: its frame would come in between.
        collects = PyGC_Disable()
        self.backlog.append((frame, None if count else descriptor, count))
        self.waiting += PyBytes_GET_SIZE(frame) - count
        if collects:
            PyGC_Enable()
        return 0

    def flush(self) -> int:
        """Send what waits, as far as the socket takes it. Returns 0, or an errno."""
        cdef int collects = PyGC_Disable()  # as in post()
        cdef ssize_t count = 0
        cdef size_t at
        while self.backlog and self.fd >= 0:
            frame, descriptor, at = self.backlog[0]
            count = self.transmit(frame, at, descriptor)
            if count < 0:
                break
            self.waiting -= count
            if at + count < <size_t> PyBytes_GET_SIZE(frame):
                self.backlog[0] = (frame, None, at + count)
            else:
                self.backlog.pop(0)
        if collects:
            PyGC_Enable()
        return 0 if count >= 0 or count == -EAGAIN else -count

    # In

    def set_timeout(self, double seconds) -> None:
        """Bound what ``receive`` waits: by the kernel, since Python's own timeouts cost a ``poll`` before every call."""
        cdef timeval timeout
        timeout.tv_sec = <long> seconds
        timeout.tv_usec = max(1000, <long> ((seconds - timeout.tv_sec) * 1e6))  # 0 would be: for ever
        setsockopt(self.fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout))

    def receive(self, bint wait) -> int:
        """Read what has come; the caller has the right to. ``wait``: as long as the socket's own timeout says.

        Returns the number of bytes; 0 at the end of the stream; -1 where nothing came in time. Raises ``OSError``.
        """
        cdef msghdr message
        cdef iovec part
        cdef uint8_t control[128]
        cdef cmsghdr *header
        cdef ssize_t count
        cdef int flags = MSG_CMSG_CLOEXEC | (0 if wait else MSG_DONTWAIT)
        cdef int fd
        cdef size_t i
        self.make_room()
        memset(&message, 0, sizeof(message))
        part.iov_base, part.iov_len = self.room + self.end, self.size - self.end
        message.msg_iov, message.msg_iovlen = &part, 1
        message.msg_control, message.msg_controllen = control, CMSG_SPACE(MOST_FDS * sizeof(int))
        with nogil:
            count = recvmsg(self.fd, &message, flags)
        if count < 0:
            if errno == EINTR:
                PyErr_CheckSignals()
            elif errno != EAGAIN:
                raise OSError(errno, os.strerror(errno))
            return -1
        header = CMSG_FIRSTHDR(&message)
        while header != NULL:
            if header.cmsg_level == SOL_SOCKET and header.cmsg_type == SCM_RIGHTS:
                for i in range((header.cmsg_len - CMSG_LEN(0)) // sizeof(int)):
                    memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int))
                    self.descriptors.append(Descriptor(fd))
            header = CMSG_NXTHDR(&message, header)
        if message.msg_flags & MSG_CTRUNC:
            raise OSError("out of file descriptors")
        self.end += count
        return count

    cdef int make_room(self) except -1:
        cdef uint8_t *larger
        if self.begin == self.end:
            self.begin = self.end = 0
        if self.size - self.end >= MIN_ROOM:
            return 0
        memmove(self.room, self.room + self.begin, self.end - self.begin)
        self.end -= self.begin
        self.begin = 0
        if self.size - self.end < MIN_ROOM:
            larger = <uint8_t *> PyMem_Realloc(self.room, 2 * self.size)
            if larger == NULL:
                raise MemoryError()
            self.room, self.size = larger, 2 * self.size
        return 0

    @property
    def has_unread(self) -> bool:
        """Whether what was read waits to be delivered."""
        return self.begin < self.end

    def unread(self) -> bytes:
        """What was read, and is not delivered yet."""
        return PyBytes_FromStringAndSize(<const char *> self.room + self.begin, self.end - self.begin)

    def deliver(self, size_t size, request_id, message not None, bint brings) -> bool:
        """Hand out the message in the first ``size`` of the unread bytes. False: its descriptor did not come."""
        cdef Descriptor descriptor = None
        cdef Reply reply
        self.begin += size
        if brings:
            if not self.descriptors:
                return False
            descriptor = self.descriptors.pop(0)
        found = self.pending.pop(request_id, None)
        if found is not None:  # else its caller gave up
            reply = found
            reply.descriptor = descriptor
            reply.answer = message
            rouse(reply.wake)
        return True

    cdef void stop_reading(self):
        """The one who reads for all leaves."""
        self.reading = NULL
        self.close_if_unused()
        self.rouse_reader()

    cdef void rouse_reader(self):
        """The others found somebody reading, and sleep: where nobody does, one of those who sleep in a thread is woken.

        Whoever began before this is seen here; whoever begins later finds nobody reading.
        """
        cdef Reply reply
        if self.reading != NULL:
            return
        for found in self.pending.values():
            reply = found
            if reply.answer is None and reply.wake is not None and type(reply.wake) is not Waker:
                rouse(reply.wake)
                return
