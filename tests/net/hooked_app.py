"""A module for ``--app`` whose pool has functions of its own: a hash, a transport, a context."""

from __future__ import annotations

import os
import urllib.request
from typing import Any

from salted import salted

import mpgroupcache
from mpgroupcache.net.hooks import PeerRequest


class Marking(urllib.request.BaseHandler):
    """Puts a header into each request."""

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        request.add_header("X-Who", "hooked")
        return request


opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Marking())


def transport(ctx: Any) -> urllib.request.OpenerDirector:
    return opener


def context(request: PeerRequest) -> dict[str, str]:
    if request.key == b"bad context":
        raise PermissionError("not for you")
    return {"who": request.headers.get("x-who", "nobody")}


def load(ctx: Any, key: str, dest: mpgroupcache.Sink) -> None:
    dest.set_string(f"{os.environ['TEST_NAME']} for {ctx and ctx['who']}")


pool = mpgroupcache.HTTPPool(os.environ["TEST_SELF"], hash_fn=salted, context=context, transport=transport)
pool.set(*os.environ["TEST_RING"].split())
group = mpgroupcache.new_group("g", 0, load)
