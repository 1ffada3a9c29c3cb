"""Types of ``_control.pyx``, which has the reasons."""

from typing import final

from typing_extensions import Buffer

CONTROL_SIZE: int
"""Bytes of a control segment's address range."""

MAX_GROUPS: int
"""Groups of an instance."""

def retire_segment(path: str) -> None:
    """Tell the workers that attached a dead instance's segment to let go of it. Others' files are left alone."""

def sign_of_life(path: str) -> tuple[bytes, int] | None:
    """(boot id, CLOCK_BOOTTIME in ns) of the last tick of a control segment's coordinator; None where it is none.

    Of any layout: before the fourth, which brought this, the time is 0.
    """

@final
class Control:
    """The writer of a control segment: ``memory`` is its whole buffer, ``fd`` a locked description of it."""

    def __new__(cls, memory: Buffer, fd: int, boot_id: bytes, *, adopt: bool = False) -> Control:
        """Format it, or go on with a dead coordinator's. ``ArenaError``: no memory, or it cannot be taken over."""

    @property
    def boot_id(self) -> bytes: ...
    @property
    def touches_lost(self) -> int:
        """Touches that were overwritten before they were drained."""

    def close(self) -> None:
        """Let go of the memory. ``BufferError`` while arenas are open: they read the pins."""

    def retire(self) -> None:
        """Tell attached workers that this instance has ended."""

    def stamp(self) -> None:
        """Note the time, for ``sign_of_life``."""

    def add_group(self, name: str, budget: int) -> int:
        """Add a group's row and return its id. ``ArenaError`` after ``MAX_GROUPS``."""

    def groups(self) -> list[tuple[str | None, int]]:
        """(name, budget in bytes) of each group's row, in the order of their ids. A name that is no text is None."""

    @property
    def attached(self) -> int:
        """How many workers had a region at the last ``reap``."""

    def spare_regions(self, spare: int) -> int:
        """Commit regions until ``spare`` are free above all claimed ones, and return how many are."""

    def reap(self) -> int:
        """Free the regions of dead workers, and return their number."""

    def drain(self, now: float | None = None) -> int:
        """Bring the workers' touches into the LRU lists and count them in the rates; returns their number.

        Rates are as of the last drain: ``now``, in seconds since the control segment was made (default: what the clock
        says), which does not go back.
        """

    def count_request(self, group: int) -> None:
        """Count one get of a peer's."""

    def count(self, group: int, counter: int, n: int = 1) -> None:
        """Add to the coordinator's own counters of a group."""

    def raise_changes(self, group: int) -> int:
        """Begin a change of the group's values: raise its change count, and return it. First of all."""

    def changes(self, group: int) -> int:
        """The group's change count. It begins at random."""

    def note_clear(self, group: int) -> None:
        """Remember what is counted of a group, which is about to be cleared."""

    def set_ages(
        self,
        group: int,
        ttl: float,
        stale: float,
        stale_if_error: float,
        copy_ttl: float,
        negative_ttl: float,
        jitter: float,
    ) -> None:
        """Note the ages of a group, in seconds, for the next coordinator. inf: not bounded."""

    def ages(self, group: int) -> tuple[float, float, float, float, float, float]:
        """What ``set_ages`` was given last, here or by a dead coordinator, in its order."""

    def advance(self, seconds: float) -> None:
        """Move the instance's clock, by which entries age. For tests."""
