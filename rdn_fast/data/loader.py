"""Augmented uint8 batches from memory-mapped pairs, the same whatever the number of threads or ranks, from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from rdn_fast.data import augment
from rdn_fast.data.h5 import Pairs
from rdn_fast.data.ordered import ordered_map
from rdn_fast.device import memory_format
from rdn_fast.errors import UserError


class Batch(NamedTuple):
    """One rank's share of a step.

    lr: uint8 [b, p, p, 3], hr: uint8 [b, s*p, s*p, 3]; `count` of the b patches are this rank's (0 or b: a rank with an
    empty share computes one patch that does not count), `total` is the step's count over all ranks.
    """

    lr: torch.Tensor
    hr: torch.Tensor
    count: int
    total: int


class Loader:
    """Cuts one patch from every image in every epoch, `batch_size` per rank and step; the last partial batch is kept."""

    def __init__(self, pairs: Pairs, scale: int, patch_size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, workers: int = 1):
        """Raises UserError when no image is as large as the patch; smaller ones are left out and named in `left_out`."""
        sizes = np.array([lr.shape[:2] for lr in pairs.lr])  # [N, 2]
        keep = np.flatnonzero((sizes >= patch_size).all(axis=1))
        if not len(keep):
            largest = max(sizes, key=min)
            raise UserError(
                f"{pairs.path}: no image is as large as the patch ({patch_size}x{patch_size} LR pixels; the largest is "
                f"{largest[1]}x{largest[0]}): give a smaller --patch-size, or prepare larger images"
            )
        self.left_out = [pairs.names[i] for i in np.setdiff1d(np.arange(len(pairs)), keep)]
        self._lr = [pairs.lr[i] for i in keep]
        self._hr = [pairs.hr[i] for i in keep]
        self._sizes = sizes[keep]
        self.path, self._scale, self._patch, self._seed = pairs.path, scale, patch_size, seed
        self._rank, self._world, self._workers = rank, world, workers
        self.global_batch = batch_size * world

    def __len__(self) -> int:
        """Patches in an epoch, over all ranks."""
        return len(self._lr)

    @property
    def steps(self) -> int:
        """Steps in an epoch; the last one may be partial."""
        return -(-len(self) // self.global_batch)

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """This rank's batches of `epoch` from step `start` to before `stop` (None: the end), cut ahead of time by the fill threads."""
        order = augment.order(self._seed, epoch, len(self))

        def fill(step: int) -> Batch:
            chosen = order[step * self.global_batch : (step + 1) * self.global_batch]
            mine = np.array_split(chosen, self._world)[self._rank]
            lr, hr = self._cut(epoch, mine if len(mine) else chosen[:1])
            return Batch(lr, hr, len(mine), len(chosen))

        return ordered_map(fill, range(start, self.steps if stop is None else min(stop, self.steps)), self._workers, ahead=self._workers + 2)

    def _cut(self, epoch: int, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        plan = augment.plan(self._seed, epoch, index, self._sizes[index], self._patch)
        p, s = self._patch, self._scale
        lr = np.empty((len(index), p, p, 3), np.uint8)
        hr = np.empty((len(index), s * p, s * p, 3), np.uint8)
        for k, i in enumerate(index):
            lr[k] = augment.cut(self._lr[i], plan, k, p, 1)
            hr[k] = augment.cut(self._hr[i], plan, k, p, s)
        return torch.from_numpy(lr), torch.from_numpy(hr)


def to_float(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [B, H, W, 3] on the host -> float32 [B, 3, H, W] in 0..1 on the device, in the device's memory format."""
    floats = batch.to(device).permute(0, 3, 1, 2).float().div_(255)
    return floats.contiguous(memory_format=memory_format(device))
