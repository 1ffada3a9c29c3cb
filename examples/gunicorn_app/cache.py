"""The cache in front of the pictures, with an account of how each request was answered."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import mpgroupcache
from examples.gunicorn_app import pictures


@dataclass(slots=True)
class Call:
    """What a request hands to ``get`` as ``ctx``. A loader that runs for this request notes it here."""

    loaded: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A picture, and what it took to get it."""

    view: mpgroupcache.ByteView
    how: str
    """"hit": was in shared memory. "stale": so was this, and it is rendered anew in the background. "load": rendered by
    this request. "wait": by another one, meanwhile."""
    milliseconds: float

    @property
    def headers(self) -> list[tuple[str, str]]:
        """``Server-Timing`` is what the browser's own developer tools show, too."""
        headers = [
            ("Content-Type", "image/jpeg"),
            ("Content-Length", str(len(self.view))),
            ("Cache-Control", "no-store"),  # this page is about our cache, not the browser's
            ("Server-Timing", f"cache;desc={self.how};dur={self.milliseconds:.4f}"),
            ("X-Worker", str(os.getpid())),
        ]
        if self.view.version is not None:  # None: there is no coordinator, so nothing that all workers share
            headers.append(("ETag", f'"{self.view.version}"'))
        if self.view.ttl is not None:  # s; negative: stale since
            headers.append(("X-Fresh-For", f"{self.view.ttl:.2f}"))
        return headers


def _renderer(render: Callable[[str], bytes]) -> Callable[[Call | None, str, mpgroupcache.Sink], None]:
    def load(call: Call | None, key: str, dest: mpgroupcache.Sink) -> None:
        if call is not None:  # else no request waits for it here: a refresh, or a load for another process
            call.loaded = True
        dest.set_bytes(render(key))

    return load


BUDGETS = {"tile": 24 << 20, "thumbnail": 4 << 20}  # bytes; some 1500 tiles, and every thumbnail

# Pictures like these could be kept for ever. They grow old so that one can watch them do it.
TTL = 30  # s for which a picture is fresh
STALE = 60  # s for which it is still returned then, at once, while it is rendered anew


def _new_group(kind: str, render: Callable[[str], bytes]) -> mpgroupcache.Group:
    return mpgroupcache.new_group(f"example-{kind}s", BUDGETS[kind], _renderer(render), ttl=TTL, stale=STALE)


GROUPS = {
    "tile": _new_group("tile", lambda key: pictures.render_tile(*map(int, key.split("/")))),
    "thumbnail": _new_group("thumbnail", pictures.render_thumbnail),
}

_TILE = re.compile(r"/tile/((\d{1,2})/(\d{1,13})/(\d{1,13}))\.jpg")
_THUMBNAIL = re.compile(r"/thumbnail/([a-z]+)\.jpg")


def find(path: str) -> tuple[mpgroupcache.Group, str] | None:
    """The group and the key of a picture's URL path; None where there is no such picture.

    Asked before the cache is, so that what does not exist is never loaded.
    """
    if (match := _TILE.fullmatch(path)) and pictures.has_tile(*map(int, match.groups()[1:])):
        return GROUPS["tile"], "/".join(str(int(number)) for number in match.groups()[1:])
    if (match := _THUMBNAIL.fullmatch(path)) and match[1] in pictures.PLATES:
        return GROUPS["thumbnail"], match[1]
    return None


def get(group: mpgroupcache.Group, key: str) -> Answer:
    """Get a picture in a thread or greenlet.

    An application just calls ``group.get``. To tell a hit from the end of a wait, this one calls ``lookup`` before,
    which neither waits nor loads, and has nothing refreshed: a stale value is got all the same.
    """
    call, started = Call(), time.perf_counter()
    view = group.lookup(key)
    how = _how(view)
    if view is None or how == "stale":
        view = group.get(key, ctx=call)
    return Answer(view, "load" if call.loaded else how, (time.perf_counter() - started) * 1e3)


async def aget(group: mpgroupcache.Group, key: str) -> Answer:
    """The same on an event loop."""
    call, started = Call(), time.perf_counter()
    view = group.lookup(key)
    how = _how(view)
    if view is None or how == "stale":
        view = await group.aget(key, ctx=call)
    return Answer(view, "load" if call.loaded else how, (time.perf_counter() - started) * 1e3)


def _how(view: mpgroupcache.ByteView | None) -> str:
    """What a look has found."""
    if view is None:
        return "wait"  # if it is not loaded for this request
    return "stale" if view.ttl is not None and view.ttl < 0 else "hit"


def stats() -> dict[str, Any]:
    """What all workers have done together: the counters are in shared memory."""
    return {
        name: {
            **asdict(group.stats),
            **{f"main_{name}": n for name, n in asdict(group.cache_stats(mpgroupcache.CacheType.MAIN_CACHE)).items()},
            "budget": BUDGETS[name],
        }
        for name, group in GROUPS.items()
    }
