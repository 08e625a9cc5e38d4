"""The emulator of compiled Ascend kernels: what it computes, and that it notices what is wrong in a module."""

import re
from functools import cache

import pytest
import torch

from profiling import hivm
from profiling.hivm_library import View, function
from profiling.hivm_machine import Machine
from profiling.hivm_order import Order, Race, Traffic
from rdn_fast.rdb import npu_conv_kernels

needs_package = pytest.mark.skipif(
    hivm.package() is None, reason="needs Ascend's compiler: make setup-ascend (Python 3.11, x86-64 Linux)"
)
K, WIDTH, ROWS, HEIGHT, BATCH, SOURCES = 16, 16, 3, 7, 2, 3


@cache
def compiled(kind: str) -> str:
    return hivm.compile_module(npu_conv_kernels.sums(kind, K, WIDTH, ROWS, torch.float16))


def run(module: str, cut: int = 0, programs: int = 2, in_place: bool = False):
    """Compute the plane of a gradient by the module. Return it, and what it should be in float64, [B, K, H, W].

    cut: elements that the planes' memory ends too early. in_place: write the plane over the first source.
    """
    generator = torch.Generator().manual_seed(0)

    def images(planes):
        lines = planes[:, 2 * WIDTH : 2 * WIDTH + BATCH * (HEIGHT + 1) * WIDTH]
        return lines.view(-1, BATCH, HEIGHT + 1, WIDTH, K)[:, :, :HEIGHT]

    def planes(count):
        x = torch.zeros(count, (4 + BATCH * (HEIGHT + 1)) * WIDTH, K, dtype=torch.float16)
        images(x).copy_(torch.randn(count, BATCH, HEIGHT, WIDTH, K, generator=generator))
        return x

    sources, term, gate, y = planes(SOURCES), planes(1), planes(1), planes(1)
    weights = (torch.randn(SOURCES, 3, 3, K, K, generator=generator) / 20).half()
    tiles = -(-HEIGHT // ROWS)
    given = sources if not cut else sources.flatten()[:-cut].clone()
    sizes = (SOURCES, BATCH * tiles, BATCH * tiles, tiles, HEIGHT, sources[0].numel(), weights.numel())
    y = given[:1] if in_place else y
    Machine(module).run([given, weights, term, gate, y, *sizes], programs)
    x = images(sources).permute(1, 0, 4, 2, 3).flatten(1, 2).double()
    sums = torch.nn.functional.conv2d(x, weights.permute(3, 0, 4, 1, 2).flatten(1, 2).double(), padding=1)
    term, gate, y = (images(plane)[0].permute(0, 3, 1, 2).double() for plane in (term, gate, y))
    return y, torch.where(gate > 0, sums + term, 0)


def is_right(y, expected) -> bool:
    return bool(((y - expected).abs() <= 2**-11 * expected.abs().clamp(min=1)).all())  # one rounding to float16


@needs_package
def test_a_compiled_kernel_gives_float64s_numbers_but_for_the_last_rounding():
    assert is_right(*run(compiled("gradient")))


def without(module: str, pattern: str) -> str:
    lines = module.splitlines()
    kept = [line for line in lines if not re.search(pattern, line)]
    assert len(kept) < len(lines)
    return "\n".join(kept)


@needs_package
@pytest.mark.parametrize("pair", ["MTE2 MTE1", "MTE1 MTE2", "M FIX", "FIX M", "MTE2 V", "V MTE2", "V MTE3", "MTE3 V"])
def test_the_loss_of_a_kind_of_flag_is_noticed(pair):
    source, to = pair.split()
    with pytest.raises(Race, match="in no order"):
        run(without(compiled("gradient"), rf"_flag\[<PIPE_{source}>, <PIPE_{to}>"))


@needs_package
@pytest.mark.parametrize(
    ("lost", "noticed"),
    [
        (r"pipe_barrier\[<PIPE_V>", "vector 0 V and vector 0 V touch ub .* in no order"),
        (r"wait_flag\[<PIPE_M>, <PIPE_FIX>", "in no order"),
        (r"set_flag\[<PIPE_M>, <PIPE_FIX>", "cube FIX waits for flag EVENT_ID0 of cube M, which nobody set"),
        (r"sync_block_set\[<CUBE>", "deadlock"),
        (r"sync_block_set\[<VECTOR>", "deadlock"),
        (r"sync_block_wait\[<CUBE>", "touch workspace .* in no order"),
        (r"sync_block_wait\[<VECTOR>", "touch workspace .* in no order"),
    ],
)
def test_the_loss_of_one_side_is_noticed(lost, noticed):
    with pytest.raises(Race, match=noticed):
        run(without(compiled("gradient"), lost))


@needs_package
def test_a_buffer_at_a_wrong_address_is_noticed():
    module = compiled("gradient")
    addresses = {int(n) for n in re.findall(r"pointer_cast\(%c(\d+)_i64\) : memref<.*<cbuf>", module)}
    second = sorted(addresses)[1]
    wrong = module.replace(f"arith.constant {second} : i64", f"arith.constant {second - 512} : i64")
    assert wrong != module
    assert not is_right(*run(wrong, programs=1))  # one load overwrites the other's end


@needs_package
def test_a_wrong_address_in_global_memory_is_noticed():
    module = compiled("gradient")
    head = f"+ {npu_conv_kernels.HEAD * WIDTH * K})>"
    assert head in module
    assert not is_right(*run(module.replace(head, f"+ {npu_conv_kernels.HEAD * WIDTH * K + K})>")))
    with pytest.raises(IndexError, match="in global memory"):
        run(module, cut=3 * WIDTH * K)


@needs_package
def test_programs_that_read_what_others_write_are_noticed():
    with pytest.raises(Race, match=r"program 1 or 0 reads what the other writes"):
        run(compiled("gradient"), in_place=True)


@needs_package
def test_what_the_library_lacks_is_told():
    module = compiled("gradient")
    assert hivm.missing_functions(module) == []
    assert hivm.missing_functions(module.replace("@nd2nz_half", "@nd2nz_third")) == ["nd2nz_third"]


@needs_package
def test_text_that_does_not_compile_is_told_in_the_compilers_words():
    with pytest.raises(ValueError, match="error: use of undeclared SSA value name"):
        hivm.compile_module(npu_conv_kernels.sums("layer", K, WIDTH, ROWS, torch.float16).replace("%tile", "%file", 1))


def view(size: int, kind: str = "f32", offset: int = 0) -> View:
    return View(torch.zeros(64, dtype=torch.uint8), "ub", kind, offset, [size], [1])


def test_two_pipes_on_the_same_bytes_need_a_flag():
    order, x = Order(), view(4)
    order.touch("MTE2", [(x, True)])
    order.touch("V", [(view(4, offset=4), True)])  # other bytes
    with pytest.raises(Race):
        order.touch("V", [(x, False)])
    order.set("MTE2", "V", "EVENT_ID0")
    order.wait("MTE2", "V", "EVENT_ID0")
    order.touch("V", [(x, False)])
    assert not order.left()


def test_flags_hand_on_what_their_sender_has_waited_for():
    order, x = Order(), view(4)
    order.touch("MTE2", [(x, True)])
    for source, to in (("MTE2", "V"), ("V", "MTE3")):
        order.set(source, to, "EVENT_ID1")
        order.wait(source, to, "EVENT_ID1")
    order.touch("MTE3", [(x, False)])


def test_the_vector_pipe_needs_a_barrier_before_it_uses_its_own_results():
    order, x, pipe = Order(), view(4), "vector 0 V"
    order.touch(pipe, [(x, True)])
    with pytest.raises(Race):
        order.touch(pipe, [(x, False)])
    order.follow(pipe, order.done(pipe))
    order.touch(pipe, [(x, False)])


def test_programs_of_a_launch_do_not_read_what_others_write():
    memory, traffic = torch.zeros(64, dtype=torch.uint8), Traffic()
    first, second, both = (View(memory, None, "f32", offset, [size], [1]) for offset, size in ((0, 8), (8, 8), (4, 8)))
    traffic.touch(0, [(first, False), (second, True)])
    assert traffic.touch(1, [(first, False)]) == []  # two may read
    ((now, before),) = traffic.touch(1, [(second, True)])  # two may write: the machine compares what they write
    assert now.equal(before)
    assert len(now) == 32
    with pytest.raises(Race, match=r"program 2 or . reads what the other writes"):
        traffic.touch(2, [(second, False)])
    with pytest.raises(Race, match=r"program 3 or . reads what the other writes"):
        traffic.touch(3, [(both, True)])


def test_bits_lie_in_bytes():
    mask = View(torch.zeros(4, dtype=torch.uint8), "ub", "i1", 8, [11], [1])
    bits = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    mask.write(bits)
    assert mask.buffer.tolist() == [0, 0b1101, 0b110, 0]
    assert mask.read().equal(bits)


def test_outside_of_a_buffer_is_an_error():
    assert view(16).span() == (0, 64)
    with pytest.raises(IndexError):
        view(16, offset=1).read()


def test_the_macro_of_a_product_ignores_strides():
    """As in the library's bitcode: a slice of a tile in L1 would be read at the wrong place."""
    buffer = torch.zeros(4096, dtype=torch.uint8)
    whole = View(buffer, "cbuf", "f16", 0, [2, 2, 16, 16], [512, 256, 16, 1])
    whole.write(torch.arange(1024.0).view(2, 2, 16, 16) % 7)
    eye = View(torch.zeros(2048, dtype=torch.uint8), "cbuf", "f16", 0, [2, 2, 16, 16], [512, 256, 16, 1])
    out = View(torch.zeros(4096, dtype=torch.uint8), "cc", "f32", 0, [2, 1, 16, 16], [256, 256, 16, 1])
    eye.write(torch.eye(32).view(2, 16, 2, 16).permute(2, 0, 1, 3))
    first_rows = whole.reshaped([2, 1, 16, 16], [512, 256, 16, 1])
    function("mma_tile_half_to_float").run("mma_tile_half_to_float", first_rows, eye, 1, 16, 32, 32, out)
    assert out.read()[0].equal(whole.read()[0, :1].float())
    assert not out.read()[1].equal(whole.read()[1, :1].float())


def test_a_function_without_a_model_is_told():
    with pytest.raises(LookupError, match="vtan_1d_float"):
        function("vtan_1d_float")
