"""Under gevent's patching, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from workers import PATIENCE, Daemon

PATCHED = """
from gevent import monkey
monkey.patch_all()
import os, sys, time
import gevent, mpgroupcache
from mpgroupcache.worker import process

def load(ctx, key, dest):
    gevent.sleep(0.3 if key.startswith("slow") else 0)
    dest.set_bytes(key.encode() * 2000)

def check(key):
    assert group.get(key) == key.encode() * 2000, key

mpgroupcache.configure(socket=sys.argv[1])
group = mpgroupcache.new_group("g", "16MiB", load)
assert mpgroupcache.connect()
link = process.current().working_link
"""

TIMEOUTS = """
def use(number):
    for turn in range(5):
        with gevent.Timeout(0.01 * (number % 7 + 1), False):
            check(f"slow-{(number + turn) % 5}-{turn}")
        check(f"quick-{number}-{turn}")

jobs = [gevent.spawn(use, number) for number in range(40)]
gevent.joinall(jobs, timeout=20, raise_error=True)
assert all(job.ready() for job in jobs)
assert process.current().working_link is link and not len(link.channel)
"""

BUSY = """
def burn(until):
    while time.monotonic() < until:
        pass

jobs = [gevent.spawn(check, "slow") for _ in range(4)]
gevent.sleep(0.1)
burn(time.monotonic() + 2.5)
gevent.joinall(jobs, raise_error=True)
assert process.current().working_link is link
"""

FORK = """
check("before")
if (pid := os.fork()) == 0:
    gevent.sleep(0.1)  # every greenlet of the parent's is here too, and must leave the parent's connections alone
    check("child")
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
check("parent")
gevent.sleep(0.1)
assert process.current().working_link is link
"""

STALE = """
from gevent.event import Event

loads, going = [], Event()

def load_anew(ctx, key, dest):
    loads.append(gevent.getcurrent())
    if len(loads) > 1:
        assert going.wait(20)
        dest.set_string("new", ttl=600)
    else:
        dest.set_string("old", ttl=0.001)

def wait_until(condition):
    with gevent.Timeout(20):
        while not condition():
            gevent.sleep(0.002)

def is_stale():
    view = aging.lookup("k")
    return view is not None and view.ttl < 0

def request():
    assert aging.get("k") == "old"
    assert aging.get_many(["k"]) == {"k": "old"}

aging = mpgroupcache.new_group("aging", "1MiB", load_anew, stale=600)
assert mpgroupcache.connect()
request()
wait_until(is_stale)
requests = [gevent.spawn(request) for _ in range(20)]
gevent.joinall(requests, timeout=20, raise_error=True)
assert all(greenlet.dead for greenlet in requests)  # they had the old value, and waited for no load
wait_until(lambda: len(loads) == 2)
assert loads[1] not in requests and loads[1] is not gevent.getcurrent()
going.set()
wait_until(lambda: aging.get("k") == "new")
assert len(loads) == 2
"""

CHANGES = """
plain = mpgroupcache.new_group("plain", "1MiB")
assert mpgroupcache.connect()

def use(number):
    for turn in range(10):
        plain.incr("n", initial=1)
        key = f"{number}-{turn}"
        assert plain.add(key, b"added") and not plain.add(key, b"again")
        assert plain.set(key, b"set") and plain.get(key) == b"set"
        assert plain.remove(key) and plain.lookup(key) is None
    keys = [f"many-{number}-{turn}" for turn in range(10)]
    assert group.get_many(keys) == {key: key.encode() * 2000 for key in keys}
    group.set(keys[0], b"set")
    group.remove(keys[1])
    assert group.get(keys[0]) == b"set"
    check(keys[1])

jobs = [gevent.spawn(use, number) for number in range(20)]
gevent.joinall(jobs, timeout=20, raise_error=True)
assert all(job.successful() for job in jobs)
assert plain.get("n") == b"200"
plain.clear()
assert plain.lookup("n") is None
assert process.current().working_link is link and not len(link.channel)
"""


def run(daemon: Daemon, script: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PATCHED + script, daemon.socket],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, "")


def test_timeouts_of_some_harm_no_others(start_coordinator: Callable[..., Daemon]) -> None:
    run(start_coordinator(), TIMEOUTS)


def test_a_greenlet_that_does_not_yield_for_long_does_not_break_the_link(
    start_coordinator: Callable[..., Daemon],
) -> None:
    run(start_coordinator(), BUSY)


def test_a_fork(start_coordinator: Callable[..., Daemon]) -> None:
    run(start_coordinator(), FORK)


def test_a_stale_value_is_refreshed_in_a_greenlet_of_its_own(start_coordinator: Callable[..., Daemon]) -> None:
    run(start_coordinator(), STALE)


def test_changes_of_many_greenlets(start_coordinator: Callable[..., Daemon]) -> None:
    run(start_coordinator(), CHANGES)
