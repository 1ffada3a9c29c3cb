"""The Makefile's environment, made by a Python that only notes what it was asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = """#!/bin/sh
echo "python $*"
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"$REFUSED"*) echo "a whole error" >&2; exit 1 ;;
esac
"""
VENV = "python -m venv .venv"
BUILD = "python -m pip install --quiet --editable ."
DEMO = "python -m pip install --quiet mpgroupcache[demo]"
TEST = "python -m pip install --quiet mpgroupcache[test]"

Make = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make targets in a fresh checkout: ``make(*targets, refused=...)`` returns the exit status and what was said."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "mpgroupcache" / "shm").mkdir(parents=True)
    (tmp_path / "mpgroupcache" / "shm" / "core.c").touch()

    def make(*targets: str, refused: str = "nothing") -> tuple[int, list[str]]:
        inherited = {name: value for name, value in os.environ.items() if not re.match("MAKE|MFLAGS", name)}
        done = subprocess.run(
            ["make", f"PYTHON={python}", *targets],
            cwd=tmp_path,
            env=inherited | {"REFUSED": refused},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines()

    return make


def asked(said: list[str]) -> list[str]:
    """What Python was asked for."""
    return [line for line in said if line.startswith("python ")]


def test_each_slow_step_says_what_it_does_before_it_begins(make: Make) -> None:
    status, said = make(".venv/installed-demo")
    assert status == 0, said
    assert asked(said) == [VENV, BUILD, DEMO]
    told = [said[said.index(line) - 2] for line in asked(said)]  # make shows the command itself in between
    for line, what in zip(told, ("Making .venv", "Building mpgroupcache", "Installing"), strict=True):
        assert re.match(f"{what}.*: .*(seconds|minute)", line), line


def test_what_is_native_is_built_once_for_all_extras(make: Make, tmp_path: Path) -> None:
    make(".venv/installed-demo")
    _, said = make(".venv/installed-demo", ".venv/installed-test")
    assert asked(said) == [TEST]

    built = (tmp_path / ".venv" / "built").stat()
    os.utime(tmp_path / "mpgroupcache" / "shm" / "core.c", ns=(built.st_atime_ns, built.st_mtime_ns + 1))
    _, said = make(".venv/installed-demo")
    assert asked(said) == [BUILD, DEMO]
    _, said = make(".venv/installed-test")
    assert asked(said) == [TEST]


def test_a_step_that_fails_shows_its_error_and_is_done_again(make: Make) -> None:
    for refused in ("--editable", "[demo]"):
        status, said = make(".venv/installed-demo", refused=refused)
        assert status != 0
        assert "a whole error" in said
        assert refused in asked(said)[-1]
    status, said = make(".venv/installed-demo")
    assert status == 0
    assert asked(said) == [DEMO]
