"""The C core by itself: stopped at every step, killed at every store, under sanitizers, and broken on purpose.

Needs a C compiler with its sanitizers (``CC``, else gcc). Where there really is none, ``MPGROUPCACHE_TEST_NATIVE=0``
leaves this module out.
"""

from __future__ import annotations

import graphlib
import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "native"
SHM = Path(__file__).parent.parent.parent / "mpgroupcache" / "shm"
CORE = sorted(path for path in SHM.glob("*.c") if not path.stem.startswith("_"))
PATIENCE = 120.0  # s; for programs that end by themselves after a few

SANITIZERS = {
    "plain": ["-O2"],
    # It does not know fences, and warns of them; here they only order what is atomic anyway.
    "thread": ["-O1", "-g", "-fsanitize=thread", "-Wno-error=tsan"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}

# Each takes something out of the core that the safety of views rests on.
MUTANTS = {
    "get without its second load": (
        "reader.h",
        "if (MGC_UNLIKELY(atomic_load_explicit(place, memory_order_acquire) != word))",
        "if (0)",
    ),
    "get without raising the limit of pins": (
        "reader.h",
        "atomic_store_explicit(&region->pin_limit, pin + 1, memory_order_relaxed);",
        ";",
    ),
    "get without a look at the era": (
        "reader.h",
        "block->era ^ atomic_load_explicit(&mgc_header(map)->era, memory_order_relaxed)",
        "0",
    ),
    "age checked before the pin": (
        "reader.h",
        "mgc_pin(map, region, pin, word);\n    atomic_thread_fence(memory_order_seq_cst); /*",
        "const struct mgc_block *early = (const void *)(map->base + mgc_word_offset(word));"
        " int ageless = !(early->flags & MGC_COLD); mgc_pin(map, region, pin, word);"
        " atomic_thread_fence(memory_order_seq_cst);"
        " if (ageless && atomic_load_explicit(place, memory_order_acquire) == word) {"
        " *hit = (struct mgc_hit){(const uint8_t *)early + mgc_value_offset(early), early->value_length};"
        " return MGC_HIT; } /*",
    ),
    "get of many without its second look at a word": (
        "reader.c",
        "look->found = mgc_pinned_entry(map, region, look->pin, look->place,",
        "look->found = mgc_pinned_entry(map, region, look->pin, &look->word,",
    ),
    "get of many without pins before the fence": (
        "reader.c",
        "    mgc_pin(map, region, look->pin, look->word);\n",
        "",
    ),
    "retire without looking at the pins": (
        "pins.c",
        "if (!held(arena, offset)) {",
        "{",
    ),
    "growth without clearing the old words": (
        "index.c",
        "atomic_store_explicit(&words[i], 0, memory_order_release);",
        "(void)words;",
    ),
    "scans that descend": (
        "pins.c",
        "region_at(control, i); /* ascending",
        "region_at(control, count - 1 - i); /*",
    ),
}
# Each makes the next coordinator lose what it should find, or give out what somebody still reads.
ADOPTION_MUTANTS = {
    "words of other generations stay": (
        "adopt.c",
        "else if (atomic_load_explicit(place, memory_order_relaxed) != 0)",
        "else if (0)",
    ),
    "pins are not looked at": (
        "adopt.c",
        "if (*pin == pins->count || pins->items[*pin] >= to) {",
        "if (1) {",
    ),
    "a range is free as soon as the pin at its beginning is gone": (
        "pins.c",
        "mgc_pinned_within(arena->control, id, offset, offset + mgc_block_bytes(block))",
        "mgc_pinned(arena->control, id, offset)",
    ),
    "the word before its slot": (
        "arena.c",
        "slot->checksum = mgc_checksum(arena->header->seed, block);",
        "if (replaced != MGC_NO_SLOT) mgc_unpublish(arena, replaced, place, word), replaced = MGC_NO_SLOT;"
        " slot->checksum = mgc_checksum(arena->header->seed, block);",
    ),
    "the end of the index is not told": (
        "index.c",
        "atomic_store_explicit(&arena->header->index_end, to, memory_order_relaxed);",
        ";",
    ),
    "entries of a former era are taken over": (
        "adopt.c",
        "if (!mgc_is_of_this_era(arena, block))",
        "if (0)",
    ),
    "entries that are dead and not kept are taken over": (
        "adopt.c",
        "if (mgc_entry_kept_until(arena, block) <= now)",
        "if (0)",
    ),
    "ages that are half changed stay": (
        "adopt.c",
        "if (atomic_load_explicit(&ages->fresh_until, memory_order_relaxed) > dead)",
        "if (0)",
    ),
    "versions go on from the highest that is left": (
        "adopt.c",
        "    int usable = next > 0 && next < 1ull << 63;\n",
        "    int usable = 1; next = 1;\n"
        "    for (size_t i = 0; i < entries->count; i++) {\n"
        "        uint64_t left = mgc_heap_block(&arena->heap, entries->items[i].offset)->version;\n"
        "        next = left < next ? next : left + 1;\n"
        "    }\n",
    ),
    "a word is published before its version is spent": (
        "arena.c",
        "atomic_store_explicit(&arena->header->next_version, arena->next_version, memory_order_relaxed);\n    return",
        "atomic_store_explicit(&arena->header->next_version, version, memory_order_relaxed);\n    return",
    ),
}
# The reader's, of the two: between the writer's store and its scan lies so much that it gets by without its own.
NO_FENCE = (
    "reader.h",
    "atomic_thread_fence(memory_order_seq_cst); /* with the fence of retire",
    "atomic_signal_fence(memory_order_seq_cst); /*",
)


Mutant = tuple[str, str, str]


class Core:
    """The compiled core: object files, each made once for the same flags."""

    def __init__(self, compiler: list[str], directory: Path) -> None:
        self._compiler = compiler
        self._directory = directory
        self._objects: dict[tuple[str, ...], dict[str, Path]] = {}

    def compile(self, flags: list[str], *files: str | Path, cwd: Path) -> None:
        """Compile and link in a directory, whose changed files stand before the core's."""
        command = [*self._compiler, "-std=gnu11", "-pthread", "-Wall", "-Wextra", "-Werror", *flags]
        subprocess.run([*command, "-I", cwd, "-I", HERE, "-I", SHM, *files], check=True, timeout=PATIENCE, cwd=cwd)

    def objects(self, flags: list[str]) -> dict[str, Path]:
        """Return the object files by the names of their sources."""
        if (made := self._objects.get(tuple(flags))) is None:
            directory = self._directory / str(len(self._objects))
            directory.mkdir()
            self.compile([*flags, "-c"], *CORE, cwd=directory)
            made = self._objects[tuple(flags)] = {path.name: directory / f"{path.stem}.o" for path in CORE}
        return made

    def mutated(self, flags: list[str], directory: Path, mutant: Mutant | None) -> list[Path]:
        """Return the object files, one of them of a changed source; a changed header is for the program alone."""
        objects = self.objects(flags)
        if mutant is not None:
            mutate(directory, mutant)
            if (name := mutant[0]) in objects:
                self.compile([*flags, "-w", "-c"], directory / name, cwd=directory)
                objects = objects | {name: directory / f"{Path(name).stem}.o"}
        return list(objects.values())

    def link(self, directory: Path, program: str, flags: list[str], objects: list[Path], mutant: Mutant | None) -> Path:
        """Compile a program of ``tests/shm/native``, and link it with object files."""
        quiet = [] if mutant is None else ["-w"]
        self.compile([*flags, *quiet], HERE / f"{program}.c", *objects, "-o", program, cwd=directory)
        return directory / program


@pytest.fixture(scope="session")
def core(compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> Core:
    return Core(compiler, tmp_path_factory.mktemp("core"))


def mutate(directory: Path, mutant: Mutant) -> None:
    """Write the changed file."""
    name, old, new = mutant
    source = (SHM / name).read_text()
    assert source.count(old) == 1, f"{name} has changed: the mutant wants to replace {old!r}"
    (directory / name).write_text(source.replace(old, new))


def build(core: Core, directory: Path, program: str, flags: list[str], mutant: Mutant | None = None) -> Path:
    """Compile a program of ``tests/shm/native`` with the core."""
    return core.link(directory, program, flags, core.mutated(flags, directory, mutant), mutant)


def build_interleave(core: Core, directory: Path, flags: list[str], mutant: Mutant | None = None) -> Path:
    """Compile ``interleave.c``, which includes the core, to stop it."""
    if mutant is not None:
        mutate(directory, mutant)
    return core.link(directory, "interleave", flags, [], mutant)


def build_crash(core: Core, directory: Path, mutant: Mutant | None = None) -> Path:
    """Compile ``crash.c``, and the core with calls of its functions before each store."""
    hooks = ["-O1", "-g", "-fsanitize=thread", "-Wno-tsan", "-Dmemcpy=crash_copy", "-Dmemset=crash_set"]
    return core.link(directory, "crash", ["-O1", "-g"], core.mutated(hooks, directory, mutant), mutant)


def run(binary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(binary), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if "unexpected memory mapping" in done.stderr:  # an older ThreadSanitizer under a kernel that randomizes more
        done = subprocess.run(
            ["setarch", "-R", *command], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    return done


def symbols(binary: Path) -> tuple[set[str], set[str]]:
    """Return what an object file defines for others, and what it takes from them."""
    lines = subprocess.run(
        ["nm", "-P", "-g", binary], capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout.splitlines()
    types = dict(line.split()[:2] for line in lines)
    taken = {name for name, letter in types.items() if letter == "U"}
    return types.keys() - taken, taken


def test_no_sources_call_each_other_in_a_circle(core: Core) -> None:
    files = {name: symbols(binary) for name, binary in core.objects(SANITIZERS["plain"]).items()}
    calls = {
        caller: {callee: names for callee, (defined, _) in files.items() if (names := taken & defined)}
        for caller, (_, taken) in files.items()
    }
    assert "evict.c" in calls["arena.c"], "nm shows no calls"
    try:
        graphlib.TopologicalSorter(calls).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1][::-1]  # it goes from who is called to who calls
        steps = [f"{a} calls {b}: {', '.join(sorted(calls[a][b]))}" for a, b in itertools.pairwise(circle)]
        pytest.fail("a circle; what all of them need belongs into a file below them:\n" + "\n".join(steps))


@pytest.mark.parametrize("program", ["units", "ages"])
def test_units(core: Core, tmp_path: Path, program: str) -> None:
    done = run(build(core, tmp_path, program, SANITIZERS["address"]))
    assert (done.returncode, done.stderr) == (0, "")


def test_no_interleaving_of_reader_and_writer_shows_a_wrong_byte(core: Core, tmp_path: Path) -> None:
    done = run(build_interleave(core, tmp_path, SANITIZERS["address"]))
    assert done.returncode == 0, done.stderr
    assert "readers stopped in" in done.stdout


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))
def test_interleavings_show_what_is_missing(core: Core, tmp_path: Path, mutant: Mutant) -> None:
    done = run(build_interleave(core, tmp_path, SANITIZERS["plain"], mutant))
    assert done.returncode == 1, done.stdout
    assert "stopped in place" in done.stderr


def test_a_coordinator_that_dies_at_any_store_is_followed_by_one_that_goes_on(core: Core, tmp_path: Path) -> None:
    binary = build_crash(core, tmp_path)
    done = run(binary, "walk", "1")
    assert (done.returncode, done.stderr) == (0, "")
    numbers = [int(number) for number in re.findall(r"\d+", done.stdout)]
    stores, looked_at, of_adoptions = numbers
    assert looked_at == stores > 10_000
    assert of_adoptions > 1000
    done = run(binary, "kill", "200")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mutant", ADOPTION_MUTANTS.values(), ids=list(ADOPTION_MUTANTS))
def test_crashes_show_what_is_missing(core: Core, tmp_path: Path, mutant: Mutant) -> None:
    done = run(build_crash(core, tmp_path, mutant), "walk", "1")
    assert done.returncode == 1, done.stdout
    assert re.search(": (put|remove|touch|clear|reclaim|revive): ", done.stderr), done.stderr


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_stress(core: Core, tmp_path: Path, sanitizer: str) -> None:
    seed = str(int.from_bytes(os.urandom(4), "big"))
    done = run(build(core, tmp_path, "stress", SANITIZERS[sanitizer]), "4", seed)
    assert (done.returncode, done.stderr) == (0, ""), f"seed {seed}"


def test_duel(core: Core, tmp_path: Path) -> None:
    done = run(build(core, tmp_path, "duel", SANITIZERS["plain"]), "2")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two sides that never run at once need no fences")
def test_the_duel_is_lost_without_the_readers_fence(core: Core, tmp_path: Path) -> None:
    done = run(build(core, tmp_path, "duel", SANITIZERS["plain"], NO_FENCE), "60")  # some seconds are enough
    assert done.returncode == 1, done.stdout
