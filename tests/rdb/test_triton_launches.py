"""What triton_planes launches: how often, and that autograd takes its gradients as they are. No kernel runs here."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.precision import Precision
from rdn_fast.rdb import IMPLS, triton_planes
from rdn_fast.rdb.triton_tiles import FUSION_BLOCK, Block, order_of, pack, programs_of, split

pytest.importorskip("triton")

CPU, HALF = torch.device("cpu"), torch.float16
LAYERS = 8  # as rdn-b
FORWARD = ["to_planes", *["layer"] * LAYERS, "fusion"]
BACKWARD = ["to_planes", *["data_gradient"] * (LAYERS + 1), "weight_gradient", "reduce"]
BLOCKS = [Block(64, 64, 8), Block(20, 12, 2), Block(70, 37, 2), Block(48, 16, 3), Block(16, 64, 1)]


class Launches(TorchDispatchMode):
    """Names of what would be launched on a card: kernels of triton_planes and torch's operations, in order."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names: list[str] = []
        monkeypatch.setattr(triton_planes, "launch", lambda name, *_, **__: self.names.append(name))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not (function.is_view or "empty" in function.__name__):
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


def random_weights(block: Block) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return conv_w and fuse_w, float32, channels_last."""
    *conv_w, fuse_w = split(torch.randn(block.count), block)
    return conv_w, fuse_w


def leaves(block: Block) -> list[torch.Tensor]:
    """Return x in float16, conv_w, conv_b, fuse_w, fuse_b as parameters in float32, all channels_last."""
    conv_w, fuse_w = random_weights(block)
    biases = [torch.randn(block.g) for _ in conv_w]
    x = torch.randn(2, block.g0, 5, 6, dtype=HALF).contiguous(memory_format=torch.channels_last)
    return [t.clone().requires_grad_() for t in (x, *conv_w, *biases, fuse_w, torch.randn(block.g0))]


def test_a_block_of_rdn_b_is_22_launches(monkeypatch):
    block = BLOCKS[0]
    x, *weights, fuse_w, fuse_b = given = leaves(block)
    conv_w, conv_b = weights[:LAYERS], weights[LAYERS:]
    order_of(block, CPU)
    programs_of(block, *(triton_planes.configs.candidates["weight_gradient"][0][side] for side in "MN"), CPU)
    (packed,) = pack([(conv_w, fuse_w)], HALF)
    upstream = torch.randn_like(x)
    with Launches(monkeypatch) as forward:
        y = triton_planes.rdb(x, conv_w, conv_b, fuse_w, fuse_b, packed)
    with Launches(monkeypatch) as backward:
        y.backward(upstream)
    assert forward.names == FORWARD
    assert backward.names == BACKWARD
    assert len(FORWARD + BACKWARD) == 22
    storages = {leaf.grad.untyped_storage().data_ptr() for leaf in given[1:]}
    assert len(storages) == 1  # all are views of what `reduce` wrote: autograd copied none
    for leaf in given:
        assert (leaf.grad.dtype, leaf.grad.shape) == (leaf.dtype, leaf.shape)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_the_profiler_sees_no_others_on_a_card():
    given = [leaf.detach().to("cuda").requires_grad_() for leaf in leaves(BLOCKS[0])]
    x, *weights, fuse_w, fuse_b = given
    conv_w, conv_b = weights[:LAYERS], weights[LAYERS:]
    (packed,) = pack([(conv_w, fuse_w)], HALF)
    upstream = torch.randn_like(x)

    def step():
        for leaf in given:
            leaf.grad = None
        triton_planes.rdb(x, conv_w, conv_b, fuse_w, fuse_b, packed).backward(upstream)
        torch.cuda.synchronize()

    step()  # compiles, and chooses configurations
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        step()
    on_card = [event.name for event in seen.events() if event.device_type == DeviceType.CUDA]
    assert Counter(on_card) == Counter(FORWARD + BACKWARD)


@pytest.mark.parametrize("number", [1, 7])
def test_weights_of_all_blocks_are_packed_together(number, monkeypatch):
    """_foreach_copy_ is a launch for every 64 tensors or 20 million weights."""
    order_of(BLOCKS[1], CPU)
    blocks = [random_weights(BLOCKS[1]) for _ in range(number)]
    with Launches(monkeypatch) as packing:
        pack(blocks, HALF)
    assert packing.names == ["zero_.default", "_foreach_copy_.default", "index_select.default"]


@pytest.fixture
def model(monkeypatch):
    """A model that triton_planes computes on the CPU: what is launched is counted, and nothing computed."""
    monkeypatch.setitem(IMPLS, "triton_planes", replace(IMPLS["triton_planes"], devices=("cpu",)))
    made = RDN(ModelConfig(num_features=16, growth_rate=16, num_blocks=3, num_layers=2), "triton_planes")
    Precision("O1", HALF, torch.float32).apply(made)
    return made.to(memory_format=torch.channels_last)


def test_a_training_step_packs_once(model, monkeypatch):
    with Launches(monkeypatch) as step:
        model(torch.rand(1, 3, 6, 6)).sum().backward()
    assert step.names.count("_foreach_copy_.default") == 1
    assert step.names.count("reduce") == 3
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_where_weights_cannot_change_only_the_first_picture_packs(model, monkeypatch):
    twin, packed = model.frozen(), []
    for _ in range(2):
        with torch.inference_mode(), Launches(monkeypatch) as picture:
            twin(torch.rand(1, 3, 6, 6))
        assert picture.names.count("fusion") == 3
        packed.append(picture.names.count("_foreach_copy_.default"))
    assert packed == [3, 0]


def test_no_image_launches_no_kernel(monkeypatch):
    x, conv_w, conv_b, fuse_w, fuse_b = given = leaves(BLOCKS[4])
    with Launches(monkeypatch) as launched:
        y = triton_planes.rdb(x[:0], [conv_w], [conv_b], fuse_w, fuse_b)
        y.sum().backward()
    assert (y.shape, y.dtype) == ((0, *x.shape[1:]), HALF)
    assert not set(launched.names) & set(FORWARD + BACKWARD)
    assert all(leaf.grad.count_nonzero() == 0 for leaf in given)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_tiles_hold_each_weight_once_and_zeros(block):
    blocks = [random_weights(block) for _ in range(2)]
    tiles = pack(blocks, torch.float32)
    assert tiles.shape == (2, block.first_tile(block.layers + 1), block.k, block.k)
    _, place = order_of(block, CPU)
    for own, (conv_w, fuse_w) in zip(tiles, blocks, strict=True):
        found = split(own.flatten()[place], block)
        assert all(map(torch.equal, found, [*conv_w, fuse_w]))
        assert int((own != 0).sum()) == sum(int((w != 0).sum()) for w in (*conv_w, fuse_w))
        i, s, tap = block.layers - 1, block.inputs + block.layers - 2, 5  # the last layer's last plane
        if block.layers > 1:
            tile, w = own[block.first_tile(i) + s * 9 + tap], conv_w[i]
            assert torch.equal(tile[: block.g, : block.g], w[:, -block.g :, tap // 3, tap % 3])
        assert torch.equal(own[block.first_tile(block.layers)][: min(block.g0, block.k), 0], fuse_w[: block.k, 0, 0, 0])


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize(("m", "n"), [(128, 256), (64, 256)])
def test_programs_of_the_weight_gradient_cover_every_tile_once(m, n, block):
    programs, of_layers = programs_of(block, m, n, CPU)
    found = []
    for number, (row, column) in enumerate(programs.tolist()):
        height, width = (m, n) if number < of_layers else FUSION_BLOCK
        for i in range(row * height // block.k, (row + 1) * height // block.k):
            for j in range(column * width // block.k, (column + 1) * width // block.k):
                found.append((number < of_layers, i, j))
    reads = [block.inputs + block.layers - 1 - row for row in range(block.layers)]
    needed = [(True, row, pair) for row, planes in enumerate(reads) for pair in range(planes * 9)]
    needed += [(False, row, s) for row in range(block.inputs) for s in range(block.inputs + block.layers)]
    assert len(set(found)) == len(found)
    assert set(needed) <= set(found)


def test_nine_tenths_of_the_products_for_rdn_bs_fusion_are_used():
    block = BLOCKS[0]
    programs, of_layers = programs_of(block, 128, 256, CPU)
    products = (len(programs) - of_layers) * FUSION_BLOCK[0] * FUSION_BLOCK[1]
    assert block.inputs * (block.inputs + block.layers) * block.k**2 / products == pytest.approx(0.9)
