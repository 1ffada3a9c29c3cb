"""What the judges share: a cached function tells of itself as the tests of others ask it."""

from __future__ import annotations

import functools
from typing import Any


def tell(made: Any, **parameters: Any) -> None:
    """Have a cached function tell what was asked for, and count exactly."""
    info = made.cache_info

    def cache_info() -> Any:
        # The coordinator may answer one together with what came before it, and keep that afterwards; but not two.
        for _ in range(2):
            made.group.remove(b"none")
        return functools._CacheInfo(*info()._replace(maxsize=parameters["maxsize"]))  # type: ignore[attr-defined]

    made.cache_info = cache_info
    made.cache_parameters = lambda: parameters
