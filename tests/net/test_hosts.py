"""Several hosts, of both kinds, that are one cache."""

from __future__ import annotations

import collections
import itertools
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from children import Child
from gopeers import GoPeer
from peerkeys import ODD_KEYS, many_keys
from rings import GROUP, Host, Ring, addresses, value_of
from workers import wait_until

from mpgroupcache.net.consistenthash import Map

KEYS = [b"%d" % i for i in range(100)]


def total(loads: list[dict[bytes, int]]) -> collections.Counter[bytes]:
    """How often each key was loaded, by whomever."""
    counts: collections.Counter[bytes] = collections.Counter()
    for some in loads:
        counts.update(some)
    return counts


def test_each_key_is_loaded_once_by_its_owner() -> None:
    keys = [*KEYS, *ODD_KEYS.values()]
    with Ring(3) as ring:
        workers = [host.worker() for host in ring.hosts]
        for worker in workers:
            assert worker.call("wrong", keys) == []
        loads = [worker.call("loads") for worker in workers]
        assert total(loads) == dict.fromkeys(keys, 1)
        assert all(loads)  # each owns some
        for worker in workers:
            stats = worker.call("stats")
            assert stats.peer_errors == 0
            assert stats.peer_loads + stats.local_loads >= len(keys)


def test_hosts_without_loads_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Go's ``TestHTTPPool``: four children, 100 keys, the parent's own loader is never called."""
    with Ring(4) as ring:
        children = [host.worker() for host in ring.hosts]
        [address] = addresses(1)
        directory = tmp_path_factory.mktemp("parent")
        parent_host = Host(directory, address, ring.urls)  # which is not of the ring: it owns nothing
        try:
            parent = parent_host.worker()
            assert parent.call("wrong", KEYS) == []
            assert parent.call("loads") == {}
            assert total([child.call("loads") for child in children]) == dict.fromkeys(KEYS, 1)
        finally:
            parent_host.close()


def test_pools_of_children_answer_a_parent(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Go's ``TestHTTPPool`` to the letter: nobody but an ``HTTPPool`` in each process names the ring."""
    directory = tmp_path_factory.mktemp("pools")
    *places, parents = addresses(5)
    urls = [f"http://{place}" for place in places]
    hosts = [Host(directory, place, []) for place in (*places, parents)]
    try:
        *children, parent = (host.worker(pool=urls) for host in hosts)
        assert parent.call("wrong", KEYS) == []
        assert parent.call("loads") == {}
        ring = Map(50)
        ring.add(*urls)
        for url, child in zip(urls, children, strict=True):
            assert child.call("loads") == {key: 1 for key in KEYS if ring.get(key) == url}
            assert child.call("loads")
    finally:
        for host in hosts:
            host.close()


def test_requests_of_peers_are_counted_and_the_hottest_keys_copied() -> None:
    with Ring(2) as ring:
        here, there = (host.worker() for host in ring.hosts)
        for _ in range(12):  # what the owner sees asked for again and again is worth a copy
            assert here.call("wrong", KEYS) == []
        owned = there.call("loads")
        requests = there.call("stats").server_requests
        assert requests == here.call("stats").peer_loads > len(owned)
        assert there.call("stats").gets == requests  # its own workers asked for nothing
        assert 0 < here.call("hot_items") <= len(owned)
        assert here.call("stats").cache_hits > 11 * (len(KEYS) - len(owned))
        assert there.call("hot_items") == 0


def test_a_ring_that_code_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("h")
    places = addresses(3)
    urls = [f"http://{address}" for address in places]
    hosts = [Host(directory, address, []) for address in places]
    try:
        workers = [host.worker(pool=urls[:2]) for host in hosts[:2]]
        for worker in workers:
            assert worker.call("wrong", KEYS) == []
        assert total([worker.call("loads") for worker in workers]) == dict.fromkeys(KEYS, 1)
        workers.append(hosts[2].worker(pool=urls))
        for worker in workers:
            worker.call("set_peers", urls)
        more = [b"more %d" % i for i in range(100)]
        for worker in workers:
            assert worker.call("wrong", more) == []
            assert worker.call("wrong", KEYS) == []
        loads = [worker.call("loads") for worker in workers]
        assert all(set(some) & set(more) for some in loads)
        assert {key: count for key, count in total(loads).items() if key in more} == dict.fromkeys(more, 1)
        hosts[0].daemon.send(signal.SIGKILL)  # the ring comes back with the workers, from their code
        hosts[0].daemon.wait()
        hosts[0].start()
        before = workers[0].call("stats").peer_loads
        numbers = itertools.count()
        wait_until(
            lambda: (
                workers[0].call("wrong", [b"again %d" % next(numbers) for _ in range(4)]) == []
                and workers[0].call("stats").peer_loads > before
            )
        )
    finally:
        for host in hosts:
            host.close()


def test_peers_given_to_the_coordinator_win_over_code(capfd: pytest.CaptureFixture[str]) -> None:
    with Ring(2) as ring:
        here, there = ring.hosts[0].worker(pool=["http://10.0.0.1:8080"]), ring.hosts[1].worker()
        assert here.call("wrong", KEYS) == []
        assert there.call("loads")
        assert "from --peer" in capfd.readouterr().err


def test_large_values(tmp_path_factory: pytest.TempPathFactory) -> None:
    keys = [b"size:%d:%d" % (size, i) for size in (0, 65_536, 65_537, 1 << 20, 9 << 20) for i in range(4)]
    with Ring(2) as ring:
        workers = [host.worker() for host in ring.hosts]
        for worker in workers:
            assert worker.call("wrong", keys) == []
        assert total([worker.call("loads") for worker in workers]) == dict.fromkeys(keys, 1)


def test_a_loaders_error_at_the_owner_is_not_loaded_again() -> None:
    keys = [b"fail:no %d" % i for i in range(20)]
    with Ring(2) as ring:
        here, there = (host.worker() for host in ring.hosts)
        errors = [here.call("error", key) for key in keys]
        owned = there.call("loads")
        assert 0 < len(owned) < len(keys)
        for key, (kind, text) in zip(keys, errors, strict=True):
            assert kind == ("LoadError" if key in owned else "ValueError")
            assert key[5:].decode() in text
        assert total([here.call("loads"), owned]) == dict.fromkeys(keys, 1)


def test_waiters_on_all_hosts_share_one_load() -> None:
    with Ring(3) as ring:
        workers = [host.worker() for host in ring.hosts for _ in range(2)]
        for key in KEYS[:30]:
            for worker in workers:
                worker.send("get", key)
            assert {worker.receive() for worker in workers} == {value_of(key)}
        assert total([worker.call("loads") for worker in workers]) == dict.fromkeys(KEYS[:30], 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_is_gone_costs_no_get(number: signal.Signals) -> None:
    with Ring(2, "--peer-timeout", "1") as ring:
        here, there = ring.hosts
        worker = here.worker()
        there.worker()
        assert worker.call("wrong", KEYS[:10]) == []
        there.daemon.send(number)
        assert worker.call("wrong", KEYS) == []
        assert worker.call("stats").peer_errors > 0
        if number == signal.SIGSTOP:
            there.daemon.send(signal.SIGCONT)
        else:
            there.daemon.wait()
            there.start()
        before = worker.call("stats").peer_loads
        numbers = iter(range(1_000_000))

        def came_back() -> bool:
            assert worker.call("wrong", [b"again %d" % next(numbers) for _ in range(4)]) == []
            return worker.call("stats").peer_loads > before

        wait_until(came_back, "the peer's return to the ring")


def test_a_wrong_self_is_reported_and_hangs_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    [address] = addresses(1)
    directory = tmp_path_factory.mktemp("host")
    host = Host(directory, address, [f"http://{address}"], self_url="http://somebody.else:8080")
    try:
        worker = host.worker()
        assert worker.call("wrong", KEYS) == []
        wait_until(lambda: "--self" in "".join(host.daemon.log), "a line about --self")
    finally:
        host.close()


def test_a_ring_with_go_peers(start_go_peer: Callable[..., GoPeer]) -> None:
    keys = many_keys(10_000)
    go = [start_go_peer("-groups", GROUP, "-cache-bytes", str(256 << 20)) for _ in range(2)]
    with Ring(2, others=[peer.url for peer in go]) as ring:
        for peer in go:
            peer.set_peers(*ring.urls)
        workers = [host.worker(256 << 20) for host in ring.hosts]
        owners = go[0].owners(keys)
        assert go[1].owners(keys) == owners
        # A space that a Go peer sends to another arrives as a plus: those hops are its own.
        apart = [key for key, owner in zip(keys, owners, strict=True) if owner in ring.urls[2:] and b" " in key]

        def through_ours(worker: Child) -> list[bytes]:
            return [key for at in range(0, len(keys), 1000) for key in worker.call("wrong", keys[at : at + 1000])]

        def through_go(peer: GoPeer) -> list[bytes]:
            return [key for key in keys if key not in skipped and peer.get(GROUP, key) != value_of(key)]

        skipped = set(apart)
        with ThreadPoolExecutor(4) as pool:
            wrong = [*pool.map(through_ours, workers), *pool.map(through_go, go)]
        assert wrong == [[], [], [], []]
        loads = [worker.call("loads") for worker in workers] + [peer.loads(GROUP) for peer in go]
        for url, loaded in zip(ring.urls, loads, strict=True):
            assert loaded == {key: 1 for key, owner in zip(keys, owners, strict=True) if owner == url}


def test_members_are_killed_and_restarted_under_load(start_go_peer: Callable[..., GoPeer]) -> None:
    [place] = addresses(1)
    go = start_go_peer("-groups", GROUP, "-listen", place)
    with Ring(3, "--peer-timeout", "1", others=[go.url]) as ring:
        go.set_peers(*ring.urls)
        workers = [host.worker(1 << 20) for host in ring.hosts]
        keys = [b"%d" % i for i in range(20_000)]
        wrong: list[bytes] = []
        stop = threading.Event()

        def load(number: int) -> None:
            at = number * 1000
            while not stop.is_set():
                wrong.extend(workers[number].call("wrong", [keys[(at + i) % len(keys)] for i in range(200)]))
                at += 200

        threads = [threading.Thread(target=load, args=(number,)) for number in range(len(workers))]
        for thread in threads:
            thread.start()
        try:
            for turn in range(4):
                host = ring.hosts[turn % 3]
                host.daemon.send(signal.SIGKILL)
                host.daemon.wait()
                host.start()
                if turn % 2:
                    go.close()
                    go = start_go_peer("-groups", GROUP, "-listen", place)
                    assert go.url in ring.urls
                    go.set_peers(*ring.urls)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert wrong == []
