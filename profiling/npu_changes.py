"""What changes of npu_conv would save, by the model: each changes the list of instructions or drops operators."""

from __future__ import annotations

from collections.abc import Callable

from profiling import npu_instructions
from profiling.npu_chips import Chip, Scenario
from profiling.npu_operators import Step
from profiling.npu_step import group_of, seconds, timeline
from profiling.npu_timeline import simulate

Change = Callable[[Step, Chip, Scenario], float]


def dropped(group: str, share: float = 1) -> Change:
    """Return the change that needs only 1 - share of a group's operators."""

    def saved(step: Step, chip: Chip, scenario: Scenario) -> float:
        return share * sum(seconds(op, chip, scenario) for op in step.operators if group_of(op) == group)

    return saved


def replanned(kernels: tuple[str, ...], change: Callable[[dict], dict]) -> Change:
    """Return the change of kernels' instructions."""

    def saved(step: Step, chip: Chip, scenario: Scenario) -> float:
        total = 0.0
        for operator in step.operators:
            if operator.name in kernels and operator.text:
                items = -(-operator.items // min(chip.cores, operator.items))
                plan = change(npu_instructions.plan(operator.text))
                new = simulate(plan, items, operator.inner, chip, scenario)
                total += (timeline(operator, chip, scenario).cycles - new.cycles) / chip.hertz
        return total

    return saved


def two_sums(plan: dict[str, list]) -> dict[str, list]:
    """Give the sums two places in L0C: a tile's products begin while the last tile's sums leave."""
    return plan | {"cube": ["set FIX M 0", *plan["cube"]]}


def wide_products(plan: dict[str, list]) -> dict[str, list]:
    """Multiply a source by the three shifted gradients in one macro, not in three."""

    def merged(lines: list) -> list:
        found, taps = [], 0
        for line in lines:
            if isinstance(line, list):
                found.append([line[0], *merged(line[1:])])
            elif line.startswith("M "):
                taps += 1
                if taps % 3 == 0:
                    pipe, name, products, left, right = line.split()
                    found.append(f"{pipe} {name} {3 * int(products)} {left} {3 * int(right)}")
            else:
                found.append(line)
        return found

    return {"cube": merged(plan["cube"])}


def one_launch(step: Step, chip: Chip, scenario: Scenario) -> float:
    """Compute all weight gradients of a block in one launch: only one of eight rounds leaves cores without work."""
    apart = [operator for operator in step.operators if operator.name == "weight_gradient"]
    saved = 0.0
    for operator in apart:
        rounds = -(-operator.items // chip.cores)
        whole = operator.items / chip.cores
        saved += timeline(operator, chip, scenario).cycles / chip.hertz * (1 - whole / rounds) + scenario.launch
    return saved


SUMS = ("layer", "fusion", "gradient", "input_gradient")
CHANGES: dict[str, Change] = {
    "two places for the sums in L0C, so that products do not wait for the last tile to leave": replanned(
        SUMS, two_sums
    ),
    "one macro for the three shifted gradients of a weight gradient, not three": replanned(
        ("weight_gradient",), wide_products
    ),
    "one launch for all weight gradients of a block": one_launch,
    "maps stay in planes from block to block": dropped("maps into and out of planes", 15 / 16),
    "the fusion's gradients and the mask in kernels, not in products of torch": dropped("fusion's gradients and mask"),
    "weight gradients summed in the kernel, not by torch": dropped("weight gradients summed"),
    "zeros between a row's end and the next row's begin, so that no products across rows are subtracted": dropped(
        "products across rows"
    ),
    "weights packed by one kernel": dropped("weights packed"),
}


def ranked(step: Step, chip: Chip, scenarios: tuple[Scenario, ...]) -> list[tuple[str, list[float]]]:
    """Return each change and the seconds that it saves of a step in each scenario, the most (on average) first."""
    found = [(name, [change(step, chip, scenario) for scenario in scenarios]) for name, change in CHANGES.items()]
    return sorted(found, key=lambda entry: -sum(entry[1]))
