"""What the implementations in C share: chunks, crops, scratch memory, views as arguments."""

import random

import pytest
import torch
from test_rdb import SHAPES, _poisoned_memory, block, in_float64, problem, solve  # noqa: F401 (a fixture)

from bench.parity import assert_as_good_as_naive
from rdn_fast.rdb import amx, in_c, naive, winograd, winograd_chunks


@pytest.fixture(params=["winograd", "amx"])
def impl(request, monkeypatch):
    """Return each of them with scratch memory of its own; amx with tiles in plain C, which any processor computes."""
    block = {"winograd": winograd.block, "amx": amx.block}[request.param]
    if block is amx.block:
        monkeypatch.setattr(block, "kernels", in_c.Kernels(amx.SOURCE, amx.PLAIN))
    if reason := block.missing():
        pytest.skip(f"{request.param} {reason}")
    monkeypatch.setattr(block, "scratch", in_c.Scratch())
    monkeypatch.setattr(block, "chunks", winograd_chunks.Chunks())
    return block


def check(impl, shape, seed):
    """Fail unless all results are as good as naive's on a random problem. Return its arguments and the results."""
    arguments, upstream = problem(shape, impl.dtype, seed)
    oracle, plain = solve(block, *in_float64(arguments, upstream)), solve(naive.rdb, arguments, upstream)
    results = solve(impl.rdb, arguments, upstream)
    for name, result in results.items():
        assert result.dtype == impl.dtype, name
        assert_as_good_as_naive(result, oracle[name], plain[name], impl.dtype, f"{name}, shape {shape}, seed {seed}")
    return arguments, results


def call(function, arguments):
    lists = [[t for name, t in arguments.items() if name.startswith(prefix)] for prefix in ("conv_w", "conv_b")]
    return function(arguments["x"], *lists, arguments["fuse_w"], arguments["fuse_b"])


# Widths that are whole units of amx's 32 pixels and others; channels that fill 16, 32, parts of them, and more.
WIDE = (
    (2, 64, 64, 8, 32, 32),
    (1, 32, 48, 4, 40, 20),
    (3, 48, 48, 3, 17, 64),
    (2, 33, 65, 3, 6, 9),
    (1, 64, 32, 2, 33, 96),
)


@pytest.mark.parametrize("shape", [*SHAPES, *WIDE], ids=str)
def test_output_and_gradients_are_as_good_as_naives(impl, shape, seed):
    check(impl, shape, seed)


@pytest.mark.parametrize("number", [*range(5), *(pytest.param(i, marks=pytest.mark.slow) for i in range(5, 60))])
def test_random_shapes_are_as_good_as_naives(impl, number, seed):
    draw = random.Random(seed + number).randint
    shape = draw(1, 4), draw(16, 80), draw(16, 80), draw(1, 5), draw(3, 36), draw(3, 36)
    check(impl, shape, seed + number)


@pytest.mark.parametrize("training", [False, True])
def test_arguments_may_be_views_with_gaps(impl, training, seed):
    arguments, _ = problem(SHAPES[2], impl.dtype, seed)
    gaps = {
        name: torch.stack([tensor, tensor.new_full((), 9).expand_as(tensor)], -1) for name, tensor in arguments.items()
    }
    views = {name: tensor[..., 0].requires_grad_(training) for name, tensor in gaps.items()}
    assert torch.equal(call(impl.rdb, views), call(impl.rdb, arguments))


@pytest.mark.parametrize(
    "shape", [(5, 20, 18, 3, 30, 31), (7, 48, 48, 2, 9, 13), (3, 16, 20, 2, 9, 32), (9, 33, 5, 2, 1, 1)]
)
def test_results_depend_on_neither_threads_nor_chunks(impl, monkeypatch, shape, seed):
    arguments, upstream = problem(shape, impl.dtype, seed)
    before, results = torch.get_num_threads(), {}
    try:
        for threads, tiles in [(1, 1), (2, 1), (2, 24), (3, 48), (2, 10_000), (2, 10_000), (5, 64)]:
            torch.set_num_threads(threads)
            monkeypatch.setattr(impl, "group", tiles % 50)
            monkeypatch.setattr(winograd_chunks, "TILES", (tiles,))
            monkeypatch.setattr(impl, "chunks", winograd_chunks.Chunks())
            for name, value in solve(impl.rdb, arguments, upstream).items():
                assert torch.equal(value, results.setdefault(name, value)), f"{name} (seed {seed}, {threads}, {tiles})"
    finally:
        torch.set_num_threads(before)


def test_no_images_give_zero_gradients(impl, seed):
    arguments, upstream = problem(SHAPES[2], impl.dtype, seed)
    arguments["x"], upstream = arguments["x"][:0], upstream[:0]
    results = solve(impl.rdb, arguments, upstream)
    assert results.pop("y").shape == upstream.shape
    for name, result in results.items():
        assert not result.any(), f"{name} (seed {seed})"


def test_weights_that_an_optimizer_changed_are_the_ones_used(impl, seed):
    """torch's fused Adam changes weights without bumping their version counters, so those are no cache key."""
    arguments, _ = problem(SHAPES[2], impl.dtype, seed)
    arguments = {name: t.requires_grad_() for name, t in arguments.items()}
    optimizer = torch.optim.Adam([t for name, t in arguments.items() if name != "x"], lr=0.1, fused=True)
    with torch.inference_mode():
        first = call(impl.rdb, arguments)
    call(impl.rdb, arguments).sum().backward()
    optimizer.step()
    with torch.inference_mode():
        second = call(impl.rdb, arguments)
        assert not torch.allclose(first, second)
        assert torch.equal(second, call(impl.rdb, {name: t.clone() for name, t in arguments.items()}))


def test_scratch_memory_of_inference_mode_serves_everything_else(impl, seed):
    arguments, upstream = problem(SHAPES[2], impl.dtype, seed)
    with torch.inference_mode():
        y = call(impl.rdb, arguments)
    with torch.no_grad():
        assert torch.equal(call(impl.rdb, arguments), y)
    assert torch.equal(solve(impl.rdb, arguments, upstream)["y"], y)


def test_a_second_backward_uses_its_own_features(impl, seed):
    """Interleave the passes of two blocks, which share scratch memory."""
    cases = [problem((2, 6, 5, 3, 9, 7), impl.dtype, seed + i) for i in range(2)]
    alone = [solve(impl.rdb, *case) for case in cases]
    leaves = [{name: t.clone().requires_grad_() for name, t in arguments.items()} for arguments, _ in cases]
    outputs = [call(impl.rdb, leaf) for leaf in leaves]
    for i, (_, upstream) in enumerate(cases):
        outputs[i].backward(upstream)
    for single, leaf in zip(alone, leaves, strict=True):
        for name, t in leaf.items():
            assert torch.equal(single[f"gradient of {name}"], t.grad), f"{name} (seed {seed})"


def test_images_in_crops_are_whole(impl, monkeypatch, seed):
    monkeypatch.setattr(in_c, "CROP", 7)
    arguments, _ = problem((2, 5, 6, 3, 23, 16), impl.dtype, seed)
    with torch.no_grad():
        crops = call(impl.rdb, arguments)
        monkeypatch.setattr(in_c, "CROP", 64)
        whole = call(impl.rdb, arguments)
    torch.testing.assert_close(crops, whole, rtol=1e-5, atol=1e-5)


def test_batches_in_several_chunks_are_as_good_as_naive(impl, monkeypatch, seed):
    monkeypatch.setattr(winograd_chunks, "TILES", (12,))
    monkeypatch.setattr(impl, "chunks", winograd_chunks.Chunks())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    arguments, results = check(impl, (5, 9, 8, 3, 6, 9), seed)  # six tiles an image: chunks of 2, 2 and 1 images
    with torch.no_grad():
        assert torch.equal(call(impl.rdb, arguments), results["y"])
