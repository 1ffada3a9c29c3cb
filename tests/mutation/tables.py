"""Mutates a table of transitions: ``tables.py MODULE TEST...``. Prints what survived as JSON.

Of each entry: it is missing; another step is done; another state follows. A fork runs the tests on each mutant.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PATIENCE = 60  # s; who takes longer is in a circle


def name_of(word: Any) -> str:
    return " ".join(map(name_of, word)) if isinstance(word, tuple) else str(getattr(word, "name", word))


def mutants(table: dict[Any, dict[Any, tuple[Any, Any]]]) -> Iterator[tuple[str, Callable[[], object]]]:
    """What each mutant is, and what makes it."""
    states = list(table)
    entries = [(row, key) for row in table for key in table[row]]
    steps = sorted({table[row][key][0] for row, key in entries}, key=name_of)
    for row, key in entries:
        step, state = entry = table[row][key]
        place = f"{name_of(row)}, {name_of(key)}"
        yield f"{place}: missing", functools.partial(table[row].pop, key)
        for other in ((following(steps, step), state), (step, following(states, state))):
            yield f"{place}: {name_of(entry)} => {name_of(other)}", functools.partial(table[row].update, {key: other})


def following(words: list[Any], word: Any) -> Any:
    return words[(words.index(word) + 1) % len(words)]


def run(tests: list[str]) -> int:
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]))


def survives(make: Callable[[], object], tests: list[str]) -> bool:
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE)
        make()
        os._exit(run(tests))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def main(module: str, *tests: str) -> None:
    sys.path.insert(0, os.getcwd())
    table = importlib.import_module(module).TRANSITIONS
    if code := run(["--collect-only", *tests]):
        raise SystemExit(code)
    if not survives(lambda: None, list(tests)):
        raise SystemExit(f"{module}: got a test that fails without a mutant")
    made = list(mutants(table))
    print(json.dumps({"mutants": len(made), "survivors": [what for what, make in made if survives(make, list(tests))]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
