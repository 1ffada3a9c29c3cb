"""Many keys in one get: one message, one call of a batch getter, and nobody who waits for ninety-nine loads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from workers import PATIENCE, Daemon, Worker, advance, flush, leave, value_of, wait_until

import mpgroupcache
from mpgroupcache import (
    ByteView,
    DeadlineExceeded,
    Group,
    LoadCycleError,
    LoadError,
    LoadErrors,
    NotFound,
    Sink,
)
from mpgroupcache.ipc import messages
from mpgroupcache.worker.channel import Channel


class Batches:
    """A getter of one key and of many, whose keys say what becomes of them."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.singles: list[str] = []
        self.held: dict[str, threading.Event] = {}

    def get(self, ctx: Any, key: str, dest: Sink) -> None:
        self.singles.append(key)
        self.set(key, dest)

    def get_many(self, ctx: Any, keys: list[str], dest: dict[str, Sink]) -> None:
        self.calls.append(list(keys))
        for key in keys:
            self.set(key, dest[key])

    def set(self, key: str, dest: Sink) -> None:
        kind, _, rest = key.partition(":")
        if kind == "none":
            return
        if kind == "raise":
            raise ValueError(key)
        if kind == "hold":
            assert self.held[rest].wait(PATIENCE)
        dest.set_string(f"value of {key}")


class SinglesAlone(Batches):
    """The same without the batch."""

    get_many = None  # type: ignore[assignment]


class AsyncBatches(Batches):
    async def get(self, ctx: Any, key: str, dest: Sink) -> None:  # type: ignore[override]
        super().get(ctx, key, dest)

    async def get_many(self, ctx: Any, keys: list[str], dest: dict[str, Sink]) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().get_many(ctx, keys, dest)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[messages.Message]:
    """What this process asks its coordinator."""
    said: list[messages.Message] = []
    ask, ask_many = Channel.ask, Channel.ask_many

    def note(channel: Channel, hold: Any, message: messages.Message, *more: Any) -> Any:
        said.append(message)
        return ask(channel, hold, message, *more)

    def note_many(channel: Channel, hold: Any, message: messages.AskMany) -> Any:
        said.append(message)
        return ask_many(channel, hold, message)

    monkeypatch.setattr(Channel, "ask", note)
    monkeypatch.setattr(Channel, "ask_many", note_many)
    return said


def declare(getter: Batches, **options: Any) -> Group:
    group = mpgroupcache.new_group("many", "8MiB", getter, **options)
    assert mpgroupcache.connect()
    return group


def values(keys: Sequence[str]) -> dict[str, str]:
    return {key: f"value of {key}" for key in keys}


def test_one_message_and_one_call_for_all(here: Daemon, asked: list[messages.Message]) -> None:
    getter = Batches()
    group = declare(getter)
    asked.clear()
    keys = [f"k{i}" for i in range(100)]
    got = group.get_many(keys)
    assert got == values(keys)
    assert list(got) == keys
    assert getter.calls == [keys]
    assert [type(message) for message in asked] == [messages.AskMany]
    flush()
    asked.clear()
    assert group.get_many(reversed(keys)) == values(keys)
    assert asked == []
    stats = group.stats
    assert (stats.gets, stats.cache_hits, stats.local_loads) == (200, 100, 100)


def test_what_is_there_is_not_asked_for(here: Daemon, asked: list[messages.Message]) -> None:
    getter = Batches()
    group = declare(getter)
    group.set_many(values(["a", "b"]))
    assert group.get_many(["a", "x", "b", "y", "a"]) == values(["a", "x", "b", "y"])
    assert getter.calls == [["x", "y"]]
    assert group.get_many([]) == {}


def test_keys_of_both_spellings(here: Daemon) -> None:
    group = declare(Batches())
    assert group.get_many(["k", b"k"]) == {"k": "value of k", b"k": "value of k"}


def test_without_a_batch_getter_each_is_loaded_in_its_turn(here: Daemon) -> None:
    getter = SinglesAlone()
    group = declare(getter)
    keys = [f"k{i}" for i in range(20)]
    assert group.get_many(keys) == values(keys)
    assert getter.singles == keys


def test_a_key_that_is_left_unset_is_absent(here: Daemon) -> None:
    group = declare(Batches(), negative_ttl=60)
    keys = ["a", "none:1", "b"]
    assert group.get_many(keys) == values(["a", "b"])
    got = group.get_many(keys, return_exceptions=True)
    assert list(got) == keys
    assert isinstance(got["none:1"], NotFound)
    flush()
    with pytest.raises(NotFound):
        group.get("none:1")


def test_what_a_batch_raises_is_the_error_of_all_that_were_not_set(here: Daemon) -> None:
    group = declare(Batches())
    with pytest.raises(LoadErrors) as caught:
        group.get_many(["a", "raise:1", "b"])
    assert caught.value.values == values(["a"])
    assert {key: str(error) for key, error in caught.value.errors.items()} == {"raise:1": "raise:1", "b": "raise:1"}
    assert isinstance(caught.value, ExceptionGroup)
    got = group.get_many(["a", "raise:1"], return_exceptions=True)
    assert got["a"] == "value of a"
    assert isinstance(got["raise:1"], ValueError)
    assert group.get("a") == "value of a"


def test_single_loads_that_fail_fail_alone(here: Daemon) -> None:
    group = declare(SinglesAlone())
    with pytest.raises(LoadErrors) as caught:
        group.get_many(["a", "raise:1", "b"])
    assert caught.value.values == values(["a", "b"])
    assert list(caught.value.errors) == ["raise:1"]


@pytest.mark.parametrize("kind", [Batches, SinglesAlone])
def test_two_callers_do_not_wait_for_each_other(here: Daemon, kind: type[Batches]) -> None:
    """1. a has the leases of x and y, and waits for z. 2. b has that of z, and asks for x."""
    getter = kind()
    getter.held = {"x": threading.Event(), "z": threading.Event()}
    group = declare(getter)
    got: dict[str, Any] = {}

    def ask(name: str, keys: list[str]) -> None:
        got[name] = group.get_many(keys)

    first = threading.Thread(target=ask, args=("first", ["hold:x", "y", "hold:z"]))
    other = threading.Thread(target=ask, args=("other", ["hold:z", "hold:x", "w"]))
    other.start()
    wait_until(lambda: getter.calls or getter.singles, "the other one's load")
    first.start()
    for event in getter.held.values():
        event.set()
    for thread in (first, other):
        thread.join(PATIENCE)
    assert got == {"first": values(["hold:x", "y", "hold:z"]), "other": values(["hold:z", "hold:x", "w"])}


def test_others_get_what_a_batch_loads(here: Daemon) -> None:
    getter = Batches()
    getter.held = {"x": threading.Event()}
    group = declare(getter)
    got: dict[str, Any] = {}
    batch = threading.Thread(target=lambda: got.update(group.get_many(["a", "hold:x"])))
    batch.start()
    wait_until(lambda: getter.calls, "the batch")
    single = threading.Thread(target=lambda: got.update(single=group.get("hold:x")))
    single.start()
    getter.held["x"].set()
    batch.join(PATIENCE)
    single.join(PATIENCE)
    assert got == values(["a", "hold:x"]) | {"single": "value of hold:x"}
    assert getter.singles == []


def test_a_key_of_its_own_batch_is_a_cycle(here: Daemon) -> None:
    class Asking(Batches):
        def get_many(self, ctx: Any, keys: list[str], dest: dict[str, Sink]) -> None:
            dest["a"].set_bytes(group.get("b"))

    group = declare(Asking())
    with pytest.raises(LoadErrors) as caught:
        group.get_many(["a", "b"])
    assert {type(error) for error in caught.value.errors.values()} == {LoadCycleError}


@pytest.mark.parametrize("kind", [Batches, SinglesAlone])
def test_the_timeout_bounds_the_waiting(here: Daemon, kind: type[Batches]) -> None:
    getter = kind()
    getter.held = {"x": threading.Event()}
    group = declare(getter)
    loading = threading.Thread(target=group.get, args=("hold:x",))
    loading.start()
    wait_until(lambda: getter.singles, "a load")
    with pytest.raises(DeadlineExceeded):
        group.get_many(["a", "hold:x"], timeout=0.1)
    getter.held["x"].set()
    loading.join(PATIENCE)
    assert group.get("a") == "value of a"


def test_a_timeout_within_a_load_is_its_keys_error(here: Daemon, asked: list[messages.Message]) -> None:
    """One key's lease comes with the answer to all, the others are asked for alone: in both ways."""
    held = threading.Event()

    def load(_ctx: Any, _key: str, dest: Sink) -> None:
        assert held.wait(PATIENCE)
        dest.set_string("v")

    slow = mpgroupcache.new_group("slow", "1MiB", load)

    class Impatient(SinglesAlone):
        def set(self, key: str, dest: Sink) -> None:
            if key.startswith("slow"):
                slow.get("k", timeout=0.01)
            super().set(key, dest)

    group = declare(Impatient())
    loading = threading.Thread(target=slow.get, args=("k",))
    loading.start()
    wait_until(lambda: any(isinstance(message, messages.Ask) for message in asked), "a load")
    try:
        for suffix, get_many in enumerate((group.get_many, lambda keys: asyncio.run(group.aget_many(keys)))):
            keys = [f"{name} {suffix}" for name in ("slow 1", "a", "slow 2", "b")]
            with pytest.raises(LoadErrors) as caught:
                get_many(keys)
            assert caught.value.values == values(keys[1::2])
            assert [(key, type(error)) for key, error in caught.value.errors.items()] == [
                (key, DeadlineExceeded) for key in keys[::2]
            ]
    finally:
        held.set()
        loading.join(PATIENCE)


def test_coroutines(here: Daemon) -> None:
    getter = AsyncBatches()
    group = declare(getter)
    keys = [f"k{i}" for i in range(50)]

    async def main() -> None:
        assert await group.aget_many(keys) == values(keys)
        assert await group.aget_many(keys) == values(keys)
        with pytest.raises(LoadErrors):
            await group.aget_many(["raise:1"])

    asyncio.run(main())
    assert getter.calls == [keys, ["raise:1"]]
    with pytest.raises(TypeError, match="aget_many"):
        group.get_many(["new"])


def test_a_plain_batch_getter_for_coroutines(here: Daemon) -> None:
    getter = Batches()
    group = declare(getter)
    assert asyncio.run(group.aget_many(["a", "b"])) == values(["a", "b"])
    assert getter.calls == [["a", "b"]]


def test_getters_of_two_kinds_are_refused() -> None:
    class Mixed(Batches):
        async def get(self, ctx: Any, key: str, dest: Sink) -> None:  # type: ignore[override]
            pass

    with pytest.raises(TypeError, match="both async, or neither"):
        mpgroupcache.new_group("mixed", "1MiB", Mixed())


def test_large_values_and_many_keys(here: Daemon) -> None:
    class Large(Batches):
        def set(self, key: str, dest: Sink) -> None:
            dest.set_bytes(value_of(key))

    group = mpgroupcache.new_group("large", "64MiB", Large())
    keys = [f"big:{size}:{i}" for i in range(10) for size in (10, 70_000, 300_000)] + [f"k{i}" for i in range(3000)]
    assert group.get_many(keys) == {key: value_of(key) for key in keys}
    flush()
    assert group.get_many(keys) == {key: value_of(key) for key in keys}


def test_without_a_coordinator(socket_path: str) -> None:
    mpgroupcache.configure(socket=socket_path)
    getter = Batches()
    group = mpgroupcache.new_group("alone", "1MiB", getter)
    try:
        assert group.get_many(["a", "b"]) == values(["a", "b"])
    finally:
        leave()


def test_the_timeout_bounds_the_waiting_without_a_coordinator(socket_path: str) -> None:
    mpgroupcache.configure(socket=socket_path)
    getter = SinglesAlone()
    getter.held = {"x": threading.Event()}
    group = mpgroupcache.new_group("alone", "1MiB", getter)
    loading = threading.Thread(target=group.get, args=("hold:x",))
    try:
        loading.start()
        wait_until(lambda: getter.singles, "a load")
        with pytest.raises(DeadlineExceeded):
            group.get_many(["a", "hold:x"], timeout=0.1)
    finally:
        getter.held["x"].set()
        loading.join(PATIENCE)
        leave()


def test_a_worker_that_dies_in_a_batch_leaves_its_keys_to_others(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker]
) -> None:
    daemon = start_coordinator()
    first, second = (spawn_on(daemon.socket) for _ in range(2))
    keys = ["hold:a:1", "k1", "k2"]
    first.begin("call", "get_many", keys)
    first.wait_load("hold:a:1")
    waiting = second.begin_waiting("hold:a:1")
    second.release("a")
    first.kill()
    assert waiting.result(PATIENCE) == value_of("hold:a:1")
    assert second.get("k1") == value_of("k1")


def test_a_waiter_is_told_why_a_batch_failed(
    start_coordinator: Callable[..., Daemon], spawn_on: Callable[..., Worker]
) -> None:
    daemon = start_coordinator()
    first, second = (spawn_on(daemon.socket) for _ in range(2))
    key = "raise:a:1"
    loading = first.begin("call", "get_many", [key])
    first.wait_load(key)
    waiting = second.begin_waiting(key)
    first.release("a")
    assert isinstance(loading.exception(PATIENCE), LoadErrors)
    assert isinstance(waiting.exception(PATIENCE), LoadError)


def test_views_of_many_are_views(here: Daemon) -> None:
    group = declare(Batches())
    assert all(type(view) is ByteView for view in group.get_many(["a", "b"]).values())


def test_a_coroutine_loads_and_waits_for_what_others_load(here: Daemon, spawn_on: Callable[..., Worker]) -> None:
    """What it waits for is not given up when its own loads have ended."""
    other = spawn_on(here.socket)
    elsewhere = other.begin_loading("hold:a:k")
    release = asyncio.Event()

    async def load(ctx: Any, key: str, dest: Sink) -> None:
        if key == "here":
            await release.wait()
        dest.set_bytes(value_of(key))

    async def main() -> dict[str | bytes, Any]:
        loading = asyncio.create_task(group.aget("here"))
        await asyncio.sleep(0)
        many = asyncio.create_task(group.aget_many(["own", "here", "hold:a:k"]))
        while group.lookup("own") is None:
            await asyncio.sleep(0)
        release.set()
        other.release("a")
        await loading
        return await asyncio.wait_for(many, PATIENCE)

    group = mpgroupcache.new_group("group", "8MiB", load)
    assert mpgroupcache.connect()
    assert asyncio.run(main()) == {key: value_of(key) for key in ("own", "here", "hold:a:k")}
    assert elsewhere.result(PATIENCE) == value_of("hold:a:k")


def test_no_lease_comes_to_who_waits_for_many(here: Daemon, spawn_on: Callable[..., Worker]) -> None:
    """1. a waits for y, and loads x. 2. The loader of y dies. 3. x's loader asks for y: nobody has its lease."""
    other = spawn_on(here.socket)
    other.begin_loading("hold:a:y")

    def load(ctx: Any, key: str, dest: Sink) -> None:
        if key == "x":
            other.kill()
            assert group.get("hold:a:y", timeout=PATIENCE) == value_of("hold:a:y")
        dest.set_bytes(value_of(key))

    group = mpgroupcache.new_group("group", "8MiB", load)
    assert mpgroupcache.connect()
    assert group.get_many(["x", "hold:a:y"]) == {key: value_of(key) for key in ("x", "hold:a:y")}


def test_a_batch_that_fails_gives_what_is_kept_for_that(here: Daemon) -> None:
    getter = Batches()
    group = declare(getter, ttl=10, stale_if_error=100)
    group.set("raise:1", "old")
    advance(here.socket, 20)
    assert group.get_many(["raise:1", "raise:2"], return_exceptions=True)["raise:1"] == "old"


@pytest.mark.parametrize("kind", [Batches, SinglesAlone])
def test_the_timeout_does_not_count_what_the_caller_loads(here: Daemon, kind: type[Batches]) -> None:
    class Slow(kind):  # type: ignore[misc,valid-type]
        def set(self, key: str, dest: Sink) -> None:
            threading.Event().wait(0.15)
            dest.set_string(f"value of {key}")

    group = declare(Slow())
    keys = [f"k{i}" for i in range(5)]
    assert group.get_many(keys, timeout=0.5) == values(keys)

    async def main() -> dict[str | bytes, Any]:
        return await group.aget_many([f"a{i}" for i in range(5)], timeout=0.5)

    assert len(asyncio.run(main())) == 5
