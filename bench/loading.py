"""Data: how fast augmented patches reach the device, whether a steady consumer ever waits for them, and how fast a large file opens.

rdn_fast's PrefetchLoader stands beside the reference's recipe, bench/loop.py's dataset under torch's DataLoader with several numbers of workers.
All read one file of noise of DIV2K's size, and deliver float batches on the device. The file is in the page cache: no disk is measured.
"""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler

from bench import end_to_end
from bench.cases import PATCH, Case, Contender, Entry
from bench.loop import TrainDataset
from rdn_fast import devices
from rdn_fast.config import TrainConfig
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.prefetch import PrefetchLoader
from rdn_fast.data.sampler import PatchSampler

SCALE, BATCH = 2, 64
IMAGES = 200
WORKERS = 0, 2, 8  # of the reference's loader; its best is what we are measured against
BATCHES = 8  # of one run: a multiple of every number of workers, for workers deliver in bunches
SPAN = 1.0  # seconds of a reading of the clock, at least
ENDLESS = 1 << 40
PERIOD = 0.015  # seconds from batch to batch of the steady consumer
STEADY = 200  # batches that it takes
OPENED = 4000  # pairs of the file that is opened

Patches = tuple[torch.Tensor, torch.Tensor]  # float32 [B, 3, p, p] and [B, 3, s*p, s*p] in 0..1


class _Tested(Contender):
    """A contender that can tell by itself whether it does right."""

    @abstractmethod
    def check(self) -> None:
        """AssertionError when it does not."""


@dataclass
class _Case(Case):
    def check(self, contender: _Tested, what: str) -> None:
        contender.check()


class _Loading(_Tested):
    """Takes BATCHES batches in a run. Contenders share `running`: what starts ends the one before it, so that none works behind another's clock."""

    dtype = torch.float32

    def __init__(self, path: Path, device: torch.device, running: ExitStack):
        self.path, self.device, self._running = path, device, running

    @property
    @abstractmethod
    def ahead(self) -> int:
        """How many batches it may have ready before they are asked for, at most: they are not counted."""

    @abstractmethod
    def open(self) -> AbstractContextManager[Iterator[Patches]]:
        """Start it: endless batches on the device."""

    def start(self) -> Iterator[Patches]:
        """Start it anew, alone."""
        self._running.close()
        self._batches = self._running.enter_context(self.open())
        return self._batches

    def check(self) -> None:
        check(self.start(), self.path, self.device)

    def fresh(self) -> None:
        self.start()
        for _ in range(self.ahead):
            next(self._batches)

    def take(self) -> Patches:
        return next(self._batches)

    def run(self) -> None:
        for _ in range(BATCHES):
            self.take()


class Reference(_Loading):
    """The reference's dataset and loader, forking its workers as a script on Linux does.

    It would start its workers anew after every 200 patches; here the sampler strings permutation to permutation, so that it need not.
    """

    def __init__(self, path: Path, device: torch.device, running: ExitStack, workers: int):
        super().__init__(path, device, running)
        self._workers = workers

    @property
    def ahead(self) -> int:
        return 2 * max(1, self._workers)  # DataLoader's prefetch_factor

    def open(self) -> AbstractContextManager[Iterator[Patches]]:
        dataset = TrainDataset(str(self.path), SCALE)
        how = {
            "num_workers": self._workers,
            "multiprocessing_context": "fork" if self._workers else None,
            "pin_memory": self.device.type != "cpu",
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more workers than cores, of forking beside threads: that is the recipe
            batches = iter(DataLoader(dataset, BATCH, sampler=RandomSampler(dataset, num_samples=ENDLESS), **how))
        return closing(tuple(part.to(self.device) for part in batch) for batch in batches)


class Ours(_Loading):
    """rdn_fast's PrefetchLoader in `mode`, with as many fill threads as training has unasked."""

    ahead = 4 * BATCHES

    def __init__(self, path: Path, device: torch.device, running: ExitStack, mode: str):
        super().__init__(path, device, running)
        self._mode = mode
        self._sampler = PatchSampler(
            PairedH5(path, SCALE), PATCH, BATCH, seed=int(torch.randint(2**31, ())), drop_last=True
        )

    @contextmanager
    def open(self) -> Iterator[Iterator[Patches]]:
        with PrefetchLoader(self._sampler, self.device, self._mode, TrainConfig().num_workers, 0, ENDLESS) as self.feed:
            self.note = self.feed.about
            yield ((batch.lr, batch.hr) for batch in self.feed)


class _Opening(_Tested):
    """Opens a file of many pairs."""

    dtype = torch.uint8

    def __init__(self, path: Path):
        self._path = path

    def check(self) -> None:
        pairs = PairedH5(self._path, SCALE)
        with h5py.File(self._path, "r") as file:
            assert len(pairs) == len(file["lr"]), f"{len(pairs)} pairs of {len(file['lr'])}"
            for i in range(0, len(pairs), 100):
                for name, images in (("lr", pairs.lr), ("hr", pairs.hr)):
                    assert np.array_equal(images[i], file[name][str(i)]), f"{name} {i} has other pixels"

    def fresh(self) -> None:
        pass

    def run(self) -> None:
        PairedH5(self._path, SCALE)


def loading(folder: Path, device: torch.device, running: ExitStack) -> Case:
    """Patches per second of either side; the file is written to the folder."""
    path = folder / "loading.h5"
    end_to_end.write_data(path, IMAGES, SCALE, different=IMAGES)
    entries = [
        Entry(f"reference {n} workers", torch.float32, lambda n=n: Reference(path, device, running, n)) for n in WORKERS
    ]
    for recipe, mode in (("rdn_fast", "mmap"), ("rdn_fast resident", "resident")):
        entries.append(Entry(recipe, torch.float32, lambda mode=mode: Ours(path, device, running, mode)))
    return _Case("loading", BATCH, f"DIV2K-sized, {PATCH}x{PATCH}", BATCHES * BATCH, None, entries)


def opening(folder: Path) -> Case:
    """A file of many small pairs, written to the folder, and opened."""
    path = folder / "opening.h5"
    end_to_end.write_data(path, OPENED, SCALE, different=OPENED, size=(8, 8))
    return _Case(
        "opening", 0, f"{OPENED:,} pairs", None, None, [Entry("rdn_fast", torch.uint8, lambda: _Opening(path))]
    )


def paced(contender: Ours) -> tuple[float, float]:
    """(share of its time in which a consumer waited, seconds from batch to batch): one that takes STEADY batches, and after each is busy for PERIOD.

    It sleeps for that time, as the host does while a device computes. It waits from asking for a batch until that is on the device.
    """
    contender.fresh()
    devices.synchronize(contender.device)
    waited, known = 0.0, contender.feed.waited
    began = time.perf_counter()
    for _ in range(STEADY):
        asked = time.perf_counter()
        contender.take()
        devices.synchronize(contender.device)
        arrived = time.perf_counter()
        waited += arrived - asked
        time.sleep(max(0.0, arrived + PERIOD - time.perf_counter()))
    seconds = time.perf_counter() - began
    return max(waited, contender.feed.waited - known) / seconds, seconds / STEADY


def check(batches: Iterator[Patches], path: Path, device: torch.device) -> None:
    """AssertionError unless the first two epochs of batches are what a loader of the file has to deliver.

    Every LR patch must be found in the file, in one of the eight ways to turn it, and its HR patch at the same place, turned alike. All
    eight must occur. No image may come twice within the first epoch, and no patch again and again.
    """
    with h5py.File(path, "r") as file:
        steps = len(file["lr"]) // BATCH
    taken = [
        [_pixels(part, size, device) for part, size in zip(next(batches), (PATCH, SCALE * PATCH), strict=True)]
        for _ in range(2 * steps)
    ]
    lr, hr = map(np.concatenate, zip(*taken, strict=True))
    places = _places(lr, hr, path)
    ways = {place[-1] for place in places}
    assert len(ways) == 8, f"patches are turned in {len(ways)} of 8 ways"
    images = [place[0] for place in places[: steps * BATCH]]
    assert len(set(images)) == len(images), (
        f"the first epoch's {len(images)} patches come from {len(set(images))} images"
    )
    assert len(set(places)) > 0.9 * len(places), (
        f"{len(places) - len(set(places))} of {len(places)} patches had come before"
    )


def _pixels(part: torch.Tensor, size: int, device: torch.device) -> np.ndarray:
    """float32 [B, 3, size, size] -> uint8 [B, size, size, 3]; AssertionError unless they are values k/255 on the device."""
    assert part.dtype == torch.float32, f"patches are {part.dtype}"
    assert part.device.type == device.type, f"patches are on {part.device}"
    assert part.shape == (BATCH, 3, size, size), f"patches are {list(part.shape)}"
    part = part.cpu()
    whole = (part * 255).round()
    off = (part - whole / 255).abs().max().item()
    assert off == 0, f"values are up to {off:.3g} off k/255"
    assert 0 <= whole.min() <= whole.max() <= 255, f"values are from {part.min():.3g} to {part.max():.3g}"
    return whole.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _places(lr: np.ndarray, hr: np.ndarray, path: Path) -> list[tuple[str, int, int, int]]:
    """Where each LR patch [N, p, p, 3] lies in the file: its image, top, left, and the way to turn it back. AssertionError when one is not
    there, or its HR patch [N, s*p, s*p, 3] is not there.

    Every pixel of every image is looked up among the corners of the patches, turned in all ways; noise has few that look alike.
    """
    turned = [(_turned(lr, way), _turned(hr, way)) for way in range(8)]
    corners: dict[int, list[tuple[int, int]]] = {}
    for way, (patches, _) in enumerate(turned):
        for n, colour in enumerate(_colours(patches[:, 0, 0]).tolist()):
            corners.setdefault(colour, []).append((n, way))
    wanted = np.zeros(1 << 24, bool)
    wanted[list(corners)] = True
    found: dict[int, tuple] = {}
    with h5py.File(path, "r") as file:
        for key in file["lr"]:
            image = file["lr"][key][:]
            colours = _colours(image)[: 1 - PATCH, : 1 - PATCH]
            for top, left in np.argwhere(wanted[colours]).tolist():
                for n, way in corners[int(colours[top, left])]:
                    small, large = (patches[n] for patches in turned[way])
                    if np.array_equal(small, image[top : top + PATCH, left : left + PATCH]):
                        y, x, size = SCALE * top, SCALE * left, SCALE * PATCH
                        same = np.array_equal(large, file["hr"][key][y : y + size, x : x + size])
                        assert same, (
                            f"the HR patch is not that of its LR patch, which is from image {key} at {top}, {left}"
                        )
                        found[n] = key, top, left, way
    assert len(found) == len(lr), f"{len(lr) - len(found)} of {len(lr)} LR patches are not in the file"
    return [found[n] for n in range(len(lr))]


def _turned(patches: np.ndarray, way: int) -> np.ndarray:
    """patches [N, p, p, 3] in one of the eight ways, 0..7, to turn and mirror a square."""
    return np.rot90(patches[:, :, ::-1] if way >= 4 else patches, way % 4, axes=(1, 2))


def _colours(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> int32 [...], 24 bits of them."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue
