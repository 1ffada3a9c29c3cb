"""A channel, and the end of it that a test plays."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from playing import Peer

from mpgroupcache.worker.channel import Channel


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Peer]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, Peer(theirs)
    channel.close()
    theirs.close()
