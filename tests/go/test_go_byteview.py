"""Go's ``byteview_test.go``: over every backing that a view can have."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from mpgroupcache import ByteView

Of = Callable[[bytes], ByteView]


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
