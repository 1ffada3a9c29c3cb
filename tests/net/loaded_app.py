"""Groups for ``--app``: what a host without web workers loads for its peers."""

from __future__ import annotations

import asyncio
import os

import mpgroupcache
from mpgroupcache import Sink


def load(ctx: object, key: str | bytes, dest: Sink) -> None:
    if key == "die":
        os._exit(1)
    dest.set_string(f"{os.getpid()}")


async def load_later(ctx: object, key: str | bytes, dest: Sink) -> None:
    await asyncio.sleep(0)
    dest.set_string("later")


mpgroupcache.new_group("g", "1MiB", load)
mpgroupcache.new_group("later", "1MiB", load_later)
