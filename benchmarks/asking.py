"""A worker's half of misses, without a worker around it. coordinate.py starts some, in the environment of its choice.

    python -P benchmarks/asking.py SOCKET WAYS VALUE_BYTES

So many ASKs are always under way, as from threads of one worker; each LEASE is answered by STORE and the next ASK.
Reads seconds from standard input, a number a line, and prints how many misses there were in that time.

Frames are put together from bytes, and go out together: else the coordinator would wait for its workers.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from mpgroupcache.ipc import frame, messages

GROUP, CACHE_BYTES = "coordinate", 64 << 20
MARK = 0x1122334455667788  # stands for 8 bytes of a frame that differ from one to the next


def say(kind: type[messages.Message], request_id: int, **fields: Any) -> bytes:
    """A message's frame as this library has it: another one's may have fewer fields, or more."""
    return frame.encode(kind(**{name: fields.get(name) for name in kind.__struct_fields__}), request_id)


class Asking:
    """One call connection."""

    def __init__(self, path: str, ways: int, value: bytes) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.connect(path)
        self._numbers = itertools.count(int.from_bytes(os.urandom(7), "big") << 8)  # keys that nobody else has
        versions = {"lowest": frame.VERSION, "highest": frame.VERSION, "abilities": ()}
        self._request(say(messages.Hello, 1, role="call", pid=os.getpid(), worker=os.urandom(16), **versions))
        group = {
            "name": GROUP,
            "cache_bytes": CACHE_BYTES,
            "load_timeout": None,
            "picks": False,
            "module": "",
            "getter": "",
        }
        declared = self._request(say(messages.Declare, 1, **group))
        assert isinstance(declared, messages.Declared), declared
        mark = MARK.to_bytes(8, "big")
        fields = {"group": declared.group, "key": mark, "held": (), "copy": False, "here": False}
        self._asks = {way: say(messages.Ask, way, **fields).split(mark) for way in range(1, ways + 1)}
        self._store = say(messages.Store, 0, lease=MARK, value=value, picked=False).split(mark)
        lease = say(messages.Lease, 0, lease=MARK)  # its number is as long as this: the first one is random
        self._lease_start, self._lease_bytes = lease[:4], len(lease)

    def _request(self, request: bytes) -> messages.Message:
        decoder = frame.Decoder()
        self._sock.sendall(request)
        decoder.feed(self._sock.recv(1 << 16))
        ((_, answer),) = decoder
        return answer

    def _ask(self, way: int) -> bytes:
        return next(self._numbers).to_bytes(8, "big").join(self._asks[way])

    def _leases(self) -> Iterator[tuple[int, bytes]]:
        """Yield those that have come: the way, and the lease's number as it travels."""
        data, size = self._sock.recv(1 << 16), self._lease_bytes
        while len(data) % size:
            data += self._sock.recv(1 << 16)
        for at in range(0, len(data), size):
            assert data[at : at + 4] == self._lease_start, data
            yield int.from_bytes(data[at + 4 : at + 8], "big"), data[at + size - 8 : at + size]

    def misses(self, seconds: float) -> int:
        """Miss for so long; returns how often that was."""
        ended = time.perf_counter() + seconds
        count, under_way = 0, len(self._asks)
        self._sock.sendall(b"".join(map(self._ask, self._asks)))
        while under_way:
            more = time.perf_counter() < ended
            said = []
            for way, lease in self._leases():
                said.append(lease.join(self._store))
                if more:
                    count += 1
                    said.append(self._ask(way))
                else:
                    under_way -= 1
            self._sock.sendall(b"".join(said))
        return count


def main(arguments: list[str]) -> None:
    path, ways, value_bytes = arguments
    asking = Asking(path, int(ways), b"x" * int(value_bytes))
    for line in sys.stdin:
        print(asking.misses(float(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
