"""Groups for ``--app``: what a host without web workers loads for its peers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from workers import wait_until

import mpgroupcache
from mpgroupcache import Sink


def load(ctx: object, key: str | bytes, dest: Sink) -> None:
    kind, _, rest = str(key).partition(":")
    if key == "die":
        os._exit(1)
    if kind == "leave":
        raise SystemExit
    if kind == "page":  # its parts are another key's
        directory = Path(os.environ["TEST_DIRECTORY"])
        (directory / rest).touch()
        wait_until((directory / "go").exists)
        group.get("part")
    dest.set_string(f"{os.getpid()}")


async def load_later(ctx: object, key: str | bytes, dest: Sink) -> None:
    await asyncio.sleep(0)
    dest.set_string("later")


group = mpgroupcache.new_group("g", "1MiB", load)
mpgroupcache.new_group("later", "1MiB", load_later)
