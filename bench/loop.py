"""The baselines' datasets of an h5 file, and their training loop, which takes the reference's."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from bench import baseline
from bench.models import PATCH
from rdn_fast import devices
from rdn_fast.config import make_configs
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.training.throughput import ThroughputMeter, per_second

LR_SIZE = 351, 510  # height and width of DIV2K's five crops at x2, at most
DIFFERENT = 16  # distinct images, by default; the others are hard links to them


def noise(_: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng().integers(0, 256, (height, width, 3), np.uint8)


def write_h5(
    path: Path, images: int, scale: int, different: int = DIFFERENT, lr_size: tuple | None = None, image=noise
) -> None:
    """Write a file as the reference's prepare.py does, of `images` pairs, `different` of them distinct.

    `lr_size`: height and width of the LR images; None: LR_SIZE. image(i, height, width): uint8 [height, width, 3].
    """
    height, width = lr_size or LR_SIZE
    with h5py.File(path, "w") as file:
        for name, factor in (("lr", 1), ("hr", scale)):
            group = file.create_group(name)
            for i in range(min(images, different)):
                group[str(i)] = image(i, factor * height, factor * width)
            for i in range(different, images):
                group[str(i)] = group[str(i % different)]


class TrainDataset(Dataset):
    """lr float32 [3, p, p] and hr [3, s*p, s*p] in 0..1 of image `index`, cropped, flipped and rotated at random.

    The reference's: the file is opened, and whole images are read, for every patch.
    """

    def __init__(self, path: str, scale: int):
        self._path, self._scale = path, scale
        with h5py.File(path, "r") as file:
            self._length = len(file["lr"])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        with h5py.File(self._path, "r") as file:
            lr, hr = file["lr"][str(index)][:], file["hr"][str(index)][:]
        s, (top, left) = self._scale, (np.random.randint(size - PATCH + 1) for size in lr.shape[:2])
        y, x, size = s * top, s * left, s * PATCH
        pair = lr[top : top + PATCH, left : left + PATCH], hr[y : y + size, x : x + size]
        for axis in (0, 1):
            if np.random.random() < 0.5:
                pair = [np.flip(image, axis) for image in pair]
        if np.random.random() < 0.5:
            pair = [np.rot90(image) for image in pair]
        return tuple(image.astype(np.float32).transpose(2, 0, 1) / 255.0 for image in pair)


class PlainDataset(Dataset):
    """The same patches, as plain h5py, NumPy and DataLoader deliver them fastest.

    A worker opens the file once, reads only the crop, and makes a whole batch at a time: [index] -> lr, hr [B, ...].
    Four other forms, of single patches, of h5py's low-level API and of floats made elsewhere, were as fast or slower.
    """

    def __init__(self, path: str, scale: int):
        self._path, self._scale, self._images = path, scale, []
        with h5py.File(path, "r") as file:
            self._length = len(file["lr"])

    def __len__(self) -> int:
        return self._length

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._images:  # after the fork: an open file must not be shared
            file = h5py.File(self._path, "r")
            self._images = [(file["lr"][str(i)], file["hr"][str(i)]) for i in range(self._length)]
        sizes = PATCH, self._scale * PATCH
        batch = [np.empty((len(indices), size, size, 3), np.uint8) for size in sizes]
        for k, index in enumerate(indices):
            height, width, _ = self._images[index][0].shape
            top, left = np.random.randint(height - PATCH + 1), np.random.randint(width - PATCH + 1)
            way = np.random.randint(8)
            for image, factor, size, out in zip(self._images[index], (1, self._scale), sizes, batch, strict=True):
                y, x = factor * top, factor * left
                crop = image[y : y + size, x : x + size][:: -1 if way & 1 else 1, :: -1 if way & 2 else 1]
                out[k] = crop.swapaxes(0, 1) if way & 4 else crop
        return tuple(torch.from_numpy(part.transpose(0, 3, 1, 2) / np.float32(255)) for part in batch)


def train(path: str, preset: str, recipe: str, dtype: str, batch: int, device: str, options: dict) -> list | None:
    """Train one epoch by `recipe` of baseline.py with these options, on one rank or, under torchrun, on several.

    Return on rank 0 the two speeds as rdn_fast counts its own (training/throughput.py), in images per second over all
    ranks: end to end, and in the seed window.
    """
    ranks = Ranks()
    device = devices.pick(device, None, ranks.local_rank)
    ranks.connect(device)
    devices.enable_autotuning(device)  # as the reference's train.py does
    if devices.is_host(device):
        devices.keep_freed_memory()  # as rdn_fast's training does
    model_config = make_configs({}, preset)[0]
    wrap = DistributedDataParallel if ranks.world > 1 else None
    made = getattr(baseline, recipe)(model_config, device, getattr(torch, dtype), wrap, **options)
    dataset = TrainDataset(path, model_config.scale)
    sampler = DistributedSampler(dataset) if ranks.world > 1 else None
    how = {"shuffle": sampler is None, "sampler": sampler, "pin_memory": device.type != "cpu", "drop_last": True}
    workers = min(16, max(1, devices.count("cpu") // ranks.world))  # 16 in the seed system
    to = {"non_blocking": recipe == "stock", "memory_format": made.memory_format}
    meter = ThroughputMeter(device)
    for lr, hr in DataLoader(dataset, batch, num_workers=workers, **how):
        meter.start_step()
        made.step(lr.to(device, **to), hr.to(device, **to))
        meter.end_step(len(lr) * ranks.world)
    meter.end_lap()
    meter.read()
    images, seconds, window = meter.measured()
    ranks.close()
    return [per_second(images, seconds), per_second(images, window)] if ranks.is_rank0 else None
