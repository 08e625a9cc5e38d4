"""Execute a compiled module (profiling.hivm) on the host: its loops, addresses, cores, pipes and flags as they stand.

Shown by a run: tiling, offsets, shared and double buffers, sums, the exchange between cube and vector cores, that every
wait has its set, and that two pipes of a core touch the same bytes of L1, L0C or UB, one of them writing, only in an
order that flags give. The vector pipe also needs a barrier between an operation and those that use its result.
Not shown: the machine code, the inside of the library's macros (hivm_library), the order of accesses to global memory
beyond this one interleaving, launching, speed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator

import torch

from profiling.hivm import DYNAMIC, SPACES, Layout, Op, Region, parse
from profiling.hivm_library import View, function

PIPES = ("MTE1", "MTE2", "MTE3", "M", "V", "FIX", "S")
POISON = 0xFF  # as bytes of a float: NaN


class Race(RuntimeError):
    """Two pipes touch the same bytes in no order, or a flag is waited for that nobody set."""


class Order:
    """What a core's pipes have done, and which of it is known to be complete: a vector clock for each pipe."""

    def __init__(self):
        self.issued = Counter()  # operations of each pipe
        self.known = {pipe: Counter() for pipe in PIPES}  # what is complete when the pipe's next operation begins
        self.flags = defaultdict(deque)  # (from, to, event): what is complete when it is set
        self.seen = defaultdict(dict)  # space: {(pipe, writes, low, high): the pipe's last operation that did that}

    def _done(self, pipe: str) -> Counter[str]:
        """Return what is complete when all operations of the pipe so far are."""
        return self.known[pipe] | Counter({pipe: self.issued[pipe]})

    def set(self, source: str, to: str, event: str) -> None:
        self.flags[source, to, event].append(self._done(source))

    def wait(self, source: str, to: str, event: str) -> None:
        if not self.flags[source, to, event]:
            raise Race(f"{to} waits for flag {event} of {source}, which nobody set")
        self.known[to] |= self.flags[source, to, event].popleft()

    def follow(self, pipe: str, before: str) -> None:
        """Let the pipe's next operations begin when those of another, or its own, are complete."""
        self.known[pipe] |= self._done(before)

    def barrier(self, which: str) -> None:
        """Let the operations of one pipe wait for those before, or (ALL) those of all pipes for all."""
        for pipe in PIPES if which == "ALL" else [which]:
            for before in PIPES if which == "ALL" else [which]:
                self.follow(pipe, before)

    def touch(self, pipe: str, accesses: list[tuple[View, bool]]) -> None:
        """Record an operation's accesses, (view, whether it writes). Raise Race if another is in no order with it."""
        self.issued[pipe] += 1
        spans = [(view.space, *view.span(), writes) for view, writes in accesses if view.space and 0 not in view.sizes]
        for space, low, high, writes in spans:
            for (other, wrote, start, end), operation in self.seen[space].items():
                conflict = (writes or wrote) and start < high and low < end and (other != pipe or pipe == "V")
                if conflict and self.known[pipe][other] < operation:
                    raise Race(f"{pipe} and {other} touch {space} {max(low, start)}..{min(high, end)} in no order")
        for space, low, high, writes in spans:
            self.seen[space][pipe, writes, low, high] = self.issued[pipe]

    def left(self) -> list:
        """Return the flags that were set and never waited for."""
        return [flag for flag, sent in self.flags.items() if sent]


class Exchange:
    """The flags between a cube core and its two vector cores. The cube waits for both, and sets for both."""

    def __init__(self):
        self.to_cube, self.to_vector = (Counter(), Counter()), (Counter(), Counter())
        self.moves = 0  # flags set and taken

    def set(self, vector: int | None, flag: int) -> None:
        self.moves += 1
        for counts in self.to_vector if vector is None else [self.to_cube[vector]]:
            counts[flag] += 1

    def take(self, vector: int | None, flag: int) -> bool:
        mine = self.to_cube if vector is None else [self.to_vector[vector]]
        if any(not counts[flag] for counts in mine):
            return False
        for counts in mine:
            counts[flag] -= 1
        self.moves += 1
        return True

    def left(self) -> list[int]:
        return [flag for counts in (*self.to_cube, *self.to_vector) for flag, number in counts.items() if number]


class Core:
    """Runs a function as a generator, which yields while it waits for a flag of another core."""

    def __init__(self, op: Op, arguments: list, block: int, vector: int | None, exchange: Exchange, counts: Counter):
        self.region, self.block, self.vector = op.regions[0], block, vector
        self.values = dict(zip(self.region.arguments, arguments, strict=True))
        self.memory = {name: torch.full((size,), POISON, dtype=torch.uint8) for name, (_, size) in SPACES.items()}
        self.order, self.exchange, self.counts = Order(), exchange, counts

    def run(self, region: Region) -> Iterator[str]:
        for op in region.operations:
            yield from self.step(op)

    def step(self, op: Op) -> Iterator[str]:
        operands = [self.values[name] for name in op.operands]
        match op.name:
            case "scf.for":
                low, high, step = operands
                for i in range(low, high, step):
                    self.values[op.regions[0].arguments[0]] = i
                    yield from self.run(op.regions[0])
            case "scf.if":
                yield from self.run(op.regions[0 if operands[0] else 1])
            case "hivm.hir.sync_block_wait":
                flag = self._flag(op, operands)
                while not self.exchange.take(self.vector, flag):
                    yield f"flag {flag} is waited for"
            case "hivm.hir.sync_block_set":
                self.exchange.set(self.vector, self._flag(op, operands))
            case "scf.yield" | "func.return":  # no values here: they are in buffers by now
                assert not operands
            case _:
                value = self.compute(op, operands)
                if op.result:
                    self.values[op.result] = value

    @staticmethod
    def _flag(op: Op, operands: list) -> int:
        static = op.attribute("static_flag_id")
        return int(operands[0] if static is None else static)

    def compute(self, op: Op, operands: list):
        room, _, name = op.name.rpartition(".")
        match room:
            case "arith":
                return _arithmetic(name, op, operands)
            case "affine":
                return _affine(name, op, operands)
            case "memref":
                return _view(name, op, operands)
            case "func":
                return self.call(op, operands)
        match name:
            case "pointer_cast":
                layout = Layout.parse(op.type)
                item = layout.bytes * 8 // max(1, _product(layout.sizes))  # bits
                offset = operands[0] * 8 // item if item else 0
                return View(self.memory[layout.space], layout.space, layout.kind, offset, layout.sizes, layout.strides)
            case "get_block_idx":
                return self.block
            case "get_sub_block_idx":
                return self.vector
            case "set_flag" | "wait_flag":
                event = op.attribute("static_event_id") or f"EVENT_ID{operands[0]}"
                pipes = [op.attribute(f"{side}_pipe").removeprefix("PIPE_") for side in ("set", "wait")]
                (self.order.set if name == "set_flag" else self.order.wait)(*pipes, event)
            case "pipe_barrier":
                self.order.barrier(op.attribute("pipe").removeprefix("PIPE_"))
            case "set_mask_norm" | "set_ffts_base_addr":
                pass
            case _:
                raise NotImplementedError(op.name)
        return None

    def call(self, op: Op, operands: list) -> None:
        name = op.attribute("callee")
        self.counts[name] += 1
        model = function(name)
        accesses = [(value, i == model.writes) for i, value in enumerate(operands) if isinstance(value, View)]
        if model.events is None:
            self.order.touch(model.pipe, accesses)
        else:  # a macro: MTE1 reads L1 when the loads are there, then the matrix unit writes L0C
            waits, sets = (operands[model.events + i : model.events + i + 2] for i in (0, 2))
            for event in waits:
                if event != -1:
                    self.order.wait("MTE2", "MTE1", f"EVENT_ID{event}")
            self.order.touch("MTE1", [access for access in accesses if not access[1]])
            self.order.follow("M", "MTE1")
            self.order.touch("M", [access for access in accesses if access[1]])
            for event in sets:
                if event != -1:
                    self.order.set("MTE1", "MTE2", f"EVENT_ID{event}")
        model.run(name, *operands)


def _product(sizes) -> int:
    return torch.Size(sizes).numel()


def _arithmetic(name: str, op: Op, v: list):
    match name:
        case "constant":
            text = re.search(r"value = ([-\w.+]+)", op.text)[1]
            return (
                {"true": 1, "false": 0}[text]
                if text in ("true", "false")
                else float(text)
                if "." in text
                else int(text)
            )
        case "select":
            return v[1] if v[0] else v[2]
        case "cmpi":
            a, b = v
            return int(
                [a == b, a != b, a < b, a <= b, a > b, a >= b, a < b, a <= b, a > b, a >= b][
                    int(op.attribute("predicate"))
                ]
            )
        case "index_cast" | "trunci" | "extui" | "extsi":
            return v[0] & 1 if op.type == "i1" else v[0]
        case "divsi" | "divui":
            return v[0] // v[1]  # of numbers that are not negative
        case "remsi" | "remui":
            return v[0] % v[1]
    functions = {"addi": int.__add__, "subi": int.__sub__, "muli": int.__mul__, "xori": int.__xor__}
    functions |= {"andi": int.__and__, "ori": int.__or__, "minui": min, "minsi": min, "maxsi": max}
    return functions[name](*v)


def _affine(name: str, op: Op, operands: list) -> int:
    dimensions, symbols, results = re.search(r"affine_map<\(([^)]*)\)(?:\[([^]]*)\])? -> \((.*)\)>", op.text).groups()
    names = re.findall(r"\w+", f"{dimensions} {symbols or ''}")
    text = re.sub(r"(\([^()]*\)|\w+) ceildiv (\w+)", r"(-(-(\1) // \2))", results)
    text = text.replace("floordiv", "//").replace("mod", "%")
    values = eval(f"[{text}]", {}, dict(zip(names, operands, strict=True)))  # the compiler's own text
    return {"apply": values.__getitem__, "min": lambda _: min(values), "max": lambda _: max(values)}[name](0)


def _view(name: str, op: Op, operands: list) -> View:
    view, *rest = operands
    layout = Layout.parse(op.type)

    def given(which: str) -> list[int]:
        return [rest.pop(0) if number == DYNAMIC else number for number in op.numbers(f"static_{which}")]

    match name:
        case "cast":
            return view
        case "view":
            itemsize = layout.bytes // _product(layout.sizes)
            whole = View(view.buffer, view.space, layout.kind, 0, layout.sizes, layout.strides)
            return whole.reshaped(layout.sizes, layout.strides, (view.offset + rest[0]) // itemsize)
        case "reinterpret_cast":
            offset, sizes, strides = given("offsets")[0], given("sizes"), given("strides")
            return view.reshaped(sizes, strides, view.offset + offset)
        case "subview":
            offsets, sizes, steps = given("offsets"), given("sizes"), given("strides")
            offset = view.offset + sum(o * stride for o, stride in zip(offsets, view.strides, strict=True))
            kept = list(range(len(sizes)))
            while len(kept) > len(layout.sizes):  # dimensions of one element go
                kept.remove(next(i for i in kept if sizes[i] == 1))
            return view.reshaped([sizes[i] for i in kept], [steps[i] * view.strides[i] for i in kept], offset)
        case "collapse_shape":
            groups = _groups(op)
            sizes = [_product(view.sizes[i] for i in group) for group in groups]
            return view.reshaped(sizes, [view.strides[group[-1]] for group in groups])
        case "expand_shape":
            strides = []
            for group, stride in zip(_groups(op), view.strides, strict=True):
                strides += [stride * _product(layout.sizes[j] for j in group if j > i) for i in group]
            return view.reshaped(layout.sizes, strides)
    raise NotImplementedError(op.name)


def _groups(op: Op) -> list[list[int]]:
    """Return which dimensions a collapse_shape makes one of, or an expand_shape makes of one."""
    text = re.search(r"reassociation = \[(.*?)\]\]", op.text)[0]
    return [[int(n) for n in group.split(",")] for group in re.findall(r"\[([\d, ]+)\]", text)]


class Machine:
    """A compiled module. Programs run one after another, each on a cube core with two vector cores, or on one core."""

    def __init__(self, module: str):
        self.functions = parse(module)
        found = re.search(r"infer_workspace_shape_function\(.*?constant (\d+)", module, re.DOTALL)
        self.workspace = int(found[1]) if found else 0  # bytes of a program

    def run(self, arguments: list[torch.Tensor | int], programs: int) -> Counter[str]:
        """Run the kernel on tensors, changed in place, and integers. Return how often each library function ran.

        Raise Race, or IndexError for an address outside of a buffer or of a tensor's storage.
        """
        counts: Counter[str] = Counter()
        kinds = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}

        def view(tensor: torch.Tensor) -> View:
            storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            return View(storage, None, kinds[tensor.dtype], tensor.storage_offset(), [tensor.numel()], [1])

        given = [view(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        nothing, work = (
            View(torch.full((n,), POISON, dtype=torch.uint8), None, "i8", 0, [n], [1])
            for n in (0, programs * self.workspace)
        )
        for block in range(programs):
            exchange, cores = Exchange(), []
            for name, op in self.functions.items():
                # The first, an address that flags between cores need, is not there where one kind of core does all.
                values = [0, nothing, work, *given, programs, 1, 1][-len(op.regions[0].arguments) :]
                vectors = (0, 1) if name.endswith("_mix_aiv") else (None,)
                cores += [Core(op, values, block, vector, exchange, counts) for vector in vectors]
            _run_together(cores)
            if left := [core.order.left() for core in cores if core.order.left()] + exchange.left():
                raise Race(f"flags that nobody waited for: {left}")
        return counts


def _run_together(cores: list[Core]) -> None:
    """Run cores in turn, each until it waits or ends. They share an exchange. Raise Race when all wait for ever."""
    running = {core: core.run(core.region) for core in cores}
    while running:
        before = len(running), cores[0].exchange.moves
        said = {core: next(steps, None) for core, steps in running.items()}
        running = {core: steps for core, steps in running.items() if said[core] is not None}
        if (len(running), cores[0].exchange.moves) == before:
            raise Race(f"deadlock: {', '.join(map(str, said.values()))}")
