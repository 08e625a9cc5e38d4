"""`--loss-scale-value auto` and `rdn-fast tune --loss-scale`: the histogram, the scale it leads to, and the output."""

import csv
import math
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
import torch.nn.functional as F
from runs import TINY, events, make_data

from rdn_fast import precision
from rdn_fast.config import ModelConfig
from rdn_fast.data.prefetch import Batch
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.training import loss_scale
from rdn_fast.training.loss_scale import EXPONENT_BIAS, FP16_MAX, MARGIN, GradientHistogram, calibrate, resolve

CPU = torch.device("cpu")
SMALL = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=3)
O1, O2 = (precision.resolve(level, "fp16", CPU) for level in ("O1", "O2"))
FP16 = ("--opt-level", "O1", "--amp-dtype", "fp16", "--device", "cpu", "--rdb", "naive")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def small_model(seed=0) -> RDN:
    torch.manual_seed(seed)
    return RDN(SMALL, "naive").to(memory_format=torch.channels_last)


def random_batches(count=3, size=9) -> list[Batch]:
    return [Batch(torch.rand(size, 3, 7, 5), torch.rand(size, 3, 14, 10), size, size) for _ in range(count)]


def plain_gradients(model: RDN, batch: Batch) -> tuple[list[torch.Tensor], ...]:
    """Return the gradients of one backward() with respect to four lists of tensors.

    They are the inputs of all convolutions but the first, the output, all parameters, and those of the last layer.
    """
    inputs = []

    def conv(layer, x):
        if x.requires_grad:
            x.retain_grad()
            inputs.append(x)
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.padding)

    shallow = conv(model.sfe1, batch.lr)
    y, local = conv(model.sfe2, shallow), []
    for block in model.rdbs:
        maps = y
        for layer in block.layers:
            maps = torch.cat([maps, conv(layer.conv, maps).relu()], 1)
        y = y + conv(block.lff, maps)
        local.append(y)
    y = shallow + conv(model.gff[1], conv(model.gff[0], torch.cat(local, 1)))
    y = conv(model.output, F.pixel_shuffle(conv(model.upscale[0], y), 2))
    y.retain_grad()
    F.l1_loss(y, batch.hr).backward()
    parameters = dict(model.named_parameters())
    gradients = (
        [p.grad for p in parameters.values()],
        [p.grad for name, p in parameters.items() if name.startswith("output.")],
    )
    model.zero_grad(set_to_none=True)
    return [x.grad for x in inputs], [y.grad], *gradients


def exponents(gradients) -> Counter:
    """Return {exponent: number of magnitudes that have it}; None: zeros."""
    values = np.abs(np.concatenate([g.numpy().ravel() for g in gradients])).astype(np.float64)
    counts = Counter((np.frexp(values[values > 0])[1] - 1).tolist())
    counts[None] = int((values == 0).sum())
    return +counts


def as_counter(counts: list[int]) -> Counter:
    return +Counter({i - EXPONENT_BIAS if i else None: count for i, count in enumerate(counts)})


def nearly_equal(ours: Counter, theirs: Counter) -> bool:
    """Return whether the totals are equal and the counts too, but for a few magnitudes next to a power of two."""
    return ours.total() == theirs.total() and (ours - theirs).total() <= 1e-3 * theirs.total()


@pytest.mark.parametrize("level", [O1, O2], ids=str)
def test_calibrate_measures_every_gradient_that_would_be_fp16(level):
    model, batches = small_model(), random_batches()
    measured = calibrate(model, level, batches)
    expected = {"activations": Counter(), "weights": Counter()}
    largest = 0.0
    for batch in batches:
        inputs, output, weights, of_last = plain_gradients(model, batch)
        if level is O1:
            output, weights = [], weights[: -len(of_last)]
        expected["activations"] += exponents(inputs + output)
        expected["weights"] += exponents(weights)
        largest = max(largest, *(g.abs().max().item() for g in inputs + output + weights))
    for kind, counts in measured.counts.items():
        assert nearly_equal(as_counter(counts), expected[kind]), kind
    assert measured.largest == pytest.approx(largest, rel=1e-5)
    assert measured.batches == 3


def test_calibrate_is_independent_of_the_patches_per_pass(monkeypatch):
    model, batches = small_model(), random_batches(1)
    whole = calibrate(model, O2, batches)
    monkeypatch.setattr(loss_scale, "_PATCHES", 2)
    parts = calibrate(model, O2, batches)
    for kind, counts in whole.counts.items():
        assert nearly_equal(as_counter(parts.counts[kind]), as_counter(counts)), kind
    assert parts.largest == pytest.approx(whole.largest, rel=1e-5)


def histogram(largest: float, **counts: int) -> GradientHistogram:
    """counts: magnitudes by exponent, such as minus_24=3."""
    column = [0] * 256
    for name, count in counts.items():
        column[EXPONENT_BIAS - int(name.removeprefix("minus_"))] = count
    return GradientHistogram({"activations": column, "weights": [5, *[0] * 255]}, largest, 1)


@pytest.mark.parametrize(
    "largest", [1.0, FP16_MAX, FP16_MAX / MARGIN, math.nextafter(FP16_MAX / MARGIN, 1e9), 3e-7, 0.044]
)
def test_scale_is_the_largest_power_of_two_with_room(largest):
    found = histogram(largest)
    assert math.frexp(found.scale)[0] == 0.5
    assert found.scale * largest * MARGIN <= FP16_MAX < 2 * found.scale * largest * MARGIN
    assert found.overflow_limit * largest <= FP16_MAX < 2 * found.overflow_limit * largest


def test_share_below_ignores_zeros():
    found = histogram(1.0, minus_25=1, minus_24=2, minus_15=3, minus_14=4)
    assert found.share_below(-24) == 0.1
    assert found.share_below(-14) == 0.6
    assert found.share_below(-24, 2.0) == 0.0
    assert found.share_below(-24, 0.5) == 0.3
    assert found.share_below(-24, 2.0**-200) == 1.0


def test_resolve_is_deterministic_and_leaves_the_model_as_it_was():
    model, batches = small_model(), random_batches()
    model.compute_dtype, model.output_dtype = torch.bfloat16, torch.float32
    before = {name: value.clone() for name, value in model.state_dict().items()}
    choice = resolve(model, O1, lambda: batches)
    assert choice == resolve(model, O1, lambda: batches)
    assert choice == resolve(model, O1, lambda: batches, at_once=1)  # as with --accumulate
    assert choice.scale == choice.histogram.scale
    assert choice.lines[0].startswith(f"loss scale auto: {choice.scale:.0f}, ")
    assert (model.compute_dtype, model.output_dtype) == (torch.bfloat16, torch.float32)
    assert (model.rdb, model.training) == ("naive", True)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("level", "dtype"), [("O0", "float32"), ("O1", "bfloat16")])
def test_scale_is_1_without_batches_where_compute_is_not_fp16(level, dtype):
    choice = resolve(small_model(), precision.resolve(level, "bf16", CPU), lambda: 1 / 0)
    assert (choice.scale, choice.histogram) == (1.0, None)
    assert dtype in choice.lines[0]


def is_finite(model: RDN, batch: Batch, scale: float) -> bool:
    O2.apply(model)
    (scale * F.l1_loss(model(batch.lr).float(), batch.hr)).backward()
    return all(p.grad.isfinite().all() for p in model.parameters())


def test_scale_that_overflows_in_fp16_is_halved_until_it_does_not(monkeypatch):
    batches = random_batches()
    tiny = histogram(2.0**-24, minus_24=1)  # the scale that follows from it overflows
    monkeypatch.setattr(loss_scale, "calibrate", lambda *_: tiny)
    choice = resolve(small_model(), O2, lambda: batches)
    assert choice.scale < choice.histogram.scale
    assert is_finite(small_model(), batches[0], choice.scale)
    assert not is_finite(small_model(), batches[0], 2 * choice.scale)
    halved = f"halved to {choice.scale:.0f}, where its gradients are finite"
    assert choice.lines[-1] == f"a step in fp16 overflowed at that scale: {halved}"


def test_weights_that_no_scale_helps_are_a_user_error():
    model = small_model()
    with torch.no_grad():
        model.sfe1.bias.fill_(math.nan)
    with pytest.raises(UserError, match=r"^--loss-scale-value auto: the largest gradient in float32 is nan"):
        resolve(model, O1, random_batches)
    model = small_model()
    with torch.no_grad():
        model.sfe1.bias.fill_(1e6)  # overflows in fp16
    with pytest.raises(UserError, match="at any scale; give --amp-dtype bf16 or --opt-level O0"):
        resolve(model, O1, random_batches)


def test_tune_shows_what_a_run_chooses(cli, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--data-path", data, *TINY, *FP16, "--batch-size", 4, "--seed", 7)
    tuned = cli("tune", "--loss-scale", *flags, "--loss-scale-value", 32, "--max-steps", 1)
    assert (tuned.code, tuned.err) == (0, "")
    lines = tuned.out.splitlines()
    assert lines[2] == "written: outputs/tune/loss_scale.csv, outputs/tune/loss_scale.svg"
    trained = cli("train", *flags, "--loss_scale_value=auto", "--max-steps", 1, "--outputs-dir", "run")
    assert trained.code == 0, trained.err
    assert lines[:2] == trained.out.splitlines()[:2]
    scale = events(Path("run"), "start")[0]["loss_scale"]
    assert lines[0].startswith(f"loss scale auto: {scale:.0f}, ")

    rows = list(csv.DictReader(Path("outputs/tune/loss_scale.csv").read_text().splitlines()))
    for kind in ("activations", "weights"):
        mine = [row for row in rows if row["of"] == kind]
        assert sum(float(row["share"]) for row in mine) == pytest.approx(1, abs=1e-4)
        assert len(mine) == len({row["exponent"] for row in mine})
    highest = max(int(row["exponent"]) for row in rows if row["exponent"] != "zero")
    assert scale * 2.0**highest * MARGIN <= FP16_MAX < 4 * scale * 2.0**highest * MARGIN
    drawn = "".join(ET.parse("outputs/tune/loss_scale.svg").getroot().itertext())
    assert f"fp16 at loss scale {scale:.0f}" in drawn
    assert "4 batches of 4 patches of 8x8" in drawn


def test_tune_in_float32_says_why_and_writes_nothing(cli, data, tmp_path):
    flags = ("--device", "cpu", "--opt-level", "O0", "--outputs-dir", tmp_path / "out")
    ended = cli("tune", "--loss-scale", "--data-path", data, *TINY, *flags)
    reason = "because gradients do not underflow in float32, which reaches down to 2^-126"
    assert ended.out == f"loss scale auto: 1, {reason}\n"
    assert not any((tmp_path / "out").iterdir())


def test_what_tune_cannot_read_or_write_is_a_user_error(cli, data, tmp_path):
    assert "--train-file" in cli("tune", "--loss-scale", *TINY, *FP16).user_error()
    (tmp_path / "file").touch()
    ended = cli("tune", "--loss-scale", "--data-path", data, *TINY, *FP16, "--outputs-dir", tmp_path / "file")
    remedy = "cannot be written (a file has that name); choose another folder"
    assert ended.user_error() == f"--outputs-dir {tmp_path / 'file'}: {remedy}"


@pytest.mark.slow
def test_histogram_on_the_simulated_npu_equals_the_cpus(npu_environment, data, tmp_path):
    tables = {}
    for device in ("cpu", "npu"):
        flags = ("--data-path", data, *TINY, *FP16, "--device", device, "--outputs-dir", tmp_path / device)
        ended = runs.cli("tune", "--loss-scale", *flags, env=npu_environment)
        assert (ended.returncode, ended.stderr) == (0, "")
        rows = csv.DictReader((tmp_path / device / "loss_scale.csv").read_text().splitlines())
        tables[device] = (
            ended.stdout.splitlines()[0],
            Counter({(row["of"], row["exponent"]): int(row["count"]) for row in rows}),
        )
    assert tables["npu"][0] == tables["cpu"][0]
    assert nearly_equal(tables["npu"][1], tables["cpu"][1])
