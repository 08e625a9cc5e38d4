"""`python -m profiling.npu_model [--write]`: how long a training step of rdn-b takes on Ascend chips, by arithmetic.

Nothing here was measured on a card. A kernel of npu_conv takes what its compiled instructions (npu_instructions) take
at a chip's published rates (npu_chips), each pipe of each core by itself (npu_timeline); torch's operators take their
bytes and FLOP (npu_operators, npu_step). Two scenarios say what is not published; results are "slow to fast". --write
puts the tables into docs/ascend.md, between <!-- npu_model --> and <!-- /npu_model -->.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from bench.models import RDN_B
from bench.tables import markdown
from profiling import npu_changes, npu_exchange, npu_instructions
from profiling.hivm_order import CUBE, VECTORS
from profiling.npu_chips import ASSUMPTIONS, CHIPS, FAST, SLOW, Chip, Scenario
from profiling.npu_operators import NAMES, Step, trace
from profiling.npu_step import by_group, group_of, kind_of, step_seconds, timeline
from profiling.npu_tiles import tiles_table, tiles_text
from profiling.npu_timeline import drawing, simulate
from rdn_fast.distributed.gradients import BUCKET_SHARES

PAGE = Path(__file__).parents[1] / "docs/ascend.md"
BEGIN, END = "<!-- npu_model -->", "<!-- /npu_model -->"
BATCHES = (16, 64, 128)
BATCH = 64  # the reference's
ONE_CARD, EIGHT_CARDS = 544, 4337  # images/s that the reference's README gives for naive's operators on the first 910
OLD = CHIPS["910"]
PIPES = [f"{CUBE} {pipe}" for pipe in ("MTE2", "M", "FIX")] + [f"{VECTORS[0]} {pipe}" for pipe in ("MTE2", "V", "MTE3")]


@cache
def step(impl: str, batch: int, cores: int = 24) -> Step:
    """Return the operators of a training step of rdn-b."""
    return trace(impl, RDN_B, batch, cores)


def runs(chip: Chip) -> list[str]:
    """Return the implementations that run on a chip."""
    return [impl for impl in NAMES if impl != "npu_conv" or chip.has_kernels]


def span(function: Callable, form: str = ".0f") -> str:
    """Return "slow to fast" of a function of a scenario."""
    slow, fast = (f"{function(scenario):{form}}" for scenario in (SLOW, FAST))
    return slow if slow == fast else f"{slow} to {fast}"


def speed(impl: str, batch: int, chip: Chip, scenario: Scenario) -> float:
    """Return patches a second on one card."""
    return batch / step_seconds(step(impl, batch, chip.cores), chip, scenario)


def speeds_table() -> str:
    rows = []
    for chip in CHIPS.values():
        for impl in runs(chip):
            cells = (span(partial(speed, impl, batch, chip)) for batch in BATCHES)
            rows.append([chip.name, f"`{impl}`", *cells])
    return markdown(["chip", "implementation", *(f"patches/s, batch {batch}" for batch in BATCHES)], rows)


def published() -> dict[str, tuple[float, list[float]]]:
    """Return what is published of the reference on the first 910, and the model's [slow, fast] for it."""
    naive = step("naive", BATCH, OLD.cores)
    one = [speed("naive", BATCH, OLD, scenario) for scenario in (SLOW, FAST)]
    scaling = [npu_exchange.efficiency(naive, OLD, None, 4, scenario) for scenario in (SLOW, FAST)]
    return {
        "one card, images/s": (ONE_CARD, one),
        "eight cards, images/s": (EIGHT_CARDS, [8 * n * e for n, e in zip(one, scaling, strict=True)]),
        "eight cards over eight times one": (EIGHT_CARDS / 8 / ONE_CARD, scaling),
    }


def published_table() -> str:
    rows = []
    for what, (known, (slow, fast)) in published().items():
        form = ".4f" if known < 1 else ".0f"
        ratios = (f"{model / known:.3f}" for model in (slow, fast))
        rows.append([what, *(f"{value:{form}}" for value in (known, slow, fast)), *ratios])
    columns = ("published", "model, slow", "model, fast", "slow / published", "fast / published")
    return markdown(["the reference on the first 910", *columns], rows)


def published_text() -> str:
    """Return what the published speed of one card says of the model."""
    known, (slow, fast) = published()["one card, images/s"]
    whole = BATCH / known
    parts, copied = (
        by_group(step("naive", BATCH, OLD.cores), OLD, scenario, kind_of)
        for scenario in (FAST, replace(FAST, converts=True))
    )
    copies = copied["convolutions"] - parts["convolutions"]
    joined = parts["concatenations and their gradients"]
    return (
        f"Slow is {slow / known - 1:+.0%} off the published speed, fast {fast / known - 1:+.0%}. The published step "
        f"takes {whole * 1e3:.0f} ms. Of them convolutions would take {parts['convolutions'] / whole:.0%} at the "
        f"assumed share of the peak, concatenations and their gradients {joined / whole:.0%}, copies of convolutions' "
        f"maps between formats {copies / whole:.0%}. That the sum fits does not show that each part does: "
        "the speeds of `sliced`, `summed` and `naive` on other chips hang on whether CANN copies there, "
        "which nobody here knows."
    )


def parts_table(impl: str, chip: Chip, group: Callable) -> str:
    """Return the milliseconds of each group of a step's operators."""
    slow, fast = (by_group(step(impl, BATCH, chip.cores), chip, scenario, group) for scenario in (SLOW, FAST))
    rows = [[name, f"{slow[name] * 1e3:.1f}", f"{fast[name] * 1e3:.1f}"] for name in slow]
    return markdown([f"`{impl}` on the {chip.name}, batch {BATCH}", "ms, slow", "ms, fast"], rows)


def pipes_table(chip: Chip) -> str:
    """Return, of the launch of each kernel with the most sources, its time and the share that each pipe is busy."""
    longest = {}
    for operator in step("npu_conv", BATCH, chip.cores).operators:
        if operator.text and (operator.name not in longest or operator.inner > longest[operator.name].inner):
            longest[operator.name] = operator
    rows = []
    for name, operator in longest.items():
        found = timeline(operator, chip, FAST)
        shares = (f"{found.busy[pipe] / found.cycles:.0%}" if pipe in found.busy else "" for pipe in PIPES)
        what = f"`{name}`, {operator.inner} {'steps' if name == 'weight_gradient' else 'sources'}"
        slow = timeline(operator, chip, SLOW).cycles / chip.hertz * 1e6
        rows.append([what, f"{slow:.0f}", f"{found.cycles / chip.hertz * 1e6:.0f}", *shares])
    return markdown([f"a launch on the {chip.name}", "us, slow", "us, fast", *PIPES], rows)


def tile_drawing(chip: Chip, sources: int = 4) -> str:
    """Return the second tile of three of `layer` as a picture, from its first product to that of the third tile."""
    operator = next(o for o in step("npu_conv", BATCH, chip.cores).operators if o.name == "layer")
    found = simulate(npu_instructions.plan(operator.text), 3, sources, chip, FAST)
    products = [begin for pipe, _, begin, _ in found.spans if pipe == f"{CUBE} M"]
    first, last = products[sources], products[2 * sources]
    picture = "\n".join(f"    {line}" for line in drawing(found, first, last).splitlines())
    return (
        f"A tile of `layer` with {sources} sources in the middle of a launch, fast: {last - first:.0f} cycles from its "
        f"first product to the next tile's; # and = are instructions in turn.\n\n{picture}"
    )


def exchange_table() -> str:
    """Return the scaling to eight cards for DistributedDataParallel's and other buckets."""
    chosen = ", ".join(map(str, BUCKET_SHARES))
    columns = {
        "DistributedDataParallel": (None, 4),
        f"shares {', '.join(map(str, npu_exchange.BEFORE))}": (npu_exchange.BEFORE, 4),
        f"shares {chosen}": (BUCKET_SHARES, 4),
        "the same, sent in fp16": (BUCKET_SHARES, 2),
    }
    rows = []
    for name, impl in (("910", "naive"), ("910", "sliced"), ("910B2", "npu_conv"), ("910B3", "npu_conv")):
        chip = CHIPS[name]
        one = partial(npu_exchange.efficiency, step(impl, BATCH, chip.cores), chip)
        cells = (span(partial(one, *choice), ".4f") for choice in columns.values())
        rows.append([name, f"`{impl}`", *cells])
    return markdown(["chip", "implementation", *columns], rows)


def changes_table(chip: Chip, count: int | None = None) -> str:
    """Return the changes that save most, and the milliseconds of a step that they save."""
    found = npu_changes.ranked(step("npu_conv", BATCH, chip.cores), chip, (SLOW, FAST))[:count]
    rows = [[str(i), name, *(f"{n * 1e3:.1f}" for n in saved)] for i, (name, saved) in enumerate(found, 1)]
    return markdown(["", "change", "saves at most, ms, slow", "ms, fast"], rows)


def sections() -> Iterator[tuple[str, str]]:
    """Yield the title and the text of each part of the page."""
    file, a2 = npu_instructions.known(), CHIPS["910B2"]
    plan = f"The instructions are those of {file['compiler']} for {file['target']}, in profiling/npu_instructions.json."
    yield "Patches a second", f"Training steps of rdn-b in fp16 on one card, slow to fast. {plan}\n\n{speeds_table()}"
    yield (
        "Beside what is published",
        f"{published_table()}\n\n{published_text()}\n\n{parts_table('naive', OLD, kind_of)}",
    )
    yield (
        "Where npu_conv's time goes",
        f"{parts_table('npu_conv', a2, group_of)}\n\n{pipes_table(a2)}\n\n{tile_drawing(a2)}",
    )
    yield "Tiles and splits", f"{tiles_text()}\n\n{tiles_table()}"
    yield "Eight cards", exchange_table()
    yield "The next three changes that would pay most", changes_table(a2, 3)
    rates = markdown(["chip", "rates"], [[chip.name, chip.source] for chip in CHIPS.values()])
    yield "What is assumed", "\n".join(f"- {line}" for line in ASSUMPTIONS) + f"\n\n{rates}"


def page() -> str:
    """Return the part of docs/ascend.md that the model writes."""
    return "\n\n".join(f"#### {title}\n\n{text}" for title, text in sections())


def main(argv: list[str] | None = None) -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m profiling.npu_model", description=__doc__, formatter_class=kind)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/ascend.md")
    if parser.parse_args(argv).write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{page()}\n\n{END}{after}", encoding="utf-8")
        return
    print("arithmetic, not measured\n")
    print(page())
    for chip in (CHIPS["910B2"], CHIPS["910B3"]):
        print(f"\nAll changes, {chip.name}:\n\n{changes_table(chip)}")


if __name__ == "__main__":
    main()
