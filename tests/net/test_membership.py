"""Where members come from: flags, and a file that operators and machines rewrite in all ways."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import dns.asyncresolver
import dns.resolver
import pytest
from driven import SELF, A, B, C, Driven, errors
from fakepeers import INSTANCE, on_each_loop

from mpgroupcache.net import membership
from mpgroupcache.net.membership import (
    FILE_INTERVAL,
    Addresses,
    Fixed,
    Membership,
    Services,
    WatchedFile,
    open_source,
    parse_list,
)
from mpgroupcache.net.peer import PeerOptions
from mpgroupcache.net.ring import Ring

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peers"


def replace(path: Path, content: str) -> None:
    """As careful programs write: a new file, renamed."""
    new = path.with_suffix(".new")
    new.write_text(content)
    new.rename(path)


# ---- What --peer can be


def test_sources() -> None:
    assert isinstance(open_source([], SELF), Fixed)
    assert isinstance(open_source([A, SELF], SELF), Fixed)
    assert isinstance(open_source(["file:/etc/peers"], SELF), WatchedFile)
    assert isinstance(open_source(["dns:http://cache.example:8080"], SELF), Addresses)
    assert isinstance(open_source(["srv:http://_peer._tcp.cache.example"], SELF), Services)


@pytest.mark.parametrize(
    ("peers", "text"),
    [
        (["10.0.0.1"], "^--peer: got '10.0.0.1', expected http://"),
        ([A, "file:/f"], f"^--peer: got {A}, file:/f, expected either URLs, or one of file: dns: srv: alone$"),
        (["dns:cache.example"], "^--peer dns: got 'cache.example', expected http://"),
        (["srv:cache.example"], "^--peer srv: got 'cache.example', expected http://"),
        (["srv:http://_peer._tcp.cache.example:80"], "^--peer srv: got .*:80, expected no port"),
    ],
)
def test_what_is_no_source(peers: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        open_source(peers, SELF)


def test_dns_needs_an_address_for_self() -> None:
    with pytest.raises(ValueError, match="^--self: got 'me', expected http://"):
        open_source(["dns:http://cache.example:8080"], "me")
    with pytest.raises(ValueError, match="--self: got http://me:8080, expected this host's address"):
        open_source(["dns:http://cache.example:8080"], "http://me:8080")


def test_srv_without_dnspython(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    with pytest.raises(ValueError, match=r"^--peer srv: expected dnspython; pip install 'mpgroupcache\[srv\]'$"):
        open_source(["srv:http://_peer._tcp.cache.example"], SELF)


def test_srv_without_a_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise dns.resolver.NoResolverConfiguration("no /etc/resolv.conf")

    monkeypatch.setattr(dns.asyncresolver, "Resolver", fail)
    with pytest.raises(ValueError, match=r"^--peer srv: no /etc/resolv.conf$"):
        open_source(["srv:http://_peer._tcp.cache.example"], SELF)


@on_each_loop
async def test_flags_keep_their_order() -> None:
    driven = Driven(Fixed([B, SELF, A]))
    await driven.membership.start()
    await driven.ticks()
    assert driven.rings == [[B, SELF, A]]


@on_each_loop
async def test_flags_that_cannot_be_a_ring_are_an_error_at_once() -> None:
    ring = Ring(PeerOptions(self_url=SELF, instance=INSTANCE))
    with pytest.raises(ValueError, match="--self"):
        await Membership(open_source([A, SELF.replace(":8080", ":08080")], SELF), ring.set).start()


# ---- Files


def test_a_files_lines() -> None:
    text = f"\ufeff# the ring\n{A}\n\n  {B}  # second\r\n#{C}\n"
    assert parse_list(text.encode(), "peers") == [A, B]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "peers: got no URL"),
        (b"# nobody\n\n", "peers: got no URL"),
        (b"http://a\nhttp://b/\n", "peers: line 2: got 'http://b/'"),
        (b"\xff\xfe\x00", "peers: line 1: got"),
    ],
)
def test_files_that_cannot_be(content: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_list(content, "peers")


@pytest.mark.parametrize("part", ["st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"])
def test_what_tells_that_a_file_changed(path: Path, part: str) -> None:
    path.write_text(A)
    status = os.stat(path)
    parts = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
    before, same = (membership._Status.of(cast(os.stat_result, SimpleNamespace(**parts))) for _ in range(2))
    parts[part] += 1
    assert before == same != membership._Status.of(cast(os.stat_result, SimpleNamespace(**parts)))


@on_each_loop
async def test_the_file_that_was_named(path: Path) -> None:
    path.write_text(f"{B}\n{A}\n")
    assert await open_source([f"file:{path}"], SELF).look(False) == [B, A]


@on_each_loop
async def test_a_file_that_is_replaced(path: Path) -> None:
    path.write_text(f"{B}\n{A}\n")
    driven = Driven(WatchedFile(str(path)))
    await driven.membership.start()
    assert driven.rings == [[B, A]]
    await driven.ticks()
    assert driven.rings == [[B, A]]
    replace(path, f"{A}\n")
    await driven.ticks()
    assert driven.rings == [[B, A], [A]]
    replace(path, f"{A} # the same\n")
    await driven.ticks()
    assert driven.rings == [[B, A], [A]]


@on_each_loop
async def test_a_file_behind_a_link_that_is_switched(path: Path) -> None:
    """As Kubernetes mounts a ConfigMap."""
    for name, url in (("one", A), ("two", B)):
        (path.parent / name).write_text(url)
    path.symlink_to("one")
    driven = Driven(WatchedFile(str(path)))
    await driven.membership.start()
    link = path.with_suffix(".new")
    link.symlink_to("two")
    link.rename(path)
    await driven.ticks()
    assert driven.rings == [[A], [B]]


@on_each_loop
async def test_a_file_that_is_written_in_place_is_not_read_half(path: Path) -> None:
    path.write_text(f"{A}\n{B}\n")
    driven = Driven(WatchedFile(str(path)))
    await driven.membership.start()
    with path.open("w") as file:
        for url in (A, B, C):
            file.write(f"{url}\n")
            file.flush()
            await driven.tick(FILE_INTERVAL)
            assert len(driven.rings) == 1
    await driven.ticks()
    assert driven.rings == [[A, B], [A, B, C]]


@on_each_loop
async def test_a_bad_file_keeps_the_ring_and_is_logged_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(A)
    driven = Driven(WatchedFile(str(path)))
    await driven.membership.start()
    for content in ("", "nonsense", f"{B}/"):
        caplog.clear()
        replace(path, content)
        await driven.ticks(5)
        (error,) = errors(caplog)
        assert str(path) in error
        assert error.endswith("the ring stays, of 1")
    caplog.clear()
    path.unlink()
    await driven.ticks(5)
    assert len(errors(caplog)) == 1
    caplog.clear()
    driven.refuse = "--self: not in it"
    replace(path, B)
    await driven.ticks(5)
    assert errors(caplog) == ["peers: --self: not in it; the ring stays, of 1"]
    caplog.clear()
    driven.membership.refresh()  # an operator who asks is told again
    await driven.tick()
    assert len(errors(caplog)) == 1
    assert driven.rings == [[A]]
    driven.refuse = ""
    driven.membership.refresh()
    await driven.tick()
    assert driven.rings == [[A], [B]]


@on_each_loop
async def test_a_file_that_comes_later(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    driven = Driven(WatchedFile(str(path)))
    await driven.membership.start()
    await driven.ticks()
    assert len(errors(caplog)) == 1
    assert errors(caplog)[0].endswith("there is no ring yet")
    replace(path, A)
    await driven.ticks()
    assert driven.rings == [[A]]


@on_each_loop
async def test_a_refresh_does_not_wait(path: Path) -> None:
    path.write_text(A)
    driven = Driven(WatchedFile(str(path)))
    await driven.membership.start()
    await driven.tick()
    replace(path, B)
    driven.membership.refresh()
    await driven.tick()
    assert driven.rings == [[A], [B]]


@on_each_loop
async def test_a_file_without_end(path: Path) -> None:
    path.write_text(f"{A}\n#")
    os.truncate(path, membership.MAX_FILE_BYTES)
    assert await WatchedFile(str(path)).look(False) == [A]
    os.truncate(path, membership.MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match="expected a list of URLs"):
        await WatchedFile(str(path)).look(False)
