"""What type checkers make of ``@cached``: `test_types` gives it to them, and nobody runs it.

A comment at a line's end names the error that each of them has to find there. They find no other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, assert_type

import mpgroupcache

T = TypeVar("T")


@dataclasses.dataclass
class User:
    id: int


# ---- Plain functions


@mpgroupcache.cached
def bare(user_id: int, locale: str = "en") -> User:
    return User(user_id)


@mpgroupcache.cached("named", "1MiB", ttl=lambda user: 60, ignore=("db",))
def named(user_id: int, *, db: object = None) -> User | None:
    return None


@mpgroupcache.cached()
def numbers(*numbers: int, **named: str) -> list[int]:
    return [*numbers]


assert_type(bare(7), User)
assert_type(bare(7, "de"), User)
assert_type(bare(locale="de", user_id=7), User)
assert_type(bare.lookup(7, locale="de"), User | None)
assert_type(bare.refresh(7), User)
assert_type(bare.get_many([(7,), (8, "de")]), dict[tuple[Any, ...], User])
assert_type(bare.key(7), bytes)
assert_type(bare.remove(7), bool)
assert_type(bare.cache_info().hits, int)
assert_type(bare.__wrapped__(7), User)
assert_type(bare.group, mpgroupcache.Group)
bare.set(User(7), 7, locale="de")
plain: Callable[[int], User] = bare

assert_type(named(7, db=1), User | None)
assert_type(named.lookup(7), User | None)
named.set(None, 7)

assert_type(numbers(), list[int])
assert_type(numbers(1, 2, name="text"), list[int])

bare()  # mypy: call-arg; pyright: reportCallIssue
bare("7")  # mypy: arg-type; pyright: reportArgumentType
bare(7, language="de")  # mypy: call-arg; pyright: reportCallIssue
bare(7, "de", None)  # mypy: call-arg; pyright: reportCallIssue
bare.key("7")  # mypy: arg-type; pyright: reportArgumentType
bare.lookup()  # mypy: call-arg; pyright: reportCallIssue
bare.remove(7, "de", None)  # mypy: call-arg; pyright: reportCallIssue
bare.refresh("7")  # mypy: arg-type; pyright: reportArgumentType
bare.set(7, 7)  # mypy: arg-type; pyright: reportArgumentType
bare.set(User(7))  # mypy: call-arg; pyright: reportCallIssue
named(7, 1)  # mypy: call-arg; pyright: reportCallIssue
numbers("1")  # mypy: arg-type; pyright: reportArgumentType
other: Callable[[str], User] = bare  # mypy: assignment; pyright: reportAssignmentType


# ---- Async ones


@mpgroupcache.cached
async def fetched(user_id: int, locale: str = "en") -> User:
    return User(user_id)


@mpgroupcache.cached("fetched", ttl=60, stale=10)
async def fetched_by_name(user_id: int) -> User | None:
    return None


coroutine: Coroutine[Any, Any, User] = fetched(7)
assert_type(fetched.lookup(7), User | None)
assert_type(fetched.key(7, locale="de"), bytes)
assert_type(fetched_by_name.lookup(7), User | None)


async def awaits() -> None:
    assert_type(await fetched(7, locale="de"), User)
    assert_type(await fetched_by_name(7), User | None)
    assert_type(await fetched.arefresh(7), User)
    assert_type(await fetched.aget_many([(7,), (8, "de")]), dict[tuple[Any, ...], User])
    assert_type(await fetched.aremove(7), bool)
    await fetched.aset(User(7), 7)
    await fetched.aclear()

    await fetched("7")  # mypy: arg-type; pyright: reportArgumentType
    await fetched.arefresh()  # mypy: call-arg; pyright: reportCallIssue
    await fetched.aset(7, 7)  # mypy: arg-type; pyright: reportArgumentType
    # The twins are for such functions alone.
    await bare.arefresh(7)  # mypy: misc; pyright: reportAttributeAccessIssue
    await bare.aset(User(7), 7)  # mypy: misc, arg-type; pyright: reportAttributeAccessIssue
    await bare.aget_many([(7,)])  # mypy: misc; pyright: reportAttributeAccessIssue


# ---- Without annotations: not taken for async ones


@mpgroupcache.cached
def untyped(n, m=1):  # mypy: no-untyped-def
    return n


@mpgroupcache.cached
async def untyped_async(n):  # mypy: no-untyped-def
    return n


assert_type(untyped(7), Any)
assert_type(untyped.refresh(7), Any)
untyped()  # mypy: call-arg; pyright: reportCallIssue


async def awaits_untyped() -> None:
    assert_type(await untyped_async(7), Any)
    await untyped_async()  # mypy: call-arg; pyright: reportCallIssue


# ---- Generic ones


@mpgroupcache.cached(key="{item}")
def generic(item: T, count: int) -> list[T]:
    return [item] * count


assert_type(generic(1, 2), list[int])
assert_type(generic("a", count=2), list[str])
assert_type(generic.lookup("a", 2), list[str] | None)
generic("a", "b")  # mypy: arg-type; pyright: reportArgumentType


# ---- Methods


class Shop:
    @mpgroupcache.cached(ignore=("self",))
    def price(self, article: int) -> int:
        return article

    @mpgroupcache.cached("stock", key="{self}:{article}")
    async def stock(self, article: int) -> str:
        return str(article)

    @staticmethod
    @mpgroupcache.cached
    def tax(country: str) -> float:
        return 0.19

    @staticmethod
    @mpgroupcache.cached
    def currencies() -> list[str]:
        return []


class Kiosk(Shop):
    def sale(self) -> int:
        return self.price(7) + super().price(7)


shop = Shop()
assert_type(shop.price(7), int)
assert_type(shop.price(article=7), int)
assert_type(shop.price.lookup(7), int | None)
assert_type(shop.price.refresh(7), int)
assert_type(shop.price.key(7), bytes)
assert_type(Shop.price(shop, 7), int)
assert_type(Shop.price.lookup(shop, article=7), int | None)
assert_type(Kiosk().price(7), int)
assert_type(shop.stock.lookup(7), str | None)
shop.price.set(7, 7)
assert_type(Shop.tax("de"), float)
assert_type(shop.tax("de"), float)
assert_type(shop.tax.lookup("de"), float | None)
assert_type(shop.currencies(), list[str])


async def awaits_methods() -> None:
    assert_type(await shop.stock(7), str)
    assert_type(await shop.stock.arefresh(7), str)
    assert_type(await Shop.stock(shop, 7), str)
    await shop.stock.aset("7", 7)
    await shop.stock("7")  # mypy: arg-type; pyright: reportArgumentType


shop.price()  # mypy: call-arg; pyright: reportCallIssue
shop.price("7")  # mypy: arg-type; pyright: reportArgumentType
shop.price(shop, 7)  # mypy: call-arg, arg-type; pyright: reportCallIssue
shop.price.set("7", 7)  # mypy: arg-type; pyright: reportArgumentType
Shop.price(7)  # mypy: call-arg, arg-type; pyright: reportCallIssue
shop.tax(7)  # mypy: arg-type; pyright: reportArgumentType


# ---- Declarations

mpgroupcache.cached(7)  # mypy: call-overload; pyright: reportCallIssue, reportArgumentType
mpgroupcache.cached("named", ttl="60")  # mypy: call-overload; pyright: reportArgumentType
mpgroupcache.cached("named", maxsize=7)  # mypy: call-overload; pyright: reportCallIssue
