"""A coordinator that can be asked how it finds itself."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from workers import Daemon


class Report(NamedTuple):
    """What checked_coordinator.py tells, after it has reaped dead workers and swept its arenas."""

    faults: list[str]
    """Of ``Arena.check()``, for all arenas."""
    limbo: int
    """Bytes that are held by pins alone."""
    flights: int
    connections: int
    ring: int
    """How many members it has, this one included."""
    failing: int
    """Those of them that are not asked."""
    tasks: int
    """Of its event loop."""

    @property
    def at_rest(self) -> bool:
        """Sound arenas, nothing pinned, nothing under way."""
        return not (self.faults or self.limbo or self.flights)


class Checked(Daemon):
    """Such a coordinator, with all options and signals of the real one."""

    program = (str(Path(__file__).with_name("checked_coordinator.py")),)

    def __init__(self, socket: str, *options: str, **popen: Any) -> None:
        super().__init__(socket, *options, stdout=subprocess.PIPE, **popen)

    def check(self) -> Report:
        self.send(signal.SIGUSR1)
        assert self.process.stdout is not None
        return Report(**json.loads(self.process.stdout.readline()))

    def wait(self) -> int:
        code = super().wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code
