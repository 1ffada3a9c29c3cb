"""What the options say of peers, through whole coordinators: secrets, certificates, rings that change."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trustme
from gopeers import GoPeer, Recorder, exchange
from rings import GROUP, Host, addresses, value_of
from workers import Daemon, segments_of, wait_until

from mpgroupcache.coordinator.main import ExitCode
from mpgroupcache.net.groupcachepb_pb2 import GetResponse

KEYS = [b"%d" % i for i in range(60)]
TOLD = {
    "date",
    "mpgroupcache-abilities",
    "mpgroupcache-instance",
    "mpgroupcache-version",
}  # headers in which answers may differ


@contextlib.contextmanager
def hosts(directory: Path, urls: Sequence[str], options: Sequence[Sequence[str]]) -> Iterator[list[Host]]:
    """Hosts of one ring, each with options of its own."""
    started: list[Host] = []
    try:
        for url, own in zip(urls, options, strict=True):
            place = url.partition("://")[2]
            started.append(Host(directory, place, urls, *own, self_url=url))
        yield started
    finally:
        for host in started:
            host.close()


def log_of(host: Host) -> str:
    return "".join(host.daemon.log)


def test_a_peer_without_the_secret_gets_nothing(tmp_path: Path) -> None:
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(f"{name}-secret\n")
    right, wrong = (("--secret-file", str(tmp_path / name)) for name in ("right", "wrong"))
    urls = [f"http://{address}" for address in addresses(3)]
    with hosts(tmp_path, urls, [right, right, wrong]) as (first, second, third):
        workers = [host.worker() for host in (first, second, third)]
        for worker in workers:
            assert worker.call("wrong", KEYS) == []
        stats = [worker.call("stats") for worker in workers]
        assert stats[0].peer_loads > 0
        assert stats[0].peer_errors > 0
        assert stats[2].peer_loads == stats[2].server_requests == 0
        assert set(workers[2].call("loads")) == set(KEYS)  # it loaded all of them for itself
        wait_until(lambda: "--secret-file" in log_of(third) and "secret" in log_of(first), "lines in both logs")


def test_what_is_wrong_with_a_live_peers_answers_is_said_once(tmp_path: Path) -> None:
    """As of another base path, or of what is no peer: it would show in a counter alone."""
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot here\n"
    recorder = Recorder(lambda target: answer)
    [address] = addresses(1)
    host = Host(tmp_path, address, [f"http://{address}", recorder.url])
    try:
        worker = host.worker()
        assert worker.call("wrong", KEYS) == []
        assert worker.call("stats").peer_errors > 1
        said = f"is of no use, and its key is loaded here: {recorder.url}: answered 404: not here"
        wait_until(lambda: said in log_of(host), "a line in the log")
        assert log_of(host).count(said) == 1
    finally:
        host.close()
        recorder.close()


def certificate(directory: Path, authority: trustme.CA, address: str) -> tuple[str, ...]:
    """The options of a host with a certificate for its address."""
    issued = authority.issue_cert(address.partition(":")[0])
    paths = [directory / f"{address}.{kind}" for kind in ("cert", "key", "ca")]
    issued.cert_chain_pems[0].write_to_path(paths[0])
    issued.private_key_pem.write_to_path(paths[1])
    authority.cert_pem.write_to_path(paths[2])
    return ("--tls-cert", str(paths[0]), "--tls-key", str(paths[1]), "--tls-ca", str(paths[2]))


def test_an_authority_without_a_certificate_of_ones_own_is_warned_of(tmp_path: Path) -> None:
    """It says who may ask; without TLS anybody may."""
    authority = tmp_path / "ca"
    trustme.CA().cert_pem.write_to_path(authority)
    [address] = addresses(1)
    host = Host(tmp_path, address, [], "--tls-ca", str(authority))
    try:
        assert f"--tls-ca: got it without --tls-cert, so that --listen {address} is served without TLS" in log_of(host)
    finally:
        host.close()


def test_peers_with_certificates(tmp_path: Path) -> None:
    places = addresses(3)
    authority, other = trustme.CA(), trustme.CA()
    options = [certificate(tmp_path, authority, place) for place in places[:2]]
    options.append(certificate(tmp_path, other, places[2]))  # which nobody else trusts
    with hosts(tmp_path, [f"https://{place}" for place in places], options) as started:
        workers = [host.worker() for host in started]
        for worker in workers:
            assert worker.call("wrong", KEYS) == []
        stats = [worker.call("stats") for worker in workers]
        assert stats[0].peer_loads > 0
        assert stats[1].peer_loads + stats[1].server_requests > 0
        assert stats[2].peer_loads == stats[2].server_requests == 0
        assert set(workers[2].call("loads")) == set(KEYS)


@pytest.mark.parametrize("signalled", [False, True])
def test_a_ring_that_changes_under_load(tmp_path: Path, signalled: bool) -> None:
    urls = [f"http://{address}" for address in addresses(3)]
    file = tmp_path / "peers"

    def name(*members: str) -> None:
        new = tmp_path / "peers.new"
        new.write_text("# the ring\n" + "\n".join(members) + "\n")
        new.rename(file)
        if signalled:
            for host in started:
                host.daemon.send(signal.SIGHUP)

    started: list[Host] = []
    name(*urls[:2])
    try:
        for url in urls:
            place = url.partition("://")[2]
            started.append(Host(tmp_path, place, [f"file:{file}"], self_url=url))
        here, there, late = (host.worker() for host in started)
        assert here.call("wrong", KEYS) == []
        kept = here.call("loads")
        numbers, stop, wrong = itertools.count(), threading.Event(), list[bytes]()

        def load() -> None:
            while not stop.is_set():
                wrong.extend(here.call("wrong", [b"more %d" % next(numbers) for _ in range(50)]))

        thread = threading.Thread(target=load)
        thread.start()
        try:
            assert not late.call("loads")
            name(*urls)
            wait_until(lambda: late.call("loads"), "keys of the new member")
            name(*urls[1:])  # without this host, which only asks from now on
            wait_until(lambda: "not in the ring" in log_of(started[0]), "the ring without this host")
        finally:
            stop.set()
            thread.join()
        assert wrong == []
        hits = here.call("stats").cache_hits
        assert here.call("wrong", sorted(kept)) == []  # another's keys now, but here they are
        assert here.call("stats").cache_hits - hits == len(kept)
        assert there.call("loads")
    finally:
        for host in started:
            host.close()


def test_our_answer_differs_from_gos_by_the_rate_alone(tmp_path: Path, start_go_peer: Callable[..., GoPeer]) -> None:
    go = start_go_peer("-groups", GROUP)
    [address] = addresses(1)
    host = Host(tmp_path, address, [])
    try:
        host.worker()
        for key in ("plain", "empty:", "a%20b"):
            target = f"/_groupcache/{GROUP}/{key}".encode()
            theirs = go.exchange(target)
            first, again = (exchange(host.url, target) for _ in range(2))
            assert theirs is not None
            assert first is not None
            assert again is not None
            assert first.body == theirs.body  # nobody had asked for it before
            assert again.body.startswith(theirs.body)
            rate = GetResponse.FromString(again.body)
            assert rate.minute_qps > 0
            rate.ClearField("minute_qps")
            assert rate == GetResponse.FromString(theirs.body)
            assert len(again.body) == len(theirs.body) + 9
            for ours in (first, again):
                mine = {name.lower(): value for name, value in ours.headers.items() if name.lower() not in TOLD}
                his = {name.lower(): value for name, value in theirs.headers.items() if name.lower() not in TOLD}
                his["content-length"] = str(len(ours.body))
                assert (ours.status, mine) == (theirs.status, his)
        assert value_of(b"plain")
    finally:
        host.close()


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    [address] = addresses(1)
    host = Host(tmp_path, address, [])
    try:
        other = Daemon(str(tmp_path / "other"), "--listen", address)
        assert other.wait() == ExitCode.BAD_OPTION
        assert f"--listen {address}" in "".join(other.log)
        assert segments_of(other.socket) == []
    finally:
        host.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peer", "http://10.0.0.1:8080"], "--self: got nothing"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key: got one of them"),
        (["--base-path", "peers"], "--base-path: base path: got 'peers'"),
        (["--replicas", "0"], "--replicas: got '0'"),
        (["--hash", "md5"], "--hash: got 'md5', expected one of crc32, fnv1a"),
        (["--secret-file", "/nonexistent"], "/nonexistent"),
    ],
)
def test_options_that_cannot_be(options: list[str], message: str) -> None:
    command = [sys.executable, "-m", "mpgroupcache.coordinator", "--socket", "/nonexistent/s", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == ExitCode.BAD_OPTION
    assert message in ended.stderr
