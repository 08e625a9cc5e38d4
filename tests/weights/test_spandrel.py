"""The real spandrel loads RDN weights of every layout, by its own loader.

Skipped where spandrel is not installed. A slow test of test_real_weights.py fetches it and runs these.
"""

from importlib.util import find_spec

import pytest
import torch
from keras_files import Idealo, save_hdf5
from runs import photograph
from test_read_weights import LAYOUTS
from weight_files import assert_equal, saved

from bench.parity import SLACK, relative_error
from rdn_fast.config import ModelConfig
from rdn_fast.weights.convert import convert, load_model, read_weights
from rdn_fast.weights.load import load_tensors
from rdn_fast.weights.shipped import select

SHIPPED = select().file

if find_spec("spandrel") is None or find_spec("einops") is None:
    pytest.skip("spandrel and einops are not installed", allow_module_level=True)

# spandrel unpickles tensors and dicts only, and takes the weights themselves where a checkpoint also has an average.
REFUSED = {"Ascend", "Ascend, of npu tensors", "Ascend, of npu tensors, of long ago"}
NOT_THE_AVERAGE = {"Lornatang", "our checkpoint, averaged"}


@pytest.fixture
def load(spandrel):
    """load(path) is what spandrel's loader makes of a file."""
    return spandrel.ModelLoader().load_from_file


def _picture(*shape: int) -> torch.Tensor:
    """Return a photograph as [1, 3, H, W] in 0..1."""
    return torch.from_numpy(photograph(*shape)).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("project", LAYOUTS.keys() - REFUSED - NOT_THE_AVERAGE)
def test_a_model_of_every_layout_computes_what_its_project_does(load, tmp_path, project, scale):
    build, save, _ = LAYOUTS[project]
    theirs = build(scale)
    theirs.scale = scale
    path = tmp_path / ("w.safetensors" if project.startswith("safetensors") else "w.pth")
    save(path, theirs)
    model, x = load(path), _picture(9, 7)
    with torch.no_grad():
        expected = (theirs.double()(x.double() * theirs.top) / theirs.top).clamp(0, 1)
    assert (model.architecture.id, model.scale) == ("RDN", scale)
    assert relative_error(model(x), expected) <= SLACK[torch.float32]


@pytest.mark.parametrize("project", sorted(LAYOUTS))
def test_no_other_architecture_takes_rdn_weights_for_its_own(spandrel, tmp_path, project):
    build, save, _ = LAYOUTS[project]
    theirs = build(2)
    theirs.scale = 2
    save(tmp_path / "w", theirs)
    state = spandrel.canonicalize_state_dict(load_tensors(tmp_path / "w")[0])
    assert [each.architecture.id for each in spandrel.MAIN_REGISTRY if each.detect(state)] == ["RDN"]


@pytest.mark.parametrize("project", sorted(REFUSED | NOT_THE_AVERAGE))
def test_what_spandrel_reads_otherwise_goes_by_way_of_convert(spandrel, load, tmp_path, project):
    build, save, _ = LAYOUTS[project]
    theirs = build(2)
    theirs.scale = 2
    save(tmp_path / "w.pth", theirs)
    if project in REFUSED:
        with pytest.raises(Exception, match="is forbidden"):
            load(tmp_path / "w.pth")
    convert(str(tmp_path / "w.pth"), str(tmp_path / "w.safetensors"))
    assert_equal(load(tmp_path / "w.safetensors").model.state_dict(), read_weights(tmp_path / "w.pth").state)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_idealos_tail_goes_by_way_of_convert(load, tmp_path, scale):
    source = save_hdf5(tmp_path / "rdn.hdf5", Idealo(scale))
    with pytest.raises(ValueError, match="Unsupported model file extension"):
        load(source)
    convert(str(source), str(tmp_path / "rdn.pth"))
    assert_same_results(load(tmp_path / "rdn.pth"), load_model(source, "cpu"), _picture(11, 6))


def assert_same_results(model, ours, x: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = ours(x).clamp(0, 1)
    assert relative_error(model(x), expected.double()) <= SLACK[torch.float32]


def test_the_shipped_model(load):
    model = load(SHIPPED)
    c = ModelConfig(2, 48, 48, 6, 4)
    assert (model.model.config, model.scale, model.purpose) == (c, 2, "SR")
    assert (model.input_channels, model.output_channels) == (3, 3)
    assert model.tags == ["48nf", "6nb", "4nl", "48gr"]
    assert model.tiling.name == "SUPPORTED"
    sizes = model.size_requirements
    assert (sizes.minimum, sizes.multiple_of, sizes.square) == (0, 1, False)
    for shape in ((1, 1), (37, 52)):
        assert_same_results(model, load_model(device="cpu"), _picture(*shape))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 1), (torch.bfloat16, 4)])
def test_low_precision_is_supported(load, dtype, most):
    """most: levels of 255 from float32."""
    model, x = load(SHIPPED), _picture(24, 24)
    whole = model(x)
    low = model.to(dtype)(x.to(dtype))
    assert low.dtype == dtype
    assert 0 < 255 * (low - whole).abs().max() <= most


def test_weights_that_are_not_quite_an_rdns_say_why(spandrel, load, tmp_path):
    state = dict(read_weights(SHIPPED).state)
    for key, value, reason in (
        ("gff.1.bias", None, r"the state dict does not fit .*missing gff\.1\.bias"),
        ("gff.1.bias", torch.full((48,), torch.nan), r"gff\.1\.bias holds values that are not finite"),
        ("attention.weight", torch.zeros(3), r"unexpected attention\.weight"),
    ):
        changed = {k: v for k, v in (state | {key: value}).items() if v is not None}
        with pytest.raises(spandrel.UnsupportedModelError, match=reason):
            load(saved(tmp_path / "w.pth", changed))


def test_other_models_are_left_to_others(spandrel, load, tmp_path):
    with pytest.raises(spandrel.UnsupportedModelError):
        load(saved(tmp_path / "w.pth", {"conv.weight": torch.zeros(3, 3, 3, 3)}))
    with pytest.raises(spandrel.UnsupportedModelError):
        load(saved(tmp_path / "w.pth", {"epoch": 3}))
    assert spandrel.MAIN_REGISTRY.architectures("detection")[-1].architecture.id == "RDN"


def test_a_second_install_changes_nothing_and_a_registry_can_be_given(spandrel):
    from rdn_fast.spandrel import install

    before = len(spandrel.MAIN_REGISTRY)
    install()
    assert len(spandrel.MAIN_REGISTRY) == before
    own = spandrel.ArchRegistry()
    install(own)
    assert spandrel.ModelLoader(registry=own).load_from_file(SHIPPED).scale == 2
