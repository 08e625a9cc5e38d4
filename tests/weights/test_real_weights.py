"""Weights that others have trained, out of a package of npm's: read, compared with each other, and measured on Set5.

They need npm, pip and registries that these reach. Set5 (HR pictures) lies in the folder that RDN_SET5 names.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ROOT, photograph

from rdn_fast.config import ModelConfig
from rdn_fast.evaluation.evaluate import evaluate
from rdn_fast.weights.convert import convert, load_model, read_weights

PACKAGES = ("@upscalerjs/models@0.9.0", "@upscalerjs/esrgan-slim@1.0.0")
PSNR_SMALL = ModelConfig(2, 64, 64, 10, 3, tail="espcn")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The folders `models` of the packages, by name."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folders = {}
    for package in PACKAGES:
        folder = tmp_path_factory.mktemp("npm")
        packed = subprocess.run(["npm", "pack", package], check=False, cwd=folder, capture_output=True, text=True)
        if packed.returncode:
            pytest.skip(f"npm cannot fetch {package}: {packed.stderr.strip().splitlines()[-1]}")
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        folders[package.split("/")[1].partition("@")[0]] = folder / "package" / "models"
    return folders


def test_quantized_and_whole_numbers_are_the_same_model(packages):
    folder = packages["models"] / "idealo" / "psnr-small-quant-uint8"
    (whole,) = folder.glob("*.h5")
    quantized, exact = read_weights(folder), read_weights(whole)
    assert quantized.config == exact.config == PSNR_SMALL
    assert quantized.layout == exact.layout == "idealo"
    for key, value in exact.state.items():
        step = (value.max() - value.min()) / 255
        assert (quantized.state[key] - value).abs().max() <= (4 if key == "output.weight" else 0.51) * step, key


@pytest.mark.parametrize(("scale", "name"), [(2, "005-2x"), (3, "019-3x"), (4, "017-4x")])
def test_upscalerjs_own_models_are_read(packages, scale, name):
    assert read_weights(packages["models"] / "div2k" / name).config == ModelConfig(scale, 64, 64, 10, 3, tail="espcn")


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_small_model_of_every_scale_enlarges_a_flat_picture(packages, scale):
    model = load_model(packages["esrgan-slim"] / f"x{scale}", "cpu")
    assert model.config == ModelConfig(scale, 64, 4, 2, 1, tail="espcn")
    with torch.inference_mode():
        y = model(torch.full((1, 3, 24, 24), 0.5))
    assert y.shape == (1, 3, 24 * scale, 24 * scale)
    assert (y[..., 8 * scale : -8 * scale, 8 * scale : -8 * scale] - 0.5).abs().max() < 0.05


def test_spandrel_runs_idealos_weights(packages, spandrel, tmp_path):
    folder = packages["models"] / "idealo" / "psnr-small-quant-uint8"
    convert(str(folder), str(tmp_path / "psnr_small.safetensors"))
    model = spandrel.ModelLoader().load_from_file(tmp_path / "psnr_small.safetensors")
    assert (model.architecture.id, model.scale, model.model.config) == ("RDN", 2, PSNR_SMALL)
    x = torch.from_numpy(photograph(31, 44)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = load_model(folder, "cpu")(x).clamp(0, 1)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)


def test_spandrel_of_the_registry_runs_every_layout(tmp_path):
    """Run test_spandrel.py, and the test above, in a process that has spandrel and einops."""
    if find_spec("spandrel") is not None:
        pytest.skip("spandrel is installed: test_spandrel.py has run")
    fetch = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "packages"]
    fetched = subprocess.run([*fetch, "spandrel", "einops"], check=False, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"pip cannot fetch spandrel: {fetched.stderr.strip().splitlines()[-1]}")
    here = Path(__file__)
    tests = [here.with_name("test_spandrel.py"), f"{here}::{test_spandrel_runs_idealos_weights.__name__}"]
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", *tests]
    paths = os.pathsep.join([str(tmp_path / "packages"), str(ROOT)])
    ended = subprocess.run(
        run, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) > 100


def test_psnr_small_reaches_its_figures_on_set5(packages):
    """Canonical PSNR-Y in dB; LR pictures by Pillow."""
    if "RDN_SET5" not in os.environ:
        pytest.skip("RDN_SET5 names no folder of Set5's HR pictures")
    folder = packages["models"] / "idealo" / "psnr-small-quant-uint8"
    (whole,) = folder.glob("*.h5")
    for weights, mean in ((folder, 35.99), (whole, 36.66)):
        (result,) = evaluate(str(weights), [os.environ["RDN_SET5"]], device="cpu")["sets"]
        assert round(result["mean"]["psnr_y"], 2) == mean
        if weights == folder:
            psnr = [image["psnr_y"] for image in result["images"]]
            np.testing.assert_allclose(psnr, [37.70, 39.68, 32.01, 35.44, 35.15], atol=0.006)
