"""Peers that are Go groupcache processes, built from ``gopeer/main.go``, and raw HTTP to talk to them."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shutil
import socket
import socketserver
import subprocess
import threading
from http.client import BadStatusLine, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

from children import PATIENCE
from tools import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SOURCE = Path(__file__).parent / "gopeer" / "main.go"
GOPATH = Path("/usr/share/gocode")  # where Debian has the sources of its Go packages
BUILD_PATIENCE = 300.0  # s; Go may have to compile its own library first


def build(directory: Path) -> Path:
    """Return the program, built once for each source and Go; ``directory`` is kept between sessions."""
    go = shutil.which("go")
    if go is None or not (GOPATH / "src/github.com/golang/groupcache").is_dir():
        missing("no Go groupcache to compare with; apt-get install golang-go golang-github-golang-groupcache-dev")
    version = subprocess.run([go, "version"], capture_output=True, check=True, timeout=PATIENCE).stdout
    program = directory / f"gopeer-{hashlib.sha256(version + SOURCE.read_bytes()).hexdigest()[:16]}"
    with (directory / "lock").open("w") as lock:  # of xdist's processes one builds, and the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            environment = {name: value for name, value in os.environ.items() if not name.startswith("GO")}
            environment |= {"GO111MODULE": "off", "GOPATH": str(GOPATH), "GOCACHE": str(directory / "gocache")}
            new = program.with_suffix(".new")
            subprocess.run([go, "build", "-o", new, SOURCE], check=True, timeout=BUILD_PATIENCE, env=environment)
            new.rename(program)
    return program


class GoPeer:
    """One such process; it ends with this one."""

    def __init__(self, program: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            [program, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()  # the end of the file, if it dies first
        assert line, f"the Go peer ended with {self._process.wait(PATIENCE)}"
        self.url, self._admin = line.split()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE)

    def exchange(self, target: bytes, method: bytes = b"GET") -> Answer | None:
        """What it answers to a request as a peer sends it; None if it closes the connection instead."""
        return exchange(self.url, target, method)

    def get(self, group: str, key: bytes) -> bytes:
        """Get through groupcache. An error is a ``LookupError`` with its text."""
        try:
            return self._ask("/get", group=group, key=base64.urlsafe_b64encode(key).decode())
        except HTTPError as error:
            with error:
                raise LookupError(error.read().decode().removesuffix("\n")) from None

    def owners(self, keys: Iterable[bytes]) -> list[str]:
        """The URLs that ``PickPeer`` names."""
        body = b"".join(base64.urlsafe_b64encode(key) + b"\n" for key in keys)
        return self._ask("/owners", body).decode().splitlines()

    def set_peers(self, *urls: str) -> None:
        self._ask("/peers", "\n".join(urls).encode())

    def loads(self, group: str) -> dict[bytes, int]:
        """How often each key was loaded by this peer's own loader."""
        lines = [line.split(b" ") for line in self._ask("/loads", group=group).splitlines()]
        return {base64.urlsafe_b64decode(key): int(count) for count, key in lines}

    def stats(self, group: str) -> dict[str, int]:
        stats: dict[str, int] = json.loads(self._ask("/stats", group=group))
        return stats

    def _ask(self, path: str, body: bytes | None = None, **query: str) -> bytes:
        with urlopen(f"{self._admin}{path}?{urlencode(query)}", body, timeout=PATIENCE) as response:
            answer: bytes = response.read()
            return answer


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def exchange(url: str, target: bytes, method: bytes = b"GET", *headers: bytes, body: bytes = b"") -> Answer | None:
    """Send a request whose target is these very bytes, on a connection of its own."""
    host = urlsplit(url).netloc
    with socket.create_connection(host.rsplit(":", 1), PATIENCE) as sock:  # type: ignore[arg-type]
        lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: " + host.encode(), b"Connection: close", *headers]
        sock.sendall(b"\r\n".join([*lines, b"", body]))
        response = HTTPResponse(sock, method=method.decode())
        try:
            response.begin()
        except (BadStatusLine, ConnectionResetError):
            return None
        with response:
            return Answer(response.status, dict(response.getheaders()), response.read())


class Recorder:
    """A server for a Go client: it keeps the raw requests, and answers with what ``answer`` makes of their targets."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.requests: list[tuple[bytes, list[bytes]]] = []
        """Request targets, and the lines of headers."""
        recorder = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while line := self.rfile.readline():
                    target = line.split(b" ")[1]
                    headers = list(iter(lambda: self.rfile.readline().rstrip(b"\r\n"), b""))
                    recorder.requests.append((target, headers))
                    self.wfile.write(answer(target))

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True  # a Go client keeps its connections
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()
