"""Addresses to listen on: as operators write them, and their sockets."""

from __future__ import annotations

import asyncio
import errno
import socket
from ipaddress import ip_address
from typing import Final

BACKLOG: Final = 1024  # connections in one burst that wait to be accepted; the kernel caps it at somaxconn


def parse_address(text: str, option: str = "--listen") -> tuple[str, int]:
    """Read ``HOST:PORT``; an IPv6 host is in brackets, and no host, with or without the colon, is "".

    Raises ``ValueError``.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else -1
    if not 0 <= number <= 65535 or bracketed != (":" in host) or "[" in host or "]" in host:
        raise ValueError(f"{option}: got {text!r}, expected HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or 8080")
    return host, number


def format_address(host: str, port: int) -> str:
    """The opposite of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_unspecified(address: str) -> bool:
    """Whether it stands for all addresses of this host."""
    return ip_address(parse_address(address)[0]).is_unspecified


async def listen(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[socket.socket]:
    """Sockets on all addresses of ``host``, with one port. "" is loopback: whoever wants all says 0.0.0.0, or [::]."""
    where = f"--listen {format_address(host, port)}"
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(error.errno, f"{where}: {error.strerror}") from None
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                listeners.append(_bind(family, (address[0], port, *address[2:])))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # on a host without IPv6, names may still have such an address
            else:
                port = listeners[0].getsockname()[1]
        if missing is not None and not listeners:
            raise missing
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise OSError(error.errno, f"{where}: {error.strerror}") from None
    return listeners


def _bind(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
