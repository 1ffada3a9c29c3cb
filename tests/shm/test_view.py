"""``ByteView``: what it shows, how long, and to whom it is equal."""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import pickle
import weakref
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from arenas import Instance, Lookup, OpenArena

from mpgroupcache.shm._reader import Mapping, Reader
from mpgroupcache.shm._view import ByteView

MakeArena = Callable[..., OpenArena]
VALUE = bytes(range(256)) * 4


@pytest.fixture
def opened(arena: MakeArena) -> OpenArena:
    opened = arena(1 << 20)
    for key, value in ((b"key", VALUE), (b"empty", b""), (b"text", "Grüße".encode()), (b"short", b"short")):
        assert opened.arena.put(key, value)
    return opened


@pytest.fixture
def lookup(opened: OpenArena) -> Lookup:
    return Lookup(*opened.address)


@pytest.fixture(params=["arena", "bytes", "slice"])
def view(request: pytest.FixtureRequest, lookup: Lookup) -> ByteView:
    """``VALUE``, from each of the places where a view's bytes may lie."""
    if request.param == "bytes":
        return ByteView(VALUE)
    if request.param == "slice":
        return ByteView(b"<" + VALUE + b">")[1:-1]
    found = lookup.lookup(b"key")
    assert found is not None
    return found


def view_of(lookup: Lookup, key: bytes) -> ByteView:
    view = lookup.lookup(key)
    assert view is not None
    return view


# ---- Contents


def test_it_is_a_sequence_of_bytes(view: ByteView) -> None:
    assert len(view) == len(VALUE)
    assert bytes(view) == VALUE
    assert list(view) == list(VALUE)
    assert (view[0], view[255], view[-1], view[-len(VALUE)]) == (0, 255, 255, 0)
    for index in (len(VALUE), -len(VALUE) - 1, 1 << 62):
        with pytest.raises(IndexError, match=f"index {index} is out of the range of a ByteView of 1024 bytes"):
            view[index]
    with pytest.raises(TypeError):
        view["0"]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "part", [slice(None), slice(10, 20), slice(-5, None), slice(20, 10), slice(5000), slice(2000, 3000), slice(0, 0)]
)
def test_slices_are_views(view: ByteView, part: slice) -> None:
    assert type(view[part]) is ByteView
    assert bytes(view[part]) == VALUE[part]
    assert bytes(view[part][1:][:3]) == VALUE[part][1:][:3]


def test_slices_have_step_1(view: ByteView) -> None:
    with pytest.raises(ValueError, match=r"step 1, got 2; use bytes\(view\)\[0:1024:2\]"):
        view[::2]


def test_it_is_made_of_bytes_text_and_buffers() -> None:
    assert ByteView() == b""
    assert ByteView("Grüße") == "Grüße".encode()
    assert ByteView(bytearray(b"abc")) == b"abc"
    assert ByteView(array("H", [1, 2])) == array("H", [1, 2]).tobytes()
    assert ByteView(ByteView(b"abc")) == b"abc"
    kept = b"kept, not copied"
    assert bytes(ByteView(kept)) is kept
    source = bytearray(b"copied")
    view = ByteView(source)
    source[:] = b"change"
    assert view == b"copied"
    for wrong in (1, None, [1]):
        with pytest.raises(TypeError):
            ByteView(wrong)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        ByteView("\ud800")


def test_it_cannot_be_made_again() -> None:
    view = ByteView(b"abc")
    with pytest.raises(TypeError, match="immutable"):
        view.__init__(b"def")  # type: ignore[misc]
    assert view == b"abc"
    assert ByteView.__new__(ByteView) == b""


def test_equality(view: ByteView, lookup: Lookup) -> None:
    for same in (VALUE, bytearray(VALUE), memoryview(VALUE), ByteView(VALUE), view, view[:], view_of(lookup, b"key")):
        assert view == same
        assert same == view
        assert view == same
    for other in (VALUE[:-1], VALUE + b"\0", bytes(1024), b"", "", "text", ByteView(b""), 1, None, [*VALUE], object()):
        assert view != other
        assert other != view
        assert view != other
    text = view_of(lookup, b"text")
    assert text == "Grüße"
    assert "Grüße" == text  # noqa: SIM300
    assert text != "Grüsse"
    assert text != "\ud800"
    assert view_of(lookup, b"empty") == "" == ByteView()
    assert text != memoryview(b"GGGG")[::2]  # not contiguous: not comparable, and so not equal


def test_it_is_not_hashable(view: ByteView) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(view)


def test_str_is_strict_utf8(view: ByteView, lookup: Lookup) -> None:
    assert str(view_of(lookup, b"text")) == "Grüße"
    assert str(view_of(lookup, b"empty")) == ""
    assert f"{view_of(lookup, b'text')}" == "Grüße"
    with pytest.raises(UnicodeDecodeError):
        str(view)


def test_repr_shows_the_beginning_and_the_size(lookup: Lookup) -> None:
    assert repr(view_of(lookup, b"short")) == "<mpgroupcache.ByteView(b'short')>"
    assert repr(view_of(lookup, b"empty")) == "<mpgroupcache.ByteView(b'')>"
    assert repr(ByteView(b"x" * 16)) == f"<mpgroupcache.ByteView({b'x' * 16!r})>"
    assert repr(ByteView(b"x" * 2048)) == "<mpgroupcache.ByteView(b'xxxxxxxxxxxx'...2048 B)>"
    view = ByteView(b"x")
    view.release()
    assert repr(view) == "<mpgroupcache.ByteView released>"


def test_pickles_and_copies_are_independent(view: ByteView) -> None:
    for other in (pickle.loads(pickle.dumps(view)), copy.copy(view), copy.deepcopy(view)):
        assert type(other) is ByteView
        view_was = bytes(view)
        assert other == view_was
    other = pickle.loads(pickle.dumps(view))
    view.release()
    assert other == VALUE


# ---- Buffers


def test_the_buffer_is_read_only(view: ByteView) -> None:
    with memoryview(view) as shown:
        assert shown.readonly
        assert (shown.format, shown.ndim, shown.nbytes) == ("B", 1, 1024)
        assert shown == VALUE
        with pytest.raises(TypeError, match="read-only"):
            shown[0] = 1  # type: ignore[index]
    with pytest.raises(TypeError, match="not writable"):
        ctypes.c_char.from_buffer(view)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        io.BytesIO(VALUE).readinto(view)  # type: ignore[arg-type]


def test_copy_to_and_read_at(view: ByteView) -> None:
    target = bytearray(10)
    assert view.copy_to(target) == 10
    assert target == VALUE[:10]
    assert view.read_at(target, 1020) == 4
    assert target == VALUE[1020:] + VALUE[4:10]
    for offset in (1024, 1025, 1 << 62):
        assert view.read_at(target, offset) == 0
    assert view.copy_to(bytearray()) == 0
    larger = array("B", bytes(2000))
    assert view.copy_to(larger) == 1024
    assert larger.tobytes() == VALUE + bytes(976)
    with pytest.raises(ValueError, match="offset: got -1, expected 0 or more"):
        view.read_at(target, -1)
    with pytest.raises((BufferError, TypeError)):
        view.copy_to(b"read-only")


class Stubborn(io.RawIOBase):
    """A raw file that takes ``most`` bytes at a time, or none."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.got = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int | None:
        if self.most is None or len(self.got) >= 500:
            return None
        self.got += bytes(data[: self.most])
        return min(len(data), self.most)


def test_write_to_writes_all(view: ByteView) -> None:
    file = io.BytesIO()
    assert view.write_to(file) == 1024
    assert file.getvalue() == VALUE
    raw = Stubborn(100)
    with pytest.raises(BlockingIOError, match="took 500 of 1024 bytes"):
        view.write_to(raw)
    assert raw.got == VALUE[:500]
    view.release()  # write_to() left no memoryview behind
    with pytest.raises(ValueError, match="released"):
        view.write_to(file)


def test_reader_is_a_file(view: ByteView) -> None:
    with view.reader() as file:
        view.release()
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        assert file.read(4) == VALUE[:4]
        assert file.tell() == 4
        assert file.seek(-4, io.SEEK_END) == 1020
        assert file.read() == VALUE[-4:]
        assert file.read() == file.read(1) == b""
        assert file.seek(2, io.SEEK_SET) == 2
        assert file.seek(3, io.SEEK_CUR) == 5
        assert file.read(1) == VALUE[5:6]
        assert file.seek(5000) == 5000
        assert file.read() == b""
        assert file.tell() == 5000
        with pytest.raises(ValueError, match="position -1"):
            file.seek(-1)
        with pytest.raises(ValueError, match="whence: got 7"):
            file.seek(0, 7)
        file.seek(0)
        assert io.BufferedReader(file).read() == VALUE
    for use in (file.read, file.tell, file.readable, file.seekable, lambda: file.seek(0), lambda: file.read(1)):
        with pytest.raises(ValueError, match="closed"):
            use()
    file.close()


def test_reader_reads_lines(lookup: Lookup, opened: OpenArena) -> None:
    opened.arena.put(b"lines", b"one\ntwo\n\nfour")
    view = view_of(lookup, b"lines")
    with view.reader() as file:
        assert list(file) == [b"one\n", b"two\n", b"\n", b"four"]
    with io.TextIOWrapper(io.BufferedReader(view.reader())) as text:
        assert text.read() == "one\ntwo\n\nfour"


@pytest.mark.parametrize("size", [1, 100, 1023, 1024, 1025])
def test_chunks_make_up_the_value(view: ByteView, size: int) -> None:
    chunks = list(view.chunks(size))
    assert b"".join(chunks) == VALUE
    assert {type(chunk) for chunk in chunks} == {bytes}
    assert {len(chunk) for chunk in chunks[:-1]} <= {size}
    assert len(chunks[-1]) <= size


def test_chunks_need_a_size(view: ByteView) -> None:
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"size: got {size}, expected 1 or more"):
            view.chunks(size)
    assert list(ByteView().chunks()) == []


# ---- How long


def pins(lookup: Lookup) -> int:
    return lookup.reader.live_pins


def test_a_view_holds_one_pin_until_it_is_gone(lookup: Lookup) -> None:
    view = lookup.lookup(b"key")
    other = lookup.lookup(b"key")
    assert pins(lookup) == 2
    del view
    assert pins(lookup) == 1
    assert other == VALUE
    del other
    assert pins(lookup) == 0


def test_release_gives_the_value_up_at_once(lookup: Lookup) -> None:
    view = view_of(lookup, b"key")
    view.release()
    assert pins(lookup) == 0
    view.release()
    uses: list[Callable[[], object]] = [
        *(lambda use=use: use(view) for use in (bytes, str, list, len, memoryview, pickle.dumps)),
        *(view.reader, view.chunks, view.__enter__, lambda: view[0], lambda: view[:], lambda: view == b""),
        *(lambda: view == object(), lambda: view.copy_to(bytearray(1)), lambda: view.write_to(io.BytesIO())),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="was released"):
            use()


def test_text_of_another_class_is_its_text() -> None:
    class Odd(str):
        def encode(self, *_args: Any) -> Any:
            return 12345

    assert ByteView(Odd("text")) == b"text"


def test_memory_goes_on_from_view_to_view_of_a_pin(lookup: Lookup) -> None:
    """But not while a view lives that gave its pin up."""
    first = view_of(lookup, b"key")
    address = id(first)
    del first
    second = view_of(lookup, b"text")
    assert id(second) == address
    assert second == "Grüße"
    second.release()
    third = view_of(lookup, b"short")
    assert id(third) != address
    assert third == b"short"
    with pytest.raises(ValueError, match="was released"):
        bytes(second)
    del second
    assert third == b"short"
    del third
    assert lookup.reader.live_pins == 0


def test_a_view_outlives_its_reader(opened: OpenArena, instance: Instance) -> None:
    view = view_of(Lookup(*opened.address), b"key")
    gc.collect()
    assert view == VALUE
    del view
    gc.collect()
    assert instance.control.reap() == 1


def test_with_releases(lookup: Lookup) -> None:
    with view_of(lookup, b"key") as view:
        assert view == VALUE
        assert pins(lookup) == 1
    assert pins(lookup) == 0
    with pytest.raises(ZeroDivisionError), view_of(lookup, b"key") as view:
        1 / 0  # noqa: B018
    assert pins(lookup) == 0


def churn(opened: OpenArena) -> None:
    """Replace the key, and overwrite all that is free then."""
    for number in range(200):
        opened.arena.put(b"key", b"\xee" * 1024)
        opened.arena.put(b"%d" % number, b"\xee" * 20_000)


def test_memoryviews_outlive_the_view_and_its_with(lookup: Lookup, opened: OpenArena) -> None:
    with view_of(lookup, b"key") as view:
        shown = memoryview(view)
        part = shown[10:20]
    shown.release()
    assert pins(lookup) == 1
    churn(opened)
    assert part == VALUE[10:20]
    assert opened.arena.limbo_bytes > 1024
    del view
    assert pins(lookup) == 1
    part.release()
    assert pins(lookup) == 0
    opened.arena.sweep()
    assert opened.arena.limbo_bytes == 0


def test_slices_hold_the_value_on_their_own(lookup: Lookup, opened: OpenArena) -> None:
    view = view_of(lookup, b"key")
    part = view[100:200]
    inner = part[10:20]
    assert pins(lookup) == 1
    view.release()
    part.release()
    churn(opened)
    assert inner == VALUE[110:120]
    shown = memoryview(inner)
    inner.release()
    with pytest.raises(ValueError, match="was released"):
        bytes(inner)
    assert shown == VALUE[110:120]
    assert pins(lookup) == 1
    shown.release()
    assert pins(lookup) == 0


def test_readers_and_chunks_hold_the_value_until_they_are_closed(lookup: Lookup, opened: OpenArena) -> None:
    view = view_of(lookup, b"key")
    file, chunks, rest = view.reader(), view.chunks(1000), view.chunks(1000)
    view.release()
    churn(opened)
    assert file.read() == VALUE
    assert next(chunks) == VALUE[:1000]
    chunks.close()
    with pytest.raises(StopIteration):
        next(chunks)
    file.close()
    assert pins(lookup) == 1
    assert list(rest) == [VALUE[:1000], VALUE[1000:]]
    assert pins(lookup) == 0
    view = view_of(lookup, b"key")
    dropped = view.reader()
    del view, dropped
    gc.collect()
    assert pins(lookup) == 0


def test_views_keep_their_reader_and_its_mappings(opened: OpenArena) -> None:
    lookup = Lookup(*opened.address)
    view = view_of(lookup, b"key")
    reader = weakref.ref(lookup.reader)
    lookup.detach()
    del lookup
    gc.collect()
    assert view == VALUE
    assert reader() is not None
    shown = memoryview(view)
    del view
    assert shown == VALUE
    shown.release()
    assert reader() is None


def test_views_in_garbage_cycles_are_released(lookup: Lookup) -> None:
    class Holder:
        view: ByteView | None
        me: Any

    holder = Holder()
    holder.view, holder.me = lookup.lookup(b"key"), holder
    assert pins(lookup) == 1
    del holder
    gc.collect()
    assert pins(lookup) == 0


class Meddler:
    """An argument whose conversion releases the view."""

    def __init__(self, view: ByteView) -> None:
        self.view = view

    def __index__(self) -> int:
        self.view.release()
        return 0


def test_a_view_released_while_arguments_are_converted_says_so(lookup: Lookup) -> None:
    for use in (
        lambda view: view[Meddler(view)],
        lambda view: view[Meddler(view) :],
        lambda view: view.read_at(bytearray(10), Meddler(view)),
    ):
        with pytest.raises(ValueError, match="was released"):
            use(view_of(lookup, b"key"))
    assert pins(lookup) == 0


def test_a_mapped_file_is_held_by_its_view(tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(VALUE)
    with path.open("rb") as file:
        view = ByteView(Mapping(file.fileno(), len(VALUE)))
        assert ByteView(Mapping(file.fileno(), 0)) == b""
    part = view[1:5]
    view.release()
    assert part == VALUE[1:5]
    with pytest.raises(OSError, match="Bad file descriptor"):
        Mapping(-1, 10)


def test_final_classes_have_no_subclasses() -> None:
    for final in (ByteView, Mapping, Reader):
        with pytest.raises(TypeError, match="not an acceptable base type"):
            type("Sub", (final,), {})
