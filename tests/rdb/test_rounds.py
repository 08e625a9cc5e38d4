"""Timing in turn: which contender is taken, and when the rounds end. The clock is a list."""

import pytest

from rdn_fast.rdb.rounds import LEAST, MORE, SPAN, clearly_faster, judge, run_rounds


class Scripted:
    """A contender: `seconds` are those of its calls that count, the last one again and again; `first` warms up."""

    def __init__(self, *seconds: float, first: float | None = None):
        self._seconds = [seconds[0] if first is None else first, *seconds]
        self.repeats = []

    def __call__(self, repeats: int) -> float:
        seconds = self._seconds[min(len(self.repeats), len(self._seconds) - 1)]
        self.repeats.append(repeats)
        return seconds


def never(rounds):
    return False


def settled(rounds):
    return judge(rounds).settled


def run(contenders, is_clear=settled, budget=10.0):
    failed = {}
    rounds = run_rounds(contenders, is_clear, failed.__setitem__, budget)
    return rounds, failed


def test_the_warm_up_does_not_count():
    rounds, _ = run({"compiles": Scripted(1.0, first=60.0), "other": Scripted(2.0)})
    assert rounds == {"compiles": [1.0] * LEAST, "other": [2.0] * LEAST}


def test_a_contender_that_is_preempted_in_one_round_is_timed_on_and_wins():
    rounds, _ = run({"unlucky": Scripted(9.0, 1.0), "steady": Scripted(1.4)})
    assert judge(rounds) == ("unlucky", True)
    assert len(rounds["unlucky"]) >= LEAST
    rounds, _ = run({"unlucky": Scripted(9.0, 9.0, 1.0), "steady": Scripted(1.4)}, budget=30)
    assert judge(rounds) == ("unlucky", True)  # two of the first three rounds: more were timed
    assert len(rounds["unlucky"]) > LEAST


def test_a_hopeless_contender_is_dropped_after_the_least_rounds_and_not_before():
    slow = Scripted(100.0)
    rounds, _ = run({"slow": slow, "a": Scripted(1.0), "b": Scripted(1.01)})
    assert rounds["slow"] == [100.0] * LEAST
    assert len(slow.repeats) == 1 + LEAST
    assert len(rounds["a"]) == len(rounds["b"]) > LEAST


def test_a_contender_is_hopeless_among_its_group_alone():
    """Parts of two sums that are compared are all needed, however fast another part is."""
    slow, lost = Scripted(100.0), Scripted(200.0)
    contenders = {("block", "slow"): slow, ("block", "lost"): lost, ("rest", "quick"): Scripted(1.0)}
    rounds = run_rounds(contenders, lambda _: False, never, 1000.0, group=lambda key: key[0])
    assert len(rounds["block", "slow"]) == len(rounds["rest", "quick"]) > LEAST
    assert len(rounds["block", "lost"]) == LEAST


def test_a_contender_whose_own_rounds_disagree_is_not_dropped():
    rounds, _ = run({"disturbed": Scripted(2.0, 9.0, 9.0, 0.5), "steady": Scripted(1.0)})
    assert judge(rounds).choice == "disturbed"
    far = Scripted(5.0, 9.0, 90.0, 0.5)
    run({"disturbed": far, "steady": Scripted(1.0), "equal": Scripted(1.0)})
    assert len(far.repeats) == 1 + LEAST


def test_rounds_go_on_while_two_are_close_until_the_budget_is_spent():
    rounds, _ = run({"a": Scripted(1.0), "b": Scripted(1.02)}, budget=20.0)
    assert len(rounds["a"]) == LEAST + 10
    assert judge(rounds) == ("b", False)
    rounds, _ = run({"a": Scripted(1.0), "b": Scripted(1.02)}, budget=0.0)
    assert len(rounds["a"]) == LEAST + MORE


def test_short_calls_are_repeated_within_one_reading():
    short, long = Scripted(SPAN / 50), Scripted(2 * SPAN)
    run({"short": short, "long": long}, budget=0.0)
    assert short.repeats == [1, 1, *[50] * LEAST]  # warm-up, an estimate, rounds
    assert long.repeats == [1] * (1 + LEAST)


def test_an_estimate_that_was_preempted_does_not_last():
    short = Scripted(2 * SPAN, SPAN / 50, first=SPAN)  # in the first round it takes a hundred times as long
    run({"short": short}, never, budget=SPAN)
    assert short.repeats[:3] == [1, 1, 1]
    assert set(short.repeats[3:]) == {50}


def test_one_that_raises_is_left_out_whatever_it_raises():
    class CompilationError(Exception):
        pass

    def breaks(repeats):
        raise CompilationError("at 1:2")

    rounds, failed = run({"broken": breaks, "works": Scripted(1.0)})
    assert list(rounds) == ["works"]
    assert isinstance(failed["broken"], CompilationError)
    rounds, failed = run({"broken": breaks}, never)
    assert (rounds, list(failed)) == ({}, ["broken"])


def test_a_key_pressed_is_not_a_failure():
    def interrupted(repeats):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run({"a": interrupted})


@pytest.fixture(autouse=True)
def few_rounds():
    """The numbers of rounds are the real ones here."""


@pytest.mark.parametrize(
    ("a", "b", "clear"),
    [
        ([1.0, 1.0, 1.0], [1.2, 1.2, 1.2], True),
        ([1.0, 1.0, 1.0], [1.04, 1.04, 1.04], False),
        ([1.2, 1.2, 1.2], [1.0, 1.0, 1.0], False),
        ([1.0, 3.0, 5.0], [1.2, 3.6, 6.0], True),  # the speed of the machine changes from round to round
        ([1.0, 9.0, 1.0], [1.2, 1.2, 1.2], True),  # preempted in one round
        ([0.5, 1.3, 1.3], [1.2, 1.2, 1.2], False),  # one lucky moment, slower else
        ([1.0, 1.0, 9.0, 9.0], [1.5, 1.5, 1.5], True),  # b was dropped after three rounds
    ],
)
def test_faster_by_more_than_noise(a, b, clear):
    assert clearly_faster(a, b) is clear


def test_the_default_is_the_last_that_is_as_fast_as_the_fastest():
    assert judge({"a": [1.0], "b": [1.03], "c": [1.2]}) == ("b", False)
    assert judge({"a": [1.03], "b": [1.0], "c": [1.2]}) == ("b", False)
    assert judge({"a": [1.0], "b": [1.2]}) == ("a", True)
    assert judge({"a": [1.0]}) == ("a", True)


def test_a_verdict_of_a_disturbed_machine_is_not_settled():
    assert judge({"a": [1.0, 4.0, 5.0], "b": [2.0, 8.0, 10.0]}) == ("a", False)
    assert judge({"a": [1.0, 1.0, 1.0], "b": [2.0, 8.0, 10.0]}) == ("a", False)  # b may be faster than its best round
    assert judge({"a": [1.0, 1.3, 5.0], "b": [2.0, 2.5, 10.0]}) == ("a", True)
    assert judge({"a": [1.0, 1.0, 1.0], "b": [5.0, 8.0, 10.0]}) == ("a", True)


def test_where_rounds_disagree_the_fastest_is_taken_if_the_default_is_far_behind():
    rounds = {"a": [0.5, 1.3, 1.3], "b": [1.2, 1.2, 1.2]}
    assert judge(rounds) == ("a", False)
