"""How long values live: what a group says, what a value says of itself, and what follows from both. No clock."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol, TypeAlias

from msgspec import Meta, Struct

from mpgroupcache.limits import MAX_SECONDS

if TYPE_CHECKING:
    from datetime import timedelta

    from mpgroupcache.product import Product

FOREVER: Final = float("inf")  # s
COPY_TTL: Final = 5.0  # s that a host serves another one's value, of which it hears no changes

Span: TypeAlias = Annotated[float, Meta(ge=0)]
"""Seconds; ``FOREVER``: no bound."""


class Unset(Enum):
    """What an option is that was left out, where None says something."""

    UNSET = "..."

    def __repr__(self) -> str:
        return self.value

    def __bool__(self) -> Literal[False]:
        return False


UNSET: Final = Unset.UNSET

Seconds: TypeAlias = "float | timedelta"
Ttl: TypeAlias = "float | timedelta | Unset | None"
"""Seconds, or None: for ever; left out: as the group says."""


class Ages(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """How long a group's values live, in seconds. None has a default: a message says all of them."""

    ttl: Span
    """A value is fresh for so long ..."""
    stale: Span
    """... then stale, and returned while it is refreshed; then dead."""
    stale_if_error: Span
    """Since it was fresh: for so long a dead one is kept, for when its load fails."""
    copy_ttl: Span
    """For so long a host keeps what another one owns."""
    negative_ttl: Span
    """For so long it is kept that there is no value."""
    jitter: Annotated[float, Meta(ge=0, lt=1)]
    """The part of its ttl by which a value's is shortened at random, at most."""


AGELESS: Final = Ages(FOREVER, 0.0, 0.0, FOREVER, 0.0, 0.0)


class Lived(Protocol):
    """What says how long it lives."""

    @property
    def ttl(self) -> float | None:
        """s for which it is fresh; None: as the group says; 0: it is not to be kept."""

    @property
    def stale(self) -> float | None:
        """s for which it is stale then; None: as the group says."""

    @property
    def absent(self) -> bool:
        """Whether it says that there is no value."""


class Told(Protocol):
    """What an owner says of how long its value lives."""

    @property
    def says_ages(self) -> bool:
        """Whether it says that; else nobody knows, as of Go's."""

    @property
    def fresh(self) -> float | None:
        """s until it is stale there, below 0: since when; None: it never is."""

    @property
    def dead(self) -> float | None:
        """s until it is dead there; None: it never is."""


def fresh_for(ages: Ages, value: Lived) -> float:
    """For how many seconds a value is fresh, but for jitter; 0: it is not kept."""
    if value.ttl is not None:
        return value.ttl
    return ages.negative_ttl if value.absent else ages.ttl


def stale_for(ages: Ages, value: Lived) -> float:
    """For how many seconds it is stale then."""
    if value.absent:
        return 0.0
    return ages.stale if value.stale is None else value.stale


def copied_for(ages: Ages, fresh: float | None, dead: float | None) -> tuple[float, float]:
    """For how many seconds a copy is fresh, and until when it lives, of what is so long with its owner; None: for ever.

    Fresh for less than 0: it is stale since then.
    """
    dead = ages.copy_ttl if dead is None else min(dead, ages.copy_ttl)
    return (dead if fresh is None else min(fresh, dead)), dead


def fresh_here(ages: Ages, product: Product) -> float:
    """For how many seconds what a load brought is fresh in this host, as ``fresh_for``; below 0: it came stale."""
    fresh = fresh_for(ages, product)
    if not product.picked:
        return fresh
    if (said := product.said) is not None and said.says_ages:
        return copied_for(ages, said.fresh, said.dead)[0]
    return copied_for(ages, fresh, None)[0]


def make_ages(
    ttl: Seconds | None,
    stale: Seconds,
    stale_if_error: Seconds,
    jitter: float,
    copy_ttl: Seconds | Unset | None,
    negative_ttl: Seconds | None,
) -> Ages:
    """A group's ages, as its declaration says them. Raises ``ValueError``, or ``TypeError``, that names the option."""
    fresh = FOREVER if ttl is None else positive(ttl, "ttl")
    if copy_ttl is UNSET:
        copied = FOREVER if ttl is None else COPY_TTL
    else:
        copied = FOREVER if copy_ttl is None else positive(copy_ttl, "copy_ttl")
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter: got {jitter!r}, expected a part of ttl from 0 to below 1")
    return Ages(
        fresh,
        span(stale, "stale"),
        span(stale_if_error, "stale_if_error"),
        min(copied, fresh),
        0.0 if negative_ttl is None else positive(negative_ttl, "negative_ttl"),
        float(jitter),
    )


def span(value: Seconds, option: str) -> float:
    """Seconds from 0 on. Raises ``ValueError``, or ``TypeError`` for what is neither a number nor a ``timedelta``."""
    total = getattr(value, "total_seconds", None)
    seconds = value if total is None else total()
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{option}: got {type(value).__name__}, expected seconds as int or float, or a timedelta")
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{option}: got {value!r}, expected seconds from 0 to {MAX_SECONDS:g}")
    return float(seconds)


def positive(value: Seconds, option: str) -> float:
    """Seconds above 0. Raises as ``span``."""
    if not (seconds := span(value, option)):
        raise ValueError(
            f"{option}: got {value!r}, expected more than 0 seconds; None is for ever, and remove() ends a value now"
        )
    return seconds


def ttl_of(value: Ttl, option: str = "ttl") -> float | None:
    """What a caller said of one value's ``ttl``; None: the group's. Raises as ``positive``."""
    if value is UNSET:
        return None
    return FOREVER if value is None else positive(value, option)


def loaded_ttl_of(value: Ttl, option: str) -> float | None:
    """The same of a value that was loaded: 0 says that it is for those who wait, and not kept."""
    if value is UNSET:
        return None
    return FOREVER if value is None else span(value, option)


def stale_of(value: Seconds | Unset, option: str = "stale") -> float | None:
    """What was said of one value's ``stale``; None: the group's. Raises as ``span``."""
    return None if value is UNSET else span(value, option)
