"""Real gunicorn servers for tests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from workers import PATIENCE, segments_of, wait_until

from mpgroupcache.worker.config import private_socket

TESTS = Path(__file__).parent
APPS = TESTS / "apps"
WORKERS = 2  # of each server, as apps/gunicorn.conf.py says


class Response(NamedTuple):
    body: bytes
    headers: Message

    @property
    def worker(self) -> int:
        """The process that answered."""
        return int(self.headers["X-Worker"])


class Server:
    """A gunicorn master with its workers, serving ``apps/web.py`` or ``application``.

    ``socket_path`` is of a coordinator that serves already. Without it there is the embedded default, which is this
    server's alone, since its session and its runtime directory are; it outlives its last client by ``linger`` seconds.
    ``eager``: workers attach when they begin, as a hook has it, and not at their first get. ``warm``: the application
    gets a value when it is imported.
    """

    def __init__(
        self,
        directory: Path,
        worker_class: str,
        *options: str,
        application: str | None = None,
        config: Path = APPS / "gunicorn.conf.py",
        socket_path: str | None = None,
        linger: float = 0.5,
        eager: bool = True,
        warm: bool = False,
    ) -> None:
        self.directory = directory
        self._log = directory / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MPGROUPCACHE_")}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (TESTS.parent, TESTS, APPS)))
        environment["TEST_DIRECTORY"] = str(directory)
        environment["TEST_EAGER"] = "1" if eager else ""
        if warm:
            environment["TEST_WARM"] = "1"
        environment["MPGROUPCACHE_LINGER"] = str(linger)
        if socket_path is None:
            environment["MPGROUPCACHE_APPLICATION"] = str(directory)
        else:
            environment["MPGROUPCACHE_SOCKET"] = socket_path
        # Not ``python -m gunicorn``, whose USR2 starts a script that has gunicorn's own modules on its path.
        command = [sysconfig.get_path("scripts") + "/gunicorn", "--config", str(config), "--bind", "127.0.0.1:0"]
        command += ["--pid", str(directory / "pid"), "--worker-class", worker_class, *options]
        command += ["--threads", "16"] if worker_class == "gthread" else []
        command += [application or ("web:asgi" if is_asgi(worker_class) else "web:app")]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._family = {psutil.Process(self.process.pid)}
        self._clients = ThreadPoolExecutor(64)
        listening = re.compile(r"Listening at: http://[\d.]+:(\d+)")
        wait_until(lambda: listening.search(self.log) or self.process.poll() is not None, "a listener")
        found = listening.search(self.log)
        assert found, self.log
        self._port = int(found[1])

    # ---- Requests

    def request(self, path: str, method: str = "GET", status: int = 200) -> Response:
        """Ask for ``path``, on a connection of its own; ``status``: of the answer that has to come."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
            assert response.status == status, (response.status, body, self.log)
            return Response(body, response.headers)
        finally:
            connection.close()

    def get(self, key: str) -> Response:
        """GET the value of ``key``."""
        return self.request(f"/get/{key}")

    def begin(self, path: str) -> Future[Response]:
        """Begin a request in a thread of its own."""
        return self._clients.submit(self.request, path)

    def page(self, path: str, method: str = "GET") -> Any:
        """The JSON that ``path`` answers with."""
        return json.loads(self.request(path, method).body)

    def wait_answers(self, path: str, pids: set[int], body: Callable[[bytes], bool] = lambda _body: True) -> None:
        """Ask until each of these workers has answered, with such a body."""
        seen: set[int] = set()
        deadline = time.monotonic() + PATIENCE
        while not pids <= seen:
            response = self.request(path)
            if body(response.body):
                seen.add(response.worker)
            assert time.monotonic() < deadline, f"got answers of {seen}, expected some of each of {pids}"

    # ---- What the application told

    def events(self, event: str, key: str) -> list[int]:
        """The processes that told of an event, in order: "ask" before a get, "load" when a loader begins."""
        file = self.directory / "events"
        lines = [line.split(" ", 2) for line in file.read_text().splitlines()] if file.exists() else []
        return [int(pid) for kind, pid, about in lines if (kind, about) == (event, key)]

    def loads(self, key: str) -> list[int]:
        return self.events("load", key)

    def asks(self, key: str) -> list[int]:
        return self.events("ask", key)

    def release(self, name: str) -> None:
        """Let the loaders of ``hold:NAME`` go on."""
        (self.directory / name).touch()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    # ---- Processes

    @property
    def master(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def workers(self, master: psutil.Process | None = None) -> set[int]:
        """The processes of the workers, of this master or of one that it has started."""
        children = (master or self.master).children()
        self._family.update(children)
        return {child.pid for child in children if is_running(child)}

    def wait_workers(self, but: set[int] | None = None) -> set[int]:
        """Return both workers as soon as they are others than ``but`` and have answered a request."""
        return self._wait_workers(self.master, but or set())

    def upgrade(self) -> psutil.Process:
        """Have the master start its successor (USR2), and end; return the successor, whose workers have answered."""
        self.process.send_signal(signal.SIGUSR2)
        pid_file = self.directory / "pid.2"
        wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), "a second master")
        successor = psutil.Process(int(pid_file.read_text()))
        wait_until(lambda: len(self.workers(successor)) == WORKERS, "its workers")
        self._family.add(successor)
        self.process.send_signal(signal.SIGQUIT)
        assert self.process.wait(PATIENCE) == 0
        self._wait_workers(successor, set())
        return successor

    def _wait_workers(self, master: psutil.Process, but: set[int]) -> set[int]:
        def settled() -> set[int]:
            pids = self.workers(master)
            return pids if len(pids) == WORKERS and not pids & but else set()

        pids: set[int] = wait_until(settled, f"{WORKERS} workers other than {but}")
        self.wait_answers("/process", pids)
        return pids

    @property
    def socket_path(self) -> str:
        """The embedded coordinator's socket."""
        return private_socket(str(self.directory))

    def coordinator(self) -> psutil.Process:
        """The process that listens on the embedded coordinator's socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            wait_until(lambda: not sock.connect_ex(self.socket_path), "a private coordinator")
            pid, _, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return psutil.Process(pid)

    def stop(self) -> int:
        """End it as a deploy does, and return its exit code."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.workers()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End it, however it is, and every process of it; the embedded coordinator ends of its own accord."""
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._clients.shutdown()
        for process in self._family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        wait_until(lambda: not os.path.exists(self.socket_path), "the embedded coordinator's end")
        wait_until(lambda: not segments_of(self.socket_path), "the end of its segments")


def is_asgi(worker_class: str) -> bool:
    return worker_class == "asgi" or "uvicorn" in worker_class


def is_running(process: psutil.Process) -> bool:
    """Whether it runs, not as a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
