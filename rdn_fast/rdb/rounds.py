"""Time contenders in turn, round by round, until the fastest is clear. The host may be shared and change its speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

MARGIN = 1.05  # ratios of time below this may be noise
HOPELESS = 1.5  # contenders whose best is that many times the fastest's are not timed again,
HOPELESS_DISTURBED = 4.0  # or so many times where the rounds of their own do not agree (STEADY)
STEADY = 1.5  # a contender whose median round takes more than that many times its best was disturbed
LEAST = 3  # rounds that every contender gets
MORE = 3  # rounds beyond those while the fastest is not clear, however long they take
SPAN = 0.005  # seconds; shorter calls are repeated within one reading of the clock

Key = TypeVar("Key", bound=Hashable)
Rounds = dict[Key, list[float]]  # seconds of a call, one value a round; round i of all contenders was timed in turn


class Verdict(NamedTuple):
    """The contender to take. `settled`: it is the fastest by more than noise, on a steady machine."""

    choice: Hashable
    settled: bool


def run_rounds(
    contenders: dict[Key, Callable[[int], float]],
    is_clear: Callable[[Rounds], bool],
    leave_out: Callable[[Key, Exception], None],
    budget: float,
    group: Callable[[Key], Hashable] = lambda key: None,
) -> Rounds:
    """Time contenders in turn: LEAST rounds, and while not is_clear(rounds) MORE, then others for `budget` seconds.

    contenders[key](n) makes n calls and returns the mean seconds of one. The first one warms up and does not count.
    One that raises is given to leave_out() and is not in the result.
    group(key): a contender that is hopeless against the fastest of its group is not timed again.
    """
    rounds: Rounds = {key: [] for key in contenders}
    number, spent = 0, 0.0  # rounds so far, the warm-up included; seconds in those beyond LEAST
    while number <= LEAST or (rounds and (number <= LEAST + MORE or spent < budget) and not is_clear(rounds)):
        for key in list(rounds):
            if _is_hopeless(rounds, key, group):
                continue
            try:
                seconds, repeats = _read(contenders[key], rounds[key], warm_up=not number)
            except Exception as error:  # a shape, memory, whatever a compiler raises
                del rounds[key]
                leave_out(key, error)
                continue
            if number:
                rounds[key].append(seconds)
            if number > LEAST:
                spent += seconds * repeats
        number += 1
    return rounds


def _is_hopeless(rounds: Rounds, key: Key, group: Callable[[Key], Hashable]) -> bool:
    own = rounds[key]
    if len(own) < LEAST:
        return False
    limit = HOPELESS if is_steady(own) else HOPELESS_DISTURBED
    rivals = [of_one for other, of_one in rounds.items() if of_one and group(other) == group(key)]
    return min(own) > limit * min(map(min, rivals))


def _read(contender: Callable[[int], float], before: list[float], warm_up: bool) -> tuple[float, int]:
    """Return the mean seconds of a call in one reading of the clock, and how many calls that was."""
    if not before:
        first = contender(1)
        if warm_up or first >= SPAN:
            return first, 1
    repeats = math.ceil(SPAN / min(before or [first]))
    return contender(repeats), repeats


def clearly_faster(a: list[float], b: list[float]) -> bool:
    """Return whether `a` is faster than `b` by more than MARGIN, by both estimates.

    They are the ratio of the best rounds, and the median ratio within a round. The first is wrong where the machine
    was fast in a moment of one contender alone, the second where its speed changed within most rounds.
    """
    within = statistics.median(y / x for x, y in zip(a, b, strict=False))  # hopeless ones have fewer rounds
    return min(within, min(b) / min(a)) > MARGIN


def is_steady(own: list[float]) -> bool:
    """Return whether most rounds of a contender were about as fast as its best one."""
    return statistics.median(own) <= STEADY * min(own)


def judge(rounds: Rounds) -> Verdict:
    """Return the fastest contender if that is clear, else the default: the last one whose best is within MARGIN."""
    best = {key: min(own) for key, own in rounds.items()}
    fastest = min(best, key=best.get)
    if all(key == fastest or clearly_faster(rounds[fastest], own) for key, own in rounds.items()):
        far = HOPELESS_DISTURBED * best[fastest]
        return Verdict(fastest, all(is_steady(own) or best[key] > far for key, own in rounds.items()))
    return Verdict([key for key in best if best[key] <= MARGIN * best[fastest]][-1], False)
