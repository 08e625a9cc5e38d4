"""Validation between epochs: the PSNR that evaluation would give, in tiles where memory is short."""

import math
import signal
import threading

import numpy as np
import pytest
import torch
from runs import photograph

from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.data.pairs import degrade
from rdn_fast.distributed.in_touch import InTouch
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.errors import Stopped
from rdn_fast.evaluation.metrics import psnr_y, psnr_y_compat
from rdn_fast.model import RDN
from rdn_fast.precision import Precision
from rdn_fast.training import validation
from rdn_fast.training.validation import validate

CPU = torch.device("cpu")
PAIRS = [degrade(str(i), photograph(120 + 8 * i, 136, seed=i), 2) for i in range(2)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RDN(ModelConfig(2, 6, 4, 2, 2), rdb="sliced").to(memory_format=devices.memory_format(CPU))


def validated(model, say=print, pairs=PAIRS, signal_now=lambda: 0, dtype=torch.float32):
    ranks = Ranks()
    return validate(model, "naive", pairs, ranks, InTouch(ranks, signal_now), say, dtype)


def means(validation):
    return validation.canonical, validation.compatible


@torch.inference_mode()
def expected(model):
    """The means over whole pictures, in float32, by the oracle."""
    predictions = []
    with model.computing(None, "naive"):
        for pair in PAIRS:
            x = torch.from_numpy(pair.lr.copy())[None].permute(0, 3, 1, 2).float().div_(255)
            y = model(x.contiguous(memory_format=devices.memory_format(CPU)))
            predictions.append(y[0].permute(1, 2, 0).mul(255).numpy())
    return tuple(
        sum(measure(y, pair.hr, 2) for y, pair in zip(predictions, PAIRS, strict=True)) / len(PAIRS)
        for measure in (psnr_y, psnr_y_compat)
    )


def test_whole_pictures_in_float32_whatever_the_training_computes_in(model):
    Precision("O2", torch.bfloat16, torch.bfloat16).apply(model)
    assert means(validated(model)) == expected(model)
    assert (model.compute_dtype, model.output_dtype, model.rdb) == (torch.bfloat16, torch.bfloat16, "sliced")


def test_a_picture_too_large_for_the_memory_is_computed_in_tiles(model, monkeypatch):
    sizes, forward = [], RDN.forward

    def noted(self, x):
        sizes.append(x.shape[2:])
        return forward(self, x)

    monkeypatch.setattr(RDN, "forward", noted)
    monkeypatch.setattr(devices, "free_memory", lambda device: 1)
    assert means(validated(model)) == pytest.approx(expected(model), abs=1e-4)
    whole = max(pair.lr.shape[0] * pair.lr.shape[1] for pair in PAIRS)
    assert len(sizes) > 2 * len(PAIRS)
    assert all(height * width < whole / 2 for height, width in sizes[: -len(PAIRS)])


def test_running_out_of_memory_ends_no_run(model, monkeypatch):
    said, forward = [], RDN.forward

    def limited(self, x):
        if x.shape[2] * x.shape[3] > 50 * 50:
            raise RuntimeError("can't allocate memory")
        return forward(self, x)

    whole = expected(model)
    monkeypatch.setattr(RDN, "forward", limited)
    assert means(validated(model, said.append)) == pytest.approx(whole, abs=1e-4)
    assert len(said) == 1
    assert said[0].startswith("out of memory")


def test_an_output_that_is_not_finite_is_no_psnr_and_no_error(model):
    with torch.no_grad():
        model.output.bias.fill_(math.inf)
    assert all(map(math.isnan, means(validated(model))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_near_and_says_what_it_is(model, dtype):
    exact, low = validated(model), validated(model, dtype=dtype)
    assert means(low) == pytest.approx(means(exact), abs=0.02)
    assert low.psnrs != exact.psnrs
    assert (exact.dtype, low.dtype) == ("float32", str(dtype).removeprefix("torch."))


def test_an_overflow_in_low_precision_is_no_psnr_though_float32_has_one(model):
    with torch.no_grad():
        model.sfe1.bias.fill_(1e6)
    said = []
    low, exact = validated(model, said.append, dtype=torch.float16), validated(model)
    assert all(map(math.isnan, low.psnrs))
    assert all(map(math.isfinite, exact.psnrs))
    assert said == ["fp16 overflowed: computing in float32 from now on"]


def test_an_accelerators_pictures_are_measured_in_a_thread(model, monkeypatch):
    on_host, threads, measure = validated(model), set(), validation.psnr_y

    def noted(*arguments):
        threads.add(threading.current_thread())
        return measure(*arguments)

    monkeypatch.setattr(validation, "psnr_y", noted)
    monkeypatch.setattr(devices, "is_host", lambda device: False)
    assert validated(model) == on_host
    assert len(threads) == 1
    assert threading.main_thread() not in threads


def test_ranks_share_the_pictures(model, monkeypatch):
    shares = []
    for rank in range(2):
        ranks = Ranks()
        ranks.rank, ranks.world = rank, 2
        monkeypatch.setattr(ranks, "all_sum", lambda values: shares.append(values) or values)
        validate(model, "naive", PAIRS, ranks, InTouch(Ranks(), lambda: 0), print)
    assert [(share == 0).all(dim=1).tolist() for share in shares] == [[False, True], [True, False]]
    assert tuple(sum(shares).mean(dim=0).tolist()) == expected(model)


def test_an_image_that_is_met_exactly_is_left_out_of_the_means(model):
    black = degrade("black", np.zeros((40, 40, 3), np.uint8), 2)
    with torch.no_grad():
        model.output.bias.fill_(-0.2)  # black pixels clip to black
    only, both = validated(model, pairs=PAIRS), validated(model, pairs=[black, *PAIRS])
    assert both == (*means(only), [math.inf, *only.psnrs], 1, "float32")
    assert means(validated(model, pairs=[black])) == (math.inf, math.inf)


@pytest.mark.parametrize("asked", [1, 2, 3, 7])
def test_a_signal_is_heard_between_images_and_blocks(model, asked):
    """A validation of these images asks twice before each image's blocks are over."""
    calls = []

    def signal_now():
        calls.append(model.rdb)
        return signal.SIGTERM if len(calls) == asked else 0

    with pytest.raises(Stopped, match="SIGTERM"):
        validated(model, signal_now=signal_now)
    assert len(calls) == asked
    assert model.rdb == "sliced"  # as it was
    assert not any(block._forward_pre_hooks for block in model.rdbs)
    whole = validated(model)
    assert means(whole) == expected(model)
