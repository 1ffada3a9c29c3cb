"""Flights and changes of their key, each race as a page of races/: numbered steps, and under each what follows.

A page begins with what it shows. A step is an event of the table and who or what it is of: the callers have letters;
leases, fetches and searches for a loader are numbered as they come. At its end nothing is left under way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flying import K, assert_nothing_left

from mpgroupcache.coordinator.flights import Action, Deliver, Fail, Fetch, Flight, FlightTable, Grant, Seek, Waiter

PAGES = sorted(Path(__file__).with_name("races").glob("*.txt"))
STEP = re.compile(r"(\d+)\. (.+)\n----\n((?:.+\n)*)")


class Race:
    def __init__(self) -> None:
        self.table = FlightTable()
        self.leases: list[int] = []
        self.fetches: list[Flight] = []
        self.sought: list[Flight] = []
        self.steps: dict[str, Callable[..., list[Action] | None]] = {
            "ask": lambda who, *peer: self.table.ask(K, Waiter(who), *peer),
            "visit": lambda who: self.table.ask(K, Waiter(who, guest=True)),
            "refresh": lambda who: self.table.refresh(K, Waiter(who)),
            "begin": lambda who, *peer: self.table.begin(K, Waiter(who), *peer),
            "change": lambda: self.table.change(K),
            "clear": lambda: self.table.clear(K[0]),
            "enlist": lambda which, who: self.table.enlist(self.sought[int(which) - 1], Waiter(who)),
            "fetched": lambda which, value: self.table.fetched(self.fetches[int(which) - 1], value),
            "unreached": lambda which: self.table.unreached(self.fetches[int(which) - 1]),
            "value": lambda lease, value: self.table.value(int(lease), value),
            "error": lambda lease, error: self.table.error(int(lease), error),
            "return": lambda lease: self.table.give_back(int(lease)),
            "revoke": lambda lease: self.table.revoke(int(lease)),
            "lose": lambda who: self.table.lose(who),
        }

    def run(self, step: str) -> str:
        """Do a step, and write down what follows."""
        event, *arguments = step.split()
        reached = [flight for flight in (self.table.flight(K), self.table.fetch(K)) if flight is not None]
        waiting = self.waiting()
        actions = self.steps[event](*arguments)
        told = [f"{self.name(flight)} is overtaken" for flight in reached if flight.overtaken]
        told += [f"{self.name(flight)} is replaced" for flight in reached if flight.replaced]
        told += map(self.tell, actions or [])
        if not told and self.waiting() > waiting:
            told = ["waits"]
        return "".join(f"{line}\n" for line in told)

    def waiting(self) -> int:
        return sum(len(self.table.waiters_of(who)) for who in "abcdefgh")

    def name(self, flight: Flight) -> str:
        if flight in self.fetches:
            return f"fetch {self.fetches.index(flight) + 1}"
        return flight.state if flight.lease is None else f"lease {flight.lease.id}"

    def tell(self, action: Action) -> str:
        match action:
            case Grant(waiter=waiter, lease=lease):
                return f"{waiter.owner} loads: lease {lease.id}"
            case Fetch(flight=flight):
                self.fetches.append(flight)
                return f"{names(flight.waiters)} waits: {self.name(flight)}"
            case Seek(flight=flight):
                self.sought.append(flight)
                return "a loader is sought"
            case Deliver(waiters=waiters, value=value, overtaken=overtaken):
                return f"{names(waiters)} gets {value}, which is {'not ' * overtaken}published"
            case Fail(waiters=waiters, error=error, overtaken=overtaken):
                return f"{names(waiters)} fails: {error}{', of an overtaken load' * overtaken}"
        raise AssertionError(action)


def names(waiters: Any) -> str:
    return " ".join(waiter.owner for waiter in waiters) or "nobody"


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_races(page: Path) -> None:
    title, _, script = page.read_text().partition("\n\n")
    race, written = Race(), [title]
    for number, (_, step, _) in enumerate(STEP.findall(script), 1):
        written.append(f"{number}. {step}\n----\n{race.run(step)}".rstrip("\n"))
        assert race.table.check() == []
    assert "\n\n".join(written) + "\n" == page.read_text()
    assert_nothing_left(race.table)


def test_there_are_pages() -> None:
    assert PAGES
