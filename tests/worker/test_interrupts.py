"""Exceptions that a signal's handler raises at any bytecode strand no key, no request, no descriptor and no pin."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workers import Daemon

PROGRAM = Path(__file__).with_name("striking.py")
ROOT = Path(__file__).parent.parent.parent
WAYS = ["small", "large", "bad", "wait", "wait-large", "attach", "singleflight"]
OTHERS = ["python3.12", "python3.13"]


def strike(python: str, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} if python == sys.executable else dict(os.environ)
    ran = subprocess.run(
        [python, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=170, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    # What strikes where memory is given back is ignored, by Python, which says so.
    assert not re.search(r"^\w*(Error|Exception|Warning):", ran.stderr, re.M), ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def strike_all(python: str, socket: str) -> dict[str, int]:
    """Strike at every point of every way, and say how many there were."""
    points = {}
    for way in WAYS if socket != "-" else [way for way in WAYS if way != "attach"]:
        found = strike(python, way, socket)
        assert found["faults"] == [], way
        points[way] = found["points"]
    return points


@pytest.mark.parametrize("way", WAYS)
def test_at_any_point(start_coordinator: Callable[..., Daemon], way: str) -> None:
    found = strike(sys.executable, way, start_coordinator("--lease-timeout", "600").socket)
    assert found["faults"] == []
    assert found["points"] > 50


@pytest.mark.parametrize("way", [way for way in WAYS if way != "attach"])
def test_at_any_point_without_a_coordinator(way: str) -> None:
    found = strike(sys.executable, way, "-")
    assert found["faults"] == []
    assert found["points"] > 50


@pytest.mark.parametrize("interrupts", [3000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("there", [True, False])
def test_a_storm(start_coordinator: Callable[..., Daemon], there: bool, interrupts: int) -> None:
    socket = start_coordinator("--lease-timeout", "600").socket if there else "-"
    found = strike(sys.executable, "storm", socket, str(interrupts))
    assert found["faults"] == []
    assert found["points"] == interrupts


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_with_other_pythons(
    start_coordinator: Callable[..., Daemon], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Each has points of its own. One that is not installed is named, and no failure."""
    found = shutil.which(name)
    if found is None or subprocess.run([found, "--version"], capture_output=True, check=False).returncode:
        with capsys.disabled():
            print(f"\n{name} is not installed here: it was not struck")
        return
    subprocess.run([found, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(ROOT)], check=True)
    points = strike_all(python, start_coordinator("--lease-timeout", "600").socket)
    alone = strike_all(python, "-")
    with capsys.disabled():
        print(f"\n{name}: struck at {points}, without a coordinator at {alone}")
