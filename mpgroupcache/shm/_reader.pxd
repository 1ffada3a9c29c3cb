"""What the modules of the hit path see of a reader, and what is so short that it must not cost them a call."""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from cpython.object cimport PyObject

from mpgroupcache.shm._core cimport mgc_region, mgc_unpin

cdef uint64_t *process_epoch

cdef int open_file(str path, int flags) except -1

@cython.final
cdef class Mapping:
    cdef const uint8_t *base
    cdef readonly size_t size
    cdef uint64_t epoch              # of the process that has it mapped; 0: whoever has this object

    cdef void set_inherited(self, bint inherited) noexcept

@cython.final
cdef class Child:
    cdef mgc_region *region          # claimed for it; NULL: none
    cdef int number

@cython.no_gc
@cython.final
cdef class Reader:
    cdef Mapping control
    cdef list arenas                 # of Mapping: views refer to the reader alone
    cdef mgc_region *region          # NULL: none was free, or let go of
    cdef readonly int number         # of the region; -1: none
    cdef int refused                 # why there is none: MGC_NO_REGION, or a negative errno
    cdef uint64_t lookup_epoch       # of the process that may look up through this reader
    cdef uint64_t pin_epoch          # of the process whose pins are in `region`; differs in a child that inherited views
    cdef uint32_t forks              # that are between their hooks: no pin is cleared then, and gets copy
    cdef uint32_t handed_down        # those of them that have a region: their children have the arenas mapped, too
    cdef dict children               # of Child, by who forks
    cdef uint32_t free_count, deferred_count
    cdef uint16_t free_pins[1024]    # a stack; pin 0 is never in it
    cdef PyObject *views[1024]       # of each pin: the view that has it or had it last, whose memory the next one takes
    cdef uint16_t deferred[1024]     # unpinned between the hooks
    cdef int control_fd              # to open the segment again at a fork, when its name may be another's
    cdef uint64_t inode, device
    cdef readonly str path           # under which the segment was opened; it may be another's by now
    cdef object __weakref__

    cdef bint _owns_descriptor(self) noexcept
    cdef int _claim(self, int above, mgc_region **region) noexcept
    cdef void _clear_deferred(self) noexcept
    cdef void _end_fork(self, who)
    cdef void _hand_down(self, int change) noexcept
    cdef void add_arena(self, Mapping arena)
    cdef void _drop_children(self) noexcept

    cdef inline void give_pin(self, uint32_t pin) noexcept:
        """Clear a pin, and put it back on the stack."""
        if self.forks:  # also in the child, where other hooks may run before ours
            self.deferred[self.deferred_count] = pin
            self.deferred_count += 1
            return
        if self.pin_epoch != process_epoch[0] or self.region == NULL:
            return  # a fork that could not keep it: the pin is the parent's
        mgc_unpin(self.region, pin)
        self.free_pins[self.free_count] = pin
        self.free_count += 1
