"""Mutation testing: breaks the code in one place at a time, and lists the places where no unit test minds.

``make mutants``; ``MUTANTS_ARGS="breaker frame"`` for some of them. mutmut makes the mutants and runs the tests of each
in a fork of its own, in a copy of the tree. It mutates functions; the tables of state machines, which are data, are
mutated by tables.py in the same way. A mutant is killed when a test fails, or when the tests take far too long.

A survivor gets a test, or simpler code. What is left is no other program, and has a line in equal.txt that says why.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mutmut.mutation.diff_apply import get_diff_for_mutant

ROOT = Path(__file__).resolve().parents[2]
EQUAL = Path(__file__).with_name("equal.txt")
SEED = 1
SAMPLE = 100
ALL = sys.maxsize
KEPT_OUT = (".*", "build", "dist", "docs", "benchmarks", "examples", "__pycache__", "*.egg-info")


class Target(NamedTuple):
    module: str
    tests: tuple[str, ...]
    share: int
    """Per cent of the mutants that have to be killed, whether the others are equal or not."""
    most: int = ALL
    """How many mutants are tried, of all by chance."""


PARTS = ("", "_changes", "_check", "_cycles", "_peers", "_races", "_seeking")
FLIGHTS = tuple(f"tests/coordinator/test_flights{part}.py" for part in PARTS)
CHANNEL = ("tests/worker/test_channel.py", "tests/worker/test_channel_ends.py")

TARGETS = {
    "flights": Target("mpgroupcache/coordinator/flights.py", FLIGHTS, 95),
    "waiters": Target("mpgroupcache/coordinator/waiters.py", FLIGHTS, 95),
    "flights-table": Target("mpgroupcache/coordinator/transitions.py", FLIGHTS, 95),
    "frame": Target("mpgroupcache/ipc/frame.py", ("tests/ipc/test_frame.py",), 95),
    "messages": Target("mpgroupcache/ipc/messages.py", ("tests/ipc/test_messages.py", "tests/ipc/test_frame.py"), 95),
    "contexts": Target("mpgroupcache/ipc/contexts.py", ("tests/ipc/test_contexts.py",), 95),
    "breaker": Target("mpgroupcache/net/breaker.py", ("tests/net/test_breaker.py",), 85),
    "breaker-table": Target("mpgroupcache/net/breaker.py", ("tests/net/test_breaker.py",), 85),
    "membership": Target(
        "mpgroupcache/net/membership.py", ("tests/net/test_membership.py", "tests/net/test_names.py"), 85
    ),
    "peerwire": Target("mpgroupcache/net/peerwire.py", ("tests/net/test_peer_wire.py",), 85),
    "channel": Target("mpgroupcache/worker/channel.py", CHANNEL, 85, SAMPLE),
    "link": Target("mpgroupcache/worker/link.py", ("tests/worker/test_link.py",), 85, SAMPLE),
    "miss": Target("mpgroupcache/worker/miss.py", ("tests/worker/test_miss_steps.py",), 85, SAMPLE),
}
TABLES = {"flights-table": "mpgroupcache.coordinator.transitions", "breaker-table": "mpgroupcache.net.breaker"}
"""Whose ``TRANSITIONS`` are mutated, in the place of the module's functions."""

# What a log says is no promise. Of errors' texts only what was got and what was expected is, and tests say so: their
# values are mutated, while the words are not where they are in an f-string. Annotations and docstrings mutmut spares.
# A test that a mutant leaves half way leaves things open: that is to be no error in the process that makes the forks.
CONFIG = """
[tool.mutmut]
source_paths = ["mpgroupcache"]
only_mutate = {modules}
also_copy = ["tests"]
do_not_mutate_patterns = ['^ *logger[.]']
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:unraisableexception", "--hypothesis-seed=0"]
pytest_add_cli_args_test_selection = {tests}
use_git_change_detection = false
timeout_multiplier = 5.0
on_dependency_change = "ignore"
"""


class Survivor(NamedTuple):
    name: str
    change: str

    def __str__(self) -> str:
        return f"{self.name}: {self.change}"


class Found(NamedTuple):
    mutants: int
    survivors: list[Survivor]


def mutmut(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True)


def results(tree: Path, module: str) -> dict[str, int | None]:
    """The exit code of each mutant's tests; None: they have not run."""
    found: dict[str, int | None] = json.loads((tree / "mutants" / f"{module}.meta").read_text())["exit_code_by_key"]
    return found


def break_functions(tree: Path, target: Target) -> Found:
    shutil.rmtree(tree / "mutants", ignore_errors=True)
    config = CONFIG.format(modules=json.dumps([target.module]), tests=json.dumps(target.tests))
    (tree / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + config)
    mutmut(tree, "run", "--max-children", "1", "none")  # which makes them, and finds none of that name to run
    names = sorted(results(tree, target.module))
    chosen = random.Random(SEED).sample(names, min(len(names), target.most))
    ran = mutmut(tree, "run", "--max-children", "1", *chosen)
    codes = results(tree, target.module)
    if any(codes[name] is None for name in chosen):
        raise RuntimeError(f"{target.module}: mutmut has not run all mutants\n{ran.stdout[-1000:]}\n{ran.stderr}")
    survived = [name for name in chosen if codes[name] in (0, 5, 33)]  # passed; no test is there, or reaches it
    return Found(len(chosen), [Survivor(plain(name), change_of(tree, target.module, name)) for name in survived])


def plain(name: str) -> str:
    """A mutant's function, without the module's path."""
    module, _, function = name.rpartition("__mutmut_")[0].rpartition(".")
    return f"{module.rpartition('.')[2]}.{function.removeprefix('x_').removeprefix('xǁ').replace('ǁ', '.')}"


def change_of(tree: Path, module: str, name: str) -> str:
    """The lines that a mutant has in the place of which."""
    with contextlib.chdir(tree):  # in which mutmut looks for all of its files
        lines = get_diff_for_mutant(name, path=module).splitlines()
    return " => ".join(
        " ".join(line[1:].strip() for line in lines if line.startswith(sign) and not line.startswith(sign * 3))
        for sign in ("-", "+")
    )


def break_table(tree: Path, name: str, target: Target) -> Found:
    command = [sys.executable, str(Path(__file__).with_name("tables.py")), TABLES[name], *target.tests]
    ran = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(ran.stdout.splitlines()[-1])
    return Found(found["mutants"], [Survivor(name, change) for change in found["survivors"]])


def equal() -> Iterator[str]:
    """The mutants that are known to be no other program."""
    for line in EQUAL.read_text().splitlines():
        if line and not line.startswith("#"):
            yield line.rpartition("  # ")[0]


def main(names: list[str]) -> int:
    known = set(equal())
    failed = False
    with tempfile.TemporaryDirectory(prefix="mpg-mutants-") as directory:
        tree = Path(directory) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*KEPT_OUT))
        print(f"{'':14} {'mutants':>8} {'killed':>8} {'equal':>8} {'share':>8} {'wanted':>8}", flush=True)
        for name in names or TARGETS:
            target = TARGETS[name]
            found = break_table(tree, name, target) if name in TABLES else break_functions(tree, target)
            killed = found.mutants - len(found.survivors)
            others = [survivor for survivor in found.survivors if str(survivor) not in known]
            share = 100 * killed / found.mutants
            failed |= share < target.share
            print(
                f"{name:14} {found.mutants:8} {killed:8} {len(found.survivors) - len(others):8} {share:7.1f}% "
                f"{target.share:7}%",
                *sorted(map(str, others)),
                sep="\n    ",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
