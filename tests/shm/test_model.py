"""The pin protocol's model, searched exhaustively by spin, and what the search finds when a part of it is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from tools import missing

MODEL = Path(__file__).parent / "model" / "pins.pml"
PATIENCE = 600.0  # s, of the longest search
MEMORY = 8000  # MiB, likewise; those that are not marked need 600

SEARCHES = {
    "two gets each, reuse, merging, growth": ["GETS=2", "OPERATIONS=3"],
    "more operations": ["GETS=1", "OPERATIONS=4"],
    "a fork with a copied pin": ["GETS=1", "OPERATIONS=3", "FORKS=1"],
    "a worker's death": ["GETS=1", "OPERATIONS=3", "READER_DEATHS=1"],
    "a fork and deaths": ["GETS=1", "OPERATIONS=2", "FORKS=1", "READER_DEATHS=2"],
    "the coordinator's death": ["GETS=1", "OPERATIONS=2", "COORDINATOR_DEATHS=1"],
    "a clear": ["GETS=1", "OPERATIONS=3", "CLEARS=1"],
    "values that die": ["GETS=1", "OPERATIONS=2", "DEATHS=2"],
    "a clear, and the coordinator's death": ["GETS=1", "OPERATIONS=2", "CLEARS=1", "COORDINATOR_DEATHS=1"],
    "the coordinator's death and a worker's": [
        "GETS=1",
        "OPERATIONS=1",
        "COORDINATOR_DEATHS=1",
        "READER_DEATHS=1",
        "FORKS=1",
    ],
}
LONG_SEARCHES = {
    "more operations, and a value that dies": ["GETS=1", "OPERATIONS=3", "DEATHS=1"],
    "the coordinator's death": ["GETS=1", "OPERATIONS=3", "COORDINATOR_DEATHS=1"],
    "the coordinator's death and a fork": ["GETS=1", "OPERATIONS=2", "COORDINATOR_DEATHS=1", "FORKS=1"],
}

# Each breaks what the protocol rests on, in the smallest search that shows it.
MUTANTS = {
    "NO_READERS_FENCE": ["GETS=1", "OPERATIONS=2"],
    "NO_COORDINATORS_FENCE": ["GETS=1", "OPERATIONS=2"],
    "NO_SECOND_LOAD": ["GETS=1", "OPERATIONS=2"],
    "NO_ERA": ["GETS=1", "OPERATIONS=2", "CLEARS=1"],  # a clear's
    "AGE_BEFORE_PIN": ["GETS=1", "OPERATIONS=3", "DEATHS=1"],
    "NO_CLEARING": ["GETS=1", "OPERATIONS=3"],  # of the old index's words when it grows
    "MERGES_LIMBO": ["GETS=1", "OPERATIONS=3"],
    "SCANS_DESCEND": ["GETS=1", "OPERATIONS=2", "FORKS=1"],
    "REGION_BEFORE_PINS": ["GETS=2", "OPERATIONS=3", "READER_DEATHS=1"],
    "ADOPTS_OLD_WORDS": ["GETS=1", "OPERATIONS=3", "COORDINATOR_DEATHS=1"],
    "ADOPTS_WITHOUT_PINS": ["GETS=1", "OPERATIONS=2", "COORDINATOR_DEATHS=1"],
    "RANGE_BY_ITS_FIRST_PIN": ["GETS=1", "OPERATIONS=3", "COORDINATOR_DEATHS=1"],
}


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    for tool in ("spin", "gcc"):
        if shutil.which(tool) is None:
            missing(f"no {tool} here (apt-get install {tool})")


def search(directory: Path, definitions: Sequence[str], optimize: str = "-O2") -> str:
    """Search all that the model can do, and return what the search says.

    ``optimize``: compiling well takes longer than a short search.
    """

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=PATIENCE, check=True)
        return done.stdout

    run("spin", "-a", *(f"-D{definition}" for definition in definitions), MODEL)
    run("gcc", optimize, "-DSAFETY", "-DSFH", "-DCOLLAPSE", f"-DMEMLIM={MEMORY}", "-o", "pan", "pan.c")
    return run("./pan", "-m1000000", "-w24")


def require_nothing_wrong(said: str) -> None:
    assert "errors: 0" in said, said
    assert "max search depth too small" not in said
    assert "Search not completed" not in said, said
    # A search that was cut off, or in which half of the processes never ran, would find nothing wrong either.
    states = re.search(r"([\d.e+]+) states, stored", said)
    assert states is not None
    assert float(states.group(1)) > 100_000, said


@pytest.mark.parametrize("definitions", SEARCHES.values(), ids=list(SEARCHES))
def test_nothing_wrong_can_happen(tmp_path: Path, definitions: list[str]) -> None:
    require_nothing_wrong(search(tmp_path, definitions))


@pytest.mark.long
@pytest.mark.parametrize("definitions", LONG_SEARCHES.values(), ids=list(LONG_SEARCHES))
def test_nothing_wrong_can_happen_in_longer_runs(tmp_path: Path, definitions: list[str]) -> None:
    require_nothing_wrong(search(tmp_path, definitions))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_part_is_needed(tmp_path: Path, mutant: str) -> None:
    said = search(tmp_path, [mutant, *MUTANTS[mutant]], "-O0")
    assert "assertion violated" in said, said
    assert "errors: 1" in said, said


def test_all_mutants_are_there() -> None:
    parameters = {"GETS", "OPERATIONS", "COORDINATOR_DEATHS", "READER_DEATHS", "FORKS", "CLEARS", "DEATHS"}
    assert set(re.findall(r"#ifn?def (\w+)", MODEL.read_text())) - parameters == set(MUTANTS)
