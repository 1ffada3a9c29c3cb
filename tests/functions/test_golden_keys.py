"""Keys that were written down: the same in every Python, with every seed of its hashes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import goldenkeys
import pytest

ROOT = Path(__file__).parents[2]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


@pytest.mark.parametrize(("expression", "key"), goldenkeys.read(), ids=[line[0][:60] for line in goldenkeys.read()])
def test_a_key_is_what_it_was(expression: str, key: str) -> None:
    assert goldenkeys.key_of(expression) == key


def test_no_two_values_have_one_key() -> None:
    keys = [key for expression, key in goldenkeys.read() if expression.startswith("values(")]
    assert len(set(keys)) == len(keys) - 1  # one dict is there in two orders


def runs(python: str, wanted: str) -> bool:
    code = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != {wanted!r})"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def python_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Find a Python, and where its msgspec is: ``python_of("3.12")``."""

    def find(wanted: str) -> list[str]:
        installed = sorted(Path.home().glob(f".pyenv/versions/{wanted}.*/bin/python"))
        candidates = [sys.executable, shutil.which(f"python{wanted}"), *map(str, installed)]
        python = next((path for path in candidates if path is not None and runs(path, wanted)), None)
        if python is None:
            pytest.skip(f"no Python {wanted} here")
        if python == sys.executable:
            return [python, ""]
        target = str(tmp_path_factory.mktemp(f"python{wanted}"))
        msgspec = f"msgspec=={version('msgspec')}"
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, msgspec]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no {msgspec} for Python {wanted} here: {done.stderr.strip()[-200:]}")
        return [python, target]

    return find


@pytest.mark.parametrize("wanted", PYTHONS)
def test_keys_are_the_same_in_every_python(wanted: str, python_of: Callable[[str], list[str]]) -> None:
    python, target = python_of(wanted)
    path = os.pathsep.join(filter(None, [str(ROOT), str(Path(__file__).parent), target]))
    for seed in ("0", "1", "4294967295"):
        told = subprocess.run(
            [python, "-c", "import goldenkeys; goldenkeys.main()"],
            env={"PYTHONPATH": path, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout == f"{len(goldenkeys.read())} expressions\n"
