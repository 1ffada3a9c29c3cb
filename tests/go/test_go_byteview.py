"""Go's ``byteview_test.go``: over every backing that a view can have."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from arenas import Lookup, OpenArena

from mpgroupcache import ByteView
from mpgroupcache.ipc import memfd
from mpgroupcache.shm._exchange import sealed

Of = Callable[[bytes], ByteView]
BACKINGS = ["bytes", "str", "slice", "arena", "memfd"]


@pytest.fixture(params=BACKINGS)
def of(request: pytest.FixtureRequest, arena: Callable[..., OpenArena]) -> Of:
    """Make a view of bytes."""
    opened = arena(1 << 20)
    lookup = Lookup(*opened.address)

    def in_arena(value: bytes) -> ByteView:
        assert opened.arena.put(b"k", value)
        view = lookup.lookup(b"k")
        assert view is not None
        return view

    backings: dict[str, Of] = {
        "bytes": ByteView,
        "str": lambda value: ByteView(value.decode()),
        "slice": lambda value: ByteView(b"<" + value + b">")[1:-1],
        "arena": in_arena,
        "memfd": lambda value: ByteView(memfd.map(sealed(value), len(value))) if value else ByteView(value),
    }
    return backings[request.param]


@pytest.mark.parametrize("text", ["", "x", "yy"])
def test_byte_view(of: Of, text: str, tmp_path: Path) -> None:
    raw = text.encode()
    view = of(raw)
    assert len(view) == len(raw)
    assert str(view) == text
    long, short = bytearray(3), bytearray(1)
    assert view.copy_to(long) == len(raw)
    assert view.copy_to(short) == min(len(raw), 1)
    assert (long[: len(raw)], short[: len(raw)]) == (raw, raw[:1])
    with view.reader() as file:
        assert file.read() == raw
    section = bytearray(len(raw))
    assert view.read_at(section, 0) == len(raw)
    assert section == raw
    out = io.BytesIO()
    assert view.write_to(out) == len(raw)
    assert out.getvalue() == raw


@pytest.mark.parametrize(("a", "b", "want"), [("x", "x", True), ("x", "y", False), ("x", "yy", False)])
def test_byte_view_equal(of: Of, a: str, b: str, want: bool) -> None:
    view = of(a.encode())
    assert (view == b.encode()) is want
    assert (view == b) is want
    assert (view == ByteView(b.encode())) is want


@pytest.mark.parametrize(("part", "want"), [(slice(1, 2), "b"), (slice(1, None), "bc"), (slice(None, 2), "ab")])
def test_byte_view_slice(of: Of, part: slice, want: str) -> None:
    assert str(of(b"abc")[part]) == want
