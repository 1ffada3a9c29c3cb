"""Who gets in besides the coordinator's own user and root: the members of one group (``--group``), or nobody.

The modes of the socket and the segments say so; what the kernel knows of a connection's other end says it again.
"""

from __future__ import annotations

import grp
import os
import socket
import struct
from array import array

OPTION = "--group"

_SO_PEERGROUPS = 59  # not among Python's names: the other end's supplementary groups
_MOST_GROUPS = 256  # that Python's getsockopt can take; the kernel allows a process 65 536
_CREDENTIALS = struct.Struct("iII")  # of SO_PEERCRED: pid, uid, gid


class Access:
    """Who may be a worker of this coordinator. ``gid``: the group's number; None: there is none."""

    def __init__(self, group: str | None) -> None:
        """Raises ``ValueError`` for a group that is not there, or that this process cannot give its files to."""
        self.gid = None if group is None else _number(group)
        if self.gid is not None and os.geteuid() != 0 and self.gid not in (os.getegid(), *os.getgroups()):
            raise ValueError(
                f"{OPTION}: got {group!r}, of which this process's user {os.geteuid()} is no member, expected a group "
                "that it is in; add the user to the group, or start the coordinator as root"
            )

    def refusal(self, sock: socket.socket) -> str | None:
        """Why the process at the other end may not be a worker, or None if it may."""
        pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        user = os.geteuid()
        if uid in (user, 0):
            return None
        if self.gid is None:
            return f"process {pid}: got user {uid}, expected {user}"
        if self.gid == gid:
            return None
        try:
            groups = array("I", sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS))
        except OSError as error:
            return (
                f"process {pid}: user {uid} has groups that cannot be told ({error.strerror}), expected at most "
                f"{_MOST_GROUPS}"
            )
        if self.gid in groups:
            return None
        return f"process {pid}: got user {uid} of group {gid}, expected user {user}, or a member of group {self.gid}"


def _number(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):  # a ValueError: a NUL
        pass
    if group.isascii() and group.isdecimal() and int(group) < (1 << 32) - 1:  # the last one means: none
        return int(group)
    raise ValueError(
        f"{OPTION}: got {group!r}, expected the name or the number of a group of this host; see getent group"
    )
