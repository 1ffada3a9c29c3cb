# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What a miss holds, and gives back however it ends: a seat in a flight, a request, a descriptor, the right to read.

A signal's handler may raise at any bytecode: between the call that takes a thing and the ``try`` behind it, and within
the ``finally`` that gives it back. Things that don't work:

- ``try`` and ``finally``, and ``with``: both have bytecodes of their own in which nothing is guarded.
- ``__del__``: an exception in it is swallowed half way.
- To block signals meanwhile: two system calls for each step, and other threads take them for this one.

Solution: no bytecode runs within any method here, so each happens whole or not at all; a thing is taken, and noted in
its `Hold`, by one such method; and `guarded` ends the hold where no bytecode runs either. What is dropped without that,
such as a coroutine's hold when its loop was closed, ends by ``tp_dealloc``. What still can fail: keys of ``singleflight``
run their own ``__hash__`` and ``__eq__``; under gevent a lock's release is Python.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from mpgroupcache.shm._exchange cimport Descriptor, Exchange, Reply, Request, rouse

import os


# ---- The process's own flights --------------------------------------------------------------------------------------

@cython.final
@cython.no_gc_clear  # as all of these: what a seat needs to leave must be there until the last has left
cdef class Flights:
    """Loads of one process under way, by key: whoever asks for a key meanwhile takes a `Seat` in its flight."""

    cdef dict table

    def __cinit__(self):
        self.table = {}

    def __len__(self):
        return len(self.table)

    def __iter__(self):
        return iter(list(self.table.values()))


@cython.final
@cython.no_gc_clear
cdef class Flight:
    """One load that callers of this process share. It ends with an outcome, or with the last of its seats."""

    cdef Flights home
    cdef readonly object key
    cdef readonly int64_t changes  # of its group when it began, or -1: nobody who has seen a later one joins it
    cdef PyObject *leading      # borrowed, as the next two: a seat that is dropped leaves
    cdef PyObject *first
    cdef PyObject *last

    @property
    def waiting(self) -> list:
        """The seats of those who wait for the leader."""
        seats = []
        cdef PyObject *at = self.first  # read behind the list's making, in which the collector may drop a seat
        while at != NULL:
            seats.append(<Seat> at)
            at = (<Seat> at).behind
        return seats

    @property
    def leader(self):
        """The seat of whoever loads; None: it has ended."""
        return None if self.leading == NULL else <Seat> self.leading

    cdef void leave_table(self):
        # Only this one: after a change there is another flight under its key.
        if self.home.table.get(self.key) is self:
            del self.home.table[self.key]


@cython.final
@cython.no_gc_clear
cdef class Seat:
    """A caller's place in a flight. The first one leads: it is to settle the flight. One that leaves hands that on."""

    cdef readonly Flight flight
    cdef readonly tuple held    # seats whose loads the caller is in, outermost first
    cdef readonly bint leads    # until it has settled the flight, or left
    cdef readonly bint over     # it has its outcome, or left
    cdef public uint64_t lease  # the coordinator's, of one that leads; 0: none
    cdef readonly object outcome  # what the leader has settled the flight with, where this one waited for that
    cdef public object wake     # called when it leads, or is over
    cdef PyObject *before
    cdef PyObject *behind

    def __dealloc__(self):
        self.leave()

    cdef void unlink(self) noexcept:
        if self.before != NULL:
            (<Seat> self.before).behind = self.behind
        else:
            self.flight.first = self.behind
        if self.behind != NULL:
            (<Seat> self.behind).before = self.before
        else:
            self.flight.last = self.before
        self.before = self.behind = NULL

    def settle(self, outcome not None) -> None:
        """End the flight: everybody in it has this outcome."""
        cdef Seat seat
        if not self.leads:
            return
        self.leads, self.over = False, True
        self.flight.leading = NULL
        self.flight.leave_table()
        while self.flight.first != NULL:
            seat = <Seat> self.flight.first
            seat.unlink()
            seat.outcome = outcome  # not the leader's: an error would keep its frames, and they the error
            seat.over = True
            rouse(seat.wake)

    cpdef leave(self):
        """Give the seat up. If it leads, the next one does."""
        cdef Seat heir
        if self.over or self.flight is None:
            return
        self.over = True
        if not self.leads:
            self.unlink()
            return
        self.leads = False
        if self.flight.first == NULL:
            self.flight.leave_table()  # where a key runs code of its own, somebody may still take a seat
        self.flight.leading = self.flight.first
        if self.flight.first == NULL:
            return
        heir = <Seat> self.flight.first
        heir.unlink()
        heir.leads = True
        rouse(heir.wake)


# ---- What one miss holds --------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc_clear
cdef class Hold:
    """All that one miss has taken. ``end`` gives back what of it is not over."""

    cdef list kept
    cdef Exchange reads         # the connection that it has the right to read

    def __cinit__(self):
        self.kept = []

    def __dealloc__(self):
        self.end()

    cpdef end(self):
        """Give everything back."""
        cdef list kept = self.kept
        self.stop_reading()
        if kept:
            self.kept = []
            for thing in reversed(kept):
                if type(thing) is Request:
                    (<Request> thing).leave()
                else:
                    (<Seat> thing).leave()

    def board(self, Flights flights not None, key, int64_t changes, tuple held not None) -> Seat:
        """Take a seat in the flight of ``key``: it leads where there is none, or one from before the last change."""
        cdef Seat seat = Seat.__new__(Seat), last
        cdef Flight flight
        found = flights.table.get(key)
        if found is not None and (<Flight> found).changes == changes:
            flight = found
            seat.flight = flight
            seat.before = flight.last
            if flight.last != NULL:
                last = <Seat> flight.last
                last.behind = <PyObject *> seat
            else:
                flight.first = <PyObject *> seat
            flight.last = <PyObject *> seat
        else:
            flight = Flight.__new__(Flight)
            flight.home, flight.key, flight.changes = flights, key, changes
            flights.table[key] = flight
            flight.leading = <PyObject *> seat
            seat.flight = flight
            seat.leads = True
        seat.held = held
        self.kept.append(seat)
        return seat

    def ask(self, Exchange exchange not None, request_id, bytes frame not None, Descriptor descriptor=None) -> Request:
        """Send a request, and a descriptor along with it. Raises what ``exchange.gone`` returns, or ``OSError``."""
        cdef Request request = Request.__new__(Request)
        cdef int error
        if exchange.broken is not None:
            raise exchange.gone()
        request.exchange, request.id, request.undo = exchange, request_id, exchange.undo
        request.reply = Reply.__new__(Reply)
        exchange.pending[request_id] = request.reply
        self.kept.append(request)
        error = exchange.put(frame, descriptor)
        if error:
            raise OSError(error, os.strerror(error))
        return request

    def ask_many(self, Exchange exchange not None, uint32_t first_id, int count, bytes frame not None) -> list:
        """Send a request with that id, which is the first of so many that are answered each by itself."""
        cdef Request request
        cdef list requests = []
        cdef int error
        cdef int i
        if exchange.broken is not None:
            raise exchange.gone()
        for i in range(count):
            request = Request.__new__(Request)
            request.exchange, request.id, request.undo = exchange, first_id + i, exchange.undo
            request.reply = Reply.__new__(Reply)
            exchange.pending[request.id] = request.reply
            requests.append(request)
        self.kept.extend(requests)
        error = exchange.put(frame, None)
        if error:
            raise OSError(error, os.strerror(error))
        return requests

    def owe(self, Exchange exchange not None, bytes undo not None) -> Request:
        """Hold what the other side has handed over without being asked."""
        cdef Request request = Request.__new__(Request)
        request.exchange, request.undo = exchange, undo
        request.reply = Reply.__new__(Reply)
        self.kept.append(request)
        return request

    def hand_over(self) -> Hold:
        """Another hold that has all of this one's; for a load that goes on when its caller goes."""
        cdef Hold heir = Hold.__new__(Hold)
        self.stop_reading()
        heir.kept, self.kept = self.kept, []
        return heir

    def read(self, Exchange exchange not None) -> bool:
        """Take the right to read for everybody, if nobody has it."""
        if exchange.reading != NULL or exchange.fd < 0:
            return False
        exchange.reading = <PyObject *> self
        self.reads = exchange
        return True

    cpdef stop_reading(self):
        """Give it back, and have another one read on."""
        cdef Exchange exchange = self.reads
        if exchange is not None:
            self.reads = None
            if exchange.reading == <PyObject *> self:
                exchange.stop_reading()


def guarded(function, *args):
    """Call ``function(hold, *args)`` with a hold of its own, which ends with the call."""
    cdef Hold hold = Hold.__new__(Hold)
    try:
        return function(hold, *args)
    finally:
        hold.end()
