"""torch.compile of naive: a graph for each shape that is trained, and one for all pictures."""

from functools import partial

import pytest
import torch
from test_rdb import problem, solve

from rdn_fast.rdb import compiled, naive

SHAPES = [(1, 6, 4, 2, 5 + i, 6 + 2 * i) for i in range(12)]  # more than the 8 graphs that torch makes by default


@pytest.fixture
def graphs(monkeypatch):
    """Let torch.compile keep PyTorch's operations; return the list of the graphs that it makes."""
    made = []

    def backend(graph, _):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "functions", {})
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


def test_no_shape_falls_back_to_eager(graphs, seed):
    for number, shape in enumerate(SHAPES, 1):
        arguments, upstream = problem(shape, torch.float32, seed)
        results = solve(compiled.rdb, arguments, upstream)
        assert len(graphs) == number
        for name, result in solve(naive.rdb, arguments, upstream).items():
            torch.testing.assert_close(results[name], result)


def test_one_graph_serves_all_pictures_also_after_training(graphs, seed):
    for shape in SHAPES:
        solve(compiled.rdb, *problem(shape, torch.float32, seed))
    with torch.no_grad():
        for shape in SHAPES:
            solve(compiled.rdb, *problem(shape, torch.float32, seed), trains=False)
    assert len(graphs) == len(SHAPES) + 1
