"""What happens before what in an emulated kernel (hivm_machine): between pipes, between cores, between programs."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

import torch

from profiling.hivm_library import View

CUBE, VECTORS = "cube", ("vector 0", "vector 1")
PIPES = ("MTE1", "MTE2", "MTE3", "M", "V", "FIX", "S")


class Race(RuntimeError):
    """Two pipes touch the same bytes in no order, or a flag is waited for that nobody set."""


class Order:
    """What the pipes of a program's cores have done, and which of it is known to be complete: vector clocks."""

    def __init__(self):
        self.issued = Counter()  # operations of each pipe; a pipe is called "cube MTE1", "vector 0 V", ...
        self.known = defaultdict(Counter)  # of each pipe: what is complete when its next operation begins
        self.flags = defaultdict(deque)  # (from, to, event): what is complete when it is set
        self.seen = defaultdict(dict)  # buffer: {(pipe, writes, low, high): the pipe's last operation that did that}

    def done(self, pipe: str) -> Counter[str]:
        """Return what is complete when all operations of the pipe so far are."""
        return self.known[pipe] | Counter({pipe: self.issued[pipe]})

    def follow(self, pipe: str, done: Counter[str]) -> None:
        """Let the pipe's next operations begin when those are complete."""
        self.known[pipe] |= done

    def set(self, source: str, to: str, event: str) -> None:
        self.flags[source, to, event].append(self.done(source))

    def wait(self, source: str, to: str, event: str) -> None:
        if not self.flags[source, to, event]:
            raise Race(f"{to} waits for flag {event} of {source}, which nobody set")
        self.follow(to, self.flags[source, to, event].popleft())

    def touch(self, pipe: str, accesses: list[tuple[View, bool]]) -> None:
        """Record an operation's accesses, (view, whether it writes). Raise Race if another is in no order with it."""
        self.issued[pipe] += 1
        spans = [(view, *view.span(), writes) for view, writes in accesses if view.space and 0 not in view.sizes]
        for view, low, high, writes in spans:
            for (other, wrote, start, end), operation in self.seen[view.buffer.data_ptr()].items():
                in_turn = other == pipe and not pipe.endswith(" V")
                conflict = (writes or wrote) and start < high and low < end and not in_turn
                if conflict and self.known[pipe][other] < operation:
                    raise Race(f"{pipe} and {other} touch {view.space} {max(low, start)}..{min(high, end)} in no order")
        for view, low, high, writes in spans:
            self.seen[view.buffer.data_ptr()][pipe, writes, low, high] = self.issued[pipe]

    def left(self) -> list:
        """Return the flags that were set and never waited for."""
        return [flag for flag, sent in self.flags.items() if sent]


class Exchange:
    """The flags between a cube core and its two vector cores. The cube waits for both, and sets for both."""

    def __init__(self):
        self.sent = defaultdict(deque)  # (receiver, sender, flag): what is complete when it is set
        self.moves = 0  # flags set and taken

    def set(self, core: str, flag: int, done: Counter[str]) -> None:
        self.moves += 1
        for receiver in VECTORS if core == CUBE else [CUBE]:
            self.sent[receiver, core, flag].append(done)

    def take(self, core: str, flag: int) -> Counter[str] | None:
        """Return what is complete now, or None where the flag is not set."""
        queues = [self.sent[core, sender, flag] for sender in (VECTORS if core == CUBE else [CUBE])]
        if not all(queues):
            return None
        self.moves += 1
        done = Counter()
        for queue in queues:
            done |= queue.popleft()
        return done

    def left(self) -> list:
        """Return the flags that were set and never waited for."""
        return [key for key, queue in self.sent.items() if queue]


class Traffic:
    """Which bytes of a launch's arguments each program reads and writes."""

    def __init__(self):
        self.seen = {False: defaultdict(set), True: defaultdict(set)}  # writes: {buffer: {(program, low, high)}}

    def touch(self, program: int, accesses: list[tuple[View, bool]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Record accesses. Return the bytes that another program has written, too, and a copy of each.

        Raise Race where one program reads what another writes.
        """
        twice = []
        for view, writes in accesses:
            if view.space or 0 in view.sizes:
                continue
            buffer, (low, high) = view.buffer.data_ptr(), view.span()
            for wrote in (True, False) if writes else (True,):
                for other, start, end in self.seen[wrote][buffer]:
                    if other == program or not (start < high and low < end):
                        continue
                    if not wrote or not writes:
                        raise Race(f"program {program} or {other} reads what the other writes")
                    shared = view.buffer[max(low, start) : min(high, end)]
                    twice.append((shared, shared.clone()))
            self.seen[writes][buffer].add((program, low, high))
        return twice
