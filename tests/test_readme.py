"""What the README shows is run as it stands."""

from __future__ import annotations

import builtins
import functools
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from workers import PATIENCE, segments_of, wait_until

import mpgroupcache
from mpgroupcache.net.consistenthash import Map
from mpgroupcache.worker.config import private_socket

README = Path(__file__).parent.parent / "README.md"
SECTIONS = re.split(r"^##", README.read_text(), flags=re.MULTILINE)
GO = """
AtomicInt Add Get String ByteView At ByteSlice Copy Equal EqualBytes EqualString Len ReadAt Reader Slice SliceFrom
WriteTo CacheStats CacheType MainCache HotCache Getter GetterFunc Group Name Stats GetGroup NewGroup HTTPPool Context
Transport PickPeer ServeHTTP Set HTTPPoolOptions NewHTTPPool NewHTTPPoolOpts NoPeers PeerPicker ProtoGetter
RegisterNewGroupHook RegisterPeerPicker RegisterPerGroupPeerPicker RegisterServerStart Sink SetString SetBytes SetProto
AllocatingByteSliceSink ByteViewSink ProtoSink StringSink TruncatingByteSliceSink Cache Remove RemoveOldest Clear Key
Do Map Hash New IsEmpty
"""  # all that groupcache, lru, singleflight and consistenthash export
PRELUDE = """
def render(name):
    return name.encode()

def fetch(user_id, locale):
    return User(user_id, "Ada")
"""


def blocks() -> Iterator[str]:
    """What is to be run: each script, and of each section the session, which goes on from one block to the next."""
    for section in SECTIONS:
        shown = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        yield from [block for block in shown if ">>>" not in block]
        if session := "".join(block for block in shown if ">>>" in block):
            yield session


@pytest.fixture
def application() -> Iterator[dict[str, str]]:
    """The environment of an application of its own, whose coordinator is the embedded default."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MPGROUPCACHE_")}
    name = os.urandom(8).hex()
    own = {"MPGROUPCACHE_APPLICATION": name, "MPGROUPCACHE_LINGER": "0.2", "PYTHONWARNINGS": "error"}
    yield environment | own
    path = private_socket(name)
    wait_until(lambda: not os.path.exists(path) and not segments_of(path), "the coordinator's end")


@pytest.mark.parametrize("block", [*blocks()], ids=lambda block: block.lstrip().split("\n", 1)[0])
def test_python(block: str, application: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "block"
    if ">>>" in block:
        script.write_text(block)
        command = [sys.executable, "-m", "doctest", "-v", str(script)]
    else:
        script.write_text(PRELUDE + block)
        command = [sys.executable, str(script)]
    done = subprocess.run(
        command, env=application, cwd=README.parent, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if ">>>" in block:
        assert re.search(rf"\b{block.count('>>>')} tests in", done.stdout)


def test_what_a_bare_debian_lacks_is_what_ci_installs() -> None:
    listed = re.search(r"apt-get install (.*?) +#", README.read_text(), re.MULTILINE)
    assert listed is not None
    installed = re.findall(r"missing\+=\((.*?)\)", (README.parent / ".ci" / "run").read_text())
    assert set(listed[1].split()) <= set(" ".join(installed).split())


def test_what_is_said_to_those_who_come_from_go() -> None:
    """Every Python name in the table is one."""
    table = README.read_text().split("|---|---|\n", 1)[1].split("\n\n", 1)[0]
    owners = [
        mpgroupcache,
        mpgroupcache.Group,
        mpgroupcache.ByteView,
        mpgroupcache.HTTPPool,
        mpgroupcache.lru,
        mpgroupcache.Sink,
        mpgroupcache.AtomicInt,
        Map,
        builtins,
    ]
    owners += [mpgroupcache.singleflight, mpgroupcache.singleflight.Group, mpgroupcache.ProtoGetter]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    names = {name for _, python in rows for name in re.findall(r"(\w+)\(", python)} - {"Map"}
    assert len(rows) == 22
    assert len(names) == 34
    for name in names:
        assert any(hasattr(owner, name) for owner in owners), name
    told = set(re.findall(r"\w+", " ".join(go for go, _ in rows)))
    assert set(GO.split()) - told == set()


def test_what_the_package_says_to_those_who_come_from_go() -> None:
    """Both sides of the table in its docstring: what there is in Go, and what there is here."""
    assert mpgroupcache.__doc__ is not None
    lines = mpgroupcache.__doc__.split("Coming from Go", 1)[1].splitlines()
    rows = [line.strip().split("  ", 1) for line in lines if line.startswith("    ")]
    assert len(rows) == 13
    assert set(re.findall(r"[A-Z]\w+", " ".join(go for go, _ in rows))) <= set(GO.split())
    for name in re.findall(r"[A-Za-z][\w.]+", " ".join(python for _, python in rows)):
        functools.reduce(getattr, name.split("."), mpgroupcache)  # raises where there is none


def public() -> Iterator[tuple[str, object]]:
    """What has a counterpart in Go, and its methods."""
    own = {"aconnect", "cached", "configure", "connect"} | {
        name for name in mpgroupcache.__all__ if name.endswith("Error")
    }
    own |= {"AlreadyRunning", "CoordinatorUnavailable", "DeadlineExceeded", "LoadErrors", "LoadErrors.derive"}
    own |= {"ByteView.release", "ByteView.chunks", "ProtoSink.message", "TruncatingSink.n"}
    own |= {f"ByteView.{name}" for name in dir(bytes)}
    own |= {"Group.serve", "Group.serve_async", "HTTPPool.take"}
    counterparts = {name: getattr(mpgroupcache, name) for name in mpgroupcache.__all__ if name not in own}
    counterparts |= {
        "Map": Map,
        "lru.Cache": mpgroupcache.lru.Cache,
        "singleflight.do": mpgroupcache.singleflight.Group.do,
    }
    for name, thing in counterparts.items():
        yield name, thing
        for method, value in vars(thing).items() if isinstance(thing, type) else ():
            told = isinstance(value, property) or callable(value)
            if told and method[0] != "_" and f"{name}.{method}" not in own:
                yield f"{name}.{method}", value


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*of, id=of[0]) for of in public()])
def test_a_docstring_says_what_it_is_in_go(name: str, thing: object) -> None:
    assert re.search(r"\bGo\b", inspect.getdoc(thing) or "")
