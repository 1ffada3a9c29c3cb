"""The modules of the room: all are named, and what only some need is not imported by all."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys

import pytest

from mpgroupcache import net

SCRIPT = """
import sys
{}
print(*(name for name in {!r} if name in sys.modules))
"""
# Tens of milliseconds of a coordinator's start, or of a worker's, and megabytes
LATE = ("dns.resolver", "google.protobuf", "http.client", "urllib.request")


@pytest.mark.parametrize(
    "code",
    [
        "import mpgroupcache.net.server",
        "import mpgroupcache.net.ring, mpgroupcache.net.membership",
        "import mpgroupcache.coordinator.main",
        "import mpgroupcache; mpgroupcache.HTTPPool",
        "from mpgroupcache.net import peerwire; peerwire.decode_response(bytes.fromhex('0a017611000000000000f83f'))",
    ],
)
def test_what_only_some_need_is_imported_late(code: str) -> None:
    script = SCRIPT.format(code, LATE)
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_room_names_all_of_its_modules() -> None:
    named = set(re.findall(r"`(\w+)`", net.__doc__ or ""))
    assert named == {module.name for module in pkgutil.iter_modules(net.__path__)}
