"""`-w model.onnx`: a network in an ONNX file, computed by onnxruntime on the CPU, called as an RDN is.

A file says what it is in its metadata, as `rdn-fast export` writes it: `scale`, `value_range` (0..1 or 0..255),
`colours` (RGB or BGR), `receptive_radius` (in LR pixels) and `architecture`. Of a file that does not, a trial run tells
the scale, and the rest is assumed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rdn_fast import devices
from rdn_fast.errors import UserError, one_line
from rdn_fast.model import RDN
from rdn_fast.weights import other_files
from rdn_fast.weights.convert import load_model

_RADIUS = 32  # LR pixels: assumed of a file that does not say how far its network sees
_BYTES_PER_PIXEL = 32_768  # of memory, for each LR pixel: more than any RDN takes in onnxruntime
_TRIAL = 64  # LR pixels: edge of the picture whose result tells the scale
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_WHITE = {"0..1": 1, "0..255": 255}
_COLOURS = {"RGB": slice(None), "BGR": slice(None, None, -1)}


def load_any_model(path: str | Path | None = None, device: str = "auto") -> RDN | OnnxModel:
    """As load_model(), but an ONNX file gives an OnnxModel."""
    if not isinstance(path, (str, os.PathLike)) or not os.path.isfile(path):
        return load_model(path, device)
    with Path(path).open("rb") as file:
        is_onnx = other_files.is_onnx(file.read(16)) or Path(path).suffix == ".onnx"
    if not is_onnx:
        return load_model(path, device)
    if device != "auto" and not devices.is_host(devices.pick(str(device))):
        raise UserError(f"--device {device}: ONNX files are computed on the CPU alone; leave it out, or give weights")
    return OnnxModel(str(path))


@dataclass(frozen=True)
class OnnxConfig:
    """What is known of every file's network."""

    scale: int


class OnnxModel:
    """A super-resolution network in an ONNX file: NCHW, 3 channels in and out, some whole number of times as large.

    Called with float32 [1, 3, H, W], RGB in 0..1, on the host; gives [1, 3, scale*H, scale*W], not clamped.
    window: the LR size (H, W) that the file takes, None: any. Smaller pictures are continued by reflection within it.
    device, receptive_radius and in_words: as of RDN.

    Raises UserError naming the file: damaged, another kind of network, or one that onnxruntime cannot compute.
    """

    def __init__(self, path: str):
        self._path, self.device = path, torch.empty(0).device
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{path}: needs onnxruntime ({error}); pip install onnx onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # an error is one line, ours
        try:
            self._session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        except Exception as error:  # its classes have no other base
            reason = f"onnxruntime {onnxruntime.__version__} cannot load it ({one_line(error)})"
            raise UserError(f"{path}: {reason}; get it anew, or export it anew") from None
        self._input, self._dtype, self.window = self._inspect()
        said = self._session.get_modelmeta().custom_metadata_map
        self._white = self._chosen(said, "value_range", _WHITE)
        self._order = self._chosen(said, "colours", _COLOURS)
        self.receptive_radius = self._number(said, "receptive_radius") or _RADIUS
        self.config = OnnxConfig(self._number(said, "scale", 2) or self._find_scale())
        words = [said.get("architecture", f"a network for x{self.config.scale}")]
        words.append(f"ONNX in onnxruntime {onnxruntime.__version__}")
        if self.window:
            words.append("{} x {} LR pixels at a time".format(*self.window))
        usual = {"colours": "RGB", "value_range": "0..1", "receptive_radius": f"of {_RADIUS} LR pixels"}
        assumed = [f"{key.replace('_', ' ')} {value}" for key, value in usual.items() if key not in said]
        if assumed:
            words.append(f"assumed, as the file does not say: {', '.join(assumed)}")
        self.in_words = ", ".join(words)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        below, right = (edge - side for edge, side in zip(self.window or x.shape[2:], x.shape[2:], strict=True))
        if min(below, right) < 0:
            remedy = "only a file for squares can compute turned pictures (--self-ensemble)"
            raise UserError(f"{self._path}: takes {self.window[0]} x {self.window[1]} LR pixels, {remedy}")
        image, s = x.numpy()[:, self._order] * np.float32(self._white), self.config.scale
        whole = np.empty((1, 3, s * height, s * width), np.float32)
        for above, rows in _placements(height, below):
            for left, columns in _placements(width, right):
                placed = np.pad(image, ((0, 0), (0, 0), (above, below - above), (left, right - left)), "reflect")
                y = self._run(placed)
                if y.shape != (1, 3, s * placed.shape[2], s * placed.shape[3]):
                    shapes = f"of {list(placed.shape)} it makes {list(y.shape)}"
                    raise UserError(f"{self._path}: is no network for pictures at x{s}: {shapes}; give another file")
                y = y[:, self._order, s * above :, s * left :][..., : s * height, : s * width]
                part = ..., slice(s * rows.start, s * rows.stop), slice(s * columns.start, s * columns.stop)
                whole[part] = y[part]
        return torch.from_numpy(whole / np.float32(self._white))

    def parameters(self) -> Iterator[torch.Tensor]:
        """Yield the numbers that the file holds, as tensors on the host. Raises UserError without the package onnx."""
        try:
            import onnx
        except ImportError as error:
            raise UserError(f"{self._path}: needs onnx to be described ({error}); pip install onnx") from None
        for weight in onnx.load(self._path).graph.initializer:
            yield torch.from_numpy(np.array(onnx.numpy_helper.to_array(weight)))

    def computing(self, precision, rdb=None) -> AbstractContextManager:
        """As of RDN, but a file computes in its own precision, by itself."""
        return nullcontext()

    def frozen(self) -> OnnxModel:
        """As of RDN, but nothing changes a file's weights anyway."""
        return self

    def bytes_per_pixel(self, dtype: torch.dtype) -> int:
        return _BYTES_PER_PIXEL

    def _inspect(self) -> tuple[str, type, tuple[int, int] | None]:
        """Return the input's name and dtype, and the LR size (H, W) if there is only one."""
        inputs = self._session.get_inputs()
        shape, kind = list(inputs[0].shape), inputs[0].type
        free = [not isinstance(edge, int) or edge < 1 for edge in shape]
        fits = len(inputs) == 1 and len(shape) == 4 and kind in _DTYPES
        if not fits or not (free[0] or shape[0] == 1) or not (free[1] or shape[1] == 3) or free[2] != free[3]:
            takes = "; ".join(f"{each.name}: {each.type} {each.shape}" for each in inputs)
            wanted = "one float picture [1, 3, height, width], both of one size or both of any"
            raise UserError(f"{self._path}: takes {takes}; a network is needed that takes {wanted}")
        return inputs[0].name, _DTYPES[kind], None if free[2] else (shape[2], shape[3])

    def _find_scale(self) -> int:
        """Return the scale of a grey picture's result."""
        image = np.full((1, 3, *(self.window or (_TRIAL, _TRIAL))), 0.5 * self._white, np.float32)
        y = self._run(image)
        scale = y.shape[-1] // image.shape[-1] if y.ndim == 4 else 0
        if scale < 2 or y.shape != (1, 3, scale * image.shape[2], scale * image.shape[3]):
            shapes = f"of {list(image.shape)} it makes {list(y.shape)}"
            raise UserError(
                f"{self._path}: makes no picture that is a whole number of times as large: {shapes}; give another file"
            )
        return scale

    def _run(self, image: np.ndarray) -> np.ndarray:
        """Return the file's first output, float32, for [1, 3, H, W]. Raises RuntimeError where memory is short."""
        try:
            return self._session.run(None, {self._input: image.astype(self._dtype, copy=False)})[0].astype(np.float32)
        except Exception as error:  # onnxruntime's classes have no other base
            reason = one_line(error)
            if "allocate memory" in reason or "bad_alloc" in reason:
                raise RuntimeError(f"onnxruntime: out of memory ({reason})") from None
            size = "{} x {}".format(*image.shape[2:])
            raise UserError(f"{self._path}: cannot be computed for {size} LR pixels ({reason})") from None

    def _number(self, said: dict[str, str], key: str, least: int = 1) -> int | None:
        if key not in said:
            return None
        if not said[key].isdecimal() or int(said[key]) < least:
            raise UserError(
                f"{self._path}: its metadata has {key} {said[key]}, no number from {least} on; export it anew"
            )
        return int(said[key])

    def _chosen(self, said: dict[str, str], key: str, known: dict):
        """Return the value of what the metadata names, or of the first known name."""
        name = said.get(key, next(iter(known)))
        if name not in known:
            raise UserError(f"{self._path}: its metadata has {key} {name}; known are {' and '.join(known)}")
        return known[name]


def _placements(side: int, missing: int) -> list[tuple[int, range]]:
    """Return where to place an axis of `side` pixels in a window that is longer by `missing`: (offset, what is kept).

    Layers see zeros beyond the window's border alone. So a smaller picture is computed at both ends of the window, and
    of either result that half is kept which lies at the border.
    """
    half = side // 2
    return [(0, range(half)), (missing, range(half, side))] if missing else [(0, range(side))]
