"""What only winograd has: work in chunks and crops, scratch memory, arguments that C would misread, a compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import torch
from test_rdb import SHAPES, block, in_float64, problem, solve

from bench.parity import assert_as_good_as_naive
from rdn_fast import native
from rdn_fast.rdb import naive, winograd, winograd_chunks

pytestmark = pytest.mark.skipif(winograd.missing() is not None, reason=f"winograd {winograd.missing()}")
SOURCE = Path(winograd.__file__).with_name("winograd.c")


def call(function, arguments):
    lists = [[t for name, t in arguments.items() if name.startswith(prefix)] for prefix in ("conv_w", "conv_b")]
    return function(arguments["x"], *lists, arguments["fuse_w"], arguments["fuse_b"])


def check(shape, seed):
    """Fail unless all results are as good as naive's on a random problem. Return its arguments and the results."""
    arguments, upstream = problem(shape, torch.float32, seed)
    oracle, plain = solve(block, *in_float64(arguments, upstream)), solve(naive.rdb, arguments, upstream)
    results = solve(winograd.rdb, arguments, upstream)
    for name, result in results.items():
        assert_as_good_as_naive(result, oracle[name], plain[name], torch.float32, f"{name}, seed {seed}")
    return arguments, results


def test_batches_in_several_chunks_are_as_good_as_naive(monkeypatch, seed):
    monkeypatch.setattr(winograd_chunks, "TILES", (12,))
    monkeypatch.setattr(winograd, "chunks", winograd_chunks.Chunks())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    arguments, results = check((5, 9, 8, 3, 6, 9), seed)  # six tiles an image: chunks of 2, 2 and 1 images
    with torch.no_grad():
        assert torch.equal(call(winograd.rdb, arguments), results["y"])


def test_images_in_crops_are_whole(monkeypatch, seed):
    monkeypatch.setattr(winograd, "_CROP", 7)
    arguments, _ = problem((2, 5, 6, 3, 23, 16), torch.float32, seed)
    with torch.no_grad():
        crops = call(winograd.rdb, arguments)
        monkeypatch.setattr(winograd, "_CROP", 64)
        whole = call(winograd.rdb, arguments)
    torch.testing.assert_close(crops, whole, rtol=1e-5, atol=1e-5)


def test_a_block_of_rdn_b_is_as_good_as_naive(seed):
    check((2, 64, 64, 8, 32, 32), seed)


@pytest.mark.parametrize("training", [False, True])
def test_arguments_may_be_views_with_gaps(training, seed):
    arguments, _ = problem(SHAPES[2], torch.float32, seed)
    gaps = {
        name: torch.stack([tensor, tensor.new_full((), 9).expand_as(tensor)], -1) for name, tensor in arguments.items()
    }
    views = {name: tensor[..., 0].requires_grad_(training) for name, tensor in gaps.items()}
    assert torch.equal(call(winograd.rdb, views), call(winograd.rdb, arguments))


@pytest.mark.parametrize("shape", [(5, 20, 18, 3, 30, 31), (7, 48, 48, 2, 9, 13), (9, 33, 5, 2, 1, 1)])
def test_results_depend_on_neither_threads_nor_chunks(monkeypatch, shape, seed):
    arguments, upstream = problem(shape, torch.float32, seed)
    before, results = torch.get_num_threads(), {}
    try:
        for threads, tiles in [(1, 1), (2, 1), (2, 24), (3, 48), (2, 10_000), (2, 10_000), (5, 64)]:
            torch.set_num_threads(threads)
            monkeypatch.setattr(winograd_chunks, "TILES", (tiles,))
            monkeypatch.setattr(winograd, "chunks", winograd_chunks.Chunks())
            for name, value in solve(winograd.rdb, arguments, upstream).items():
                assert torch.equal(value, results.setdefault(name, value)), f"{name} (seed {seed}, {threads}, {tiles})"
    finally:
        torch.set_num_threads(before)


def test_no_images_give_zero_gradients(seed):
    arguments, upstream = problem(SHAPES[2], torch.float32, seed)
    arguments["x"], upstream = arguments["x"][:0], upstream[:0]
    results = solve(winograd.rdb, arguments, upstream)
    assert results.pop("y").shape == upstream.shape
    for name, result in results.items():
        assert not result.any(), f"{name} (seed {seed})"


def test_weights_that_an_optimizer_changed_are_the_ones_used(seed):
    """torch's fused Adam changes weights without bumping their version counters, so those are no cache key."""
    arguments, _ = problem(SHAPES[2], torch.float32, seed)
    arguments = {name: t.requires_grad_() for name, t in arguments.items()}
    optimizer = torch.optim.Adam([t for name, t in arguments.items() if name != "x"], lr=0.1, fused=True)
    with torch.inference_mode():
        first = call(winograd.rdb, arguments)
    call(winograd.rdb, arguments).sum().backward()
    optimizer.step()
    with torch.inference_mode():
        second = call(winograd.rdb, arguments)
        assert not torch.allclose(first, second)
        torch.testing.assert_close(second, call(naive.rdb, arguments))


def test_scratch_memory_of_inference_mode_serves_everything_else(seed):
    winograd.scratch.clear()
    arguments, upstream = problem(SHAPES[2], torch.float32, seed)
    with torch.inference_mode():
        y = call(winograd.rdb, arguments)
    with torch.no_grad():
        torch.testing.assert_close(call(winograd.rdb, arguments), y)
    torch.testing.assert_close(solve(winograd.rdb, arguments, upstream)["y"], y)


def test_a_second_backward_uses_its_own_features(seed):
    """Interleave the passes of two blocks, which share scratch memory."""
    cases = [problem((2, 6, 5, 3, 9, 7), torch.float32, seed + i) for i in range(2)]
    alone = [solve(winograd.rdb, *case) for case in cases]
    leaves = [{name: t.clone().requires_grad_() for name, t in arguments.items()} for arguments, _ in cases]
    outputs = [call(winograd.rdb, leaf) for leaf in leaves]
    for i, (_, upstream) in enumerate(cases):
        outputs[i].backward(upstream)
    for single, leaf in zip(alone, leaves, strict=True):
        for name, t in leaf.items():
            assert torch.equal(single[f"gradient of {name}"], t.grad), f"{name} (seed {seed})"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Use an empty cache folder, and forget the loaded libraries."""
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def test_no_compiler_is_said(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(native.CannotBuild, match="needs a C compiler"):
        native.library(SOURCE)


def test_a_library_that_others_may_write_is_not_loaded(fresh):
    source = fresh / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    native.library(source)
    (built,) = fresh.glob("answer-*.so")
    source.with_name("other.c").write_text("int answer(void) { return 13; }\n")
    built.unlink()
    subprocess.run(["gcc", "-shared", "-fPIC", str(source.with_name("other.c")), "-o", str(built)], check=True)
    built.chmod(0o777)
    native.library.cache_clear()
    assert native.library(source).answer() == 42


def test_what_the_compiler_says_is_passed_on_and_nothing_is_left(fresh):
    source = fresh / "broken.c"
    source.write_text("int f(void) { return none; }\n")
    with pytest.raises(native.CannotBuild, match=r"could not be compiled: .*none.* undeclared"):
        native.library(source)
    assert list(fresh.iterdir()) == [source]


def test_a_library_is_built_once_and_again_when_its_source_changes(fresh):
    source = fresh / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    assert native.library(source).answer() == 42
    (built,) = fresh.glob("answer-*.so")
    stamp = built.stat().st_mtime_ns
    native.library.cache_clear()
    assert native.library(source).answer() == 42
    assert built.stat().st_mtime_ns == stamp
    source.write_text("int answer(void) { return 43; }\n")
    native.library.cache_clear()
    assert native.library(source).answer() == 43
    assert len(list(fresh.glob("answer-*.so"))) == 2


def test_a_damaged_library_is_built_anew(fresh):
    source = fresh / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    subprocess.run(
        [sys.executable, "-c", f"from rdn_fast import native; native.library(native.Path({str(source)!r}))"],
        check=True,
        env=_environment(fresh),
    )
    (built,) = (fresh / "rdn_fast").glob("answer-*.so")
    built.write_bytes(b"not a library")
    again = f"print(native.library(native.Path({str(source)!r})).answer())"
    done = subprocess.run(
        [sys.executable, "-c", f"from rdn_fast import native; {again}"],
        check=True,
        env=_environment(fresh),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "42\n"


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(runs.ROOT)}
