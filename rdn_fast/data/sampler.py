"""Deterministic patch sampling: maps a step to the patches of its batch.

The result is independent of workers, ranks and loader mode.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rdn_fast.data import augment
from rdn_fast.data.augment import Plan
from rdn_fast.data.h5 import PairedH5
from rdn_fast.errors import UserError


class _Epoch(NamedTuple):
    """The M images of a sampler in one epoch. order: int64 [M]. starts: as in Share, [2, M]."""

    order: np.ndarray
    plan: Plan
    starts: np.ndarray | None


class Share(NamedTuple):
    """One rank's b patches of a step.

    images: int64 [b], numbers in the file. starts: int64 [2, b], addresses of the LR and HR crops in the file; None
    where it cannot be mapped. pitches: int64 [2, b], bytes from row to row. count, total: as in prefetch.Batch.
    """

    images: np.ndarray
    plan: Plan
    starts: np.ndarray | None
    pitches: np.ndarray
    count: int
    total: int


class PatchSampler:
    """Samples one patch of every image in every epoch, `batch_size` per rank and step.

    drop_last: leave out the last, partial batch of an epoch. `steps`: steps in an epoch.
    """

    def __init__(
        self,
        pairs: PairedH5,
        patch_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ):
        """patch_size: in LR pixels. Smaller images are left out and named in `left_out`.

        Raises UserError when no image is large enough, or when no batch is left.
        """
        large = (pairs.sizes >= patch_size).all(axis=1)
        if not large.any():
            largest = max(pairs.sizes, key=min)
            raise UserError(
                f"{pairs.path}: no image is as large as the patch ({patch_size}x{patch_size} LR pixels; the largest is "
                f"{largest[1]}x{largest[0]}): give a smaller --patch-size, or prepare larger images"
            )
        self.pairs, self.patch_size, self.batch_size, self.seed = pairs, patch_size, batch_size, seed
        self.rank, self.world = rank, world
        self.left_out = pairs.names(np.flatnonzero(~large)) if not large.all() else []
        self.images = np.flatnonzero(large)  # [M], numbers in the file
        self.factors = 1, pairs.scale  # of LR and HR
        self.edges = tuple(factor * patch_size for factor in self.factors)  # of LR and HR patches, in pixels
        self.patch_bytes = sum(3 * edge**2 for edge in self.edges)
        self._pitches = np.outer([3 * factor for factor in self.factors], pairs.sizes[self.images, 1])  # [2, M]
        self.global_batch = batch_size * world
        self.steps = len(self) // self.global_batch if drop_last else -(-len(self) // self.global_batch)
        if not self.steps:
            raise UserError(
                f"{pairs.path}: {len(self)} images do not make one batch of {self.global_batch}; "
                "give a smaller --batch-size, or leave out --drop-last"
            )
        self._epochs: dict[int, _Epoch] = {}

    def __len__(self) -> int:
        """Return the number of images that are large enough."""
        return len(self.images)

    @property
    def patches(self) -> int:
        """Patches in an epoch, over all ranks."""
        return min(len(self), self.steps * self.global_batch)

    def share(self, step: int) -> Share:
        """Return this rank's share of `step`, counted from 0 through all epochs. Thread-safe."""
        number, position = divmod(step, self.steps)
        epoch = self._epoch(number)
        batch = epoch.order[position * self.global_batch : (position + 1) * self.global_batch]
        each, more = divmod(len(batch), self.world)  # the first `more` ranks have one patch more
        begin = self.rank * each + min(self.rank, more)
        count = each + (self.rank < more)
        index = batch[begin : begin + count] if count else batch[:1]
        return Share(
            self.images[index],
            Plan(*(field[index] for field in epoch.plan)),
            None if epoch.starts is None else epoch.starts.take(index, axis=1),
            self._pitches.take(index, axis=1),
            count,
            len(batch),
        )

    def _epoch(self, number: int) -> _Epoch:
        """Return the epoch, from memory if a thread has computed it.

        There is no lock: a process forked while another thread holds it would wait forever. Two threads may compute the
        same epoch.
        """
        epochs = self._epochs
        if number not in epochs:
            previous = {n: epochs[n] for n in (number - 1,) if n in epochs}  # threads may still fill its last batches
            epochs = self._epochs = {**previous, number: self._draw(number)}
        return epochs[number]

    def _draw(self, number: int) -> _Epoch:
        pairs, m = self.pairs, len(self)
        plan = augment.plan(self.seed, number, np.arange(m), pairs.sizes[self.images], self.patch_size)
        starts = None
        if pairs.unmappable is None:
            places = zip(pairs.offset[:, self.images], self._pitches, self.factors, strict=True)
            starts = np.stack([augment.start_address(plan, *place) for place in places])
        return _Epoch(augment.order(self.seed, number, m), plan, starts)
