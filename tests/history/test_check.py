"""The checker of histories, against kept good and bad ones, and against one that tries all orders."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from check import ANY_RUN, History, Operation, Rules, Verdict, check, explain, parse, show

PAGES = sorted((Path(__file__).parent / "histories").glob("*.txt"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page(path: Path) -> None:
    page = parse(path.read_text())
    assert page.why
    assert check(page.history, page.rules) is page.verdict
    assert check(parse("ok: \n" + show(page.history)).history, page.rules) is page.verdict  # by numbered moments, too
    if page.verdict is Verdict.ILLEGAL:
        shorter = parse(explain(page.history, page.rules))
        assert shorter.rules == page.rules
        assert len(shorter.history) <= len(page.history)
        assert check(shorter.history, shorter.rules) is Verdict.ILLEGAL


def test_a_search_that_takes_too_long_is_given_up() -> None:
    sets = [Operation("a", 1, 100, "set", 1000 * number, None, 1) for number in range(1, 11)]
    read = Operation("b", 101, 102, "get", result=1000)
    assert check([*sets, read]) is Verdict.OK
    assert check([*sets, read], budget=100) is Verdict.UNKNOWN


def test_an_explanation_is_the_shortest_beginning_without_needless_reads() -> None:
    page = parse("""illegal: more than is needed
        a 1..2 set 1000 -> true
        b 3..4 get -> 1000
        b 5..8 remove -> true
        c 6..9 lookup -> none
        c 10..11 get -> 1000
        d 7..20 set 2000 -> true
        d 21..22 get -> 2000
    """)
    assert explain(page.history).splitlines() == [
        "illegal: (why?)",
        "a        1..2      set 1000 -> true             # ||",
        "b        3..5      remove -> true               #   |-|",
        "d        4..       set 2000                     #    |--->",
        "c        6..7      get -> 1000                  #      ||",
    ]


# ---- The other checker: each moment of a load, each loss and each order is tried, and nothing is left out


class Register:
    """What may be there now, and which loads nothing has overtaken."""

    def __init__(self, loads: dict[int | None, Operation], rules: Rules) -> None:
        self.loads, self.rules = loads, rules
        self.there: set[int | None] = {None}
        self.alive: set[int | None] = set()
        self.begun: set[int | None] = set()
        self.ended: set[int | None] = set()
        self.refreshing: set[str] = set()

    def copy(self) -> Register:
        other = Register(self.loads, self.rules)
        other.there, other.alive = set(self.there), set(self.alive)
        other.begun, other.ended, other.refreshing = set(self.begun), set(self.ended), set(self.refreshing)
        return other

    def may_become(self, value: int | None) -> set[int | None]:
        """By itself: a value is lost, a load is published."""
        if self.rules.lossless and value is not None and value not in self.loads:
            return {value}
        return {value, None} | (self.alive & self.ended)

    def apply(self, op: Operation) -> Iterator[Register]:
        """Do an operation, if it can have its result."""
        match op.name:
            case "begin":
                self.alive.add(op.value)
                self.begun.add(op.value)
                yield self
            case "end":
                if op.value in self.begun:
                    self.ended.add(op.value)
                    yield self
            case "ask":
                self.refreshing.add(op.who)
                yield self
            case "refresh" if op.result is not None:
                yield from self.refresh(op)
            case _:
                if self.do(op):
                    yield self

    def refresh(self, op: Operation) -> Iterator[Register]:
        load = self.loads.get(op.result)
        if load is None or load.start < op.start or op.result not in self.ended:
            return
        if op.who not in self.refreshing:
            yield self.copy()
        if op.result in self.alive:
            self.alive = {value for value in self.alive if self.loads[value].start >= op.start}
            self.there = {None, op.result}
            yield self

    def do(self, op: Operation) -> bool:
        after: set[int | None] = set()
        fenced = False
        for before in self.there:
            for found in self.may_become(before):
                for change, value in self.outcomes(op, found):
                    fenced |= change
                    after.add(value if change else before if self.rules.blind else found)
        self.there = after
        if fenced:
            self.alive = set()
            self.refreshing = set()
        return bool(after)

    def overtaken(self, value: int | None) -> bool:
        return value in self.begun and value not in self.alive

    def outcomes(self, op: Operation, found: int | None) -> Iterator[tuple[bool, int | None]]:
        """Whether it is a change, and what is there then; nothing: it does not have its result."""
        answered, something = op.end < math.inf, found is not None
        match op.name:
            case "get" if (load := self.loads.get(op.result)) and found in (None, op.result):
                if load.end <= op.end and not self.overtaken(op.result):
                    yield False, found
            case "get" | "lookup" | "refresh" if found == op.result:
                yield False, found
            case "set" | "remove" if op.other is not None and not op.result and answered:
                if found != op.other:
                    yield False, found
            case "set" if op.other in (None, found):
                yield True, op.value
            case "add":
                if answered and not op.result:
                    if something:
                        yield False, found
                elif not something:
                    yield True, op.value
            case "incr":
                assert op.value is not None
                value = op.other if found is None else found + op.value
                if not answered or op.result == value:
                    yield value is not None, value
            case "remove" if op.other in (None, found):
                if not answered or op.result in (None, something) or op.other is not None:
                    yield True, None
            case "clear":
                yield True, None
            case "touch" if something == op.result:
                yield False, found


def check_all_orders(history: History, rules: Rules) -> Verdict:
    if any(op.name == "refresh" and op.end == math.inf for op in history):
        rules = rules._replace(lossless=False)
    loads = {op.result: op for op in history if op.name == "load"}
    moments = [
        Operation("", moment, moment, name, value=value)
        for value, load in loads.items()
        for moment, name in ((load.start, "begin"), (int(load.end), "end"))
    ]
    moments += [Operation(op.who, op.start, op.start, "ask") for op in history if op.name == "refresh"]
    rest = [
        op
        for op in history
        if op.name != "load" and (op.end < math.inf or op.name not in ("get", "lookup", "touch", "refresh"))
    ]

    def possible(rest: History, register: Register) -> bool:
        if all(op.end == math.inf for op in rest):
            return True
        for op in rest:
            others = [other for other in rest if other is not op]
            if any(other.end < op.start for other in others):
                continue
            if any(possible(others, after) for after in register.copy().apply(op)):
                return True
        return False

    return Verdict.OK if possible(rest + moments, Register(loads, rules)) else Verdict.ILLEGAL


def draw(chance: random.Random, rules: Rules) -> History:
    """A history of few operations, whose results are drawn from what they might be."""
    # No two are the same: what shares a moment may have come in either order, each time that it is looked at.
    moments = chance.sample(range(1, 20), 14)
    loads = []
    for number in range(chance.choice([0, 1, 1, 2])):
        start, end = sorted((moments.pop(), moments.pop()))
        loads.append(Operation("l", start, end, "load", result=1000 * (number + 1)))
    made = [load.result for load in loads]
    history = list(loads)
    for number in range(chance.randrange(2, 5)):
        start, end = sorted((moments.pop(), moments.pop()))
        answered = chance.random() < 0.85
        names = ["get", "get", "lookup", "set", "set", "add", "incr", "remove", "clear", "touch"]
        name = chance.choice([*names, "refresh"] if loads else names)
        value = other = result = None
        match name:
            case "get" | "lookup" | "refresh":
                result = chance.choice([None, *made, *made])
            case "set":
                value, result = 1000 * (number + 5), chance.randrange(2)
                other = chance.choice([None, *made])
                result = result if other else 1
            case "add":
                value, result = 1000 * (number + 5), chance.randrange(2)
            case "incr":
                value, other = chance.randrange(1, 3), chance.choice([None, 1000 * (number + 5)])
                result = chance.choice([None, other, *(old + value for old in made if old)])
            case "remove":
                other, result = chance.choice([None, None, *made]), chance.randrange(2)
            case "touch":
                result = chance.randrange(2)
        made += [
            made_now
            for made_now in (value if name in ("set", "add") else None, result if name == "incr" else None)
            if made_now and made_now not in made
        ]
        history.append(
            Operation(
                str(number), start, end if answered else math.inf, name, value, other, result if answered else None
            )
        )
    return history


@pytest.mark.parametrize(
    "rules", [ANY_RUN, Rules(lossless=True), Rules(blind=True)], ids=["lossy", "lossless", "blind"]
)
def test_the_search_finds_what_trying_all_orders_finds(rules: Rules) -> None:
    verdicts: Counter[Verdict] = Counter()
    for seed in range(4000):
        history = draw(random.Random(seed), rules)
        verdict = check(history, rules)
        verdicts[verdict] += 1
        assert verdict is check_all_orders(history, rules), f"seed {seed}\n{show(history)}"
    assert verdicts[Verdict.OK] > 500
    assert verdicts[Verdict.ILLEGAL] > 500
