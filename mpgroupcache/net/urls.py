"""The URLs of peers."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final, NamedTuple

from mpgroupcache.net.peerwire import check_base_path

_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<place>(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?)"
    r"(?P<path>/.*)?"
)


class PeerURL(NamedTuple):
    """A peer's URL in parts."""

    text: str  # as it was given: the ring hashes it
    tls: bool
    host: str
    port: int
    place: str  # host and port as they were given: the header Host
    path: str  # in front of the base path; empty, or begins with a slash and ends without

    @property
    def meaning(self) -> tuple[bool, str, int, str]:
        """What is equal for two URLs that lead to the same peer, and that the ring takes for two."""
        return self.tls, self.host.lower(), self.port, self.path


def parse_url(url: str, option: str = "--peer") -> PeerURL:
    """Return the parts of a peer's URL; ``option`` is the name that an error gives it.

    Nothing is normalised, since Go's ring hashes the text as it is given. A slash at the end, which Go's client would
    double, is refused.
    """
    match = _URL.fullmatch(url)
    try:
        if match is None:
            raise ValueError
        path = match["path"] or ""
        check_base_path(path + "/")
        port = int(match["port"]) if match["port"] else {"http": 80, "https": 443}[match["scheme"]]
        if not 0 < port < 65536:
            raise ValueError
        host = match["host"] or str(IPv6Address(match["v6"]))
    except ValueError:
        expected = "http:// or https://, a host, maybe a port and a path, and no slash at the end"
        raise ValueError(f"{option}: got {url!r}, expected {expected}, such as http://10.0.0.2:8080") from None
    return PeerURL(url, match["scheme"] == "https", host, port, match["place"], path)
