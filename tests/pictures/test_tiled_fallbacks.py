"""Bounded device memory, smaller tiles when it runs out, and low precision where it pays and does not overflow."""

import threading
import time
import weakref

import numpy as np
import pytest
import torch
from runs import photograph
from simulated import SimulatedSideStream
from tiny_models import MODELS, SMALL, Watched, levels, model, rounded, whole
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from waiting import PATIENCE

from rdn_fast import auto_level, devices
from rdn_fast.config import ModelConfig
from rdn_fast.data.pairs import degrade
from rdn_fast.errors import UserError
from rdn_fast.evaluation.metrics import psnr_y
from rdn_fast.model import RDN
from rdn_fast.pictures import tiled
from rdn_fast.pictures.precisions import BF16
from rdn_fast.pictures.tile_grid import SMALLEST
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.weights.convert import load_model

CPU = torch.device("cpu")


class LiveBytes(TorchDispatchMode):
    """Records the peak of the bytes of all tensors that are alive and were made while it is active."""

    def __init__(self):
        super().__init__()
        self.peak, self._now, self._known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self._now += (size := storage.nbytes())
                weakref.finalize(storage, self._freed, size)
                self.peak = max(self.peak, self._now)
        return result

    def _freed(self, size: int) -> None:
        self._now -= size


def peak(run) -> int:
    with LiveBytes() as live:
        run()
    return live.peak


def test_device_memory_does_not_grow_with_the_picture():
    made = model()
    upscaler = Upscaler(made, 24, 4)
    one = peak(lambda: upscaler(photograph(32, 32)))
    watched = Watched(made)
    assert peak(lambda: upscaler(photograph(120, 90))) <= one
    assert max(h * w for _, _, h, w in watched.shapes) <= 32 * 32
    assert peak(lambda: Upscaler(made, 0)(photograph(120, 90))) > 8 * one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rdb", ["naive", "sliced"])
@pytest.mark.parametrize(
    "options",
    [
        {"scale": 2},
        {"scale": 4},
        {"scale": 8},
        {"scale": 2, "num_blocks": 8, "num_features": 16},
        {"scale": 3, "num_layers": 8},
        {"scale": 2, "tail": "espcn"},
        {"scale": 8, "tail": "espcn"},
    ],
)
def test_bytes_per_pixel_are_enough_and_not_far_too_many(options, rdb, dtype):
    made = model(rdb=rdb, **options).to(memory_format=torch.channels_last)
    made.compute_dtype, made.output_dtype = dtype, torch.float32
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        measured = peak(lambda: made(x)) - sum(2 * parameter.numel() for parameter in made.parameters())
    estimate = made.bytes_per_pixel(dtype) * 64 * 64
    assert measured <= estimate <= 3 * measured


@pytest.mark.parametrize(
    ("host", "pad", "gigabytes", "window"),
    [(True, 10, 8, 212), (True, "exact", 64, 798), (False, 10, 64, 1044), (False, "exact", 64, 1290)],
)
def test_default_tile_suits_the_device_and_the_pad(monkeypatch, host, pad, gigabytes, window):
    monkeypatch.setattr(devices, "is_host", lambda device: host)
    made = RDN(ModelConfig()).to("meta")
    free = gigabytes * 10**9
    monkeypatch.setattr(devices, "free_memory", lambda device: free)
    monkeypatch.setattr(devices, "side_stream", lambda device: None)

    def windows() -> int:
        upscaler = Upscaler(made, tile_pad=pad, fp32=True)
        return (upscaler.grid.tile or upscaler.grid.tile_of_larger) + 2 * upscaler.grid.pad

    assert windows() == window
    free //= 50
    smaller = windows()
    assert smaller < window
    if pad == "exact":
        assert smaller == SMALLEST + 2 * made.receptive_radius
    else:
        assert smaller**2 * made.bytes_per_pixel(torch.float32) <= free // 2


@pytest.fixture
def accelerator(monkeypatch):
    """Make Upscaler group windows into batches, as on an accelerator."""
    monkeypatch.setattr(devices, "is_host", lambda device: False)


@pytest.mark.usefixtures("accelerator")
def test_equal_windows_go_in_even_batches(monkeypatch):
    monkeypatch.setattr(tiled, "_TILE", 36)
    made, image = model(), photograph(100, 90)
    expected = Upscaler(made, 16, "exact").exactly(image)
    watched = Watched(made)
    result = Upscaler(made, 16, 2).exactly(image)
    counts = [shape[0] for shape in watched.shapes]
    assert sum(counts) == 6 * 6
    assert len({shape[2:] for shape in watched.shapes}) == 1
    assert len(counts) > 1
    assert max(counts) - min(counts) <= 1
    assert max(counts) > 2
    assert result.shape == expected.shape
    assert np.abs(Upscaler(made, 16, "exact").exactly(image) - expected).max() <= 255 * SMALL


def test_exact_without_tiles_is_in_tiles_where_the_whole_does_not_fit(monkeypatch):
    made, image = model(), photograph(90, 70)
    watched = Watched(made)
    expected = Upscaler(made, 0, "exact").exactly(image)
    assert watched.shapes[-1][2:] == (90, 70)
    free = 2 * 60 * 60 * made.bytes_per_pixel(torch.float32)
    monkeypatch.setattr(devices, "free_memory", lambda device: free)
    result = Upscaler(made, 0, "exact").exactly(image)
    assert watched.shapes[-1][2] * watched.shapes[-1][3] <= 60 * 60
    assert np.abs(result - expected).max() <= 255 * SMALL
    Upscaler(made, 0, 10).exactly(image)
    assert watched.shapes[-1][2:] == (90, 70)  # as asked: the result would be another


# ---- out of memory ----


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("NPU out of memory. Tried to allocate 260.00 MiB (NPU 0; 28.50 GiB total capacity)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. "
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
    ],
    ids=lambda error: str(error)[:3],
)
def test_out_of_memory_means_smaller_tiles_from_then_on(error):
    made, image = model(), photograph(90, 70)
    lines = []
    watched = Watched(made, lambda shape: shape[2] * shape[3] > 45 * 45, error)
    upscaler = Upscaler(made, 64, "exact", say=lines.append)
    first = upscaler(image)
    assert levels(first, rounded(whole(MODELS[2], image))) <= 1
    assert lines == ["out of memory: from now on tiles of 32 LR pixels at most, and fewer at a time"]
    watched._refuse = lambda shape: pytest.fail(f"it tries {shape}") if shape[2] * shape[3] > 45 * 45 else False
    assert levels(upscaler(image), first) <= 1
    assert len(lines) == 1


def test_stored_windows_are_not_computed_again():
    made, image = model(), photograph(120, 50)
    watched = Watched(made, lambda shape: len(watched.shapes) == 2 and shape[2] > 40)
    result = Upscaler(made, 32, "exact", say=lambda line: None)(image)
    assert levels(result, rounded(whole(MODELS[2], image))) <= 1
    assert [shape[2] > 40 for shape in watched.shapes[:3]] == [
        True,
        True,
        False,
    ]  # half of the picture, and then tiles of half the edge
    small = len(watched.shapes) - 2
    Upscaler(made, 16, "exact")(image)
    assert 2 < small < 0.7 * (len(watched.shapes) - 2 - small)


def test_too_little_memory_for_the_smallest_tile_raises():
    made = model()
    Watched(made, lambda shape: True)
    lines = []
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate some"):
        Upscaler(made, say=lines.append)(photograph(100, 90))
    assert lines == []


def test_other_errors_are_not_taken_for_out_of_memory():
    made = model()
    made.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        Upscaler(made)(photograph(30, 30))


@pytest.mark.usefixtures("accelerator")
def test_fewer_windows_at_a_time_come_before_smaller_ones():
    made, image = model(), photograph(100, 90)
    lines = []
    watched = Watched(made, lambda shape: shape[0] > 5)
    result = Upscaler(made, 16, "exact", say=lines.append)(image)
    assert levels(result, rounded(whole(MODELS[2], image))) <= 1
    assert 3 <= max(shape[0] for shape in watched.shapes) <= 5
    assert len({shape[2:] for shape in watched.shapes}) == 1
    assert len(lines) == 1


# ---- precision ----


@pytest.fixture
def fp16(monkeypatch):
    """A device that is faster in fp16."""
    monkeypatch.setattr(devices, "low_precision", lambda device: torch.float16)


def overflowing() -> RDN:
    """Its results are a picture's, but features on the way are beyond what fp16 holds."""
    made = model()
    with torch.no_grad():
        made.sfe1.weight.mul_(1e6)
        made.gff[1].weight.mul_(0)
        made.output.weight.mul_(1e-6)
    return made


@pytest.mark.usefixtures("fp16")
def test_fp16_where_it_pays_with_the_last_convolution_in_float32():
    made, image = model(), photograph(40, 30)
    watched = Watched(made)
    upscaler = Upscaler(made, 16)
    low, high = upscaler.exactly(image), Upscaler(made, 16, fp32=True).exactly(image)
    half = len(watched.dtypes) // 2
    assert set(watched.dtypes[:half]) == {(torch.float16, torch.float32)}
    assert set(watched.dtypes[half:]) == {(torch.float32, torch.float32)}
    assert 0 < np.abs(low - high).max() < 2
    assert (made.compute_dtype, made.output_dtype) == (None, None)
    assert (upscaler.exactly(image) == low).all()  # another Upscaler of the model has changed nothing


@pytest.mark.usefixtures("fp16")
def test_upscalers_of_one_model_in_two_threads_keep_their_precisions():
    made, image = model(), photograph(40, 40)
    upscalers = {torch.float16: Upscaler(made, 16), torch.float32: Upscaler(made, 16, fp32=True)}
    expected = {dtype: upscaler.exactly(image) for dtype, upscaler in upscalers.items()}
    seen = {dtype: set() for dtype in upscalers}

    def hear(module, _) -> None:
        time.sleep(0.002)  # the other thread would set its precision now
        seen[wanted.dtype].add(module.compute_dtype)

    def compute(dtype) -> None:
        wanted.dtype = dtype
        results[dtype] = upscalers[dtype].exactly(image)

    wanted, results = threading.local(), {}
    made.register_forward_pre_hook(hear)
    threads = [threading.Thread(target=compute, args=(dtype,)) for dtype in upscalers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for dtype, result in expected.items():
        assert seen[dtype] == {dtype}
        np.testing.assert_array_equal(results[dtype], result)
    assert (made.compute_dtype, made.output_dtype) == (None, None)


@pytest.mark.usefixtures("fp16")
def test_16_bit_pictures_are_computed_in_float32():
    made, image = model(), photograph(30, 20)
    upscaler, watched = Upscaler(made), Watched(made)
    for picture in (image.astype(np.uint16) * 257, image):
        upscaler(picture)
    assert watched.dtypes == [(torch.float32, torch.float32), (torch.float16, torch.float32)]


@pytest.mark.parametrize(("level", "dtype"), [("O0", torch.float32), ("O1", torch.bfloat16)])
def test_a_cpu_computes_in_bf16_where_that_was_found_faster(monkeypatch, level, dtype):
    asked = []
    monkeypatch.setattr(auto_level, "auto_level", lambda *arguments: asked.append(arguments) or level)
    made, image = model(), photograph(40, 30)
    watched = Watched(made)
    low, high = (Upscaler(made, 16, fp32=fp32)(image) for fp32 in (False, True))
    half = len(watched.dtypes) // 2
    assert set(watched.dtypes[:half]) == {(dtype, torch.float32)}
    assert set(watched.dtypes[half:]) == {(torch.float32, torch.float32)}
    assert levels(low, high) <= 3
    ((case, other, rdb),) = asked  # not for fp32
    assert (case.dtype, case.training, case.batch, other, rdb) == (torch.float32, False, 1, BF16, made.rdb)
    assert made.outer_dtype is None


def test_bf16_costs_the_shipped_model_less_than_0_005_db(monkeypatch):
    monkeypatch.setattr(auto_level, "auto_level", lambda *_: "O1")
    made, lost = load_model(None, "cpu"), []
    for seed in range(24):
        pair = degrade("photograph", photograph(96, 80, seed=seed), 2)
        low, high = (Upscaler(made, fp32=fp32).exactly(pair.lr) for fp32 in (False, True))
        assert 0 < np.abs(low - high).max() < 0.7  # with the first convolution in bf16, too: 1.1, and 0.1 dB lost
        lost.append(psnr_y(high, pair.hr, 2) - psnr_y(low, pair.hr, 2))
    assert np.mean(lost) < 0.005  # of so many: single ones gain or lose up to 0.02


def test_bf16_that_overflows_is_computed_again(monkeypatch):
    monkeypatch.setattr(auto_level, "auto_level", lambda *_: "O1")
    made, image, lines = model(), photograph(20, 20), []
    block = type(made.rdbs[0]).forward

    def overflows(self, *arguments):
        y = block(self, *arguments)
        return y * float("inf") if y.dtype == torch.bfloat16 else y

    monkeypatch.setattr(type(made.rdbs[0]), "forward", overflows)
    result = Upscaler(made, say=lines.append)(image)
    assert levels(result, Upscaler(made, fp32=True)(image)) == 0
    assert lines == ["bf16 overflowed: computing in float32 from now on"]


@pytest.mark.usefixtures("fp16")
@pytest.mark.parametrize("lane", [False, True])
def test_what_overflows_in_fp16_is_computed_in_float32_from_then_on(monkeypatch, lane):
    if lane:
        monkeypatch.setattr(devices, "side_stream", lambda device: SimulatedSideStream(eager=False))
    made, image = overflowing(), photograph(40, 30)
    expected = Upscaler(made, 16, fp32=True)(image)
    assert 20 < expected.mean() < 235
    watched = Watched(made)
    lines = []
    upscaler = Upscaler(made, 16, say=lines.append)
    assert levels(upscaler(image), expected) == 0
    assert lines == ["fp16 overflowed: computing in float32 from now on"]
    in_fp16 = [compute for compute, _ in watched.dtypes].count(torch.float16)
    assert in_fp16 == (2 if lane else 1)
    assert levels(upscaler(image), expected) == 0
    assert len(lines) == 1
    assert [compute for compute, _ in watched.dtypes].count(torch.float16) == in_fp16


@pytest.mark.usefixtures("fp16")
@pytest.mark.parametrize("overflows_in", [{0}, {1}, {0, 1}, {2}])
def test_pictures_stay_in_order_where_one_overflows(monkeypatch, overflows_in):
    """The next picture is computed before the one that overflowed is computed again."""
    monkeypatch.setattr(devices, "side_stream", lambda device: SimulatedSideStream(eager=False))
    made, images = model(), [photograph(20 + i, 20) for i in range(3)]
    heights = {len(images[i]) for i in overflows_in}
    block = type(made.rdbs[0]).forward

    def overflows(self, *arguments):
        y = block(self, *arguments)
        return y * float("inf") if y.dtype == torch.float16 and y.shape[2] in heights else y

    expected = list(Upscaler(made, 0, fp32=True).exactly_each(images))
    monkeypatch.setattr(type(made.rdbs[0]), "forward", overflows)
    made_of = Upscaler(made, 0, say=lambda line: None).exactly_each(images)
    for y, right in zip(made_of, expected, strict=True):
        assert y.shape == right.shape
        assert levels(y, right) < 2


@pytest.mark.usefixtures("fp16")
def test_overflow_on_a_device_that_saturates(monkeypatch):
    made, image = model(), photograph(30, 30)
    watched = Watched(made)
    cleared = []
    monkeypatch.setattr(devices, "clear_overflow", lambda device: cleared.append(len(watched.shapes)))
    monkeypatch.setattr(devices, "overflowed", lambda device: watched.dtypes[-1][0] == torch.float16)
    result = Upscaler(made, 0, say=lambda line: None)(image)
    assert levels(result, Upscaler(made, 0, fp32=True)(image)) == 0
    assert cleared == [0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_output_that_is_not_finite_in_float32_is_a_user_error(value):
    made = model()
    with torch.no_grad():
        made.rdbs[1].lff.bias[0] = value
    with pytest.raises(UserError, match="not finite, in float32 either"):
        Upscaler(made)(photograph(30, 20))
