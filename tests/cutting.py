"""Expected batches, made in the simplest way: slices, flips and a transpose of whole images, divided by 255."""

from pathlib import Path

import numpy as np
import torch
from waiting import in_time

from rdn_fast.data.augment import FLIP_HORIZONTAL, FLIP_VERTICAL, TRANSPOSE, Plan
from rdn_fast.data.prefetch import Batch, PrefetchLoader
from rdn_fast.data.sampler import PatchSampler

PATCH = 6
CPU = torch.device("cpu")


def cut(image: np.ndarray, plan: Plan, k: int, patch: int, factor: int) -> np.ndarray:
    """Return patch k of the plan as a view of image [H, W, 3]: [patch*factor, patch*factor, 3].

    factor: 1 for LR, the scale for HR.
    """
    size, top, left = patch * factor, plan.top[k] * factor, plan.left[k] * factor
    view = image[top : top + size, left : left + size]
    if plan.orientation[k] & FLIP_VERTICAL:
        view = view[::-1]
    if plan.orientation[k] & FLIP_HORIZONTAL:
        view = view[:, ::-1]
    return view.transpose(1, 0, 2) if plan.orientation[k] & TRANSPOSE else view


def floats(patches: list[np.ndarray]) -> torch.Tensor:
    """uint8 [size, size, 3] each -> float32 [n, 3, size, size] in 0..1."""
    return torch.from_numpy(np.stack(patches).astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2)


def random_pairs(count: int, scale: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of unrelated noise, LR with PATCH to PATCH + 9 pixels a side, so that no patch equals another."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(PATCH, PATCH + 10, (count, 2))
    return [
        tuple(rng.integers(0, 256, (*(factor * size), 3), dtype=np.uint8) for factor in (1, scale)) for size in sizes
    ]


def by_hand(
    sampler: PatchSampler, images: list[tuple[np.ndarray, np.ndarray]], start: int = 0, stop: int | None = None
) -> list[Batch]:
    """Return what a PrefetchLoader must deliver.

    images: the pairs of its file. stop: None for the end of the first epoch.
    """
    batches = []
    for step in range(start, sampler.steps if stop is None else stop):
        share = sampler.share(step)
        lr, hr = (
            floats(
                [cut(images[i][group], share.plan, k, sampler.patch_size, factor) for k, i in enumerate(share.images)]
            )
            for group, factor in enumerate((1, sampler.pairs.scale))
        )
        batches.append(Batch(lr, hr, share.count, share.total))
    return batches


def stream(
    sampler: PatchSampler, mode: str = "mmap", workers: int = 0, start: int = 0, stop: int | None = None
) -> list[Batch]:
    """Return what a PrefetchLoader on the CPU delivers, each batch copied while it is valid."""

    def run() -> list[Batch]:
        stop_at = sampler.steps if stop is None else stop
        with PrefetchLoader(sampler, CPU, mode, workers, start, stop_at) as batches:
            return [batch._replace(lr=batch.lr.clone(), hr=batch.hr.clone()) for batch in batches]

    return in_time(run)


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Return whether both are the same batches, bit for bit."""
    return len(a) == len(b) and all(
        torch.equal(x.lr, y.lr) and torch.equal(x.hr, y.hr) and (x.count, x.total) == (y.count, y.total)
        for x, y in zip(a, b, strict=True)
    )


def save_stream(file: Path, *arguments) -> None:
    """Write stream(*arguments) to `file`. Runs in another process."""
    torch.save([tuple(batch) for batch in stream(*arguments)], file)
