"""What a loader is told of a peer's request (``ctx``): plain data, since it goes to another process."""

from __future__ import annotations

import reprlib
from typing import Any, Final

import msgspec

from mpgroupcache.ipc.fields import MAX_CONTEXT

_pack: Final = msgspec.msgpack.Encoder().encode


def pack_context(ctx: object) -> bytes:
    """Return a loader's ``ctx`` as it travels. Raises ``ValueError`` for what is no plain data, or too much of it."""
    try:
        packed = _pack(ctx)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        expected = "None, bool, numbers, str, bytes, and lists and dicts of these"
        raise ValueError(
            f"context: got {reprlib.repr(ctx)} ({error}), expected {expected}; loaders are processes"
        ) from None
    if len(packed) > MAX_CONTEXT:
        raise ValueError(f"context: got {len(packed)} bytes, expected at most {MAX_CONTEXT}; a loader can do without")
    return packed


NO_CONTEXT: Final = pack_context(None)


def unpack_context(packed: bytes) -> Any:
    """The same data again; a tuple is a list now."""
    return msgspec.msgpack.decode(packed)
