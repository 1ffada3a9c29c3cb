"""What a process holds of the machine, as the kernel tells it."""

from __future__ import annotations

import collections
import contextlib
import os
from pathlib import Path
from typing import NamedTuple

_KINDS = {"/dev/shm/": "/dev/shm", "/memfd:": "memfd", "pipe:": "pipe", "socket:": "socket", "anon_inode:": "anon"}


class Holdings(NamedTuple):
    private: int
    """Bytes of memory that nobody else has: the heap and stacks. Shared memory is `mappings`' and /dev/shm's."""
    threads: int
    descriptors: dict[str, int]
    """How many of each kind: a file's path, ``/dev/shm``, ``unix``, ``tcp``, ``memfd`` and so on."""
    mappings: dict[str, int]
    """Of /dev/shm, and of memfds."""
    children: int


def holdings(pid: int) -> Holdings:
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Holdings(
        private=int(status["RssAnon"].split()[0]) * 1024,
        threads=int(status["Threads"]),
        descriptors=_descriptors(process),
        mappings=_mappings(process),
        children=sum(len((task / "children").read_text().split()) for task in (process / "task").iterdir()),
    )


def _descriptors(process: Path) -> dict[str, int]:
    sockets = {f"socket:[{inode}]": kind for kind in ("unix", "tcp", "tcp6") for inode in _inodes(kind)}
    kinds: collections.Counter[str] = collections.Counter()
    for name in os.listdir(process / "fd"):
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            path = os.readlink(process / "fd" / name)
            kinds[sockets.get(path) or _generic(path)] += 1
    return dict(kinds)


def _inodes(kind: str) -> list[str]:
    """The sockets of a kind: /proc/net has them with their inodes in a column."""
    column = 6 if kind == "unix" else 9
    with open(f"/proc/net/{kind}") as lines:
        next(lines)
        return [line.split()[column] for line in lines]


def _mappings(process: Path) -> dict[str, int]:
    paths = (line.split(maxsplit=5)[5:] for line in (process / "maps").read_text().splitlines())
    kinds = (_generic(path[0].strip()) for path in paths if path)
    return dict(collections.Counter(kind for kind in kinds if kind in ("memfd", "/dev/shm")))


def _generic(path: str) -> str:
    """Without what differs from one file of a kind to the next."""
    return next((kind for start, kind in _KINDS.items() if path.startswith(start)), path)
