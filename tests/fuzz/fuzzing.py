"""A small fuzzer: it mutates what is in a corpus, and keeps what reaches code that nothing before it has reached."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

Target = Callable[[bytes], None]
"""Returns for what is refused properly; raises for a defect."""

CORPUS = Path(__file__).parent / "corpus"
SPECIAL = (0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x0D, 0x20, 0x25, 0x2F, 0x3A)  # ends of ranges, and what separates
MOST = 1 << 16  # bytes that an input grows to


class Coverage:
    """The arcs between lines that were run in the package's files."""

    def __init__(self, files: set[str]) -> None:
        self._files = files
        self.arcs: set[tuple[str, int, int]] = set()
        self._fresh: set[tuple[str, int, int]] = set()

    def of(self, run: Callable[[], None]) -> bool:
        """Whether ``run`` goes where nothing has gone before."""
        self._fresh = set()
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            run()
        finally:
            sys.settrace(before)
        fresh = self._fresh - self.arcs
        self.arcs |= fresh
        return bool(fresh)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        name, last = frame.f_code.co_qualname, frame.f_lineno

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            self._fresh.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line


def mutations(chance: random.Random, inputs: list[bytes]) -> Iterator[bytes]:
    """Endless inputs, made from those that are there, also from ones that are added meanwhile."""
    while True:
        data = bytearray(chance.choice(inputs))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(9):
                case 0:  # a bit
                    if at < len(data):
                        data[at] ^= 1 << chance.randrange(8)
                case 1:  # a byte
                    if at < len(data):
                        data[at] = chance.choice((*SPECIAL, chance.randrange(256)))
                case 2:  # a number, in either order
                    width = chance.choice((2, 4, 8))
                    number = chance.choice((0, 1, len(data), (1 << 8 * width) - 1, chance.getrandbits(8 * width)))
                    data[at : at + width] = (number % (1 << 8 * width)).to_bytes(
                        width, chance.choice(("big", "little"))
                    )
                case 3:  # cut off
                    del data[at:]
                case 4:  # left out
                    del data[at : at + chance.randrange(1, 16)]
                case 5:  # put in
                    data[at:at] = chance.randbytes(chance.randrange(1, 16))
                case 6:  # repeated
                    data[at:at] = data[at : at + chance.randrange(1, 64)] * chance.choice((1, 2, 100))
                case 7:  # of another input
                    other = chance.choice(inputs)
                    begin = chance.randrange(len(other) + 1)
                    data[at:at] = other[begin : begin + chance.randrange(1, 64)]
                case 8:  # spliced
                    other = chance.choice(inputs)
                    data[at:] = other[chance.randrange(len(other) + 1) :]
            del data[MOST:]
        yield bytes(data)


def corpus_of(name: str) -> list[bytes]:
    """The inputs that are in the repository, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def save(name: str, data: bytes) -> Path:
    """Add an input to the corpus, under a name that follows from its bytes."""
    path = CORPUS / name / hashlib.blake2b(data, digest_size=8).hexdigest()
    path.write_bytes(data)
    return path


def fuzz(name: str, target: Target, files: set[str], seed: int, rounds: int) -> list[bytes]:
    """Run ``target`` on the corpus and on ``rounds`` mutations. Returns those that reached something new.

    An input that fails is named by its repr, and the seed brings it about again.
    """
    inputs = corpus_of(name)
    coverage = Coverage(files)
    new: list[bytes] = []

    def run(data: bytes) -> bool:
        try:
            return coverage.of(lambda: target(data))
        except Exception as error:
            error.add_note(f"target {name}, seed {seed}: input {data!r}")
            raise

    for data in inputs:
        run(data)
    assert coverage.arcs, f"{name}: the corpus reaches nothing in {files}"
    for _, data in zip(range(rounds), mutations(random.Random(seed), inputs), strict=False):
        if run(data):
            inputs.append(data)
            new.append(data)
    return new
