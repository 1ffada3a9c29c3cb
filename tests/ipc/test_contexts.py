"""Contexts that are packed."""

from __future__ import annotations

from typing import Any

import pytest

from mpgroupcache.ipc.contexts import NO_CONTEXT, pack_context, unpack_context
from mpgroupcache.ipc.fields import MAX_CONTEXT


@pytest.mark.parametrize("ctx", [None, True, 1, 1.5, "ann", b"\xff", [1, [2]], {"user": "ann", "tags": [None]}])
def test_contexts_come_back(ctx: Any) -> None:
    assert unpack_context(pack_context(ctx)) == ctx


def test_a_tuple_in_a_context_is_a_list() -> None:
    assert unpack_context(pack_context((1, (2,)))) == [1, [2]]


def test_a_context_of_nothing() -> None:
    assert pack_context(None) == NO_CONTEXT == b"\xc0"


def circle() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


EXPECTED = "expected None, bool, numbers, str, bytes, and lists and dicts of these; loaders are processes$"


@pytest.mark.parametrize(
    ("ctx", "got"),
    [
        (1j, r"1j \(Encoding objects of type complex is unsupported\)"),
        (1 << 64, r"18446744073709551616 \(can't serialize ints .*\)"),
        ("\udcff", r"'\\udcff' \(.*surrogates not allowed\)"),
        (circle(), r"\[.* \(.*recursion.*\)"),
    ],
)
def test_what_is_no_context(ctx: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"^context: got {got}, {EXPECTED}") as caught:
        pack_context(ctx)
    assert caught.value.__cause__ is None


def test_contexts_are_bounded() -> None:
    largest = bytes(MAX_CONTEXT - 3)  # behind three bytes that say what it is
    assert len(pack_context(largest)) == MAX_CONTEXT
    text = rf"^context: got {MAX_CONTEXT + 1} bytes, expected at most {MAX_CONTEXT}; a loader can do without$"
    with pytest.raises(ValueError, match=text):
        pack_context(largest + b"x")
