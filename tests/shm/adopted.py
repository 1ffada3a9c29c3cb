"""An arena whose coordinator dies, for another to go on."""

from __future__ import annotations

from arenas import Instance, Lookup, OpenArena, is_whole, whole_value

from mpgroupcache.shm._writer import Arena
from mpgroupcache.shm.ownership import Segment, open_instance

BUDGET = 1 << 20
KEYS = [b"key-%d" % i for i in range(1500)]


class Adopted:
    """An instance whose coordinator is dropped as by a SIGKILL, for another to go on."""

    def __init__(self, path: str, budget: int = BUDGET, checksums: bool = False) -> None:
        self.path = path
        self.checksums = checksums
        self.instance = Instance(path)
        self.opened = OpenArena(self.instance, budget, checksums=checksums)
        self.lookup = Lookup(*self.opened.address)

    def put(self, *keys: bytes, size: int = 500, hot: bool = False) -> None:
        for key in keys:
            assert self.opened.arena.put(key, whole_value(key, 0, size), hot=hot)

    def next(self) -> Arena:
        """The dead one's memory is let go of without a word in the segments; the next one maps them anew."""
        name = self.opened.segment.name
        self.opened.arena.close()
        self.opened.segment.close()
        self.instance.control.close()
        self.instance.segment.close()
        self.instance.segment, self.instance.control = open_instance(self.instance.name)
        self.instance.control.reap()
        self.opened.segment = Segment.attach(name)
        segment = self.opened.segment
        self.opened.arena = Arena(
            self.instance.control,
            segment.buffer,
            segment.fd,
            group=self.opened.group,
            checksums=self.checksums,
            adopt=True,
        )
        return self.opened.arena

    def found(self, *keys: bytes) -> list[bytes]:
        """Those of the keys that the coordinator has, whole."""
        there = []
        for key in keys:
            if (value := self.opened.get(key)) is not None:
                assert is_whole(key, value)
                there.append(key)
        return there
