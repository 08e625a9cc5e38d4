"""The baselines' training loop over an h5 file: for every patch the file is opened and the whole image read, by DataLoader's workers.

`python -m bench.loop FILE.h5 --recipe reference --dtype float32 --batch-size 8`, or under torchrun; prints one line of JSON with both
speeds, counted as rdn_fast counts its own (rdn_fast/training/throughput.py).
"""

from __future__ import annotations

import argparse
import json

import h5py
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from bench import baseline
from bench.cases import PATCH
from rdn_fast import devices
from rdn_fast.config import make_configs
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.training.throughput import ThroughputMeter, per_second


class TrainDataset(Dataset):
    """lr float32 [3, p, p] and hr float32 [3, s*p, s*p] in 0..1 of image `index`: cut at random, flipped and rotated."""

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
        pair = (
            lr[top : top + PATCH, left : left + PATCH],
            hr[s * top : s * (top + PATCH), s * left : s * (left + PATCH)],
        )
        for axis in (0, 1):
            if np.random.random() < 0.5:
                pair = [np.flip(image, axis) for image in pair]
        if np.random.random() < 0.5:
            pair = [np.rot90(image) for image in pair]
        return tuple(image.astype(np.float32).transpose(2, 0, 1) / 255.0 for image in pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--preset", default="rdn-b")
    parser.add_argument("--recipe", choices=("reference", "stock"), default="reference")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--contiguous", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--graphed", action="store_true")
    options = parser.parse_args()

    ranks = Ranks()
    device = devices.pick(options.device, None, ranks.local_rank)
    ranks.connect(device)
    devices.enable_autotuning(device)  # as the reference's train.py does
    config = make_configs({}, options.preset)[0]
    given = (
        {name: getattr(options, name) for name in ("contiguous", "compiled", "graphed")}
        if options.recipe == "stock"
        else {}
    )
    wrap = DistributedDataParallel if ranks.world > 1 else lambda model: model
    recipe = {"reference": baseline.Reference, "stock": baseline.Stock}[options.recipe](
        config, device, getattr(torch, options.dtype), wrap, **given
    )

    dataset = TrainDataset(options.file, config.scale)
    sampler = DistributedSampler(dataset) if ranks.world > 1 else None
    workers = min(16, max(1, devices.count("cpu") // ranks.world))  # 16 in the seed system
    loader = DataLoader(
        dataset,
        options.batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=device.type != "cpu",
        drop_last=True,
    )
    speed = ThroughputMeter(device)
    for lr, hr in loader:
        speed.start_step()
        recipe.step(
            *(
                batch.to(device, non_blocking=options.recipe == "stock", memory_format=recipe.memory_format)
                for batch in (lr, hr)
            )
        )
        speed.end_step(len(lr) * ranks.world)
    speed.synchronize()
    images, seconds, window = speed.measured()
    if ranks.is_rank0:
        print(json.dumps({"images_s": per_second(images, seconds), "seed_images_s": per_second(images, window)}))
    ranks.close()


if __name__ == "__main__":
    main()
