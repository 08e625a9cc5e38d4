"""The batches that must come out, made the simple way: slices, flips and a transpose of whole images, divided by 255."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from waiting import in_time

from rdn_fast.data.augment import Plan
from rdn_fast.data.prefetch import Batch, PrefetchLoader
from rdn_fast.data.sampler import PatchSampler

PATCH = 6
CPU = torch.device("cpu")


def cut(image: np.ndarray, plan: Plan, k: int, patch: int, factor: int) -> np.ndarray:
    """Patch k of the plan as a view of image [H, W, 3]: [patch*factor, patch*factor, 3]; factor 1 for LR, the scale for HR."""
    size, top, left = patch * factor, plan.top[k] * factor, plan.left[k] * factor
    view = image[top : top + size, left : left + size]
    if plan.flip_vertical[k]:
        view = view[::-1]
    if plan.flip_horizontal[k]:
        view = view[:, ::-1]
    return view.transpose(1, 0, 2) if plan.transpose[k] else view


def floats(patches: list[np.ndarray]) -> torch.Tensor:
    """uint8 [size, size, 3] each -> float32 [n, 3, size, size] in 0..1."""
    return torch.from_numpy(np.stack(patches).astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2)


def random_pairs(count: int, scale: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """LR images of PATCH to PATCH + 9 pixels a side, and HR images that have nothing to do with them, so that no patch is like another."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(PATCH, PATCH + 10, (count, 2))
    return [
        tuple(rng.integers(0, 256, (*(factor * size), 3), dtype=np.uint8) for factor in (1, scale)) for size in sizes
    ]


class Plain(NamedTuple):
    """A loader's Share by itself: the images' numbers in the file [b], and how they are cut."""

    images: np.ndarray
    plan: Plan
    count: int
    total: int


def plain(loader: PatchSampler, step: int) -> Plain:
    share = loader.share(step)
    return Plain(
        loader.images[share.index], Plan(*(field[share.index] for field in share.epoch.plan)), share.count, share.total
    )


def by_hand(
    loader: PatchSampler, images: list[tuple[np.ndarray, np.ndarray]], start: int = 0, stop: int | None = None
) -> list[Batch]:
    """What a PrefetchLoader of this loader must give; images: the pairs of its file. `stop` None: the end of the first epoch."""
    batches = []
    for step in range(start, loader.steps if stop is None else stop):
        share = plain(loader, step)
        lr, hr = (
            floats(
                [cut(images[i][group], share.plan, k, loader.patch_size, factor) for k, i in enumerate(share.images)]
            )
            for group, factor in enumerate((1, loader.pairs.scale))
        )
        batches.append(Batch(lr, hr, share.count, share.total))
    return batches


def stream(
    loader: PatchSampler, mode: str = "mmap", workers: int = 0, start: int = 0, stop: int | None = None
) -> list[Batch]:
    """What a PrefetchLoader on the CPU gives, each batch copied while it is valid."""

    def run() -> list[Batch]:
        with PrefetchLoader(loader, CPU, mode, workers, start, loader.steps if stop is None else stop) as feed:
            return [batch._replace(lr=batch.lr.clone(), hr=batch.hr.clone()) for batch in feed]

    return in_time(run)


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Whether both are the same batches, bit for bit."""
    return len(a) == len(b) and all(
        torch.equal(x.lr, y.lr) and torch.equal(x.hr, y.hr) and (x.count, x.total) == (y.count, y.total)
        for x, y in zip(a, b, strict=True)
    )


def save_stream(file: Path, *arguments) -> None:
    """Another process writes its stream(*arguments) to `file`."""
    torch.save([tuple(batch) for batch in stream(*arguments)], file)
