"""What a field of a message may hold: types that the decoder makes true, and the limits in them."""

from __future__ import annotations

import sys
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from mpgroupcache.keys import MAX_KEY_BYTES
from mpgroupcache.limits import (
    MAX_NAME_BYTES,
    MAX_PEERS,
    MAX_REPLICAS,
    MAX_SECONDS,
    MAX_TEXT,
    MAX_TYPE_NAME,
    MAX_URL,
)

INLINE_BYTES: Final = 64 << 10  # bytes of the largest value in a frame; above, a memfd costs less than the copies
MAX_HELD: Final = 1024  # leases one caller may hold; Python's own recursion limit ends nested loaders before that
MAX_CONTEXT: Final = 16 << 10  # bytes of what a loader is told of a peer's request: headers, not bodies
TOKEN_BYTES: Final = 16  # of a worker's token: random, so that no two processes share one
MAX_VERSION: Final = 0xFFFF
MAX_CODE_NAME: Final = 200  # characters of a module's or a function's name; a longer one is cut
MAX_KEYS: Final = 1024  # in one frame
MAX_ABILITIES: Final = 64
MAX_ABILITY: Final = 40  # characters of its name

_MAX_INT: Final = (1 << 63) - 1  # what a C long holds on every platform we run on

# A field's type tells both what a type checker believes and what the decoder makes true.
Ability: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_ABILITY)]
Abilities: TypeAlias = Annotated[tuple[Ability, ...], Meta(max_length=MAX_ABILITIES)]
CodeName: TypeAlias = Annotated[str, Meta(max_length=MAX_CODE_NAME)]
Hooks: TypeAlias = tuple[Literal["hash_fn", "transport"], ...]
Id: TypeAlias = Annotated[int, Meta(ge=0, le=_MAX_INT)]
Key: TypeAlias = Annotated[bytes, Meta(max_length=MAX_KEY_BYTES)]
LeaseId: TypeAlias = Annotated[int, Meta(ge=1, le=_MAX_INT)]
Held: TypeAlias = Annotated[tuple[LeaseId, ...], Meta(max_length=MAX_HELD)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_BYTES)]  # characters: no fewer than bytes
Packed: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=MAX_CONTEXT)]
Pid: TypeAlias = Annotated[int, Meta(ge=1, lt=1 << 31)]
Replicas: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_REPLICAS)]
Role: TypeAlias = Literal["call", "service"]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
Size: TypeAlias = Annotated[int, Meta(ge=0, le=_MAX_INT)]
Loads: TypeAlias = Annotated[tuple[tuple[LeaseId, Size], ...], Meta(max_length=MAX_HELD)]
# A value has one way to travel: inline, or in a memfd, of which the frame has the size, since it is too large.
MemfdSize: TypeAlias = Annotated[int, Meta(gt=INLINE_BYTES, le=_MAX_INT)]
Inline: TypeAlias = Annotated[bytes, Meta(max_length=INLINE_BYTES)]
Carried: TypeAlias = Inline | MemfdSize
Text: TypeAlias = Annotated[str, Meta(max_length=MAX_TEXT)]
Token: TypeAlias = Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
Version: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_VERSION)]
Mode: TypeAlias = Literal["get", "look", "refresh", "renew"]
Lifetime: TypeAlias = Annotated[float, Meta(ge=0)] | None  # s; infinite: for ever; None: as the group says
# s, below 0 where it is over; None: for ever. A bound, or it might be no number (NaN).
Left: TypeAlias = Annotated[float, Meta(ge=-sys.float_info.max)] | None
Number: TypeAlias = Annotated[int, Meta(ge=-(1 << 63), le=_MAX_INT)]
ValueVersion: TypeAlias = Annotated[int, Meta(ge=1, le=_MAX_INT)]
What: TypeAlias = Literal["remove", "set", "add", "touch", "incr", "clear"]
Url: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_URL)]
Urls: TypeAlias = Annotated[tuple[Url, ...], Meta(max_length=MAX_PEERS)]
Keys: TypeAlias = Annotated[tuple[Key, ...], Meta(max_length=MAX_KEYS)]
Carriage: TypeAlias = Annotated[tuple[Carried, ...], Meta(max_length=MAX_KEYS)]
TypeName: TypeAlias = Annotated[str, Meta(max_length=MAX_TYPE_NAME)]
