"""URLs of peers: what is one, and its parts."""

from __future__ import annotations

import pytest

from mpgroupcache.net.urls import parse_url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.2:8080",
        "ftp://a",
        "http://",
        "http://a/",
        "http://a//b",
        "http://a/b/",
        "http://a/../b",
        "http://a?b",
        "http://a#b",
        "http://u:p@a",
        "http://a:0",
        "http://a:65536",
        "http://a:",
        "http://[::1",
        "http://[1::2::3]",
        "http://[::1%25eth0]",
        "http://a b",
        "http://a\n",
        "http://\N{SNOWMAN}",
        "HTTP://a",
    ],
)
def test_what_is_no_peers_url(url: str) -> None:
    with pytest.raises(ValueError, match="--peer: got .*, expected http:// or https://"):
        parse_url(url)


def test_urls_in_parts() -> None:
    assert parse_url("http://a") == ("http://a", False, "a", 80, "a", "")
    assert parse_url("https://a_b.c-d/x/y") == ("https://a_b.c-d/x/y", True, "a_b.c-d", 443, "a_b.c-d", "/x/y")
    assert parse_url("http://[fd00:0::1]:81") == ("http://[fd00:0::1]:81", False, "fd00::1", 81, "[fd00:0::1]:81", "")
