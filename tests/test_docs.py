"""What the documents say of tests and options is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mpgroupcache.coordinator.options import OPTIONS

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("docs/faults.md", "SECURITY.md")


def functions_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_test_that_is_named_exists(document: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / document).read_text())
    assert len(named) > 20
    missing = [f"{path}::{name}" for path, name in named if name not in functions_of(ROOT / path)]
    assert missing == []


def test_every_fault_names_a_test() -> None:
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("| ")]
    for row in rows:
        fault, seen, tests = row.strip("| ").split(" | ")
        assert fault
        assert seen
        assert tests == "test" or re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`(, `tests/[\w/]+\.py::test_\w+`)*", tests)


@pytest.mark.parametrize("document", [*DOCUMENTS, "README.md", "docs/design.md"])
def test_every_option_that_is_named_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    lines = re.findall(r"`(--[a-z-]+)", text)
    others = {"help", "config", "preload", "shm-size"}  # of the parser, gunicorn and docker
    assert {line[2:] for line in lines} - set(OPTIONS) <= others


def test_every_constant_that_is_named_exists() -> None:
    """In the file that is named in front of it, or, without one, in that of the row's `Limits`."""
    table = (ROOT / "SECURITY.md").read_text().partition("## Limits")[2]
    named = re.findall(r"`((?:\w+/)?\w+\.(?:py|h))` `(\w+)(?:\.(\w+))?`", table)
    assert len(named) > 10
    for file, *names in named:
        text = (ROOT / "mpgroupcache" / file).read_text()
        for name in filter(None, names):
            assert re.search(rf"\b{name}\b", text), (file, name)


def test_what_is_where_is_there() -> None:
    """Each file of the table that traces a value."""
    table = (ROOT / "docs/design.md").read_text().partition("### Where is what")[2].partition("\n## ")[0]
    names = re.findall(r"`([\w/]+\.(?:py|pyx|c|h|txt))`", table)
    assert len(names) > 20
    assert [name for name in names if not any((ROOT / top / name).exists() for top in ("mpgroupcache", ""))] == []
