"""Pictures in tiles: the same as without, whatever the sizes; in bounded memory; and what happens when memory or fp16's range ends."""

import csv
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from runs import ROOT, photograph
from simulated import SimulatedLane
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiling import tiles as costs
from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.pictures import tiled
from rdn_fast.pictures.tile_grid import SMALLEST, bytes_per_pixel, receptive_radius, spans
from rdn_fast.pictures.tiled import Upscaler

CPU = torch.device("cpu")
SMALL = 1e-5  # of float results in 0..1
LACKING = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate some")


def model(scale=2, rdb="sliced", **options) -> RDN:
    """One with random weights, the same in every run, that looks 9 pixels far; its results are pictures' rather than nearly black."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scale)
        made = RDN(
            ModelConfig(scale, **{"num_features": 6, "growth_rate": 4, "num_blocks": 2, "num_layers": 2, **options}),
            rdb,
        ).eval()
    with torch.no_grad():
        made.output.weight.mul_(8)
        made.output.bias.add_(0.5)
    return made


MODELS = {scale: model(scale) for scale in (2, 3, 4)}


def whole(made: RDN, image: np.ndarray) -> np.ndarray:
    """The model's result in one piece, by hand: float32 [s*H, s*W, 3] in 0..1."""
    x = torch.from_numpy(image.astype(np.float32) / np.iinfo(image.dtype).max).permute(2, 0, 1)[None]
    with torch.no_grad():
        return made(x)[0].permute(1, 2, 0).numpy()


def rounded(y: np.ndarray, dtype=np.uint8) -> np.ndarray:
    return np.rint(np.clip(y, 0, 1) * np.float32(np.iinfo(dtype).max)).astype(dtype)


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    return int(np.abs(a.astype(np.int64) - b).max())


class Watched:
    """What the model of an Upscaler was asked for: shapes [B, 3, h, w] and dtypes of all its calls; `refuse(shape)`: it has no memory for that."""

    def __init__(self, made: RDN, refuse=lambda shape: False, error=LACKING):
        self.shapes, self.dtypes, self._refuse, self._error = [], [], refuse, error
        made.register_forward_pre_hook(self._hear)

    def _hear(self, module, arguments) -> None:
        shape = tuple(arguments[0].shape)
        if self._refuse(shape):
            raise self._error
        self.shapes.append(shape)
        self.dtypes.append((module.compute_dtype, module.output_dtype))

    @property
    def pixels(self) -> int:
        return sum(b * h * w for b, _, h, w in self.shapes)


# ---- geometry ----


@st.composite
def axes(draw):
    side = draw(st.integers(1, 300))
    first = draw(st.integers(0, side - 1))
    return first, draw(st.integers(first + 1, side)), side, draw(st.integers(1, 100)), draw(st.integers(0, 40))


@given(axes())
@settings(max_examples=500, deadline=None)
def test_windows_of_an_axis(axis):
    first, last, side, tile, pad = axis
    found = spans(*axis)
    assert len({span.stop - span.start for span in found}) == 1
    assert found[0].stop - found[0].start <= tile + 2 * pad
    edges = [first, *(span.keep_stop for span in found)]
    assert [span.keep_start for span in found] == edges[:-1]
    assert edges[-1] == last
    for span in found:
        assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= side
        assert span.start == 0 or span.keep_start - span.start >= pad
        assert span.stop == side or span.stop - span.keep_stop >= pad
    needed = min(side, last + pad) - max(0, first - pad)
    assert (
        sum(span.stop - span.start for span in found) <= needed + (len(found) - 1) * 2 * pad + len(found) - 1
    )  # nothing twice that need not be


@pytest.mark.parametrize(
    ("side", "count", "size"), [(212, 1, 212), (213, 2, 117), (300, 2, 160), (404, 2, 212), (405, 3, 149)]
)
def test_no_thin_last_tile(side, count, size):
    assert [span.stop - span.start for span in spans(0, side, side, 192, 10)] == [size] * count


# ---- exact ----


@given(
    st.sampled_from([2, 3, 4]),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(6, 50),
    st.sampled_from(["exact", 9, 12]),
    st.sampled_from([np.uint8, np.uint16]),
)
@example(2, 17, 31, 1, "exact", np.uint8)
@settings(max_examples=40, deadline=None)
def test_exact_tiles_give_the_whole_picture(scale, height, width, tile, pad, dtype):
    image = np.random.default_rng(height * width).integers(
        0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True
    )
    expected = whole(MODELS[scale], image)
    upscaler = Upscaler(MODELS[scale], tile, pad)
    assert np.abs(upscaler.exactly(image) / 255 - expected).max() <= SMALL
    stored = upscaler(image)
    assert levels(stored, rounded(expected, dtype)) <= (
        1 if dtype == np.uint8 else 2
    )  # 1e-5 is two thirds of a level of 16 bits
    assert expected.std() > 0.01


@pytest.mark.parametrize(("blocks", "layers"), [(1, 1), (3, 2), (2, 5)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_receptive_radius_is_how_far_the_model_sees(scale, blocks, layers):
    made = model(scale, "naive", num_features=2, growth_rate=2, num_blocks=blocks, num_layers=layers).double()
    for parameter in made.parameters():
        parameter.data.abs_()  # nothing cancels out, and no ReLU hides anything
    radius = receptive_radius(made.config)
    side = 2 * radius + 5
    middle = side // 2
    black = torch.zeros(1, 3, side, side, dtype=torch.float64)
    dot = black.clone()
    dot[..., middle, middle] = 1
    with torch.no_grad():
        seen = (made(dot) != made(black)).any(1)[0]  # [s*H, s*W]
    for axis in (0, 1):
        places = seen.any(axis).nonzero()[:, 0] // scale
        assert (places.min(), places.max()) == (middle - radius, middle + radius)


def test_without_tiles_it_is_the_model_itself():
    image = photograph(41, 30)
    upscaler = Upscaler(MODELS[2], tile=0, fp32=True)
    assert np.abs(upscaler.exactly(image) / 255 - whole(MODELS[2], image)).max() <= SMALL
    assert levels(upscaler(image), rounded(whole(MODELS[2], image))) == 0
    deep = image.astype(np.uint16) * 257
    assert np.abs(upscaler.exactly(deep) - upscaler.exactly(image)).max() <= 255 * SMALL
    assert levels(upscaler(deep), rounded(whole(MODELS[2], deep), np.uint16)) <= 1


def test_results_beyond_black_and_white_are_clipped():
    made = model()
    with torch.no_grad():
        made.output.weight.mul_(50)
    image = photograph(20, 20)
    unclipped = Upscaler(made, fp32=True).exactly(image)
    assert unclipped.min() < 0
    assert unclipped.max() > 255
    result = Upscaler(made, fp32=True)(image)
    assert levels(result, rounded(whole(made, image))) == 0


@pytest.mark.filterwarnings("error")
def test_any_array_will_do():
    image = photograph(30, 40)
    image.flags.writeable = False
    upscaler = Upscaler(MODELS[2], 8, 3)
    turned = np.ascontiguousarray(image[::-1, ::2])
    assert (upscaler(image[::-1, ::2]) == upscaler(turned)).all()


# ---- self-ensemble ----


def test_self_ensemble_is_the_mean_over_the_eight_turns_and_mirror_images():
    made, image = MODELS[3], photograph(37, 26)
    results = []
    for turns in range(4):
        turned = np.rot90(image, turns)
        results += [
            np.rot90(whole(made, turned.copy()), -turns),
            np.rot90(whole(made, turned[:, ::-1].copy())[:, ::-1], -turns),
        ]
    expected = np.mean(results, axis=0)
    assert np.abs(expected - results[0]).max() > 0.01
    for tile in (0, 11):
        assert np.abs(Upscaler(made, tile, "exact", self_ensemble=True).exactly(image) / 255 - expected).max() <= SMALL


# ---- memory ----


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under it, on the CPU or seen by it, held at a time."""

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
    [{"scale": 2}, {"scale": 4}, {"scale": 2, "num_blocks": 8, "num_features": 16}, {"scale": 3, "num_layers": 8}],
)
def test_bytes_per_pixel_are_enough_and_not_far_too_many(options, rdb, dtype):
    made = model(rdb=rdb, **options).to(memory_format=torch.channels_last)
    made.compute_dtype, made.output_dtype = dtype, torch.float32
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        measured = peak(lambda: made(x)) - sum(2 * parameter.numel() for parameter in made.parameters())
    estimate = bytes_per_pixel(made.config, dtype) * 64 * 64
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
        return upscaler.grid.tile + 2 * upscaler.grid.pad

    assert windows() == window
    free //= 50
    smaller = windows()
    assert smaller < window
    assert (
        smaller == SMALLEST + 2 * 133
        if pad == "exact"
        else smaller**2 * bytes_per_pixel(made.config, torch.float32) <= free // 2
    )


@pytest.fixture
def accelerator(monkeypatch):
    """Windows go in batches, as on an accelerator."""
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
    free = 2 * 60 * 60 * bytes_per_pixel(made.config, torch.float32)
    monkeypatch.setattr(devices, "free_memory", lambda device: free)
    result = Upscaler(made, 0, "exact").exactly(image)
    assert watched.shapes[-1][2] * watched.shapes[-1][3] <= 60 * 60
    assert np.abs(result - expected).max() <= 255 * SMALL
    Upscaler(made, 0, 10).exactly(image)
    assert watched.shapes[-1][2:] == (90, 70)  # as asked: the result would be another


def test_progress_tells_how_much_of_the_picture_is_done():
    upscaler, told = Upscaler(model(), 24, 4), []
    upscaler.progress = told.append
    for _ in range(2):
        upscaler(photograph(60, 50))
    half = len(told) // 2
    assert told[:half] == told[half:] == sorted(told[:half])
    assert half > 4
    assert told[0] > 0
    assert told[-1] == 1


# ---- out of memory ----


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("NPU out of memory. Tried to allocate 260.00 MiB (NPU 0; 28.50 GiB total capacity)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
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


def test_what_is_done_is_not_done_again():
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


def test_too_little_memory_for_anything_is_the_error_itself():
    made = model()
    Watched(made, lambda shape: True)
    lines = []
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate some"):
        Upscaler(made, say=lines.append)(photograph(100, 90))
    assert lines == []


def test_other_errors_are_not_taken_for_lack_of_memory():
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
    monkeypatch.setattr(devices, "low_precision_pays", lambda device: True)
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
def test_pictures_of_16_bits_have_more_of_them_than_fp16():
    made, image = model(), photograph(30, 20)
    upscaler, watched = Upscaler(made), Watched(made)
    for picture in (image.astype(np.uint16) * 257, image):
        upscaler(picture)
    assert watched.dtypes == [(torch.float32, torch.float32), (torch.float16, torch.float32)]


def test_bf16_is_not_for_pictures(monkeypatch):
    monkeypatch.setattr(devices, "low_precision_pays", lambda device: True)
    made = model()
    watched = Watched(made)
    Upscaler(made)(photograph(20, 20))
    assert devices.low_precision(CPU) == torch.bfloat16
    assert watched.dtypes == [(torch.float32, torch.float32)]


@pytest.mark.usefixtures("fp16")
@pytest.mark.parametrize("lane", [False, True])
def test_what_overflows_in_fp16_is_computed_in_float32_from_then_on(monkeypatch, lane):
    if lane:
        monkeypatch.setattr(devices, "side_stream", lambda device: SimulatedLane(eager=False))
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
def test_a_device_that_saturates_is_asked_whether_it_did(monkeypatch):
    made, image = model(), photograph(30, 30)
    watched = Watched(made)
    cleared = []
    monkeypatch.setattr(devices, "clear_overflow", lambda device: cleared.append(len(watched.shapes)))
    monkeypatch.setattr(devices, "overflowed", lambda device: watched.dtypes[-1][0] == torch.float16)
    result = Upscaler(made, 0, say=lambda line: None)(image)
    assert levels(result, Upscaler(made, 0, fp32=True)(image)) == 0
    assert cleared == [0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_give_no_numbers_are_the_users_mistake(value):
    made = model()
    with torch.no_grad():
        made.rdbs[1].lff.bias[0] = value
    with pytest.raises(UserError, match="not finite, in float32 either"):
        Upscaler(made)(photograph(30, 20))


# ---- an accelerator ----


@pytest.mark.parametrize("eager", [False, True], ids=["late", "eager"])
def test_results_are_taken_when_they_have_come(monkeypatch, eager):
    """Copies are made when the host waits for them, or at once."""
    made, image = model(), photograph(70, 50)
    expected = Upscaler(made, 16)(image)
    lane = SimulatedLane(eager)
    monkeypatch.setattr(devices, "side_stream", lambda device: lane)
    waiting = []
    made.register_forward_pre_hook(lambda *_: waiting.append(lane.pending))
    assert levels(Upscaler(made, 16)(image), expected) == 0
    assert lane.pending == 0
    assert max(waiting) == (0 if eager else 1)  # one batch is computed while another's result comes


ON_NPU = """
import sys, warnings
warnings.simplefilter("error", UserWarning)  # the simulated npu warns where nothing makes a copy wait
import numpy as np, torch
from rdn_fast import devices
from rdn_fast.pictures.tiled import Upscaler
from test_tiled import levels, model, photograph
import test_tiled
image, deep = photograph(75, 60), photograph(40, 33, seed=1).astype(np.uint16) * 257
npu = model().to(devices.pick("npu"))
for options in ({"fp32": True}, {"self_ensemble": True, "fp32": True}, {}):
    here, there = (Upscaler(made, 16, "exact", **options) for made in (model(), npu))
    for picture in (image, deep):
        print(levels(there(picture), here(picture)) / (1 if picture.dtype == np.uint8 else 257))
    print(np.abs(there.exactly(image) - here.exactly(image)).max())
"""


@pytest.mark.slow
def test_on_the_simulated_npu(npu_environment):
    path = f"{npu_environment['PYTHONPATH']}:{ROOT / 'tests'}:{ROOT}"
    ended = subprocess.run(
        [sys.executable, "-c", ON_NPU],
        env={**npu_environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    differences = [float(line) for line in ended.stdout.split()]
    assert len(differences) == 9
    assert max(differences) < 2
    assert max(differences[:6]) <= 1


# ---- what tiles cost, measured ----


def test_the_cost_of_tiles_is_measured(monkeypatch, tmp_path, image_folder, capsys):
    made = model()
    torch.save(made.state_dict(), tmp_path / "x2.pth")
    monkeypatch.setattr(costs, "FILE", tmp_path / "tiles.csv")
    monkeypatch.setattr(costs, "TILES", (12,))
    monkeypatch.setattr(costs, "load_model", lambda path, device: made)
    for what in ("pad", "precision", "pad"):
        assert (
            costs.main(
                [what, "--data", str(image_folder(2, (70, 60), f"{len(list(tmp_path.iterdir()))}")), "--device", "cpu"]
            )
            == 0
        )
    assert costs.main(["pad"]) == 2
    assert "--data DIR is missing" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "tiles.csv").open(encoding="utf-8")))
    assert [row["what"] for row in rows] == ["precision"] * 5 + ["pad"] * len(costs.PADS)
    of_pad = {row["tile_pad"]: row for row in rows if row["what"] == "pad"}
    assert int(of_pad["0"]["max_level"]) > int(of_pad["5"]["max_level"]) > int(of_pad["exact"]["max_level"])
    assert int(of_pad["exact"]["max_level"]) <= 1
    low = {(row["level"], row["dtype"]): float(row["loss_y"]) for row in rows if row["what"] == "precision"}
    assert low["O0", "float32"] == 0
    assert all((row["kind"] == "simulated") == (row["level"] in ("O1", "O2")) for row in rows)
    assert all(low[level, dtype] != 0 for level in ("O1", "O2") for dtype in ("float16", "bfloat16"))


# ---- bad input ----


@pytest.mark.parametrize(
    "options", [{"tile": -1}, {"tile": 1.5}, {"tile_pad": -1}, {"tile_pad": "many"}, {"tile_pad": None}]
)
def test_options_that_make_no_sense_are_a_user_error(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} {next(iter(options.values()))}"):
        Upscaler(MODELS[2], **options)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_a_user_error(image):
    for call in (Upscaler(MODELS[2]), Upscaler(MODELS[2]).exactly):
        with pytest.raises(UserError, match=r"uint8 or uint16 \[H, W, 3\]"):
            call(image)
