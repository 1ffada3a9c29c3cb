"""What a host's peers have in common."""

from __future__ import annotations

from typing import Any

import pytest
from fakepeers import INSTANCE

from mpgroupcache.net.peer import PeerOptions

SELF = "http://10.0.0.1:8080"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"self_url": "nowhere"}, "--self: got 'nowhere'"),
        ({"base_path": "cache"}, "base path: got 'cache'"),
        ({"secret": "a b"}, "secret: got 3 characters"),
        ({"request_timeout": 0}, "request_timeout: got 0, expected a number above 0"),
        ({"max_connections": -1}, "max_connections: got -1"),
    ],
)
def test_options_that_cannot_be(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PeerOptions(**{"self_url": SELF, "instance": INSTANCE, **change})


def test_the_secret_is_not_shown() -> None:
    assert "s3cret" not in repr(PeerOptions(self_url=SELF, instance=INSTANCE, secret="s3cret"))
