"""How a block of hopper.cu hands stages of shared memory from the copying warp to the multiplying ones and back.

A model of what its threads do, of which every order of events is tried: a copy may take any time, and products read
their stage until they are waited for. Parities are tested as mbarriers do: a phase that is two ahead is not seen.
"""

from dataclasses import dataclass, replace

import pytest

from rdn_fast.rdb.hopper_layout import GRADIENT_STAGES, SUM_STAGES

WARPS = 2  # that multiply; the kernel's eight do the same


@dataclass(frozen=True)
class Rules:
    """What the kernel does, and with what a fault would replace it."""

    stages: int
    steps: int
    left: int = 1  # groups of products that may be under way after a wait
    flip: int = 1  # the producer waits for the parity of its stage's phase xor this
    arrivals: int = WARPS
    forgets: int = -1  # a step whose stage the last warp does not free


@dataclass(frozen=True)
class State:
    produced: int  # steps whose copy the producer has asked for
    content: tuple  # of each stage: (step, whether its copy is complete)
    full: tuple  # phases of each stage's barriers
    empty: tuple
    arrived: tuple  # at each stage's `empty` in this phase
    warps: tuple  # of each: (step, whether its products were issued)


class Wrong(Exception):
    pass


def successors(state: State, rules: Rules):
    """Yield the states after each event that may come next. Raise Wrong for a wrong step read or overwritten."""
    yield from produce(state, rules)
    for stage, (step, complete) in enumerate(state.content):
        if not complete:
            yield replace(state, content=put(state.content, stage, (step, True)), full=add(state.full, stage))
    for warp in range(WARPS):
        yield from multiply(state, rules, warp)


def produce(state: State, rules: Rules):
    step, stage = state.produced, state.produced % rules.stages
    if step == rules.steps:
        return
    parity = step // rules.stages & 1
    if step >= rules.stages and state.empty[stage] & 1 == parity ^ rules.flip:
        return
    before = step - rules.stages  # whose copy lies there; -1 and less: none
    for at, _ in state.warps:
        if before >= max(0, at - rules.left):  # from that step on, products may be under way, or are yet to come
            raise Wrong(f"step {step} overwrites step {before}")
    yield replace(state, produced=step + 1, content=put(state.content, stage, (step, False)))


def multiply(state: State, rules: Rules, warp: int):
    step, issued = state.warps[warp]
    stage = step % rules.stages
    if step == rules.steps:
        return
    if not issued:
        if state.full[stage] & 1 == step // rules.stages & 1:
            return
        if state.content[stage] != (step, True):
            raise Wrong(f"step {step} reads {state.content[stage]}")
        yield replace(state, warps=put(state.warps, warp, (step, True)))
        return
    after = replace(state, warps=put(state.warps, warp, (step + 1, False)))
    if step > 0 and not (warp == WARPS - 1 and step - 1 == rules.forgets):
        after = arrive(after, (step - 1) % rules.stages, rules)
    yield after


def arrive(state: State, stage: int, rules: Rules) -> State:
    arrived = add(state.arrived, stage)
    if arrived[stage] < rules.arrivals:
        return replace(state, arrived=arrived)
    return replace(state, arrived=put(arrived, stage, 0), empty=add(state.empty, stage))


def put(values: tuple, at: int, value) -> tuple:
    return (*values[:at], value, *values[at + 1 :])


def add(values: tuple, at: int) -> tuple:
    return put(values, at, values[at] + 1)


def explore(rules: Rules) -> int:
    """Try every order of events. Return the number of states; raise Wrong, also when nothing can happen too early."""
    zeros = (0,) * rules.stages
    first = State(0, ((-1, True),) * rules.stages, zeros, zeros, zeros, ((0, False),) * WARPS)
    seen, open_states = {first}, [first]
    while open_states:
        state = open_states.pop()
        following = set(successors(state, rules))
        if not following and any(step < rules.steps for step, _ in state.warps):
            raise Wrong("all wait for ever")
        open_states += following - seen
        seen |= following
    return len(seen)


@pytest.mark.parametrize("stages", {SUM_STAGES, GRADIENT_STAGES, 2})
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_no_order_of_events_reads_or_overwrites_a_wrong_step_or_stops(stages, steps):
    assert explore(Rules(stages, steps)) > 2 * steps


FAULTS = {
    "a warp that does not free a stage": {"forgets": 2},
    "an arrival too few": {"arrivals": WARPS - 1},
    "an arrival too many": {"arrivals": WARPS + 1},
    "the other parity": {"flip": 0},
    "products that are not waited for": {"left": 2},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("stages", {SUM_STAGES, GRADIENT_STAGES})
def test_a_fault_in_the_protocol_is_noticed(stages, fault):
    with pytest.raises(Wrong):
        explore(Rules(stages, 8, **fault))
