"""How fast augmented patches reach the device, whether a steady consumer waits for them, how fast a large file opens.

rdn_fast's PrefetchLoader stands beside the reference's recipe and the strongest plain one (`stock`): bench/loop.py's
datasets under torch's DataLoader with several numbers of workers. All read one file, of images of DIV2K's size whose
pixels tell their place, and deliver float batches on the device. The file is in the page cache: no disk is measured.
The ceiling is a copy of as many bytes as are read and written.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler

from bench import tables
from bench.case import Case, Chart, Comparison, Contender, Entry, Gate
from bench.loop import PlainDataset, TrainDataset, write_h5
from bench.measure import Bench
from bench.models import PATCH
from bench.results import STEADY, Row
from bench.timing import Times, repeat
from rdn_fast import devices
from rdn_fast.config import TrainConfig
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.prefetch import PrefetchLoader
from rdn_fast.data.sampler import PatchSampler

LOADING, PACED, OPENING = "loading", "paced loading", "opening"
SCALE, BATCH = 2, 64
IMAGES = 200
BASELINES = {"reference": (TrainDataset, None, (2, 8)), "stock": (PlainDataset, lambda batch: batch, (1, 2, 4))}
BATCHES = 8  # of one run: a multiple of every number of workers, for workers deliver in bunches
SPAN = 1.0  # seconds of a reading of the clock, at least
ENDLESS = 1 << 40
REPEATED = ("rounds", "rounds_run", "seconds", "seconds_min", "seconds_max", "images_s", "ceiling_share")
REPEATED += ("vs_reference", "vs_stock", "vs_other", "unsteady")  # columns
PERIOD = 0.015  # seconds from batch to batch of the steady consumer
TAKEN = 70  # batches that it takes in a round
LATE = 1.05  # of PERIOD: longer sleeps tell that the processor was taken
OPENED = 4000  # pairs of the file that is opened

Patches = tuple[torch.Tensor, torch.Tensor]  # float32 [B, 3, p, p] and [B, 3, s*p, s*p] in 0..1


@dataclass
class Loader:
    """A way to deliver endless batches on the device: open() starts it.

    `ahead`: how many batches it may have ready before they are asked for, at most; these are not timed. Loaders share
    `running`: one that starts ends the one before it, so that none works behind another's clock.
    """

    open: Callable[[], AbstractContextManager[Iterator[Patches]]]
    ahead: int
    running: ExitStack
    prefetch: PrefetchLoader | None = None  # rdn_fast's
    batches: Iterator[Patches] | None = None

    def start(self) -> Iterator[Patches]:
        """Start it anew, alone."""
        self.running.close()
        self.batches = self.running.enter_context(self.open())
        return self.batches

    def fresh(self) -> tuple:
        self.start()
        for _ in range(self.ahead):
            next(self.batches)
        return ()

    def run(self) -> None:
        for _ in range(BATCHES):
            next(self.batches)

    def contender(self, device: torch.device) -> Contender:
        def check() -> None:
            check_batches(self.start(), device)
            made.note = self.prefetch.about if self.prefetch else ""

        made = Contender(self.run, self.fresh, check)
        return made


def baseline_loader(path: Path, device: torch.device, running: ExitStack, name: str, workers: int) -> Loader:
    """Return one of BASELINES, whose DataLoader forks its workers as a script on Linux does.

    The reference would start its workers anew after every 200 patches; here the sampler strings permutation to
    permutation, so that neither need.
    """
    kind, collate, _ = BASELINES[name]

    def start() -> AbstractContextManager[Iterator[Patches]]:
        dataset = kind(str(path), SCALE)
        sampler = RandomSampler(dataset, num_samples=ENDLESS)
        how = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None, "collate_fn": collate}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more workers than cores, of forking beside threads: that is the recipe
            batches = iter(DataLoader(dataset, BATCH, sampler=sampler, pin_memory=device.type != "cpu", **how))
        return closing(tuple(part.to(device) for part in batch) for batch in batches)

    return Loader(start, 2 * max(1, workers), running)  # 2: DataLoader's prefetch_factor


def our_loader(path: Path, device: torch.device, running: ExitStack, mode: str) -> Loader:
    """Return rdn_fast's loader in `mode`, with training's default number of threads."""
    seed = int(torch.randint(2**31, ()))
    sampler = PatchSampler(PairedH5(path, SCALE), PATCH, BATCH, seed=seed, drop_last=True)

    @contextmanager
    def start() -> Iterator[Iterator[Patches]]:
        with PrefetchLoader(sampler, device, mode, TrainConfig().num_workers, 0, ENDLESS) as loader.prefetch:
            yield ((batch.lr, batch.hr) for batch in loader.prefetch)

    loader = Loader(start, 4 * BATCHES, running)
    return loader


def loaders(path: Path, device: torch.device, running: ExitStack) -> dict[str, Callable[[], Loader]]:
    """Return {recipe: how to make its Loader of the file, which this writes}."""
    write_h5(path, IMAGES, SCALE, different=IMAGES, image=positions)
    found = {
        f"{name} {n} workers": partial(baseline_loader, path, device, running, name, n)
        for name, (_, _, workers) in BASELINES.items()
        for n in workers
    }
    for recipe, mode in (("rdn_fast", "mmap"), ("rdn_fast resident", "resident")):
        found[recipe] = partial(our_loader, path, device, running, mode)
    return found


def opening(folder: Path) -> Comparison:
    """Return rdn_fast's opening of a file of many small pairs, which this writes."""
    path = folder / "opening.h5"
    write_h5(path, OPENED, SCALE, different=OPENED, lr_size=(8, 8))

    def check() -> None:
        pairs = PairedH5(path, SCALE)
        with h5py.File(path, "r") as file:
            assert len(pairs) == len(file["lr"]), f"{len(pairs)} pairs of {len(file['lr'])}"
            for i in range(0, len(pairs), 100):
                for name in ("lr", "hr"):
                    assert np.array_equal(getattr(pairs[i], name), file[name][str(i)]), f"{name} {i} has other pixels"

    entry = Entry("rdn_fast", torch.uint8, lambda: Contender(lambda: PairedH5(path, SCALE), check=check))
    return Comparison(OPENING, 0, f"{OPENED:,} pairs", [entry])


def run(bench: Bench, command: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure(bench, Path(folder), rounds=3)


def measure(bench: Bench, folder: Path, rounds: int) -> None:
    """Write the rows of all three cases; files go to the folder."""
    device = bench.device
    with ExitStack() as running:
        makers = loaders(folder / "loading.h5", device, running)
        entries = [
            Entry(recipe, torch.float32, lambda make=make: make().contender(device)) for recipe, make in makers.items()
        ]
        patches = BATCHES * BATCH
        moved = patches * 3 * PATCH**2 * (1 + SCALE**2) * (1 + 4)  # bytes read, and written as float32
        comparison = Comparison(LOADING, BATCH, f"DIV2K-sized, {PATCH}x{PATCH}", entries, patches, moved=moved)
        timed = bench.compare(comparison, rounds, span=SPAN)
        repeat_best(bench)
        print(f"\n{PACED}, batch {BATCH}, {comparison.shape}")
        for entry in timed:
            if entry.ours:
                kept = [bench.times(PACED, entry.recipe, what, keep=rounds) for what in ("batch", "waited", "asleep")]
                waited, times, unsteady = paced(makers[entry.recipe](), device, *kept)
                note = f"{TAKEN} batches a round, one every {1e3 * PERIOD:.0f} ms"
                figures = {"images_s": BATCH / times.median, "waited": waited, "note": note, "unsteady": unsteady}
                bench.row(PACED, entry.recipe, entry.dtype, BATCH, comparison.shape, times, **figures)
    bench.compare(opening(folder), rounds)


def repeat_best(bench: Bench) -> None:
    """Write for each of BASELINES a row of its name that repeats the fastest of its loaders."""
    rows = [row for row in bench.results.rows if row.case == LOADING and row.kind == "measured"]
    for name in BASELINES:
        best = max((row for row in rows if row.recipe.startswith(name)), key=lambda row: row.images_s, default=None)
        if best:
            figures = {column: getattr(best, column) for column in REPEATED}
            figures["note"] = best.recipe.removeprefix(f"{name} ")
            bench.row(LOADING, name, torch.float32, best.batch, best.shape, **figures)


def paced(loader: Loader, device: torch.device, times: Times, shares: Times, asleep: Times) -> tuple[float, Times, str]:
    """Return (share of its time in which a consumer waited, the Times from batch to batch, why they decide nothing).

    In each round it takes TAKEN batches, and after each is busy for PERIOD: it sleeps, as the host does while a device
    computes. It waits from asking for a batch until that is on the device. The share is the median of the rounds that
    count, those in which it waited least. Where sleeps end late, something else had the processor.

    times, shares, asleep: Times to be continued, of the seconds from batch to batch, of the shares, and of the sleeps'
    lengths over those asked for.
    """
    loader.fresh()
    devices.synchronize(device)

    def turn() -> None:
        waited, known = 0.0, loader.prefetch.waited
        began = time.perf_counter()
        for _ in range(TAKEN):
            asked = time.perf_counter()
            next(loader.batches)
            devices.synchronize(device)
            arrived = time.perf_counter()
            waited += arrived - asked
            time.sleep(max(0.0, arrived + PERIOD - time.perf_counter()))
        seconds = time.perf_counter() - began
        times.every.append(seconds / TAKEN)
        shares.every.append(max(waited, loader.prefetch.waited - known) / seconds)
        asleep.every.append((seconds - waited) / TAKEN / PERIOD)

    def unsteady() -> str:
        if times.spread > STEADY:
            return f"rounds spread {times.spread:.2f}x"
        return f"sleeps last {asleep.median:.2f}x as long as asked" if asleep.median > LATE else ""

    repeat(turn, times.keep, lambda: not unsteady())
    return shares.median, times, unsteady()


def positions(image: int, height: int, width: int) -> np.ndarray:
    """Return an image [height, width, 3] whose pixels tell the image, their row and their column, modulo 256."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([np.full_like(rows, image), rows, columns], axis=-1).astype(np.uint8)


def check_batches(batches: Iterator[Patches], device: torch.device) -> None:
    """Raise AssertionError unless the first two epochs of batches are what a loader of the file has to deliver.

    Every LR patch must be found in the file, in one of the eight ways to turn it, and its HR patch at the same place,
    turned alike. All eight must occur. No image may come twice within the first epoch, and no patch again and again.
    """
    steps, sizes = IMAGES // BATCH, (PATCH, SCALE * PATCH)
    taken = [
        [_pixels(part, size, device) for part, size in zip(next(batches), sizes, strict=True)] for _ in range(2 * steps)
    ]
    places = _places(*map(np.concatenate, zip(*taken, strict=True)))
    ways = {way for *_, way in places}
    assert len(ways) == 8, f"patches are turned in {len(ways)} of 8 ways"
    images = [image for image, *_ in places[: steps * BATCH]]
    different = len(set(images))
    assert different == len(images), f"the first epoch's {len(images)} patches come from {different} images"
    again = len(places) - len(set(places))
    assert again < 0.1 * len(places), f"{again} of {len(places)} patches had come before"


def _pixels(part: torch.Tensor, size: int, device: torch.device) -> np.ndarray:
    """float32 [B, 3, size, size] -> uint8 [B, size, size, 3]. Raise unless they are values k/255 on the device."""
    assert part.dtype == torch.float32, f"patches are {part.dtype}"
    assert part.device.type == device.type, f"patches are on {part.device}"
    assert part.shape == (BATCH, 3, size, size), f"patches are {list(part.shape)}"
    part = part.cpu()
    whole = (part * 255).round()
    off = (part - whole / 255).abs().max().item()
    assert off == 0, f"values are up to {off:.3g} off k/255"
    assert 0 <= whole.min() <= whole.max() <= 255, f"values are from {part.min():.3g} to {part.max():.3g}"
    return whole.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _places(lr: np.ndarray, hr: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return (image, top, left, way to turn it back) of each LR patch [N, p, p, 3].

    Raise AssertionError if one is not in the file, or its HR patch [N, s*p, s*p, 3] is not at the same place.
    """
    found: dict[int, tuple] = {}
    for way in range(8):
        small, large = _turned(lr, way), _turned(hr, way)
        corners = small[:, :1, :1]  # [N, 1, 1, 3]; sums with them are modulo 256
        right = (small == corners + positions(0, PATCH, PATCH)).all(axis=(1, 2, 3))
        scaled = corners * np.array([1, SCALE, SCALE], np.uint8) + positions(0, SCALE * PATCH, SCALE * PATCH)
        for n in np.flatnonzero(right & (corners[:, 0, 0, 0] < IMAGES)):
            place = tuple(corners[n, 0, 0].tolist())
            same = np.array_equal(large[n], scaled[n])
            assert same, f"the HR patch is not that of its LR patch, which is from (image, top, left) {place}"
            found[n] = *place, way
    assert len(found) == len(lr), f"{len(lr) - len(found)} of {len(lr)} LR patches are not in the file"
    return [found[n] for n in range(len(lr))]


def _turned(patches: np.ndarray, way: int) -> np.ndarray:
    """Turn and mirror squares [N, p, p, 3] in one of the eight ways, 0..7."""
    return np.rot90(patches[:, :, ::-1] if way >= 4 else patches, way % 4, axes=(1, 2))


def _charted(row: Row) -> bool:
    return row.case == LOADING and row.recipe not in BASELINES  # which repeat the best of the others


_SPEED = "loader, patches/s / reference's best loader"
_PLAIN = "loader, patches/s / the strongest plain loader"
_WAITING = "loader at one batch of 64 every 15 ms: share of time waited"
_OPENING = "opening a training file of 4,000 pairs, seconds"
_FLOATS, _AT_MOST = {"dtype": "float32", "batch": 64, "shape": ""}, {"at_most": True, "shape": ""}
CASE = Case(
    order=40,
    rows=(LOADING, PACED, OPENING),
    commands=("1p", "all"),
    run=run,
    gates=(
        Gate(_SPEED, LOADING, "vs_reference", 30, 60, **_FLOATS),
        Gate(_PLAIN, LOADING, "vs_stock", 4, 8, **_FLOATS),
        Gate(_WAITING, PACED, "waited", 0.01, **_FLOATS | _AT_MOST),
        Gate(_OPENING, OPENING, "seconds", 1, dtype="uint8", **_AT_MOST),
    ),
    block="loading",
    columns=(
        tables.RECIPE,
        tables.column("patches/s", "images_s", "{:,.0f}"),
        tables.CEILING,
        tables.VS_REFERENCE,
        tables.VS_STOCK,
        tables.column("time waited", "waited", "{:.2%}"),
    ),
    shows=lambda row: row.case != OPENING and not row.recipe.startswith(("reference ", "stock ")),
    chart=Chart("loading", "loaders", "loading", "images_s", "patches/s on the device", _charted),
)
