"""Processes that make an object and call its methods on command, for tests."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 30.0  # s; an answer that takes longer never comes

_spawn = multiprocessing.get_context("spawn")  # no state of this process but what is passed


class ChildError(AssertionError):
    """Something failed in a child process: its traceback, or how it ended."""


class Child:
    """One such process."""

    def __init__(self, factory: Callable[..., object], *args: Any) -> None:
        """Start a process that calls ``factory(*args)``; both have to be picklable, so no lambdas or local classes."""
        self._connection, theirs = _spawn.Pipe()
        self.process = _spawn.Process(target=_serve, args=(theirs, factory, args), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def call(self, method: str, *args: Any) -> Any:
        """The result of a method in the child; ``ChildError`` where it raised, or the child died of it."""
        self.send(method, *args)
        return self.receive()

    def send(self, method: str, *args: Any) -> None:
        """Begin a call; ``receive`` has its result."""
        self._connection.send((method, args))

    def receive(self, timeout: float = PATIENCE) -> Any:
        if not self._connection.poll(timeout):
            raise ChildError(f"child {self.pid} did not answer within {timeout} s")
        try:
            succeeded, result = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise ChildError(f"child {self.pid} ended with {self.wait()}") from None
        if not succeeded:
            raise ChildError(f"in child {self.pid}:\n{result}")
        return result

    def has_answered(self) -> bool:
        """Whether ``receive`` has something to say, if only how the child ended."""
        return self._connection.poll()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the child to end by itself, and return its exit code: negative for a signal."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise ChildError(f"child {self.pid} did not end within {timeout} s")
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL, and wait until the kernel has taken all of the process away."""
        self.process.kill()
        self.process.join()

    def close(self) -> None:
        """Let it end in order, by closing its connection; kill it if it does not."""
        self._connection.close()
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.kill()


def _serve(connection: multiprocessing.connection.Connection, factory: Callable[..., object], args: Any) -> None:
    try:
        served = factory(*args)
    except BaseException:
        connection.send((False, traceback.format_exc()))
        raise
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            result = (True, getattr(served, method)(*arguments))
        except BaseException:  # pytest's own failures are no Exception
            result = (False, traceback.format_exc())
        connection.send(result)
