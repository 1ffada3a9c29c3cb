"""``@cached``: functions whose values all processes share, with a real coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import functools
import gc
import inspect
import os
import pickle
import pydoc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from workers import PATIENCE, Daemon, advance, wait_until

import mpgroupcache
from mpgroupcache import ByteView, LoadErrors, NotFound


@dataclasses.dataclass(frozen=True)
class User:
    id: int
    locale: str


loaded: list[Any] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    loaded.clear()


def kept(function: Any, *args: Any) -> Any:
    """The value of a call, once it is in shared memory."""
    wait_until(lambda: function.lookup(*args) is not None, f"{function}{args} in shared memory")
    return function.lookup(*args)


def test_every_spelling_of_a_call_is_one(here: Daemon) -> None:
    @mpgroupcache.cached("users", "1MiB", ignore=("db",))
    def user(user_id: int, locale: str = "en", *, db: object = None) -> User:
        """Find a user."""
        loaded.append((user_id, locale, db))
        return User(user_id, locale)

    assert user(7) == User(7, "en")
    kept(user, 7)
    for value in (user(7, "en"), user(user_id=7), user(7, locale="en"), user(locale="en", user_id=7, db=1)):
        assert value == User(7, "en")
    assert user(1) == User(1, "en")
    assert loaded == [(7, "en", None), (1, "en", None)]
    assert user.group.name == "users"
    assert user.__doc__ == "Find a user."
    assert user.__wrapped__(1, db=2) == User(1, "en")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'user_id'"):
        user()  # type: ignore[call-arg]


def test_arguments_are_typed(here: Daemon) -> None:
    @mpgroupcache.cached
    def kind(value):  # type: ignore[no-untyped-def]
        return type(value).__name__

    assert [kind(value) for value in (1, True, 1.0, "1", b"1", None, (1,))] == [
        "int",
        "bool",
        "float",
        "str",
        "bytes",
        "NoneType",
        "tuple",
    ]
    with pytest.raises(TypeError, match="ignore="):
        kind(object())


def test_the_name_is_the_functions_where_nobody_says_another(here: Daemon) -> None:
    @mpgroupcache.cached
    def function(n: int) -> int:
        return n

    assert function.group.name == f"{__name__}.{function.__qualname__}"
    assert function.cache_parameters() == {
        "maxsize": None,
        "typed": True,
        "name": function.group.name,
        "cache_bytes": 64 << 20,
        "loads": "key",
    }
    assert function(3) == 3


def test_what_is_annotated_comes_back(here: Daemon) -> None:
    @mpgroupcache.cached
    def raw(n: int) -> bytes:
        return b"x" * n

    @mpgroupcache.cached(codec="view")
    def view(n: int) -> bytes:
        return b"y" * n

    @mpgroupcache.cached
    def array(n: int) -> numpy.ndarray:
        return numpy.arange(n, dtype="f8").reshape(2, -1)

    @mpgroupcache.cached
    def plain(n):  # type: ignore[no-untyped-def]
        return {"n": [n, None, 1.5]}

    for _ in range(2):
        assert (raw(3), type(raw(3))) == (b"xxx", bytes)
        assert view(3) == b"yyy"
        assert isinstance(view(3), ByteView)
        assert array(6).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
        assert plain(1) == {"n": [1, None, 1.5]}
        for function in (raw, view):
            kept(function, 3)
        kept(array, 6)
        kept(plain, 1)
    assert numpy.shares_memory(array(6), array(6))
    assert not array(6).flags.writeable


def test_a_value_that_would_not_come_back_is_refused(here: Daemon) -> None:
    @mpgroupcache.cached
    def half(n: int) -> int:
        return n / 2  # type: ignore[return-value]

    for _ in range(2):
        with pytest.raises(TypeError, match=r"half: got float, expected int"):
            half(3)
    assert half.lookup(3) is None
    assert half.cache_info().misses == 2


def test_changes(here: Daemon) -> None:
    @mpgroupcache.cached
    def double(n: int) -> int:
        loaded.append(n)
        return 2 * n

    assert double.lookup(1) is None
    assert double(1) == 2
    assert kept(double, 1) == 2
    assert double.set(5, 1) is None
    assert double(1) == double(n=1) == 5
    assert double.remove(1) is True
    assert double.remove(1) is False
    assert double(1) == 2
    double.set(6, 1)
    assert double.refresh(1) == 2
    assert double(1) == 2
    assert loaded == [1, 1, 1]
    double.clear()
    assert double.lookup(1) is None
    assert double.key(1) == double.key(n=1)
    assert double.group.get(double.key(4)) == double.group.lookup(double.key(4)) or True
    assert double(4) == 8


def test_many_calls(here: Daemon) -> None:
    @mpgroupcache.cached
    def double(n: int, m: int = 0) -> int:
        loaded.append(n)
        if n == 3:
            raise NotFound("no three")
        if n == 4:
            raise ValueError("four")
        return 2 * n + m

    double.set(20, 1)
    assert double.get_many([(1,), (2,), (2, 1), (2, 0), (3,)]) == {(1,): 20, (2,): 4, (2, 1): 5, (2, 0): 4}
    assert loaded == [2, 2, 3]
    with pytest.raises(LoadErrors) as raised:
        double.get_many([(1,), (4,), (5,)])
    assert list(raised.value.errors) == [(4,)]
    assert raised.value.values == {(1,): 20, (5,): 10}


def test_counts_begin_anew_when_it_is_cleared(here: Daemon) -> None:
    @mpgroupcache.cached
    def double(n: int) -> int:
        return 2 * n

    double(1)
    kept(double, 1)
    double(1)
    double(2)
    kept(double, 2)
    hits, misses, maxsize, currsize = double.cache_info()
    assert (misses, maxsize, currsize) == (2, None, 2)
    assert hits >= 1  # looks, too
    stats = double.group.stats
    double.cache_clear()
    assert double.cache_info() == (0, 0, None, 0)
    assert double.group.stats.gets >= stats.gets
    double(1)
    assert double.cache_info().misses == 1


def test_ages_by_the_value(here: Daemon) -> None:
    @mpgroupcache.cached(ttl=lambda n: {1: 10, 2: None, 3: 0}[n])
    def same(n: int) -> int:
        loaded.append(n)
        return n

    assert [same(1), same(2), same(3)] == [1, 2, 3]
    kept(same, 1)
    kept(same, 2)
    assert same.lookup(3) is None
    advance(here.socket, 11)
    assert same.lookup(1) is None
    assert same.lookup(2) == 2
    same.set(1, 1)
    assert same(1) == 1
    same.set(3, 3)  # not to be kept
    assert same.lookup(3) is None
    assert loaded == [1, 2, 3]


def test_who_has_the_arguments_loads_a_stale_value(here: Daemon) -> None:
    """Where the key does not say them: in the caller's own thread, while others are given the old value."""
    inside, go = threading.Event(), threading.Event()

    @mpgroupcache.cached(key="user:{user_id}", ttl=10, stale=100)
    def user(user_id: int, db: object) -> str:
        loaded.append(threading.current_thread().name)
        if len(loaded) > 1:
            inside.set()
            assert go.wait(PATIENCE)
        return f"user {len(loaded)}"

    assert user.cache_parameters()["loads"] == "caller"
    assert user(7, "db") == "user 1"
    kept(user, 7, "db")
    advance(here.socket, 11)
    values: list[str] = []
    thread = threading.Thread(target=lambda: values.append(user(7, "db")), name="caller")
    thread.start()
    assert inside.wait(PATIENCE)
    assert user(7, "db") == "user 1"
    go.set()
    thread.join(PATIENCE)
    assert values == ["user 2"]
    wait_until(lambda: user(7, "other") == "user 2", "the new value in shared memory")
    assert loaded[1:] == ["caller"]


def test_a_stale_value_is_loaded_by_its_key_in_the_background(here: Daemon) -> None:
    @mpgroupcache.cached(ttl=10, stale=100)
    def user(user_id: int, locale: str = "en") -> str:
        loaded.append((threading.current_thread().name, user_id, locale))
        return f"user {len(loaded)}"

    assert user(7, locale="de") == "user 1"
    kept(user, 7, "de")
    advance(here.socket, 11)
    assert user(7, "de") == "user 1"
    wait_until(lambda: user(7, "de") == "user 2", "what the background has loaded")
    assert loaded[1][0] != threading.current_thread().name
    assert loaded[1][1:] == (7, "de")


def test_an_async_function(here: Daemon) -> None:
    @mpgroupcache.cached
    async def double(n: int) -> list[int]:
        loaded.append(n)
        await asyncio.sleep(0)
        return [n, n]

    async def run() -> None:
        assert await double(1) == [1, 1]
        while double.lookup(1) is None:
            await asyncio.sleep(0)
        assert await double(n=1) == [1, 1]
        await double.aset([5], 1)
        assert await double(1) == [5]
        assert await double.aget_many([(1,), (2,)]) == {(1,): [5], (2,): [2, 2]}
        assert await double.arefresh(1) == [1, 1]
        assert await double.aremove(1)
        await double.aclear()
        assert double.lookup(1) is None
        await double.acache_clear()
        for name in ("set", "remove", "refresh", "get_many", "clear", "cache_clear"):
            with pytest.raises(TypeError, match=f"double is async: got {name}\\(\\), expected `await a{name}\\(\\)`"):
                getattr(double, name)(*[[]] * (name in ("set", "get_many")))

    asyncio.run(run())
    assert loaded == [1, 2, 1]
    assert inspect.iscoroutinefunction(double)
    assert asyncio.iscoroutinefunction(double)


def test_an_async_method(here: Daemon) -> None:
    class Shop:
        @mpgroupcache.cached(ignore=("self",))
        async def price(self, article: int) -> int:
            return 10 * article

    assert inspect.iscoroutinefunction(Shop().price)
    assert asyncio.iscoroutinefunction(Shop().price)
    assert asyncio.run(Shop().price(3)) == 30


def test_a_plain_one_has_no_twins(here: Daemon) -> None:
    @mpgroupcache.cached
    def double(n: int) -> int:
        return 2 * n

    assert not inspect.iscoroutinefunction(double)
    for name in ("aset", "aremove", "arefresh", "aget_many", "aclear", "acache_clear"):
        with pytest.raises(TypeError, match=f"double is not async: got {name}\\(\\), expected {name[1:]}\\(\\)"):
            asyncio.run(getattr(double, name)(*[[]] * (name in ("aset", "aget_many"))))


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    @mpgroupcache.cached("shop.price", "1MiB", ignore=("self",))
    def price(self, article: int) -> int:
        """What it costs."""
        loaded.append((self.name, article))
        return 10 * article

    @mpgroupcache.cached("shop.stock", "1MiB", key="{self.name}:{article}")
    def stock(self, article: int) -> str:
        loaded.append((self.name, article))
        return f"{self.name} {article}"

    @staticmethod
    @mpgroupcache.cached("shop.tax", "1MiB")
    def tax(country: str) -> float:
        return 0.19


@pytest.fixture
def shops(here: Daemon) -> tuple[Shop, Shop]:
    for function in (Shop.price, Shop.stock, Shop.tax):
        mpgroupcache.registry._groups[function.group.name] = function.group
    return Shop("a"), Shop("b")


def test_methods(shops: tuple[Shop, Shop]) -> None:
    a, b = shops
    assert a.price(3) == 30
    kept(a.price, 3)
    assert b.price(article=3) == Shop.price(a, 3) == 30
    assert loaded == [("a", 3)]
    assert a.price.key(3) == Shop.price.key(b, 3)
    assert b.price.remove(3)
    assert a.price.lookup(3) is None
    b.price.set(31, 3)
    assert a.price(3) == 31
    assert a.price.refresh(3) == 30
    assert b.price.get_many([(3,), (4,)]) == {(3,): 30, (4,): 40}
    assert loaded[1:] == [("a", 3), ("b", 4)]
    assert Shop.price.__doc__ == a.price.__doc__ == "What it costs."
    assert list(inspect.signature(Shop.price).parameters) == ["self", "article"]
    assert list(inspect.signature(a.price).parameters) == ["article"]
    method = a.price
    assert weakref.ref(method)() is method
    assert weakref.WeakMethod(method)()(3) == 30  # type: ignore[arg-type,misc]


def test_methods_whose_object_is_part_of_the_key(shops: tuple[Shop, Shop]) -> None:
    a, b = shops
    assert [a.stock(1), b.stock(1), a.stock(1)] == ["a 1", "b 1", "a 1"]
    assert a.stock.key(1) == b"a:1"
    assert Shop.tax("de") == a.tax("de") == 0.19


def test_what_is_refused_where_it_is_declared() -> None:
    with pytest.raises(TypeError, match="got a classmethod, expected a function; write @classmethod above @cached"):
        mpgroupcache.cached(classmethod(lambda cls: 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a function, or the name of its group"):
        mpgroupcache.cached(7)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"Method\.load: got a method, whose object is an argument; say ignore="):

        class Method:
            @mpgroupcache.cached
            def load(self, n: int) -> int:
                return n

    with pytest.raises(TypeError, match=r"Klass\.load: got a class method"):

        class Klass:
            @classmethod
            @mpgroupcache.cached
            def load(cls, n: int) -> int:
                return n

    with pytest.raises(TypeError, match="numbers: got a generator"):

        @mpgroupcache.cached
        def numbers(n: int) -> Any:
            yield n

    assert [group.name for group in mpgroupcache.registry.declared() if __name__ in group.name] == []


def test_it_is_pickled_and_copied_by_its_name(shops: tuple[Shop, Shop]) -> None:
    assert pickle.loads(pickle.dumps(Shop.price)) is Shop.price
    assert copy.copy(Shop.price) is copy.deepcopy(Shop.price) is Shop.price


def test_what_has_no_name_of_its_own(here: Daemon) -> None:
    double = functools.partial(lambda times, n: times * n, 2)
    with pytest.raises(TypeError, match=r"got a partial, which has no name of its own; say one .*: cached\('NAME'\)"):
        mpgroupcache.cached(double)
    cached = mpgroupcache.cached("double")(double)
    assert cached(4) == 8
    assert copy.copy(cached) is copy.deepcopy(cached) is cached
    assert repr(cached).startswith("<cached functools.partial: ")
    with pytest.raises(pickle.PicklingError, match="not the same object"):
        pickle.dumps(cached)
    with pytest.raises(ValueError, match="double"):
        mpgroupcache.cached("double")(double)  # there may be many


def test_a_closure_lives_no_longer_than_its_last_user(here: Daemon) -> None:
    @mpgroupcache.cached
    def double(n: int) -> int:
        return 2 * n

    assert double(1) == 2
    gone = weakref.ref(double)
    del double
    gc.collect()
    assert gone() is None


def test_help_is_the_functions(here: Daemon) -> None:
    @mpgroupcache.cached
    def double(n: int, m: float = 2) -> float:
        """Multiply."""
        return n * m

    assert str(inspect.signature(double)) == "(n: 'int', m: 'float' = 2) -> 'float'"
    text = pydoc.plain(pydoc.render_doc(double))
    assert "double(n: 'int', m: 'float' = 2) -> 'float'" in text
    assert "Multiply." in text


def test_its_text_says_how_often_values_were_there(here: Daemon) -> None:
    @mpgroupcache.cached("doubles", "1MiB")
    def double(n: int) -> int:
        return 2 * n

    name = f"{__name__}.{double.__qualname__}"
    assert repr(double) == f"<cached {name}: not called yet>"
    double(1)
    wait_until(lambda: double.group.lookup(double.key(1)))
    counted = double.group.stats
    share = f"{counted.cache_hits / counted.gets:.1%} of {counted.gets} calls were hits"
    assert repr(double) == f"<cached {name}: {share}>"
    shown = double._repr_html_()
    for text in ("doubles", "1 MiB", share, "its key", name.replace("<", "&lt;").replace(">", "&gt;")):
        assert text in shown


def test_what_is_not_there(here: Daemon) -> None:
    @mpgroupcache.cached(negative_ttl=10)
    def user(user_id: int) -> str:
        loaded.append(user_id)
        raise NotFound(f"no user {user_id}")

    for _ in range(2):
        with pytest.raises(NotFound, match="no user 7"):
            user(7)
        wait_until(lambda: user.group.stats.absent_hits or _absent(user), "that it is noted")
    assert loaded == [7]
    assert user.lookup(7) is None


def _absent(user: Callable[[int], str]) -> bool:
    with contextlib.suppress(NotFound):
        user(7)
    return bool(user.group.stats.absent_hits)  # type: ignore[attr-defined]


# ---- Declared again


def declared_anew(text: str, **options: Any) -> Any:
    """What a notebook's cell does that is run again."""

    def cell(n: int) -> str:
        loaded.append((text, n))
        return f"{text} {n}"

    cell.__qualname__ = "cell"
    return mpgroupcache.cached("cell", **options)(cell)


def test_a_function_that_is_declared_again_takes_over(here: Daemon) -> None:
    first = declared_anew("first")
    assert first(1) == "first 1"
    kept(first, 1)
    second = declared_anew("second", ttl=10)
    assert first(2) == second(2) == "second 2"  # whoever has imported the first calls the second
    kept(second, 2)
    assert mpgroupcache.get_group("cell") is second.group is first.group
    assert second.group.ages.ttl == 10
    view = second.group.lookup(second.key(2))
    assert view is not None
    assert view.ttl is not None  # the coordinator was told
    with pytest.raises(ValueError, match="ttl"):
        declared_anew("third", ttl=-1)
    assert first(3) == "second 3"  # nothing was lost


def test_two_functions_of_one_name_are_an_error(here: Daemon) -> None:
    def factory(n: int) -> Any:
        @mpgroupcache.cached
        def closure() -> int:
            return n

        return closure

    assert factory(1)() == 1
    with pytest.raises(ValueError, match="is declared already"):
        factory(2)
    declared_anew("first")

    def other(n: int) -> str:
        return ""

    other.__qualname__ = "other"
    with pytest.raises(ValueError, match="is declared already"):
        mpgroupcache.cached("cell")(other)


# ---- Where loads run


def test_loads_in_threads_of_ours_have_a_context(here: Daemon) -> None:
    inside = threading.local()

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        inside.it = True
        try:
            yield
        finally:
            inside.it = False

    @mpgroupcache.cached(ttl=10, stale=100)
    def load(n: int) -> bool:
        loaded.append(threading.current_thread())
        return getattr(inside, "it", False)

    mpgroupcache.configure(load_context=context)
    mpgroupcache.configure(keep_alone=1)  # what is left out stays as it was
    assert load(1) is False  # the caller's thread has its own
    kept(load, 1)
    advance(here.socket, 11)
    wait_until(lambda: load(1) is True, "the load in the background")
    group = mpgroupcache.new_group("plain", "1MiB", lambda ctx, key, dest: dest.set_string(str(inside.it)))
    assert asyncio.run(group.aget("k")) == "True"
    with pytest.raises(TypeError, match=r"configure\(load_context=...\): got 7, expected a function"):
        mpgroupcache.configure(load_context=7)  # type: ignore[arg-type]


class Http404(Exception):
    """As a framework has it."""


def test_errors_that_say_not_found(here: Daemon) -> None:
    mpgroupcache.configure(not_found=(Http404,))

    @mpgroupcache.cached(negative_ttl=10)
    def page(name: str) -> str:
        loaded.append(name)
        raise Http404(f"no page {name}")

    with pytest.raises(Http404, match="no page x"):
        page("x")
    wait_until(lambda: _is_noted(page), "that it is noted")
    with pytest.raises(NotFound, match="no page x"):
        page("x")
    assert set(loaded) == {"x"}
    assert page.group.stats.local_load_errs == 0
    with pytest.raises(
        TypeError, match=r"configure\(not_found=...\): got \(7,\), expected a tuple of exception classes"
    ):
        mpgroupcache.configure(not_found=(7,))  # type: ignore[arg-type]


def _is_noted(page: Any) -> bool:
    try:
        page("x")
    except NotFound:
        return True
    except Http404:
        return False
    raise AssertionError("expected an error")


APPLICATION = """
import dataclasses, sys
import mpgroupcache

@dataclasses.dataclass
class User:
    id: int
    tags: tuple[str, ...]

@mpgroupcache.cached
def user(user_id: int, locale: str = "en") -> User:
    print("loads", user_id, locale)
    return User(user_id, (locale,))

if __name__ == "__main__":
    print(user(7, locale=sys.argv[1]))
    mpgroupcache.registry.current().close()
"""


def test_processes_share_it(here: Daemon, tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    environment = dict(os.environ, MPGROUPCACHE_SOCKET=here.socket)

    def run(locale: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "application.py", locale],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return done.stdout.splitlines()

    assert run("en") == ["loads 7 en", "User(id=7, tags=('en',))"]
    assert run("en") == ["User(id=7, tags=('en',))"]
    assert run("de") == ["loads 7 de", "User(id=7, tags=('de',))"]
