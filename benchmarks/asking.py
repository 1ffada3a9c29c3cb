"""A worker's half of misses, without a worker around it. coordinate.py starts some, in the environment of its choice.

    python -P benchmarks/asking.py SOCKET WAYS VALUE_BYTES

So many ASKs are always under way, as from threads of one worker; each LEASE is answered by STORE and the next ASK.
Reads seconds from standard input, a number a line, and prints how many misses there were in that time.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
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
        self._decoder = frame.Decoder()
        self._numbers = itertools.count(int.from_bytes(os.urandom(7), "big") << 8)  # keys that nobody else has
        versions = {"lowest": frame.VERSION, "highest": frame.VERSION, "abilities": ()}
        self._request(say(messages.Hello, 1, role="call", pid=os.getpid(), worker=os.urandom(16), **versions))
        group = {"name": GROUP, "cache_bytes": CACHE_BYTES, "load_timeout": None, "picks": False}
        declared = self._request(say(messages.Declare, 1, **group))
        assert isinstance(declared, messages.Declared), declared
        # Frames are made of pieces: encoding them would cost this process more than anything else does.
        mark = MARK.to_bytes(8, "big")
        self._store = say(messages.Store, 0, lease=MARK, value=value).split(mark)
        fields = {"group": declared.group, "key": mark, "held": (), "copy": False, "here": False}
        self._asks = {way: say(messages.Ask, way, **fields).split(mark) for way in range(1, ways + 1)}

    def _request(self, request: bytes) -> messages.Message:
        self._sock.sendall(request)
        ((_, answer),) = self._receive()
        return answer

    def _receive(self) -> list[frame.Frame]:
        self._decoder.feed(self._sock.recv(1 << 16))
        return list(self._decoder)

    def _ask(self, way: int) -> bytes:
        return next(self._numbers).to_bytes(8, "big").join(self._asks[way])

    def misses(self, seconds: float) -> int:
        """Miss for so long; returns how often that was."""
        ended = time.perf_counter() + seconds
        count, under_way = 0, len(self._asks)
        for way in self._asks:
            self._sock.sendall(self._ask(way))
        while under_way:
            more = time.perf_counter() < ended
            for way, lease in self._receive():
                assert isinstance(lease, messages.Lease), lease
                store = lease.lease.to_bytes(8, "big").join(self._store)
                if more:
                    count += 1
                    self._sock.sendall(store + self._ask(way))
                else:
                    under_way -= 1
                    self._sock.sendall(store)
        return count


def main(arguments: list[str]) -> None:
    path, ways, value_bytes = arguments
    asking = Asking(path, int(ways), b"x" * int(value_bytes))
    for line in sys.stdin:
        print(asking.misses(float(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
