"""Warnings in an application that has configured no logging, and in one that has."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

WARNED = """
import logging, mpgroupcache
{configured}
mpgroupcache.configure(socket="/nonexistent/socket")
assert not mpgroupcache.connect()
"""
CONFIGURED = {
    "nothing": "",
    "the root": "logging.basicConfig(format='root: %(message)s')",
    "the root, later": "from mpgroupcache.worker.process import current; current(); logging.basicConfig()",
    "the package": "logging.getLogger('mpgroupcache').addHandler(logging.NullHandler())",
}


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (
            "nothing",
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ mpgroupcache\[\d+\] WARNING: no coordinator on /nonexistent.*\n",
        ),
        ("the root", r"root: no coordinator on .*\n"),
        ("the root, later", r".*WARNING.*no coordinator on .*\n"),
        ("the package", r""),
    ],
)
def test_a_warning_is_said_once_and_dated(configured: str, expected: str) -> None:
    script = WARNED.format(configured=CONFIGURED[configured])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert re.fullmatch(expected, done.stderr), done.stderr
    assert done.stderr.count("no coordinator") <= 1
