"""Whether a history of one key is one that a group may have: an exact search, which knows the contract and no code.

The contract, as a register that holds nothing or one value:

- An operation takes effect at one moment between its start and its end, both included: two that share a moment may
  have come in either order. Who got no answer may take effect at any time after the start, or never.
- What is there may be lost at any time. What was replaced, removed or lost is never there again.
- A load is a run of a loader. Its value may be read until the first change after the load *began*: by ``get`` from
  the start (it asked before the change), by all others once it has ended.
- A refresh is a change to the value of a load that began after it, unless another change came before it returned.

Values name what made them: no two changes or loads of a history have the same one, however often it is incremented.

What it cannot see: which of several loads that no change parts is there (each may be read at any time, and again);
torn or foreign bytes (test_stress.py); ages and hosts' clocks; that anything is kept at all, unless it is told that
nothing is lost.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

BUDGET = 200_000  # steps of a search; a history of 30 operations takes some dozens
READS = ("get", "lookup")
REMOVALS = ("remove", "clear", "refresh")


class Verdict(enum.Enum):
    OK = "ok"
    ILLEGAL = "illegal"
    UNKNOWN = "unknown"
    """The search was given up."""


class Operation(NamedTuple):
    """One operation on one key."""

    who: str
    start: int
    end: float
    """``inf``: no answer."""
    name: str
    """``get``, ``lookup``, ``set``, ``add``, ``incr``, ``remove``, ``clear``, ``touch``, ``refresh``; or ``load``: a
    run of the loader, whose result is its value."""
    value: int | None = None
    """What is set or added; what ``incr`` adds."""
    other: int | None = None
    """The value that a ``set`` or ``remove`` expects; the ``initial`` of ``incr``."""
    result: int | None = None
    """A value, or 1 and 0 for true and false; None: nothing there, or not known, with ``remove`` and ``clear``."""


History = list[Operation]


class Rules(NamedTuple):
    """What a run can promise beyond the contract, and what it cannot."""

    lossless: bool = False
    """Nothing is ever lost: there is room for all, and nobody is killed."""
    blind: bool = False
    """Who finds nothing may be alone in that: another host has a copy, a worker has no coordinator."""


ANY_RUN = Rules()


class State(NamedTuple):
    """What is known between two operations."""

    value: int | None
    """What the last change left, unless somebody saw that it is gone. It may be lost all the same."""
    changed: float
    """When the last change took effect, at the earliest: loads that began before are overtaken."""
    now: float
    """When the last operation took effect, at the earliest. Earlier is never worse, but for a refresh (`_changed`)."""


class Model:
    """The register: a pure step function."""

    def __init__(self, history: Iterable[Operation], rules: Rules) -> None:
        self._loads = {op.result: op for op in history if op.name == "load" and op.result is not None}
        refreshes = [op for op in history if op.name == "refresh"]
        # A refresh that nobody waits for may replace a value at any time, and loads come and go.
        self._lossless = rules.lossless and all(op.end < math.inf for op in refreshes)
        self._blind = rules.blind
        self._refreshing = [op.start for op in refreshes if op.result in self._loads]

    def matters(self, op: Operation) -> bool:
        """Whether an order has to have it: where all may be lost, a removal that may not have been explains nothing."""
        if op.name == "load" or (op.end == math.inf and op.name in (*READS, "touch", "refresh")):
            return False
        return self._lossless or op.end < math.inf or op.name not in ("remove", "clear")

    def after(self, op: Operation, state: State) -> Iterable[State]:
        """The states in which ``op``, as the next one, can leave the register; none: it cannot be the next one."""
        state = state._replace(now=max(state.now, op.start))
        answered = op.end < math.inf
        match op.name:
            case "get" | "lookup" | "refresh":
                return self._read(op, state)
            case "set":
                if op.other is None:
                    return self._changed([state], op.value)
                if answered and not op.result:
                    return self._nothing(state) if state.value == op.other else [state]
                return self._changed(self._there(op.other, state), op.value)
            case "add":
                if answered and not op.result:
                    return self._something(state)
                return self._changed(self._nothing(state), op.value)
            case "incr":
                return self._incremented(op, state) if answered else self._perhaps_incremented(op, state)
            case "remove" | "clear":
                return self._removed(op, state)
            case "touch":
                return self._something(state) if op.result else self._nothing(state)
        raise ValueError(f"got the operation {op.name!r}")

    def _read(self, op: Operation, state: State) -> Iterable[State]:
        if op.result is None:
            return self._nothing(state)
        load = self._loads.get(op.result)
        if load is None or op.name == "lookup":
            return [] if op.name == "refresh" else self._there(op.result, state)
        if op.name == "refresh":
            return self._refreshed(op, load, state)
        # It asked at this moment, and the load may have begun later: so nothing is known of when.
        may = load.end <= op.end and self._may_load(load, state)
        return [state._replace(value=self._unless_blind(state))] if may else []

    def _refreshed(self, op: Operation, load: Operation, state: State) -> Iterator[State]:
        if load.start < op.start or load.end > op.end:
            return
        if state.changed > op.start:
            yield state  # it had asked before that change, which overtook it, and has done nothing
        if state.changed <= load.start:
            yield State(None, max(state.changed, op.start), max(state.now, load.end))

    def _incremented(self, op: Operation, state: State) -> Iterable[State]:
        if op.result is None:
            return [] if op.other is not None else self._nothing(state)
        if op.result == op.other:
            return self._changed(self._nothing(state), op.result)
        assert op.value is not None
        return self._changed(self._there(op.result - op.value, state), op.result)

    def _perhaps_incremented(self, op: Operation, state: State) -> Iterator[State]:
        assert op.value is not None
        if op.other is not None:
            yield from self._changed(self._nothing(state), op.other)
        for value in [state.value, *self._loads]:
            if value is not None:
                yield from self._changed(self._there(value, state), value + op.value)

    def _removed(self, op: Operation, state: State) -> Iterable[State]:
        if op.other is not None:
            if op.result or op.end == math.inf:
                return self._changed(self._there(op.other, state), None)
            return self._nothing(state) if state.value == op.other else [state]
        if op.result is None:
            return self._changed([state], None)
        return self._changed(self._something(state) if op.result else self._nothing(state), None)

    # ---- What an operation finds

    def _nothing(self, state: State) -> list[State]:
        """It finds nothing: what was there is lost."""
        if self._lossless and state.value is not None:
            return []
        return [state._replace(value=self._unless_blind(state))]

    def _something(self, state: State) -> list[State]:
        """It finds any value."""
        if state.value is not None:
            return [state]
        # Of all loads that may be there, that of the earliest end leaves most to those behind it.
        ends = [load.end for load in self._loads.values() if self._may_load(load, state)]
        return [state._replace(now=max(state.now, min(ends)))] if ends else []

    def _there(self, value: int, state: State) -> list[State]:
        """It finds this value."""
        if (load := self._loads.get(value)) is None:
            return [state] if state.value == value else []
        if not self._may_load(load, state):
            return []
        return [State(self._unless_blind(state), state.changed, max(state.now, load.end))]

    def _may_load(self, load: Operation, state: State) -> bool:
        """Whether a load's value may be there, or still be under way to who asks now."""
        if self._lossless and state.value is not None:
            return False  # why was it loaded?
        return state.changed <= load.start

    def _changed(self, states: Iterable[State], value: int | None) -> Iterator[State]:
        """The same moments, with a change to ``value``; and others in which it overtakes a refresh."""
        for state in states:
            for moment in (state.now, *(start + 1 for start in self._refreshing if start >= state.now)):
                yield State(value, moment, moment)

    def _unless_blind(self, state: State) -> int | None:
        return state.value if self._blind else None


def check(history: Iterable[Operation], rules: Rules = ANY_RUN, budget: int = BUDGET) -> Verdict:
    """Look for an order of all operations of one key that its register allows."""
    history = number_moments(history)
    model = Model(history, rules)
    ops = sorted(filter(model.matters, history), key=lambda op: op.start)
    answered = sum(1 << number for number, op in enumerate(ops) if op.end < math.inf)
    nodes = [(0, State(None, -math.inf, -math.inf))]
    seen = set(nodes)
    while nodes:
        done, state = nodes.pop()
        if done & answered == answered:
            return Verdict.OK
        if (budget := budget - 1) < 0:
            return Verdict.UNKNOWN
        # From the last to the first: the latest pushed is tried first, and that is the earliest start.
        for node in reversed(_next(ops, model, done, state)):
            if node not in seen:
                seen.add(node)
                nodes.append(node)
    return Verdict.ILLEGAL


def number_moments(history: Iterable[Operation]) -> History:
    """Number the moments by time, in steps of two: there is one between each two."""
    history = list(history)
    moments = sorted({moment for op in history for moment in (op.start, op.end)} - {math.inf})
    numbers: dict[float, float] = {moment: 2 * index for index, moment in enumerate(moments)} | {math.inf: math.inf}
    return [op._replace(start=int(numbers[op.start]), end=numbers[op.end]) for op in history]


def _next(ops: History, model: Model, done: int, state: State) -> list[tuple[int, State]]:
    """What may come next: any that started before all others ended."""
    limit = math.inf
    candidates = []
    for number, op in enumerate(ops):
        if done >> number & 1:
            continue
        if op.start > limit:
            break  # and so did all behind it
        limit = min(limit, op.end)
        candidates.append((number, op))
    nodes: list[tuple[int, State]] = []
    unanswered: list[tuple[int, State]] = []
    for number, op in candidates:
        for after in model.after(op, state):
            if after.now > limit:
                continue
            node = (done | 1 << number, after)
            # Nothing is different behind it: whatever order there is, there is one that begins with it. Unless where
            # nothing is lost, and it is needed later, to remove something.
            if after == state and op.name not in REMOVALS:
                return [node]
            (nodes if op.end < math.inf else unanswered).append(node)
    return nodes + unanswered


# ---- Pages: histories for people


@dataclass(frozen=True)
class Page:
    """A history that is kept, and what it is kept for."""

    verdict: Verdict
    rules: Rules
    why: str
    history: History


def parse(text: str) -> Page:
    """Read a page: ``verdict[, rule...]: why``, then a line for each operation, as `show` writes them."""
    lines = [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]
    head, _, why = lines[0].partition(":")
    verdict, *rules = (word.strip() for word in head.split(","))
    return Page(Verdict(verdict), Rules(**dict.fromkeys(rules, True)), why.strip(), [parse_line(x) for x in lines[1:]])


def parse_line(line: str) -> Operation:
    """Read ``who start..end name [value] [if|or other] [-> result]``; without an end there is no answer."""
    call, _, result = line.partition("->")
    who, times, name, *arguments = call.split()
    start, _, end = times.partition("..")
    value = int(arguments.pop(0)) if arguments and arguments[0] not in ("if", "or") else None
    other = int(arguments[1]) if arguments else None
    return Operation(who, int(start), int(end or -1) if end else math.inf, name, value, other, parse_result(result))


def parse_result(text: str) -> int | None:
    match text.strip():
        case "" | "none" | "done":
            return None
        case "true" | "false" as word:
            return int(word == "true")
        case number:
            return int(number)


def show_call(op: Operation) -> str:
    """``name value if other -> result``."""
    words = [op.name]
    if op.value is not None:
        words.append(str(op.value))
    if op.other is not None:
        words += ["or" if op.name == "incr" else "if", str(op.other)]
    if op.end < math.inf:
        words += ["->", show_result(op)]
    return " ".join(words)


def show_result(op: Operation) -> str:
    if op.result is None:
        return "done" if op.name in ("remove", "clear") else "none"
    return str(op.result) if op.name in ("get", "lookup", "refresh", "load", "incr") else ("false", "true")[op.result]


def show(history: Iterable[Operation]) -> str:
    """Write a history by time, for people and for `parse`: moments are numbered, and drawn behind each line."""
    history = sorted(history, key=lambda op: (op.start, op.end))
    moments = sorted({moment for op in history for moment in (op.start, op.end) if moment < math.inf})
    number = {moment: index for index, moment in enumerate(moments, 1)}
    lines = []
    for op in history:
        start, end = number[op.start], number.get(op.end)
        length = (end or len(moments) + 1) - start
        bar = " " * start + "|" + "-" * (length - 1) + ("|" if end else ">") * (length > 0)
        lines.append(f"{op.who:<8} {f'{start}..{end or str()}':<9} {show_call(op):<28} #{bar}")
    return "\n".join(lines)


def until(history: Iterable[Operation], moment: float) -> History:
    """What was known of a history at a moment: who has not answered yet has not answered."""
    known = (op for op in history if op.start <= moment)
    return [op if op.end <= moment else op._replace(end=math.inf, result=None) for op in known]


def explain(history: History, rules: Rules = ANY_RUN) -> str:
    """The shortest beginning of an illegal history that is illegal, and of it all but the reads that are not needed."""
    ends = sorted({op.end for op in history if op.name != "load" and op.end < math.inf})
    low, high = 0, len(ends) - 1
    while low < high:  # what is illegal stays so, whatever comes then
        middle = (low + high) // 2
        if check(until(history, ends[middle]), rules) is Verdict.ILLEGAL:
            high = middle
        else:
            low = middle + 1
    beginning = until(history, ends[low])
    for op in [op for op in beginning if op.name in READS]:
        fewer = [other for other in beginning if other is not op]
        if check(fewer, rules) is Verdict.ILLEGAL:
            beginning = fewer
    words = [name for name, holds in rules._asdict().items() if holds]
    return f"{', '.join(['illegal', *words])}: (why?)\n{show(beginning)}"
