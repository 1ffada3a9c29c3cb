"""A coordinator without peers: what it spares, and that it can have a ring later."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from mpgroupcache.coordinator.options import Options
from mpgroupcache.coordinator.peering import Peering
from mpgroupcache.ipc.messages import SetPeers

# From its start to its end, which comes by itself: nobody connects.
SCRIPT = """
import sys, json
from mpgroupcache.coordinator.main import main

code = main(["--socket", *sys.argv[1:], "--linger", "0.01"])
print(json.dumps(sorted(sys.modules)))
sys.exit(code)
"""

NAMED = SetPeers("http://a", ("http://a", "http://b"), "/_groupcache/", 50, "crc32", ())


def modules_of(*arguments: str) -> set[str]:
    """The modules that a coordinator has imported."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def test_without_peers_it_imports_nothing_that_speaks_to_them(socket_path: str) -> None:
    modules = modules_of(socket_path)
    assert {name for name in modules if name.startswith("mpgroupcache.net.")} == {
        "mpgroupcache.net.consistenthash",
        "mpgroupcache.net.backend",
    }
    others = {"dataclasses", "email", "google.protobuf", "http.client", "httptools", "tomllib"}
    assert modules & {*others, "urllib.request"} == set()
    application = {"group", "pool", "registry", "sinks", "stats", "worker"}
    assert modules & {f"mpgroupcache.{name}" for name in application} == set()
    assert modules & {f"mpgroupcache.coordinator.{name}" for name in ("application", "spawner")} == set()


def test_with_a_port_it_does(socket_path: str) -> None:
    modules = modules_of(socket_path, "--listen", "127.0.0.1:0")
    assert "mpgroupcache.net.server" in modules
    assert "mpgroupcache.net.ring" not in modules


def test_a_ring_that_is_named_later() -> None:
    async def run() -> None:
        peering = Peering(Options("/run/cache.sock"))
        assert peering.ring is None
        peering.set_peers(NAMED)
        assert peering.ring is not None
        assert peering.ring.urls == NAMED.peers
        await peering.close()

    asyncio.run(run())


def test_a_ring_that_cannot_be_imported_any_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the installation was replaced, and the coordinator was not."""
    monkeypatch.setitem(sys.modules, "mpgroupcache.net.ring", None)
    peering = Peering(Options("/run/cache.sock"))
    with pytest.raises(ValueError, match="start the coordinator again"):
        peering.set_peers(NAMED)
    assert peering.ring is None
