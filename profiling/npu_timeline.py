"""When each pipe of a core does what in a kernel: the listed instructions (npu_instructions) at a chip's rates."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from profiling.hivm_order import CUBE, VECTORS, Exchange
from profiling.npu_chips import Chip, Scenario


@dataclass
class Timeline:
    """A program of a launch: cycles until its last instruction ends, and what each pipe did."""

    cycles: float = 0
    busy: Counter[str] = field(default_factory=Counter)  # cycles of a pipe, such as "cube MTE2"
    bytes: Counter[str] = field(default_factory=Counter)  # of a pipe's transfers
    products: int = 0
    spans: list[tuple[str, str, float, float]] = field(default_factory=list)  # pipe, name, first cycle, last


def expand(lines: list, items: int, inner: int) -> Iterator[str]:
    """Yield a core's instructions in order, with the flags' numbers."""
    trips, passed = {"items": items, "inner": inner}, Counter()

    def walk(body: list, odd: int) -> Iterator[str]:
        for line in body:
            if isinstance(line, str):
                words, _, number = line.rpartition(" ")
                yield f"{words} {number.split('|')[odd]}" if "|" in number else line
                continue
            name, *inside = line
            for _ in range(trips[name] if name in trips else int(name)):
                odd_now = passed[id(line)] % 2
                passed[id(line)] += 1
                yield from walk(inside, odd_now)

    return walk(lines, 0)


def simulate(kernel: dict[str, list], items: int, inner: int, chip: Chip, scenario: Scenario) -> Timeline:
    """Return the timeline of a program that computes `items` items of `inner` sources or steps each.

    Raise ValueError where its cores wait for each other for ever.
    """
    timeline, exchange = Timeline(), Exchange()
    running = {
        name: _Core(name, timeline, exchange, chip, scenario).run(expand(kernel[kind], items, inner))
        for kind, names in (("cube", [CUBE]), ("vector", VECTORS))
        if kind in kernel
        for name in names
    }
    while running:
        moves, waiting = exchange.moves, {}
        for name, core in running.items():
            if next(core, "ended") != "ended":
                waiting[name] = core
        if len(waiting) == len(running) and exchange.moves == moves:
            raise ValueError(f"deadlock: {', '.join(waiting)}")
        running = waiting
    return timeline


def drawing(timeline: Timeline, first: float, last: float, columns: int = 96) -> str:
    """Return a line for each pipe between two cycles: # and = are instructions in turn, a dot is waiting."""
    width, lines = (last - first) / columns, []
    for pipe in dict.fromkeys(name for name, *_ in timeline.spans):
        line = ["."] * columns
        for i, (_, _, begin, end) in enumerate(span for span in timeline.spans if span[0] == pipe):
            for column in range(columns):
                if begin <= first + (column + 0.5) * width < end:
                    line[column] = "#="[i % 2]
        lines.append(f"{pipe:<13} {''.join(line)}")
    return "\n".join(sorted(lines))


class _Core:
    """A core's pipes: each does its instructions in turn, when the flags before them are set."""

    def __init__(self, name: str, timeline: Timeline, exchange: Exchange, chip: Chip, scenario: Scenario):
        self.name, self.timeline, self.exchange, self.chip, self.scenario = name, timeline, exchange, chip, scenario
        self.free: defaultdict[str, float] = defaultdict(float)  # of each pipe: when its next instruction may begin
        self.flags: defaultdict[str, deque[float]] = defaultdict(deque)
        self.floor = 0.0  # when what is told from now on may begin

    def run(self, lines: Iterator[str]) -> Iterator[None]:
        for line in lines:
            kind, *words = line.split()
            match kind:
                case "set":
                    self.flags[" ".join(words)].append(self.free[words[0]])
                case "wait":
                    to = words[1]
                    self.free[to] = max(self.free[to], self.flags[" ".join(words)].popleft())
                case "barrier":
                    if words[0] == "ALL":
                        self._follow("S", max(self.free.values()))
                case "send":
                    done = max(self.free.values()) if words[0] == "ALL" else max(self.free[words[0]], self.floor)
                    self.exchange.set(self.name, int(words[1]), Counter({"at": done}))
                case "receive":
                    while (done := self.exchange.take(self.name, int(words[1]))) is None:
                        yield
                    self._follow(words[0], done["at"])
                case _:
                    self._do(kind, words[0], [int(n) for n in words[1:]])

    def _follow(self, pipe: str, at: float) -> None:
        """Let the pipe's next instructions begin at that time; the scalar pipe's: all that are told from now on."""
        if pipe in ("S", "ALL"):
            self.floor = max(self.floor, at)
        else:
            self.free[pipe] = max(self.free[pipe], at)

    def _do(self, pipe: str, name: str, numbers: list[int]) -> None:
        waits = ("MTE1", "M") if pipe == "M" else (pipe,)  # a macro reads L1 while it multiplies
        begin = max(self.floor, *(self.free[one] for one in waits))
        end = begin + self.scenario.startup + cycles(self.name, pipe, numbers, self.chip)
        full, timeline = f"{self.name} {pipe}", self.timeline
        timeline.busy[full] += end - begin
        if pipe == "M":
            timeline.products += numbers[0]
        else:
            timeline.bytes[full] += numbers[0]
        timeline.spans.append((full, name, begin, end))
        timeline.cycles = max(timeline.cycles, end)
        for one in waits:
            self.free[one] = end


def cycles(core: str, pipe: str, numbers: list[int], chip: Chip) -> float:
    """Return the cycles of an instruction, without the scenario's startup."""
    share = 1 if core == CUBE else 1 / len(VECTORS)
    match pipe:
        case "MTE2":
            return numbers[0] / (chip.l2_read * share)
        case "MTE3" | "FIX":
            return numbers[0] / (chip.l2_write * share)
        case "V":
            return numbers[0] / chip.vector
    products, left, right = numbers
    return max(products / chip.products, left / chip.l1_to_a, right / chip.l1_to_b)
