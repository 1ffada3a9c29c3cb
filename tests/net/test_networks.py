"""Two hosts with a real link between them: cut, healed, throttled; and one behind a slow proxy."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Child
from rings import Host, addresses
from tools import missing
from workers import wait_until

ADDRESSES = ("10.9.0.1:8080", "10.9.0.2:8080")  # in namespaces of their own: every test may have them
KEYS = [b"%d" % i for i in range(60)]


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


class Networks:
    """Two network namespaces, joined by a veth pair."""

    def __init__(self) -> None:
        token = os.urandom(3).hex()
        self.names = [f"mpg-{token}-{side}" for side in "ab"]
        self._devices = [f"v{token}{side}" for side in "ab"]
        try:
            for name in self.names:
                run("ip", "netns", "add", name)
            run("ip", "link", "add", self._devices[0], "type", "veth", "peer", "name", self._devices[1])
            for name, device, address in zip(self.names, self._devices, ADDRESSES, strict=True):
                run("ip", "link", "set", device, "netns", name)
                self.inside(name, "ip", "addr", "add", f"{address.partition(':')[0]}/24", "dev", device)
                self.inside(name, "ip", "link", "set", device, "up")
                self.inside(name, "ip", "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def prefix(name: str) -> list[str]:
        return ["ip", "netns", "exec", name]

    def inside(self, name: str, *command: str) -> None:
        run(*self.prefix(name), *command)

    def set_link(self, state: str) -> None:
        self.inside(self.names[0], "ip", "link", "set", self._devices[0], state)

    def throttle(self, rate: str) -> None:
        """Let the second host send no faster."""
        shape = ("tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")
        self.inside(self.names[1], "tc", "qdisc", "replace", "dev", self._devices[1], "root", *shape)

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30, check=False)


@pytest.fixture
def networks() -> Iterator[Networks]:
    if shutil.which("ip") is None or shutil.which("tc") is None or os.geteuid() != 0:
        missing("no network namespaces: they need root, and ip and tc; apt-get install iproute2")
    networks = Networks()
    yield networks
    networks.close()


@pytest.fixture
def hosts(networks: Networks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    directory = Path(tmp_path_factory.mktemp("h"))
    urls = [f"http://{address}" for address in ADDRESSES]
    started = [
        Host(directory, address, urls, "--peer-timeout", "1", prefix=networks.prefix(name))
        for address, name in zip(ADDRESSES, networks.names, strict=True)
    ]
    yield started
    for host in started:
        host.close()


def peer_loads(worker: Child) -> int:
    loads: int = worker.call("stats").peer_loads
    return loads


def test_a_link_is_cut_and_healed(networks: Networks, hosts: list[Host]) -> None:
    here, there = (host.worker() for host in hosts)
    assert here.call("wrong", KEYS) == []
    assert not set(here.call("loads")) & set(there.call("loads"))
    networks.set_link("down")
    assert here.call("wrong", [b"cut " + key for key in KEYS]) == []
    assert there.call("wrong", [b"cut " + key for key in KEYS]) == []
    assert len(here.call("loads")) > len(KEYS)
    networks.set_link("up")
    before = peer_loads(here)
    numbers = itertools.count()

    def healed() -> bool:
        assert here.call("wrong", [b"healed %d" % next(numbers) for _ in range(4)]) == []
        return peer_loads(here) > before

    wait_until(healed, "a value from the peer")


def test_a_throttled_link_ends_in_local_loads(networks: Networks, hosts: list[Host]) -> None:
    here, _there = (host.worker() for host in hosts)
    networks.throttle("1mbit")
    large = [b"size:2000000:%d" % i for i in range(6)]
    assert here.call("wrong", large) == []
    assert set(here.call("loads")) == set(large)  # a peer that takes longer than --peer-timeout is no help


class SlowProxy:
    """Passes bytes on after a delay."""

    def __init__(self, address: str, target: str, delay: float) -> None:
        self._target, self._delay = target, delay
        host, _, port = address.partition(":")
        self._listener = socket.create_server((host, int(port)))
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            host, _, port = self._target.partition(":")
            far = socket.create_connection((host, int(port)))
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                time.sleep(self._delay)  # what this proxy is for
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def test_a_peer_behind_a_slow_link(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = Path(tmp_path_factory.mktemp("h"))
    first, second, behind = addresses(3)
    urls = [f"http://{first}", f"http://{second}"]
    proxy = SlowProxy(second, behind, 0.02)
    hosts = [Host(directory, first, urls), Host(directory, behind, urls, self_url=urls[1])]
    try:
        here, there = (host.worker() for host in hosts)
        assert here.call("wrong", KEYS) == []
        assert there.call("loads")
        assert not set(here.call("loads")) & set(there.call("loads"))
    finally:
        for host in hosts:
            host.close()
        proxy.close()
