"""What the README shows is run as it stands."""

from __future__ import annotations

import builtins
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from workers import PATIENCE, segments_of, wait_until

import mpgroupcache

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
PRELUDE = """
def render(name):
    return name.encode()
"""


@pytest.fixture
def application() -> Iterator[dict[str, str]]:
    """The environment of an application of its own, whose coordinator is the embedded default."""
    with TemporaryDirectory(prefix="mpg-") as directory:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MPGROUPCACHE_")}
        yield environment | {"XDG_RUNTIME_DIR": directory, "MPGROUPCACHE_LINGER": "0.2", "PYTHONWARNINGS": "error"}
        for log in Path(directory).glob("mpgroupcache-*/*.sock.log"):
            path = log.with_suffix("")
            wait_until(lambda path=path: not path.exists() and not segments_of(str(path)), "the coordinator's end")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.lstrip().split("\n", 1)[0])
def test_python(block: str, application: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "block"
    if ">>>" in block:
        script.write_text(block)
        command = [sys.executable, "-m", "doctest", "-v", str(script)]
    else:
        script.write_text(PRELUDE + block)
        command = [sys.executable, str(script)]
    done = subprocess.run(
        command, env=application, cwd=README.parent, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if ">>>" in block:
        assert re.search(rf"\b{block.count('>>>')} tests in", done.stdout)


def test_what_is_said_to_those_who_come_from_go() -> None:
    """Every Python name in the table is one."""
    table = README.read_text().split("|---|---|\n", 1)[1].split("\n\n", 1)[0]
    owners = [
        mpgroupcache,
        mpgroupcache.Group,
        mpgroupcache.ByteView,
        mpgroupcache.HTTPPool,
        mpgroupcache.lru,
        builtins,
    ]
    owners += [mpgroupcache.singleflight, mpgroupcache.singleflight.Group, mpgroupcache.ProtoGetter]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    names = {name for _, python in rows for name in re.findall(r"(\w+)\(", python)} - {"Map"}
    assert len(rows) == 20
    assert len(names) == 30
    for name in names:
        assert any(hasattr(owner, name) for owner in owners), name
