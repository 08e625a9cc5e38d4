"""Files that people take for weights: told for what they are, with a remedy."""

import gzip
import io
import zipfile

import numpy as np
import other_projects as others
import pytest
import torch
from PIL import Image
from weight_files import torch_saved

from rdn_fast.weights import onnx_export
from rdn_fast.weights.convert import load_model


def _written(save) -> bytes:
    save(file := io.BytesIO())
    return file.getvalue()


def _zip(*names: str) -> bytes:
    def save(file):
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, b"content")

    return _written(save)


def _onnx() -> bytes:
    pytest.importorskip("onnx")
    return onnx_export.build(load_model(None, "cpu"), (1, 8, 8), 13).SerializeToString()


def _script() -> bytes:
    return _written(lambda file: torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 3, 3)), file))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 89000000\n"
KINDS = {
    "Git LFS": (lambda: LFS, "is a Git LFS pointer, not the file that it stands for; run `git lfs pull`"),
    "a web page": (lambda: b"\n  <!DOCTYPE html><html><title>Sign in</title>", "is a web page, not the file behind it"),
    "an XML error": (lambda: b'\xef\xbb\xbf<?xml version="1.0"?><Error>NoSuchKey</Error>', "is a web page"),
    "TorchScript": (_script, "is a TorchScript program; where it comes from, save model.state_dict()"),
    "ONNX": (_onnx, "is an ONNX model, which only upscale and eval take; give the weights that it was made of"),
    "TensorFlow Lite": (lambda: b"\x1c\0\0\0TFL3" + bytes(100), "is a TensorFlow Lite model"),
    "Keras 3": (lambda: _zip("metadata.json", "config.json", "model.weights.h5"), "is an archive of Keras 3"),
    "NumPy": (lambda: _written(lambda file: np.savez(file, a=np.zeros(3))), "is an archive of NumPy arrays"),
    "a zip archive": (lambda: _zip("RDN/RDN_x2.pth"), "is a zip archive; unpack it, and give the weights in it"),
    "gzip": (lambda: gzip.compress(torch_saved(others.Reference(2).state_dict())), "is compressed by gzip; unpack it"),
    "a picture": (lambda: _written(lambda file: Image.new("RGB", (4, 4)).save(file, "PNG")), "is a picture"),
    "Torch7's text": (lambda: b"4\n1\n3\nV 1\n13\nnn.Sequential\n", "is a Torch7 file of text"),
    "nothing": (lambda: b"", "is empty; download or copy it again"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["w.pth", "w.onnx"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_told_for_what_it_is(cli, tmp_path, kind, name):
    make, expected = KINDS[kind]
    (tmp_path / name).write_bytes(make())
    message = cli("convert", tmp_path / name, tmp_path / "out.pth").user_error()
    assert message.startswith(f"{tmp_path / name}: {expected}")
    assert list(tmp_path.iterdir()) == [tmp_path / name]
