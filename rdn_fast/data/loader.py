"""Which patches make which batch: a pure function of the step, the same for every mode of delivery (data/feed.py)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rdn_fast.data import augment
from rdn_fast.data.h5 import Pairs
from rdn_fast.errors import UserError


class Share(NamedTuple):
    """One rank's patches of a step: the images' numbers in the file [b], how they are cut; `count` and `total` as in feed.Batch."""

    images: np.ndarray
    plan: augment.Plan
    count: int
    total: int


class Loader:
    """Cuts one patch from every image in every epoch, `batch_size` per rank and step; `drop_last`: leaves out the last, partial batch."""

    def __init__(self, pairs: Pairs, patch_size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, drop_last: bool = False):
        """Raises UserError when no image is as large as the patch; smaller ones are left out and named in `left_out`."""
        large = (pairs.sizes >= patch_size).all(axis=1)
        if not large.any():
            largest = max(pairs.sizes, key=min)
            raise UserError(
                f"{pairs.path}: no image is as large as the patch ({patch_size}x{patch_size} LR pixels; the largest is "
                f"{largest[1]}x{largest[0]}): give a smaller --patch-size, or prepare larger images"
            )
        self.left_out = [pairs.names[i] for i in np.flatnonzero(~large)]
        self.pairs, self.patch_size, self.batch_size = pairs, patch_size, batch_size
        self.rank, self._images, self._seed, self._world = rank, np.flatnonzero(large), seed, world
        self.global_batch = batch_size * world
        self.steps = len(self) // self.global_batch if drop_last else -(-len(self) // self.global_batch)  # in an epoch
        if not self.steps:
            raise UserError(f"--drop-last: {len(self)} images do not make one batch of {self.global_batch}; give a smaller --batch-size")
        self._plans: dict[int, tuple[np.ndarray, augment.Plan]] = {}

    def __len__(self) -> int:
        """Images, and so patches in an epoch over all ranks, those of a dropped last batch included."""
        return len(self._images)

    def share(self, step: int) -> Share:
        """This rank's share of `step`, counted from 0 through all epochs."""
        epoch, position = divmod(step, self.steps)
        order, plan = self._epoch(epoch)
        chosen = order[position * self.global_batch : (position + 1) * self.global_batch]
        mine = np.array_split(chosen, self._world)[self.rank]
        index = mine if len(mine) else chosen[:1]
        return Share(self._images[index], augment.Plan(*(field[index] for field in plan)), len(mine), len(chosen))

    def _epoch(self, epoch: int) -> tuple[np.ndarray, augment.Plan]:
        """The images' order in the epoch, and every image's patch."""
        plans = self._plans
        if epoch not in plans:
            index = np.arange(len(self))
            plan = augment.plan(self._seed, epoch, index, self.pairs.sizes[self._images], self.patch_size)
            before = {e: plans[e] for e in (epoch - 1,) if e in plans}  # other threads may still fill its last batches
            plans = self._plans = {**before, epoch: (augment.order(self._seed, epoch, len(self)), plan)}
        return plans[epoch]
