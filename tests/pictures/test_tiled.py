"""Pictures in tiles give the result of the whole picture, whatever the sizes, on any device."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from runs import ROOT, photograph
from simulated import SimulatedSideStream
from tiny_models import MODELS, SMALL, levels, model, rounded, whole
from waiting import PATIENCE

from rdn_fast import devices
from rdn_fast.errors import UserError
from rdn_fast.pictures.tiled import Upscaler


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
    limit = 1 if dtype == np.uint8 else 2  # SMALL is two thirds of a level of 16 bits
    assert levels(stored, rounded(expected, dtype)) <= limit
    assert expected.std() > 0.01


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
def test_read_only_and_strided_arrays():
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


# ---- an accelerator ----


@pytest.mark.parametrize("eager", [False, True], ids=["late", "eager"])
def test_results_are_read_after_their_copy(monkeypatch, eager):
    """The simulated stream copies when the host waits for it ("late"), or at once ("eager")."""
    made, image = model(), photograph(70, 50)
    expected = Upscaler(made, 16)(image)
    lane = SimulatedSideStream(eager)
    monkeypatch.setattr(devices, "side_stream", lambda device: lane)
    waiting = []
    made.register_forward_pre_hook(lambda *_: waiting.append(lane.pending))
    assert levels(Upscaler(made, 16)(image), expected) == 0
    assert lane.pending == 0
    assert max(waiting) == (0 if eager else 1)  # one batch is computed while another's result is copied back


@pytest.mark.parametrize("eager", [False, True], ids=["late", "eager"])
@pytest.mark.parametrize("tile", [0, 16])
def test_the_next_picture_is_queued_while_one_is_computed(monkeypatch, eager, tile):
    made, images = model(), [photograph(30 + 4 * i, 28, seed=i) for i in range(4)]
    expected, log = [Upscaler(made, tile, fp32=True).exactly(image) for image in images], []

    def read():
        for i, image in enumerate(images):
            log.append(f"read {i}")
            yield image

    def compute() -> list[str]:
        log.clear()
        for i, result in enumerate(Upscaler(made, tile, fp32=True).exactly_each(read())):
            log.append(f"result {i}")
            assert np.array_equal(result, expected[i])
        return log

    assert compute() == [f"{what} {i}" for i in range(4) for what in ("read", "result")]
    lane = SimulatedSideStream(eager)
    monkeypatch.setattr(devices, "side_stream", lambda device: lane)
    ahead = ["read 0", "read 1", "result 0", "read 2", "result 1", "read 3", "result 2", "result 3"]
    assert compute() == ahead
    assert lane.pending == 0


ON_NPU = """
import sys, warnings
warnings.simplefilter("error", UserWarning)  # the simulated npu warns where nothing makes a copy wait
import numpy as np, torch
from rdn_fast import devices
from rdn_fast.pictures.tiled import Upscaler
from runs import photograph
from tiny_models import levels, model
image, deep = photograph(75, 60), photograph(40, 33, seed=1).astype(np.uint16) * 257
npu = model().to(devices.pick("npu"))
for options in ({"fp32": True}, {"self_ensemble": True, "fp32": True}, {}):
    here = Upscaler(model(), 16, "exact", **{**options, "fp32": True})  # whether bf16 pays here is a matter of timing
    there = Upscaler(npu, 16, "exact", **options)
    for picture in (image, deep):
        print(levels(there(picture), here(picture)) / (1 if picture.dtype == np.uint8 else 257))
    print(np.abs(there.exactly(image) - here.exactly(image)).max())
"""


@pytest.mark.slow
def test_on_the_simulated_npu(npu_environment):
    path = f"{npu_environment['PYTHONPATH']}:{ROOT / 'tests'}:{ROOT / 'tests/pictures'}:{ROOT}"
    ended = subprocess.run(
        [sys.executable, "-c", ON_NPU],
        env={**npu_environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    differences = [float(line) for line in ended.stdout.split()]
    assert len(differences) == 9
    assert max(differences) < 2
    assert max(differences[:6]) <= 1


# ---- bad input ----


@pytest.mark.parametrize(
    "options", [{"tile": -1}, {"tile": 1.5}, {"tile_pad": -1}, {"tile_pad": "many"}, {"tile_pad": None}]
)
def test_invalid_options_are_a_user_error(options):
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
def test_arrays_of_other_shapes_and_dtypes_are_a_user_error(image):
    for call in (Upscaler(MODELS[2]), Upscaler(MODELS[2]).exactly):
        with pytest.raises(UserError, match=r"uint8 or uint16 \[H, W, 3\]"):
            call(image)
