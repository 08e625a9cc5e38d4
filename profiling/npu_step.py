"""Seconds of a training step on a chip: its operators (npu_operators) one after another, npu_conv's by their plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

from profiling import npu_instructions
from profiling.npu_chips import Chip, Scenario
from profiling.npu_operators import Operator, Step
from profiling.npu_timeline import Timeline, simulate

GROUPS = {  # of npu_conv's operators: which of them, by the function that calls them
    "maps into and out of planes": ("npu_conv_planes.fill", "npu_conv_planes.unfill", "npu_conv_planes.planes"),
    "weights packed": ("npu_conv.forward", "npu_conv_planes.table"),
    "fusion's gradients and mask": ("npu_conv.backward", "npu_conv._data_gradients"),
    "weight gradients summed": ("npu_conv._weight_gradients",),
    "products across rows": ("npu_conv._across_rows", "npu_conv_planes.column"),
}


def timeline(operator: Operator, chip: Chip, scenario: Scenario) -> Timeline:
    """Return the timeline of a kernel's busiest program: the others of the launch have as many items, or one fewer."""
    items = -(-operator.items // min(chip.cores, operator.items))
    return _timeline(operator.text, items, operator.inner, chip, scenario)


@cache
def _timeline(text: str, items: int, inner: int, chip: Chip, scenario: Scenario) -> Timeline:
    return simulate(npu_instructions.plan(text), items, inner, chip, scenario)


def seconds(operator: Operator, chip: Chip, scenario: Scenario) -> float:
    """Return what an operator takes. Raise ValueError for a kernel that the chip has no compiler for."""
    if operator.text is not None:
        if not chip.has_kernels:
            raise ValueError(f"npu_conv: no compiler for the {chip.name}")
        return timeline(operator, chip, scenario).cycles / chip.hertz + scenario.launch
    moved = (operator.read + operator.written) / chip.hbm
    copies = 2 * moved if scenario.converts and operator.is_convolution else 0  # a copy reads and writes
    return max(operator.flop / (scenario.matrix * chip.peak), moved) + copies + scenario.launch


def step_seconds(step: Step, chip: Chip, scenario: Scenario) -> float:
    return sum(seconds(operator, chip, scenario) for operator in step.operators)


def by_group(step: Step, chip: Chip, scenario: Scenario, group: Callable[[Operator], str]) -> dict[str, float]:
    """Return the seconds of each group of operators, the longest first."""
    found = Counter()
    for operator in step.operators:
        found[group(operator)] += seconds(operator, chip, scenario)
    return dict(found.most_common())


def group_of(operator: Operator) -> str:
    """Return the group of an operator in the table of npu_conv's step."""
    if operator.text is not None:
        return f"`{operator.name}`"
    for name, functions in GROUPS.items():
        if operator.where in functions:
            return name
    return "optimizer" if operator.part == "optimizer" else "the model around the blocks"


def kind_of(operator: Operator) -> str:
    """Return what kind of work an operator of torch does."""
    if operator.is_convolution:
        return "convolutions"
    if operator.name in ("cat", "add", "add_") and operator.where in ("autograd", "naive.rdb"):
        return "concatenations and their gradients"
    return "optimizer" if operator.part == "optimizer" else "ReLU, casts, other copies and sums"
