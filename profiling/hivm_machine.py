"""Execute a compiled module (profiling.hivm) on the host: its loops, addresses, cores, pipes and flags as they stand.

Shown by a run: tiling, offsets, shared and double buffers, sums, and that every wait has its set. Two pipes of a cube
core and its vector cores touch the same bytes of L1, L0C, UB or the workspace, one of them writing, only in an order
that flags give; the vector pipe also needs a barrier between an operation and those that use its result. Programs of a
launch, which a card runs in any order, do not read what others write, and write the same where they write twice.
Not shown: the machine code, the inside of the library's macros (hivm_library), launching, speed.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator

import torch

from profiling.hivm import DTYPES, DYNAMIC, SPACES, Layout, Op, Region, parse
from profiling.hivm_library import View, function
from profiling.hivm_order import CUBE, PIPES, VECTORS, Exchange, Order, Race, Traffic

POISON = 0xFF  # as bytes of a float: NaN


class Program:
    """A program of a launch: what its cores share."""

    def __init__(self, number: int, counts: Counter[str], traffic: Traffic):
        self.number, self.counts, self.traffic = number, counts, traffic
        self.order, self.exchange = Order(), Exchange()


class Core:
    """Runs a function as a generator, which yields while it waits for a flag of another core."""

    def __init__(self, op: Op, arguments: list, name: str, program: Program):
        self.region, self.name, self.program = op.regions[0], name, program
        self.values = dict(zip(self.region.arguments, arguments, strict=True))
        self.memory = {name: torch.full((size,), POISON, dtype=torch.uint8) for name, (_, size) in SPACES.items()}

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
                while (done := self.program.exchange.take(self.name, flag)) is None:
                    yield f"{self.name} waits for flag {flag}"
                for pipe in self.pipes(op.attribute("pipe")):
                    self.program.order.follow(pipe, done)
            case "hivm.hir.sync_block_set":
                (pipe,) = self.pipes(op.attribute("tpipe"))
                self.program.exchange.set(self.name, self._flag(op, operands), self.program.order.done(pipe))
            case "scf.yield" | "func.return":  # no values here: they are in buffers by now
                assert not operands
            case _:
                value = self.compute(op, operands)
                if op.result:
                    self.values[op.result] = value

    def pipes(self, name: str) -> list[str]:
        """Return the pipes that an attribute stands for: what the scalar pipe waits for, all pipes wait for."""
        name = name.removeprefix("PIPE_")
        return [f"{self.name} {pipe}" for pipe in (PIPES if name in ("ALL", "S") else [name])]

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
                return self.program.number
            case "get_sub_block_idx":
                return VECTORS.index(self.name)
            case "set_flag" | "wait_flag":
                event = op.attribute("static_event_id") or f"EVENT_ID{operands[0]}"
                (source,), (to,) = (self.pipes(op.attribute(f"{side}_pipe")) for side in ("set", "wait"))
                (self.program.order.set if name == "set_flag" else self.program.order.wait)(source, to, event)
            case "pipe_barrier":
                pipes = self.pipes(op.attribute("pipe"))
                everything = functools.reduce(Counter.__or__, map(self.program.order.done, pipes))
                for pipe in pipes:
                    self.program.order.follow(pipe, everything)
            case "set_mask_norm" | "set_ffts_base_addr":
                pass
            case _:
                raise LookupError(f"no model of the operation {op.name}")
        return None

    def call(self, op: Op, operands: list) -> None:
        name = op.attribute("callee")
        self.program.counts[name] += 1
        model, order = function(name), self.program.order
        accesses = [(value, i == model.writes) for i, value in enumerate(operands) if isinstance(value, View)]
        twice = self.program.traffic.touch(self.program.number, accesses)
        (pipe,) = self.pipes(model.pipe)
        if model.events is None:
            order.touch(pipe, accesses)
        else:  # a macro: MTE1 reads L1 when the loads are there, then the matrix unit writes L0C
            loads, reads = f"{self.name} MTE2", f"{self.name} MTE1"
            waits, sets = (operands[model.events + i : model.events + i + 2] for i in (0, 2))
            for event in waits:
                if event != -1:
                    order.wait(loads, reads, f"EVENT_ID{event}")
            order.touch(reads, [access for access in accesses if not access[1]])
            order.follow(pipe, order.done(reads))
            order.touch(pipe, [access for access in accesses if access[1]])
            for event in sets:
                if event != -1:
                    order.set(reads, loads, f"EVENT_ID{event}")
        model.run(name, *operands)
        if not all(now.equal(before) for now, before in twice):
            raise Race(f"program {self.program.number} writes other values where another has written")


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
    raise LookupError(f"no model of the operation {op.name}")


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
        work = torch.full((programs * self.workspace,), POISON, dtype=torch.uint8)
        nothing, workspace = (View(b, "workspace", "i8", 0, [len(b)], [1]) for b in (work[:0], work))
        given = [_argument(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        counts, traffic = Counter(), Traffic()
        for number in range(programs):
            program = Program(number, counts, traffic)
            cores = []
            for name, op in self.functions.items():
                # The first, an address that flags between cores need, is not there where one kind of core does all.
                values = [0, nothing, workspace, *given, programs, 1, 1][-len(op.regions[0].arguments) :]
                names = VECTORS if name.endswith("_mix_aiv") else [CUBE]
                cores += [Core(op, values, core, program) for core in names]
            _run_together(cores, program.exchange)
            if left := program.order.left() + program.exchange.left():
                raise Race(f"flags that nobody waited for: {left}")
        return counts


def _argument(tensor: torch.Tensor) -> View:
    """Return a tensor as a kernel sees it: a pointer into its storage."""
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    kind = next(kind for kind, dtype in DTYPES.items() if dtype == tensor.dtype)
    return View(storage, None, kind, tensor.storage_offset(), [tensor.numel()], [1])


def _run_together(cores: list[Core], exchange: Exchange) -> None:
    """Run cores in turn, each until it waits or ends. Raise Race when all wait for ever."""
    running = {core: core.run(core.region) for core in cores}
    while running:
        before = len(running), exchange.moves
        said = {core: next(steps, None) for core, steps in running.items()}
        running = {core: steps for core, steps in running.items() if said[core] is not None}
        if (len(running), exchange.moves) == before:
            raise Race(f"deadlock: {', '.join(map(str, said.values()))}")
