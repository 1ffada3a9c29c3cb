"""Every error that mpgroupcache raises of its own accord.

One base class, so that ``except mpgroupcache.CacheError`` catches what the cache did and nothing that a loader did: a
loader's own exception reaches the caller that ran it unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class CacheError(Exception):
    """Base class of the errors below."""


class LoadError(CacheError):
    """The load that this caller waited for failed in another thread or process.

    The caller whose thread ran the loader sees the loader's own exception instead. Go's ``Group.Get`` returns the
    loader's error to every waiter; an exception does not cross processes, so its type's name and its text do.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        """Qualified name of the loader's exception type, such as ``ValueError`` or ``app.images.BadImage``."""
        self.message = message
        """``str()`` of the loader's exception."""

    def __str__(self) -> str:
        return f"the load failed in another caller: {self.type_name}: {self.message}"


class LoadCycleError(CacheError):
    """A loader asked, directly or through other loaders, for the key that it is loading."""


class NotFound(CacheError, LookupError):
    """There is no such value. Go: no counterpart.

    A loader raises it to say so, with a text of its own. Every caller of the key who waits for that load gets it, in
    other threads, processes and hosts too; where the group has a ``negative_ttl`` so does, for that long, everybody who
    asks. ``get`` of a group without a loader raises it for what is not cached.
    """


class ChangeError(CacheError):
    """A change was not done, or not on all hosts, or nobody knows whether it was.

    Without a coordinator nothing is changed: a change waits for the next one until its ``timeout``. Where the ring has
    another member nothing is changed either, and ``failed`` names it. Go: no counterpart.
    """

    def __init__(self, message: str, failed: dict[str, str] | None = None, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.failed = failed or {}
        """Peers that the change did not reach, by their URLs, and why."""
        self.unknown = unknown
        """Whether it may have been done all the same: its answer was lost."""


class LoadErrors(CacheError, ExceptionGroup):
    """Some loads of a ``get_many`` failed, and all are done. Go: no counterpart.

    It is an ``ExceptionGroup``, so ``except*`` takes it apart. ``NotFound`` is no failure, and is left out.
    """

    def __new__(cls, errors: dict[Any, Exception], values: dict[Any, Any]) -> LoadErrors:
        return super().__new__(
            cls, f"the loads of {len(errors)} of {len(errors) + len(values)} keys failed", [*errors.values()]
        )

    def __init__(self, errors: dict[Any, Exception], values: dict[Any, Any]) -> None:
        super().__init__(self.message, self.exceptions)
        self.errors = errors
        """Why, by key."""
        self.values = values
        """The views of the others, by key."""

    def __reduce__(self) -> tuple[Any, ...]:
        return LoadErrors, (self.errors, self.values)

    def derive(self, exceptions: Sequence[Exception]) -> LoadErrors:  # type: ignore[override]
        """What ``except*`` makes of a part of it."""
        errors = {key: error for key, error in self.errors.items() if error in exceptions}
        return LoadErrors(errors, self.values)


class DeadlineExceeded(CacheError, TimeoutError):
    """A ``get`` waited for its ``timeout``. What it waited for goes on: others may wait for it, too."""

    def __init__(self, meanwhile: str = "another caller loads; the load goes on") -> None:
        super().__init__(f"get: the timeout passed while {meanwhile}")


class ArenaError(CacheError):
    """A shared memory segment could not be made, committed or attached."""


class CoordinatorError(CacheError):
    """The coordinator refused a request: a limit, an unknown group, or another version."""


class CoordinatorUnavailable(CacheError):
    """No coordinator answers on the socket. ``get`` never raises it: it loads in the worker instead."""


class AlreadyRunning(CacheError):
    """Another coordinator lives on this socket."""


class ProtocolError(CacheError):
    """The other end of a connection sent what the protocol does not allow; the connection is closed."""


def describe_error(error: BaseException) -> tuple[str, str]:
    """An exception's qualified type name and its text."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        return name, str.__str__(str(error))  # of a subclass (markup), which its own str() keeps, a plain one
    except Exception:  # an exception whose __str__ raises is still an exception
        return name, "(its text could not be made)"


def describe_cycle(keys: object) -> str:
    """The text of a ``LoadCycleError``; ``keys`` are (group, key) pairs in order."""
    chain = [f"{group}/{key!r}" for group, key in keys]  # type: ignore[attr-defined]
    return f"a loader waits for its own key: {' -> '.join(chain + chain[:1])}; load it without asking the cache"
