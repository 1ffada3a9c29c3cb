"""Types of ``_reader.pyx``, which has the reasons."""

from typing import final

PINS: int
"""Pins of a region: views that a process may hold, and one for copying."""

COUNTERS: int
"""Counters of a group, in the order of ``struct mgc_counters``."""

MAX_GROUPS: int
"""Groups of an instance."""

LAYOUT_VERSION: int
"""Coordinator and workers must have the same."""

CONTROL_SIZE: int
"""Bytes of a control segment's address range."""

def forked() -> bool:
    """Whether this process is the child of a fork that ran no hooks; ``renew_epoch`` ends that."""

def renew_epoch() -> None:
    """Make every inherited reader unusable for lookups: called in a child, before it makes its own."""

def lock_writer(fd: int) -> None:
    """Become the writer of the control segment behind ``fd``, for as long as that open file description lives.

    Raises ``AlreadyRunning`` when another has the lock, ``ArenaError`` where the file cannot be locked.
    """

def try_gate(fd: int) -> bool:
    """Take the gate's lock of the control segment behind ``fd``, if nobody has it. Raises ``ArenaError``."""

def leave_gate(fd: int) -> None:
    """Give the gate's lock back."""

def unlock(fd: int) -> None:
    """Give back the gate's lock, and the writer's."""

def regions_held(fd: int, leaving: bool) -> bool:
    """Whether a process has a region of the control segment behind ``fd``; ``leaving``: also one that is about to end.

    Raises ``OSError``. It holds while the caller has the gate's lock and the writer's.
    """

@final
class Mapping:
    """A file mapped read-only; unmapped with its last reference. No descriptor is kept."""

    @property
    def size(self) -> int: ...
    def __new__(cls, fd: int, size: int) -> Mapping:
        """Map the first ``size`` bytes of ``fd``. Raises ``OSError``."""

@final
class Reader:
    """This process's place in one instance: the control segment, a region of its own, and the arenas it attached."""

    def __new__(cls, path: str) -> Reader:
        """Attach the control segment at ``path``, and claim a region if one is free.

        Raises ``ArenaError`` for a segment that is retired or of another version, ``OSError`` where there is none.
        """

    @property
    def number(self) -> int:
        """Of the region; -1: none."""

    def claim(self) -> bool:
        """Whether this process has a region here; where it has none, one is claimed if that can be had."""

    @property
    def refusal(self) -> str:
        """Why there is no region."""

    @property
    def generation(self) -> int:
        """The region's count of claims, which tells two owners of one region apart; 0 without a region."""

    @property
    def live_pins(self) -> int:
        """Pins that views of this process hold."""

    @property
    def usable(self) -> bool:
        """Whether this process may look up through this reader."""

    @property
    def path(self) -> str:
        """Under which the segment was opened; it may be another's by now."""

    def leave(self) -> None:
        """Say that this process is about to end. What it has pinned stays so until then."""

    @property
    def retired(self) -> bool:
        """Whether the coordinator has ended this instance."""

    def reads(self, path: str) -> bool:
        """Whether ``path`` is the instance that this reader reads, and it may look up in this process."""

    def counters(self, group: int) -> tuple[int, ...]:
        """The host's counts of a group, in the order of ``struct mgc_counters``."""

    def cleared(self, group: int) -> tuple[int, int]:
        """The hits and loads of a group that were counted when it was cleared last."""

    def server_requests(self, group: int) -> int:
        """How many gets of a group came from peers."""

    def before_fork(self, who: int) -> None:
        """Claim a region for the child and copy the live pins into it. Until ``after_fork_*`` no pin is cleared.

        ``who``: the thread, or greenlet, that forks.
        """

    def after_fork_in_parent(self, who: int) -> None:
        """Let go of the child's region, and clear the pins that were given back meanwhile."""

    def after_fork_in_child(self, who: int) -> None:
        """Take over the copied pins; ``renew_epoch`` comes first."""

class SharedCounter:
    """A 64-bit counter in a page that children inherit: threads and processes add to it atomically."""

    def add(self, n: int) -> None:
        """Add ``n``, which may be negative; wraps around."""

    def get(self) -> int:
        """The sum so far."""
