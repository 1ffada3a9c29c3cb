"""A membership that tests drive."""

from __future__ import annotations

import asyncio
import logging

import pytest

from mpgroupcache.net import membership
from mpgroupcache.net.membership import FILE_INTERVAL, Membership

SELF = "http://10.0.0.1:8080"
A, B, C = (f"http://10.0.0.{i}:8080" for i in (2, 3, 4))


class Driven:
    """A membership with a clock of its own, whose rings are kept."""

    def __init__(self, source: membership.Source) -> None:
        self.rings: list[list[str]] = []
        self.refuse = ""
        self.membership = Membership(source, self._apply)
        self._now = 0.0

    def _apply(self, urls: list[str]) -> None:
        if self.refuse:
            raise ValueError(self.refuse)
        self.rings.append(urls)

    async def tick(self, seconds: float = 0.0) -> None:
        """Let so much time go by, and the look that is then due, if one is."""
        self._now += seconds
        self.membership.tick(self._now)
        if self.membership._looking is not None:
            await asyncio.wait((self.membership._looking,))

    async def ticks(self, count: int = 3) -> None:
        for _ in range(count):
            await self.tick(FILE_INTERVAL)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
