"""Gradients averaged over all ranks, a bucket at a time, while backward computes those of the next bucket."""

from __future__ import annotations

import time
from bisect import bisect
from itertools import accumulate

import torch
import torch.distributed as dist

from rdn_fast import devices
from rdn_fast.distributed.waiting import waiting

# Shares of all gradients that are averaged together, in the order in which backward computes them. The last buckets are
# small: no computation is left that their all-reduces could overlap with. Most impls compute all gradients of a block
# at once, so a bucket that reaches into the last block is among them.
BUCKET_SHARES = (0.37, 0.24, 0.15, 0.1, 0.07, 0.04, 0.03)
_ALIGNED = 4  # a gradient in the buffer begins at a multiple of so many values: a wide load of a GPU


class _Bucket:
    """Parameters whose gradients are averaged together: in `flat`, a part of the buffer, of which `views` are views."""

    def __init__(self, params: list[torch.nn.Parameter], flat: torch.Tensor):
        self.params, self.flat, self.missing = params, flat, 0
        starts = accumulate(map(_room, params), initial=flat.storage_offset())
        # In the parameter's memory format, in which backward makes its gradient.
        self.views = [flat.as_strided(p.shape, p.stride(), start) for p, start in zip(params, starts, strict=False)]


class GradientBuckets:
    """Averages a model's gradients over all ranks, within backward(). Call start() before it.

    Gradients of a complete bucket are copied to a flat buffer, and its all-reduce begins. After backward() the
    parameters' gradients are the averages, float32. On an accelerator the device's queue waits for the all-reduces, and
    the host does not: a step can be captured. Backward must compute a gradient of every parameter.

    `world`: the number of ranks.
    """

    def __init__(self, model: torch.nn.Module, world: int, dtype: torch.dtype = torch.float32):
        """Copy the parameters of rank 0 to all ranks. A collective. model: float32. dtype: of what ranks send."""
        self.world = world
        params = list(model.parameters())[::-1]  # they are registered in the order of forward
        self._copy_back = dtype != torch.float32 or devices.gradients_stay(params[0].device)
        self._broadcast(params)
        self._buckets = _divided(params, dtype)
        self.start()
        for bucket in self._buckets:
            for p in bucket.params:
                p.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._count(bucket))

    @staticmethod
    @torch.no_grad()
    def _broadcast(params: list[torch.nn.Parameter]) -> None:
        for bucket in _divided(params, torch.float32):
            devices.foreach("copy", bucket.views, bucket.params)
            with waiting():
                dist.broadcast(bucket.flat, 0)
            devices.foreach("copy", bucket.params, bucket.views)

    def start(self, averages: bool = True) -> None:
        """Expect a gradient of every parameter. What a backward() that failed has left is forgotten.

        averages: whether the next backward() averages them; else they only add up in the parameters' gradients.
        """
        self._averages = averages
        self._works: list[dist.Work] = []  # of the buckets that have begun: all ranks begin them in one order
        self._started_at: float | None = None  # when the first gradient was there
        for bucket in self._buckets:
            bucket.missing = len(bucket.params)

    def _count(self, bucket: _Bucket) -> None:
        """Count a gradient that backward has computed, and begin with the buckets that are complete."""
        if not self._averages:
            return
        if self._started_at is None:
            self._started_at = time.monotonic()
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        bucket.missing -= 1
        while len(self._works) < len(self._buckets) and not (bucket := self._buckets[len(self._works)]).missing:
            devices.foreach("copy", bucket.views, [p.grad for p in bucket.params])
            self._works.append(devices.begin_mean(bucket.flat, self.world))
            if not self._copy_back:
                for p, view in zip(bucket.params, bucket.views, strict=True):
                    p.grad = view

    def _finish(self) -> None:
        """Wait for the all-reduces. Called at the end of backward()."""
        if len(self._works) < len(self._buckets):
            raise RuntimeError("backward() has left out the gradients of some parameters, which are not averaged")
        for work, bucket in zip(self._works, self._buckets, strict=True):
            with waiting(self._started_at):
                work.wait()
            if self._copy_back:
                devices.foreach("copy", [p.grad for p in bucket.params], bucket.views)


def _divided(params: list[torch.nn.Parameter], dtype: torch.dtype) -> list[_Bucket]:
    """Return the buckets of the parameters, in a new buffer of zeros."""
    flat = torch.zeros(sum(map(_room, params)), dtype=dtype, device=params[0].device)
    limits = [share * len(flat) for share in accumulate(BUCKET_SHARES[:-1])]
    parts: list[list[torch.nn.Parameter]] = [[] for _ in BUCKET_SHARES]
    for p, start in zip(params, accumulate(map(_room, params), initial=0), strict=False):
        parts[bisect(limits, start)].append(p)
    parts = [part for part in parts if part]
    flats = flat.split([sum(map(_room, part)) for part in parts])
    return [_Bucket(part, of_part) for part, of_part in zip(parts, flats, strict=True)]


def _room(parameter: torch.nn.Parameter) -> int:
    """Return how many values of the buffer the parameter's gradient takes."""
    return -(-parameter.numel() // _ALIGNED) * _ALIGNED
