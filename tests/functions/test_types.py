"""What type checkers make of ``@cached``: each line of ``revealed.py`` has the errors that it names, and no others."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tools import missing

ROOT = Path(__file__).parents[2]
REVEALED = Path(__file__).with_name("revealed.py")

# What pyright minds in functions without annotations, the point of which is that they have none.
UNKNOWN = ("reportUnknown", "reportMissing")

pytestmark = pytest.mark.slow


def expected_of(checker: str) -> set[tuple[int, str]]:
    """The line and the name of each error that ``revealed.py`` wants to be found."""
    wanted = set()
    for number, line in enumerate(REVEALED.read_text().splitlines(), 1):
        if named := re.search(rf"# (?:.*; )?{checker}: ([\w, -]+)", line):
            wanted |= {(number, name) for name in named[1].split(", ")}
    assert wanted
    return wanted


def test_mypy(tmp_path: Path) -> None:
    options = ["--strict", "--output=json", "--config-file=", f"--cache-dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(REVEALED)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    errors = {(error["line"], error["code"]) for error in found if error["severity"] == "error"}
    assert errors == expected_of("mypy"), done.stdout + done.stderr
    assert {Path(error["file"]).name for error in found} == {REVEALED.name}


def test_pyright(tmp_path: Path) -> None:
    shutil.copy(REVEALED, tmp_path)
    settings = {"extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    quiet = dict(os.environ, PYRIGHT_PYTHON_IGNORE_WARNINGS="1")  # of a newer version
    had = subprocess.run([*command[:3], "--version"], env=quiet, capture_output=True, text=True, check=False)
    if had.returncode != 0:
        missing(f"no pyright in this environment: {had.stderr.strip()[-200:]}")
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1, done.stderr
    errors = {
        (error["range"]["start"]["line"] + 1, error["rule"])
        for error in report["generalDiagnostics"]
        if not error["rule"].startswith(UNKNOWN)
    }
    assert errors == expected_of("pyright"), report["generalDiagnostics"]
