"""A request through a transport: whole, in time, and the place's that was asked; or none."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from gopeers import Recorder
from workers import PATIENCE

from mpgroupcache.errors import ProtocolError
from mpgroupcache.net.outcomes import Reply
from mpgroupcache.net.transport import default_transport, round_trip

HEAD = b"HTTP/1.1 %d OK\r\nContent-Type: application/x-protobuf\r\n"


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """Start a peer that answers with these bytes, and closes; returns its URL."""
    with contextlib.ExitStack() as stack:

        def start(answer: bytes) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            thread = threading.Thread(target=serve, args=(listener, answer))
            thread.start()
            stack.callback(thread.join)
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

        def serve(listener: socket.socket, answer: bytes) -> None:
            peer, _ = listener.accept()
            with peer:
                got = b""
                while not got.endswith(b"\r\n\r\n"):
                    got += peer.recv(4096)
                peer.sendall(answer)

        yield start


def ask(url: str, timeout: float = PATIENCE, max_bytes: int = 1000) -> Reply:
    return round_trip(default_transport(None), f"{url}/k", {}, timeout, max_bytes)


def test_the_default_follows_no_redirect() -> None:
    recorder = Recorder(lambda target: b"HTTP/1.1 301 Moved\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")
    try:
        reply = round_trip(default_transport(None), f"{recorder.url}/k", {}, PATIENCE, 100)
        assert reply.status == 301
        assert len(recorder.requests) == 1
        with pytest.raises(OSError, match="refused"):
            round_trip(default_transport(None), "http://127.0.0.1:1/k", {}, PATIENCE, 100)
    finally:
        recorder.close()


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize(
    ("rest", "error"),
    [
        (b"Content-Length: 7\r\n\r\n", "closed after 0 bytes of 7"),
        (b"Content-Length: 7\r\n\r\n\x0a\x05val", "closed after 5 bytes of 7"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\n\x0a\x03", "in chunks"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\n\x0a\x03val\r\n", "in chunks"),
        (b"Connection: close\r\n\r\n\x0a\x03val", "neither Content-Length nor chunks"),
    ],
    ids=["without its body", "in its body", "in a chunk", "between chunks", "anywhere"],
)
def test_what_is_cut_off_is_no_value(answering: Callable[[bytes], str], status: int, rest: bytes, error: str) -> None:
    with pytest.raises((OSError, ProtocolError), match=error):
        ask(answering(HEAD % status + rest))


@pytest.mark.parametrize(
    "rest",
    [b"Content-Length: 5\r\n\r\n\x0a\x03val", b"Transfer-Encoding: chunked\r\n\r\n5\r\n\x0a\x03val\r\n0\r\n\r\n"],
)
def test_what_is_whole_is_one(answering: Callable[[bytes], str], rest: bytes) -> None:
    assert ask(answering(HEAD % 200 + rest)).body == b"\x0a\x03val"


@pytest.mark.parametrize("begin", [b"", HEAD % 200, HEAD % 200 + b"Content-Length: 1000\r\n\r\n"])
def test_a_byte_now_and_then_is_no_answer_in_time(begin: bytes) -> None:
    """Neither of a head nor of a body: a socket's timeout begins anew with each."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(begin)
                while not ended.wait(0.05):
                    peer.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(OSError, match=r"timed out|in time"):
                ask(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5)
        finally:
            ended.set()
            thread.join()


def test_a_transport_that_follows_redirects_is_told_so(answering: Callable[[bytes], str]) -> None:
    there = answering(HEAD % 200 + b"Content-Length: 5\r\n\r\n\x0a\x03val")
    here = answering(b"HTTP/1.1 301 Moved\r\nLocation: %s/other\r\nContent-Length: 0\r\n\r\n" % there.encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(ProtocolError, match=f"followed a redirect to {there}/other"):
        round_trip(opener, f"{here}/k", {}, PATIENCE, 1000)
