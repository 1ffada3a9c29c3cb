"""How a function's values are loaded: from its caller's arguments, or from a key that says them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mpgroupcache.ages import loaded_ttl_of
from mpgroupcache.product import Product

if TYPE_CHECKING:
    from mpgroupcache.ages import Ttl
    from mpgroupcache.functions.binding import Calls
    from mpgroupcache.functions.codecs import Codec

Call: TypeAlias = "tuple[Sequence[Any], Mapping[str, Any]]"
"""Positional arguments, and those by name."""


class Loader:
    """Calls one function, and brings what is stored of its values. As a group's getter, it calls it by the key."""

    def __init__(
        self,
        function: Callable[..., Any],
        is_async: bool,
        calls: Calls,
        codec: Codec,
        ttl: Callable[[Any], Ttl] | None = None,
    ) -> None:
        """``ttl``: of a value; None: all live as long as their group says."""
        self._function = function
        self.is_async = is_async
        self._calls = calls
        self._codec = codec
        self._ttl = ttl

    def __repr__(self) -> str:
        return f"the function {self._calls.name}"

    def product(self, value: Any) -> Product:
        """What is stored of a value. Raises ``TypeError`` for one that would not come back as it is."""
        encoded, back = self._codec.checked(value)
        if self._ttl is None:
            return Product(bytes(encoded))
        return Product(bytes(encoded), ttl=loaded_ttl_of(self._ttl(back), f"{self._calls.name}: ttl(value)"))

    def made(self, call: Call) -> Product:
        """Call the function in this thread."""
        return self.product(self._function(*call[0], **call[1]))

    async def made_async(self, call: Call) -> Product:
        """Await it."""
        return self.product(await self._function(*call[0], **call[1]))

    # ---- The getter: for those who have a key alone, peers and refreshes in the background

    def can_load(self, key: bytes) -> bool:
        """Whether a key says all of its call."""
        return self._calls.call(key) is not None

    def load(self, _ctx: Any, key: bytes) -> Product:
        return self.made(self._call_of(key))

    async def load_async(self, _ctx: Any, key: bytes) -> Product:
        return await self.made_async(self._call_of(key))

    def _call_of(self, key: bytes) -> Call:
        if (call := self._calls.call(key)) is None:
            raise TypeError(f"{self._calls.name}: got a key that does not say its arguments ({key[:50]!r})")
        return call


class CallLoader:
    """Loads what a caller asks for, with just his arguments: by key, since a get may ask for many."""

    def __init__(self, loader: Loader, calls: Mapping[bytes, Call]) -> None:
        self._loader = loader
        self._of = calls
        self.is_async = loader.is_async

    def __repr__(self) -> str:
        return repr(self._loader)

    def load(self, _ctx: Any, key: bytes) -> Product:
        """Call the function in this thread."""
        return self._loader.made(self._of[key])

    async def load_async(self, _ctx: Any, key: bytes) -> Product:
        """Await it."""
        return await self._loader.made_async(self._of[key])
