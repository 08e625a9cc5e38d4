"""A gate that is missed at first is judged by the rounds of two visits together."""

import time

import pytest
import torch

from bench import cases, results, run
from bench.case import Case, Comparison, Contender, Entry, Gate


@pytest.mark.parametrize(("later", "code", "word"), [(0.005, 0, "held"), (0.02, 1, "MISSED")])
def test_a_missed_gate_is_visited_once_more(out, monkeypatch, capsys, later, code, word):
    visits = []

    def visit(bench, _) -> None:
        visits.append(0)
        seconds = {"reference": 0.02, "rdn_fast": 0.02 if len(visits) == 1 else later}
        entries = [
            Entry(name, torch.float32, lambda name=name: Contender(lambda: time.sleep(seconds[name])))
            for name in seconds
        ]
        bench.compare(Comparison("nap", 1, "long", entries, images=1), rounds=2, span=0.001)

    gate = Gate("nap / reference", "nap", "vs_reference", 1.5, dtype="float32", shape="")
    case = Case(order=1, rows=("nap",), commands=("all",), run=visit, gates=(gate,))
    monkeypatch.setattr(cases, "load", lambda: {"nap": case})
    assert run.main(["nap", "--device", "cpu"]) == code
    assert len(visits) == 2
    printed = capsys.readouterr().out
    assert "once more, because a gate was missed" in printed
    assert f"\n  {word}" in printed
    (rows,) = results.read_all(out)
    mine = [row for row in rows if row.case == "nap"]
    assert [row.recipe for row in mine] == ["reference", "rdn_fast"]
    assert all(row.rounds == 2 and row.rounds_run >= 4 for row in mine)


def test_a_gate_that_holds_is_not_visited_again(out, monkeypatch):
    visits = []
    case = Case(
        order=1,
        rows=("nap",),
        commands=("all",),
        run=lambda bench, _: visits.append(bench.row("nap", "rdn_fast", torch.float32, 1, "long", gain_db=2.0)),
        gates=(Gate("gain", "nap", "gain_db", 1.5, dtype="float32", shape=""),),
    )
    monkeypatch.setattr(cases, "load", lambda: {"nap": case})
    assert run.main(["nap", "--device", "cpu"]) == 0
    assert len(visits) == 1
