"""The model against the paper's equations, and its parameters against the reference's names and shapes."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import rdn_fast.model
from bench.parity import assert_as_good_as_naive, assert_same_in_float64, relative_error
from rdn_fast.config import PRESETS, ModelConfig, make_configs
from rdn_fast.errors import UserError
from rdn_fast.model import RDN, check_state, describe, infer_config, meta_model
from rdn_fast.precision import Precision, resolve

TINY = {"num_features": 6, "growth_rate": 4, "num_blocks": 2, "num_layers": 2}  # G0 != G

# The shapes of TINY's parameters: those of every scale, then those by (scale, upsample_channels, tail).
TRUNK = {
    "sfe1.weight": (6, 3, 3, 3),
    "sfe1.bias": (6,),
    "sfe2.weight": (6, 6, 3, 3),
    "sfe2.bias": (6,),
    "rdbs.0.layers.0.conv.weight": (4, 6, 3, 3),
    "rdbs.0.layers.0.conv.bias": (4,),
    "rdbs.0.layers.1.conv.weight": (4, 10, 3, 3),
    "rdbs.0.layers.1.conv.bias": (4,),
    "rdbs.0.lff.weight": (6, 14, 1, 1),
    "rdbs.0.lff.bias": (6,),
    "rdbs.1.layers.0.conv.weight": (4, 6, 3, 3),
    "rdbs.1.layers.0.conv.bias": (4,),
    "rdbs.1.layers.1.conv.weight": (4, 10, 3, 3),
    "rdbs.1.layers.1.conv.bias": (4,),
    "rdbs.1.lff.weight": (6, 14, 1, 1),
    "rdbs.1.lff.bias": (6,),
    "gff.0.weight": (6, 12, 1, 1),
    "gff.0.bias": (6,),
    "gff.1.weight": (6, 6, 3, 3),
    "gff.1.bias": (6,),
    "output.bias": (3,),
}
TAILS = {
    (2, None, "shuffle"): {"upscale.0.weight": (24, 6, 3, 3), "upscale.0.bias": (24,), "output.weight": (3, 6, 3, 3)},
    (3, None, "shuffle"): {"upscale.0.weight": (54, 6, 3, 3), "upscale.0.bias": (54,), "output.weight": (3, 6, 3, 3)},
    (4, None, "shuffle"): {
        "upscale.0.weight": (24, 6, 3, 3),
        "upscale.0.bias": (24,),
        "upscale.2.weight": (24, 6, 3, 3),
        "upscale.2.bias": (24,),
        "output.weight": (3, 6, 3, 3),
    },
    # EDSR-PyTorch's tail, whose number of channels differs from G0.
    (2, 5, "shuffle"): {"upscale.0.weight": (20, 6, 3, 3), "upscale.0.bias": (20,), "output.weight": (3, 5, 3, 3)},
    (3, 5, "shuffle"): {"upscale.0.weight": (45, 6, 3, 3), "upscale.0.bias": (45,), "output.weight": (3, 5, 3, 3)},
    (4, 5, "shuffle"): {
        "upscale.0.weight": (20, 6, 3, 3),
        "upscale.0.bias": (20,),
        "upscale.2.weight": (20, 5, 3, 3),
        "upscale.2.bias": (20,),
        "output.weight": (3, 5, 3, 3),
    },
    # Lornatang's and lizhengwei1992's.
    (8, None, "shuffle"): {
        "upscale.0.weight": (24, 6, 3, 3),
        "upscale.0.bias": (24,),
        "upscale.2.weight": (24, 6, 3, 3),
        "upscale.2.bias": (24,),
        "upscale.4.weight": (24, 6, 3, 3),
        "upscale.4.bias": (24,),
        "output.weight": (3, 6, 3, 3),
    },
    (4, None, "single"): {
        "upscale.0.weight": (96, 6, 3, 3),
        "upscale.0.bias": (96,),
        "output.weight": (3, 6, 3, 3),
    },
    # idealo's, of which the last convolution gives 3*scale^2 channels.
    **{
        (scale, None, "espcn"): {
            "upscale.0.weight": (64, 6, 5, 5),
            "upscale.0.bias": (64,),
            "upscale.2.weight": (32, 64, 3, 3),
            "upscale.2.bias": (32,),
            "upscale.4.weight": (3 * scale**2, 32, 3, 3),
            "upscale.4.bias": (3 * scale**2,),
            "output.weight": (3 * scale**2, 3 * scale**2, 3, 3),
            "output.bias": (3 * scale**2,),
        }
        for scale in (2, 3, 4, 8)
    },
}
EVERY_TAIL = pytest.mark.parametrize(("scale", "upsample_channels", "tail"), TAILS, ids=str)


def tiny(scale=2, upsample_channels=None, tail="shuffle") -> ModelConfig:
    return ModelConfig(scale=scale, upsample_channels=upsample_channels, tail=tail, **TINY)


def oracle(x, p, config, dtype=torch.float64, output_dtype=None):
    """Equations 1 to 9 of arXiv:1802.08797 on parameters p under the reference's names.

    All convolutions compute in `dtype`, the last one in `output_dtype`.
    """
    p = {name: value.to(dtype) for name, value in p.items() if not name.startswith("output.")} | {
        name: value.to(output_dtype or dtype) for name, value in p.items() if name.startswith("output.")
    }

    def conv(name, y):
        return F.conv2d(y, p[f"{name}.weight"], p[f"{name}.bias"], padding=p[f"{name}.weight"].shape[-1] // 2)

    def shuffle(y, r):  # channel c*r*r + i*r + j becomes pixel (i, j) of an r x r square in channel c
        batch, channels, height, width = y.shape
        y = y.view(batch, channels // r**2, r, r, height, width).permute(0, 1, 4, 2, 5, 3)
        return y.reshape(batch, channels // r**2, r * height, r * width)

    x = x.to(dtype)
    f_minus_1 = conv("sfe1", x - p["mean"].view(3, 1, 1) if config.mean_shift else x)
    f = conv("sfe2", f_minus_1)
    blocks = []
    for d in range(config.num_blocks):
        dense = [f]
        for c in range(config.num_layers):
            dense.append(conv(f"rdbs.{d}.layers.{c}.conv", torch.cat(dense, 1)).clamp(min=0))
        f = conv(f"rdbs.{d}.lff", torch.cat(dense, 1)) + f
        blocks.append(f)
    f = conv("gff.1", conv("gff.0", torch.cat(blocks, 1))) + f_minus_1
    if config.tail == "espcn":
        f = conv("upscale.4", conv("upscale.2", conv("upscale.0", f).clamp(min=0)).clamp(min=0))
        return shuffle(conv("output", f.to(output_dtype or dtype)), config.scale)
    steps = {4: (2, 2), 8: (2, 2, 2)}.get(config.scale) if config.tail == "shuffle" else None
    for i, factor in enumerate(steps or (config.scale,)):
        f = shuffle(conv(f"upscale.{2 * i}", f), factor)
    return conv("output", f.to(output_dtype or dtype))


@EVERY_TAIL
def test_state_dict_has_the_references_names_and_shapes(scale, upsample_channels, tail):
    state = RDN(tiny(scale, upsample_channels, tail)).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == TRUNK | TAILS[scale, upsample_channels, tail]
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize(("scale", "millions"), [(2, 22.12), (3, 22.31), (4, 22.27)])
def test_rdn_b_has_the_published_number_of_parameters(scale, millions):
    model = meta_model(make_configs({"scale": scale}, "rdn-b")[0])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("preset", "first", "last"),
    [
        ("rdn-b", (256, 64, 3, 3), (3, 64, 3, 3)),
        ("rdn-a", (256, 64, 3, 3), (3, 64, 3, 3)),
        ("rdn-a-edsr", (128, 64, 3, 3), (3, 32, 3, 3)),
        ("train-full-8p", (256, 64, 3, 3), (3, 64, 3, 3)),
        ("demo", (128, 32, 3, 3), (3, 32, 3, 3)),
    ],
)
def test_presets_build_the_model_that_they_name(preset, first, last):
    config, _ = make_configs({}, preset)
    state = meta_model(config).state_dict()
    assert (tuple(state["upscale.0.weight"].shape), tuple(state["output.weight"].shape)) == (first, last)
    blocks, layers, g = {"rdn-a": (20, 6, 32), "rdn-a-edsr": (20, 6, 32), "demo": (4, 3, 32)}.get(preset, (16, 8, 64))
    g0 = last[1] if preset == "demo" else 64
    assert f"rdbs.{blocks - 1}.lff.weight" in state
    assert f"rdbs.{blocks}.lff.weight" not in state
    assert tuple(state["rdbs.0.lff.weight"].shape) == (g0, g0 + layers * g, 1, 1)


def test_every_preset_builds():
    for preset in PRESETS:
        config, _ = make_configs({}, preset)
        assert infer_config(meta_model(config).state_dict(), preset) == config


def test_macs_of_rdn_b():
    assert round(make_configs({}, "rdn-b")[0].macs(32, 32) / 1e9, 2) == 22.65


@EVERY_TAIL
def test_macs_are_what_torch_counts(scale, upsample_channels, tail):
    config = tiny(scale, upsample_channels, tail)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        RDN(config, rdb="naive").eval()(torch.zeros(1, 3, 5, 7))
    assert 2 * config.macs(5, 7) == counter.get_total_flops()


@EVERY_TAIL
def test_output_and_gradients_are_the_papers_equations_in_float64(scale, upsample_channels, tail, seed):
    torch.manual_seed(seed)
    config = tiny(scale, upsample_channels, tail)
    model = RDN(config).double()
    x = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    upstream = torch.randn(2, 3, 5 * scale, 7 * scale, dtype=torch.float64)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    y, expected = model(x), oracle(x, parameters, config)
    y.backward(upstream)
    expected.backward(upstream)
    assert_same_in_float64(y, expected, f"output, seed {seed}")
    for name, p in model.named_parameters():
        assert_same_in_float64(p.grad, parameters[name].grad, f"gradient of {name}, seed {seed}")


def test_float32_is_as_good_as_plain_torch(seed):
    torch.manual_seed(seed)
    config = tiny(3)
    model, x = RDN(config).eval(), torch.rand(1, 3, 9, 7)
    with torch.inference_mode():
        y, state = model(x), model.state_dict()
        assert y.dtype == torch.float32
        assert_as_good_as_naive(
            y, oracle(x, state, config), oracle(x, state, config, torch.float32), torch.float32, f"seed {seed}"
        )


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_low_precision_computes_where_its_level_says(level, amp, seed):
    torch.manual_seed(seed)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    output_dtype = torch.float32 if level == "O1" else low
    config = tiny(2)
    model, x = RDN(config), torch.rand(1, 3, 7, 5)
    resolve(level, amp, torch.device("cpu")).apply(model)
    y = model(x)
    assert y.dtype == output_dtype
    with torch.no_grad():
        state = {name: value.clone() for name, value in model.state_dict().items()}
        plain = oracle(x, state, config, low, output_dtype)
        expected = oracle(x, state, config)
        assert_as_good_as_naive(y, expected, plain, low, f"{level}, seed {seed}")
        assert relative_error(y, expected) > 1e-5  # float32 throughout would be nearer
    if level == "O1":  # the last convolution really ran in float32: its values do not fit in the low precision
        assert not torch.equal(y, y.to(low).float())
    y.float().square().mean().backward()
    for name, p in model.named_parameters():
        assert p.dtype == p.grad.dtype == torch.float32, name
        assert p.grad.isfinite().all(), name
        assert p.grad.count_nonzero(), name


def test_outer_convolutions_compute_in_a_dtype_of_their_own(monkeypatch):
    model, x, seen = RDN(tiny(4), rdb="naive"), torch.rand(1, 3, 7, 5), []
    conv, low, high = rdn_fast.model._conv, torch.bfloat16, torch.float32
    monkeypatch.setattr(rdn_fast.model, "_conv", lambda layer, y: seen.append((layer, y.dtype)) or conv(layer, y))
    with model.computing(Precision("O1", low, high, outer=high)):
        y = model(x)
    outer = [model.sfe1, *(layer for layer in model.upscale if isinstance(layer, torch.nn.Conv2d)), model.output]
    inner = [model.sfe2, *model.gff]
    assert dict(seen) == dict.fromkeys(outer, high) | dict.fromkeys(inner, low)
    expected = model(x)
    assert 0 < relative_error(y, expected) < 0.01
    y.sum().backward()
    assert all(p.grad.dtype == high and p.grad.isfinite().all() for p in model.parameters())


def test_precision_can_be_taken_back(seed):
    torch.manual_seed(seed)
    model, x = RDN(tiny()), torch.rand(1, 3, 5, 5)
    before = model(x)
    resolve("O2", "bf16", torch.device("cpu")).apply(model)
    assert not torch.equal(model(x).float(), before)
    resolve("O0", "bf16", torch.device("cpu")).apply(model)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("fails", [False, True])
def test_computing_applies_within_its_block_only(fails):
    model, x = RDN(tiny(), rdb="naive"), torch.rand(1, 3, 5, 5)
    resolve("O2", "bf16", torch.device("cpu")).apply(model)
    before = model(x)
    with pytest.raises(UserError) if fails else nullcontext(), model.computing(None, "sliced"):
        assert model.rdb == "sliced"
        assert model(x).dtype == torch.float32
        with model.computing(resolve("O1", "fp16", torch.device("cpu"))):
            assert (model.compute_dtype, model.output_dtype, model.rdb) == (torch.float16, torch.float32, "sliced")
        if fails:
            raise UserError("stop")
    assert model.rdb == "naive"
    assert torch.equal(model(x), before)


@EVERY_TAIL
def test_infer_config_returns_the_shape_of_the_weights(scale, upsample_channels, tail):
    for shape in (TINY, {"num_features": 3, "growth_rate": 8, "num_blocks": 11, "num_layers": 1}):
        config = ModelConfig(scale=scale, upsample_channels=upsample_channels, tail=tail, **shape)
        assert infer_config(RDN(config).state_dict(), "w.pth") == config


def test_a_mean_shift_is_subtracted_from_the_input_and_inferred(seed):
    torch.manual_seed(seed)
    config = ModelConfig(**TINY, mean_shift=True)
    model, x = RDN(config).double(), torch.rand(1, 3, 5, 4, dtype=torch.float64)
    model.mean.copy_(torch.rand(3))
    assert infer_config(model.state_dict(), "w.pth") == config
    with torch.no_grad():
        y, expected = model(x), oracle(x, model.state_dict(), config)
    assert_same_in_float64(y, expected, f"seed {seed}")
    assert describe(config) == "RDN x2 D2 C2 G4 G0 6, mean colour subtracted"


def test_infer_config_of_an_explicit_default_tail():
    config = tiny(2, upsample_channels=6)
    assert infer_config(RDN(config).state_dict(), "w.pth") == tiny(2)


@pytest.mark.parametrize("missing", ["sfe1.weight", "rdbs.0.layers.0.conv.weight", "output.weight", "upscale.0.weight"])
def test_infer_config_names_the_file_and_the_missing_key(missing):
    state = RDN(tiny()).state_dict()
    del state[missing]
    with pytest.raises(UserError) as caught:
        infer_config(state, "some/w.pth")
    assert str(caught.value).startswith("some/w.pth: ")
    assert missing in str(caught.value)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("sfe1.weight", ()),
        ("output.weight", (3,)),
        ("output.weight", (3, 0, 3, 3)),
        ("upscale.0.weight", (150, 6, 3, 3)),  # that would be x5
    ],
)
def test_infer_config_of_impossible_shapes_is_a_user_error_about_the_file(key, shape):
    state = RDN(tiny()).state_dict() | {key: torch.zeros(shape)}
    with pytest.raises(UserError, match="weights_of_mine"):
        infer_config(state, "weights_of_mine.pth")


def test_a_state_that_fits_passes_its_check():
    check_state(tiny(), RDN(tiny()).state_dict(), "w.pth")


def test_describe():
    assert describe(make_configs({}, "rdn-b")[0]) == "RDN x2 D16 C8 G64 G0 64"
    assert describe(make_configs({"scale": 4}, "rdn-a-edsr")[0]) == "RDN x4 D20 C6 G32 G0 64, 32 after up-sampling"
    assert describe(tiny(3, None, "espcn")) == "RDN x3 D2 C2 G4 G0 6, tail espcn"


def without(state, *keys):
    return {name: value for name, value in state.items() if name not in keys}


MISFITS = {
    "missing": (lambda s: without(s, "gff.1.bias"), ["missing gff.1.bias"]),
    "unexpected": (lambda s: s | {"step_counter": torch.zeros(1)}, ["unexpected step_counter"]),
    "wrong shape": (
        lambda s: s | {"sfe2.weight": torch.zeros(6, 7, 3, 3)},
        ["sfe2.weight is [6, 7, 3, 3], not [6, 6, 3, 3]"],
    ),
    "all three": (
        lambda s: without(s, "sfe1.bias") | {"extra": torch.zeros(1), "output.bias": torch.zeros(4)},
        ["missing sfe1.bias", "unexpected extra", "output.bias is [4], not [3]"],
    ),
    "other model": (
        lambda s: {f"module.{name}": value for name, value in s.items()},
        ["missing gff.0.bias", "unexpected module.gff.0.bias", "and 18 more"],
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_check_state_tells_what_does_not_fit(misfit):
    spoil, expected = MISFITS[misfit]
    with pytest.raises(UserError) as caught:
        check_state(tiny(), spoil(RDN(tiny()).state_dict()), "some/w.pth")
    message = str(caught.value)
    assert message.startswith("some/w.pth does not fit this model (RDN x2 D2 C2 G4 G0 6): ")
    assert "\n" not in message
    for text in expected:
        assert text in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", 1),
        ("scale", 5),
        ("num_features", 0),
        ("growth_rate", -1),
        ("num_blocks", 0),
        ("num_layers", 0),
        ("upsample_channels", 0),
    ],
)
def test_config_refuses_impossible_values(field, value):
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} {value}"):
        ModelConfig(**{field: value})


def test_espcn_has_its_own_channels():
    with pytest.raises(UserError, match="--upsample-channels 5: --tail espcn has its own"):
        tiny(2, 5, "espcn")


def test_settings_refuse_an_unknown_preset_and_name_the_known():
    with pytest.raises(UserError, match=r"--preset rdn-z: .*rdn-b"):
        make_configs({}, "rdn-z")
