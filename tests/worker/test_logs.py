"""Warnings in an application that has configured no logging, and in one that has."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("broken", ["closed", "full", "none"])
def test_a_warning_that_nobody_can_be_told_fails_no_get(broken: str) -> None:
    breaking = {
        "closed": "sys.stderr.close()",
        "full": "sys.stderr = open('/dev/full', 'w')",
        "none": "sys.stderr = None",
    }
    script = f"""
import sys, mpgroupcache
mpgroupcache.configure(socket="/nonexistent/socket")
group = mpgroupcache.new_group("g", "1MiB", lambda ctx, key, dest: dest.set_string(key))
{breaking[broken]}
assert [group.get(key) == key for key in "ab"] == [True, True]
print("whole", flush=True)
"""
    environment = os.environ | {"MPGROUPCACHE_KEEP_ALONE": "long"}  # which is a warning at a load's end
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "whole\n", done.stderr
