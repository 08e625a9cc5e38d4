"""Which patches make which batch: a pure function of the step, the same for every mode of delivery (data/feed.py)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rdn_fast.data import augment
from rdn_fast.data.h5 import PairedH5
from rdn_fast.errors import UserError


class _once:
    """A property that is computed at its first use. functools.cached_property has one lock for all objects before Python 3.12: a process
    that is forked while another thread holds it would wait for ever; here two threads may compute the same at the same time."""

    def __init__(self, function):
        self._function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner, name: str):
        self._name = name

    def __get__(self, instance, owner=None):
        value = instance.__dict__[self._name] = self._function(instance)
        return value


class Epoch:
    """What is done with the M images of a loader in one epoch: the order [M] of their numbers, every image's patch, and where it lies."""

    def __init__(self, sampler: PatchSampler, number: int):
        self._sampler, m = sampler, len(sampler)
        self.order = augment.order(sampler.seed, number, m)
        self.plan = augment.plan(
            sampler.seed, number, np.arange(m), sampler.pairs.sizes[sampler.images], sampler.patch_size
        )

    @_once
    def starts(self) -> list[np.ndarray]:
        """For LR and HR, the addresses [M] of the crops in the file."""
        sampler = self._sampler
        offsets = sampler.pairs.offset[:, sampler.images]
        return [
            augment.corner(self.plan, *where) for where in zip(offsets, sampler.pitches, sampler.factors, strict=True)
        ]

    @_once
    def walks(self) -> list[np.ndarray]:
        """For LR and HR, the ways [3, M] through the file that turn the crops (augment.walk)."""
        return [
            augment.walk(self.plan, *where)
            for where in zip(self.starts, self._sampler.pitches, self._sampler.edges, strict=True)
        ]

    @_once
    def turns(self) -> list[np.ndarray]:
        """The same through crops that were copied as they lie, each at address 0."""
        return [
            augment.walk(self.plan, *where)
            for where in ((0, np.full(len(self.order), 3 * edge), edge) for edge in self._sampler.edges)
        ]


class Share(NamedTuple):
    """One rank's patches of a step: their numbers [b] in the epoch's arrays; `count` and `total` as in feed.Batch."""

    epoch: Epoch
    index: np.ndarray
    count: int
    total: int


class PatchSampler:
    """Cuts one patch from every image in every epoch, `batch_size` per rank and step; `drop_last`: leaves out the last, partial batch."""

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
        """Raises UserError when no image is as large as the patch; smaller ones are left out and named in `left_out`."""
        large = (pairs.sizes >= patch_size).all(axis=1)
        if not large.any():
            largest = max(pairs.sizes, key=min)
            raise UserError(
                f"{pairs.path}: no image is as large as the patch ({patch_size}x{patch_size} LR pixels; the largest is "
                f"{largest[1]}x{largest[0]}): give a smaller --patch-size, or prepare larger images"
            )
        self.left_out = pairs.names(np.flatnonzero(~large)) if not large.all() else []
        self.pairs, self.patch_size, self.batch_size, self.seed, self.rank, self.world = (
            pairs,
            patch_size,
            batch_size,
            seed,
            rank,
            world,
        )
        self.images = np.flatnonzero(large)  # [M], their numbers in the file
        self.factors = 1, pairs.scale  # of LR and HR
        self.edges = tuple(factor * patch_size for factor in self.factors)  # of the patches, in pixels
        self.patch_bytes = sum(3 * edge**2 for edge in self.edges)
        self.pitches = [
            3 * factor * pairs.sizes[self.images, 1] for factor in self.factors
        ]  # [M], bytes from row to row
        self.global_batch = batch_size * world
        self.steps = len(self) // self.global_batch if drop_last else -(-len(self) // self.global_batch)  # in an epoch
        if not self.steps:
            raise UserError(
                f"--drop-last: {len(self)} images do not make one batch of {self.global_batch}; give a smaller --batch-size"
            )
        self._epochs: dict[int, Epoch] = {}

    def __len__(self) -> int:
        """Images that are large enough."""
        return len(self.images)

    @property
    def patches(self) -> int:
        """Patches in an epoch, over all ranks."""
        return min(len(self), self.steps * self.global_batch)

    def share(self, step: int) -> Share:
        """This rank's share of `step`, counted from 0 through all epochs."""
        number, position = divmod(step, self.steps)
        epoch = self._epoch(number)
        chosen = epoch.order[position * self.global_batch : (position + 1) * self.global_batch]
        each, more = divmod(len(chosen), self.world)  # the first `more` ranks have one patch more
        begin = self.rank * each + min(self.rank, more)
        mine = chosen[begin : begin + each + (self.rank < more)]
        return Share(epoch, mine if len(mine) else chosen[:1], len(mine), len(chosen))

    def _epoch(self, number: int) -> Epoch:
        epochs = self._epochs
        if number not in epochs:
            before = {
                n: epochs[n] for n in (number - 1,) if n in epochs
            }  # other threads may still fill its last batches
            epochs = self._epochs = {**before, number: Epoch(self, number)}
        return epochs[number]
