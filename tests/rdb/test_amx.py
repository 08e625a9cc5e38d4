"""What only amx has: its two builds, the processors that it is offered on, and values that are not finite.

Where the processor has no tiles, tests/native/tile_trap.c executes the instructions of the build that uses them.
"""

import ctypes
import errno
import math
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from runs import ROOT
from test_in_c import call
from test_rdb import SHAPES, check_32_steps, problem, solve

from rdn_fast import native
from rdn_fast.errors import UserError
from rdn_fast.rdb import IMPLS, able, amx, in_c, naive, refusal, select, winograd_chunks

CPU, BF16 = torch.device("cpu"), torch.bfloat16
PRODUCTS, LOADS = 0, 1  # of tile_trap.c
ROWS = (2, 20, 36, 2, 3, 32)  # rows of whole units, with channels that fill parts of tiles


@pytest.fixture
def plain(monkeypatch):
    """Use the build in plain C."""
    monkeypatch.setattr(amx.block, "kernels", in_c.Kernels(amx.SOURCE, amx.PLAIN))
    if reason := amx.missing():
        pytest.skip(f"amx {reason}")
    monkeypatch.setattr(amx.block, "scratch", in_c.Scratch())
    monkeypatch.setattr(amx.block, "chunks", winograd_chunks.Chunks())


@pytest.fixture(scope="module")
def compiler():
    """Return the compiler's command for the tile instructions, or skip the test."""
    if platform.machine() != "x86_64":
        pytest.skip(f"compiled on x86_64, not on {platform.machine()}")
    if (compiler := native.compiler()) is None:
        pytest.skip(native.NO_COMPILER)
    return [compiler, "-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fopenmp"]


@pytest.fixture(scope="module")
def tiles(compiler, tmp_path_factory):
    """Return the library of the build that uses tiles, on this processor or with the trap."""
    file = tmp_path_factory.mktemp("amx") / "amx.so"
    trap = ROOT / "tests" / "native" / "tile_trap.c"
    command = [*compiler, "-march=native", *amx.TILES, "-shared", "-fPIC", str(amx.SOURCE), str(trap), "-lm"]
    native.compile_whole(command, file)
    library = ctypes.CDLL(str(file))
    own = torch.cpu.get_capabilities().get("amx_bf16") and library.rdn_tiles() == 1
    library.trap_tiles(not own)
    yield SimpleNamespace(library=library, own=own)
    library.trap_tiles(0)


@pytest.mark.parametrize("flags", [["-march=sapphirerapids"], ["-march=sapphirerapids", amx.PLAIN], ["-march=x86-64"]])
def test_it_compiles_without_warnings(compiler, flags, tmp_path):
    native.compile_whole([*compiler, *flags, "-O1", "-c", str(amx.SOURCE)], tmp_path / "amx.o")


@pytest.mark.parametrize("shape", [*SHAPES[1:], ROWS], ids=str)
def test_both_builds_give_the_same_bits(plain, tiles, shape, seed):
    arguments, upstream = problem(shape, BF16, seed)
    expected = solve(amx.rdb, arguments, upstream)
    amx.block.kernels._library = tiles.library
    before = tiles.library.trapped(PRODUCTS)
    for name, result in solve(amx.rdb, arguments, upstream).items():
        assert torch.equal(result, expected[name]), f"{name} (seed {seed})"
    assert tiles.own or tiles.library.trapped(PRODUCTS) > before  # it was the other build


def test_a_block_takes_no_more_products_than_it_needs_and_few_loads(plain, tiles):
    """Where 32 divides all sizes: as many as there are, and with four sums at most one for a load."""
    if tiles.own:
        pytest.skip("counted by the trap only")
    amx.block.kernels._library = tiles.library
    batch, g0, g, layers, height, width = shape = (1, 64, 64, 2, 3, 32)
    before = [tiles.library.trapped(kind) for kind in (PRODUCTS, LOADS)]
    solve(amx.rdb, *problem(shape, BF16, 0))
    products, loads = (tiles.library.trapped(kind) - n for kind, n in zip((PRODUCTS, LOADS), before, strict=True))
    macs = sum(9 * g * (g0 + j * g) for j in range(layers)) + g0 * (g0 + layers * g)
    needed = 3 * macs * batch * height * width // (16 * 16 * 32)
    biases = (g0 + layers * g) // 16 * batch * height * width // 32
    assert products == needed + biases
    assert products > 0.85 * loads


def test_threads_configure_their_tiles_at_every_call_and_release_them(plain, tiles, seed):
    """Neither another library's configuration nor a thread that did not exist at the first call changes a result."""
    cases = [problem(shape, BF16, seed) for shape in (SHAPES[2], ROWS)]
    expected = [solve(amx.rdb, *case) for case in cases]
    amx.block.kernels._library = tiles.library

    def check(case, results) -> bool:
        for _ in range(2):
            for name, result in solve(amx.rdb, *case).items():
                assert torch.equal(result, results[name]), f"{name} (seed {seed})"
        return tiles.own or not tiles.library.configured()

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(check, cases, expected))
    assert check(cases[0], expected[0])


def test_32_steps_end_where_naive_ends(plain):
    check_32_steps("amx", BF16)


@pytest.mark.parametrize("shape", [SHAPES[2], ROWS], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_where_naive_has_it(plain, value, shape, seed):
    """A pixel reaches its neighbours, but no other channel, image or row by way of what fills up tiles."""
    arguments, upstream = problem(shape, BF16, seed)
    arguments["x"][0, 3, 1, 2] = value
    results = [solve(function, arguments, upstream) for function in (amx.rdb, naive.rdb)]
    own, plain = [{name: result.isnan() for name, result in found.items()} for found in results]
    assert own["y"].any()
    assert torch.equal(own["y"], plain["y"])
    if math.isnan(value):
        for name in own:
            assert own[name].any() == plain[name].any(), name


def test_a_processor_without_tiles_is_said_and_amx_is_not_offered(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False})
    monkeypatch.setattr(amx.block, "kernels", amx.TileKernels(amx.SOURCE, *amx.TILES))
    reason = r"needs a processor with AMX bf16 tiles \(Intel Xeon since 2023\)"
    with pytest.raises(UserError, match=f"^--rdb amx {reason}; on cpu in bfloat16 can run: .*naive"):
        select("amx", CPU, BF16, True)
    assert "amx" not in [impl.name for impl in able(CPU, BF16, True)]
    with pytest.raises(native.CannotBuild, match=f"^{reason}$"):
        call(amx.rdb, problem(SHAPES[0], BF16, 0)[0])


@pytest.mark.parametrize(
    ("granted", "reason"),
    [
        (1, None),
        (-errno.EINVAL, r"needs a kernel that grants AMX tiles \(Linux 5.16"),
        (-errno.EOPNOTSUPP, "needs AMX tiles that the kernel and, in a virtual machine, its host have switched on"),
        (-errno.ENOSPC, "needs alternate signal stacks with room for AMX tiles"),
        (-errno.EPERM, "may not use AMX tiles here: Operation not permitted"),
    ],
)
def test_a_kernel_that_refuses_tiles_is_said(monkeypatch, granted, reason):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(native, "library", lambda *_: SimpleNamespace(rdn_tiles=lambda: granted))
    monkeypatch.setattr(amx.block, "kernels", amx.TileKernels(amx.SOURCE, *amx.TILES))
    found = refusal(IMPLS["amx"], CPU, BF16, True)
    assert found is None if reason is None else re.match(reason, found)
    assert "float32" in refusal(IMPLS["amx"], CPU, torch.float32, True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("cc: error: unrecognized command-line option '-mamx-tile'", r"needs a compiler that knows AMX \(gcc 11"),
        ("/tmp/x.s:7: Error: no such instruction: `ldtilecfg 0(%rip)'", "could not be compiled: .* no such instruct"),
    ],
)
def test_a_compiler_or_an_assembler_without_tiles_is_said(monkeypatch, tmp_path, words, reason):
    script = tmp_path / "cc"
    script.write_text(f'#!/bin/sh\ncat >&2 <<"END"\n{words}\nEND\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(amx.block, "kernels", amx.TileKernels(amx.SOURCE, *amx.TILES))
    native.library.cache_clear()
    assert re.match(reason, amx.missing())


def test_a_processor_that_only_claims_tiles_is_refused_before_it_computes(tiles, monkeypatch):
    """Such is a virtual machine whose host has not switched them on: the kernel's own answer, not a SIGILL later."""
    if tiles.own:
        pytest.skip("this processor has tiles")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(amx.block, "kernels", amx.TileKernels(amx.SOURCE, *amx.TILES))
    assert amx.missing() in amx.REFUSALS.values()
